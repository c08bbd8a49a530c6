"""Forms of labels of other tools, which are named in an error with the way to convert them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from segserve.errors import DatasetError

_FORMS: Final = {
    (
        "image_id",
        "category_id",
        "score",
    ): "a list of detections (COCO results): name the file with images",
    ("shapes", "imagePath"): "LabelMe's: convert it to COCO (labelme2coco)",
    ("_via_img_metadata",): "VIA's: export it in VIA as COCO (Annotation, Export Annotations)",
    ("filename", "regions"): "VIA's: export it in VIA as COCO (Annotation, Export Annotations)",
    ("project", "attribute", "metadata", "file"): "VIA's: convert it to COCO, for example in VIA 2",
    (
        "labels",
        "numTraining",
    ): "nnU-Net's: copy maps and images, as PNG or TIFF of one name, into labels and images",
    ("categories", "items"): "datumaro's: convert it (datum convert -if datumaro -f coco_instances)",
    ("JPEGImages",): "Pascal VOC's: convert its boxes (supervision's DetectionDataset.from_pascal_voc and as_coco), or "
    "copy its maps and their images into the folders labels and images, with the names of classes in classes.txt",
    ("imagesTr", "labelsTr"): "nnU-Net's: copy maps and images, as PNG or TIFF of one name, into labels and images",
    ("<annotation>",): "Pascal VOC's: convert it (supervision's DetectionDataset.from_pascal_voc and as_coco)",
    ("<annotations>",): "CVAT's: export it from CVAT as COCO, or convert it (datum convert -if cvat -f coco_instances)",
}
"""Forms by keys of a document, its first item or its first value, by the root of XML, and by names in a folder."""


def refuse_form(name: str, *keys: Iterable[str]) -> None:
    """Raise `DatasetError` for what has the keys of another tool's form."""
    for marks, form in _FORMS.items():
        if any({*marks} <= {*each} for each in keys):
            raise DatasetError(f"{name} is not read, as it is {form}")


def refuse_other_json(name: str, document: Any) -> None:
    """Raise `DatasetError` for a document in a known form of another tool."""
    first = next(iter(document.values() if isinstance(document, dict) else document), None)
    if not isinstance(document, dict) or not {"images", "annotations"} <= document.keys():
        refuse_form(name, *(each for each in (document, first) if isinstance(each, dict)))
