# writes: coins.json coins-evaluation data coins-pixels

# %% [markdown]
# # Evaluate your own model
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# `segserve eval` asks a model your labelled images, through its gateway, and says how good the answers are:
#
# ```sh
# segserve eval coins-instances --data annotations.json
# ```
#
# It prints a table and writes `report.json` and `report.html`, one page with the table and the images of the lowest
# scores. [The reference](../reference/cli.md#eval) has the data sets that it reads and the figures that it measures.
# `segserve.evaluate` does the same in Python.
#
# Here the labels are those of the coins' photograph: a map with a number for each coin, from which a COCO file is made.

# %%
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import segserve
from segserve.results.masks import EncodedMask

coins = np.array(Image.open("examples/coins/truth.png"))
masks = [EncodedMask.of(coins == number) for number in range(1, coins.max() + 1)]
annotations = []
for number, mask in enumerate(masks, 1):
    x1, y1, x2, y2 = mask.box
    annotations.append(
        {
            "id": number,
            "image_id": 1,
            "category_id": 7,  # tools number classes as they like: names count
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": mask.area,
            "iscrowd": 0,
            "segmentation": {"size": mask.rle["size"], "counts": mask.rle["counts"].decode()},
        }
    )
document = {
    "images": [{"id": 1, "file_name": "coins.png", "height": coins.shape[0], "width": coins.shape[1]}],
    "categories": [{"id": 7, "name": "coin"}],
    "annotations": annotations,
}
Path("coins.json").write_text(json.dumps(document))

# %% [markdown]
# AP and AR are pycocotools' own figures. The interval comes from drawing the images anew many times; here is only one,
# so it has no width. Take at least some dozen images.

# %%
report = segserve.evaluate("coins-instances", "coins.json", images="examples/coins", out="coins-evaluation")
print(report.revision, report.metrics["ap50"])
# > coins-instances-... 1.000 (1.000 to 1.000)
print(f"score of an image {report.score.mean:.2f}, worst {report.worst(1)[0].image}")
# > score of an image 0.9... worst coins.png

# %% [markdown]
# Answers are kept in the folder `out`. An evaluation that was interrupted goes on where it was, and a second one asks
# nothing, until the model has a new revision.
#
# A semantic model is also evaluated on label maps: PNGs whose pixels are class ids, in the folder `labels` beside
# `images`.

# %%
for name in ("images", "labels"):
    Path("data", name).mkdir(parents=True, exist_ok=True)
shutil.copy("examples/coins/coins.png", "data/images/coins.png")
Image.fromarray((coins > 0).astype(np.uint8)).save("data/labels/coins.png")
report = segserve.evaluate("coins", "data", out="coins-pixels")
print({name: f"{figures['iou'].mean:.2f}" for name, figures in report.classes.items()})
# > {'background': '0.9...', 'coin': '0.9...'}

# %% [markdown]
# ## Where it is good, and where it is not
#
# The table has a row for each class, and for small, medium and large objects. `--by` adds one for each slice of the
# images: for each of their folders, or as a file says, such as one that names those taken at night:
#
# ```sh
# segserve eval streets --data annotations.json --by folder
# segserve eval streets --data val/ --by weather.csv
# ```
#
# ECE says whether scores can be taken for probabilities: where it is high, a threshold means something else than it
# says.

# %%
figures = report.metrics
print(f"IoU {figures['miou'].mean:.2f}, ECE {figures['ece'].mean:.2f}")
# > IoU 0.9..., ECE 0...

# %% [markdown]
# ## What a new version changes
#
# Without labels, `segserve diff` says how much two models agree on the same images, and shows those where they do not:
#
# ```sh
# segserve diff coins coins-next photos/ -o sheet/ --at-least 0.95
# ```
#
# Below `--at-least` its exit code is 1. Agreement is not quality: check which one is right.
