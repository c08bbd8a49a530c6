# %% [markdown]
# # Drill: the lights go out
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`. It takes two to four minutes.
#
# A model with [`spec.drift`](watch-drift.md) learns what its images and answers are like. Then the images become
# darker. The condition `Drifting` says so, and since when. Windows of five seconds are for this drill alone: a scene of
# a real camera lasts longer.

# %%
import io
import threading
import time
from pathlib import Path

import yaml
from PIL import Image, ImageEnhance

from segserve import Client

client = Client()
photo = Image.open("examples/coins/coins.png").convert("RGB")


def png(brightness: float) -> bytes:
    file = io.BytesIO()
    ImageEnhance.Brightness(photo).enhance(brightness).save(file, "PNG")
    return file.getvalue()


# %%
(manifest, *_) = yaml.safe_load_all(Path("examples/coins/model.yaml").read_text())
manifest["metadata"]["name"] = "coins-watched"
for part in (manifest["spec"]["artifact"], manifest["spec"].get("golden") or {}):
    if part and "://" not in part["uri"]:
        part["uri"] = (Path("examples/coins") / part["uri"]).resolve().as_uri()
manifest["spec"]["drift"] = {
    "window": "5s",
    "minAnswers": 10,
    "falseAlarmsPerMonth": 1,
    "reference": {"window": {"duration": "1m"}},
}
client.models.apply(manifest)
client.models.wait("coins-watched", timeout_s=300)

# %% [markdown]
# Somebody calls the model ten times a second or as often as it can answer, first with images as they always were.

# %%
images = [png(brightness) for brightness in (0.95, 1.0, 1.05)]
stop = threading.Event()


def call() -> None:
    number = 0
    while not stop.wait(0.1):
        number += 1
        client.segment(images[number % len(images)], model="coins-watched")


def wait_for(status: str, timeout_s: float = 300) -> str:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        conditions = client.models.get("coins-watched").status.conditions
        drifting = next((each for each in conditions if each.type == "Drifting"), None)
        if drifting is not None and drifting.status == status:
            return f"{drifting.reason}: {drifting.message}"
        time.sleep(1)
    raise TimeoutError(f"Drifting is not {status}: {drifting}")


caller = threading.Thread(target=call, daemon=True)
caller.start()
print(wait_for("False"))
# > AsReference: images and answers are as those of the reference: coins-watched-... from ... on

# %% [markdown]
# The lights go out. On a cluster the same condition is an event, an alert, and a line of `segserve why`.

# %%
images = [png(brightness) for brightness in (0.25, 0.3, 0.35)]
dark_s = time.monotonic()
print(wait_for("True"))
taken_s = time.monotonic() - dark_s
print(f"found after {taken_s:.0f} s, which are {taken_s / 5:.0f} windows")
# > ImagesChanged: since ...: ...brightness: PSI ...
# > found after ... s, which are ... windows

# %% [markdown]
# With the lights on again, drift would be over after six windows in a row like the reference's.

# %%
stop.set()
caller.join()
client.models.delete("coins-watched")
client.models.wait("coins-watched", for_="delete", timeout_s=300)
client.close()
