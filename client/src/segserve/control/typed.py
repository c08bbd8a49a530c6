"""Between the port, which speaks JSON, and the resources' types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from segserve.platforms.errors import ControlError, InvalidResourceError, NoPlatformError, NotFoundError
from segserve.platforms.manifests import read
from segserve.platforms.port import MODEL
from segserve.platforms.waiting import Gone, Serving
from segserve_common.errors import BadRequestError
from segserve_operator.api.errors import SpecError
from segserve_operator.api.loading import parse
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.api.segmentation_rollout import SegmentationRollout
from segserve_operator.api.triton_pool import TritonPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from segserve.platforms.manifests import Source
    from segserve.platforms.port import Json, Platform
    from segserve.platforms.waiting import Goal

R = TypeVar("R", SegmentationModel, TritonPool, SegmentationRollout)

READ: Final[Mapping[str, Callable[[Platform, str], Json]]] = {
    SegmentationModel.__name__: lambda here, name: here.model(name),
    TritonPool.__name__: lambda here, name: here.pool(name),
}


def typed(manifest: Json, kind: type[R]) -> R:
    """Return a stored resource as its type; raises `ControlError` for one of another version than this client."""
    title = f"{kind.__name__} {manifest.get('metadata', {}).get('name')!r}"
    try:
        found: Any = parse({"apiVersion": "segserve.dev/v1alpha1", "kind": kind.__name__, **manifest}, title)
    except SpecError as error:
        raise ControlError(f"{error}; is it of another version of segserve than this client?") from error
    assert isinstance(found, kind), "the kind says the type"
    return found


def applied(here: Platform, source: Source, kind: type[R], *, force: bool) -> R:
    """Apply the one resource of a source and return it as it is stored."""
    resources = read(source)
    kinds = [written.resource.kind for written in resources]
    if kinds != [kind.__name__]:
        raise InvalidResourceError(
            f"{resources[0].source}: one {kind.__name__} is wanted here, got {', '.join(kinds)}; "
            "`models.apply_all` takes files of several resources"
        )
    here.check_place(resources)
    here.apply(resources, force=force)
    return typed(READ[kind.__name__](here, resources[0].resource.metadata.name), kind)


def all_applied(here: Platform, source: Source, *, force: bool) -> list[SegmentationModel]:
    """Apply all resources of a source, and return the models as they are stored."""
    resources = read(source)
    here.check_place(resources)
    here.apply(resources, force=force)
    models = (written.resource for written in resources if written.resource.kind == MODEL)
    return [typed(here.model(each.metadata.name), SegmentationModel) for each in models]


def goal_of(here: Platform, name: str, target: str) -> Goal:
    """Return what is waited for of a model.

    Raises `NoPlatformError` where nothing runs that could bring it about, and `NotFoundError` for an unknown model
    that is to serve.
    """
    goals: dict[str, Goal] = {"Ready": Serving(name), "delete": Gone(MODEL, name)}
    if target not in goals:
        raise BadRequestError(f"for_ is one of {', '.join(goals)}, got {target!r}")
    if target == "Ready":
        here.model(name)
    check_runs(here, name)
    return goals[target]


def check_runs(here: Platform, name: str) -> None:
    """Raise `NoPlatformError` where nothing runs that could carry out what is asked of a model."""
    if not here.runs():
        raise NoPlatformError(f"no platform is up here to carry out what is asked of {name}: `segserve up` starts it")


def record(here: Platform, name: str) -> SegmentationRollout:
    """Return the record of a rollout; raises `NotFoundError`."""
    manifest = here.rollout(name)
    if manifest is None:
        raise NotFoundError(f"no record of a rollout {name!r}; `client.rollouts.list()` has what there is")
    return typed(manifest, SegmentationRollout)
