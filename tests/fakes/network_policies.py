"""Which connections a cluster's NetworkPolicies allow, as the API documents them, without a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final, Literal

from fakes.cluster import Json

Direction = Literal["Ingress", "Egress"]
NAME_LABEL: Final = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection: a pod, or an address outside of the pods if `namespace` is empty."""

    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named ports of the pod's containers."""


def allows(policies: Sequence[Json], source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
    """Tell whether `source` may open a connection to a port of `target`: both ends must allow it."""
    return _one_end(policies, "Egress", source, target, target, port, protocol) and _one_end(
        policies, "Ingress", target, source, target, port, protocol
    )


def _one_end(
    policies: Sequence[Json],
    direction: Direction,
    own: Endpoint,
    peer: Endpoint,
    target: Endpoint,
    port: int,
    protocol: str,
) -> bool:
    selecting = [policy for policy in policies if direction in policy["spec"]["policyTypes"] and _selects(policy, own)]
    if not selecting:
        return True
    rules = [
        (policy["metadata"]["namespace"], rule)
        for policy in selecting
        for rule in policy["spec"].get(direction.lower()) or ()
    ]
    key = "from" if direction == "Ingress" else "to"
    return any(
        _has_port(rule.get("ports"), target, port, protocol) and _has_peer(rule.get(key), namespace, peer)
        for namespace, rule in rules
    )


def _selects(policy: Json, pod: Endpoint) -> bool:
    return policy["metadata"]["namespace"] == pod.namespace and _matches(policy["spec"]["podSelector"], pod.labels)


def _has_port(ports: Iterable[Json] | None, target: Endpoint, port: int, protocol: str) -> bool:
    return not ports or any(
        item.get("protocol", "TCP") == protocol and _number(item.get("port", port), target) == port for item in ports
    )


def _number(port: int | str, target: Endpoint) -> int | None:
    return target.ports.get(port) if isinstance(port, str) else port


def _has_peer(peers: Iterable[Json] | None, namespace: str, end: Endpoint) -> bool:
    return not peers or any(_is_peer(peer, namespace, end) for peer in peers)


def _is_peer(peer: Json, namespace: str, end: Endpoint) -> bool:
    if "ipBlock" in peer:
        address, block = ip_address(end.address), peer["ipBlock"]
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(part) for part in block.get("except", ())
        )
    if not end.namespace:
        return False
    if "namespaceSelector" not in peer:
        within = end.namespace == namespace
    else:
        within = _matches(peer["namespaceSelector"], {NAME_LABEL: end.namespace})
    return within and _matches(peer.get("podSelector", {}), end.labels)


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Tell whether labels fit; AssertionError for an operator other than `In`, which segserve does not use."""
    expressions = selector.get("matchExpressions") or ()
    assert all(item["operator"] == "In" for item in expressions), selector
    return (selector.get("matchLabels") or {}).items() <= labels.items() and all(
        labels.get(item["key"]) in item["values"] for item in expressions
    )
