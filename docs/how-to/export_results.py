# writes: coins.coco.json coins.geojson coins.xml coins.labelme.json task.json project.xml

# %% [markdown]
# # Export results to other tools
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# [Results and formats](../reference/results.md#conversions) lists what each format keeps and loses.

# %%
import json
from pathlib import Path

from segserve import Client, InstanceResult
from segserve.exports.label_studio import labelling_config

photo = Path("examples/coins/coins.png")
with Client() as client:
    result = client.segment(photo, model="coins-instances", expect=InstanceResult)

# %% [markdown]
# COCO is read by pycocotools, supervision, FiftyOne and most training frameworks.

# %%
Path("coins.coco.json").write_text(json.dumps(result.to_coco(file_name=photo.name)))

# %% [markdown]
# GeoJSON needs the raster's affine transform (rasterio: `dataset.transform`). This one is 0.5 m per pixel, north up,
# in UTM zone 33.

# %%
affine = (0.5, 0.0, 400_000.0, 0.0, -0.5, 5_600_000.0)
places = result.to_geojson(affine, crs="EPSG:32633")
Path("coins.geojson").write_text(json.dumps(places))
print(len(places["features"]), places["features"][0]["geometry"]["type"])
# > 24 Polygon

# %% [markdown]
# Annotation tools: CVAT and Label Studio get masks; LabelMe gets polygons unless you ask for masks. The background
# class is omitted. Label Studio shows predictions only if the project's configuration names the same classes.

# %%
Path("coins.xml").write_text(result.to_cvat(photo.name), encoding="utf-8")
Path("coins.labelme.json").write_text(json.dumps(result.to_labelme(photo.name, image=photo)))
task = result.to_label_studio("https://images.example.com/coins.png")
Path("task.json").write_text(json.dumps([task]))
Path("project.xml").write_text(labelling_config(result), encoding="utf-8")
print([len(one["result"]) for one in task["predictions"]])
# > [24]

# %% [markdown]
# supervision needs the extra `segserve[annotations]`. Its annotators, trackers and metrics work on the result.

# %%
detections = result.to_supervision()
print(len(detections), detections.data["class_name"][0])
# > 24 coin
