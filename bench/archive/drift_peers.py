"""Evidently and Alibi Detect with their defaults on the answers of `bench.archive.drift`: `PYTHON -m bench.archive.drift_peers`.

PYTHON is the interpreter of an environment of their own: `pip install evidently==0.6.7 alibi-detect==0.12.0`. Evidently
chooses its test by the numbers of rows and of different values (here Wasserstein's distance of 0.1 standard deviations,
and Jensen's and Shannon's of 0.1 for what is 0 or 1); Alibi Detect's is Kolmogorov's and Smirnov's at p = 0.05, divided
by the number of columns.

Without an argument both get the simulated brightness of `bench.archive.drift` alone, twelve answers a minute, a reference of
one day, and then windows of an hour or of a day, as a schedule would give them. The figures go to
bench/out/drift_peers.json.

With a FILE of `.venv/bin/python -m bench.archive.drift --values FILE` they get its planted drifts: the same answers of the same
months as segserve, its reference of two days, and windows of five minutes, an hour or a day (ten minutes). Columns are
what segserve's histograms count of an answer. Evidently's preset says that a data set drifts if half of its columns do;
that any does is shown beside it. The figures go to bench/out/drift_peers_planted.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from alibi_detect.cd import KSDrift
from evidently.calculations.stattests import get_stattest
from evidently.core import ColumnType

from bench.archive.drift_months import DAYS, DRIFTS, PLANTED_DAY, RUNS, WINDOW_S, Month

OUT: Final = Path(__file__).parents[1] / "out/drift_peers.json"
PLANTED_OUT: Final = OUT.with_name("drift_peers_planted.json")
ANSWERS_PER_H: Final = 720
FALLS: Final = (0.3, 0.15, 0.1, 0.05)
WORLDS: Final = {"equal days": (0.0, 1), "scenes of twenty answers": (0.0, 20), "day and night": (0.2, 1)}
"""How far day and night differ, and how many answers in a row have one brightness."""
HOURS: Final = (1, 24)
REFERENCE_WINDOWS: Final = 2 * 86400 // WINDOW_S
DRIFT_SHARE: Final = 0.5
"""Columns that must drift, by Evidently's preset."""
LENGTHS: Final = {"5 min": (1, 1), "1 h": (12, RUNS), "1 d": (288, RUNS)}
"""Windows of segserve in one of the peers', and months without a drift that are judged by it."""
Judge: TypeAlias = Callable[[np.ndarray], dict[str, bool]]
"""The verdicts on a window, shaped (answers, columns)."""


def brightness(hours: np.ndarray, world: str, fall: float, random: np.random.Generator) -> np.ndarray:
    """Return the brightness of the answers in each of some hours."""
    swing, lasting = WORLDS[world]
    at_d = (hours[:, None] + np.arange(ANSWERS_PER_H) / ANSWERS_PER_H) / 24
    mean = 0.45 + swing / 2 * np.sin(2 * np.pi * at_d) - fall
    scenes = random.normal(0.0, 0.08, (len(hours), ANSWERS_PER_H // lasting))
    return np.clip(mean + np.repeat(scenes, lasting, axis=1), 0.0, 0.999)


def evidently(reference: np.ndarray) -> Judge:
    """Return Evidently's judgement: that of its preset, and whether any column drifts."""
    columns = [pd.Series(each) for each in reference.T]
    tests = [get_stattest(each, each, ColumnType.Numerical, None) for each in columns]

    def judge(window: np.ndarray) -> dict[str, bool]:
        drifted = [
            bool(test(column, pd.Series(values), ColumnType.Numerical, None).drifted)
            for test, column, values in zip(tests, columns, window.T, strict=True)
        ]
        return {"Evidently": bool(np.mean(drifted) >= DRIFT_SHARE), "Evidently, any column": any(drifted)}

    return judge


def alibi_detect(reference: np.ndarray) -> Judge:
    """Return Alibi Detect's judgement."""
    detector = KSDrift(reference, p_val=0.05)
    return lambda window: {"Alibi Detect": bool(detector.predict(window)["data"]["is_drift"])}


JUDGES: Final = {"Evidently": evidently, "Alibi Detect": alibi_detect}


def result(name: str, length_h: int, world: str) -> dict[str, Any]:
    """Return how many windows without a fall alarm, and the hours until each fall is found."""
    random = np.random.default_rng(0)
    judge = JUDGES[name](brightness(np.arange(24), world, 0.0, random).reshape(-1, 1))
    windows = [np.arange(first, first + length_h) for first in range(24, 24 * DAYS, length_h)]

    def alarms(hours: np.ndarray, fall: float) -> bool:
        return judge(brightness(hours, world, fall, random).reshape(-1, 1))[name]

    false = sum(alarms(hours, 0.0) for hours in windows)
    found = {}
    for fall in FALLS:
        firsts = []
        for _ in range(RUNS):
            number = next((at for at, hours in enumerate(windows[: 240 // length_h], 1) if alarms(hours, fall)), None)
            firsts.append(number and number * length_h)
        found[str(fall)] = firsts
    return {"peer": name, "hours": length_h, "world": world, "windows": len(windows), "false": false, "found": found}


def simulated() -> None:
    """Compare on a simulated brightness."""
    results = []
    for name in JUDGES:
        for length_h in HOURS:
            for world in WORLDS:
                each = result(name, length_h, world)
                results.append(each)
                hours = "; ".join(f"{fall}: {each['found'][fall]} h" for fall in each["found"])
                print(
                    f"{name}, {length_h} h, {world}: {each['false']} of {each['windows']} false; {hours}",
                    flush=True,
                )
    OUT.write_text(json.dumps(results, indent=2) + "\n")


def tables(file: Path) -> dict[str, list[list[np.ndarray]]]:
    """Return the columns of each drift's answers, by level of brightness and scene, without those that never change."""
    values = json.loads(file.read_text())
    usual = pd.DataFrame([each for level in values["none"] for each in level])
    names = [name for name in usual if usual[name].nunique() > 1]
    return {
        drift: [[np.array([each[name] for name in names]) for each in level] for level in levels]
        for drift, levels in values.items()
    }


def peer_windows(drawn: list[np.ndarray], length: int) -> Iterable[tuple[int, np.ndarray]]:
    """Yield a peer's windows after the reference: the number of segserve's last window in each, and its answers."""
    for first in range(REFERENCE_WINDOWS, len(drawn) - length + 1, length):
        yield first + length - 1, np.concatenate(drawn[first : first + length])


def planted(of: dict[str, list[list[np.ndarray]]], drift: str, seed: int) -> list[dict[str, Any]]:
    """Return, by peer and length of its windows, alarms of a month without a drift, or minutes until one is found."""
    month = Month(of["none"], of[drift], DRIFTS[drift], np.random.default_rng((seed, 1)))
    drawn = [
        np.concatenate([np.tile(values, (times, 1)) for values, times in month.window(number)])
        for number in range(DAYS * 86400 // WINDOW_S)
    ]
    planted_s, found = PLANTED_DAY * 86400, []
    for start in JUDGES.values():
        judge = start(np.concatenate(drawn[:REFERENCE_WINDOWS]))
        for length, (windows_each, months) in LENGTHS.items():
            if drift == "none" and seed < months:
                verdicts = [judge(window) for _, window in peer_windows(drawn, windows_each)]
                for name in verdicts[0]:
                    alarms = sum(each[name] for each in verdicts)
                    found.append({"peer": name, "window": length, "windows": len(verdicts), "alarms": int(alarms)})
            elif drift != "none":
                minutes: dict[str, int | None] = {}
                for number, window in peer_windows(drawn, windows_each):
                    if number * WINDOW_S < planted_s:
                        continue
                    for name, alarm in judge(window).items():
                        minutes.setdefault(name, None)
                        if alarm and minutes[name] is None:
                            minutes[name] = round((number * WINDOW_S - planted_s) / 60)
                    if None not in minutes.values():
                        break
                found += [{"peer": name, "window": length, "minutes": each} for name, each in minutes.items()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("values", type=Path, nargs="?", metavar="FILE", help="of `bench.archive.drift --values FILE`")
    file = parser.parse_args().values
    if file is None:
        simulated()
        return
    of, results = tables(file), []
    for drift in reversed(DRIFTS):  # months without one take longest
        for seed in range(RUNS):
            for each in planted(of, drift, seed):
                results.append({"drift": drift, "seed": seed, **each})
                print(json.dumps(results[-1]), flush=True)
    PLANTED_OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
