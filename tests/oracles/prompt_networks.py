"""Promptable networks of other libraries with random weights, and the libraries' own answers to prompts.

    python prompt_networks.py CASE FOLDER

Writes encoder.onnx, decoder.onnx, photographs, and prompts.json with the prompts of each. answers.npz has for each
photograph and prompt, as packed bits, where the library's mask logits are above 0 (`above`), and where they are too
near to 0 to decide (`near`), and the predicted IoU (`score`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

NEAR = 1e-3
SIZES = (
    *((640, 480), (480, 640), (1, 1), (37, 501), (1024, 1024), (4000, 3000), (1023, 7), (1024, 683), (300, 300)),
    *((2000, 1025), (64, 64), (800, 600), (97, 101), (1500, 500), (500, 1500), (1025, 1024), (333, 222), (720, 1280)),
)
TURNED = (640, 427)
"""One that its file has on its side."""
GREY = (512, 400)


def photographs(folder: Path) -> list[np.ndarray]:
    """Write photographs of discs and noise; return their pixels (H, W, 3) as people see them."""
    random = np.random.default_rng(7)

    def drawn(width: int, height: int) -> Image.Image:
        image = Image.fromarray(random.integers(0, 60, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, r = random.integers(0, width), random.integers(0, height), random.integers(1, max(2, width // 4))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(random.integers(60, 255, 3).tolist()))
        return image

    images = [drawn(*size) for size in SIZES]
    for number, image in enumerate(images):
        image.save(folder / f"{number:02}.png")
    turned, grey = drawn(*TURNED), drawn(*GREY).convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.transpose(Image.Transpose.ROTATE_90).save(folder / f"{len(SIZES):02}.png", exif=exif)
    grey.save(folder / f"{len(SIZES) + 1:02}.png")
    return [np.asarray(image.convert("RGB")) for image in (*images, turned, grey)]


def prompts_of(image: np.ndarray, random: np.random.Generator) -> list[dict[str, Any]]:
    """Return five prompts: points, also of what is not the object, refined logits, a box, and a box with a point."""
    height, width = image.shape[:2]

    def points(number: int) -> list[list[float]]:
        return (random.random((number, 2)) * [width, height]).round(1).tolist()

    box = [width * 0.2, height * 0.1, width * 0.8, height * 0.9]
    return [
        {"points": points(1), "labels": [1]},
        {"points": points(3), "labels": [1, 0, 1]},
        {"points": points(1), "labels": [1], "refined": True},
        {"points": [], "labels": [], "box": box},
        {"points": points(1), "labels": [0], "box": box},
    ]


def export(
    network: torch.nn.Module, example: Mapping[str, Any], path: Path, outputs: list[str], **options: Any
) -> None:
    torch.onnx.export(
        network,
        tuple(example.values()),
        path,
        input_names=list(example),
        output_names=outputs,
        opset_version=17,
        dynamo=False,
        **options,
    )


Answers = list[list[tuple[torch.Tensor, float]]]


def mobile_sam(folder: Path, images: Iterable[np.ndarray]) -> tuple[Answers, list[Any]]:
    """Export MobileSAM by `SamOnnxModel`, which answers as well."""
    from mobile_sam import SamPredictor, sam_model_registry
    from mobile_sam.utils.onnx import SamOnnxModel
    from torchvision.transforms.v2 import functional

    sam = spread(sam_model_registry["vit_t"]().eval(), 3, ("output_hypernetworks_mlps", "iou_prediction_head"))
    own, predictor, random = SamOnnxModel(sam, return_single_mask=True), SamPredictor(sam), np.random.default_rng(3)
    answers, asked = [], []
    for image in images:
        size, found, former = image.shape[:2], [], torch.zeros(1, 1, 256, 256)
        # Its predictor resizes as Pillow does, by other roundings than torchvision and transformers.
        planes = torch.tensor(image).permute(2, 0, 1)[None]
        inner = predictor.transform.get_preprocess_shape(*size, 1024)
        predictor.set_torch_image(functional.resize(planes, list(inner), antialias=True), size)
        asked.append(prompts_of(image, random))
        for prompt in asked[-1]:
            # As its own example does: a box is two points, and without one a point that is none ends the prompt.
            more, marks = (prompt["box"], [2, 3]) if "box" in prompt else ([0, 0], [-1])
            points = np.concatenate([np.reshape(prompt["points"], (-1, 2)), np.reshape(more, (-1, 2))])
            refined = prompt.get("refined", False)
            masks, scores, former = own(
                predictor.features,
                torch.tensor(predictor.transform.apply_coords(points, size), dtype=torch.float32)[None],
                torch.tensor([*prompt["labels"], *marks], dtype=torch.float32)[None],
                former if refined else torch.zeros(1, 1, 256, 256),
                torch.tensor([float(refined)]),
                torch.tensor(size, dtype=torch.float32),
            )
            found.append((masks[0, 0], float(scores[0, 0])))
        answers.append(found)
    # Last: an export changes what TinyViT answers afterwards.
    export(sam.image_encoder, {"image": torch.zeros(1, 3, 1024, 1024)}, folder / "encoder.onnx", ["image_embeddings"])
    example = {
        "image_embeddings": torch.randn(1, 256, 64, 64),
        "point_coords": torch.ones(1, 5, 2),
        "point_labels": torch.ones(1, 5),
        "mask_input": torch.randn(1, 1, 256, 256),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([1500.0, 2250.0]),
    }
    free = {"point_coords": {1: "points"}, "point_labels": {1: "points"}}
    several = SamOnnxModel(sam, return_single_mask=False)
    names = ["masks", "iou_predictions", "low_res_masks"]
    export(several, example, folder / "decoder.onnx", names, dynamic_axes=free)
    return answers, asked


class Encoder(torch.nn.Module):
    """The encoder of transformers' model: of SAM with optimum's outputs, of SAM 2 with its feature maps."""

    def __init__(self, model: Any, sam2: bool) -> None:
        super().__init__()
        self.model, self.sam2 = model, sam2

    def forward(self, pixel_values: torch.Tensor) -> Any:
        found = self.model.get_image_embeddings(pixel_values)
        return tuple(found) if self.sam2 else (found, self.model.get_image_wide_positional_embeddings())


class Decoder(torch.nn.Module):
    """The rest of the model, with optimum's inputs and outputs."""

    def __init__(self, model: Any, sam2: bool) -> None:
        super().__init__()
        self.model, self.sam2 = model, sam2

    def forward(self, input_points: torch.Tensor, input_labels: torch.Tensor, *embeddings: torch.Tensor) -> Any:
        if self.sam2:
            out = self.model(input_points=input_points, input_labels=input_labels, image_embeddings=list(embeddings))
            return out.iou_scores, out.pred_masks
        sparse, dense = self.model.prompt_encoder(input_points, input_labels, None, None)
        masks, scores = self.model.mask_decoder(*embeddings, sparse, dense, multimask_output=True)[:2]
        return scores, masks


def of_transformers(folder: Path, images: Iterable[np.ndarray], *, sam2: bool) -> tuple[Answers, list[Any]]:
    """Export a small model, which answers through its own processor."""
    import transformers

    if sam2:
        backbone = transformers.Sam2HieraDetConfig(
            hidden_size=32,
            num_attention_heads=1,
            blocks_per_stage=[1, 2, 2, 1],
            embed_dim_per_stage=[32, 64, 128, 256],
            num_attention_heads_per_stage=[1, 2, 4, 8],
            global_attention_blocks=[2, 4],
        )
        vision = transformers.Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[256, 128, 64, 32])
        model = transformers.Sam2Model(transformers.Sam2Config(vision_config=vision))
        processor = transformers.Sam2Processor(transformers.Sam2ImageProcessor())
        names = [f"image_embeddings.{number}" for number in range(3)]
    else:
        vision = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 192}
        model = transformers.SamModel(transformers.SamConfig(vision_config={**vision, "global_attn_indexes": [1]}))
        processor = transformers.SamProcessor(transformers.SamImageProcessor())
        names = ["image_embeddings", "image_positional_embeddings"]
    spread(model.eval(), 4, ("",))
    random, answers, asked = np.random.default_rng(3), [], []
    for image in images:
        prompts = [each for each in prompts_of(image, random) if "refined" not in each]
        # SAM's export takes points alone; a processor of SAM 2 takes both only with labels for each.
        prompts = [each for each in prompts if "box" not in each or (sam2 and not each["points"])]
        asked.append(prompts)
        pixels = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
        found, embedding = [], model.get_image_embeddings(pixels)
        for prompt in prompts:
            if "box" in prompt:
                given = {"input_boxes": [[prompt["box"]]]}
            else:
                given = {"input_points": [[prompt["points"]]], "input_labels": [[prompt["labels"]]]}
            inputs = processor(images=Image.fromarray(image), return_tensors="pt", **given)
            points = {name: each for name, each in inputs.items() if "size" not in name and name != "pixel_values"}
            out = model(image_embeddings=embedding, **points)
            sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
            masks = processor.image_processor.post_process_masks(out.pred_masks, *sizes, binarize=False)
            best = int(out.iou_scores[0, 0].argmax())
            found.append((masks[0][0, best], float(out.iou_scores[0, 0, best])))
        answers.append(found)
    image, encoder = torch.randn(1, 3, 1024, 1024), Encoder(model, sam2)
    embeddings = dict(zip(names, encoder(image), strict=True))
    export(encoder, {"pixel_values": image}, folder / "encoder.onnx", names)
    points = {"input_points": torch.ones(1, 1, 2, 2), "input_labels": torch.ones(1, 1, 2, dtype=torch.int64)}
    free = {"input_points": {2: "points"}, "input_labels": {2: "points"}}
    outputs = ["iou_scores", "pred_masks"]
    export(Decoder(model, sam2), {**points, **embeddings}, folder / "decoder.onnx", outputs, dynamic_axes=free)
    return answers, asked


def spread(network: torch.nn.Module, factor: float, parts: tuple[str, ...]) -> torch.nn.Module:
    """Scale weights, by which logits are of both signs, as those of trained networks are."""
    for name, weight in network.named_parameters():
        if weight.ndim > 1 and any(part in name for part in parts):
            weight.mul_(factor)
    return network


CASES: dict[str, Callable[[Path, Iterable[np.ndarray]], tuple[Answers, list[Any]]]] = {
    "mobile-sam": mobile_sam,
    "sam": lambda folder, images: of_transformers(folder, images, sam2=False),
    "sam2": lambda folder, images: of_transformers(folder, images, sam2=True),
}


@torch.no_grad()
def main(case: str, folder: Path) -> None:
    torch.manual_seed(0)
    answers, asked = CASES[case](folder, photographs(folder))
    (folder / "prompts.json").write_text(json.dumps(asked))
    saved: dict[str, Any] = {}
    for number, found in enumerate(answers):
        for place, (logits, score) in enumerate(found):
            values = logits.numpy()
            saved[f"above {number} {place}"] = np.packbits(values > 0)
            saved[f"near {number} {place}"] = np.packbits(np.abs(values) <= NEAR)
            saved[f"score {number} {place}"] = score
    np.savez_compressed(folder / "answers.npz", **saved)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
