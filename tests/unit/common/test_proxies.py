"""No client of ours reaches a server of this machine by a proxy of the environment, over any protocol."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from segserve_common.http.urls import is_proxied

ROOT = Path(__file__).parents[3]
SOURCES = sorted(
    path for part in ("client", "model_repo_builder", "operator") for path in (ROOT / part / "src").rglob("*.py")
)
HTTPX = {"AsyncClient", "Client", "delete", "get", "head", "patch", "post", "put", "request", "stream"}
GRPC = {"insecure_channel", "secure_channel", "InferenceServerClient"}
NO_PROXIES = "grpc.enable_http_proxy"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls that open connections, by the last part of their names."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of_httpx = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "httpx"
        if name in GRPC or (of_httpx and name in HTTPX):
            yield name, node


def test_every_connection_says_whether_proxies_are_used() -> None:
    found, silent = 0, []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for name, call in calls(ast.parse(text)):
            found += 1
            given = {keyword.arg for keyword in call.keywords}
            # A transport of its own has no proxies; `**arguments` are built in one place, which says it.
            says = bool(given & {"trust_env", "transport"}) or (None in given and '"trust_env"' in _package(path))
            if name in GRPC:
                says = NO_PROXIES in text
            if not says:
                silent.append(f"{path.relative_to(ROOT)}:{call.lineno}: {name}")

    assert found > 15
    assert silent == []


def _package(path: Path) -> str:
    return "".join(each.read_text(encoding="utf-8") for each in path.parent.glob("*.py"))


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://127.0.0.1:9090", False),
        ("https://localhost:6443", False),
        ("http://[::1]:8080/x", False),
        ("http://127.8.8.8", False),
        ("https://example.org", True),
        ("http://127.example.org", True),
        ("http://10.0.0.1", True),
        ("http://[", True),
    ],
)
def test_the_environments_proxies_are_for(url: str, proxied: bool) -> None:
    assert is_proxied(url) is proxied


async def test_a_cluster_on_this_machine_is_asked_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segserve_common.kube.async_client import _configuration_of
    from segserve_common.kube.config import KubeContext, read_context

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    used = []
    for server in ("https://127.0.0.1:6443", "https://cluster.example.org"):
        file = tmp_path / "config"
        file.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n"
            f"clusters: [{{name: here, cluster: {{server: '{server}'}}}}]\n"
            "users: [{name: me, user: {token: abc}}]\n"
            "contexts: [{name: here, context: {cluster: here, user: me}}]\n"
        )
        context = read_context(file)
        assert isinstance(context, KubeContext)
        session = (await _configuration_of(context)).client_session_kwargs
        used.append((bool(context.configuration().proxy), session["trust_env"]))

    assert used == [(False, False), (True, True)]
