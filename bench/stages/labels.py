"""Labels, areas and confidences from the logits of a semantic network, compared with torch, ONNX Runtime and OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from pycocotools import mask as coco
from torch.nn import functional

from bench.stages.case import Case, Peer
from segserve_builder.imaging.probabilities import class_statistics
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.multi_label import MultiLabel
from segserve_builder.values import Logits, ResizeTransform

GRID, SIZE = 128, 1024
NO_WISHES = RequestOptions()


def smooth(classes: int, areas: int = 4, grid: int = GRID) -> np.ndarray:
    """Return logits whose labels form large areas: with 4 per side, borders cross 8 % of the cells."""
    rough = np.random.default_rng(0).normal(size=(1, classes, areas, areas)).astype(np.float32)
    return functional.interpolate(torch.from_numpy(rough), (grid, grid), mode="bicubic")[0].numpy()


def noise(classes: int) -> np.ndarray:
    """Return independent normal logits: a border in every cell, and most classes matter."""
    return np.random.default_rng(0).normal(size=(classes, GRID, GRID)).astype(np.float32)


def upsampled(logits: np.ndarray, aligned: bool) -> torch.Tensor:
    return functional.interpolate(torch.from_numpy(logits)[None], (SIZE, SIZE), mode="bilinear", align_corners=aligned)[
        0
    ]


def torch_labels(logits: np.ndarray, aligned: bool) -> np.ndarray:
    return upsampled(logits, aligned).argmax(0).numpy()


def opencv_labels(logits: np.ndarray) -> np.ndarray:
    """Upsample class by class with a running maximum, which is the fastest way with libraries."""
    best = cv2.resize(logits[0], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for k in range(1, len(logits)):
        value = cv2.resize(logits[k], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        labels[cv2.compare(value, best, cv2.CMP_GT) > 0] = k
        best = cv2.max(best, value)
    return labels


def onnx_labels(classes: int, aligned: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return a graph of Resize and ArgMax, as an exporter would append it to a network."""
    mode = "align_corners" if aligned else "half_pixel"
    nodes = [
        helper.make_node("Resize", ["x", "", "", "size"], ["y"], mode="linear", coordinate_transformation_mode=mode),
        helper.make_node("ArgMax", ["y"], ["labels"], axis=1, keepdims=0),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, classes, GRID, GRID])
    labels = helper.make_tensor_value_info("labels", TensorProto.INT64, [1, SIZE, SIZE])
    size = helper.make_tensor("size", TensorProto.INT64, [4], [1, classes, SIZE, SIZE])
    graph = helper.make_graph(nodes, "labels", [given], [labels], [size])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda logits: np.asarray(session.run(None, {"x": logits[None]})[0][0])


def same_labels(ours: Callable[[], Any], theirs: Callable[[], np.ndarray], allowed: int) -> str:
    wrong = int(np.count_nonzero(ours().labels != theirs()))
    assert wrong <= allowed, f"{wrong} pixels differ"
    return f"{wrong} of {SIZE * SIZE} pixels differ"


def label_case(name: str, logits: np.ndarray, aligned: bool = False, **goals: float | None) -> Case:
    """Return the case of labels at image size; peers that compute in another order may differ where classes tie."""
    ours = partial(
        Argmax(align_corners=aligned), Logits(logits, ResizeTransform(SIZE, SIZE, 0, 0, *[SIZE] * 4)), NO_WISHES
    )
    calls = {"torch interpolate + argmax": (partial(torch_labels, logits, aligned), version("torch"), 0)}
    in_graph = partial(onnx_labels(len(logits), aligned), logits)
    calls["onnxruntime Resize + ArgMax"] = (in_graph, version("onnxruntime"), 50)
    if len(logits) <= 256 and not aligned:
        calls["OpenCV resize, running maximum"] = (partial(opencv_labels, logits), cv2.__version__, 50)
    peers = tuple(
        Peer(peer, number, run, partial(same_labels, ours, run, allowed), goals.get(peer.split()[0]))
        for peer, (run, number, allowed) in calls.items()
    )
    return Case(name, ours, peers, worst="noise" in name)


def torch_statistics(logits: np.ndarray, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the case of labels with the area and the mean probability of each class."""
    values = torch.from_numpy(logits)[None]
    if logits.shape[1] != size:
        values = functional.interpolate(values, (size, size), mode="bilinear")
    best, labels = torch.softmax(values[0], 0).max(0)
    flat = labels.reshape(-1)
    areas = torch.bincount(flat, minlength=len(logits))
    return labels, areas, torch.bincount(flat, best.reshape(-1).double(), minlength=len(logits)) / areas.clamp(min=1)


def same_statistics(ours: Callable[[], Any], theirs: Callable[[], Any]) -> str:
    (areas, mean), (_, expected_areas, expected) = ours(), theirs()
    assert np.array_equal(areas, expected_areas.numpy())
    gap = float(np.abs(mean - expected.numpy()).max())
    assert gap <= 1e-5, gap
    return f"areas equal, means within {gap:.0e}"


def statistics_case(name: str, logits: np.ndarray, goal: float | None = None) -> Case:
    value = Logits(logits, ResizeTransform(SIZE, SIZE, 0, 0, *[SIZE] * 4))

    def ours() -> Any:
        return class_statistics(Argmax()(value, NO_WISHES), len(logits))

    theirs = partial(torch_statistics, logits, SIZE)
    peer = Peer(
        "torch interpolate, softmax, max, bincount",
        version("torch"),
        theirs,
        partial(same_statistics, ours, theirs),
        goal,
    )
    return Case(name, ours, (peer,), worst="noise" in name)


def torch_masks(logits: np.ndarray) -> list[bytes]:
    masks = (torch.sigmoid(upsampled(logits, aligned=False)) > 0.5).numpy().view(np.uint8)
    return [coco.encode(np.asfortranarray(mask))["counts"] for mask in masks]


def same_strings(ours: Callable[[], Any], theirs: Callable[[], list[bytes]]) -> str:
    made, expected = ours().masks, theirs()
    same = sum(a == b for a, b in zip(made, expected, strict=True))
    assert same >= len(expected) - 1
    return f"{same}/{len(expected)} strings identical"


def mask_case(name: str, logits: np.ndarray) -> Case:
    ours = partial(MultiLabel(), Logits(logits, ResizeTransform(SIZE, SIZE, 0, 0, *[SIZE] * 4)), NO_WISHES)
    theirs = partial(torch_masks, logits)
    number = f"{version('torch')}, {version('pycocotools')}"
    peer = Peer("torch interpolate, sigmoid + pycocotools", number, theirs, partial(same_strings, ours, theirs))
    return Case(name, ours, (peer,), worst="noise" in name)


def cases() -> Iterator[Case]:
    yield label_case("21 x 128² logits to 1024² labels", smooth(21), torch=300, onnxruntime=100)
    yield label_case("the same, corners aligned", smooth(21), aligned=True, torch=300, onnxruntime=100)
    yield label_case("the same, twice as many areas a side", smooth(21, areas=8))
    yield label_case("150 x 128² logits to 1024² labels", smooth(150), torch=300, onnxruntime=100)
    yield label_case("300 x 128² logits to 1024² labels", smooth(300))
    yield label_case("21 x 128² logits to 1024² labels, noise", noise(21), torch=30)
    yield label_case("150 x 128² logits to 1024² labels, noise", noise(150), torch=30)
    yield statistics_case("labels, areas, mean probabilities, 21 x 128² to 1024²", smooth(21), goal=10)
    yield statistics_case("the same, 150 classes", smooth(150), goal=10)
    yield statistics_case("the same, 21 classes, noise", noise(21))
    yield statistics_case("the same, 21 x 1024² logits", smooth(21, grid=SIZE))
    yield mask_case("multi-label, 21 x 128² to 1024² masks", smooth(21))
    yield mask_case("multi-label, 21 x 128² to 1024² masks, a class on 4 % of the image", smooth(21) - np.float32(1.5))
    yield mask_case("multi-label, 21 x 128² to 1024² masks, noise", noise(21))
