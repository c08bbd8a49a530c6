"""A revision keeps the name it was given, and an agent refuses one that its own code would name otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_builder.agent.runner import ActionResult, ActionRunner
from segserve_builder.agent.server import Repository, TritonServer
from segserve_builder.agent.state import AssignedRevision, Prepare

PIPELINE: dict[str, Any] = {
    "model": "coins",
    "artifactSha256": "1" * 64,
    "family": "semantic-logits",
    "input": {},
    "classes": [],
    "preprocess": [],
    "postprocess": [],
    "output": {},
    "runtime": {},
}


def assignment(uri: str = "file:///missing.onnx", **more: Any) -> AssignedModel:
    return AssignedModel.model_validate({"pipeline": PIPELINE, "artifact": {"uri": uri, "sha256": "1" * 64}, **more})


def prepared(spec: AssignedModel, folder: Path) -> ActionResult:
    nobody = cast(TritonServer, None)
    runner = ActionRunner(nobody, Repository(folder / "repository"), folder / "cache", folder / "log")
    return runner.carry_out(Prepare(spec.revision, spec.model), AssignedRevision.of(spec), None)


def test_a_record_without_a_name_gets_that_of_its_pipeline() -> None:
    spec = assignment()
    assert spec.revision == spec.pipeline.revision
    plain = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert AssignedModel.model_validate({k: v for k, v in plain.items() if k != "revision"}) == spec


def test_a_given_name_travels_and_is_never_computed_again() -> None:
    spec = assignment(revision="coins-0123456789")
    again = Assignment.model_validate_json(Assignment(models=(spec,)).model_dump_json(by_alias=True)).models[0]
    assert again == spec
    assert again.revision == "coins-0123456789"
    assert again != assignment()


def test_a_revision_that_another_version_named_is_refused_for_good(tmp_path: Path) -> None:
    failure = prepared(assignment(revision="coins-0123456789"), tmp_path).failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("OtherVersion", False)
    assert "coins-0123456789" in failure.message


def test_a_relative_uri_without_a_base_is_refused_for_good(tmp_path: Path) -> None:
    failure = prepared(assignment("networks/a.onnx"), tmp_path).failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("RelativeUri", False)
