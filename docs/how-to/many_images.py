# writes: images coins.csv

# %% [markdown]
# # Segment many images
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# To get some images, this cuts the example photograph into twelve.

# %%
import csv
from pathlib import Path

from PIL import Image

from segserve import Client, Failure, SemanticResult

photo = Image.open("examples/coins/coins.png")
folder = Path("images")
folder.mkdir(exist_ok=True)
for row in range(3):
    for column in range(4):
        left, top = 96 * column, 101 * row
        photo.crop((left, top, left + 96, top + 101)).save(folder / f"{row}-{column}.png")
paths = sorted(folder.glob("*.png"))

# %% [markdown]
# `segment_many` keeps `in_flight` requests running and yields the results in input order. It takes any iterable, even
# an endless one: it pulls images only as they are needed, so memory use stays small.

# %%
with Client() as client:
    results = client.segment_many(paths, model="coins", expect=SemanticResult, in_flight=8)
    with Path("coins.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "pixels of coins"])
        for path, result in zip(paths, results, strict=True):
            table.writerow([path.name, result.areas["coin"]])

print(len(Path("coins.csv").read_text().splitlines()), "lines")
# > 13 lines

# %% [markdown]
# By default an error ends the iteration, with a note that names the image. With `on_error="return"`, a `Failure`
# takes the place of the result and the iteration continues.

# %%
with Client() as client:
    for found in client.segment_many([paths[0], "images/none.png", b"no image"], model="coins", on_error="return"):
        if isinstance(found, Failure):
            print(found.index, found.source, type(found.error).__name__)
        else:
            print("segmented", found.size)
# > segmented (101, 96)
# > 1 images/none.png FileNotFoundError
# > 2 None BadRequestError
