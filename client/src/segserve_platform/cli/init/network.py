"""Inspects an ONNX file and its folder: weights in other files, tensors, operators, metadata, first arithmetic.

Also what a guess from them is made of: the user's overrides, choices with their reasons, trials.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve_builder.export.image_processor import FILE_NAME, ImageProcessor, read_image_processor
from segserve_builder.families.base import IMAGE_DTYPES, NetworkSignature, TensorSpec, described
from segserve_builder.families.network_inputs import image_tensor
from segserve_builder.steps.onnx_signature import (
    LONGEST_CHAIN,
    MAX_BYTES,
    METADATA_OPERATORS,
    external_files,
    read_signature,
)
from segserve_platform.cli.errors import CommandError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Place: TypeAlias = tuple[str | int, ...]
"""A path within a resource: `("spec", "classes")`."""
StageOptions: TypeAlias = Mapping[str, Any]
Progress: TypeAlias = Callable[[str], None]
"""Called with what is being tried: "normalisation 2 of 4"."""
PASSING: Final = frozenset(
    {"Cast", "Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "Pad", "Slice", "Resize"}
)
"""Operators that do not change the values of pixels."""
COLOURS: Final[dict[int, Literal["RGB", "GREY"]]] = {3: "RGB", 1: "GREY"}
BESIDE: Final = ("config.json", FILE_NAME)
"""Files that describe a network, in its folder."""


def no_progress(_: str) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Remark:
    """A comment on the field at `place`; one that is not `sure` is also listed for the user to check.

    Lines of `text` stay lines.
    """

    place: Place
    text: str
    sure: bool = True


@dataclass(frozen=True)
class Overrides:
    """The user's own statements about the network; None is guessed."""

    family: str | None = None
    classes: str | None = None


@dataclass(frozen=True)
class Choice:
    """Stages of a pipeline and the reason for them; None if they are still to be determined by trials."""

    steps: tuple[StageOptions, ...] | None
    remark: Remark


@dataclass(frozen=True)
class Trial:
    """The result of one way of preparing images: 0 (nothing found, or by chance) to 1 (sure, and the same mirrored)."""

    name: str
    score: float


@contextmanager
def one_file(network: Path) -> Iterator[Path]:
    """Yield the file of a network, or a copy with all weights inside, which lasts as long as the block.

    torch's exporter writes weights beside the file, as `net.onnx.data`. Raises `CommandError` if one of those files is
    missing or elsewhere, or if all are too large for one, and the errors of `external_files`.
    """
    try:
        names = sorted(external_files(network))
    except OSError as error:
        raise CommandError(f"{network}: {error.strerror}") from error
    if not names:
        yield network
        return
    files, listed = [network.parent / name for name in names], ", ".join(names)
    missing = [file for file in files if file.parent != network.parent or not file.is_file()]
    if missing:
        raise CommandError(
            f"{network} keeps weights in {listed}, and {', '.join(file.name for file in missing)} is not beside it: "
            "put it there, or export the network again with external_data=False"
        )
    size = sum(file.stat().st_size for file in (network, *files))
    if size > MAX_BYTES:
        raise CommandError(
            f"{network} and {listed} have {size} bytes; the one file that is served has at most {MAX_BYTES}: export "
            "the network in half precision"
        )
    import onnx

    with TemporaryDirectory(prefix="segserve-init-") as folder:
        whole = Path(folder) / network.name
        onnx.save(onnx.load(network), whole)
        for name in BESIDE:
            if (network.parent / name).is_file():
                shutil.copyfile(network.parent / name, whole.parent / name)
        yield whole


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic that a graph starts with: `pixel * factor + offset`, one number per channel or one for all."""

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def does_nothing(self) -> bool:
        """Whether pixels enter the network unchanged."""
        return set(self.factor) <= {1.0} and set(self.offset) <= {0.0}

    @property
    def of_bytes(self) -> bool:
        """Whether it is meant for pixels of 0 to 255 and not of 0 to 1, given that networks take about -3 to 3."""
        return max(map(abs, self.factor)) < 0.2 or max(map(abs, self.offset)) > 10


@dataclass(frozen=True)
class ImageInput:
    """The image input of a network; None is a free size. `single` inputs have no batch axis."""

    name: str
    dtype: str
    colour: Literal["RGB", "GREY"]
    layout: Literal["NCHW", "NHWC"]
    height: int | None
    width: int | None
    batch: int | None
    single: bool = False

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for GREY."""
        return 3 if self.colour == "RGB" else 1

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width if both are fixed."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a batch of images."""
        sides = (self.channels, height, width) if self.layout == "NCHW" else (height, width, self.channels)
        return sides if self.single else (batch, *sides)


@dataclass(frozen=True)
class NetworkFile:
    """One ONNX file. `shapes` are the outputs' for one image, if it was run; declared sizes may be free.

    `probabilities` are the outputs whose values were all within 0 and 1 in several runs.
    """

    path: Path
    signature: NetworkSignature
    operators: frozenset[str]
    metadata: Mapping[str, str]
    arithmetic: Arithmetic | None
    """None if the graph starts with arithmetic that is not with constants."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The config.json of transformers beside the file."""
    processor: ImageProcessor = field(default_factory=ImageProcessor)
    """The image processor of transformers beside the file."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    probabilities: frozenset[str] = frozenset()
    run_size: tuple[int, int] | None = None
    """Height and width of the input in the run that has shown `shapes`."""

    @property
    def image(self) -> TensorSpec:
        """The input that is the image."""
        return image_tensor(self.signature)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The height and width of the input, or of the run that has shown `shapes`; None without either."""
        shape = self.image.shape
        height, width = shape[-3:-1] if shape[-1] in COLOURS else shape[-2:]
        return self.run_size if height is None or width is None else (height, width)

    def shape(self, tensor: TensorSpec) -> tuple[int | None, ...]:
        """Return the shape of an output, with dimensions that only running the network has shown."""
        observed = self.shapes.get(tensor.name, ())
        if len(observed) != len(tensor.shape):
            return tensor.shape
        return tuple(old if old is not None else new for old, new in zip(tensor.shape, observed, strict=True))

    def is_within_0_and_1(self, tensor: TensorSpec) -> bool:
        """Return whether the network was run, and all values of an output are probabilities by their size."""
        return tensor.name in self.probabilities


def read_network(path: Path) -> NetworkFile:
    """Inspect the file at `path`.

    Raises `CommandError` if there is no such file, and the errors of `read_signature` if it cannot be served.
    """
    import onnx

    try:
        signature = read_signature(path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    model = onnx.load(path, load_external_data=False)
    return NetworkFile(
        path,
        signature,
        frozenset(node.op_type for node in model.graph.node),
        {entry.key: entry.value for entry in model.metadata_props},
        _arithmetic(model.graph, image_tensor(signature).name),
        _beside(path),
        read_image_processor(path.parent),
    )


def image_input(tensor: TensorSpec, channels: object = None) -> ImageInput:
    """Return the image input that a tensor describes, of so many `channels` if the file leaves their number free.

    Raises `CommandError` if it cannot be an image, or has a fixed batch of several.
    """
    axes = tensor.shape[1:] if len(tensor.shape) == 4 else tensor.shape
    if len(axes) == 3 and axes[0] is None and axes[2] is None and channels in COLOURS:
        axes = (channels, *axes[1:])
    if tensor.dtype not in IMAGE_DTYPES or len(axes) != 3:
        raise CommandError(
            f"input {described(tensor)} is not an image; allowed are {', '.join(IMAGE_DTYPES)} with 4 axes: "
            "[batch, 3, height, width], [batch, height, width, 3], or 1 channel instead of 3"
        )
    single = len(tensor.shape) == 3
    batch = 1 if single else tensor.shape[0]
    if batch not in (None, 1):
        raise CommandError(
            f"input {described(tensor)} has a fixed batch of {batch}, and images come one by one: export it with a "
            "batch of 1 or a free one (dynamic_shapes or dynamic_axes of torch.onnx.export; dynamic=True or batch=1 of "
            "Ultralytics)"
        )
    if axes[0] in COLOURS:
        return ImageInput(tensor.name, tensor.dtype, COLOURS[axes[0]], "NCHW", axes[1], axes[2], batch, single)
    if axes[2] in COLOURS:
        return ImageInput(tensor.name, tensor.dtype, COLOURS[axes[2]], "NHWC", axes[0], axes[1], batch, single)
    raise CommandError(
        f"input {described(tensor)}: the number of channels must be 3 (RGB) or 1 (GREY), as the second or last axis; "
        "where the file leaves it free and does not begin with a convolution, transformers' config.json beside the "
        "file has it as num_channels"
    )


def _beside(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((path.parent / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and "architectures" in config else {}


def _arithmetic(graph: Any, name: str) -> Arithmetic | None:
    """Follow the image through the graph as long as only arithmetic with constants is applied to it."""
    import numpy as np

    constants = dict(_constants(graph))
    factor, offset = np.ones(1), np.zeros(1)
    for _ in range(LONGEST_CHAIN):
        users = [node for node in graph.node if name in node.input and node.op_type not in METADATA_OPERATORS]
        if len(users) != 1:
            break
        (node,) = users
        if node.op_type in PASSING and node.input[0] == name:
            name = node.output[0]
            continue
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            break
        applied = _applied(node, name, constants, factor, offset)
        if applied is None:
            return None
        (factor, offset), name = applied, node.output[0]
    if not factor.all():
        return None
    return Arithmetic(tuple(map(float, factor)), tuple(map(float, offset)))


def _applied(
    node: Any, name: str, constants: Mapping[str, NDArray[Any]], factor: NDArray[Any], offset: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    first = node.input[0] == name
    number = constants.get(node.input[1 if first else 0])
    if number is None or number.size not in (1, 3) or not (first or node.op_type in ("Add", "Mul")):
        return None
    number = number.astype("float64").ravel()
    match node.op_type:
        case "Add":
            return factor, offset + number
        case "Sub":
            return factor, offset - number
        case "Mul":
            return factor * number, offset * number
        case _:
            return factor / number, offset / number


def _constants(graph: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield small tensors by name: initialisers, constants, and constants that were only reshaped."""
    from onnx import numpy_helper

    small: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer if sum(t.dims) <= 8}
    yield from small.items()
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            small[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in PASSING and node.input and node.input[0] in small:
            small[node.output[0]] = small[node.input[0]]
        else:
            continue
        yield node.output[0], small[node.output[0]]
