"""Egress rules of servers and gateways: DNS, the API server, the pool's own pods, and what the chart lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from kubernetes.aio.client import (
    V1IPBlock,
    V1LabelSelector,
    V1NetworkPolicyEgressRule,
    V1NetworkPolicyPeer,
    V1NetworkPolicyPort,
)
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DNS_PORT: Final = 53


class Egress(BaseModel):
    """Destinations of pods outside their own pool, from the chart's `networkPolicy.egress`.

    Without `dns` peers, port 53 of any address is reachable; without `api_server_cidrs`, `api_server_ports` of any
    address. `servers` and `gateways` are rules as a NetworkPolicy has them; an empty rule ({}) allows everything.
    """

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="forbid")

    dns: tuple[V1NetworkPolicyPeer, ...] = ()
    api_server_cidrs: tuple[str, ...] = ()
    api_server_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (443, 6443)
    servers: tuple[V1NetworkPolicyEgressRule, ...] = ()
    gateways: tuple[V1NetworkPolicyEgressRule, ...] = ()

    def of_servers(self) -> list[V1NetworkPolicyEgressRule]:
        """Return the rules of a group's pods: agents read the API, and download from `servers`."""
        return [*self._common(), *self.servers]

    def of_gateways(self, servers: Mapping[str, str], ports: Iterable[int]) -> list[V1NetworkPolicyEgressRule]:
        """Return the rules of a pool's gateways, whose servers have these labels and ports."""
        peer = V1NetworkPolicyPeer(pod_selector=V1LabelSelector(match_labels=dict(servers)))
        return [*self._common(), _rule([peer], ports), *self.gateways]

    def _common(self) -> list[V1NetworkPolicyEgressRule]:
        blocks = [V1NetworkPolicyPeer(ip_block=V1IPBlock(cidr=cidr)) for cidr in self.api_server_cidrs]
        names = [V1NetworkPolicyPort(port=DNS_PORT, protocol=protocol) for protocol in ("UDP", "TCP")]
        return [
            V1NetworkPolicyEgressRule(to=list(self.dns) or None, ports=names),
            _rule(blocks, self.api_server_ports),
        ]


def _rule(peers: list[V1NetworkPolicyPeer], ports: Iterable[int]) -> V1NetworkPolicyEgressRule:
    allowed = [V1NetworkPolicyPort(port=port, protocol="TCP") for port in ports]
    return V1NetworkPolicyEgressRule(to=peers or None, ports=allowed)
