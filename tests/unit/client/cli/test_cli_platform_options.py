"""Which platform is meant: what is named, else this machine's where one is up, else the kube context's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.kube_http import CONFIG
from segserve.platform import Cluster
from segserve_common.kube.config import authorization
from segserve_platform.cli.options import PlatformOptions, is_local
from segserve_platform.platforms.cluster.config import context_of
from segserve_platform.platforms.cluster.context_client import ContextClient
from segserve_platform.platforms.errors import NoPlatformError

from .conftest import Command


def written(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return path


def test_without_any_kubeconfig_this_machine_is_meant() -> None:
    assert is_local(PlatformOptions())


def test_a_kubeconfig_means_its_cluster_unless_this_machine_is_named(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    assert not is_local(PlatformOptions())
    assert is_local(PlatformOptions(local=True))


def test_a_state_folder_that_is_named_is_meant_beside_a_kubeconfig(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path))

    assert is_local(PlatformOptions())
    assert not is_local(PlatformOptions(namespace="lab"))


def test_the_kubectl_plugin_means_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-segserve"])

    assert not is_local(PlatformOptions())


def test_this_machine_and_a_cluster_cannot_both_be_meant(command: Command) -> None:
    code, _, complaint = command("get", "--local", "--namespace", "lab")

    assert code == 2
    assert "--local selects this machine" in complaint


def test_the_usual_file_the_named_ones_and_the_option_are_read_in_that_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others = [{"name": "other", "context": {"cluster": "here", "user": "me"}}]
    usual = written(tmp_path / "home/.kube/config")
    first = written(tmp_path / "first", **{"contexts": others, "current-context": None})
    assert context_of(Cluster()).name == "test"

    monkeypatch.setenv("KUBECONFIG", os.pathsep.join((str(first), str(usual))))

    assert context_of(Cluster()).name == "test"
    assert context_of(Cluster(context="other")).namespace == "default"
    assert context_of(Cluster(context="other", namespace="lab")).namespace == "lab"
    assert context_of(Cluster(kubeconfig=usual)).namespace == "lab"


BROKEN = {
    "nothing": (None, "is not a kubeconfig: .*No such file"),
    "no YAML": ("a: [", "is not a kubeconfig: while parsing"),
    "another file": ("a: 1", "is not a kubeconfig: it has no 'contexts'"),
    "no cluster": (json.dumps(CONFIG | {"clusters": []}), "is not a kubeconfig: it has no 'here'"),
    "no current context": (json.dumps(CONFIG | {"current-context": None}), "names no current context"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_kubeconfig_that_cannot_be_used_is_named_with_what_helps(broken: str, tmp_path: Path) -> None:
    text, said = BROKEN[broken]
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)

    with pytest.raises(NoPlatformError, match=said) as caught:
        context_of(Cluster(kubeconfig=file))

    assert str(file) in str(caught.value)
    assert "--local" in str(caught.value)


def test_an_unknown_context_is_told_with_those_that_there_are(kubeconfig: Path) -> None:
    with pytest.raises(NoPlatformError, match=r"no context 'prod' in .*; there are: test"):
        context_of(Cluster(kubeconfig=kubeconfig, context="prod"))


PLUGIN = """#!/bin/sh
test -n "$KUBERNETES_EXEC_INFO" || exit 1
printf '{"apiVersion": "%s", "kind": "ExecCredential", "status": {"token": "secret"}}' "$1"
"""


@pytest.mark.parametrize("version", ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"])
def test_a_credential_plugin_gives_the_token(version: str, tmp_path: Path) -> None:
    tool = tmp_path / "token-tool"
    tool.write_text(PLUGIN)
    tool.chmod(0o755)
    plugin = {"apiVersion": version, "command": str(tool), "args": [version]}
    file = written(tmp_path / "config", users=[{"name": "me", "user": {"exec": plugin}}])

    configuration = context_of(Cluster(kubeconfig=file)).configuration()

    assert authorization(configuration) == {"Authorization": "Bearer secret"}


def test_a_credential_plugin_that_fails_is_named(tmp_path: Path) -> None:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}
    file = written(tmp_path / "config", users=[{"name": "me", "user": {"exec": plugin}}])

    with pytest.raises(NoPlatformError, match=r"credential plugin '/bin/false' .*--kubeconfig FILE"):
        ContextClient.connect(context_of(Cluster(kubeconfig=file)))
