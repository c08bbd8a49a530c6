"""A real Prometheus with the chart's rules, the queries of rules and dashboards to ask it, and a real Alertmanager."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from bench.ports import free_port
from charts.monitoring.dashboards import DASHBOARDS
from charts.monitoring.rules import rules
from fakes.waiting import HANG_S, until

ALERTMANAGER: Final = Path(__file__).parents[2] / "charts/monitoring/alertmanager.yaml"


@contextmanager
def prometheus(folder: Path, targets: dict[str, dict[str, str]], interval_s: int = 1) -> Iterator[str]:
    """Run a Prometheus that scrapes addresses with labels, and evaluates the chart's rules, every interval."""
    interval = f"{interval_s}s"
    groups = [{**group, "interval": interval} for group in rules()["groups"]]
    jobs = [
        {"job_name": each, "honor_labels": not labels, "static_configs": [{"targets": [each], "labels": labels}]}
        for each, labels in targets.items()
    ]
    scraped = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": jobs,
    }
    with configured_prometheus(folder, scraped, {"rules.yml": yaml.safe_dump({"groups": groups})}) as url:
        yield url


@contextmanager
def configured_prometheus(
    folder: Path, config: Mapping[str, Any], rule_files: Mapping[str, str], program: str | Path = "prometheus"
) -> Iterator[str]:
    """Run a Prometheus with a configuration, and with rules in place of those that it names."""
    for name, text in rule_files.items():
        (folder / name).write_text(text)
    (folder / "prometheus.yml").write_text(json.dumps({**config, "rule_files": list(rule_files)}))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([program, *options, f"--web.listen-address={address}"], stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


@contextmanager
def alertmanager(folder: Path) -> Iterator[str]:
    """Run an Alertmanager as in the example. The keys of its receivers are not there, so that it tells nobody."""
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={ALERTMANAGER}", f"--storage.path={folder / 'alertmanager'}"]
    command = ["prometheus-alertmanager", *options, f"--web.listen-address={address}", "--cluster.listen-address="]
    with (
        (folder / "alertmanager.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):

        def is_ready() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(f"http://{address}/-/ready", timeout=HANG_S).is_success
            return False

        try:
            until(is_ready, "Alertmanager answers")
            yield f"http://{address}"
        finally:
            process.terminate()


def alerts(url: str) -> list[dict[str, Any]]:
    """Return the alerts that an Alertmanager has, those that are inhibited too."""
    found: list[dict[str, Any]] = httpx.get(f"{url}/api/v2/alerts", timeout=HANG_S).json()
    return found


def ask(url: str, query: str) -> list[dict[str, Any]] | str:
    """Return the series that a query gives now, or why Prometheus refuses it."""
    try:
        answer = httpx.post(f"{url}/api/v1/query", data={"query": query}, timeout=HANG_S)
    except httpx.TransportError as error:  # it starts
        return repr(error)
    found = answer.json() if answer.headers["content-type"] == "application/json" else {"error": answer.text}
    return found["data"]["result"] if answer.is_success else str(found["error"])


def queries() -> Iterator[str]:
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            yield from (query for query, _ in panel.queries)
        yield from (query.removeprefix("label_values(").rpartition(",")[0] for _, query in dashboard.variables)
    for group in rules()["groups"]:
        yield from (rule["expr"] for rule in group["rules"] if "record" in rule)


def answers(url: str, asked: Iterable[str]) -> dict[str, list[dict[str, Any]] | str]:
    """Return what each query gives, with prices of 1 and every other variable of a dashboard at "all"."""
    return {query: ask(url, re.sub(r"\$[a-z]\w*", ".*", re.sub(r"\$\w+_hour\b", "1", query))) for query in asked}


def unexpectedly_empty(found: Mapping[str, object], reasons: Iterable[str]) -> list[str]:
    """Return the queries without an answer that have no part for which there may be none."""
    return [query for query, answer in found.items() if not answer and not any(part in query for part in reasons)]
