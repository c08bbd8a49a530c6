# %% [markdown]
# # Drill: a version finds less
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`. It takes one to three minutes.
#
# A new version of a model finds fewer coins. No request fails, none is slow, and without golden images
# nothing stops it. The [metrics of answers](watch-answers.md) show it: objects for each answer, by revision.

# %%
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

from segserve import Client

NAME = "coins-drill"
METRICS_URL = os.environ.get("SEGSERVE_URL", "http://127.0.0.1:8080") + "/metrics"
client = Client()
photo = Path("examples/coins/coins.png").read_bytes()
manifests = yaml.safe_load_all(Path("examples/coins/model.yaml").read_text())
manifest = next(each for each in manifests if each["metadata"]["name"] == "coins-instances")
manifest["metadata"]["name"] = NAME
manifest["spec"]["artifact"]["uri"] = Path("examples/coins/coins-yolo.onnx").resolve().as_uri()
del manifest["spec"]["golden"]
client.models.apply(manifest)
client.models.wait(NAME, timeout_s=300)

# %% [markdown]
# Somebody calls it all the time.

# %%
stop = threading.Event()


def call() -> None:
    while not stop.wait(0.05):
        client.segment(photo, model=NAME)


caller = threading.Thread(target=call, daemon=True)
caller.start()

# %% [markdown]
# Prometheus keeps these numbers over time, and the dashboard *answers* shows *Objects per answer* by revision. Here
# they are read from the gateway.


# %%
OBJECTS, ANSWERS = "segserve_class_instances_total", "segserve_answers_total"


def counts() -> dict[str, dict[str, float]]:
    """Return how many objects and answers each revision has counted."""
    found: defaultdict[str, dict[str, float]] = defaultdict(lambda: {OBJECTS: 0.0, ANSWERS: 0.0})
    text = httpx.get(METRICS_URL).raise_for_status().text
    for name, pairs, value in re.findall(rf"^({OBJECTS}|{ANSWERS}){{(.*)}} (\S+)$", text, re.MULTILINE):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', pairs))
        if labels["model"] == NAME:
            found[labels["revision"]][name] += float(value)
    return found


def objects_per_answer(timeout_s: float = 240) -> Iterator[dict[str, float]]:
    """Yield the objects of an answer by revision, every second, of revisions with enough answers."""
    deadline_s = time.monotonic() + timeout_s
    before = counts()
    while time.monotonic() < deadline_s:
        time.sleep(1)
        now = counts()
        # Servers count every five seconds, one number after the other: those that rest belong together.
        at_rest = [each for each in now if now[each] == before.get(each) and now[each][ANSWERS] >= 20]
        yield {revision: now[revision][OBJECTS] / now[revision][ANSWERS] for revision in at_rest}
        before = now
    raise TimeoutError(f"after {timeout_s:g} s the counts were {before}")


((stable, usual),) = next(found for found in objects_per_answer() if found).items()
print(f"{stable}: {usual:.1f} objects an answer")
# > coins-drill-...: 24.0 objects an answer

# %% [markdown]
# The new version has a threshold that is too high.

# %%
manifest["spec"]["postprocess"][0]["scoreThreshold"]["threshold"] = 0.94
client.models.apply(manifest)
edited_s = time.monotonic()
for found in objects_per_answer():
    fewer = {name: mean for name, mean in found.items() if mean < 0.9 * usual}
    if fewer:
        break
((worse, mean),) = fewer.items()
print(f"{worse}: {mean:.1f} objects an answer, found {time.monotonic() - edited_s:.0f} s after the edit")
# > coins-drill-...: ... objects an answer, found ... s after the edit

# %% [markdown]
# The former version is an edit like any other.

# %%
manifest["spec"]["postprocess"][0]["scoreThreshold"]["threshold"] = 0.5
client.models.apply(manifest)
client.models.wait(NAME, timeout_s=300)
print("The former version answers:", client.segment(photo, model=NAME).revision == stable)
# > The former version answers: True

# %%
stop.set()
caller.join()
client.models.delete(NAME)
client.models.wait(NAME, for_="delete", timeout_s=300)
client.close()
