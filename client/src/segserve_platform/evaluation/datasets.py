"""Labelled images as people have them: COCO's JSON, its panoptic JSON, YOLO's text files, label maps, and `tools`."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Final, Literal, TypeAlias

from segserve.errors import DatasetError
from segserve.results.values import SegmentClass
from segserve_common.drawing.overlays import is_background
from segserve_common.image_file import IMAGE_SUFFIXES, ImageFileError, describe_file, is_named_as
from segserve_platform.evaluation.tools import as_coco, is_labelme, refuse_form

Labels: TypeAlias = Literal["objects", "segments", "maps"]
"""Kinds of labels: objects with masks or boxes, panoptic segments, or maps of a class for every pixel."""

IMAGE_FOLDER: Final = "images"
LABEL_FOLDERS: Final = ("labels", "masks")
MAP_SUFFIXES: Final = frozenset({".png", ".tif", ".tiff"})
MAP_ENDINGS: Final = ("_masks", "_cp_masks")
"""Endings that Cellpose adds to an image's name."""
_OF_CELLPOSE: Final = (*MAP_ENDINGS, "_flows", "_cp_output")
CLASS_FILE: Final = "classes.txt"
YOLO_FILE: Final = "data.yaml"
_FLAGS: Final = dict.fromkeys(("none", "", "0", "0.0", "false"), False) | dict.fromkeys(("1", "1.0", "true"), True)
_YOLO_LINE: Final = re.compile(rb"\s*(\d+\s+[\d.+-]|\Z)")
_NAMED: Final = 3
"""Up to this many images are named in an error."""
_ORPHANS: Final = ("label file belongs to no image", "label files belong to no image")
_LISTED: Final = 20
"""Up to this many files are named in a report."""

Listings: TypeAlias = dict[Path, dict[str, list[Path]]]
"""The files of folders by their `spelling`, as far as they were needed."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image with its labels.

    `size` is (height, width). `annotations` are COCO's, of a panoptic data set its segments. `label_map` is the file of
    a label map, or of a map of segment ids.
    """

    path: Path
    name: str
    size: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...] = ()
    label_map: Path | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images. `classes` are names by the data set's ids; None if its ids are the model's."""

    labels: Labels
    images: tuple[LabelledImage, ...]
    classes: Mapping[int, str] | None
    things: frozenset[int] = frozenset()
    """The ids of a panoptic data set's countable classes."""
    is_yolo: bool = False
    labels_from: int = 0
    """The value of a label map's first class; values below are not labelled."""
    notes: tuple[str, ...] = ()
    """Label files that are absent or belong to no image, and how labels were read if that is ambiguous."""


def read_dataset(path: Path, images: Path | None = None, *, beside: Path | None = None) -> Dataset:
    """Read a data set: the JSON file, or the folder that has `data.yaml`, one JSON file, or images and labels.

    `images` is the folder of the images of a JSON file, which is otherwise looked for beside it. A file `beside` the
    data does not count. Raises `DatasetError` for a data set without images, an image without labels, names that are
    not unique, a form of another tool, and anything that cannot be read.
    """
    yolo = path / YOLO_FILE if (path / YOLO_FILE).is_file() else path
    if yolo.is_file() and yolo.suffix in (".yaml", ".yml"):
        if images is not None:
            raise DatasetError(f"{yolo.name} names its images itself; got the folder {str(images)!r} (--images) too")
        return _of_yolo(yolo)
    if path.is_file():
        return _of_json([path], images)
    if not path.is_dir():
        raise DatasetError(f"no such data set: {str(path)!r}")
    refuse_form(str(path), [each.name for each in path.iterdir()])
    documents = sorted(each for each in path.glob("*.json") if beside is None or each.resolve() != beside.resolve())
    if len(documents) == 1 or (documents and all(is_labelme(read_json(each)) for each in documents)):
        return _of_json(documents, images)
    if documents:
        raise DatasetError(f"{str(path)!r} has several JSON files, {few(map(str, documents))}: name one of them")
    return _of_maps(path, images)


def _of_maps(path: Path, images: Path | None) -> Dataset:
    """Read label maps of folders, or beside their images with an ending of Cellpose."""
    for each in path.glob("*.xml"):
        read_json(each)
    folder, endings = images or path / IMAGE_FOLDER, ["", *MAP_ENDINGS]
    labels = next((path / name for name in LABEL_FOLDERS if (path / name).is_dir()), None)
    if not folder.is_dir() or labels is None:
        if not any(each.stem.endswith(MAP_ENDINGS) for each in path.iterdir()):
            raise DatasetError(
                f"{str(path)!r} is no data set: expected one COCO JSON file, {YOLO_FILE}, or "
                f"the folders {IMAGE_FOLDER} and {' or '.join(LABEL_FOLDERS)} with label maps (PNG, TIFF)"
            )
        folder, labels, endings = images or path, path, [*MAP_ENDINGS]
    files = [each for each in _images_in(folder) if folder != labels or not each.stem.endswith(_OF_CELLPOSE)]

    def named(image: Path) -> list[Path]:
        # The last name is of the Cell Tracking Challenge: t000, man_seg000.
        stems = [*(image.stem + end for end in endings), *[f"man_seg{image.stem[1:]}"] * image.stem.startswith("t")]
        return [labels / stem for stem in stems]

    maps, orphans = _label_files(files, MAP_SUFFIXES, named)
    if missing := [file.name for file in files if file not in maps]:
        others = ", ".join(sorted({each.suffix for each in labels.iterdir()} - MAP_SUFFIXES - {""}))
        raise DatasetError(
            f"{len(missing)} of {len(files)} images have no labels: {few(missing)}; expected a PNG or TIFF of the same "
            f"name in {str(labels)!r}" + f", which has {others}; YOLO's texts need a {YOLO_FILE}" * bool(others)
        )
    orphans = [each for each in orphans if "" in endings or PurePath(each).stem.endswith(MAP_ENDINGS)]
    listed = tuple(LabelledImage(file, file.name, _size_of(file), label_map=maps[file]) for file in files)
    return Dataset("maps", listed, _listed_classes(path / CLASS_FILE), notes=_note(orphans, *_ORPHANS))


def _label_files(
    images: Sequence[Path], suffixes: Set[str], named: Callable[[Path], Sequence[Path]]
) -> tuple[dict[Path, Path], list[str]]:
    """Return the label file of each image that has one, and names of files of none of the images in the same folders.

    `named` returns the paths without suffix that an image's label file may have. Raises `DatasetError` for an image of
    several label files, and for a label file of several images.
    """
    folders = sorted({each.parent for image in images for each in named(image)})
    listed = {*(each for at in folders if at.is_dir() for each in at.iterdir() if is_named_as(each, suffixes))}
    files = sorted(listed - {*images})
    by_name = defaultdict[tuple[str, Path], list[Path]](list)
    for file in files:
        by_name["exact", file.with_suffix("")].append(file)
        by_name["alike", file.parent / spelling(file.stem)].append(file)
    pairs = []
    for image in images:
        own = [file for each in named(image) for file in by_name["exact", each]]
        own = own or [file for each in named(image) for file in by_name["alike", each.parent / spelling(each.name)]]
        pairs += [(image, file) for file in dict.fromkeys(own)]
    _check_unique("label files are there of", [image for image, _ in pairs], [file.name for _, file in pairs])
    _check_unique("images have the label files", [file for _, file in pairs], [image.name for image, _ in pairs])
    beside = [each for folder in {image.parent for image in images} for each in folder.iterdir() if is_named_as(each)]
    known = {each.parent / spelling(each.name) for image in beside for each in named(image)}
    orphans = [each for each in files if each.parent / spelling(each.stem) not in known]
    # Lists of images and of classes may be beside YOLO's labels.
    return dict(pairs), [each.name for each in orphans if ".txt" not in suffixes or _YOLO_LINE.match(each.read_bytes())]


def _note(names: Iterable[str], one: str, several: str) -> tuple[str, ...]:
    """Return a note that counts and names files, if there are any."""
    listed = sorted(names)
    return (f"{len(listed)} {one if len(listed) == 1 else several}: {few(listed, _LISTED)}",) * bool(listed)


def matched_classes(
    dataset: Dataset, known: Sequence[SegmentClass], chosen: Sequence[str] | None = None, *, background: bool = False
) -> dict[int, SegmentClass]:
    """Return the model's class of each class of the data set, by the data set's id; `chosen` names the counted ones.

    With `background` the model's class of this name, if it has one, counts where a data set of objects has none.
    A class without labels that the model lacks is left out, as tools list groups of classes. Raises `DatasetError`,
    with both lists, for any other name that either of them lacks.
    """
    by_name = {one.name: one for one in known}
    labelled = dataset.classes or {}
    used = {int(each["category_id"]) for image in dataset.images for each in image.annotations}
    names = [
        name
        for number, name in labelled.items()
        if (name in by_name or number in used or dataset.labels == "maps") and (chosen is None or name in chosen)
    ]
    missing = [name for name in names if name not in by_name] + [
        name for name in chosen or () if name not in labelled.values()
    ]
    if missing or not names:
        raise DatasetError(
            f"the data set and the model do not share the classes {', '.join(map(repr, missing)) or '(none)'}: the "
            f"data set has {', '.join(labelled.values()) or 'none'}; the model has {', '.join(by_name) or 'none'}. "
            "Rename them, or choose among those that both have (--classes)"
        )
    matched = {number: by_name[name] for number, name in labelled.items() if name in names}
    if background and dataset.labels == "objects" and chosen is None:
        rest = [one for one in known if is_background(one.name) and one not in matched.values()]
        matched |= {min(0, *labelled) - number: one for number, one in enumerate(rest, 1)}
    return matched


def _of_json(paths: Sequence[Path], images: Path | None) -> Dataset:
    """Read one file of COCO or Label Studio, or LabelMe's, of which there is one for each image."""
    path = paths[0]
    contents = {each.name: read_json(each) for each in paths}
    converted = as_coco(contents)
    document, notes = converted or (contents[path.name], ())
    try:
        annotations = [
            _annotation(each, f"{path.name}: annotation {n}") for n, each in enumerate(document["annotations"])
        ]
        by_image = defaultdict(list)
        for each in annotations:
            by_image[each["image_id"]].append(each)
        categories = [
            _typed(each, f"{path.name}: category {n}", "id", flag="isthing")
            for n, each in enumerate(document["categories"])
        ]
        classes = {each["id"]: str(each["name"]) for each in categories}
        listed = [one for each in annotations for one in each.get("segments_info", [each])]
        unknown = {each["category_id"] for each in listed} - classes.keys()
        sizes = [{**each, **{key: each.get(key) or 0 for key in ("height", "width")}} for each in document["images"]]
        pictures = [_typed(each, f"{path.name}: image {n}", "id", "height", "width") for n, each in enumerate(sizes)]
        rows = [(each["id"], str(each["file_name"]), (each["height"], each["width"])) for each in pictures]
        is_panoptic = any("segments_info" in each for each in annotations)
        things = frozenset(each["id"] for each in categories if each["isthing"])
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        seen = document[0] if isinstance(document, list) and document else document
        keys = f"; it has {few(map(str, seen), 8)}" if isinstance(seen, dict) else ""
        raise DatasetError(
            f"{str(path)!r} is not a COCO data set with images, categories and annotations: {error!r}{keys}"
        ) from error
    if unknown:
        raise DatasetError(f"{path.name} has annotations of the categories {sorted(unknown)}, which it does not list")
    if not rows:
        raise DatasetError(f"{str(path)!r} lists no images")
    _check_unique(f"{path.name} lists the image ids", [number for number, *_ in rows])
    _check_unique(f"{path.name} lists the file names", [name for _, name, _ in rows])
    _check_unique(f"{path.name} lists the category ids", [each["id"] for each in categories])
    # Roboflow lists the project as well, which is the category above all others and perhaps has the name of one.
    above, used = {str(each.get("supercategory")) for each in categories}, {each["category_id"] for each in listed}
    named = [str(each["name"]) for each in categories if each["id"] in used or str(each["name"]) not in above]
    _check_unique(f"{path.name} names the categories", named)
    if stray := by_image.keys() - {number for number, *_ in rows}:
        raise DatasetError(
            f"{path.name} has annotations of {len(stray)} images that it does not list: {few(map(repr, stray))}"
        )
    places = [images] if images is not None else [path.parent, path.parent / IMAGE_FOLDER, path.parent / path.stem,
                                                  path.parent.parent / IMAGE_FOLDER]  # fmt: skip
    listings: Listings = {}
    # LabelMe and Label Studio write paths of their own.
    bare = images is not None or converted is not None
    found = {name: _file_in(places, name, listings, bare=bare) for _, name, _ in rows}
    files = [file for file in found.values() if file is not None]
    _check_unique(f"{path.name} has several names, as it lists", files)
    if missing := [name for name, file in found.items() if file is None]:
        raise DatasetError(
            f"{len(missing)} of {len(rows)} images of {path.name} are not there: {few(missing)}; looked in "
            f"{', '.join(map(str, places))}. Name their folder (--images)"
        )
    labelled = []
    for number, name, size in rows:
        file = found[name]
        assert file is not None
        size = size if min(size) > 0 else _size_of(file)
        labelled.append(LabelledImage(file, name, size, tuple(by_image[number])))
    if not is_panoptic:
        if is_labelme(contents[path.name]):
            rest = [each.name for each in path.parent.iterdir() if is_named_as(each) and each not in files]
            notes += _note(rest, "image without a file of LabelMe is left out", "images without one are left out")
        return Dataset("objects", tuple(labelled), classes, notes=notes)
    pages = tuple(_with_segments(each, path, listings) for each in labelled)
    maps = [each.label_map for each in pages]
    _check_unique(f"{path.name} names the maps", maps)
    orphans = {*(path.parent / path.stem).glob("*.png")} - {*maps}
    return Dataset("segments", pages, classes, things, notes=_note((each.name for each in orphans if each), *_ORPHANS))


def _annotation(entry: Mapping[str, Any], what: str) -> dict[str, Any]:
    if "segments_info" in entry:
        segments = [
            _typed(each, f"{what}, segment {n}", "id", "category_id", flag="iscrowd")
            for n, each in enumerate(entry["segments_info"])
        ]
        return {**_typed(entry, what, "image_id"), "segments_info": segments}
    area = entry.get("area")
    typed = _typed(entry, what, "image_id", "category_id", flag="iscrowd")
    return typed if area is None else {**typed, "area": float(area)}


def _typed(entry: Mapping[str, Any], what: str, *whole: str, flag: str = "") -> dict[str, Any]:
    """Return an entry with whole numbers and a flag as such, in whatever types a tool has written them."""
    typed = dict(entry)
    for key in whole:
        value = entry.get(key)
        try:
            number = int(value) if isinstance(value, str) and value.strip().lstrip("-").isdigit() else float(value)  # type: ignore[arg-type]
            typed[key] = value if type(value) is int else int(number)
            if isinstance(value, bool) or typed[key] != number:
                raise ValueError(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise DatasetError(f"{what} has the {key} {value!r}; expected a whole number") from error
    if flag:
        typed[flag] = _FLAGS.get(str(entry.get(flag)).strip().lower())
        if typed[flag] is None:
            raise DatasetError(f"{what} has the {flag} {entry[flag]!r}; expected 0 or 1")
    return typed


def _with_segments(image: LabelledImage, document: Path, listings: Listings) -> LabelledImage:
    """Return an image of a panoptic data set with its segments and the PNG of their ids."""
    if len(image.annotations) != 1:
        raise DatasetError(f"{image.name} has {len(image.annotations)} panoptic annotations; expected one")
    (annotation,) = image.annotations
    try:
        name = str(annotation["file_name"])
        segments = tuple(annotation["segments_info"])
    except LookupError as error:
        raise DatasetError(
            f"{image.name} has no panoptic annotation with file_name and segments_info: {error!r}"
        ) from error
    _check_unique(f"{document.name}: {image.name} lists the segment ids", [each["id"] for each in segments])
    places = [document.parent / document.stem, document.parent]
    ids = _file_in(places, name, listings)
    if ids is None:
        raise DatasetError(f"{image.name} has no labels: {name} is not in {' or '.join(map(str, places))}")
    return replace(image, annotations=segments, label_map=ids)


def _file_in(places: Sequence[Path], name: str, listings: Listings, *, bare: bool = False) -> Path | None:
    """Return the file in one of these folders, also of Windows; `bare` if its name alone is enough.

    Raises `DatasetError` for a name that leads out of them, and for one that several files are spelled like.
    """
    spelled = [name, name.replace("\\", "/")]
    names = [
        PurePath(each) for each in spelled if not PurePath(each).is_absolute() and ".." not in PurePath(each).parts
    ]
    if bare:
        # Label Studio and tools on other machines write paths of their own.
        names.append(PurePath(PurePath(spelled[1]).name))
    if not names:
        raise DatasetError(
            f"file_name must be a path within the images' folder, got {name!r}. Name the folder (--images), in which "
            "the last part of the path is looked for"
        )
    try:
        return _spelled_file(places, names, listings)
    except OSError as error:
        raise DatasetError(f"file_name {name[:80]!r} cannot be looked for: {error.strerror}") from error


def _spelled_file(places: Sequence[Path], names: Sequence[PurePath], listings: Listings) -> Path | None:
    """Return the file of one of the names in a folder, or else the only one that is spelled like it."""
    paths = [(place, name) for name in names for place in places]
    if (exact := next((place / name for place, name in paths if (place / name).is_file()), None)) is not None:
        return exact
    alike = sorted({each for place, name in paths for each in _alike(place, name.parts, listings) if each.is_file()})
    if len(alike) > 1:
        raise DatasetError(
            f"{str(names[0])!r} is not there, and several files are spelled like it: {few(map(str, alike))}; name one"
        )
    return next(iter(alike), None)


def _alike(folder: Path, parts: Sequence[str], listings: Listings) -> list[Path]:
    if not parts:
        return [folder]
    if folder not in listings:
        listings[folder] = defaultdict(list)
        for each in folder.iterdir() if folder.is_dir() else ():
            listings[folder][spelling(each.name)].append(each)
    found = listings[folder].get(spelling(parts[0]), ())
    return [file for each in found for file in _alike(each, parts[1:], listings)]


def spelling(name: str) -> str:
    """Return a name without what systems write differently: composed characters (macOS) and capitals (Windows)."""
    return unicodedata.normalize("NFC", name.casefold())


def _of_yolo(path: Path) -> Dataset:
    """Read the images that `val` of a YOLO data set names, or else `test` or `train`, and their files of labels."""
    import yaml

    try:
        settings = yaml.safe_load(text := read_text(path))
        composed: Any = yaml.compose(text, yaml.SafeLoader)
        for node in [composed, *(value for _, value in composed.value if isinstance(value, yaml.MappingNode))]:
            _check_unique(f"{path.name} has the keys", [key.value for key, _ in node.value])
        names = settings.get("names", ())
        named = names.items() if isinstance(names, dict) else enumerate(names)
        classes = {int(number): str(name) for number, name in named}
        split = next(settings[key] for key in ("val", "test", "train") if settings.get(key))
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, StopIteration) as error:
        raise DatasetError(
            f"{str(path)!r} is not a YOLO data set: {error or 'it has none of val, test, train'}"
        ) from error
    if not classes:
        raise DatasetError(f"{str(path)!r} has no names: a YOLO data set lists its classes, names: [car, person]")
    _check_unique(f"{path.name} names the classes", list(classes.values()))
    root = path.parent / str(settings.get("path") or "")
    entries = [str(each) for each in (split if isinstance(split, list) else [split])]
    files = [file for entry in entries for file in _yolo_images(entry, root, path)]
    _check_unique(f"{path.name} lists the images", [file.resolve() for file in files])
    labels, orphans = _label_files(files, {".txt"}, lambda image: [_yolo_labels(image).with_suffix("")])
    if not labels:
        raise DatasetError(
            f"the images of {path.name} have no labels: expected a text file for each, such as {_yolo_labels(files[0])}"
        )
    listed = []
    for file in files:
        size = _size_of(file)
        # A file is missing where an image shows no object.
        lines = read_text(labels[file]).split("\n") if file in labels else []
        objects = tuple(_yolo_annotation(line, size, labels[file]) for line in lines if line.strip())
        if unknown := {each["category_id"] for each in objects} - classes.keys():
            raise DatasetError(f"{labels[file]} has the classes {sorted(unknown)}; {path.name} names {sorted(classes)}")
        listed.append(LabelledImage(file, file.name, size, objects))
    absent = [file.name for file in files if file not in labels]
    many = ("image has no label file and counts as background", "images have no label file and count as background")
    notes = _note(absent, *many) + _note(orphans, *_ORPHANS)
    return Dataset("objects", tuple(listed), classes, is_yolo=True, notes=notes)


def _yolo_images(entry: str, root: Path, document: Path) -> list[Path]:
    """Return the images of a folder, or those that a text file lists, beside which, or in `root`, they are."""
    # Roboflow exports say `../valid/images` and mean the folder beside the file.
    places = [root / entry, document.parent / entry, document.parent / entry.removeprefix("../")]
    found = next((each for each in places if each.exists()), None)
    if found is not None and found.is_dir():
        return _images_in(found)
    if found is None or found.suffix != ".txt":
        raise DatasetError(
            f"{document.name} names the images {entry!r}, which are neither a folder nor a text file: looked for "
            f"{', '.join(map(str, places))}"
        )
    names = [line.strip().replace("\\", "/") for line in read_text(found).split("\n") if line.strip()]
    listings: Listings = {}
    files = [_spelled_file([found.parent, root], [PurePath(name)], listings) for name in names]
    if missing := [name for name, file in zip(names, files, strict=True) if file is None]:
        raise DatasetError(f"{len(missing)} of {len(names)} images of {found} are not there: {few(missing)}")
    if not files:
        raise DatasetError(f"{str(found)!r} lists no images")
    return [file for file in files if file is not None]


def _yolo_labels(image: Path) -> Path:
    """Return the file of an image's labels: as for YOLO, the last folder `images` has a neighbour `labels`."""
    parts = list(image.parent.parts)
    if IMAGE_FOLDER in parts:
        parts[len(parts) - 1 - parts[::-1].index(IMAGE_FOLDER)] = LABEL_FOLDERS[0]
    return Path(*parts) / f"{image.stem}.txt"


def _yolo_annotation(line: str, size: tuple[int, int], file: Path) -> dict[str, Any]:
    """Return as COCO's annotation a line of a class, and centre and size of a box, or corners of a polygon, 0 to 1."""
    height, width = size
    try:
        number, *values = line.split()
        shares = [float(value) for value in values]
        annotation: dict[str, Any] = {"category_id": int(number)}
        if len(shares) == 4:
            x, y, box_width, box_height = (
                share * side for share, side in zip(shares, (width, height) * 2, strict=True)
            )
            return annotation | {"bbox": [x - box_width / 2, y - box_height / 2, box_width, box_height]}
        if len(shares) < 6 or len(shares) % 2:
            raise ValueError(f"{len(shares)} numbers are neither a box nor a polygon")
    except ValueError as error:
        raise DatasetError(f"{file}: {line[:80]!r} is not a line of YOLO labels: {error}") from error
    polygon = [share * (height if place % 2 else width) for place, share in enumerate(shares)]
    return annotation | {"segmentation": [polygon]}


def _listed_classes(path: Path) -> dict[int, str] | None:
    """Return the names in a file of classes by their line, from 0; None if it is not there."""
    if not path.is_file():
        return None
    classes = {value: name.strip() for value, name in enumerate(read_text(path).split("\n")) if name.strip()}
    _check_unique(f"{path.name} names the classes", list(classes.values()))
    return classes


def _images_in(folder: Path) -> list[Path]:
    files = sorted(each for each in folder.iterdir() if is_named_as(each))
    if not files:
        raise DatasetError(f"no image found in {str(folder)!r}; looked for *{', *'.join(sorted(IMAGE_SUFFIXES))}")
    return files


def read_text(path: Path) -> str:
    """Return a file's text in UTF-8, with or without a mark, or in UTF-16 with one; raises `DatasetError`."""
    try:
        content = path.read_bytes()
        # Editors of Windows begin a file with a mark of its encoding.
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise DatasetError(
            f"{str(path)!r} cannot be read as text in UTF-8: line {line} has the byte {byte:#x}. If it is Latin-1 or "
            "Windows-1252, save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises `DatasetError`, also for XML and for a key that an object has twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            _check_unique(f"{path.name} has the keys", [key for key, _ in pairs])
        return found

    text = read_text(path)
    if root := re.match(r"\s*<(?:[?!][^>]*>\s*<)*(\w+)", text):
        refuse_form(path.name, [f"<{root[1]}>"])
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read as JSON: {error}") from error


def _check_unique(what: str, values: Sequence[object], owners: Sequence[str] = ()) -> None:
    """Raise `DatasetError` for values that occur more than once, with their owners."""
    repeated = [value for value, count in Counter(values).items() if count > 1]
    pairs = list(zip(values, owners, strict=False))
    shown = [
        f"{each} ({few(owner for own, owner in pairs if own == each)})" if pairs else str(each) for each in repeated
    ]
    if shown:
        raise DatasetError(f"{what} {few(shown)} more than once; expected each of them once")


def _size_of(path: Path) -> tuple[int, int]:
    """Return an image's height and width after EXIF orientation."""
    try:
        return describe_file(path).size
    except (OSError, ImageFileError) as error:
        raise DatasetError(f"image {str(path)!r} cannot be read: {error}") from error


def repeated_labels(dataset: Dataset) -> int:
    """Return the number of objects that are labelled again, with the same class and the same mask or box."""
    keys = (
        (index, each["category_id"], json.dumps(each.get("segmentation") or each.get("bbox"), sort_keys=True))
        for index, image in enumerate(dataset.images)
        for each in image.annotations
        if not each.get("iscrowd")
    )
    return sum(count - 1 for count in Counter(keys).values())


def few(names: Iterable[str], most: int = _NAMED) -> str:
    """Return the first names with commas, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
