"""Costs of requests in money: prices of a pool, and the use of servers that is divided among revisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

HOUR_S: Final = 3600.0
GIB: Final = 2.0**30


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of an hour of one CPU, one GPU and one GiB of memory; 0 for what costs nothing."""

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    memory_gib_hour: float = 0.0
    currency: str = "USD"

    @property
    def any(self) -> bool:
        """Whether something has a price."""
        return bool(self.cpu_hour or self.gpu_hour or self.memory_gib_hour)

    def money(self, use: Use) -> float:
        """Return what a use costs."""
        return (
            self.cpu_hour * use.cpu_s / HOUR_S
            + self.gpu_hour * use.gpu_s / HOUR_S
            + self.memory_gib_hour * use.memory_byte_s / GIB / HOUR_S
        )


@dataclass(frozen=True, slots=True)
class Use:
    """The use of servers and gateways by requests, and their number; `calls` are those of callers, not tests by agents.

    `gateway_cpu_s` is the part of `cpu_s` that the gateway used. Megapixels are those of callers' images. Bytes are
    those of requests and answers at the gateway.
    """

    cpu_s: float = 0.0
    gateway_cpu_s: float = 0.0
    gpu_s: float = 0.0
    memory_byte_s: float = 0.0
    requests: float = 0.0
    calls: float = 0.0
    megapixels: float = 0.0
    bytes: float = 0.0

    def plus(self, other: Use) -> Use:
        """Return the sum of both."""
        return Use(**{name: getattr(self, name) + getattr(other, name) for name in Use.__dataclass_fields__})

    def scaled(self, share: float) -> Use:
        """Return a share of this use."""
        return Use(**{name: share * getattr(self, name) for name in Use.__dataclass_fields__})


def unit_costs(use: Use, prices: Prices) -> Mapping[str, float]:
    """Return CPU seconds and money by request, by thousand requests and by megapixel, of what can be divided."""
    found: dict[str, float] = {}
    if use.requests > 0:
        found |= {
            "cpuSecondsPerRequest": use.cpu_s / use.requests,
            "bytesPerRequest": use.bytes / use.requests,
        }
    if use.calls > 0 and use.megapixels > 0:
        found["megapixelsPerRequest"] = use.megapixels / use.calls
    if not prices.any:
        return found
    money = prices.money(use)
    found["money"] = money
    if use.requests > 0:
        found["per1000Requests"] = 1000 * money / use.requests
    if use.megapixels > 0:
        found["perMegapixel"] = money / use.megapixels
    return found
