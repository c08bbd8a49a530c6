"""How many pods may be away at once because of people's doing, a node's drain above all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightkube.models.meta_v1 import LabelSelector
from lightkube.models.policy_v1 import PodDisruptionBudgetSpec
from lightkube.resources.policy_v1 import PodDisruptionBudget

from segserve_operator.adapters.kube.objects.target import meta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.kube.objects.target import PoolContext


def disruption_budget(target: PoolContext, name: str, selector: Mapping[str, str]) -> dict[str, Any]:
    """Return the budget of one pod at a time: also a single one must not block a node's drain for ever."""
    spec = PodDisruptionBudgetSpec(maxUnavailable=1, selector=LabelSelector(matchLabels=dict(selector)))
    budget = PodDisruptionBudget(metadata=meta(target, name, selector), spec=spec).to_dict()
    return {**budget, "apiVersion": target.defaults.disruption_api}
