"""`make zoo-report`: serves every network of the zoo, and compares its figures with those of plain torch.

    python -m examples.zoo.report [NAME ...]

Each network goes through the real Triton and the real Envoy, with and without optional stages, on scenes that it was
not trained on. Writes report.json, the tables of bench/out/quality.md, and the pictures and plot of
docs/evidence/quality.md; ends in an error if the two disagree.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import yaml

from bench.platform import platform
from examples.zoo import pages, pictures, plots
from examples.zoo.compare import ask, compare
from examples.zoo.evaluate import islands
from examples.zoo.networks import NETWORKS
from examples.zoo.training import HERE
from examples.zoo.variants import AS_IT_IS, variants
from examples.zoo.world import draw_scenes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.zoo.world import Scene

REPORT: Final = HERE / "report.json"
SCENES, SEED = 40, 1000  # networks are trained with other seeds
DIGITS: Final = 5
SIZES: Final = ((128, 128), (112, 144), (120, 150), (160, 160))


def eval_scenes() -> list[Scene]:
    """Return the scenes of the report."""
    return draw_scenes(SCENES, SEED, SIZES)


def part_of(network: str, scenes: Sequence[Scene], folder: Path) -> dict[str, Any]:
    """Serve one network, return its part of the report and draw its picture."""
    ways = variants(network)
    path = folder / f"{network}.yaml"
    path.write_text(yaml.safe_dump_all(way.resource(network) for way in ways))
    part: dict[str, Any] = {}
    with platform(path) as running:
        for way in ways:
            results = ask(running.url, way, network, scenes)
            one = compare(running.url, way, network, scenes, results)
            part[way.name] = {
                "served": {figure: round(value, DIGITS) for figure, value in one.served.items()},
                "offline": {figure: round(value, DIGITS) for figure, value in one.offline.items()},
                "otherPixels": one.other_pixels,
                "temperature": way.temperature,
                "complaints": one.complaints(way.name),
            }
            if way.name == AS_IT_IS:
                shown = [scenes[index] for index in pictures.SHOWN]
                pictures.write(network, shown, ask(running.url, way, network, shown, pictures.LEAST_SCORE))
            print(f"{network}, {way.name}: {part[way.name]['complaints'] or 'agree'}", flush=True)
    return part


def main() -> None:
    """Make the report of all networks, or of those named, whose parts are then replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    names = parser.parse_args().names or list(NETWORKS)
    torch.set_num_threads(1)
    scenes = eval_scenes()
    parts: dict[str, Any] = json.loads(REPORT.read_text())["networks"] if REPORT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            parts[name] = part_of(name, scenes, Path(folder))
    parts = {name: parts[name] for name in NETWORKS if name in parts}
    truth = islands(scene.labels for scene in scenes)
    report = {"scenes": SCENES, "seed": SEED, "sizes": SIZES, "islands": truth, "networks": parts}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    pages.write(report)
    plots.draw(report)
    complaints = [
        f"{name}, {way}: {complaint}"
        for name, part in parts.items()
        for way, one in part.items()
        for complaint in one["complaints"]
    ]
    if complaints:
        sys.exit("served and offline disagree:\n" + "\n".join(complaints))


if __name__ == "__main__":
    main()
