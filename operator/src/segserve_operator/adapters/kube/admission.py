"""Admission of models: who requested what is written by the API server's word, and promoting is a right of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import kopf

from segserve_common.api_errors import ApiError
from segserve_common.kube.kinds import MODELS, SUBJECT_REVIEWS
from segserve_operator.api.evaluation import EVALUATION
from segserve_operator.core.world.requests import PREFIX, REQUESTED_BY, VERBS, requesters

if TYPE_CHECKING:
    from segserve_common.kube.async_client import AsyncKubeClient

HANDLER: Final = "requests"
"""Of the webhook: its path is /requests."""
PRIVILEGED: Final = ("promote", "skip-gate")
"""Requests that give a candidate traffic which the evidence has not allowed: they need the right to `promote`."""
SPEC: Final = "spec"
"""Key, beside the verbs, of who last changed the spec."""
_PORT: Final = 9443

UserInfo = Mapping[str, Any]
MayPromote = Callable[[UserInfo, str, str], Awaitable[bool]]
"""Returns whether a user may promote the model (namespace, name)."""

log = logging.getLogger("segserve")


class RequestRefusedError(Exception):
    """A write of a model that is not admitted."""


async def stamp(
    user: UserInfo, old: Mapping[str, Any] | None, new: Mapping[str, Any], may_promote: MayPromote
) -> str | None:
    """Return the value of the annotation `REQUESTED_BY` for a model that a user writes, None if it needs none.

    `old` is the model before, None if it is created. Raises `RequestRefusedError` if the user writes another value than
    the stored one, or requests what he has no right to. At a creation a given value is replaced: backups have one.
    """
    before, after = _annotations(old), _annotations(new)
    stored, given = before.get(REQUESTED_BY), after.get(REQUESTED_BY)
    if old is not None and given is not None and given != stored:
        raise RequestRefusedError(f"the annotation {REQUESTED_BY} is written by segserve's admission webhook alone")
    stamped_verbs = (*VERBS, EVALUATION)
    changed = [verb for verb in stamped_verbs if after.get(PREFIX + verb) not in (None, before.get(PREFIX + verb))]
    namespace, name = new["metadata"].get("namespace", ""), new["metadata"].get("name", "")
    for verb in changed:
        if verb in PRIVILEGED and not await may_promote(user, namespace, name):
            raise RequestRefusedError(
                f"{verb} of {name} needs the right to create segmentationmodels/promote in {namespace}, "
                f"which {user.get('username')} does not have"
            )
    if old is None or old.get("spec") != new.get("spec"):
        changed.append(SPEC)
    kept = {verb: by for verb, by in requesters(before).items() if verb == SPEC or PREFIX + verb in after}
    stamped = {**kept, **dict.fromkeys(changed, str(user.get("username", "")))}
    return json.dumps(stamped, sort_keys=True) if stamped else None


def may_promote_by(api: AsyncKubeClient) -> MayPromote:
    """Return what asks the API server; nobody may while it does not answer."""

    async def ask(user: UserInfo, namespace: str, name: str) -> bool:
        attributes = {
            "namespace": namespace,
            "name": name,
            "verb": "create",
            "group": MODELS.group,
            "version": MODELS.version,
            "resource": MODELS.plural,
            "subresource": "promote",
        }
        spec: dict[str, Any] = {"user": user.get("username"), "resourceAttributes": attributes}
        spec |= {key: user[key] for key in ("groups", "uid", "extra") if user.get(key)}
        review = {"apiVersion": SUBJECT_REVIEWS.api_version, "kind": SUBJECT_REVIEWS.name, "spec": spec}
        try:
            answer = await api.create(SUBJECT_REVIEWS, None, review)
        except ApiError as error:
            log.warning("whether %s may promote is not known: %s", user.get("username"), error)
            return False
        return bool((answer.get("status") or {}).get("allowed"))

    return ask


def admit(
    registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, may_promote: MayPromote, keys: Path
) -> None:
    """Serve the webhook with the certificate `tls.crt` and key `tls.key` in the folder `keys`."""

    async def admitted(body: kopf.Body, old: kopf.Body | None, userinfo: UserInfo, patch: kopf.Patch, **_: Any) -> None:
        new = json.loads(json.dumps(dict(body)))
        former = None if old is None else json.loads(json.dumps(dict(old)))
        try:
            value = await stamp(userinfo, former, new, may_promote)
        except RequestRefusedError as error:
            raise kopf.AdmissionError(str(error), code=403) from error
        if value != _annotations(new).get(REQUESTED_BY):
            patch.metadata.annotations[REQUESTED_BY] = value

    settings.admission.server = kopf.WebhookServer(port=_PORT, certfile=keys / "tls.crt", pkeyfile=keys / "tls.key")
    settings.admission.managed = None  # the chart makes the configuration
    kopf.on.mutate(
        MODELS.group, MODELS.version, MODELS.plural, id=HANDLER, operations=["CREATE", "UPDATE"], registry=registry
    )(admitted)


def _annotations(model: Mapping[str, Any] | None) -> Mapping[str, str]:
    found: Mapping[str, str] = ((model or {}).get("metadata") or {}).get("annotations") or {}
    return found
