# writes: coins.geojson found labels

# %% [markdown]
# # Segment an image that is too large for one request
#
# Serve the example's models first: `segserve up -f examples/coins/model.yaml`.
# Files and results on disk need `pip install 'segserve[batch]'`.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from segserve import Client
from segserve.tiled import open_result
from segserve.tiled.exports import write_geojson

photo = np.asarray(Image.open(Path(__file__).resolve().parents[2] / "examples/coins/coins.png"))
table = np.tile(photo, (2, 3))
print(table.shape)
# > (606, 1152)
client = Client()

# %% [markdown]
# The image is cut into tiles that overlap. Small ones here; 1024 and 128 are what you get when you say nothing.
# A path of a TIFF, a zarr array or a memory map is read tile by tile, so it need not fit into memory.

# %%
labels = client.segment_tiled(table, model="coins", tile=512, overlap=128)
print(labels.labels.shape, labels.tiles)
# > (606, 1152) 6

# %% [markdown]
# With `out` the result lies in a folder, the label map as a zarr array. After a crash the same call sends only
# what is missing. Here nothing is.

# %%
client.segment_tiled(table, model="coins", tile=512, overlap=128, out="labels")
again = client.segment_tiled(table, model="coins", tile=512, overlap=128, out="labels")
print(again.sent, again.labels.shape, again.labels.dtype)
# > 0 (606, 1152) uint8

# %% [markdown]
# Objects are joined over the seams: a coin that four tiles show is one coin.

# %%
found = client.segment_tiled(table, model="coins-instances", tile=384, overlap=192, out="found", id_map=True)
print(len(found), max(len(coin.tiles) for coin in found) > 1)
# > 144 True

# %% [markdown]
# Each has its mask within its own box. Read them one by one, or write them for another program.

# %%
coin = next(iter(open_result("found")))
print(coin.class_name, coin.mask.dtype, coin.area == coin.mask.sum())
# > coin bool True
write_geojson(found, Path("coins.geojson"))
client.close()
