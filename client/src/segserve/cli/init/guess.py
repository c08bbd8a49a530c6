"""Puts together what was found out of one network: the spec to serve it with, and what is to be said of that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from segserve.cli.errors import CommandError
from segserve.cli.init.classes import Names, classes_of, names_of
from segserve.cli.init.families import Candidate, candidates, implied_classes, misfit, unbatched
from segserve.cli.init.image_input import ImageInput, image_input
from segserve.cli.init.network import NetworkFile, read_network
from segserve.cli.init.preparation import PLACE, USUAL, Said, normalise_of, resize_of
from segserve.cli.init.remarks import Remark
from segserve.cli.init.resource import listed
from segserve.cli.init.running import Runs
from segserve.cli.init.trial import Trial, steadiness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from segserve_builder.steps.in_process import InProcessModel
    from segserve_builder.steps.pipeline import Pipeline

    Stage = Mapping[str, Any]

BATCH: Final = 8
LABELLED: Final = 10
MOST_LABELS: Final = 1000
CLEARLY: Final = 1.1
"""How many times better the best trial is than the second, to be believed."""
ANCHORED: Final = frozenset({"retinanet", "ssd"})


@dataclass(frozen=True)
class Wish:
    """What the user says of the network; None is to be guessed."""

    family: str | None = None
    classes: str | None = None


@dataclass(frozen=True)
class Guess:
    """How to serve a network: its spec without golden set and the address of the file, and why it is so."""

    network: NetworkFile
    image: ImageInput
    ranked: tuple[Candidate, ...]
    spec: Mapping[str, Any]
    remarks: tuple[Remark, ...]
    runs: Runs | None
    trials: tuple[Trial, ...] = ()

    @property
    def family(self) -> Candidate:
        """The likeliest family, or the one that the user names."""
        return self.ranked[0]


def guess(path: Path, sha256: str, images: Sequence[Path], wish: Wish) -> Guess:
    """Return how to serve the network at `path`, judged by images of the kind that it will be given.

    Raises `CommandError` for a file that no family fits, or not the one that is wished for; what `read_signature` does.
    """
    network = read_network(path)
    image = image_input(network.image)
    runs = _runs(network, image)
    network = network if runs is None else replace(network, shapes=runs.shapes())
    names = names_of(network, wish.classes)
    ranked = _ranked(network, image, names, wish)
    chosen = ranked[0]
    number = _number(chosen, network, names, runs)
    resize = resize_of(chosen.family, network, image, _sizes(images), _multiple(runs, image))
    runtime = _runtime(chosen.family, image, runs)
    spec = {
        "artifact": {"uri": path.name, "sha256": sha256},
        "family": chosen.family,
        "input": {"colour": image.colour} | ({"dtype": "UINT16"} if image.dtype == "UINT16" else {}),
        "classes": [{"id": each, "name": str(each)} for each in range(number or MOST_LABELS)],
        "preprocess": [],
        "postprocess": _postprocess(chosen.family),
        "runtime": {"maxBatchSize": runtime[0]},
    }
    normalise, trials = _normalise(network, image, chosen.family, runs, spec, resize, images)
    spec["preprocess"] = [{"decode": {}}, *(resize.steps or ()), *(normalise.steps or ())]
    labels = _labels(spec, network, images) if number is None and runs is not None else ()
    classes = classes_of(chosen.family, number, names, labels)
    spec["classes"] = list(classes.entries)
    remarks = (
        *_of_family(ranked, wish),
        *classes.remarks,
        resize.remark,
        normalise.remark,
        *_of_postprocess(chosen.family),
        runtime[1],
    )
    return Guess(network, image, ranked, spec, remarks, runs, trials)


def pipeline_of(spec: Mapping[str, Any]) -> Pipeline:
    """Return the pipeline of a spec."""
    from segserve_builder.steps.pipeline import Pipeline

    parts = {key: spec[key] for key in ("family", "input", "classes", "preprocess", "postprocess", "runtime")}
    return Pipeline.model_validate(
        {"model": "any", "artifactSha256": spec["artifact"]["sha256"], "output": {}, **parts}
    )


def model_of(guessed: Guess) -> InProcessModel:
    """Return the guess, ready to answer in this process."""
    from segserve_builder.steps.in_process import InProcessModel

    return InProcessModel(pipeline_of(guessed.spec), guessed.network.path)


def _runs(network: NetworkFile, image: ImageInput) -> Runs | None:
    try:
        return Runs(network, image)
    except ModuleNotFoundError:
        return None


def _ranked(network: NetworkFile, image: ImageInput, names: Names | None, wish: Wish) -> tuple[Candidate, ...]:
    from segserve_builder.families import FAMILIES

    number = None if names is None else len(names.names)
    if wish.family is None:
        return tuple(candidates(network, image, number))
    if wish.family not in FAMILIES:
        raise CommandError(f"--family is {wish.family!r}; allowed are {', '.join(FAMILIES)}")
    classes = implied_classes(wish.family, network)
    why = misfit(wish.family, network, image, classes or number or 1)
    if why is not None:
        raise CommandError(why)
    return (Candidate(wish.family, classes, ((1, "you name it"),)),)


def _number(chosen: Candidate, network: NetworkFile, names: Names | None, runs: Runs | None) -> int | None:
    """Return the number of classes, None where the network gives labels as numbers."""
    from segserve_builder.families import FAMILIES

    if chosen.family in ANCHORED:
        logits = next(tensor for tensor in network.signature.outputs if tensor.name == "cls_logits")
        return network.shape(logits)[2]
    if chosen.classes is not None or not FAMILIES[chosen.family].numbers_classes:
        return chosen.classes
    if names is None:
        raise CommandError(
            f"the number of classes is not to be seen in {network.path.name}, nor does it name them: give their "
            "names with --classes" + ("" if runs is not None else ", or pip install onnxruntime, to try the network")
        )
    return len(names.names)


def _labels(spec: Mapping[str, Any], network: NetworkFile, images: Sequence[Path]) -> list[int]:
    """Return the labels that a network of its own numbers gives for some images."""
    from segserve_builder.steps.in_process import InProcessModel

    model, seen = InProcessModel(pipeline_of(spec), network.path), set[int]()
    for image in images[:LABELLED]:
        _, labels, *_ = model.raw(model.network_input(image.read_bytes())).values()
        seen.update(int(label) for label in labels.ravel() if label >= 0)
    return sorted(seen)


def _multiple(runs: Runs | None, image: ImageInput) -> int | None:
    return None if runs is None or image.size is not None else runs.multiple()


def _runtime(family: str, image: ImageInput, runs: Runs | None) -> tuple[int, Remark]:
    place = ("spec", "runtime")
    if image.batch == 1 or family in unbatched():
        return 1, Remark(place, "the file takes one image at a time")
    if runs is not None and not runs.takes_pairs():
        return 1, Remark(place, "the file says that its batch is free, but two images at once fail")
    return BATCH, Remark(place, "the batch is free" if runs is None else "the batch is free: two images at once work")


def _postprocess(family: str) -> list[dict[str, Any]]:
    from segserve_builder.families import FAMILIES

    return listed(FAMILIES[family].default_postprocess)


def _of_family(ranked: Sequence[Candidate], wish: Wish) -> list[Remark]:
    place, best = ("spec", "family"), ranked[0]
    if wish.family is not None:
        return [Remark(place, "as --family says")]
    said = Remark(place, f"guessed: {best.because}")
    rivals = [one for one in ranked[1:] if one.weight * 2 > best.weight]
    if not rivals:
        return [said]
    others = ", ".join(f"{one.family} ({one.because})" for one in rivals)
    return [said, Remark(place, f"the outputs fit others as well: {others}", sure=False)]


def _of_postprocess(family: str) -> list[Remark]:
    from segserve_builder.families import FAMILIES
    from segserve_builder.values import ValueType

    place, gives = ("spec", "postprocess"), FAMILIES[family].gives
    if gives is ValueType.LOGITS:
        return [Remark(place, "one class a pixel; masks that may overlap are multiLabel instead of argmax")]
    usual = Remark(
        place, "thresholds are the usual ones of the family: what you need depends on your images", sure=False
    )
    if gives is ValueType.MASK_HEADS:
        text = "how masks were drawn into their boxes in training is not in the file: pasteMasks has two conventions"
        return [usual, Remark(place, f"{text}, torchvision (as here) and detectron2", sure=False)]
    if gives is not ValueType.QUERIES or family == "detr":
        return [usual]
    text = (
        "the outputs suit panopticQueries, instanceQueries, and semanticQueries with argmax: which one the network was "
        "trained for is not in the file"
    )
    return [Remark(place, text, sure=False), usual]


def _normalise(
    network: NetworkFile,
    image: ImageInput,
    family: str,
    runs: Runs | None,
    spec: Mapping[str, Any],
    resize: Said,
    images: Sequence[Path],
) -> tuple[Said, tuple[Trial, ...]]:
    known = normalise_of(family, network, image)
    if known.steps is not None:
        return known, ()
    if runs is None:
        text = f"{known.remark.text}, and without onnxruntime nothing was tried: 0 to 1 is a guess"
        return Said(({"normalise": {}},), Remark(PLACE, text, sure=False)), ()
    trials = sorted(
        (Trial(name, _tried(network, spec, resize, _for_channels(name, image), images)) for name in USUAL),
        key=lambda trial: -trial.score,
    )
    best, second = trials[:2]
    told = ", ".join(f"{trial.name}: {trial.score:.2f}" for trial in trials)
    text = f"{known.remark.text}. The usual ways were tried on your images (0 to 1, higher is better): {told}"
    clear = best.score > CLEARLY * second.score
    text += "" if clear else ". The difference is small: ask who trained it"
    return Said(({"normalise": _for_channels(best.name, image)},), Remark(PLACE, text, sure=False)), tuple(trials)


def _tried(
    network: NetworkFile, spec: Mapping[str, Any], resize: Said, normalise: Stage, images: Sequence[Path]
) -> float:
    from segserve_builder.steps.in_process import InProcessModel

    steps = [{"decode": {}}, *(resize.steps or ()), {"normalise": normalise}]
    return steadiness(InProcessModel(pipeline_of({**spec, "preprocess": steps}), network.path), images)


def _for_channels(name: str, image: ImageInput) -> Stage:
    """Return the options of a usual way, of three channels' numbers their mean for a grey image."""
    if image.channels == 3:
        return USUAL[name]
    return {key: [sum(value) / len(value)] if isinstance(value, list) else value for key, value in USUAL[name].items()}


def _sizes(images: Sequence[Path]) -> list[tuple[int, int]]:
    from PIL import Image, UnidentifiedImageError

    sizes = []
    for path in images:
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(0x0112, 1) >= 5
                sizes.append(image.size if turned else image.size[::-1])
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise CommandError(f"{path} is no image: {error}") from error
    return sizes
