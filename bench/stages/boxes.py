"""Selection of boxes and masks, compared with torchvision, ONNX Runtime, ensemble-boxes, pycocotools and numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.stages.case import Case, Peer
from oracles.debian import Debian
from segserve_builder.kernels.mask_nms import greedy_masks, matrix_decay
from segserve_builder.kernels.nms import nms
from segserve_builder.kernels.soft_nms import soft_nms
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.decode_anchors import DecodeAnchors
from segserve_builder.values import Anchors, ResizeTransform

ROOT = Path(__file__).parents[2]

ORACLE = ROOT / "tests/oracles/torchvision_boxes.py"
NUMBER = 10_000
CLASSES = 80
HEIGHT, WIDTH = 800, 1333


class Boxes:
    """Return boxes in clusters, distinct scores, and classes, which are equal within a cluster."""

    def __init__(self, boxes: np.ndarray, seed: int = 0) -> None:
        n = len(boxes)
        rng = np.random.default_rng(seed)
        self.boxes = np.ascontiguousarray(boxes, np.float32)
        self.scores = ((rng.permutation(n) + 1) / n).astype(np.float32)
        self.classes = (np.arange(n) % max(n // 40, 1) % CLASSES).astype(np.int32)
        self.one_class = np.zeros(n, np.int32)


def clusters(n: int) -> Boxes:
    """Return boxes in n / 40 clusters, and 20 % background."""
    rng = np.random.default_rng(n)
    number = n // 40
    centres, sizes = (
        rng.random((number, 2)) * (WIDTH, HEIGHT),
        np.exp(rng.uniform(np.log(20), np.log(300), (number, 2))),
    )
    cluster = np.arange(n) % number
    centre = centres[cluster] + rng.normal(size=(n, 2)) * sizes[cluster] * 0.1
    size = sizes[cluster] * np.exp(rng.normal(size=(n, 2)) * 0.1)
    background = rng.random(n) < 0.2
    alone = int(background.sum())
    centre[background] = rng.random((alone, 2)) * (WIDTH, HEIGHT)
    size[background] = np.exp(rng.uniform(np.log(10), np.log(200), (alone, 2)))
    return Boxes(np.concatenate([centre - size / 2, centre + size / 2], axis=1))


def all_overlapping(n: int) -> Boxes:
    return Boxes(np.tile([10.0, 10, 90, 60], (n, 1)))


def none_overlapping(n: int) -> Boxes:
    corner = np.stack(np.divmod(np.arange(n), 100), axis=1) * 13.0
    return Boxes(np.concatenate([corner, corner + 12], axis=1))


def cases() -> Iterator[Case]:
    with Debian(ORACLE) as debian:
        yield from _hard_cases(debian)
    yield _top_case()
    yield from _soft_cases()
    yield from _mask_cases()
    with Debian(ORACLE) as debian:
        yield from _decode_cases(debian)


def _hard_cases(debian: Debian) -> Iterator[Case]:
    """Yield the cases of torchvision: `agrees` sends it the arguments with which it is timed afterwards."""
    release = debian.call("version")
    inputs = [
        ("", clusters(NUMBER), 35, 12, False),
        (", all overlapping", all_overlapping(NUMBER), None, None, True),
        (", none overlapping", none_overlapping(NUMBER), None, None, True),
        ("", clusters(1000), None, None, False),
    ]
    for kind, some, agnostic_goal, aware_goal, worst in inputs:
        for name, goal in (("nms", agnostic_goal), ("batched_nms", aware_goal)):
            classes = some.one_class if name == "nms" else some.classes
            arguments = [some.boxes, some.scores] + ([] if name == "nms" else [classes.astype(np.int64)])
            ours = _hard(some, classes, 10 * NUMBER)
            peer = Peer(
                f"torchvision {name}",
                release,
                lambda name=name: debian.again_s(name),
                _same(ours, lambda name=name, arguments=arguments: debian.call(name, *arguments, 0.5)),
                goal,
            )
            title = "agnostic" if name == "nms" else f"{CLASSES} classes"
            yield Case(f"nms of {len(some.boxes):,} boxes, {title}{kind}", ours, (peer,), worst)


def _hard(some: Boxes, classes: np.ndarray, limit: int) -> Callable[[], np.ndarray]:
    return lambda: nms(some.boxes, some.scores, classes, 0.5, limit)


def _same(ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray]) -> Callable[[], str]:
    def agrees() -> str:
        own, other = ours(), theirs()
        assert np.array_equal(own, other), f"{len(own)} and {len(other)} boxes"
        return f"{len(own):,}/{len(other):,} boxes the same"

    return agrees


def _top_case() -> Case:
    import onnxruntime

    some = clusters(NUMBER)
    session = _onnx_session(100)
    inputs = {"boxes": some.boxes[None], "scores": some.scores[None, None]}

    def run() -> Any:
        return session.run(None, inputs)[0][:, 2]

    ours = _hard(some, some.one_class, 100)
    peer = Peer("onnxruntime NonMaxSuppression", onnxruntime.__version__, run, _same(ours, run), 2)
    return Case(f"nms of {NUMBER:,} boxes, agnostic, best 100", ours, (peer,))


def _onnx_session(most: int) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    constants = [
        numpy_helper.from_array(np.array([most], np.int64), "most"),
        numpy_helper.from_array(np.array([0.5], np.float32), "threshold"),
    ]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "threshold"], ["kept"])
    shapes = {"boxes": [1, None, 4], "scores": [1, 1, None]}
    graph = helper.make_graph(
        [node],
        "nms",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, [None, 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _soft_cases() -> Iterator[Case]:
    from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

    n = 5000
    inputs = [
        ("", clusters(n), 300, 15, False),
        ("", clusters(n), n, None, False),
        (", all overlapping", all_overlapping(n), 300, None, True),
    ]
    for method, code in (("linear", 1), ("gaussian", 2)):
        for kind, some, limit, goal, worst in inputs:

            def ours(some: Boxes = some, method: Any = method, limit: int = limit) -> np.ndarray:
                return soft_nms(some.boxes, some.scores, some.one_class, method, 0.5, 0.5, 0.001, limit)[0]

            def run(some: Boxes = some, code: int = code, limit: int = limit) -> np.ndarray:
                # The inner function: `soft_nms` around it only checks and copies.
                scores = some.scores.astype(np.float64)
                kept: np.ndarray = cpu_soft_nms_float(some.boxes / np.float32(4096), scores, 0.5, 0.5, 0.001, code)
                return kept[:limit]

            peer = Peer("ensemble-boxes", version("ensemble-boxes"), run, _same(ours, run), goal)
            yield Case(f"softNms, {method}, {n:,} -> {limit:,}{kind}", ours, (peer,), worst)


def _masks(n: int, noise: bool) -> list[bytes]:
    """Return wavy discs in n / 5 places; with noise, half of their pixels are missing."""
    from pycocotools import mask as coco

    rng = np.random.default_rng(n)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    places = rng.random((n // 5, 2)) * (HEIGHT, WIDTH)
    masks = []
    for index in range(n):
        y, x = places[index % len(places)] + rng.normal(size=2) * 15
        radius = np.exp(rng.uniform(np.log(12), np.log(250)))
        wave = 1 + 0.2 * np.sin(5 * np.arctan2(rows - y, columns - x) + index)
        mask = np.hypot(rows - y, columns - x) < radius * wave
        if noise:
            mask &= rng.random(mask.shape) < 0.5
        masks.append(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])
    return masks


def _mask_cases() -> Iterator[Case]:
    from pycocotools import mask as coco

    release = f"{version('pycocotools')}, {np.__version__}"
    for noise in (False, True):
        counts = _masks(100, noise)
        encoded = [{"counts": item, "size": [HEIGHT, WIDTH]} for item in counts]
        classes = np.zeros(len(counts), np.int32)

        def ours(counts: list[bytes] = counts, classes: np.ndarray = classes) -> np.ndarray:
            return matrix_decay(counts, classes, HEIGHT, WIDTH, gaussian=True, sigma=2.0)

        def run(encoded: list[Any] = encoded) -> np.ndarray:
            return _matrix(coco.iou(encoded, encoded, [0] * len(encoded)))

        def agrees(ours: Callable[[], np.ndarray] = ours, run: Callable[[], np.ndarray] = run) -> str:
            difference = float(np.abs(ours() - run()).max())
            assert difference < 1e-6, difference
            return f"decays differ by {difference:.0e} at most"

        peer = Peer("pycocotools iou + numpy", release, run, agrees)
        yield Case(f"maskNms, matrix, {len(counts)} masks of {HEIGHT} x {WIDTH}", ours, (peer,), noise)

        def greedy(counts: list[bytes] = counts, classes: np.ndarray = classes) -> np.ndarray:
            return greedy_masks(counts, classes, HEIGHT, WIDTH, 0.5, len(counts))

        def plain(encoded: list[Any] = encoded) -> np.ndarray:
            return _greedy(coco.iou(encoded, encoded, [0] * len(encoded)))

        same = _same(greedy, plain)
        peer = Peer("pycocotools iou + numpy", release, plain, same)
        yield Case(f"maskNms, greedy, {len(counts)} masks of {HEIGHT} x {WIDTH}", greedy, (peer,), noise)


def _matrix(iou: np.ndarray) -> np.ndarray:
    upper = np.triu(iou, 1)
    largest = upper.max(axis=0)[:, None]
    decay: np.ndarray = (np.exp(-2.0 * upper**2) / np.exp(-2.0 * largest**2)).min(axis=0)
    return decay


def _greedy(iou: np.ndarray) -> np.ndarray:
    keep: list[int] = []
    for index in range(len(iou)):
        if not (iou[index, keep] > 0.5).any():
            keep.append(index)
    return np.array(keep)


def _decode_cases(debian: Debian) -> Iterator[Case]:
    """Return heads like those of a RetinaNet for 800 x 1344 pixels and 91 classes, with few probable detections."""
    levels = tuple(9 * -(-HEIGHT // stride) * -(-1344 // stride) for stride in (8, 16, 32, 64, 128))
    rng = np.random.default_rng(0)
    n = sum(levels)
    logits = rng.normal(-6, 1, (n, 91)).astype(np.float32)
    probable = logits > -2.9
    # Without ties, which torch breaks arbitrarily.
    logits[probable] = rng.permutation(np.linspace(-2.9, 4, int(probable.sum())))
    corner = rng.random((n, 2)) * (WIDTH, HEIGHT)
    anchors = np.concatenate([corner, corner + 20 + rng.random((n, 2)) * 200], axis=1).astype(np.float32)
    deltas = (rng.normal(size=(n, 4)) * 0.2).astype(np.float32)
    transform = ResizeTransform(HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH, HEIGHT, 1344)
    value = Anchors(logits, deltas, anchors, levels, transform)
    arguments = (logits, deltas, anchors, np.array(levels), HEIGHT, WIDTH)

    def ours() -> np.ndarray:
        return DecodeAnchors()(value, RequestOptions()).boxes

    def agrees() -> str:
        own, other = ours(), debian.call("retinanet_candidates", *arguments)
        difference = float(np.abs(own - other).max())
        assert own.shape == other.shape
        assert difference < 1e-3, difference
        return f"{len(own):,} boxes within {difference:.0e} px"

    peer = Peer("torchvision RetinaNet", debian.call("version"), lambda: debian.again_s("retinanet_candidates"), agrees)
    yield Case(f"decodeAnchors, {n:,} anchors, 91 classes", ours, (peer,))
