"""Which family a network may be of: those that its outputs fit, ranked by what else speaks for them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve.cli.failures import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve.cli.init.image_input import ImageInput
    from segserve.cli.init.network import NetworkFile
    from segserve_builder.families.base import TensorSpec
    from segserve_builder.steps.pipeline import Pipeline

Reason = tuple[int, str]
"""How much something counts, and what it is."""

SAID, NAMED, SEEN, USUAL = 100, 20, 10, 1
ANY_SHA: Final = "0" * 64
MANY: Final = 300
"""A head that has chosen among its boxes gives so many at most; others give thousands."""


@dataclass(frozen=True)
class Candidate:
    """A family that the outputs fit; `classes` is how many they imply, None where labels come as numbers."""

    family: str
    classes: int | None
    reasons: tuple[Reason, ...]

    @property
    def weight(self) -> int:
        """The sum of its reasons."""
        return sum(count for count, _ in self.reasons)

    @property
    def because(self) -> str:
        """All reasons in words, the strongest first."""
        return "; ".join(text for _, text in sorted(self.reasons, key=lambda one: -one[0]))


def candidates(network: NetworkFile, image: ImageInput, named: int | None = None) -> list[Candidate]:
    """Return the families that fit, the likeliest first; `named` is how many classes are known by name.

    Raises `CommandError` with the network's outputs where none fits.
    """
    from segserve_builder.families import FAMILIES
    from segserve_builder.families.signature import described_all

    found = []
    for family in FAMILIES:
        classes = implied_classes(family, network)
        if misfit(family, network, image, classes or named or 1) is None:
            found.append(Candidate(family, classes, tuple(_reasons(family, network, classes, named))))
    if not found:
        outputs = described_all(network.signature.outputs)
        raise CommandError(
            f"no family has the outputs of {network.path.name}: {outputs}. --family NAME says why that one does not "
            f"fit; there are {', '.join(FAMILIES)}"
        )
    return sorted(found, key=lambda candidate: -candidate.weight)


def misfit(family: str, network: NetworkFile, image: ImageInput, classes: int) -> str | None:
    """Return why a network is not of a family, None where it may be."""
    from segserve_builder.errors import BuilderError
    from segserve_builder.families import FAMILIES

    try:
        FAMILIES[family].network_io(network.signature, pipeline_of(family, image, classes))
    except BuilderError as error:
        return str(error)
    return _strange(family, network)


def pipeline_of(family: str, image: ImageInput, classes: int) -> Pipeline:
    """Return the least pipeline that has a family and a number of classes."""
    from segserve_builder.steps.pipeline import Pipeline

    batch = 1 if image.batch == 1 or family in unbatched() else 8
    return Pipeline.model_validate(
        {
            "model": "any",
            "artifactSha256": ANY_SHA,
            "family": family,
            "input": {"colour": image.colour},
            "classes": [{"id": number, "name": str(number)} for number in range(classes)],
            "preprocess": [],
            "postprocess": [],
            "output": {},
            "runtime": {"maxBatchSize": batch},
        }
    )


def unbatched() -> frozenset[str]:
    """Return the families whose networks usually take one image at a time."""
    from segserve_builder.export.graph import UNBATCHED

    return UNBATCHED


def implied_classes(family: str, network: NetworkFile) -> int | None:
    """Return how many classes the outputs of a network have if it is of a family; None where they do not say."""
    from segserve_builder.families import FAMILIES
    from segserve_builder.families.queries import CLASSES, QueryFamily
    from segserve_builder.families.yolo import YoloFamily

    found, outputs = FAMILIES[family], network.signature.outputs
    number: int | None = None
    if family == "semantic-logits" and len(outputs) == 1 and len(outputs[0].shape) == 4:
        number = network.shape(outputs[0])[1]
        return 2 if number == 1 else number
    if isinstance(found, YoloFamily):
        number = _yolo_classes(found, network)
    elif isinstance(found, QueryFamily):
        logits = [t for t in outputs if t.name == found.outputs[0].name] or [t for t in outputs if len(t.shape) == 3]
        last = network.shape(logits[0])[-1] if logits and found.outputs[0].meaning == CLASSES else None
        number = None if last is None else last - 1
    return number if number is None or number >= 1 else None


def _yolo_classes(family: Any, network: NetworkFile) -> int | None:
    layout = family.layout
    heads = [tensor for tensor in network.signature.outputs if len(tensor.shape) == 3]
    prototypes = [tensor for tensor in network.signature.outputs if len(tensor.shape) == 4]
    if not layout.scored or len(heads) != 1 or len(prototypes) != int(layout.masks):
        return None
    numbers = network.shape(heads[0])[layout.axis]
    coefficients = network.shape(prototypes[0])[1] if prototypes else 0
    if numbers is None or coefficients is None:
        return None
    return int(numbers - layout.before - coefficients)


def _strange(family: str, network: NetworkFile) -> str | None:
    """Return what no network of a family has, though the shapes would allow it."""
    from segserve_builder.families import FAMILIES
    from segserve_builder.families.queries import QueryFamily
    from segserve_builder.families.yolo import YoloFamily

    found = FAMILIES[family]
    if isinstance(found, QueryFamily):
        return _uneven(family, network)
    if not isinstance(found, YoloFamily):
        return None
    head = next(tensor for tensor in network.signature.outputs if len(tensor.shape) == 3)
    shape = network.shape(head)
    along, across = shape[found.layout.axis], shape[3 - found.layout.axis]
    if found.layout.scored and along is not None and across is not None and along > across:
        return f"{family} has more candidates than numbers each; output {head.name!r} has {across} and {along}"
    if found.layout.scored and implied_classes(family, network) is None and along is not None:
        return f"{family} has at least {found.layout.before + 1} numbers a candidate, output {head.name!r} has {along}"
    prototypes = [network.shape(tensor)[1] for tensor in network.signature.outputs if len(tensor.shape) == 4]
    if not found.layout.scored and along is not None:
        wanted = found.layout.before + (prototypes[0] or 0 if prototypes else 0)
        if along != wanted:
            return f"{family} has {wanted} numbers a candidate, output {head.name!r} has {along}"
    return None


def _uneven(family: str, network: NetworkFile) -> str | None:
    """Return that the outputs are of different numbers of queries, where they are."""
    numbers = {network.shape(tensor)[1] for tensor in network.signature.outputs if len(tensor.shape) >= 3} - {None}
    if len(numbers) < 2:
        return None
    return f"{family} has as many queries in all outputs; these have {' and '.join(map(str, sorted(numbers, key=str)))}"


def _reasons(family: str, network: NetworkFile, classes: int | None, named: int | None) -> Iterator[Reason]:
    yield USUAL, "its outputs have the shapes of the family's"
    yield from _from_ultralytics(family, network)
    yield from _from_transformers(family, network)
    yield from _from_names(family, network)
    yield from _from_the_graph(family, network)
    if named is not None and classes == named:
        yield SEEN, f"its outputs have as many classes as there are names ({named})"


def _from_ultralytics(family: str, network: NetworkFile) -> Iterator[Reason]:
    task, told = network.metadata.get("task"), network.metadata
    wanted = {"segment": "-seg", "detect": "-detect"}.get(task or "")
    if wanted is None or not family.startswith("yolo") or not family.endswith(wanted):
        return
    chosen = told.get("end2end") == "True" or _literal(told.get("args", "")).get("nms") is True
    old = "v5" in told.get("description", "").lower()
    style = "yolov5" if old else "yolo-nms-free" if chosen else "yolo"
    if family == f"{style}{wanted}":
        yield SAID, f"its Ultralytics metadata says task {task!r}{', with NMS inside' if chosen else ''}"


def _from_transformers(family: str, network: NetworkFile) -> Iterator[Reason]:
    from segserve_builder.export.networks import family_of

    for name in network.config.get("architectures") or ():
        if family_of(str(name)) == family:
            yield SAID, f"the config.json beside it says {name}"


def _from_names(family: str, network: NetworkFile) -> Iterator[Reason]:
    from segserve_builder.export.graph import OUTPUTS

    usual, seen = OUTPUTS[family], [tensor.name for tensor in network.signature.outputs]
    if sorted(usual) == sorted(seen):
        yield NAMED, f"its outputs are called {', '.join(usual)}"
    elif set(usual) <= set(seen):
        yield SEEN, f"among its outputs are {', '.join(usual)}"


def _from_the_graph(family: str, network: NetworkFile) -> Iterator[Reason]:
    deformable = "GridSample" in network.operators
    if family == "mask2former" and deformable:
        yield SEEN, "its graph samples features (GridSample), as Mask2Former's deformable attention does"
    if family == "maskformer" and not deformable:
        yield SEEN, "its graph has no GridSample, which Mask2Former's deformable attention needs"
    if family == "mask-rcnn" and any(_square(tensor) for tensor in network.signature.outputs):
        yield SEEN, "an output has one small square mask a box"
    if family in ("yolo-nms-free-seg", "yolo-nms-free-detect"):
        head = next(tensor for tensor in network.signature.outputs if len(tensor.shape) == 3)
        if (network.shape(head)[1] or MANY + 1) <= MANY:
            yield SEEN, f"it gives no more than {network.shape(head)[1]} candidates, so it has chosen among them"
    if family in ("retinanet", "ssd") and _names_background(network) is (family == "ssd"):
        yield SEEN, "channel 0 of its logits is " + ("the background" if family == "ssd" else "a class as the others")


def _square(tensor: TensorSpec) -> bool:
    return len(tensor.shape) in (3, 4) and tensor.shape[-1] is not None and tensor.shape[-1] == tensor.shape[-2]


def _names_background(network: NetworkFile) -> bool | None:
    """Return whether SSD's default boxes rather than RetinaNet's anchors are meant; None where it cannot be told."""
    logits = next((tensor for tensor in network.signature.outputs if tensor.name == "cls_logits"), None)
    anchors = None if logits is None else network.shape(logits)[1]
    # SSD has 8,732 at 300 x 300, SSDlite 3,234 at 320 x 320; RetinaNet nine a cell, which are many more.
    return None if anchors is None else anchors < 10_000


def _literal(text: str) -> Mapping[str, Any]:
    """Read a dict as Python writes it, which is how Ultralytics keeps one; nothing where it is none."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
