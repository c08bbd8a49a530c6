"""Runs where the exporters are: writes a network's file as its library does, photographs, and the library's answers.

`python exporters.py CASE FOLDER` writes `net.onnx`, what the library puts beside it, `photos/N.png` and `N.npz`: the
`labels` (height, width), or the `boxes` (n, 4) as x1, y1, x2, y2 in pixels of the photograph, `scores` and `classes`
(n,), and `masks` (n, height, width) if the network has any. Weights are random: the last layers are scaled so that all
classes occur. What is answered is the library's own post-processing of its own preprocessing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import nn
from torch.nn.functional import interpolate

NAMES = ("person", "bicycle", "car", "dog")
SIZES = ((240, 320), (300, 225))
Answers = list[dict[str, np.ndarray]]


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Draw discs and squares before a smooth ground."""
    random = np.random.default_rng(seed)
    drawn = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height))
    draw = ImageDraw.Draw(drawn)
    for shape in range(8):
        x, y, size = random.integers(0, width - 40), random.integers(0, height - 40), random.integers(20, 80)
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        (draw.ellipse if shape % 2 else draw.rectangle)((x, y, x + size, y + size), fill=colour)
    return drawn.filter(ImageFilter.GaussianBlur(1))


def photographs(folder: Path, sizes: tuple[tuple[int, int], ...]) -> list[Image.Image]:
    """Write pictures of these heights and widths."""
    folder.mkdir()
    made = [picture(number, *size) for number, size in enumerate(sizes)]
    for number, photo in enumerate(made):
        photo.save(folder / f"{number}.png")
    return made


def pictures(size: tuple[int, int]) -> torch.Tensor:
    """Return eight pictures of this height and width, (8, 3, height, width) float32 from 0 to 1."""
    drawn = np.stack([np.asarray(picture(seed, *size)) for seed in range(8)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255


def adapted(net: nn.Module, given: torch.Tensor) -> None:
    """Adapt batch norms to inputs, so that what the network computes is neither 0 nor huge."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(given)
    net.eval()


def export(net: nn.Module, given: torch.Tensor | tuple[torch.Tensor, ...], folder: Path, **options: Any) -> None:
    arguments = given if isinstance(given, tuple) else (given,)
    torch.onnx.export(net, arguments, str(folder / "net.onnx"), dynamo=False, opset_version=17, **options)


# Ultralytics: the answers are those of its own `predict` of the exported file.


def ultralytics(folder: Path, photos: list[Image.Image], name: str, **options: Any) -> Answers:
    from ultralytics import YOLO

    torch.manual_seed(3)
    model = YOLO(f"{name}.yaml")
    net = model.model
    if hasattr(net, "yaml"):
        _wake(net)
    net.names = {number: f"thing {number}" for number in range(net.yaml["nc"])}
    exported = Path(model.export(format="onnx", imgsz=320, simplify=False, opset=17, **options))
    exported.rename(folder / "net.onnx")
    loaded = YOLO(folder / "net.onnx", task=model.task)
    answers = []
    for number in range(len(photos)):
        (found,) = loaded.predict(folder / f"photos/{number}.png", imgsz=320, verbose=False, retina_masks=True)
        if getattr(found, "semantic_mask", None) is not None:
            answers.append({"labels": found.semantic_mask.data.numpy().squeeze()})
            continue
        if found.obb is not None:
            height, width = found.orig_shape
            corners = found.obb.xyxyxyxy.numpy()
            answers.append(
                {
                    "boxes": found.obb.xyxy.numpy().clip(0, [width, height] * 2),
                    "scores": found.obb.conf.numpy(),
                    "classes": found.obb.cls.numpy().astype(int),
                    "masks": np.array([inside(each, height, width) for each in corners], bool),
                }
            )
            continue
        if found.boxes is None:
            answers.append({})
            continue
        answer = {
            "boxes": found.boxes.xyxy.numpy(),
            "scores": found.boxes.conf.numpy(),
            "classes": found.boxes.cls.numpy().astype(int),
        }
        if found.keypoints is not None:
            answer["keypoints"] = found.keypoints.data.numpy()
        if found.masks is not None:
            answer["masks"] = found.masks.data.numpy().astype(bool)
        answers.append(answer)
    return answers


def inside(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels whose centres are on the same side of all edges of a rectangle (4, 2)."""
    y, x = np.mgrid[:height, :width] + 0.5
    edges = np.roll(corners, -1, axis=0) - corners
    sides = [dx * (y - y0) - dy * (x - x0) for (x0, y0), (dx, dy) in zip(corners, edges, strict=True)]
    return np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)


def _wake(net: nn.Module) -> None:
    """Adapt batch norms, and spread the scores of the last layers over all classes."""
    adapted(net, pictures((320, 320)))
    head = net.model[-1]  # type: ignore[index]
    lasts = [layers[-1] for name in ("cv3", "one2one_cv3") for layers in getattr(head, name, None) or ()]
    spread(net, lasts, pictures((320, 320)), mean=-5.0, largest=1.5)


def spread(net: nn.Module, lasts: list[Any], given: torch.Tensor, mean: float, largest: float) -> None:
    """Scale layers so that their outputs for the given pictures have this mean and maximum."""
    seen: dict[Any, torch.Tensor] = {}
    hooks = [layer.register_forward_hook(lambda own, _, output: seen.__setitem__(own, output)) for layer in lasts]
    with torch.no_grad():
        net(given)
        for layer in lasts:
            if layer in seen:
                factor = (largest - mean) / (seen[layer].max() - seen[layer].mean())
                layer.weight.mul_(factor)
                layer.bias.mul_(factor).add_(mean - factor * seen[layer].mean())
    for hook in hooks:
        hook.remove()


# transformers: a small network of its configuration, and its own image processor before and after it.


class _Outputs(nn.Module):
    """Returns some outputs of a network of transformers, in order, as tensors."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, pixels: torch.Tensor, *mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.net(pixels, *mask)
        return tuple(getattr(found, name) for name in self.names)


def transformers(
    folder: Path,
    photos: list[Image.Image],
    make: Callable[[], tuple[Any, Any]],
    task: str,
    heads: str,
    outputs: str,
    mend: Callable[[Path], None] = lambda path: None,
    masked: bool = False,
) -> Answers:
    """Serve `make`'s network and processor; `heads` are ends of the names of layers whose scores are spread.

    `mend` changes the file, which is also given the mask of the padding if it is `masked`.
    """
    torch.manual_seed(5)
    net, processor = make()
    if task == "semantic":
        many = [picture(seed, *SIZES[0]) for seed in range(8)]
        adapted(_Outputs(net, tuple(outputs.split())), processor(images=many, return_tensors="pt")["pixel_values"])
    net = net.eval()
    first = processor(images=photos[0], return_tensors="pt")["pixel_values"]
    lasts = [layer for name, layer in net.named_modules() if name.endswith(tuple(heads.split()))]
    wrapped = _Outputs(net, tuple(outputs.split())).eval()
    for layer in lasts:
        mean, largest = SPREADS[task]
        spread(wrapped, [layer], first, mean=mean, largest=largest)
    names = ["pixel_values", "pixel_mask"] if masked else ["pixel_values"]
    given = processor(images=photos[0], return_tensors="pt")
    export(wrapped, tuple(given[name] for name in names), folder, input_names=names, output_names=outputs.split())
    mend(folder / "net.onnx")
    net.config.architectures = [type(net).__name__]
    net.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    answers = []
    for photo in photos:
        with torch.no_grad():
            found = net(**processor(images=photo, return_tensors="pt"))
        size = [(photo.height, photo.width)]
        if task == "semantic":
            (labels,) = processor.post_process_semantic_segmentation(found, target_sizes=size)
            answers.append({"labels": labels.numpy()})
        elif task == "panoptic":
            (segments,) = processor.post_process_panoptic_segmentation(found, target_sizes=size)
            labels = np.full(size[0], 255)
            for segment in segments["segments_info"]:
                labels[segments["segmentation"].numpy() == segment["id"]] = segment["label_id"]
            answers.append({"labels": labels})
        else:
            (objects,) = processor.post_process_object_detection(found, threshold=0.5, target_sizes=torch.tensor(size))
            names = ("boxes", "scores", "labels")
            boxes, scores, classes = (objects[name].detach().numpy() for name in names)
            answers.append({"boxes": boxes, "scores": scores, "classes": classes})
    return answers


SPREADS = {"semantic": (0.0, 5.0), "panoptic": (0.0, 12.0), "boxes": (-4.0, 2.5)}
"""Means and maxima of logits by task; the probability of a panoptic segment must exceed 0.8."""
SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"}
QUERIES = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2}
QUERIES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 30}
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}


def segformer() -> tuple[Any, Any]:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    net = SegformerForSemanticSegmentation(SegformerConfig(**LABELS))
    return net, SegformerImageProcessor(size={"height": 128, "width": 160})


def dpt() -> tuple[Any, Any]:
    from transformers import DPTConfig, DPTForSemanticSegmentation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=128,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 32, 32], fusion_hidden_size=16,
        use_auxiliary_head=False, semantic_classifier_dropout=0.0, **LABELS,
    )  # fmt: skip
    processor = DPTImageProcessor(size={"height": 128, "width": 128}, keep_aspect_ratio=False)
    return DPTForSemanticSegmentation(config), processor


def mobilevit() -> tuple[Any, Any]:
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation, MobileViTImageProcessor

    net = MobileViTForSemanticSegmentation(MobileViTConfig(image_size=128, **LABELS))
    processor = MobileViTImageProcessor(
        size={"height": 128, "width": 128}, do_center_crop=False, do_flip_channel_order=True
    )
    return net, processor


def _resnet() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(**SMALL_RESNET, out_features=["stage4"])


def detr() -> tuple[Any, Any]:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

    config = DetrConfig(use_timm_backbone=False, backbone=None, backbone_config=_resnet(), **QUERIES, **LABELS)
    return DetrForObjectDetection(config), DetrImageProcessor(size={"height": 128, "width": 160}, do_pad=False)


def padded_detr() -> tuple[Any, Any]:
    from transformers import DetrImageProcessor

    size, padded = {"shortest_edge": 160, "longest_edge": 160}, {"height": 160, "width": 160}
    return detr()[0], DetrImageProcessor(size=size, pad_size=padded)


def conditional_detr() -> tuple[Any, Any]:
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection, ConditionalDetrImageProcessor

    config = ConditionalDetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=_resnet(), **QUERIES, **LABELS
    )
    processor = ConditionalDetrImageProcessor(size={"height": 128, "width": 160}, do_pad=False)
    return ConditionalDetrForObjectDetection(config), processor


def rt_detr() -> tuple[Any, Any]:
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(**SMALL_RESNET, out_features=["stage2", "stage3", "stage4"])
    config = RTDetrConfig(
        backbone_config=backbone, backbone=None, encoder_hidden_dim=32, encoder_in_channels=[24, 32, 48],
        encoder_ffn_dim=32, encoder_attention_heads=2, d_model=32, num_queries=30, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32, decoder_layers=2, decoder_attention_heads=2, num_denoising=0, anchor_image_size=[160, 160],
        **LABELS,
    )  # fmt: skip
    return RTDetrForObjectDetection(config), RTDetrImageProcessor(size={"height": 160, "width": 160})


def maskformer() -> tuple[Any, Any]:
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerImageProcessor,
        ResNetConfig,
    )

    backbone = ResNetConfig(**SMALL_RESNET, out_features=["stage1", "stage2", "stage3", "stage4"])
    decoder = DetrConfig(**QUERIES)
    config = MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **LABELS
    )
    processor = MaskFormerImageProcessor(size={"height": 128, "width": 160}, do_resize=True, size_divisor=32)
    return MaskFormerForInstanceSegmentation(config), processor


def mask2former() -> tuple[Any, Any]:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        ResNetConfig,
    )

    backbone = ResNetConfig(**SMALL_RESNET, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(
        backbone_config=backbone, hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, encoder_feedforward_dim=32, dim_feedforward=32, num_queries=20,
        **LABELS,
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor(size={"height": 128, "width": 160})


def grids_of_float32(path: Path) -> None:
    """Cast the grids that features are sampled at: torch's exporter (dynamo=False) makes them float64."""
    model = onnx.load(path)
    casts = []
    for node in model.graph.node:
        if node.op_type == "GridSample":
            cast = f"{node.input[1]}.float32"
            casts.append(onnx.helper.make_node("Cast", [node.input[1]], [cast], to=onnx.TensorProto.FLOAT))
            node.input[1] = cast
    for cast in casts:
        place = next(i for i, node in enumerate(model.graph.node) if cast.input[0] in node.output)
        model.graph.node.insert(place + 1, cast)
    onnx.save(model, path)


def eomt() -> tuple[Any, Any]:
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessorFast

    config = EomtConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=128, patch_size=16,
        num_queries=20, num_blocks=1, num_upscale_blocks=2, **LABELS,
    )  # fmt: skip
    processor = EomtImageProcessorFast(size={"shortest_edge": 128, "longest_edge": 128}, do_pad=True)
    return EomtForUniversalSegmentation(config), processor


# Networks of convolutions: preprocessing of their documentation, logits resized as torch does, argmax.

MEAN, DEVIATION = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def convolutional(
    folder: Path,
    photos: list[Image.Image],
    make: Callable[[], tuple[nn.Module, Any]],
    outputs: str = "logits",
    *,
    classes: int = len(NAMES),
    above: float = 0.0,
    bgr: bool = False,
    resized: str = "OpenCV",
    channels_last: bool = False,
    has_argmax: bool = False,
    change: Callable[[Path, list[np.ndarray]], None] | None = None,
) -> Answers:
    """Serve `make`'s network, whose last layer it returns as well; `above` is the threshold of a single class.

    `resized` names the library that resizes photographs: OpenCV, as albumentations does, which also resizes labels;
    torchvision with its second version of transforms; torch with float tensors, as tf.image does; MONAI with grey ones.
    `change` changes the file; what it gets of photographs is for calibration. Answers are then those of the file.
    """
    torch.manual_seed(7)
    net, last = make()
    size = (224, 224)

    def prepared(photo: Image.Image) -> torch.Tensor:
        if resized == "MONAI":
            from monai.transforms import Resize

            grey = torch.from_numpy(np.asarray(photo.convert("L"))[None] / 255).float()
            return Resize(size, mode="bilinear")(grey).as_tensor()[None]
        given = np.asarray(photo)
        if resized == "OpenCV":
            given = cv2.resize(given, size, interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(given).permute(2, 0, 1)
        if resized == "torchvision":
            from torchvision.transforms.v2.functional import resize

            pixels = resize(pixels, list(size))
        pixels = interpolate(pixels[None].float(), size, mode="bilinear", align_corners=False)[0] / 255
        pixels = (pixels - MEAN) / DEVIATION
        return (pixels.flip(0) if bgr else pixels)[None]

    adapted(net, torch.cat([prepared(picture(seed, *size)) for seed in range(8)]))
    spread(net, [last], prepared(photos[0]), mean=0.0, largest=5.0)
    served, given = net, prepared(photos[0])
    if has_argmax:
        served = nn.Sequential(net, _Argmax()).eval()
    if channels_last:
        served, given = _ChannelsLast(net).eval(), given.permute(0, 2, 3, 1)
    export(served, given, folder, input_names=["image"], output_names=outputs.split())
    ask: Callable[[torch.Tensor], Any] = net
    if change is not None:
        change(folder / "net.onnx", [prepared(picture(seed, *size)).numpy() for seed in range(8)])
        ask = run_file(folder / "net.onnx")
    answers = []
    for photo in photos:
        with torch.no_grad():
            found = ask(prepared(photo))
        logits = found[0] if isinstance(found, tuple) else found
        target = (photo.height, photo.width)
        if has_argmax:
            labels = interpolate(logits.argmax(1, keepdim=True).float(), target, mode="nearest")[0, 0]
        else:
            logits = interpolate(logits, target, mode="bilinear", align_corners=False)[0]
            labels = (logits[0] > above) if classes == 1 else logits.argmax(0)
        answers.append({"labels": labels.numpy().astype(int)})
    return answers


def run_file(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that runs the network in ONNX Runtime; a file that lacks its weights runs nothing."""
    if not (path.parent / "net.onnx.data").exists() and path.stat().st_size < 10**6:
        return lambda pixels: torch.zeros((1, len(NAMES), *pixels.shape[2:]))
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    kind = np.float16 if "float16" in given.type else np.float32
    return lambda pixels: torch.from_numpy(session.run(None, {given.name: pixels.numpy().astype(kind)})[0]).float()


def with_external_data(path: Path, photos: list[np.ndarray], missing: bool = False) -> None:
    """Keep weights in a file beside the network, as torch.onnx.export does by default."""
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="net.onnx.data")
    if missing:
        (path.parent / "net.onnx.data").unlink()


def quantised(path: Path, photos: list[np.ndarray]) -> None:
    """Quantise weights and activations to int8, as QuantizeLinear and DequantizeLinear."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Photos(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"image": photos.pop()} if photos else None

    quantize_static(path, path, Photos(), quant_format=QuantFormat.QDQ)


def halved(path: Path, photos: list[np.ndarray], keep: tuple[str, ...] = ()) -> None:
    """Make all tensors float16 but those to keep."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=list(keep)), path)


def smp(name: str, encoder: str = "resnet18", **options: Any) -> tuple[nn.Module, Any]:
    import segmentation_models_pytorch

    options = {"encoder_weights": None, "classes": len(NAMES)} | options
    net = getattr(segmentation_models_pytorch, name)(encoder, **options)
    return net, net.segmentation_head[0]


def torchvision_fcn() -> tuple[nn.Module, Any]:
    from torchvision.models.segmentation import fcn_resnet50

    net = fcn_resnet50(weights=None, weights_backbone=None, num_classes=len(NAMES), aux_loss=True)
    return _Values(net), net.classifier[-1]


def monai_unet() -> tuple[nn.Module, Any]:
    from monai.networks.nets import BasicUNet

    net = BasicUNet(spatial_dims=2, in_channels=1, out_channels=len(NAMES), features=(8, 8, 16, 16, 16, 8))
    return net, net.final_conv


class _Values(nn.Module):
    """Returns the values of a dictionary in order."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.net(pixels).values())


class _ChannelsLast(nn.Module):
    """Takes and returns channels last, as tf2onnx writes Keras' networks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(pixels.permute(0, 3, 1, 2))
        return logits.permute(0, 2, 3, 1)


class _Argmax(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(1)


# RF-DETR: its own export, and its own `predict`.


def rf_detr(folder: Path, photos: list[Image.Image], name: str, **options: Any) -> Answers:
    import rfdetr

    torch.manual_seed(11)
    model = getattr(rfdetr, name)(pretrain_weights=None, num_classes=len(NAMES), device="cpu", **options)
    net = model.model.model.eval()
    side = model.model.resolution
    lasts = [layer for part, layer in net.named_modules() if part.endswith("class_embed") or "class_embed." in part]
    for layer in lasts:
        if isinstance(layer, nn.Linear):
            spread(net, [layer], pictures((side, side))[:1], mean=-5.0, largest=2.0)
    exported = Path(model.export(output_dir=str(folder), verbose=False))
    exported.rename(folder / "net.onnx")
    answers = []
    for photo in photos:
        found = model.predict(photo, threshold=0.5)
        answer = {"boxes": found.xyxy, "scores": found.confidence, "classes": found.class_id}
        answers.append(answer if found.mask is None else answer | {"masks": found.mask})
    return answers


# RapidOCR: the answers are those of the trained text detector that its package carries, on text.


def rapidocr(folder: Path, photos: list[Image.Image]) -> Answers:
    import rapidocr_onnxruntime
    from rapidocr_onnxruntime.ch_ppocr_det.utils import DetPreProcess

    package = Path(rapidocr_onnxruntime.__file__).parent
    shutil.copyfile(package / "models/ch_PP-OCRv4_det_infer.onnx", folder / "net.onnx")
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    prepare, answers = DetPreProcess(limit_side_len=10_000, limit_type="max"), []
    for number, size in enumerate(((256, 320), (288, 224))):
        photo = picture(number, *size)
        for line, text in enumerate(("segment", "anything", "2026")):
            ImageDraw.Draw(photo).text(
                (20, 30 + 70 * line), text, font_size=36, fill="white", stroke_width=2, stroke_fill=0
            )
        photo.save(folder / f"photos/{number}.png")
        (likely,) = session.run(None, {session.get_inputs()[0].name: prepare(np.asarray(photo)[..., ::-1])})
        assert (likely > 0.5).mean() > 0.05, "it finds the text"
        answers.append({"labels": (likely[0, 0] > 0.5).astype(int)})
    return answers


# IMG.LY: the opacity of its JavaScript, rounded to labels, on photographs of the network's size; it resizes others by a
# rule of its own.


def imgly(folder: Path, photos: list[Image.Image]) -> Answers:
    side = 1024
    for number in range(len(photos)):
        # Of few, large things: the network is of whatever stands in front.
        picture(number + 1, side // 4, side // 4).resize((side, side)).save(folder / f"photos/{number}.png")
    # The package looks for its files below the working directory.
    subprocess.run(["node", "run.mjs", folder], cwd=Path(sys.prefix) / "imgly", check=True)
    answers = []
    for number in range(len(photos)):
        found = np.fromfile(folder / f"{number}.rgba", np.uint8).reshape(side, side, 4)[..., 3] > 127
        assert 0.02 < found.mean() < 0.98, "it finds something, and not all"
        answers.append({"labels": found.astype(int)})
    return answers


CASES: dict[str, Callable[[Path, list[Image.Image]], Answers]] = {
    "ultralytics-yolo11-detect": partial(ultralytics, name="yolo11n"),
    "ultralytics-yolo11-seg": partial(ultralytics, name="yolo11n-seg"),
    "ultralytics-yolo11-seg-dynamic": partial(ultralytics, name="yolo11n-seg", dynamic=True),
    "ultralytics-yolo11-seg-half": partial(ultralytics, name="yolo11n-seg", half=True),
    "ultralytics-yolov8-seg": partial(ultralytics, name="yolov8n-seg"),
    "ultralytics-yolov10-detect": partial(ultralytics, name="yolov10n"),
    "ultralytics-yolo26-detect": partial(ultralytics, name="yolo26n"),
    "ultralytics-yolo26-seg": partial(ultralytics, name="yolo26n-seg"),
    "ultralytics-yolo11-pose": partial(ultralytics, name="yolo11n-pose"),
    "ultralytics-yolo11-obb": partial(ultralytics, name="yolo11n-obb"),
    "ultralytics-yolo26-obb": partial(ultralytics, name="yolo26n-obb"),
    "ultralytics-yolo11-seg-nms": partial(ultralytics, name="yolo11n-seg", nms=True),
    "ultralytics-yolo11-obb-nms": partial(ultralytics, name="yolo11n-obb", nms=True),
    "ultralytics-yolo11-cls": partial(ultralytics, name="yolo11n-cls"),
    "ultralytics-yolo26-sem": partial(ultralytics, name="yolo26n-sem"),
    "rf-detr": partial(rf_detr, name="RFDETRNano"),
    "rf-detr-seg": partial(rf_detr, name="RFDETRSegNano"),
    "transformers-segformer": partial(
        transformers, make=segformer, task="semantic", heads="decode_head.classifier", outputs="logits"
    ),
    "transformers-dpt": partial(transformers, make=dpt, task="semantic", heads="head.head.4", outputs="logits"),
    "transformers-mobilevit": partial(
        transformers, make=mobilevit, task="semantic", heads="classifier.convolution", outputs="logits"
    ),
    "transformers-detr": partial(
        transformers, make=detr, task="boxes", heads="class_labels_classifier", outputs="logits pred_boxes"
    ),
    "transformers-detr-mask": partial(
        transformers, make=padded_detr, task="boxes", heads="class_labels_classifier", outputs="logits pred_boxes",
        masked=True,
    ),
    "transformers-conditional-detr": partial(
        transformers, make=conditional_detr, task="boxes", heads="class_labels_classifier", outputs="logits pred_boxes"
    ),
    "transformers-rt-detr": partial(
        transformers, make=rt_detr, task="boxes", heads="enc_score_head class_embed.0 class_embed.1",
        outputs="logits pred_boxes",
    ),
    "transformers-maskformer": partial(
        transformers, make=maskformer, task="panoptic", heads="class_predictor",
        outputs="class_queries_logits masks_queries_logits",
    ),
    "transformers-mask2former": partial(
        transformers, make=mask2former, task="panoptic", heads="class_predictor",
        outputs="class_queries_logits masks_queries_logits",
    ),
    "transformers-mask2former-float32": partial(
        transformers, make=mask2former, task="panoptic", heads="class_predictor",
        outputs="class_queries_logits masks_queries_logits", mend=grids_of_float32,
    ),
    "transformers-eomt": partial(
        transformers, make=eomt, task="panoptic", heads="class_predictor",
        outputs="class_queries_logits masks_queries_logits",
    ),
    "smp-unet": partial(convolutional, make=partial(smp, "Unet")),
    "smp-deeplabv3plus": partial(convolutional, make=partial(smp, "DeepLabV3Plus")),
    "smp-segformer": partial(convolutional, make=partial(smp, "Segformer", "mit_b0")),
    "smp-unet-one-class": partial(convolutional, make=partial(smp, "Unet", classes=1), classes=1),
    "smp-unet-sigmoid": partial(
        convolutional, make=partial(smp, "Unet", classes=1, activation="sigmoid"), classes=1, above=0.5
    ),
    "smp-unet-softmax": partial(convolutional, make=partial(smp, "Unet", activation="softmax2d")),
    "smp-unet-aux": partial(
        convolutional, make=partial(smp, "Unet", aux_params={"classes": 3}), outputs="masks labels"
    ),
    "smp-unet-argmax": partial(convolutional, make=partial(smp, "Unet"), has_argmax=True, outputs="labels"),
    "smp-unet-bgr": partial(convolutional, make=partial(smp, "Unet"), bgr=True),
    "smp-unet-external": partial(convolutional, make=partial(smp, "Unet"), change=with_external_data),
    "smp-unet-external-missing": partial(
        convolutional, make=partial(smp, "Unet"), change=partial(with_external_data, missing=True)
    ),
    "smp-unet-int8": partial(convolutional, make=partial(smp, "Unet"), change=quantised),
    "smp-unet-fp16-input": partial(
        convolutional, make=partial(smp, "Unet"), change=partial(halved, keep=("logits",))
    ),
    "smp-unet-fp16": partial(convolutional, make=partial(smp, "Unet"), change=halved),
    "torchvision-fcn": partial(convolutional, make=torchvision_fcn, resized="torchvision", outputs="out aux"),
    "monai-unet": partial(convolutional, make=monai_unet, resized="MONAI"),
    "rapidocr-detector": rapidocr,
    "imgly-isnet": imgly,
    "keras-unet": partial(convolutional, make=partial(smp, "Unet"), resized="torch", channels_last=True),
}  # fmt: skip


def main(case: str, folder: Path) -> None:
    photos = photographs(folder / "photos", SIZES)
    for number, answer in enumerate(CASES[case](folder, photos)):
        np.savez(folder / f"{number}.npz", **answer)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
