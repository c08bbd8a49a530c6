"""Gateways of a cluster in memory that count requests as answered, divided by the routes' weights."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fakes.cluster_world import ClusterWorld
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.core.rollout.counters import Counters, Sample, Series, SeriesCounts


def count_requests(world: ClusterWorld, monkeypatch: pytest.MonkeyPatch, *, per_pass: int = 100) -> None:
    """Let the gateways answer so many requests of each model between two passes, in 20 ms each."""
    counts = dict[tuple[str, str], int]()

    async def samples(_: ClusterTraffic, models: Mapping[str, tuple[str, str]]) -> Mapping[str, Sample]:
        for model in models:
            for group, weight in world.weights(model).items():
                counts[model, group] = counts.get((model, group), 0) + per_pass * weight // 100
        return {
            model: {"gateway": Counters("first", world.now_s, dict(_answered(counts, model, each) for each in both))}
            for model, both in models.items()
        }

    monkeypatch.setattr(ClusterTraffic, "samples", samples)


def _answered(counts: Mapping[tuple[str, str], int], model: str, group: str) -> tuple[Series, SeriesCounts]:
    count = counts.get((model, group), 0)
    return Series(group, "http"), SeriesCounts(count, 0, latencies=((20.0, count),))
