# %% [markdown]
# # Drill: one camera of four becomes noisy
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`. It takes two to five minutes.
#
# Callers say which camera an image is of, in a header. A model with `spec.metrics.slices` counts the cameras apart, and
# with [`spec.drift`](watch-drift.md) each is compared with its own past. Then the sensor of one fails.
# Windows of five seconds are for this drill alone: a scene of a real camera lasts longer.

# %%
import io
import threading
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageEnhance

from segserve import Client

CAMERAS = ("north", "east", "south", "west")
client = Client()
photo = Image.open("examples/coins/coins.png").convert("RGB")


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# %%
(manifest, *_) = yaml.safe_load_all(Path("examples/coins/model.yaml").read_text())
manifest["metadata"]["name"] = "coins-cameras"
for part in (manifest["spec"]["artifact"], manifest["spec"].get("golden") or {}):
    if part and "://" not in part["uri"]:
        part["uri"] = (Path("examples/coins") / part["uri"]).resolve().as_uri()
manifest["spec"]["metrics"] = {"slices": list(CAMERAS)}
manifest["spec"]["drift"] = {
    "window": "5s",
    "minAnswers": 10,
    "falseAlarmsPerMonth": 1,
    "reference": {"window": {"duration": "1m"}},
}
client.models.apply(manifest)
client.models.wait("coins-cameras", timeout_s=300)

# %% [markdown]
# The cameras send images in turn, twelve a second or as many as the model can answer.

# %%
images = {name: [png(ImageEnhance.Brightness(photo).enhance(light)) for light in (0.95, 1.0, 1.05)] for name in CAMERAS}
clients = {name: client.with_options(headers={"x-segserve-slice": name}) for name in CAMERAS}
stop = threading.Event()


def call() -> None:
    number = 0
    while not stop.wait(0.08):
        number += 1
        name = CAMERAS[number % len(CAMERAS)]
        clients[name].segment(images[name][number // len(CAMERAS) % 3], model="coins-cameras")


def wait_for(status: str, what: str = "", timeout_s: float = 400) -> str:
    deadline_s = time.monotonic() + timeout_s
    drifting = None
    while time.monotonic() < deadline_s:
        conditions = client.models.get("coins-cameras").status.conditions
        drifting = next((each for each in conditions if each.type == "Drifting"), None)
        if drifting is not None and drifting.status == status:
            # On a slow machine a camera's reference is complete later than that of all.
            complete = "no reference" not in drifting.message
            if complete and what in drifting.message:
                return f"{drifting.reason}: {drifting.message}"
        time.sleep(1)
    raise TimeoutError(f"Drifting is not {status} with {what!r}: {drifting}")


caller = threading.Thread(target=call, daemon=True)
caller.start()
print(wait_for("False"))
# > AsReference: images and answers are as those of the reference: coins-cameras-... from ... on

# %% [markdown]
# The sensor of the camera in the south fails: its images become noisy. Brightness and size stay as they were, and three
# quarters of the images are as always.

# %%
random = np.random.default_rng(1)
pixels = np.asarray(photo, float)
noisy = [np.clip(pixels + random.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8) for _ in range(3)]
images["south"] = [png(Image.fromarray(each)) for each in noisy]
failed_s = time.monotonic()
print(wait_for("True", "slice south"))
taken_s = time.monotonic() - failed_s
print(f"found after {taken_s:.0f} s, which are {taken_s / 5:.0f} windows")
# > ImagesChanged: since ...: ...slice south...
# > found after ... s, which are ... windows

# %%
stop.set()
caller.join()
client.models.delete("coins-cameras")
client.models.wait("coins-cameras", for_="delete", timeout_s=300)
client.close()
