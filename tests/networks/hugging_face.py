"""Small networks of transformers with random weights, exported as its users export theirs.

Without training all queries say nearly the same, and nothing. So their last layers are centred and stretched on the
photograph of the tests: after that they differ, and find things there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)

from networks.served import photograph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

CLASSES = 5
SIDE = 128
STAGES = ["stage1", "stage2", "stage3", "stage4"]
MEAN, STD = 0.45, 0.23


@dataclass(frozen=True)
class Exported:
    """A network with the outputs that its family reads."""

    model: PreTrainedModel
    outputs: tuple[str, ...]

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return transformers' own outputs for uint8 (B, 3, H, W)."""
        with torch.no_grad():
            return self.model(pixel_values=normalised(pixels))

    def write(self, path: Path) -> None:
        """Write the ONNX file: uint8 NCHW in, the normalisation in the graph, a free batch."""
        names = ["image", *self.outputs]
        torch.onnx.export(
            _Wrapped(self.model, self.outputs).eval(),
            (torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8),),
            str(path),
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=17,
            dynamo=False,
        )


class _Wrapped(torch.nn.Module):
    def __init__(self, model: PreTrainedModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = self.model(pixel_values=normalised(image))
        return tuple(getattr(answer, name) for name in self.outputs)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.float() / 255 - MEAN) / STD


def segformer() -> Exported:
    config = SegformerConfig(hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, decoder_hidden_size=32, num_labels=CLASSES)
    return Exported(_built(SegformerForSemanticSegmentation, config, 0), ("logits",))


def mask2former() -> Exported:
    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=20,
        num_labels=CLASSES,
    )
    model = _built(Mask2FormerForUniversalSegmentation, config, 1)
    masks = model.get_submodule("model.transformer_module.decoder.mask_predictor.mask_embedder.2.0")
    return Exported(_decided(model, model.class_predictor, masks), ("class_queries_logits", "masks_queries_logits"))


def maskformer() -> Exported:
    config = MaskFormerConfig(
        backbone_config=_swin(),
        decoder_config=DetrConfig(**_decoder(32, 2)),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=CLASSES,
    )
    model = _built(MaskFormerForInstanceSegmentation, config, 2)
    masks = model.get_submodule("mask_embedder.2.0")
    return Exported(_decided(model, model.class_predictor, masks), ("class_queries_logits", "masks_queries_logits"))


def detr() -> Exported:
    model = _built(DetrForObjectDetection, _detr_config(STAGES[3:]), 3)
    return Exported(_decided(model, model.class_labels_classifier), ("logits", "pred_boxes"))


def conditional_detr() -> Exported:
    model = _built(ConditionalDetrForObjectDetection, _detr_config(STAGES[3:], ConditionalDetrConfig), 5)
    return Exported(_decided(model, model.class_labels_classifier), ("logits", "pred_boxes"))


def detr_panoptic() -> Exported:
    model = _built(DetrForSegmentation, _detr_config(STAGES), 4)
    # Masks differ by their query's attention alone, the last 8 channels, which the features would drown.
    with torch.no_grad():
        model.mask_head.conv1.conv.weight[:, -8:] *= 100
    layers = (model.detr.class_labels_classifier, model.mask_head.output_conv)
    return Exported(_decided(model, *layers), ("logits", "pred_boxes", "pred_masks"))


def _built(make: Callable[[Any], Any], config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = make(config).eval()
    # The exporter writes attention as plain operators only in this form.
    model.set_attn_implementation("eager")
    return model


def _decided(model: Any, *layers: torch.nn.Module, spread: float = 4.0) -> Any:
    """Make the layers' outputs differ: mean 0 and deviation `spread` of each channel."""
    pixels = torch.from_numpy(photograph(SIDE, SIDE).transpose(2, 0, 1).copy())[None]
    for layer in layers:
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda _layer, _given, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(pixel_values=normalised(pixels))
            handle.remove()
            channel = 1 if isinstance(layer, torch.nn.Conv2d) else -1
            values = seen[-1].movedim(channel, -1).flatten(0, -2)
            scale = spread / values.std(dim=0).clamp(min=1e-6)
            layer.bias.sub_(values.mean(dim=0)).mul_(scale)
            layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    return model


def _swin() -> SwinConfig:
    return SwinConfig(
        embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 2], window_size=4, out_features=STAGES, image_size=SIDE
    )


def _decoder(width: int, heads: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 20,
    }


def _detr_config(features: list[str], kind: Callable[..., Any] = DetrConfig) -> Any:
    backbone = ResNetConfig(embedding_size=16, hidden_sizes=[16, 16, 32, 64], depths=[1] * 4, out_features=features)
    return kind(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_labels=CLASSES,
        init_std=0.4,  # with less the queries are the same but for rounding
        **_decoder(64, 8),
    )


NETWORKS: dict[str, Callable[[], Exported]] = {
    "mask2former": mask2former,
    "maskformer": maskformer,
    "conditional-detr": conditional_detr,
    "detr": detr,
    "detr-panoptic": detr_panoptic,
    "segformer": segformer,
}
