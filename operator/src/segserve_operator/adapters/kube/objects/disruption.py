"""PodDisruptionBudgets, which limit how many pods a drain of nodes evicts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes.aio.client import V1LabelSelector, V1PodDisruptionBudget, V1PodDisruptionBudgetSpec

from segserve_common.kube.kinds import DISRUPTION_BUDGETS, Json
from segserve_operator.adapters.kube.objects.context import meta, rendered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered


def disruption_budget(context: PoolContext, name: str, selector: Mapping[str, str]) -> Json:
    """Return the V1PodDisruptionBudget that allows one eviction at a time."""
    # Not min_available: a single pod could then never be evicted, and would block the drain of its node.
    spec = V1PodDisruptionBudgetSpec(max_unavailable=1, selector=V1LabelSelector(match_labels=dict(selector)))
    budget = rendered(DISRUPTION_BUDGETS, V1PodDisruptionBudget(metadata=meta(context, name, selector), spec=spec))
    return {**budget, "apiVersion": context.defaults.disruption_api}
