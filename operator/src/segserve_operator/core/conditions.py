"""What a status says of a model, from the same world that the decisions were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_builder.agent.protocol import ModelState
from segserve_operator.core.observed import ModelStatus, Statement
from segserve_operator.core.roles import settling
from segserve_operator.core.turns import GROUPS_AT_ONCE

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
    serving = _serving(model, roles, world)
    problem = _problem(roles, newest, world)
    return (
        _artifact(roles, newest),
        _loaded(roles, newest, problem),
        _golden(roles, newest),
        serving,
        _ready(model, serving),
        _progressing(model, roles, newest, world),
        _degraded(model, roles, newest, serving, problem),
    )


def _newest(roles: Roles, world: Observed) -> ModelReport | None:
    """Return what is known of the newest revision: the candidate's, else the stable's."""
    newest = roles.candidate or roles.stable
    if newest is None or newest.group is None or newest.group not in world.groups:
        return None
    return world.groups[newest.group].report(newest.revision)


def _problem(roles: Roles, report: ModelReport | None, world: Observed) -> tuple[str, str] | None:
    """Return why the servers of the newest revision's group do not come up, where it waits for them."""
    newest = roles.candidate or roles.stable
    if newest is None or newest.group is None or newest.group not in world.groups:
        return None
    problem = world.groups[newest.group].problem
    if problem is None or world.complete(newest.group, newest.revision):
        return None
    return problem.reason, problem.message


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
        return Statement("ArtifactVerified", "True", "DigestMatches", "the artifact is the one that its sha256 names")
    return Statement("ArtifactVerified", "Unknown", "Waiting", "no server has fetched the artifact yet")


def _loaded(roles: Roles, report: ModelReport | None, problem: tuple[str, str] | None) -> Statement:
    if report is not None and report.loaded:
        return Statement("RevisionLoaded", "True", "Loaded", "Triton holds the newest revision")
    failed = _failed(roles, report) or problem
    if failed is not None and failed[0] not in ARTIFACT_REASONS | GOLDEN_REASONS:
        return Statement("RevisionLoaded", "False", *failed)
    return Statement("RevisionLoaded", "Unknown", "Waiting", "no server has loaded the newest revision yet")


def _golden(roles: Roles, report: ModelReport | None) -> Statement:
    failed = _failed(roles, report)
    if failed is not None and failed[0] in GOLDEN_REASONS:
        return Statement("GoldenPassed", "False", *failed)
    if report is None or report.proof is None:
        return Statement("GoldenPassed", "Unknown", "Waiting", "no server has been asked for its golden answers yet")
    if report.proof == "golden":
        return Statement("GoldenPassed", "True", "AnswersMatch", "every golden image was answered within its tolerance")
    text = "no golden set: a built-in image proved that the pipeline runs, and that its answer is finite and repeatable"
    return Statement("GoldenPassed", "True", "BuiltinOnly", text)


def _serving(model: ModelObserved, roles: Roles, world: Observed) -> Statement:
    stable = roles.stable
    if stable is None:
        return Statement("TrafficReady", "False", "NoStable", "no revision has answered its golden images yet")
    group = world.groups.get(stable.group)
    if group is None or not group.endpoints(stable.revision):
        report = group.report(stable.revision) if group is not None else None
        why = f": {report.message}" if report is not None and report.message else ""
        text = f"no server of group {stable.group} answers {stable.revision}{why}"
        return Statement("TrafficReady", "False", "NoServer", text)
    if not world.traffic.answering:
        return Statement("TrafficReady", "False", "NoGateway", "no gateway takes requests")
    share = world.traffic.share(model.name, stable.group)
    if share is not None and share.revision == stable.revision and share.weight and share.endpoints:
        text = f"{stable.revision} in group {stable.group} gets all requests"
        return Statement("TrafficReady", "True", "Serving", text)
    text = f"the gateway does not send requests to {stable.revision} yet"
    if _served(model) and model.roles.stable is not None:
        # What served before is let go only once nobody calls it: callers notice nothing of the change.
        return Statement("TrafficReady", "True", "Switching", text)
    return Statement("TrafficReady", "False", "Routing", text)


def _served(model: ModelObserved) -> bool:
    return any(said.type == "TrafficReady" and said.status == "True" for said in model.status.statements)


def _ready(model: ModelObserved, serving: Statement) -> Statement:
    if model.deleting:
        return Statement("Ready", "False", "Deleting", "the model is being deleted")
    return Statement("Ready", serving.status, serving.reason, serving.message)


def _progressing(model: ModelObserved, roles: Roles, report: ModelReport | None, world: Observed) -> Statement:
    candidate = roles.candidate
    if model.deleting:
        return Statement("Progressing", "True", "Deleting", "requests end first, then servers let the model go")
    if candidate is None or candidate.failure is not None:
        return _settling(roles, world)
    if candidate.group is None:
        text = f"{candidate.revision} waits for its turn: {GROUPS_AT_ONCE} candidates are proved at a time"
        return Statement("Progressing", "True", "Queued", text)
    if report is None:
        return Statement("Progressing", "True", "Starting", f"group {candidate.group} starts for {candidate.revision}")
    why = f": {report.message}" if report.message else ""
    group = world.groups.get(candidate.group or "")
    if report.state is ModelState.READY and group is not None:
        why = f": {len(group.proved(candidate.revision))} of {group.wanted} servers answer"
    return Statement("Progressing", "True", report.state.value, f"{candidate.revision} in group {candidate.group}{why}")


def _settling(roles: Roles, world: Observed) -> Statement:
    main = world.groups.get(world.main)
    if roles.stable is None or main is None or not settling(roles, world.main):
        return Statement("Progressing", "False", "Idle", "nothing is under way")
    why = f": {main.problem.message}" if main.problem is not None else ""
    return Statement("Progressing", "True", "Settling", f"{roles.stable.revision} moves into {world.main}{why}")


def _degraded(
    model: ModelObserved,
    roles: Roles,
    report: ModelReport | None,
    serving: Statement,
    problem: tuple[str, str] | None,
) -> Statement:
    if model.problem is not None:
        return Statement("Degraded", "True", model.problem.reason, model.problem.message)
    failed = _failed(roles, report) or problem
    if failed is not None:
        return Statement("Degraded", "True", *failed)
    if roles.stable is not None and serving.status == "False" and serving.reason in ("NoServer", "NoGateway"):
        return Statement("Degraded", "True", serving.reason, serving.message)
    return Statement("Degraded", "False", "AsWanted", "nothing is wrong")
