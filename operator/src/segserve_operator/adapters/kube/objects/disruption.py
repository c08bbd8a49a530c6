"""How many pods may be away at once because of people's doing, a node's drain above all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes.aio.client import V1LabelSelector, V1PodDisruptionBudget, V1PodDisruptionBudgetSpec

from segserve_common.kube.kinds import DISRUPTION_BUDGETS, Json
from segserve_operator.adapters.kube.objects.context import meta, rendered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered


def disruption_budget(context: PoolContext, name: str, selector: Mapping[str, str]) -> Json:
    """Return the budget of one pod at a time: also a single one must not block a node's drain for ever."""
    spec = V1PodDisruptionBudgetSpec(max_unavailable=1, selector=V1LabelSelector(match_labels=dict(selector)))
    budget = rendered(DISRUPTION_BUDGETS, V1PodDisruptionBudget(metadata=meta(context, name, selector), spec=spec))
    return {**budget, "apiVersion": context.defaults.disruption_api}
