"""Guesses the family of a network: the families that its outputs fit, ranked by further evidence."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from segserve_builder.errors import BuilderError
from segserve_builder.export.networks import family_of
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import IN_FP32, EvidenceWeight, Family, FamilyEvidence, described_all
from segserve_builder.steps.pipeline import Pipeline
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.classes import ClassNames, names_for
from segserve_platform.cli.init.network import ImageInput, NetworkFile

ANY_SHA256: Final = "0" * 64


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
        elif why is None:
            fitting.append(FamilyCandidate(family, classes, tuple(_evidence(family, network, classes, named))))
    if fitting:
        return sorted(fitting, key=lambda candidate: -candidate.weight)
    outputs = described_all(network.signature.outputs)
    if any(tensor.dtype == "FP16" for tensor in network.signature.outputs):
        reasons.append(f"outputs must be FP32: {IN_FP32}")
    raise CommandError(
        f"no family fits the outputs of {network.path.name}: {outputs}. {words}"
        f"{''.join(f'{why}. ' for why in dict.fromkeys(reasons))}"
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
        family.network_io(network.signature, _pipeline_of(family, image, classes))
    except BuilderError as error:
        return str(error)
    return family.implausibility(network)


def _pipeline_of(family: Family, image: ImageInput, classes: int) -> Pipeline:
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
