"""What a status says of a model, from the same world that the decisions were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_builder.agent.protocol import ModelState
from segserve_operator.core.observed import ModelStatus, Statement

if TYPE_CHECKING:
    from segserve_builder.agent.protocol import ModelReport
    from segserve_operator.core.observed import ModelObserved, Observed, Roles

ARTIFACT_REASONS: Final = frozenset(
    {"ArtifactMissing", "ArtifactTooLarge", "DigestMismatch", "SignatureMismatch", "UnsafeArtifact", "UnknownName"}
)
GOLDEN_REASONS: Final = frozenset({"GoldenFailed", "NonFinite"})


def status_of(model: ModelObserved, roles: Roles, world: Observed) -> ModelStatus:
    """Return the status of a model whose roles were just decided."""
    return ModelStatus(
        observed_generation=model.generation,
        roles=roles,
        statements=_statements(model, roles, world),
        weight=100 if roles.stable is not None and roles.candidate is None else 0,
        url=f"{world.gateway_url}/v2/models/{model.name}" if roles.stable is not None else "",
    )


def _statements(model: ModelObserved, roles: Roles, world: Observed) -> tuple[Statement, ...]:
    newest = _newest(roles, world)
    serving = _serving(roles, world)
    return (
        _artifact(roles, newest),
        _loaded(roles, newest),
        _golden(roles, newest),
        serving,
        _ready(model, serving),
        _progressing(model, roles, newest),
        _degraded(model, roles, newest, serving),
    )


def _newest(roles: Roles, world: Observed) -> ModelReport | None:
    """Return what is known of the newest revision: the candidate's, else the stable's."""
    newest = roles.candidate or roles.stable
    if newest is None or newest.group is None or newest.group not in world.groups:
        return None
    return world.groups[newest.group].report(newest.revision)


def _failed(roles: Roles, report: ModelReport | None) -> tuple[str, str] | None:
    if roles.candidate is not None and roles.candidate.failure is not None:
        return roles.candidate.failure.reason, roles.candidate.failure.message
    if report is not None and report.state is ModelState.FAILED:
        return report.reason, report.message
    return None


def _artifact(roles: Roles, report: ModelReport | None) -> Statement:
    failed = _failed(roles, report)
    if failed is not None and failed[0] in ARTIFACT_REASONS:
        return Statement("ArtifactVerified", "False", *failed)
    if report is not None and report.artifact_verified:
        return Statement("ArtifactVerified", "True", "DigestMatches")
    return Statement("ArtifactVerified", "Unknown", "Waiting")


def _loaded(roles: Roles, report: ModelReport | None) -> Statement:
    if report is not None and report.loaded:
        return Statement("RevisionLoaded", "True", "Loaded")
    failed = _failed(roles, report)
    if failed is not None and failed[0] not in ARTIFACT_REASONS | GOLDEN_REASONS:
        return Statement("RevisionLoaded", "False", *failed)
    return Statement("RevisionLoaded", "Unknown", "Waiting")


def _golden(roles: Roles, report: ModelReport | None) -> Statement:
    failed = _failed(roles, report)
    if failed is not None and failed[0] in GOLDEN_REASONS:
        return Statement("GoldenPassed", "False", *failed)
    if report is None or report.proof is None:
        return Statement("GoldenPassed", "Unknown", "Waiting")
    if report.proof == "golden":
        return Statement("GoldenPassed", "True", "AnswersMatch")
    text = "no golden set: a built-in image proved that the pipeline runs, and that its answer is finite and repeatable"
    return Statement("GoldenPassed", "True", "BuiltinOnly", text)


def _serving(roles: Roles, world: Observed) -> Statement:
    stable = roles.stable
    if stable is None:
        return Statement("TrafficReady", "False", "NoStable", "no revision has answered its golden images yet")
    if not world.proved(stable.group, stable.revision):
        report = world.groups[stable.group].report(stable.revision) if stable.group in world.groups else None
        why = f": {report.message}" if report is not None and report.message else ""
        text = f"no server of group {stable.group} answers {stable.revision}{why}"
        return Statement("TrafficReady", "False", "NoServer", text)
    routes = world.traffic.plan.routes if world.traffic.plan is not None else ()
    shares = [share for route in routes for share in route.shares if share.revision == stable.revision]
    if not any(share.group == stable.group and share.endpoints for share in shares):
        text = f"the gateway does not send requests to {stable.revision} yet"
        return Statement("TrafficReady", "False", "Routing", text)
    return Statement("TrafficReady", "True", "Serving", f"{stable.revision} in group {stable.group} gets all requests")


def _ready(model: ModelObserved, serving: Statement) -> Statement:
    if model.deleting:
        return Statement("Ready", "False", "Deleting")
    return Statement("Ready", serving.status, serving.reason, serving.message)


def _progressing(model: ModelObserved, roles: Roles, report: ModelReport | None) -> Statement:
    candidate = roles.candidate
    if model.deleting:
        return Statement("Progressing", "True", "Deleting")
    if candidate is None or candidate.failure is not None:
        return Statement("Progressing", "False", "Idle")
    if report is None:
        return Statement("Progressing", "True", "Starting", f"group {candidate.group} starts for {candidate.revision}")
    why = f": {report.message}" if report.message else ""
    return Statement("Progressing", "True", report.state.value, f"{candidate.revision} in group {candidate.group}{why}")


def _degraded(model: ModelObserved, roles: Roles, report: ModelReport | None, serving: Statement) -> Statement:
    if model.problem is not None:
        return Statement("Degraded", "True", model.problem.reason, model.problem.message)
    failed = _failed(roles, report)
    if failed is not None:
        return Statement("Degraded", "True", *failed)
    if roles.stable is not None and serving.reason == "NoServer":
        return Statement("Degraded", "True", serving.reason, serving.message)
    return Statement("Degraded", "False", "AsWanted")
