"""Rest: worlds in which nothing waits for the clock, and models that need no new decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.core.models.drift import says_drift
from segserve_operator.core.traffic import Route
from segserve_operator.core.world.observed import GroupObserved, ModelObserved, Observed
from segserve_operator.core.world.requests import next_request
from segserve_operator.core.world.slo import is_watched


@dataclass(frozen=True, slots=True)
class Settled:
    """A model that keeps its roles and its status, all that this follows from, and its route."""

    inputs: tuple[object, ...]
    route: Route | None


@dataclass(frozen=True, slots=True)
class Rest:
    """The settled models of a pass by name, with what is the same for all of them.

    A later pass need not decide on models whose inputs are still the same: most models, in most passes.
    """

    common: tuple[object, ...] = ()
    models: Mapping[str, Settled] = field(default_factory=dict)

    def still(self, world: Observed, drifts: Mapping[str, DriftWatch]) -> dict[str, Settled]:
        """Return the models that are settled in `world` as they were, and whose statuses say what `drifts` say."""
        if self.common != _common(world) or not self.models:
            return {}
        known = ((model, self.models.get(model.name)) for model in world.models)
        return {
            model.name: settled
            for model, settled in known
            if settled is not None
            and settled.inputs == _inputs(model, world)
            and says_drift(model, drifts.get(model.name), world)
        }

    @classmethod
    def of(cls, world: Observed, kept: Iterable[str], routes: Mapping[str, Route]) -> Rest:
        """Return the settled ones of the models that keep their roles and status."""
        common = _common(world)
        if not common:
            return cls()
        names = frozenset(kept)
        models = (model for model in world.models if model.name in names and _keeps_still(model, world))
        settled = {model.name: Settled(_inputs(model, world), routes.get(model.name)) for model in models}
        return cls(common, settled)


def is_at_rest(world: Observed) -> bool:
    """Return whether the world has no deadlines, delays, windows or intervals, for which a pass looks at the clock."""
    pool = world.pool
    kept = pool.status.template if pool is not None and pool.status is not None else None
    if pool is None or pool.progress is not None:
        return False
    if world.failures or world.check_results:
        return False
    if kept is not None and (kept.next or kept.digest != pool.template):
        return False
    traffic = world.traffic
    if traffic.problem is not None or traffic.pending or traffic.active or not (traffic.answering and traffic.intact):
        return False
    return all(map(_is_whole, world.groups.values())) and all(map(_is_settled, world.models))


def _is_whole(group: GroupObserved) -> bool:
    servers = len(group.servers) == group.wanted and all(each.ready and each.is_read for each in group.servers)
    return servers and not group.leaving and group.problem is None and group.intact and group.written


def _is_settled(model: ModelObserved) -> bool:
    rolls = model.status.rollout is not None and not model.status.rollout.ended
    roles = model.roles
    if model.deleting or model.problem is not None or rolls or is_watched(model):
        return False
    return roles.stable is not None and roles.candidate is None and roles.previous is None


def _keeps_still(model: ModelObserved, world: Observed) -> bool:
    """Return whether a model has one role, in the main group, for its spec's revision, and no request is pending."""
    stable, wanted = model.roles.stable, model.wanted
    if not _is_settled(model) or stable is None or wanted is None or model.access == ():
        return False
    capture = wanted.capture
    if capture is not None and capture.redact is not None and capture.redact.model is not None:
        return False  # what is redacted follows from another model
    serves = stable.group == world.main and stable.revision == wanted.assigned.revision
    return serves and next_request(model.annotations, model.status.handled) is None


def _common(world: Observed) -> tuple[object, ...]:
    """Return what concerns all models of the main group; nothing if a failure may concern any of them."""
    pool, main = world.pool, world.groups.get(world.main)
    if pool is None or main is None or world.failures:
        return ()
    return (
        pool.name,
        pool.min_ready,
        pool.template,
        pool.gateway,
        world.main,
        main,
        world.gateway_url,
        world.traffic.answering,
    )


def _inputs(model: ModelObserved, world: Observed) -> tuple[object, ...]:
    """Return what a settled model's decision follows from, besides `_common`."""
    stable, rollout = model.roles.stable, model.status.rollout
    if stable is None:
        return ()
    return (
        model,
        world.revisions.get(stable.revision),
        world.traffic.share(model.name, stable.group),
        world.records.get(rollout.rollout) if rollout is not None else None,
    )
