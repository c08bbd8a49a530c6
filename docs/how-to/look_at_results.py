# writes: overlay.png contours.png first.png coins.csv

# %% [markdown]
# # Look at a result
#
# Serve the example's models first: `segserve up -f examples/coins/model.yaml`.
#
# A result says in one line what it is. In a notebook it is a small table with a picture, and `result.on(photo)` shows
# it on its image. Masks are decoded when they are asked for.

# %%
import csv
from pathlib import Path

from segserve import Client

photo = Path(__file__).resolve().parents[2] / "examples/coins/coins.png"
with Client() as client:
    result = client.segment(photo, model="coins-instances")
print(result)
# > <InstanceResult of 384 x 303 by coins-instances-...: 24 coin>

# %% [markdown]
# Draw it: filled masks with labels, or only contours in the colours of the classes, with a legend.

# %%
result.overlay(photo).save("overlay.png")
result.overlay(photo, alpha=0, labels=False, legend=True).save("contours.png")

# %% [markdown]
# One object: its mask, its outline, the part of the image that it is in; `cut_out` makes the rest transparent.

# %%
first = result[0]
print(first.mask.shape, first.mask.dtype, first.area == first.mask.sum())
# > (303, 384) bool True
part = result.to_polygons()[0][0]
print(part.outer.shape[1], part.outer.dtype)
# > 2 float64
result.crop(0, photo, margin=4, cut_out=True).save("first.png")

# %% [markdown]
# A row for each object, for a CSV file or `pandas.DataFrame(rows)`.

# %%
rows = result.to_rows()
with Path("coins.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
print(len(rows), ", ".join(rows[0]))
# > 24 index, class_id, class, score, x1, y1, x2, y2, area
