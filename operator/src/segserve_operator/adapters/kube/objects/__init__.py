"""Manifests of a pool's objects: pure functions from a pool's spec to JSON values."""

from segserve_operator.adapters.kube.objects.context import Defaults, PoolContext, gateway_url, scale_selector
from segserve_operator.adapters.kube.objects.gateway import gateway_objects
from segserve_operator.adapters.kube.objects.group import (
    assignment_config_map,
    group_objects,
    own_report_objects,
    plan_config_map,
    revision_object,
)
from segserve_operator.adapters.kube.objects.server import main_group, server_template, template_digest

__all__ = [
    "Defaults",
    "PoolContext",
    "assignment_config_map",
    "gateway_objects",
    "gateway_url",
    "group_objects",
    "main_group",
    "own_report_objects",
    "plan_config_map",
    "revision_object",
    "scale_selector",
    "server_template",
    "template_digest",
]
