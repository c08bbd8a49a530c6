"""The Dockerfiles: what can be held of them where no image can be built."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from segserve_builder.spec.names import MODEL_NAME_PATTERN
from segserve_operator.settings import OperatorSettings

REPOSITORY: Final = Path(__file__).parents[3]
IMAGES: Final = ("operator", "server")
SHELLS: Final = ("curl", "wget", "sudo", "apt-get", "chmod 777")


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction with its text; continued lines are one."""

    word: str
    text: str


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def steps(image: str) -> list[Step]:
    text = (REPOSITORY / f"images/{image}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Step(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def texts(image: str, word: str) -> list[str]:
    return [step.text for step in steps(image) if step.word == word]


def environment(image: str) -> dict[str, str]:
    """Return the environment of the last stage, with the defaults of arguments in it."""
    every = steps(image)
    last = max(index for index, step in enumerate(every) if step.word == "FROM")
    given = dict(step.text.split("=", 1) for step in every if step.word == "ARG")
    pairs = (pair for step in every[last:] if step.word == "ENV" for pair in step.text.split())
    named = dict(pair.split("=", 1) for pair in pairs)
    return {name: re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], value) for name, value in named.items()}


def test_only_instructions_that_are_judged_here_are_used(image: str) -> None:
    known = {"ARG", "FROM", "LABEL", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT"}
    assert {step.word for step in steps(image)} <= known


def test_bases_are_pinned_to_a_version(image: str) -> None:
    given: dict[str, str] = {}
    for text in texts(image, "ARG"):
        name, _, value = text.partition("=")
        given[name] = re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], value)
    for text in texts(image, "FROM"):
        reference = re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], text.split()[0])
        registry, _, tag = reference.rpartition(":")
        assert "." in registry.split("/")[0], f"{reference} names no registry"
        assert re.match(r"\d+\.\d+", tag), f"{reference} is of no version"


def test_nothing_runs_as_root(image: str) -> None:
    """By number: Kubernetes cannot tell who a name is."""
    assert texts(image, "USER") == ["1000:1000"]
    after = [step.word for step in steps(image)]
    assert "RUN" not in after[after.index("USER") :]


def test_packages_come_in_tested_versions_and_nothing_else_is_fetched(image: str) -> None:
    for text in texts(image, "RUN"):
        assert not [word for word in SHELLS if word in text], text
        if "install" in text:
            assert f"--require-hashes --requirement {image}.lock" in text or "--no-deps --no-build-isolation ." in text
            assert "--no-cache-dir" in text


def locked(image: str) -> dict[str, str]:
    """Return the versions in an image's lock by name."""
    text = (REPOSITORY / f"images/{image}.lock").read_text()
    entries = [entry for entry in text.replace(" \\\n    ", " ").splitlines() if not entry.startswith("#")]
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==\S+( --hash=sha256:[0-9a-f]{64})+", entry), entry
    return dict(entry.split(" ", 1)[0].split("==") for entry in entries)


@pytest.mark.same
def test_a_lock_has_the_versions_that_the_tests_ran_with(image: str) -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    differing = {name: version for name, version in locked(image).items() if tested.get(name, version) != version}
    assert differing == {}


@pytest.mark.same
def test_a_lock_has_all_that_the_package_asks_for(image: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = {"operator": ["operator"], "server": ["builder", "cluster", "sources"]}[image]
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    while wanted:
        for requirement in extras[wanted.pop()]:
            own = re.match(r"segserve\[(.*)\]", requirement)
            (wanted.extend if own else asked.extend)(own[1].split(",") if own else [requirement])
    versions = locked(image)
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_what_is_copied_is_there_and_is_let_through(image: str) -> None:
    rules = (REPOSITORY / f"images/{image}.Dockerfile.dockerignore").read_text().split()
    assert rules[0] == "*"
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for text in texts(image, "COPY"):
        if text.startswith("--from="):
            continue
        for source in text.split()[:-1]:
            assert list(REPOSITORY.glob(source)), f"{source} is not there"
            assert any(source == rule or fnmatch(source, f"{rule}/*") for rule in allowed), source


@pytest.mark.same
def test_all_that_the_package_is_built_from_is_copied(image: str) -> None:
    copied = {source for text in texts(image, "COPY") for source in text.split()[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "client/src", "model_repo_builder/src", "operator/src"} <= copied


def test_the_server_says_where_its_triton_is_and_that_it_may_listen() -> None:
    found = environment("server")
    assert {name: value for name, value in found.items() if name.startswith("SEGSERVE_")} == {
        "SEGSERVE_TRITONSERVER": "/opt/tritonserver/bin/tritonserver",
        "SEGSERVE_BACKENDS": "/opt/tritonserver/backends",
        "SEGSERVE_NETWORK_BACKEND": "onnxruntime",
        "SEGSERVE_TRITON_LISTENS": "pod",
    }


def test_kernels_are_compiled_for_more_processors_than_the_one_that_builds() -> None:
    found = environment("server")
    assert found["NUMBA_CPU_NAME"] == "x86-64-v3"
    assert found["NUMBA_CPU_FEATURES"] == ""
    words = [f"{step.word} {step.text}" for step in steps("server")]
    told = next(index for index, text in enumerate(words) if text.startswith("ENV NUMBA_CPU_NAME"))
    assert told < words.index("RUN python3 -m segserve_builder.kernels")


def test_the_server_is_of_the_release_that_configurations_are_written_for() -> None:
    assert f"TRITON={OperatorSettings().triton_version}" in texts("server", "ARG")


def test_the_example_is_where_relative_addresses_lead() -> None:
    folder = OperatorSettings().artifact_base.removeprefix("file://")
    targets = {text.split()[-1].rstrip("/") for text in texts("server", "COPY")}
    assert {folder, f"{folder}/golden"} <= targets
    assert re.fullmatch(MODEL_NAME_PATTERN, Path(folder).name)
