"""What the package shows, and what importing it costs."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from importlib import metadata

import pytest

import segserve
from segserve import (
    BadRequestError,
    Client,
    DetectionResult,
    InstanceResult,
    KeypointResult,
    PanopticResult,
    SemanticResult,
)
from segserve.results.base import _OTHERS_WORDS


def test_importing_the_package_loads_the_standard_library_alone_and_none_of_its_own_modules() -> None:
    code = (
        "import sys; before = set(sys.modules); import segserve; loaded = set(sys.modules) - before; "
        "print(*sorted(name for name in loaded if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "segserve\n"
    )


def test_the_package_has_its_version() -> None:
    assert segserve.__version__ == metadata.version("segserve")


@pytest.mark.parametrize("client", ["Client", "AsyncClient"])
def test_a_client_loads_neither_grpc_nor_the_platform_nor_what_only_these_need(client: str) -> None:
    code = f"from segserve import {client}; {client}(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = set(done.stdout.split())

    packages = {name.partition(".")[0] for name in loaded}
    others = {"grpc", "tritonclient", "pydantic", "tenacity", "typer", "yaml", "segserve_operator", "segserve_platform"}
    assert packages & others == set()
    assert {name for name in loaded if name.startswith("segserve_builder.")} == {
        "segserve_builder.spec",
        "segserve_builder.spec.names",
    }


@pytest.mark.same
def test_every_public_name_is_there() -> None:
    assert [name for name in segserve.__all__ if getattr(segserve, name, None) is None] == []


@pytest.mark.same
def test_every_public_name_is_listed() -> None:
    assert sorted(set(segserve.__all__) - set(dir(segserve))) == []


def test_another_name_is_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="'Clint'"):
        _ = segserve.Clint


def test_errors_cross_processes_with_all_they_know() -> None:
    error = BadRequestError("no image", status=400, model="coins", revision="coins-aa")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is BadRequestError
    assert vars(again) == vars(error)


RESULT = SemanticResult("coins", "coins-aa", (1, 1), (), {}, None, None, {})


@pytest.mark.parametrize(("word", "ours"), [("plot", "overlay"), ("boxes", "annotations"), ("to_df", "to_pandas")])
def test_other_libraries_words_of_results_are_answered_with_ours(word: str, ours: str) -> None:
    with pytest.raises(AttributeError, match=f"'SemanticResult' object has no attribute '{word}'; use {ours}"):
        getattr(RESULT, word)
    assert not hasattr(RESULT, word)
    assert copy.deepcopy(pickle.loads(pickle.dumps(RESULT))).model == "coins"


def test_the_answers_name_what_some_result_has() -> None:
    kinds = (SemanticResult, InstanceResult, PanopticResult, DetectionResult, KeypointResult)
    for word, answer in _OTHERS_WORDS.items():
        named = re.findall(r"(\w+)\(|^(\w+)$", answer)
        known = {name for kind in kinds for name in (*dir(kind), *kind.__dataclass_fields__)}
        assert {a or b for a, b in named} <= known, word


def test_other_libraries_words_of_clients_are_answered_with_segment() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(AttributeError, match="use segment"):
        client.predict  # type: ignore[attr-defined]  # noqa: B018
