"""`segserve bench`: a table or JSON, and an exit code that tells whether all requests were answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.kserve import Fault, Gateway

from .conftest import Command

SHORT = ("--duration", "0.2", "--warmup", "0")


@pytest.fixture
def image(gateway: Gateway, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An image, while the gateway is there to be asked."""
    (tmp_path / "coins.png").write_bytes(photo)
    with gateway.http() as url:
        monkeypatch.setenv("SEGSERVE_URL", url)
        yield tmp_path / "coins.png"


def test_each_load_is_a_line_with_its_latencies(image: Path, command: Command) -> None:
    code, printed, complaint = command("bench", "coins", image, "--concurrency", "1,2,3", *SHORT)

    assert (code, complaint) == (0, "")
    title, head, *lines = printed.splitlines()
    assert title == "coins (coins-aaaaaaaaaa), images: 1, 0.2 each"
    assert head.split("  ")[0] == "load"
    assert [line.partition("  ")[0] for line in lines[:3]] == ["1 at once", "2 at once", "3 at once"]
    assert "at once bring at least 90 % of the best throughput; more callers only wait" in lines[3]


def test_json_has_all_figures(image: Path, command: Command) -> None:
    code, printed, _ = command("bench", "coins", image, "--rps", "50", "--json", *SHORT)

    report = json.loads(printed)
    assert code == 0
    assert report["model"] == "coins"
    (only,) = report["loads"]
    assert (only["concurrency"], only["requestsPerSecond"], only["errors"]) == (None, 50, {})
    assert only["answeredPerSecond"]["value"] > 0


def test_a_compared_model_has_a_line_and_the_ratio_another(gateway: Gateway, image: Path, command: Command) -> None:
    gateway.models["coins-next"] = gateway.models["coins"]

    code, printed, _ = command("bench", "coins", image, "--concurrency", "1", "--against", "coins-next", *SHORT)

    assert code == 0
    assert [line.split("  ")[1].strip() for line in printed.splitlines()[2:4]] == ["coins", "coins-next"]
    assert printed.splitlines()[4].split()[0] == "ratio"


def test_a_request_that_fails_is_named_and_makes_the_exit_code_1(
    gateway: Gateway, image: Path, command: Command
) -> None:
    gateway.faults.extend([Fault(), Fault(http=500, message="broken")])

    code, _, complaint = command("bench", "coins", image, "--concurrency", "1", *SHORT)

    assert code == 1
    assert "1 at once: 1 of " in complaint
    assert "requests were not answered: 1 ServerError" in complaint


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("coins", "--concurrency", "many"), 2, "--concurrency takes numbers with commas, got 'many'"),
        (("coins", "--concurrency", "1", "--rps", "1"), 1, "give concurrency or requests_per_s, not both"),
        (("penny",), 1, "unknown model: 'penny'"),
    ],
)
def test_what_cannot_be_measured_is_told(
    image: Path, command: Command, arguments: tuple[str, ...], code: int, message: str
) -> None:
    name, *options = arguments

    told = command("bench", name, image, *options, *SHORT)

    assert told[0] == code
    assert message in told[2]
