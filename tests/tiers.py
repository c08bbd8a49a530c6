"""The tiers of the tests: what each runs, and the record of its last run.

    python tests/tiers.py run NAME [MINUTES]    run a tier, look a second time at what failed, write its record
    python tests/tiers.py list                  what their records are worth at this commit

Records, `tests/records/NAME.json`, are committed: a tier that nobody runs rots. A tier that every change runs writes
one only if it skipped nothing (SEGSERVE_TEST_ALL); what it said last is in `out/`.

A record counts at every commit at which the files are the same that the run was of: the folders that its tier covers,
and whatever else of the project its tests opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from second_look import Results, look_again, run
from selection import MUST_RUN_ALL
from tools import OF_THE_MACHINE

ROOT: Final = Path(__file__).parent.parent
OUT: Final = ROOT / "out"
RECORDS: Final = ROOT / "tests/records"
# One more process than there are cores: tests on real servers wait half of their time. Each file goes to one process,
# so that what a module starts is started once.
SPREAD: Final = (
    f"--numprocesses={min(8, 1 + (os.cpu_count() or 1))}",
    *("--dist=loadfile", "--no-loadscope-reorder"),
)
PRODUCT: Final = ("client/src", "model_repo_builder/src", "operator/src")
# Records are of the rest.
NOT_COVERED: Final = ":(exclude)tests/records"
EVERYBODYS: Final = ("tests/fakes", "tests/networks", "pyproject.toml", "constraints.txt")
_QUICK_COVERS: Final = (*PRODUCT, "bench", "charts", "crds", "docs", "examples", "images", "tests", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Tier:
    """Tests that are run together, and the folders a change of which makes their last run say nothing."""

    title: str
    covers: Sequence[str]
    marks: str
    paths: Sequence[str] = ()
    options: Sequence[str] = SPREAD
    max_failures: int = 25
    environment: str = ".venv"
    repeated: bool = False
    """Whether it is run with fresh seeds until its minutes are over."""
    busy: bool = False
    """Whether it is run while every core is busy with something else."""
    is_long: bool = True
    """Whether it is not run for every change."""


# To collect all unit tests would take longer than to run these.
_SAME: Final = tuple(
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests/unit").rglob("test_*.py"))
    if "mark.same" in path.read_text(encoding="utf-8")
)
_QUICK: Final = "not same and not thorough and not needs and not cluster"


def _native(title: str) -> Tier:
    files = (
        *("agent", "bad_input", "box_families", "changes", "crashes", "engines", "hugging_face_families", "launcher"),
        *("memory", "overload", "rollouts", "torchvision_families", "traces"),
    )
    return Tier(
        title,
        (*PRODUCT, *EVERYBODYS, "examples", "tests/e2e"),
        "platform and not thorough and not cluster",
        paths=tuple(f"tests/e2e/test_{name}.py" for name in files),
        options=(*SPREAD, "--needs=triton"),
    )


def _python(version: str) -> Tier:
    return Tier(
        f"quick tests on Python {version}, without the embedded Triton and Envoy",
        _QUICK_COVERS,
        f"{_QUICK} and not platform",
        environment=f".venv-python{version}",
    )


def _cluster(title: str, *, busy: bool = False) -> Tier:
    return Tier(
        title,
        (*PRODUCT, *EVERYBODYS, "charts", "crds", "images", "tests/cluster", "tests/contract", "tests/e2e/cluster"),
        "cluster and not neighbours",
        options=(),
        busy=busy,
    )


TIERS: Final[Mapping[str, Tier]] = {
    "same": Tier(
        "what is generated beside what it is generated from, and all lists beside what they list",
        (*PRODUCT, "charts", "crds", "docs", "examples", "images", "tests", "pyproject.toml"),
        "same",
        paths=_SAME,
        is_long=False,
    ),
    "test": Tier(
        "quick tests, and the core on the real Triton and Envoy",
        _QUICK_COVERS,
        f"{_QUICK} and (core or not platform)",
        is_long=False,
    ),
    "platform": Tier(
        "the rest on the real Triton and Envoy",
        (*PRODUCT, *EVERYBODYS, "examples", "tests/e2e", "tests/contract", "tests/hostile"),
        f"platform and not core and {_QUICK}",
    ),
    "native-24.10": _native("Triton 24.10 with its own ONNX Runtime backend"),
    "native-26.04": _native("a whole Triton 26.04"),
    "oracles": Tier(
        "torchvision, Prometheus, registries, object stores, annotation tools",
        (*PRODUCT, *EVERYBODYS, "charts", "tests/contract", "tests/e2e", "tests/oracles", "tests/parity", "tests/unit"),
        "needs and not cluster",
    ),
    "numpy1": Tier(
        "kernels, stages and what runs inside Triton, on numpy 1.26",
        ("model_repo_builder/src", "tests/unit/builder", "pyproject.toml", "constraints.txt"),
        "not same and not needs and not platform",
        paths=(
            "tests/unit/builder/kernels",
            *("tests/unit/builder/test_*stage*.py", "tests/unit/builder/test_backend*.py"),
            *("tests/unit/builder/test_inference*.py", "tests/unit/builder/test_preprocess*.py"),
        ),
        environment=".venv-numpy1",
    ),
    "python3.12": _python("3.12"),
    "python3.13": _python("3.13"),
    "cluster": _cluster("a real Kubernetes"),
    "cluster-1.35": _cluster("Kubernetes 1.35"),
    "neighbours": Tier(
        "what users have beside us, on a real Kubernetes",
        (
            *("operator/src", *EVERYBODYS, "charts", "crds", "examples/argocd", "images"),
            *("tests/cluster", "tests/e2e/cluster/neighbours"),
        ),
        "cluster and neighbours",
        options=(),
    ),
    "bench": Tier(
        "benches and demos, each at its smallest",
        (*PRODUCT, *EVERYBODYS, "Makefile", "bench", "examples", "tests/faults", "tests/oracles", "tests/smoke"),
        "not cluster",
        paths=("tests/smoke/test_*.py",),
        options=(),
    ),
    "thorough": Tier(
        "whole sweeps of what quick tests sample",
        (*PRODUCT, *EVERYBODYS, "tests/contract", "tests/convergence", "tests/hostile", "tests/unit"),
        "thorough and not needs and not cluster",
    ),
    "busy": Tier(
        "the real Triton and Envoy while every core is busy with something else",
        (*PRODUCT, *EVERYBODYS, "examples", "tests/e2e", "tests/contract"),
        "platform and not cluster",
        paths=("tests/e2e", "tests/contract"),
        busy=True,
    ),
    "busy-cluster": _cluster("a real Kubernetes while every core is busy with something else", busy=True),
    "edits": Tier(
        "random edits of resources, with fresh seeds",
        ("operator/src", *EVERYBODYS, "tests/convergence"),
        "hypothesis",
        paths=("tests/convergence/test_mutations.py",),
        options=(*SPREAD, "--dist=load", "--hypothesis-profile=edits"),
        repeated=True,
    ),
    "properties": Tier(
        "property tests with fresh seeds",
        (*PRODUCT, *EVERYBODYS, "tests/contract", "tests/convergence", "tests/hostile", "tests/parity", "tests/unit"),
        "hypothesis and not platform and not cluster",
        options=(*SPREAD, "--hypothesis-profile=fuzz"),
        repeated=True,
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Run a tier, or list them all."""
    match arguments:
        case ["run", name, *minutes] if name in TIERS and len(minutes) <= 1:
            return run_tier(name, float(minutes[0]) if minutes else 0.0)
        case ["list"]:
            print("\n".join([*(f"{name:<13}{standing(name)}" for name in TIERS), whole_standing()]))
            return 0
    print(f"{__doc__}\nTiers: {', '.join(TIERS)}", file=sys.stderr)
    return 2


def run_tier(name: str, minutes: float) -> int:
    """Run a tier; return 0 if everything passed, at the second look at the latest."""
    tier, began_s = TIERS[name], time.monotonic()
    OUT.mkdir(exist_ok=True)
    not_run, opened = OUT / "not-run.txt", OUT / "opened.txt"
    for each in (not_run, opened):
        each.unlink(missing_ok=True)
    python = [str(ROOT / tier.environment / "bin/python"), "-m", "pytest"]
    paths = [str(path) for pattern in tier.paths for path in sorted(ROOT.glob(pattern))]
    command = [
        *(*python, *tier.options, *paths, f"--maxfail={tier.max_failures}", f"-m={tier.marks}", "--durations=25"),
        *(f"--not-run={not_run}", "--rest-by=make test-all", f"--opened={opened}"),
    ]
    load, before = os.getloadavg()[0], _hashes(["."])
    with busy_cores() if tier.busy else ExitStack():
        results = run(command)
        while tier.repeated and not results.broken and time.monotonic() - began_s < minutes * 60:
            results.add(run(command))
        if not tier.repeated:
            look_again(results, python)
    after = _hashes([*tier.covers, *_also_opened(name)])
    if changed := sorted(path for path, found in after.items() if before.get(path) != found):
        results.broken.append(f"changed while the tests ran: {', '.join(changed)}")
    if os.environ.get(MUST_RUN_ALL) and results.having("skipped"):
        results.broken.append(f"{len(results.having('skipped'))} skipped, and {MUST_RUN_ALL} is set")
    # What is committed is of a whole tier: a test that is skipped for days hides what it would find.
    if tier.is_long and (why := {*results.skipped.values()} - {tool.lack for tool in OF_THE_MACHINE}):
        results.broken.append(f"tests were skipped: {', '.join(sorted(why))}")
    record = write_record(name, results, time.monotonic() - began_s, load)
    if name == "same" and any("Timeout" not in text for text in results.failures.values()):
        print("`make write` writes what is generated anew; read the difference. A list is completed by hand.")
    if name == "test":
        old = [f"{each:<13}{standing(each)}" for each, tier in TIERS.items() if tier.is_long and not is_current(each)]
        print("\n".join(["==== LONG TIERS OLDER THAN WHAT THEY COVER ====", *(old or ["none"])]))
    print(summary(record), flush=True)
    return 0 if record["green"] else 1


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy; the processes that do end with the context."""
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def write_record(name: str, results: Results, took_s: float, load: float = 0.0) -> dict[str, Any]:
    """Write the record of a run, the page of all records, and `out/flaky.json`; return the record.

    `load` is the machine's before the run.
    """
    record = record_of(name, results, took_s, load)
    OUT.mkdir(exist_ok=True)
    paths = [OUT / ("report.json" if name == "test" else f"{name}.json")]
    if TIERS[name].is_long or os.environ.get(MUST_RUN_ALL):
        RECORDS.mkdir(exist_ok=True)
        paths.append(RECORDS / f"{name}.json")
    for path in paths:
        path.write_text(json.dumps(record, indent=1) + "\n")
    if len(paths) > 1:
        (RECORDS / "README.md").write_text(page())
    (OUT / "flaky.json").write_text(json.dumps(results.flaky, indent=1))
    return record


def record_of(name: str, results: Results, took_s: float, load: float) -> dict[str, Any]:
    """Return what a run is remembered by."""
    not_run, also = OUT / "not-run.txt", _also_opened(name)
    folders: defaultdict[str, dict[str, float]] = defaultdict(lambda: {"tests": 0, "minutes": 0.0})
    for test, seconds in results.seconds.items():
        folder = folders["/".join(Path(test.partition("::")[0]).parent.parts[:3])]
        folder["tests"] += 1
        folder["minutes"] += seconds / 60
    slowest = sorted(results.seconds, key=results.seconds.__getitem__, reverse=True)[:25]
    return {
        "tier": name,
        "commit": _git("rev-parse", "HEAD").strip(),
        "digest": digest([*TIERS[name].covers, *also]),
        "alsoOpened": also,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "green": not results.having("failed") and not results.broken,
        "machine": (
            f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, load {load:.1f} before; "
            f"{platform.system()} {platform.machine()}"
        ),
        "minutes": round(took_s / 60, 1),
        "passed": len(results.having("passed")),
        "failed": _without_folders(results.failures),
        "flaky": _without_folders(results.flaky),
        "quarantined": {test: results.outcomes[test] for test in results.having("xfailed", "xpassed")},
        "broken": results.broken,
        "leftOut": list(dict.fromkeys(not_run.read_text().splitlines())) if not_run.exists() else [],
        "folders": {name: {**sums, "minutes": round(sums["minutes"], 2)} for name, sums in sorted(folders.items())},
        "slowest": {test: round(results.seconds[test], 1) for test in slowest},
    }


def _also_opened(name: str) -> list[str]:
    """Return the files that the tests of the last run opened, without the folders that the tier covers."""
    path = OUT / "opened.txt"
    opened = set(path.read_text().splitlines() if path.exists() else ())
    return sorted(opened & _hashes(["."]).keys() - _hashes(TIERS[name].covers).keys())


def _without_folders(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the texts without what is only of this machine: the folders of the project, the user and the run."""
    folders = re.compile(rf"{re.escape(str(ROOT))}/|{re.escape(tempfile.gettempdir())}/pytest-of-[^/]+/pytest-\d+/")
    return {test: folders.sub("", text).replace(str(Path.home()), "~") for test, text in texts.items()}


def summary(record: Mapping[str, Any]) -> str:
    """Return the last words of a run."""
    lines = []
    if record["flaky"]:
        lines.append("==== FLAKY: failed among the others, passed alone; the note of the change names them ====")
        lines += [f"{test}\n  {text}".replace("\n", "\n  ") for test, text in record["flaky"].items()]
    lines.append(f"==== SUMMARY OF {record['tier']!r}: {'GREEN' if record['green'] else 'RED'} ====")
    for folder, sums in record["folders"].items():
        lines.append(f"{sums['minutes']:8.2f} min {sums['tests']:6.0f} tests  {folder}")
    lines += [f"failed: {test}" for test in record["failed"]]
    lines += [f"broken: {text}" for text in record["broken"]]
    flaky, quarantined = len(record["flaky"]), len(record["quarantined"])
    lines.append(f"{record['minutes']} minutes; of those that passed {flaky} flaky; {quarantined} quarantined")
    lines.append(f"{record['passed']} passed, {len(record['failed'])} failed")
    return "\n".join(lines)


def is_current(name: str) -> bool:
    """Return whether a tier has been run since what it covers has changed."""
    record = _record(name)
    return record is not None and record["digest"] == digest([*TIERS[name].covers, *record.get("alsoOpened", ())])


def standing(name: str) -> str:
    """Return what the record of a tier is worth now, in words."""
    record = _record(name)
    if record is None:
        return f"no record            {TIERS[name].title}"
    age = "current" if is_current(name) else "older than what it covers"
    verdict = "green" if record["green"] else f"RED ({len(record['failed'])} failed)"
    counts = f"{record['passed']} passed, {len(record['leftOut'])} not run"
    return (
        f"{verdict}, {age}; {counts} in {record['minutes']} minutes at {record['commit'][:9]}, {record['ended'][:10]}"
    )


def whole_standing() -> str:
    """Return whether every tier is green at this commit, in words."""
    records = {name: _record(name) for name in TIERS}
    lacking = [name for name, record in records.items() if not (record and record["green"] and is_current(name))]
    commit = _git("rev-parse", "--short=9", "HEAD").strip()
    if _git("status", "--porcelain", "--", ".", NOT_COVERED):
        commit += ", with changes that are not committed"
    return f"not all green at {commit}: {', '.join(lacking)}" if lacking else f"all green at {commit}"


def page() -> str:
    """Return the page of the records in Markdown."""
    rows = [
        f"| {name} | {'green' if record['green'] else 'RED'} | {record['passed']} | {len(record['failed'])} "
        f"| {len(record['flaky'])} | {record['minutes']} | {record['commit'][:9]} | {record['ended'][:10]} "
        f"| {record.get('machine', '')} |"
        for name in TIERS
        if (record := _record(name))
    ]
    lines = [
        "# The last run of each tier",
        "",
        "Written by `tests/tiers.py`. A record counts at every commit at which the files are the same that the run was",
        "of: the folders that its tier covers, and what else of the project its tests opened. `make tiers` compares",
        'them, and says "all green" if every tier has a green record that counts.',
        "",
        "| tier | verdict | passed | failed | flaky | minutes | commit | ended | machine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *rows]) + "\n"


def _record(name: str) -> dict[str, Any] | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def digest(folders: Sequence[str]) -> str:
    """Return the SHA-256 of all files in some folders that git has, or would take, with their paths."""
    lines = (f"{path}\0{found}\n" for path, found in sorted(_hashes(folders).items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hashes(folders: Sequence[str]) -> dict[str, str]:
    listed = _git("ls-files", "-z", "-co", "--exclude-standard", "--", *folders, NOT_COVERED).split("\0")
    paths = {path for path in listed if path and (ROOT / path).is_file()}
    return {path: hashlib.sha256((ROOT / path).read_bytes()).hexdigest() for path in paths}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
