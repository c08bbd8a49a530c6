# writes: overlay.png contours.png first.png coins.csv

# %% [markdown]
# # Inspect and draw a result
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# Printing a result gives a one-line summary. A notebook shows a table and a picture; `result.with_image(photo)` shows
# the result on its image. Masks are decoded on first access.

# %%
import csv
from pathlib import Path

from segserve import Client, InstanceResult

photo = "examples/coins/coins.png"
with Client() as client:
    result = client.segment(photo, model="coins-instances", expect=InstanceResult)
print(result)
# > <InstanceResult of 384 x 303 by coins-instances-...: 24 coin>

# %% [markdown]
# Draw filled masks with labels, or only contours with a legend. `result.show(photo)` shows the same picture at once.

# %%
result.save("overlay.png", photo)
result.overlay(photo, alpha=0, labels=False, legend=True).save("contours.png")

# %% [markdown]
# Each object has a mask, an outline and a crop of the image. `cut_out` makes everything outside the mask transparent.

# %%
first = result[0]
print(first.mask.shape, first.mask.dtype, first.area == first.mask.sum())
# > (303, 384) bool True
part = result.to_polygons()[0][0]
print(part.outer.shape[1], part.outer.dtype)
# > 2 float64
result.crop(0, photo, margin=4, cut_out=True).save("first.png")

# %% [markdown]
# `to_rows` returns one row per object, for a CSV file or `pandas.DataFrame(rows)`.

# %%
rows = result.to_rows()
with Path("coins.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
print(len(rows), ", ".join(rows[0]))
# > 24 index, class_id, class, score, x1, y1, x2, y2, area
