"""Comparison of live objects with manifests, ignoring fields and list items that others or the API server added."""

from __future__ import annotations

from typing import Any, Final

from segserve_operator.mapping.quantities import number

# The API server may rewrite quantities: 1000m is stored as 1.
_AMOUNTS: Final = frozenset({"limits", "requests"})
_AMOUNT: Final = frozenset({"sizeLimit"})

# Lists whose items belong to the client that set them, by the fields that identify an item, as in the kinds' schemas.
_KEYS: Final = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "resourceClaims": ("name",),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_PORT_KEYS: Final = {"containerPort": ("containerPort", "protocol"), "targetPort": ("port", "protocol")}
_ADDITIVE: Final = frozenset({"tolerations"})
"""Lists that the API server replaces as a whole, but to which admission adds without a conflict of meaning."""

_ALTERNATIVES: Final = frozenset({"startupProbe", "livenessProbe", "readinessProbe", "lifecycle"})
"""Objects of which only one of several fields may be set: a field that another client added makes ours invalid."""


def covers(live: Any, desired: Any) -> bool:
    """Return whether `live`, as the API sends it, has every field of `desired`. Both are JSON values.

    Fields that `desired` does not name may have any value. In lists whose items have a key (containers, env, volumes,
    a Service's ports, ...) only the items of `desired` are compared; all other lists must agree in length and order.
    An absent field equals an empty one, since the API server does not store all empty ones; quantities are compared as
    numbers.
    """
    return _covers("", live, desired)


def overlay(live: Any, desired: Any) -> Any:
    """Return `live` with every field of `desired`, and without what makes these invalid; items of others are kept.

    A server-side apply does the same, except that it keeps a second source of a volume, a second handler of a probe
    or a second value of a variable that another client added to ours, and is refused for it.
    """
    return _overlay("", live, desired)


def _covers(field: str, live: Any, desired: Any) -> bool:
    if not desired:
        return not live
    if field in _AMOUNT:
        return _same_amount(live, desired)
    if isinstance(desired, dict):
        if not isinstance(live, dict):
            return False
        if field in _AMOUNTS:
            return all(_same_amount(live.get(name), amount) for name, amount in desired.items())
        return all(_covers(name, live.get(name), value) for name, value in desired.items())
    if isinstance(desired, list):
        return isinstance(live, list) and _covers_list(field, live, desired)
    return bool(live == desired)


def _covers_list(field: str, live: list[Any], desired: list[Any]) -> bool:
    if len(live) == len(desired) and all(_covers("", *pair) for pair in zip(live, desired, strict=True)):
        return True
    if field in _ADDITIVE:
        return all(any(_covers("", item, wanted) for item in live) for wanted in desired)
    keys = _keys(field, desired)
    if keys is None:
        return False
    found = {_key(item, keys): item for item in live if isinstance(item, dict)}
    return all(_covers("", found.get(_key(item, keys)), item) for item in desired)


def _overlay(field: str, live: Any, desired: Any) -> Any:
    if isinstance(desired, dict) and isinstance(live, dict) and field not in _ALTERNATIVES:
        return {**live, **{name: _overlay(name, live.get(name), value) for name, value in desired.items()}}
    keys = _keys(field, desired) if isinstance(desired, list) and isinstance(live, list) else None
    if keys is None:
        return desired
    present = {_key(item, keys): item for item in live}
    # Containers also have fields of others; an item of any other list is one value.
    nested = field in ("containers", "initContainers")
    own = {
        _key(item, keys): _overlay("", present.get(_key(item, keys), {}), item) if nested else item for item in desired
    }
    return list({**present, **own}.values())


def _keys(field: str, items: list[Any]) -> tuple[str, ...] | None:
    """Return the fields that identify the items of a list, None if the list is one value."""
    keys = _KEYS.get(field)
    if field == "ports" and items and isinstance(items[0], dict):
        # The ports of a NetworkPolicy have neither, and are one value.
        keys = next((keys for name, keys in _PORT_KEYS.items() if name in items[0]), None)
    return keys if all(isinstance(item, dict) for item in items) else None


def _key(item: dict[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key) for key in keys)


def _same_amount(live: Any, desired: Any) -> bool:
    return live == desired or (number(live) is not None and number(live) == number(desired))
