"""Guesses how to serve a network: its spec, and the remarks that explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from PIL import Image, UnidentifiedImageError

from segserve.cli.errors import CommandError
from segserve.cli.init.classes import ClassNames, classes_of, names_of
from segserve.cli.init.families import BATCH, FamilyCandidate, candidates, misfit
from segserve.cli.init.network import ImageInput, NetworkFile, image_input, read_network
from segserve.cli.init.preparation import PLACE, USUAL, normalise_of, resize_of
from segserve.cli.init.running import NetworkRunner, steadiness
from segserve.cli.init.values import Choice, Overrides, Remark, StageOptions, Trial
from segserve.cli.init.writing import listed
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import EvidenceWeight, Family, FamilyEvidence
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.pipeline import Pipeline

LABELLED_IMAGES: Final = 10
MOST_LABELS: Final = 1000
CLEAR_LEAD: Final = 1.1
"""How many times better than the second the best trial must be to count as clear."""


@dataclass(frozen=True)
class Guess:
    """How to serve a network, and why: its spec, without golden set and with the file's name as its address."""

    network: NetworkFile
    image: ImageInput
    ranked: tuple[FamilyCandidate, ...]
    spec: Mapping[str, Any]
    remarks: tuple[Remark, ...]
    runner: NetworkRunner | None
    trials: tuple[Trial, ...] = ()

    @property
    def candidate(self) -> FamilyCandidate:
        """The likeliest family, or the one that the user names."""
        return self.ranked[0]


def guess(path: Path, sha256: str, images: Sequence[Path], overrides: Overrides) -> Guess:
    """Return how to serve the network at `path`, judged by images like those it will get.

    Raises `CommandError` for a file that no family fits, or that does not fit the family of `overrides`, and the
    errors of `read_signature`.
    """
    network = read_network(path)
    image = image_input(network.image)
    runner = _runner(network, image)
    network = network if runner is None else replace(network, shapes=runner.shapes())
    names = names_of(network, overrides.classes)
    ranked = _ranked(network, image, names, overrides)
    family = ranked[0].family
    number = _class_channels(ranked[0], network, names, can_run=runner is not None)
    multiple = None if runner is None or image.size is not None else runner.multiple()
    resize = resize_of(family, network, image, _sizes(images), multiple)
    batch, batch_remark = _batch(family, image, runner)
    spec = {
        "artifact": {"uri": path.name, "sha256": sha256},
        "family": family.name,
        "input": {"colour": image.colour} | ({"dtype": "UINT16"} if image.dtype == "UINT16" else {}),
        "classes": [{"id": each, "name": str(each)} for each in range(number or MOST_LABELS)],
        "preprocess": [],
        "postprocess": listed(family.default_postprocess),
        "runtime": {"maxBatchSize": batch},
    }
    normalise, trials = _normalise(network, image, family, runner, spec, resize, images)
    spec["preprocess"] = [{"decode": {}}, *(resize.steps or ()), *(normalise.steps or ())]
    labels = _labels(spec, network, images) if number is None and runner is not None else ()
    classes = classes_of(family, number, names, labels)
    spec["classes"] = list(classes.entries)
    remarks = (
        *_family_remarks(ranked, overrides),
        *classes.remarks,
        resize.remark,
        normalise.remark,
        *(Remark(("spec", "postprocess"), note.text, sure=note.sure) for note in family.stage_notes),
        batch_remark,
    )
    return Guess(network, image, ranked, spec, remarks, runner, trials)


def model_of(guessed: Guess) -> InProcessModel:
    """Return the guess, ready to answer in this process."""
    return InProcessModel(_pipeline_of(guessed.spec), guessed.network.path)


def _pipeline_of(spec: Mapping[str, Any]) -> Pipeline:
    parts = {key: spec[key] for key in ("family", "input", "classes", "preprocess", "postprocess", "runtime")}
    return Pipeline.model_validate(
        {"model": "any", "artifactSha256": spec["artifact"]["sha256"], "output": {}, **parts}
    )


def _runner(network: NetworkFile, image: ImageInput) -> NetworkRunner | None:
    try:
        return NetworkRunner(network, image)
    except ModuleNotFoundError:
        return None


def _ranked(
    network: NetworkFile, image: ImageInput, names: ClassNames | None, overrides: Overrides
) -> tuple[FamilyCandidate, ...]:
    number = None if names is None else len(names.names)
    if overrides.family is None:
        return tuple(candidates(network, image, number))
    if overrides.family not in FAMILIES:
        raise CommandError(f"--family is {overrides.family!r}; allowed are {', '.join(FAMILIES)}")
    family = FAMILIES[overrides.family]
    classes = family.implied_classes(network)
    why = misfit(family, network, image, classes or number or 1)
    if why is not None:
        raise CommandError(why)
    return (FamilyCandidate(family, classes, (FamilyEvidence(EvidenceWeight.SHAPES, "set by --family"),)),)


def _class_channels(
    candidate: FamilyCandidate, network: NetworkFile, names: ClassNames | None, *, can_run: bool
) -> int | None:
    """Return the number of class ids that the outputs can give, None if the network gives labels as numbers."""
    number = candidate.family.class_channels(network)
    if number is not None or not candidate.family.numbers_classes:
        return number
    if names is None:
        raise CommandError(
            f"{network.path.name} does not tell its number of classes, nor their names: set them with --classes"
            + ("" if can_run else ", or pip install onnxruntime to run the network")
        )
    return len(names.names)


def _labels(spec: Mapping[str, Any], network: NetworkFile, images: Sequence[Path]) -> list[int]:
    """Return the labels that a network which numbers its own classes gives for the first images."""
    model, labels = InProcessModel(_pipeline_of(spec), network.path), set[int]()
    for image in images[:LABELLED_IMAGES]:
        _, given, *_ = model.raw(model.network_input(image.read_bytes())).values()
        labels.update(int(label) for label in given.ravel() if label >= 0)
    return sorted(labels)


def _batch(family: Family, image: ImageInput, runner: NetworkRunner | None) -> tuple[int, Remark]:
    place = ("spec", "runtime")
    if image.batch == 1 or not family.batched:
        return 1, Remark(place, "the file takes one image at a time")
    if runner is None:
        return BATCH, Remark(place, "the batch size is free")
    if not runner.takes_pairs():
        return 1, Remark(place, "the file declares a free batch size, but a batch of two images fails")
    return BATCH, Remark(place, "the batch size is free: a batch of two images works")


def _family_remarks(ranked: Sequence[FamilyCandidate], overrides: Overrides) -> list[Remark]:
    place, best = ("spec", "family"), ranked[0]
    if overrides.family is not None:
        return [Remark(place, "set by --family")]
    remark = Remark(place, f"guessed: {best.because}")
    rivals = [one for one in ranked[1:] if one.weight * 2 > best.weight]
    if not rivals:
        return [remark]
    others = ", ".join(f"{one.family.name} ({one.because})" for one in rivals)
    return [remark, Remark(place, f"the outputs fit other families as well: {others}", sure=False)]


def _normalise(
    network: NetworkFile,
    image: ImageInput,
    family: Family,
    runner: NetworkRunner | None,
    spec: Mapping[str, Any],
    resize: Choice,
    images: Sequence[Path],
) -> tuple[Choice, tuple[Trial, ...]]:
    choice = normalise_of(family, network, image)
    if choice.steps is not None:
        return choice, ()
    if runner is None:
        text = f"{choice.remark.text}, and without onnxruntime nothing was tried: 0 to 1 is a guess"
        return Choice(({"normalise": {}},), Remark(PLACE, text, sure=False)), ()
    trials = sorted(
        (Trial(name, _tried(network, spec, resize, _for_channels(name, image), images)) for name in USUAL),
        key=lambda trial: -trial.score,
    )
    best, second = trials[:2]
    scores = ", ".join(f"{trial.name}: {trial.score:.2f}" for trial in trials)
    text = f"{choice.remark.text}. The usual ways were tried on your images (0 to 1, higher is better): {scores}"
    is_clear = best.score > CLEAR_LEAD * second.score
    text += "" if is_clear else ". The difference is small: ask who trained it"
    return Choice(({"normalise": _for_channels(best.name, image)},), Remark(PLACE, text, sure=False)), tuple(trials)


def _tried(
    network: NetworkFile, spec: Mapping[str, Any], resize: Choice, normalise: StageOptions, images: Sequence[Path]
) -> float:
    steps = [{"decode": {}}, *(resize.steps or ()), {"normalise": normalise}]
    return steadiness(InProcessModel(_pipeline_of({**spec, "preprocess": steps}), network.path), images)


def _for_channels(name: str, image: ImageInput) -> StageOptions:
    """Return the options of a usual normalisation; for a grey image the means of three channels' numbers."""
    if image.channels == 3:
        return USUAL[name]
    return {key: [sum(value) / len(value)] if isinstance(value, list) else value for key, value in USUAL[name].items()}


def _sizes(images: Sequence[Path]) -> list[tuple[int, int]]:
    """Return each image's height and width after EXIF orientation."""
    sizes = []
    for path in images:
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(0x0112, 1) >= 5
                sizes.append(image.size if turned else image.size[::-1])
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise CommandError(f"{path} is not an image: {error}") from error
    return sizes
