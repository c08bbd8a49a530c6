"""Kyverno's usual policies refuse of what segserve creates only what docs/how-to/harden.md names."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from fakes.chart import HELM
from fakes.cluster import Json
from fakes.cluster_models import API, model
from fakes.docs import ROOT, blocks
from fakes.neighbours import HERE, folder_of
from fakes.served_namespace import CHILDREN, MODEL, POOL, ServedNamespace
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, POOL_LABEL, SERVER

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(1800)]

MODULE, NAME = "github.com/kyverno/kyverno", "limited"
VALUES = ("--set=podSecurityStandard=restricted", "--set=includeOtherPolicies={require-non-root-groups}")
SPECS = (yaml.safe_load(block.text).get("spec", {}) for block in blocks(ROOT / "docs/how-to/harden.md", "yaml"))
LIMITED = next(spec for spec in SPECS if "gateway" in spec)


def test_only_what_is_named_is_refused(served: ServedNamespace, built: Callable[..., Path], tmp_path: Path) -> None:
    program = built("kyverno", f"{MODULE}/cmd/cli/kubectl-kyverno")
    policies = usual(folder_of("kyverno", MODULE), tmp_path / "standards.yaml")
    pool = {"apiVersion": API, "kind": "TritonPool", "metadata": {"name": NAME}, "spec": LIMITED}
    served.apply(pool, model(name=NAME, pool=NAME))
    for each in (f"{POOL_LABEL}={NAME},{COMPONENT_LABEL}={component}" for component in (GATEWAY, SERVER)):
        served.cluster.wait(f"pods of {each}", lambda labels=each: served.cluster.pods(served.name, labels))
    objects = {name: served.children(f"{POOL_LABEL}={name}") for name in ("default", NAME)}
    objects["operator"] = served.cluster.get(served.operator.namespace, CHILDREN)
    served.delete(f"{MODEL},{POOL}", NAME)

    refused = {name: refusals(program, policies, these, tmp_path / name) for name, these in objects.items()}
    assert refused == {"default": {"require-pod-requests-limits"}, NAME: set(), "operator": set()}


def usual(module: Path, standards: Path) -> list[Path]:
    """Return files of policies: the chart's, in a file to write, and the best practices."""
    command = [HELM, "template", "policies", module / "charts/kyverno-policies", *VALUES]
    standards.write_bytes(subprocess.run(list(map(str, command)), capture_output=True, check=True).stdout)
    return [standards, HERE / "kyverno/policies.yaml", *(module / "test/best_practices").glob("[dr]*.yaml")]


def refusals(program: Path, policies: Sequence[Path], objects: Sequence[Json], file: Path) -> set[str]:
    """Return the policies that do not accept an object; each judges some."""
    file.write_text("\n---\n".join(map(json.dumps, objects)))
    command = [program, "apply", *policies, "--resource", file, "--policy-report", "--output-format=json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    results = {(each["policy"], each["result"]) for report in reports for each in report["results"]}
    named = {each["metadata"]["name"] for file in policies for each in yaml.safe_load_all(file.read_text())}
    assert {policy for policy, _ in results} == named, done.stdout + done.stderr
    return {policy for policy, result in results if result not in ("pass", "skip")}
