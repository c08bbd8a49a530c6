"""Promptable networks: the tensors of their decoders, prompts, kept embeddings, and the step that is all of a model."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fakes.pipelines import DECODER, pipeline_of
from fakes.triton_python import FakeRequest, triton_python
from networks.prompts import CELLS, IOU, write
from segserve_builder.errors import PipelineError, SignatureError
from segserve_builder.families.base import NetworkSignature, TensorSpec
from segserve_builder.families.promptable import MAX_BOXES, PROMPTABLE, PROMPTABLE_SAM2
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.render.tree import CONFIG_FILE, Network, PromptDecoderFile, Tree, render
from segserve_builder.spec.names import AGENT_REQUEST_ID
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.image_session import Place
from segserve_builder.steps.inference import decoder_io, network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.postprocess import check_postprocess
from segserve_builder.steps.prompts import (
    MAX_POINTS,
    MULTIMASK_PARAMETER,
    PROMPT_PARAMETERS,
    BadImageError,
    Embedding,
    EmbeddingCache,
    LostEmbeddingError,
    PromptInputs,
    chosen,
)
from segserve_builder.steps.public_outputs import public_inputs
from segserve_builder.steps.step_options import PipelineOptions

RESIZE = {"mode": "shortSide", "size": 128, "maxSize": 128, "multipleOf": 128, "padding": "zeros"}
PIPELINE = pipeline_of("promptable", [0], preprocess=[{"resize": RESIZE}, {"normalise": {}}], model="sam")
OUTPUTS = ["REVISION", "SIZE", "BOXES", "SCORES", "CLASSES", "MASKS", "OVERLAY", "EMBEDDING_ID", "LOGITS"]
DISC, SQUARE = (50.0, 50.0), (150.0, 60.0)


def picture() -> bytes:
    """Return an image of 200 x 120 pixels with a red disc and a green square."""
    image = Image.new("RGB", (200, 120), (10, 20, 30))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 80, 80), fill=(200, 30, 30))
    draw.rectangle((110, 40, 180, 100), fill=(30, 200, 60))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("prompts"))


def rendered(files: tuple[Path, Path]) -> Tree:
    encoder, decoder = files
    given = network_io(PIPELINE, read_signature(encoder))
    tensors = decoder_io(PIPELINE, read_signature(decoder), given)
    return render(PIPELINE, Network(given, encoder), decoder=PromptDecoderFile(tensors, decoder))


# The tensors of a decoder


def signature(inputs: dict[str, tuple[str, tuple[int | None, ...]]], **outputs: Any) -> NetworkSignature:
    tensors = [[TensorSpec(name, *each) for name, each in group.items()] for group in (inputs, outputs)]
    return NetworkSignature(*map(tuple, tensors))


IMAGE = {"image": ("FP32", (1, 3, 1024, 1024))}
SAM = {"image_embeddings": ("FP32", (1, 256, 64, 64))}
SAM2 = {
    "high_res_feats_0": ("FP32", (1, 32, 256, 256)),
    "high_res_feats_1": ("FP32", (1, 64, 128, 128)),
    "image_embed": ("FP32", (1, 256, 64, 64)),
}
HUGGING_FACE = {**SAM, "image_positional_embeddings": ("FP32", (1, 256, 64, 64))}
PROMPT = {"point_coords": ("FP32", (1, None, 2)), "point_labels": ("FP32", (1, None))}
MASK = {"mask_input": ("FP32", (1, 1, 256, 256)), "has_mask_input": ("FP32", (1,))}
MASKS = {"iou_predictions": ("FP32", (1, 4)), "low_res_masks": ("FP32", (1, 4, 256, 256))}


@pytest.mark.parametrize(
    ("family", "encoder", "inputs", "outputs", "facts"),
    [
        pytest.param(
            PROMPTABLE,
            SAM,
            {**SAM, **PROMPT, **MASK, "orig_im_size": ("FP32", (2,))},
            {"masks": ("FP32", (1, 4, None, None)), **MASKS},
            {"logits": "low_res_masks", "pads": True, "takes_boxes": True, "size": "orig_im_size"},
            id="segment-anything, MobileSAM",
        ),
        pytest.param(
            PROMPTABLE,
            HUGGING_FACE,
            {"input_points": ("FP32", (1, 1, None, 2)), "input_labels": ("INT64", (1, 1, None)), **HUGGING_FACE},
            {"iou_scores": ("FP32", (1, 1, 3)), "pred_masks": ("FP32", (1, 1, 3, 256, 256))},
            {"logits": "pred_masks", "pads": False, "takes_boxes": False, "size": None},
            id="SamModel by optimum",
        ),
        pytest.param(
            PROMPTABLE_SAM2,
            SAM2,
            {**SAM2, **PROMPT, **MASK},
            {"masks": ("FP32", (1, 4, 256, 256)), "iou_predictions": ("FP32", (1, 4))},
            {"logits": "masks", "pads": False, "takes_boxes": True, "size": None},
            id="SAM 2",
        ),
        pytest.param(
            PROMPTABLE,
            {"output": SAM["image_embeddings"]},
            {**SAM, **PROMPT, **MASK},
            MASKS,
            {"encoded": ("output",), "embeddings": ("image_embeddings",)},
            id="an output of another name",
        ),
        pytest.param(
            PROMPTABLE_SAM2,
            SAM2,
            {**SAM2, **PROMPT, **MASK, "orig_im_size": ("INT32", (2,))},
            {"masks": ("FP32", (None, None, None, None)), "iou_predictions": ("FP32", (None, None))},
            {"logits": "masks", "size": "orig_im_size"},
            id="SAM 2 by samexporter",
        ),
        pytest.param(
            PROMPTABLE,
            SAM,
            {
                **SAM,
                "batched_point_coords": ("FP32", (1, 1, None, 2)),
                "batched_point_labels": ("FP32", (1, 1, None)),
                "orig_im_size": ("INT64", (2,)),
            },
            {"output_masks": ("FP32", (None, None, None, None, None)), "iou_predictions": ("FP32", (1, 1, 3))},
            {"logits": "output_masks", "pads": False, "size": "orig_im_size"},
            id="EfficientSAM as labelme has it",
        ),
    ],
)
def test_tensors_of_decoders_are_found(
    family: Any, encoder: Any, inputs: Any, outputs: Any, facts: dict[str, Any]
) -> None:
    given = family.network_io(signature(IMAGE, **encoder), PIPELINE)

    found = family.decoder_io(signature(inputs, **outputs), given)

    named = {name: getattr(found, name) for name in facts}
    assert {name: getattr(each, "name", each) for name, each in named.items()} == facts


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        pytest.param({**SAM, **MASK}, MASKS, "needs an input of labels", id="no prompt"),
        pytest.param({**SAM, **PROMPT}, {"masks": ("FP32", (1, 4, 256, 256))}, "an output of scores", id="no IoU"),
        pytest.param(
            {**PROMPT, "features": ("FP32", (1, 64, 32, 32))},
            MASKS,
            "one of the encoder's outputs",
            id="another encoder",
        ),
        pytest.param(PROMPT, MASKS, "takes none of the encoder's outputs", id="no embedding"),
        pytest.param(
            {**SAM, **PROMPT, "input_boxes": ("FP32", (1, None, 4))},
            MASKS,
            "takes 'input_boxes' FP32 .*which nothing feeds: .*boxes as two points of the labels 2 and 3",
            id="boxes (transformers.js)",
        ),
        pytest.param(
            {**SAM, **PROMPT, "interm_embeddings": ("FP32", (4, 1, 64, 64, 160))},
            MASKS,
            "takes 'interm_embeddings'",
            id="SAM-HQ",
        ),
    ],
)
def test_other_files_are_no_decoders(inputs: Any, outputs: Any, words: str) -> None:
    given = PROMPTABLE.network_io(signature(IMAGE, **SAM), PIPELINE)

    with pytest.raises(SignatureError, match=words):
        PROMPTABLE.decoder_io(signature(inputs, **outputs), given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder": None}, "needs the file of its prompt decoder"),
        ({"inference": [{"tta": {"flips": ["horizontal"]}}]}, "without inference"),
        ({"runtime": {"instances": 2}}, "without runtime"),
        ({"runtime": {"device": "gpu"}}, "without runtime"),
        ({"postprocess": [{"keepLargest": {}}]}, "without stages of postprocess"),
        ({"outOfDistribution": {"score": "maxSoftmax", "threshold": 0.5}}, "without outOfDistribution"),
        ({"output": {"maxDetections": 10}}, "without an output.maxDetections below 96"),
    ],
)
def test_what_a_promptable_model_cannot_have_is_refused(changes: dict[str, Any], words: str) -> None:
    parts = {"preprocess": [{"resize": RESIZE}, {"normalise": {}}], **changes}

    with pytest.raises(PipelineError, match=words):
        check_postprocess(pipeline_of("promptable", [0], **parts))


def test_the_bytes_of_embeddings_make_no_revision() -> None:
    more = pipeline_of("promptable", [0], decoder={**DECODER, "cacheBytes": 1})
    other = pipeline_of("promptable", [0], decoder={**DECODER, "artifactSha256": "2" * 64})

    assert more.revision == pipeline_of("promptable", [0]).revision != other.revision


def test_a_decoder_is_for_promptable_families() -> None:
    with pytest.raises(PipelineError, match="allowed are promptable, promptable-sam2"):
        check_postprocess(pipeline_of(decoder=DECODER))


# Prompts


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"POINTS": np.zeros((MAX_POINTS + 1, 2), np.float32)}, f"at most {MAX_POINTS}"),
        ({"POINTS": np.zeros((1, 3), np.float32)}, r"allowed is FP32 \[N, 2\]"),
        ({"POINTS": np.zeros((1, 2), np.int32)}, "int32"),
        ({"POINTS": np.full((1, 2), np.nan, np.float32)}, "NaN"),
        ({"POINTS": np.zeros((1, 2), np.float32), "POINT_LABELS": np.array([2], np.int32)}, "allowed are 1"),
        ({"POINTS": np.zeros((2, 2), np.float32), "POINT_LABELS": np.array([1], np.int32)}, "for each of 2 POINTS"),
        ({"PROMPT_BOXES": np.zeros((MAX_BOXES + 1, 4), np.float32)}, f"at most {MAX_BOXES}"),
        ({"PROMPT_BOXES": np.array([[5, 5, 5, 9]], np.float32)}, "x1 < x2"),
        ({"MASK_INPUT": np.full((2, 2), np.inf, np.float32)}, "infinite"),
        ({"MASK_INPUT": np.full((2, 2), 1e5, np.float32)}, "from -10000 to 10000"),
        ({"MASK_INPUT": np.zeros((1, 2000), np.float32)}, "1 to 1024 rows and columns"),
    ],
)
def test_prompts_that_are_not_allowed_are_named(tensors: dict[str, Any], words: str) -> None:
    with pytest.raises(BadImageError, match=words):
        PromptInputs.of(tensors)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"points": "50"}, "allowed: NUMBER,NUMBER;NUMBER,NUMBER"),
        ({"points": "1,x"}, "allowed: NUMBER,NUMBER"),
        ({"points": ";".join(["1,2"] * 300)}, "allowed are at most 256"),
        ({"points": "1,2" + ",3" * 1000}, "too many numbers"),
        ({"points": "1,2", "point_labels": "0.7"}, "allowed: 0 or 1"),
        ({"points": "1,2", "point_labels": "nan"}, "allowed: 0 or 1"),
        ({"prompt_boxes": "1,2,3"}, "NUMBER,NUMBER,NUMBER,NUMBER"),
    ],
)
def test_prompts_in_parameters_are_read_as_strictly(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(BadImageError, match=words):
        PromptInputs.of_request({}, parameters)


def test_prompts_in_parameters_are_those_of_tensors() -> None:
    parameters = {"points": "1,2.5;3,4", "point_labels": "1;0", "prompt_boxes": "1,2,3,4", "outputs": "MASKS"}

    prompt = PromptInputs.of_request({}, parameters)

    assert (prompt.points.tolist(), prompt.labels.tolist()) == ([[1, 2.5], [3, 4]], [1, 0])
    assert prompt.boxes.tolist() == [[1, 2, 3, 4]]
    assert parameters == {"outputs": "MASKS"}


def test_several_boxes_have_no_points() -> None:
    boxes = np.array([[0, 0, 5, 5], [5, 5, 9, 9]], np.float32)

    with pytest.raises(BadImageError, match="beside POINTS or MASK_INPUT allowed is one"):
        PromptInputs.of({"PROMPT_BOXES": boxes, "POINTS": np.ones((1, 2), np.float32)})


@pytest.mark.parametrize(
    ("scores", "points", "multimask", "masks"),
    [
        ([0.9, 0.5, 0.8, 0.7], 2, False, [2]),
        ([0.9, 0.5, 0.8, 0.7], 3, False, [0]),
        ([0.9, 0.5, 0.8, 0.7], 2, True, [1, 2, 3]),
        ([0.5, 0.8, 0.7], 3, False, [1]),
        ([0.5], 2, True, [0]),
    ],
)
def test_one_mask_is_chosen_as_segment_anything_does(
    scores: list[float], points: int, multimask: bool, masks: list[int]
) -> None:
    kept = chosen(np.array(scores, np.float32), points, multimask=multimask)

    assert np.arange(len(scores))[kept].tolist() == masks


# Embeddings

CALLER = "key:team-a"


def embedding(size: int = 10_000) -> Embedding:
    return Embedding({"e": np.zeros(size // 4, np.float32)}, np.zeros(0, np.int32))


def test_embeddings_that_were_used_last_are_kept_within_the_bytes() -> None:
    cache = EmbeddingCache("sam-1", 30_000)
    names = [f"sam-1.{number:032x}" for number in range(4)]
    for name in names[:3]:
        cache.of_image(name, CALLER, embedding)
    cache.of_id(names[0], CALLER)

    cache.of_image(names[3], CALLER, embedding)

    assert [cache.holds(name) for name in names] == [True, False, True, True]


def test_an_embedding_beyond_the_bytes_is_not_kept() -> None:
    cache, name = EmbeddingCache("sam-1", 30_000), f"sam-1.{0:032x}"

    cache.of_image(name, CALLER, lambda: embedding(40_000))

    assert not cache.holds(name)


@pytest.mark.parametrize("images", [3, 40])
def test_no_caller_evicts_all_that_another_one_has(images: int) -> None:
    cache = EmbeddingCache("sam-1", 40_000)
    names = [f"sam-1.{number:032x}" for number in range(images + 1)]
    cache.of_image(names[0], "key:team-b", embedding)

    for name in names[1:]:
        cache.of_image(name, CALLER, embedding)

    assert cache.of_id(names[0], "key:team-b")
    assert sum(map(cache.holds, names)) >= 3


def test_an_image_of_several_requests_is_embedded_once() -> None:
    cache, name, made = EmbeddingCache("sam-1", 30_000), f"sam-1.{0:032x}", list[int]()
    begun, may_end = threading.Event(), threading.Event()

    def slow() -> Embedding:
        made.append(1)
        begun.set()
        may_end.wait(60)
        return embedding()

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.of_image, name, CALLER, slow)
        begun.wait(60)
        others = [pool.submit(cache.of_image, name, CALLER, slow) for _ in range(7)]
        may_end.set()
        found = {id(each.result(60)) for each in (first, *others)}

    assert (len(found), len(made)) == (1, 1)


def test_an_image_that_failed_is_embedded_again() -> None:
    cache, name = EmbeddingCache("sam-1", 30_000), f"sam-1.{0:032x}"

    with pytest.raises(ZeroDivisionError):
        cache.of_image(name, CALLER, lambda: 1 / 0)  # type: ignore[arg-type, return-value]

    assert cache.of_image(name, CALLER, embedding) is cache.of_id(name, CALLER)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        (f"sam-1.{1:032x}", LostEmbeddingError, "does not hold"),
        (f"sam-2.{0:032x}", LostEmbeddingError, "of revision sam-2; sam-1 answers now"),
        ("../../etc/passwd", BadImageError, "allowed is the EMBEDDING_ID"),
        ("", BadImageError, "allowed is the EMBEDDING_ID"),
    ],
)
def test_an_id_is_of_one_revision(name: str, error: type[Exception], words: str) -> None:
    cache = EmbeddingCache("sam-1", 30_000)
    cache.of_image(f"sam-1.{0:032x}", CALLER, embedding)

    with pytest.raises(error, match=words):
        cache.of_id(name, CALLER)


def test_an_id_is_of_one_caller_and_another_learns_nothing_of_it() -> None:
    cache, name = EmbeddingCache("sam-1", 30_000), f"sam-1.{0:032x}"
    cache.of_image(name, CALLER, embedding)

    said = []
    for other, asked in (("key:team-b", name), ("", name), (CALLER, f"sam-1.{1:032x}")):
        with pytest.raises(LostEmbeddingError) as refused:
            cache.of_id(asked, other)
        said.append(str(refused.value).replace(asked, "ID"))

    assert len(set(said)) == 1


def test_ids_follow_from_image_revision_and_caller() -> None:
    file, pixels = np.array([b"\x00" * 12], np.object_), np.zeros((2, 2, 3), np.uint8)
    one, two = EmbeddingCache("sam-1", 1), EmbeddingCache("sam-2", 1)

    named = [one.id_of(file, ""), one.id_of(pixels, ""), one.id_of(pixels[:, :1], "")]
    named += [two.id_of(file, ""), one.id_of(np.array([b"\x01"], np.object_), ""), one.id_of(file, CALLER)]

    assert len(set(named)) == len(named)
    assert named[0] == EmbeddingCache("sam-1", 9).id_of(file, "")


# The step


@pytest.fixture
def ask(files: tuple[Path, Path], tmp_path: Path) -> Iterator[Callable[..., dict[str, NDArray[Any]]]]:
    """Send a request to the step as Triton loads it; a failed one raises `AssertionError` with its message."""
    tree = rendered(files)
    ((name, content),) = tree.steps.items()
    with triton_python():
        backend = importlib.import_module("segserve_builder.backend.pipeline")
        from google.protobuf import json_format, text_format
        from tritonclient.grpc.model_config_pb2 import ModelConfig

        for path, each in content.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(each if isinstance(each, bytes) else each.read_bytes())
        config = ModelConfig()
        text_format.Parse((tmp_path / name / CONFIG_FILE).read_text(), config)
        step = backend.TritonPythonModel()
        step.initialize(
            {
                "model_config": json_format.MessageToJson(config, preserving_proto_field_name=True),
                "model_repository": str(tmp_path / name),
                "model_version": "1",
                "model_instance_name": f"{name}_0_0",
            }
        )

        def answer(
            outputs: list[str] = OUTPUTS, given: str = "{}", request_id: str = "", **tensors: Any
        ) -> dict[str, NDArray[Any]]:
            arrays = {
                key: np.array([value], np.object_)
                if isinstance(value, bytes)
                else np.asarray(value, {"POINT_LABELS": np.int32, "PIXELS": np.uint8}.get(key, np.float32))
                for key, value in tensors.items()
            }
            (response,) = step.execute([FakeRequest(arrays, outputs, given, request_id)])
            found: dict[str, NDArray[Any]] = response.arrays()
            return found

        yield answer
        step.finalize()


def mask_of(answer: dict[str, NDArray[Any]], number: int = 0) -> NDArray[np.bool_]:
    height, width = answer["SIZE"].tolist()
    return decode_bitmap(answer["MASKS"][number], height, width).astype(bool)


def test_a_click_by_the_id_equals_the_click_with_the_image(ask: Callable[..., Any]) -> None:
    first = ask(IMAGE=picture(), POINTS=[DISC])
    name = first["EMBEDDING_ID"].item()

    again, by_id = ask(IMAGE=picture(), POINTS=[SQUARE]), ask(EMBEDDING=name, POINTS=[SQUARE])

    assert [by_id[each].tolist() for each in OUTPUTS] == [again[each].tolist() for each in OUTPUTS]
    assert first["SCORES"].tolist() == pytest.approx([IOU[2]])
    for found, (x, y), (other_x, other_y) in ((first, DISC, SQUARE), (by_id, SQUARE, DISC)):
        mask = mask_of(found)
        assert mask[int(y), int(x)]
        assert not mask[int(other_y), int(other_x)]


def test_an_image_of_16_bits_is_clicked_on_as_one_of_8(ask: Callable[..., Any]) -> None:
    grey = np.asarray(Image.open(io.BytesIO(picture())).convert("L"))
    files = [io.BytesIO(), io.BytesIO()]
    Image.fromarray(grey).save(files[0], "PNG")
    Image.fromarray(grey.astype(np.uint16) * 257).save(files[1], "PNG")

    eight, sixteen = (ask(IMAGE=file.getvalue(), POINTS=[DISC]) for file in files)

    assert mask_of(eight).any()
    assert [sixteen[each].tolist() for each in OUTPUTS[:6]] == [eight[each].tolist() for each in OUTPUTS[:6]]


def test_points_that_are_not_of_the_object_take_it_away(ask: Callable[..., Any]) -> None:
    both = ask(IMAGE=picture(), POINTS=[DISC, SQUARE])
    one = ask(IMAGE=picture(), POINTS=[DISC, SQUARE], POINT_LABELS=[1, 0])

    assert mask_of(both)[60, 150]
    assert not mask_of(one)[60, 150]
    assert mask_of(one)[50, 50]


def test_each_box_is_an_object_and_an_image_alone_has_none(ask: Callable[..., Any]) -> None:
    boxes = [[10, 10, 90, 90], [100, 30, 190, 110]]

    found, nothing = ask(IMAGE=picture(), PROMPT_BOXES=boxes), ask(IMAGE=picture())

    assert np.abs(found["BOXES"] - boxes).max() <= 7  # a cell of the logits
    assert [len(nothing[name]) for name in ("BOXES", "SCORES", "MASKS")] == [0, 0, 0]
    assert nothing["EMBEDDING_ID"].item() == found["EMBEDDING_ID"].item()


def test_logits_are_there_only_if_they_are_named_and_refine_a_mask(ask: Callable[..., Any]) -> None:
    first = ask(IMAGE=picture(), POINTS=[DISC], given='{"outputs": "MASKS,LOGITS"}')
    name = first["EMBEDDING_ID"].item()
    (logits,) = first["LOGITS"]

    refined = ask(EMBEDDING=name, POINTS=[DISC], MASK_INPUT=-10 * np.ones_like(logits))

    assert logits.shape == (CELLS, CELLS)
    assert refined["LOGITS"].size == 0
    assert not mask_of(refined).any()
    with pytest.raises(AssertionError, match=r"MASK_INPUT has shape \[2, 2\]; allowed is \[32, 32\]"):
        ask(EMBEDDING=name, POINTS=[DISC], MASK_INPUT=np.zeros((2, 2)))


def test_multimask_gives_the_masks_of_different_extent(ask: Callable[..., Any]) -> None:
    found = ask(IMAGE=picture(), POINTS=[DISC], given='{"multimask": true}')

    assert found["SCORES"].tolist() == pytest.approx(IOU[1:])
    with pytest.raises(AssertionError, match="allowed: true, false"):
        ask(IMAGE=picture(), POINTS=[DISC], given='{"multimask": 7}')


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "one of IMAGE, PIXELS and EMBEDDING; this one has none"),
        ({"IMAGE": picture(), "EMBEDDING": b"sam-1"}, "either an image or the EMBEDDING"),
        ({"IMAGE": picture(), "POINTS": [[250, 60]]}, r"POINTS\[0\] is x 250, y 60; the image has 200 x 120 pixels"),
        ({"IMAGE": picture(), "PROMPT_BOXES": [[200, 0, 210, 5]]}, "outside of the image"),
        ({"EMBEDDING": b"sam-1", "POINTS": [DISC]}, "allowed is the EMBEDDING_ID of an earlier answer"),
        ({"IMAGE": b"no image", "POINTS": [DISC]}, "is not a JPEG"),
        ({"IMAGE": picture(), "given": '{"score_threshold": 0.5}'}, "'score_threshold' is not for prompts"),
        ({"IMAGE": picture(), "given": '{"max_detections": 1}'}, "'max_detections' is not for prompts"),
    ],
)
def test_bad_requests_are_their_callers(ask: Callable[..., Any], tensors: dict[str, Any], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        ask(**tensors)


def test_a_box_beyond_the_image_ends_with_it(ask: Callable[..., Any]) -> None:
    beyond, whole = (ask(IMAGE=picture(), PROMPT_BOXES=[box]) for box in ([-9, -9, 3e38, 3e38], [0, 0, 200, 120]))

    assert beyond["MASKS"].tolist() == whole["MASKS"].tolist()


def test_a_test_by_an_agent_runs_the_encoder_each_time(ask: Callable[..., Any]) -> None:
    ask(IMAGE=picture(), POINTS=[DISC])

    found = ask(IMAGE=picture(), POINTS=[DISC], request_id=AGENT_REQUEST_ID)

    assert found["EMBEDDING_ID"].item() == b""
    assert mask_of(found)[50, 50]


SIZE = 200 * 120
IMAGE_WORK, MASKS_WORK = (SIZE, "pixels"), (SIZE, "pixels of masks as default")
PROMPT = (SIZE, "pixels of prompted masks")
CHOSEN = [(SIZE, "pixels with chosen objects")]
BOXES = [[10, 10, 90, 90], [100, 30, 190, 110], [0, 0, 200, 120]]
WORK: dict[str, tuple[dict[str, Any], list[tuple[int, str]]]] = {
    "IMAGE": ({"IMAGE": picture()}, [IMAGE_WORK, PROMPT, MASKS_WORK]),
    "PIXELS": ({"PIXELS": np.zeros((120, 200, 3), np.uint8)}, [IMAGE_WORK, PROMPT, MASKS_WORK]),
    "EMBEDDING": ({}, [(0, "pixels"), PROMPT, MASKS_WORK]),
    "POINTS": ({"POINTS": [DISC, SQUARE]}, [(0, "pixels"), PROMPT, MASKS_WORK]),
    "POINT_LABELS": ({"POINTS": [DISC], "POINT_LABELS": [1]}, [(0, "pixels"), PROMPT, MASKS_WORK]),
    "PROMPT_BOXES": (
        {"PROMPT_BOXES": BOXES},
        [(0, "pixels"), (3 * SIZE, PROMPT[1]), (3 * SIZE, MASKS_WORK[1])],
    ),
    "MASK_INPUT": (
        {"POINTS": [DISC], "MASK_INPUT": np.zeros((CELLS, CELLS))},
        [(0, "pixels"), PROMPT, MASKS_WORK],
    ),
    "points": ({"given": '{"points": "50,50"}'}, [(0, "pixels"), PROMPT, MASKS_WORK]),
    "point_labels": (
        {"given": '{"points": "50,50", "point_labels": "1"}'},
        [(0, "pixels"), PROMPT, MASKS_WORK],
    ),
    "prompt_boxes": (
        {"given": '{"prompt_boxes": "10,10,90,90;100,30,190,110"}'},
        [(0, "pixels"), (2 * SIZE, PROMPT[1]), (2 * SIZE, MASKS_WORK[1])],
    ),
    "multimask": (
        {"POINTS": [DISC], "given": '{"multimask": true}'},
        [(0, "pixels"), (3 * SIZE, PROMPT[1]), (3 * SIZE, MASKS_WORK[1])],
    ),
    "encoding": (
        {"POINTS": [DISC], "given": '{"encoding": "png"}'},
        [(0, "pixels"), PROMPT, (SIZE, "pixels of masks as png")],
    ),
    "overlay": (
        {"IMAGE": picture(), "POINTS": [DISC], "given": '{"overlay": "webp"}'},
        [IMAGE_WORK, PROMPT, (SIZE, "pixels of masks as default and a webp")],
    ),
    "outputs": (
        {"POINTS": [DISC], "given": '{"outputs": "SCORES"}'},
        [(0, "pixels"), PROMPT, (SIZE, "pixels of masks as nothing")],
    ),
    "score_threshold": ({"IMAGE": picture(), "given": '{"score_threshold": 0.1}'}, CHOSEN),
    "max_detections": ({"IMAGE": picture(), "given": '{"max_detections": 9}'}, CHOSEN),
}
"""A request for each input and option, and the work for which it takes places; without an image it is by the id."""


def test_each_thing_that_a_request_can_have_has_a_measure() -> None:
    inputs = {tensor.name for tensor in public_inputs(PIPELINE.input, prompts=True)}

    assert WORK.keys() == inputs | RequestOptions.model_fields.keys() | {*PROMPT_PARAMETERS, MULTIMASK_PARAMETER}


@pytest.mark.parametrize("name", WORK)
def test_a_request_takes_a_place_for_all_that_it_makes_a_server_compute(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    request, expected = WORK[name]
    by_id = {} if {"IMAGE", "PIXELS"} & request.keys() else {"EMBEDDING": ask(IMAGE=picture())["EMBEDDING_ID"].item()}
    taken = list[tuple[int, str]]()
    take = Place.take

    def recorded(place: Place, size: int, kind: str) -> None:
        taken.append((size, kind))
        take(place, size, kind)

    monkeypatch.setattr(Place, "take", recorded)
    with pytest.raises(AssertionError) if expected is CHOSEN else nullcontext():
        ask(**request, **by_id)

    assert taken == expected


def test_embeddings_take_at_most_half_of_a_servers_memory(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with triton_python():
        prompted = importlib.import_module("segserve_builder.backend.prompted")
        monkeypatch.setattr(prompted, "available_bytes", lambda: 2**29)
        (content,) = rendered(files).steps.values()
        options = PipelineOptions.model_validate_json(parameter_of(content[CONFIG_FILE]))

        with pytest.raises(
            PipelineError, match="embeddingsMebibytes is 512; allowed are at most 256, half of the memory"
        ):
            prompted.PromptedSteps(options, options.decoder.model_copy(update={"cache_bytes": 2**29}), *files, 1)


def parameter_of(config: Any) -> str:
    """Return the options in the text of a configuration."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    read = ModelConfig()
    text_format.Parse(config.decode(), read)
    return str(read.parameters["segserve"].string_value)


def test_a_model_has_one_step_with_both_files(files: tuple[Path, Path]) -> None:
    tree = rendered(files)

    (content,) = tree.steps.values()
    assert [path for path, each in content.items() if isinstance(each, Path)] == ["1/model.onnx", "1/decoder.onnx"]


def test_inputs_and_outputs_of_the_ensemble_differ_by_name(files: tuple[Path, Path]) -> None:
    """Triton returns nothing for an output that is called like an input."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config, text = ModelConfig(), rendered(files).ensemble[1][CONFIG_FILE]
    assert isinstance(text, bytes)
    text_format.Parse(text.decode(), config)

    assert {each.name for each in config.input}.isdisjoint(each.name for each in config.output)
