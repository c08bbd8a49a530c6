"""Evidently and Alibi Detect with their defaults on the brightness of `bench.drift`: `PYTHON -P bench/drift_peers.py`.

PYTHON is the interpreter of an environment of their own: `pip install evidently==0.6.7 alibi-detect==0.12.0`; without
`-P` it takes `bench/operator` for a module of Python. Both get the same brightness as segserve in `bench.drift`, twelve
answers a minute, a reference of one day, and then windows of an hour or of a day, as a schedule would give them.
Evidently chooses its test by the number of rows (for these, Wasserstein's distance of 0.1 standard deviations); Alibi
Detect's is Kolmogorov's and Smirnov's at p = 0.05. The figures go to bench/out/drift_peers.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from alibi_detect.cd import KSDrift
from evidently.calculations.stattests import get_stattest
from evidently.core import ColumnType

OUT: Final = Path(__file__).parent / "out/drift_peers.json"
ANSWERS_PER_H: Final = 720
FALLS: Final = (0.3, 0.15, 0.1, 0.05)
WORLDS: Final = {"equal days": (0.0, 1), "scenes of twenty answers": (0.0, 20), "day and night": (0.2, 1)}
"""How far day and night differ, and how many answers in a row have one brightness."""
DAYS: Final = 30
RUNS: Final = 3
HOURS: Final = (1, 24)


def brightness(hours: np.ndarray, world: str, fall: float, random: np.random.Generator) -> np.ndarray:
    """Return the brightness of the answers in each of some hours."""
    swing, lasting = WORLDS[world]
    at_d = (hours[:, None] + np.arange(ANSWERS_PER_H) / ANSWERS_PER_H) / 24
    mean = 0.45 + swing / 2 * np.sin(2 * np.pi * at_d) - fall
    scenes = random.normal(0.0, 0.08, (len(hours), ANSWERS_PER_H // lasting))
    return np.clip(mean + np.repeat(scenes, lasting, axis=1), 0.0, 0.999)


def evidently(reference: np.ndarray) -> Callable[[np.ndarray], bool]:
    """Return Evidently's judgement of a window."""
    of_reference = pd.Series(reference)

    def judge(window: np.ndarray) -> bool:
        values = pd.Series(window)
        test = get_stattest(of_reference, values, ColumnType.Numerical, None)
        return bool(test(of_reference, values, ColumnType.Numerical, None).drifted)

    return judge


def alibi_detect(reference: np.ndarray) -> Callable[[np.ndarray], bool]:
    """Return Alibi Detect's judgement of a window."""
    detector = KSDrift(reference[:, None], p_val=0.05)
    return lambda window: bool(detector.predict(window[:, None])["data"]["is_drift"])


JUDGES: Final = {"Evidently": evidently, "Alibi Detect": alibi_detect}


def result(name: str, length_h: int, world: str) -> dict[str, Any]:
    """Return how many windows without a fall alarm, and the hours until each fall is found."""
    random = np.random.default_rng(0)
    judge = JUDGES[name](brightness(np.arange(24), world, 0.0, random).ravel())
    windows = [np.arange(first, first + length_h) for first in range(24, 24 * DAYS, length_h)]
    false = sum(judge(brightness(hours, world, 0.0, random).ravel()) for hours in windows)
    found = {}
    for fall in FALLS:
        firsts = []
        for _ in range(RUNS):
            alarms = (judge(brightness(hours, world, fall, random).ravel()) for hours in windows[: 240 // length_h])
            number = next((number for number, alarm in enumerate(alarms, start=1) if alarm), None)
            firsts.append(number and number * length_h)
        found[str(fall)] = firsts
    return {"peer": name, "hours": length_h, "world": world, "windows": len(windows), "false": false, "found": found}


def main() -> None:
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


if __name__ == "__main__":
    main()
