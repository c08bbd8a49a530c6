"""What the page of `segserve ui` costs: 50 viewers beside requests, the first paint, and a redraw of 12 megapixels.

    python -m bench.ui                          # writes bench/out/ui.json

Requests through the gateway with viewers and without take turns; viewers are paused by SIGSTOP meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from PIL import Image
from playwright.sync_api import sync_playwright

from bench.closed_loop import measure
from bench.platform import MODELS, ROOT, Running, platform
from bench.smoke import output, sized
from bench.tiled import scene
from segserve import Client

PHOTO = MODELS.parent / "coins.png"
OUT = output("bench/out/ui.json")
MODEL: Final = "coins-instances"
VIEWERS: Final = sized(50, 2)
POLL_S: Final = 2.0
POLLS: Final = ("/api/models", "/api/overview", "/api/rollouts")
SETTLE_S: Final = sized(3.0, 1.0)
"""After viewers begin again: all of them are late then, and read at once."""
LARGE: Final = sized((3000, 4000), (300, 400))
PAINTS: Final = sized(5, 1)
REDRAW: Final = """async () => {
  const slider = document.querySelector("#slider-opacity"), took = [];
  for (let turn = 0; turn < 30; turn++) {
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    slider.value = turn % 2 ? 0.4 : 0.6;
    slider.dispatchEvent(new Event("input"));
    document.querySelector("canvas.top").getContext("2d").getImageData(0, 0, 1, 1);  // waits for what was drawn
    took.push(performance.now() - began);
  }
  return took;
}"""
PAINT: Final = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


@contextmanager
def page_server(running: Running) -> Iterator[tuple[str, int]]:
    """Run `segserve ui` for a platform, and yield its address with the token, and its process."""
    command = [sys.executable, "-m", "segserve_platform.cli", "ui", "--no-open", "--local"]
    environment = os.environ | {"SEGSERVE_STATE": str(running.state), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1], process.pid
        finally:
            process.terminate()


async def view(url: str) -> None:
    """Poll as 50 open pages do, each on a connection of its own, until the process ends.

    By hand: an HTTP client takes more processor time than the server.
    """
    host = url.partition("//")[2].partition("/")[0]
    token = url.partition("token=")[2]

    async def viewer(number: int) -> None:
        await asyncio.sleep(POLL_S * number / VIEWERS)
        head = f"GET {POLLS[number % len(POLLS)]} HTTP/1.1\r\nHost: {host}\r\n"
        request = f"{head}Authorization: Bearer {token}\r\n\r\n".encode()
        while True:
            reader, writer = await asyncio.open_connection(*host.split(":"))
            # The server closes the connections of paused viewers.
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    writer.write(request)
                    answer = await reader.readuntil(b"\r\n\r\n")
                    assert answer.startswith(b"HTTP/1.1 200 "), answer
                    await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].split()[0]))
                    await asyncio.sleep(POLL_S)
            writer.close()

    await asyncio.gather(*(viewer(number) for number in range(VIEWERS)))


def viewers_cost(running: Running, url: str, server: int, rounds: int, calls: int) -> dict[str, Any]:
    """Return images/s and p95 with and without viewers, in turns, and the medians of both ratios over the turns."""
    found: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    command = [sys.executable, "-m", "bench.ui", "--view", url]
    with Client(running.url, timeout_s=60) as client, subprocess.Popen(command, cwd=ROOT) as viewers:
        processes, cores = [psutil.Process(server), psutil.Process(viewers.pid)], list[list[float]]()
        try:
            time.sleep(2 * SETTLE_S)
            for turn in range(rounds):
                for name in ("without", "with")[:: 1 if turn % 2 else -1]:
                    viewers.send_signal(signal.SIGCONT if name == "with" else signal.SIGSTOP)
                    time.sleep(SETTLE_S)
                    assert viewers.poll() is None, "the viewers have ended"
                    call = {name: lambda: client.segment(PHOTO, model=MODEL)}
                    cpu_s = [sum(process.cpu_times()[:2]) for process in processes]
                    took = measure(call, concurrency=2, rounds=1, calls=calls)[name]
                    found[name].append((took.per_second, took.percentile(95)))
                    if name == "with":
                        ended_s = [sum(process.cpu_times()[:2]) for process in processes]
                        cores.append([(end - begin) / took.seconds for begin, end in zip(cpu_s, ended_s, strict=True)])
        finally:
            viewers.kill()
    without, with_viewers = (np.array(found[name]) for name in ("without", "with"))
    ratios = np.median(with_viewers / without, axis=0)
    return {
        "viewers": VIEWERS,
        "rounds": rounds,
        **{
            name: {"images_per_s": round(float(rate), 2), "p95_ms": round(float(p95), 1)}
            for name, (rate, p95) in (
                ("without", np.median(without, axis=0)),
                ("with", np.median(with_viewers, axis=0)),
            )
        },
        "ratio_images_per_s": round(float(ratios[0]), 3),
        "cores_of_page_and_of_viewers": [round(float(value), 3) for value in np.median(cores, axis=0)],
        "ratio_p95": round(float(ratios[1]), 3),
        "spread_images_per_s_without": [round(float(value), 2) for value in np.percentile(without[:, 0], (10, 90))],
    }


def browser_times(url: str, folder: Path) -> dict[str, Any]:
    """Return the first contentful paint in ms, and the time of a redraw of an answer to 12 megapixels."""
    pixels = np.load(scene(folder / "large.npy", max(LARGE)), mmap_mode="r")[: LARGE[0], : LARGE[1]]
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "large.jpg", quality=92)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(url)
        page.get_by_role("heading", name="Playground").wait_for()
        paints = []
        for _ in range(PAINTS):
            page.reload()
            page.get_by_role("heading", name="Playground").wait_for()
            page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
            paints.append(float(page.evaluate(PAINT)))
        page.get_by_role("combobox", name="Model").select_option(MODEL)
        page.locator("input[type=file]").set_input_files(folder / "large.jpg")
        page.get_by_role("img", name=f"{MODEL} found").wait_for()
        objects = int(page.locator("canvas.top").get_attribute("data-shown") or 0)
        canvas = page.evaluate(
            "[document.querySelector('canvas.top').width, document.querySelector('canvas.top').height]"
        )
        took = page.evaluate(REDRAW)
        browser.close()
    return {
        "first_contentful_paint_ms": round(float(np.median(paints)), 1),
        "redraw": {
            "image": list(LARGE),
            "objects": objects,
            "canvas": canvas,
            "p50_ms": round(float(np.median(took)), 1),
            "p95_ms": round(float(np.percentile(took, 95)), 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=sized(12, 1))
    parser.add_argument("--calls", type=int, default=sized(120, 4))
    parser.add_argument("--view", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.view:
        asyncio.run(view(arguments.view))
        return
    with (
        tempfile.TemporaryDirectory(prefix="segserve-bench-") as folder,
        platform(MODELS) as running,
        page_server(running) as (url, server),
    ):
        figures = browser_times(url, Path(folder))
        figures["fifty_viewers"] = viewers_cost(running, url, server, arguments.rounds, arguments.calls)
    print(json.dumps(figures, indent=2))
    OUT.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
