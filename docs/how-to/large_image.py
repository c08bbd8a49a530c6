# writes: coins.geojson found labels

# %% [markdown]
# # Segment a large image
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# Reading files tile by tile and writing results to disk need the extra `segserve[batch]`.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from segserve import Client
from segserve.tiled import TiledObjects, TiledSemanticResult, open_result
from segserve.tiled.results import write_geojson

photo = np.asarray(Image.open("examples/coins/coins.png"))
table = np.tile(photo, (2, 3))
print(table.shape)
# > (606, 1152)
client = Client()

# %% [markdown]
# `segment_tiled` cuts the image into overlapping tiles. The defaults are `tile=1024, overlap=128`; this image is
# small. TIFF files, zarr arrays and memory maps are read tile by tile, so they need not fit into memory. `expect`
# names the type of the result, for editors and type checkers.

# %%
labels = client.segment_tiled(table, model="coins", expect=TiledSemanticResult, tile=512, overlap=128)
print(labels.labels.shape, labels.tiles)
# > (606, 1152) 6

# %% [markdown]
# With `out`, the result is written to a folder, the label map as a zarr array. After a crash, the same call sends
# only the missing tiles. Here none are missing.

# %%
for _ in range(2):
    again = client.segment_tiled(table, model="coins", expect=TiledSemanticResult, tile=512, overlap=128, out="labels")
print(again.sent, again.labels.shape, again.labels.dtype)
# > 0 (606, 1152) uint8

# %% [markdown]
# Objects are merged across tile borders: a coin that appears in four tiles is counted once.

# %%
found = client.segment_tiled(
    table, model="coins-instances", expect=TiledObjects, tile=384, overlap=192, out="found", id_map=True
)
print(len(found), max(len(coin.tiles) for coin in found) > 1)
# > 144 True

# %% [markdown]
# Each object's mask covers only its own box. Iterate over the objects, or export them.

# %%
coin = next(iter(open_result("found", expect=TiledObjects)))
print(coin.class_name, coin.mask.dtype, coin.area == coin.mask.sum())
# > coin bool True
write_geojson(found, Path("coins.geojson"))
client.close()
