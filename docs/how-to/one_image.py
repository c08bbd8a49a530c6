# writes: coins.png coins.json

# %% [markdown]
# # Segment one image
#
# Serve the example's models first: `segserve up -f examples/coins/model.yaml`.
# The client finds the gateway by `SEGSERVE_URL`, else at http://127.0.0.1:8080.

# %%
import json
from pathlib import Path

from segserve import Client

photo = Path(__file__).resolve().parents[2] / "examples/coins/coins.png"
client = Client()

# %% [markdown]
# An instance model answers with one object a coin, the best-scored first. Masks are decoded when they are asked for.

# %%
found = client.segment(photo, model="coins-instances")
best = found.instances[0]
print(len(found.instances), best.class_name, best.mask.shape, best.mask.dtype)
# > 24 coin (303, 384) bool

# %% [markdown]
# A semantic model answers with a label map, and counts the pixels of each class.

# %%
labels = client.segment(photo, model="coins")
print(labels.labels.shape, sorted(labels.areas))
# > (303, 384) ['background', 'coin']

# %% [markdown]
# Draw what was found, and keep it as COCO JSON.

# %%
found.overlay(photo).save("coins.png")
Path("coins.json").write_text(json.dumps(found.to_coco(file_name="coins.png")))

# %% [markdown]
# Every answer names the revision that gave it.

# %%
print(found.revision)
# > coins-instances-...
client.close()
