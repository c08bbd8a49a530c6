"""Guesses how to serve a network: its spec, and the remarks that explain it.

Its family is one of those that its outputs fit, ranked by further evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from segserve.results.values import ModelInfo
from segserve_builder.errors import BuilderError
from segserve_builder.export.networks import family_of
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import (
    IN_FP32,
    EvidenceWeight,
    Family,
    FamilyEvidence,
    NetworkIO,
    TensorSpec,
    described_all,
)
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.step_options import NetOptions
from segserve_builder.values import ValueType
from segserve_common.errors import BadRequestError
from segserve_common.image_file import ImageFileError, describe_file
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.classes import ClassNames, classes_of, names_for, names_of
from segserve_platform.cli.init.measuring import DEFAULT_MAX_PIXELS, Budget, PixelBound, bound_of, measure, megapixels
from segserve_platform.cli.init.network import (
    Choice,
    ImageInput,
    NetworkFile,
    Overrides,
    Progress,
    Remark,
    StageOptions,
    Trial,
    image_input,
    no_progress,
    read_network,
)
from segserve_platform.cli.init.preparation import BYTES, PLACE, USUAL, colour_of, normalise_of, resize_of
from segserve_platform.cli.init.running import NetworkRunner, border_class, known_runs, steadiness
from segserve_platform.cli.init.writing import listed
from segserve_platform.image_content import dark_notes

ANY_SHA256: Final = "0" * 64
BATCH: Final = 8
LABELLED_IMAGES: Final = 10
BORDERED_IMAGES: Final = 4
MOST_LABELS: Final = 1000
CLEAR_LEAD: Final = 1.1
"""How many times better than the second the best trial must be to count as clear."""
TELLING: Final = 0.25
"""Least score of the best trial to count; random weights reach 0.15. Below it, the most usual one is taken."""
ALONE: Final = 0.6
"""Least score that counts where the other ranges find nothing: images may show none of the classes, and networks also
find something in a wrong range."""
INPUT: Final = ("spec", "input")
DETECTORS: Final = (
    "Detectors are served with their heads, as Ultralytics (nms=False), YOLOv7 (export.py without --end2end) and YOLOX "
    "write them, or with boxes [N, 4], labels INT64 [N], scores [N] and masks [N, 1, 28, 28], as torchvision's without "
    "pasting; maps with an axis of classes. "
)
NOT_INSTALLED: Final = "onnxruntime is not installed (pip install 'segserve[local]')"


@dataclass(frozen=True)
class FamilyCandidate:
    """A family that the outputs fit; `classes` is the number that they imply, None if labels come as numbers."""

    family: Family
    classes: int | None
    evidence: tuple[FamilyEvidence, ...]

    @property
    def weight(self) -> int:
        """The sum of the evidence."""
        return sum(one.weight for one in self.evidence)

    @property
    def because(self) -> str:
        """The evidence as a list of clauses, the strongest first."""
        return "; ".join(one.text for one in sorted(self.evidence, key=lambda one: -one.weight))


def candidates(network: NetworkFile, image: ImageInput, names: ClassNames | None = None) -> list[FamilyCandidate]:
    """Return the families that fit the outputs and the file's own words, the likeliest first.

    Raises `CommandError` if no family does: with what the file says of itself, or else with its outputs.
    """
    allowed, words = _by_its_own_words(network)
    named = None if names is None else len(names.names)
    fitting, reasons = [], []
    for family in allowed:
        classes = family.implied_classes(network)
        why = misfit(family, network, image, classes or named or 1)
        unnamed = None if why is not None else _unnamed(family, network, names)
        if unnamed is not None or (why is not None and words):
            reasons.append(unnamed or why)
        elif why is None and (cut := _cut(family, network, image, classes or named or 1)) is not None:
            reasons.append(cut)
        elif why is None:
            fitting.append(FamilyCandidate(family, classes, tuple(_evidence(family, network, classes, named))))
    if fitting:
        return sorted(fitting, key=lambda candidate: -candidate.weight)
    outputs = described_all(network.signature.outputs)
    if any(tensor.dtype == "FP16" for tensor in network.signature.outputs):
        reasons.append(f"outputs must be FP32: {IN_FP32}")
    raise CommandError(
        f"no family fits the outputs of {network.path.name}: {outputs}. {words}"
        f"{''.join(f'{why}. ' for why in dict.fromkeys(reasons))}{DETECTORS}"
        f"--family NAME says why that family does not fit, or overrides the file's own words; "
        f"families: {', '.join(FAMILIES)}"
    )


def _by_its_own_words(network: NetworkFile) -> tuple[Collection[Family], str]:
    """Return the families that the file's metadata and config.json allow, with what these say, empty if nothing.

    Raises `CommandError` if that is of no family.
    """
    task = network.metadata.get("task")
    architectures = [str(name) for name in network.config.get("architectures") or ()]
    if task is not None:
        said, supported = f"its metadata says task {task!r}", {f.name: f.tasks for f in FAMILIES.values()}
        spoken = [task]
    elif architectures:
        said = f"the config.json beside it says {', '.join(architectures)}"
        spoken, supported = architectures, {f.name: f.architectures for f in FAMILIES.values()}
    else:
        return FAMILIES.values(), ""
    allowed = [FAMILIES[name] for name, words in supported.items() if not set(words).isdisjoint(spoken)]
    if not allowed:
        listed = ", ".join(dict.fromkeys(word for words in supported.values() for word in words))
        raise CommandError(
            f"{network.path.name}: {said}, which is not supported; --family NAME overrides this. Supported are {listed}"
        )
    return allowed, f"{said[0].upper()}{said[1:]}. "


def _unnamed(family: Family, network: NetworkFile, names: ClassNames | None) -> str | None:
    """Return that the file's names do not fit the number of classes that a family reads, None if they do."""
    number = family.class_channels(network) if family.numbers_classes else None
    if names is None or names.is_given or names_for(number, names) is not None:
        return None
    return f"{family.name} reads {number} classes; {names.origin} has {len(names.names)} names"


def misfit(family: Family, network: NetworkFile, image: ImageInput, classes: int) -> str | None:
    """Return why a network is not of a family, None if it may be."""
    try:
        family.network_io(network.signature, _pipeline_for(family, image, classes))
    except BuilderError as error:
        return str(error)
    return family.implausibility(network)


def _cut(family: Family, network: NetworkFile, image: ImageInput, classes: int) -> str | None:
    """Return which masks or keypoints a family leaves out, with why no other family reads them; None without any."""
    io = family.network_io(network.signature, _pipeline_for(family, image, classes))
    rank = max(len(tensor.shape) for tensor in io.outputs)
    left = [each for each in _unread_by(io, network) if len(each.shape) + (not io.batched) > rank]
    if not left:
        return None
    wider = [each for each in FAMILIES.values() if set(each.output_names) > set(family.output_names)]
    why = dict.fromkeys(f"{each.name}: {misfit(each, network, image, classes)}" for each in wider)
    cut = f"{family.name} would leave out {described_all(left)}; --family {family.name} serves it without"
    return ". ".join((cut, *why))


def _pipeline_for(family: Family, image: ImageInput, classes: int) -> Pipeline:
    """Return a minimal pipeline with a family and a number of classes."""
    return Pipeline.model_validate(
        {
            "model": "any",
            "artifactSha256": ANY_SHA256,
            "family": family.name,
            "input": {"colour": image.colour},
            "classes": [{"id": number, "name": str(number)} for number in range(classes)],
            "preprocess": [],
            "postprocess": [],
            "output": {},
            "runtime": {},
        }
    )


def _evidence(family: Family, network: NetworkFile, classes: int | None, named: int | None) -> Iterator[FamilyEvidence]:
    yield FamilyEvidence(EvidenceWeight.SHAPES, "its outputs have the family's shapes")
    for architecture in network.config.get("architectures") or ():
        if family_of(str(architecture)) is family:
            text = f"the config.json beside it says {architecture}"
            yield FamilyEvidence(EvidenceWeight.METADATA, text)
    names = {tensor.name for tensor in network.signature.outputs}
    usual = ", ".join(family.output_names)
    if names == set(family.output_names):
        yield FamilyEvidence(EvidenceWeight.NAMES, f"its outputs are named {usual}")
    elif names.issuperset(family.output_names):
        yield FamilyEvidence(EvidenceWeight.OBSERVATION, f"its outputs include {usual}")
    yield from family.evidence(network)
    if named is not None and classes == named:
        text = f"its outputs have as many classes as there are names ({named})"
        yield FamilyEvidence(EvidenceWeight.OBSERVATION, text)


@dataclass(frozen=True)
class Guess:
    """How to serve a network, and why: its spec, without golden set and with the file's name as its address.

    `images` are the user's images that are small enough for it.
    """

    network: NetworkFile
    image: ImageInput
    ranked: tuple[FamilyCandidate, ...]
    spec: Mapping[str, Any]
    bound: PixelBound | None
    images: tuple[Path, ...]
    remarks: tuple[Remark, ...]
    runner: NetworkRunner | None
    trials: tuple[Trial, ...] = ()

    @property
    def candidate(self) -> FamilyCandidate:
        """The likeliest family, or the one that the user names."""
        return self.ranked[0]


def guess(
    path: Path, sha256: str, images: Sequence[Path], overrides: Overrides, progress: Progress = no_progress
) -> Guess:
    """Return how to serve the network at `path`, judged by images like those it will get.

    Raises `CommandError` for a file that no family fits, or that does not fit the family of `overrides`, and the
    errors of `read_signature`.

    A network of one size, a run of which takes more than `SLOW_S`, is run at most 11 times (on noise, for the range of
    its outputs, for memory, in four ranges of pixels and mirrored), and once for each further image.
    """
    progress("reading the network")
    network = read_network(path)
    image = image_input(network.image, network.config.get("num_channels", network.config.get("in_channels")))
    sizes = dict(zip(images, _sizes(images), strict=True))
    try:
        runner = NetworkRunner(network, image)
    except ModuleNotFoundError:
        runner = None
    network = network if runner is None else runner.observe(network, images[0])
    names = names_of(network, overrides.classes)
    ranked = _ranked(network, image, names, overrides)
    family = ranked[0].family
    number = _class_channels(ranked[0], network, names, can_run=runner is not None)
    # Before what takes long: this complains of a wrong number of names.
    classes = None if number is None else classes_of(family, number, names, ())
    progress("trying sizes")
    multiple = None if runner is None or image.size is not None else runner.multiple()
    resize = resize_of(family, network, image, list(sizes.values()), multiple)
    batch, batch_remark = _batch(family, image, runner)
    spec: dict[str, Any] = {
        "artifact": {"uri": path.name, "sha256": sha256},
        "family": family.name,
        "input": colour_of(family, network, image) | ({"dtype": "UINT16"} if image.dtype == "UINT16" else {}),
        "classes": [{"id": each, "name": str(each)} for each in range(number or MOST_LABELS)],
        "preprocess": [],
        "postprocess": listed(family.default_postprocess),
        "runtime": {"maxBatchSize": batch},
    }
    normalise = normalise_of(family, network, image)
    # Any normalisation takes the same memory: the right one may be unknown yet.
    any_normalise: tuple[StageOptions, ...] = ({"normalise": {}},)
    spec["preprocess"] = [
        {"decode": {}},
        *(resize.steps or ()),
        *(any_normalise if normalise.steps is None else normalise.steps),
    ]
    bound, bound_remark = _bound(spec, network, image, images[0], progress, can_run=runner is not None)
    max_pixels = DEFAULT_MAX_PIXELS if bound is None else bound.pixels
    if max_pixels < DEFAULT_MAX_PIXELS:
        spec["input"] = {**spec["input"], "maxPixels": max_pixels}
    fitting = tuple(path for path, (height, width) in sizes.items() if height * width <= max_pixels)
    trials: tuple[Trial, ...] = ()
    if normalise.steps is None:
        shown = fitting[:1] if runner is not None and runner.is_slow else fitting

        def score(options: StageOptions) -> float:
            steps = [*spec["preprocess"][:-1], {"normalise": options}]
            return steadiness(model_of({**spec, "preprocess": steps}, network), shown)

        normalise, trials = _tried_normalise(normalise, image, score if runner and fitting else None, progress)
        spec["preprocess"] = [*spec["preprocess"][:-1], *(normalise.steps or ())]
    if classes is None:
        labels = () if runner is None else _labels(model_of(spec, network), fitting, progress)
        classes = classes_of(family, number, names, labels)
    if runner is not None and fitting and classes.numbered and any("argmax" in each for each in spec["postprocess"]):
        progress("looking for the background")
        with suppress(BuilderError, BadRequestError, MemoryError):  # the golden set says why it fails
            background = border_class(model_of(spec, network), fitting[: 1 if runner.is_slow else BORDERED_IMAGES])
            classes = classes if background is None else classes.with_background(background)
    spec["classes"] = list(classes.entries)
    remarks = (
        *_family_remarks(ranked, overrides),
        *_unread(spec, network),
        bound_remark,
        *_left_out(images, fitting, max_pixels),
        *_dark(images),
        *classes.remarks,
        resize.remark,
        normalise.remark,
        *(Remark(("spec", "postprocess"), note.text, sure=note.sure) for note in family.stage_notes),
        batch_remark,
    )
    return Guess(network, image, ranked, spec, bound, fitting, remarks, runner, trials)


def model_of(spec: Mapping[str, Any], network: NetworkFile) -> InProcessModel:
    """Return the pipeline of a spec, ready to answer in this process."""
    pipeline = _pipeline_of(spec)
    options = NetOptions.of(pipeline, network_io(pipeline, network.signature))
    return InProcessModel(pipeline, network.path, network=known_runs(network.path, options))


def _pipeline_of(spec: Mapping[str, Any]) -> Pipeline:
    parts = {key: spec[key] for key in ("family", "input", "classes", "preprocess", "postprocess", "runtime")}
    return Pipeline.model_validate(
        {"model": "any", "artifactSha256": spec["artifact"]["sha256"], "output": {}, **parts}
    )


def _ranked(
    network: NetworkFile, image: ImageInput, names: ClassNames | None, overrides: Overrides
) -> tuple[FamilyCandidate, ...]:
    if overrides.family is None:
        return tuple(candidates(network, image, names))
    if overrides.family not in FAMILIES:
        raise CommandError(f"--family is {overrides.family!r}; allowed are {', '.join(FAMILIES)}")
    family = FAMILIES[overrides.family]
    classes = family.implied_classes(network)
    why = misfit(family, network, image, classes or (len(names.names) if names else 1))
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
            f"{network.path.name} does not contain its number of classes or their names: set them with --classes"
            + ("" if can_run else ", or pip install 'segserve[local]' to run the network")
        )
    # A single named class has two labels: the background's and its own.
    return max(len(names.names), 2) if candidate.family.gives == ValueType.LABELS else len(names.names)


def _bound(
    spec: Mapping[str, Any], network: NetworkFile, image: ImageInput, photo: Path, progress: Progress, *, can_run: bool
) -> tuple[PixelBound | None, Remark]:
    """Return the measured bound of images, None where that is not possible, and a remark on it."""
    why = NOT_INSTALLED
    if can_run:
        measurement = measure(_pipeline_of(spec), network.path, photo, progress, is_resized=image.size is not None)
        bound = bound_of(measurement, Budget.of_this_machine())
        if bound is not None:
            is_default = bound.pixels == DEFAULT_MAX_PIXELS
            place = INPUT if is_default else (*INPUT, "maxPixels")
            text = f"maxPixels is left at its default. {bound.reason}" if is_default else bound.reason
            return bound, Remark(place, text, sure=bound.fits)
        why = str(measurement.error)
    text = (
        f"memory was not measured: {why}. The default of maxPixels, {megapixels(DEFAULT_MAX_PIXELS)}, may be too much "
        "for this network"
    )
    return None, Remark(INPUT, text, sure=False)


def _unread(spec: Mapping[str, Any], network: NetworkFile) -> list[Remark]:
    """Return a remark on the outputs that are not read, if there are any."""
    io = network_io(_pipeline_of(spec), network.signature)
    others = _unread_by(io, network)
    if not others:
        return []
    made_of = ", ".join(sorted(repr(tensor.name) for tensor in io.outputs))
    text = f"what these outputs hold is left out: {described_all(others)}. The answer is made of {made_of} alone"
    return [Remark(("spec", "family"), text, sure=False)]


def _unread_by(io: NetworkIO, network: NetworkFile) -> list[TensorSpec]:
    read = {tensor.name for tensor in io.outputs}
    return [tensor for tensor in network.signature.outputs if tensor.name not in read]


def _dark(images: Sequence[Path]) -> list[Remark]:
    """Return a remark on the first image that is nearly black as its values are used."""
    unknown = ModelInfo("", frozenset())
    notes = (note for path in images[:LABELLED_IMAGES] for note in dark_notes(path, path.name, lambda: unknown))
    return [Remark(("spec", "preprocess"), note, sure=False) for note in islice(notes, 1)]


def _left_out(images: Sequence[Path], fitting: Sequence[Path], max_pixels: int) -> list[Remark]:
    if len(fitting) == len(images):
        return []
    text = (
        f"{len(images) - len(fitting)} of your {len(images)} images have more than {megapixels(max_pixels)} and are "
        "refused; `segserve batch` segments them in tiles"
    )
    return [Remark(INPUT, text, sure=False)]


def _labels(model: InProcessModel, images: Sequence[Path], progress: Progress) -> list[int]:
    """Return the labels that a network which numbers its own classes gives for the first images."""
    labels = set[int]()
    for number, image in enumerate(images[:LABELLED_IMAGES], 1):
        progress(f"class numbers in image {number} of {len(images[:LABELLED_IMAGES])}")
        _, given, *_ = model.raw(model.network_input(image.read_bytes())).values()
        labels.update(int(label) for label in given.ravel() if label >= 0)
    return sorted(labels)


def _batch(family: Family, image: ImageInput, runner: NetworkRunner | None) -> tuple[int, Remark]:
    place = ("spec", "runtime")
    if image.batch == 1 or not family.batched:
        return BATCH, Remark(place, "the file takes one image at a time; a server runs it on each of its cores")
    if runner is None:
        return BATCH, Remark(place, "the batch size is free")
    if runner.is_slow:
        return 1, Remark(place, "the batch size is free; no batch was tried, as an image takes long")
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


def _tried_normalise(
    choice: Choice, image: ImageInput, score: Callable[[StageOptions], float] | None, progress: Progress
) -> tuple[Choice, tuple[Trial, ...]]:
    """Return the normalisation with the best score, or the most usual one if scores cannot decide."""
    # Last comes what is far from the others: no network that is sure of them takes it.
    names = sorted(USUAL, key=lambda name: (name == BYTES, name != _most_usual(image)))
    if score is None:
        text = f"{choice.remark.text}, and it was not tried on images: {names[0]} is a guess"
        return Choice(({"normalise": _for_channels(names[0], image)},), Remark(PLACE, text, sure=False)), ()
    trials: list[Trial] = []
    for number, name in enumerate(names, 1):
        if name != BYTES or all(trial.score < ALONE for trial in trials):
            progress(f"normalisation {number} of {len(names)}")
            trials.append(Trial(name, score(_for_channels(name, image))))
    best, second, *_ = ranked = sorted(trials, key=lambda trial: -trial.score)
    if best.score < TELLING or (best.score < ALONE and not second.score):
        best, verdict = (
            trials[0],
            "the images do not show it, perhaps as they show none of the classes: the most common one is used. Check "
            "it with the training code",
        )
    elif best.score > CLEAR_LEAD * second.score:
        verdict = "the best one is taken"
    else:
        verdict = "the best one is taken, but the difference is small. Ask who trained it"
    text = "\n".join(
        [
            f"{choice.remark.text}. The usual ranges were tried on your images; {verdict}.",
            *(f"  {trial.score:.2f}  pixels of {trial.name}" for trial in ranked),
            "  A score of 0 is chance; 1 is sure of itself, and of the same in the mirror image.",
        ]
    )
    return Choice(({"normalise": _for_channels(best.name, image)},), Remark(PLACE, text, sure=False)), tuple(ranked)


def _most_usual(image: ImageInput) -> str:
    """Return the name of the normalisation that most networks use: published backbones expect ImageNet's, on RGB."""
    return "0 to 1 with ImageNet's mean and deviation" if image.channels == 3 else "0 to 1"


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
            sizes.append(describe_file(path).size)
        except (OSError, ImageFileError) as error:
            raise CommandError(f"{path} is not an image: {error}") from error
    return sizes
