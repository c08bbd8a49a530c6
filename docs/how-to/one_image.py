# writes: coins.png coins.json

# %% [markdown]
# # Segment one image
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# The client uses the gateway at `SEGSERVE_URL`, or that of the platform that runs on this machine.

# %%
import json
from pathlib import Path

from segserve import Client, InstanceResult, SemanticResult

photo = "examples/coins/coins.png"
client = Client()

# %% [markdown]
# An instance model returns one object per coin, sorted by score. Masks are decoded on first access. `expect` names the
# type of the result, so that editors and type checkers know it; a model of another kind is refused. Without `expect`
# any model will do.

# %%
found = client.segment(photo, model="coins-instances", expect=InstanceResult)
best = found.instances[0]
print(len(found.instances), best.class_name, best.mask.shape, best.mask.dtype)
# > 24 coin (303, 384) bool

# %% [markdown]
# A semantic model returns a label map and the number of pixels of each class.

# %%
labels = client.segment(photo, model="coins", expect=SemanticResult)
print(labels.labels.shape, sorted(labels.areas))
# > (303, 384) ['background', 'coin']

# %% [markdown]
# Draw the objects on the photograph, and save them as COCO JSON.

# %%
found.overlay(photo).save("coins.png")
Path("coins.json").write_text(json.dumps(found.to_coco(file_name="coins.png")))

# %% [markdown]
# Every result names the revision that produced it.

# %%
print(found.revision)
# > coins-instances-...
client.close()
