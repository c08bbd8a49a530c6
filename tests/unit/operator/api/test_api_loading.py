from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.cases import cases
from segserve_builder.families import FAMILIES
from segserve_builder.families.promptable import PromptableFamily
from segserve_builder.stages import POSTPROCESS, PREPROCESS
from segserve_operator.api.crd import structural_schema
from segserve_operator.api.documents import read_documents
from segserve_operator.api.loading import dump, load, parse
from segserve_operator.api.meta import SpecError
from segserve_operator.api.resources import KINDS
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.api.triton_pool import TritonPool

POOL = "apiVersion: segserve.dev/v1alpha1\nkind: TritonPool\nmetadata: {name: default}\n"


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(text, "model.yaml")
    return str(caught.value).splitlines()


def test_a_file_becomes_typed_resources_in_its_order(coins_text: str) -> None:
    model, pool = load(f"{coins_text}---\n{POOL}", "model.yaml")

    assert isinstance(model, SegmentationModel)
    assert [step.name for step in model.spec.preprocess] == ["decode", "resize"]
    assert model.spec.classes[1].colour == "#ffcc00"
    assert isinstance(pool, TritonPool)
    assert pool.spec.gateway.port == 8080


def test_resources_are_read_as_they_were_written(coins_text: str) -> None:
    resources = load(f"{coins_text}---\n{POOL}", "model.yaml")

    assert load(dump(resources), "dump.yaml") == resources


def test_an_unknown_stage_is_named_with_its_place_and_the_known_ones(coins_text: str) -> None:
    text = coins_text.replace("removeSmallRegions", "removeSmallRegionz")

    assert problems_of(text) == [
        "model.yaml:19:7: spec.postprocess[1]: unknown stage 'removeSmallRegionz' "
        f"(did you mean 'removeSmallRegions'?); known: {', '.join(sorted(POSTPROCESS))}"
    ]


def test_a_problem_says_where_it_is(coins_text: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(coins_text.replace("minArea: 150", "minArea: many"), "model.yaml")

    (problem,) = caught.value.problems
    assert (problem.source, problem.line, problem.column) == ("model.yaml", 19, 37)
    assert problem.path == "spec.postprocess[1].removeSmallRegions.minArea"


@cases(
    ("old", "new", "problem"),
    {
        "unknown option": (
            "minArea: 150",
            "minArea: 150, minAria: 1",
            "19:42: spec.postprocess[1].removeSmallRegions: unknown option "
            "'minAria' (did you mean 'minArea'?); known: ",
        ),
        "missing option": (
            "{minArea: 150}",
            "{}",
            "19:27: spec.postprocess[1].removeSmallRegions: field 'minArea' is missing",
        ),
        "a string is no number": (
            "150",
            "'150'",
            "19:37: spec.postprocess[1].removeSmallRegions.minArea: must be a whole number, got '150'; "
            "write it without quotes",
        ),
        "a stage without its braces": (
            "argmax: {}",
            "argmax:",
            "18:7: spec.postprocess[0]: a stage without options is written argmax: {}",
        ),
        "a stage that is a word": (
            "argmax: {}",
            "argmax",
            "18:7: spec.postprocess[0]: must be a mapping, got 'argmax'",
        ),
        "no stage": ("- argmax: {}", "- {}", "18:7: spec.postprocess[0]: a step names exactly one stage, got none"),
        "two stages": (
            "decode: {}",
            "{decode: {}, normalise: {}}",
            "15:7: spec.preprocess[0]: a step names exactly one stage, got decode, normalise",
        ),
        "a stage that does not fit what comes before": (
            "    - argmax: {}\n",
            "",
            "18:5: spec.postprocess: postprocess[0] 'removeSmallRegions' takes instances or labels; family ",
        ),
        "stages out of order": (
            "    - decode: {}\n",
            "    - normalise: {}\n",
            "15:5: spec.preprocess: preprocess stages run in the order ",
        ),
        "a word that is not allowed": (
            "mode: keep",
            "mode: kept",
            "16:22: spec.preprocess[1].resize.mode: must be 'stretch', ",
        ),
        "options that exclude each other": (
            "mode: keep",
            "mode: keep, size: 3",
            "16:15: spec.preprocess[1].resize: resize mode 'keep' needs ",
        ),
        "unknown family": (
            "semantic-logits",
            "semantic-logit",
            "9:11: spec.family: unknown family 'semantic-logit' (did you "
            "mean 'semantic-logits'?); known: deformable-detr, detr, detr-panoptic, ",
        ),
        "unknown field": (
            "pool: default",
            "extra: {}",
            "24:3: spec: unknown field 'extra'; known: access, allowClassChanges, artifact, ",
        ),
        "missing field": ("    uri: coins.onnx\n", "", "6:5: spec.artifact: field 'uri' is missing"),
        "digest in capitals": (
            "abc\n    prov",
            "ABC\n    prov",
            "7:13: spec.artifact.sha256: must be 64 hexadecimal digits in lower case, got '0f000",
        ),
        "a gap in the ids": (
            "id: 1",
            "id: 2",
            "13:12: spec.classes[1].id: ids must be 0 to 1 for 2 classes, like the channels of family "
            "'semantic-logits', got 2",
        ),
        "an id twice": ("id: 1", "id: 0", "13:12: spec.classes[1].id: classes[0] has the id 0 already"),
        "a name twice": (
            "name: coin,",
            "name: background,",
            "13:21: spec.classes[1].name: classes[0] has the name 'background' already",
        ),
        "a word that is a boolean": (
            "name: coin,",
            "name: no,",
            "13:21: spec.classes[1].name: must be a string, got False; write it in quotes",
        ),
        "an item twice": ("[network]", "[network, network]", "23:21: spec.expose[1]: 'network' is listed twice"),
        "unknown encoding": ("encoding: png", "encoding: jpeg", "20:22: spec.output.encoding: must be 'rle', "),
        "a duration without a unit": (
            "keepPrevious: 1h",
            "keepPrevious: 60",
            "25:17: spec.keepPrevious: must be a duration such as 1h, 90s or 1h30m, got 60",
        ),
        "a name that is no label": (
            "{name: coins}",
            "{name: coins--2}",
            "3:18: metadata.name: must be at most 40 lower-case letters, "
            "digits and single hyphens between them, got 'coins--2'",
        ),
        "no name": ("{name: coins}", "{nane: coins}", "3:11: metadata: field 'name' is missing"),
        "unknown kind": (
            "kind: Segm",
            "kind: Sagm",
            "2:7: kind: unknown kind 'SagmentationModel' (did you mean "
            "'SegmentationModel'?); known: SegmentationModel, SegmentationRollout, TritonPool",
        ),
        "unknown version": (
            "v1alpha1",
            "v1",
            "1:13: apiVersion: unknown apiVersion 'segserve.dev/v1' (did you mean "
            "'segserve.dev/v1alpha1'?); known: segserve.dev/v1alpha1",
        ),
        "no kind": (
            "kind: SegmentationModel\n",
            "",
            "1:1: field 'kind' is missing; known: SegmentationModel, SegmentationRollout, TritonPool",
        ),
    },
)
def test_what_is_wrong_is_told_with_its_place_and_what_is_allowed(
    coins_text: str, old: str, new: str, problem: str
) -> None:
    assert old in coins_text

    assert problems_of(coins_text.replace(old, new, 1))[0].startswith(f"model.yaml:{problem}")


def test_all_problems_of_all_documents_are_told_at_once(coins_text: str) -> None:
    text = coins_text.replace("minArea: 150", "minArea: -1").replace("png", "gif")

    problems = problems_of(f"{text}---\n{POOL}spec: {{gateway: {{port: 0}}}}\n")

    assert [problem.split(": ")[1] for problem in problems] == [
        "spec.postprocess[1].removeSmallRegions.minArea",
        "spec.output.encoding",
        "spec.gateway.port",
    ]


def test_a_resource_is_given_once(coins_text: str) -> None:
    assert problems_of(f"{coins_text}---\n{coins_text}") == [
        "model.yaml:29:18: metadata.name: SegmentationModel 'coins' occurs twice, first in document 1"
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n"])
def test_a_text_without_a_resource_is_refused(text: str) -> None:
    assert problems_of(text) == [
        "model.yaml: no resource found; a resource starts with apiVersion: segserve.dev/v1alpha1"
    ]


def test_a_document_that_is_no_mapping_is_refused() -> None:
    assert problems_of("- 1\n") == ["model.yaml:1:1: a resource must be a mapping, got [1]"]


def test_json_of_a_store_is_parsed_alike(coins_text: str, coins_value: dict[str, Any]) -> None:
    assert [parse(coins_value, "store")] == load(coins_text, "model.yaml")
    assert [parse(coins_value, "store")] == load(json.dumps(coins_value), "model.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_served_without_a_list_of_stages(coins_value: dict[str, Any], family: str) -> None:
    del coins_value["spec"]["preprocess"], coins_value["spec"]["postprocess"]
    coins_value["spec"]["family"] = family
    if isinstance(FAMILIES[family], PromptableFamily):
        coins_value["spec"] |= {"decoder": {"artifact": coins_value["spec"]["artifact"]}, "expose": []}

    model = parse(coins_value, "store")

    assert isinstance(model, SegmentationModel)
    assert model.pipeline.family == family


def test_stages_that_do_not_end_in_an_answer_are_refused(coins_value: dict[str, Any]) -> None:
    coins_value["spec"] |= {"family": "yolo-seg", "postprocess": [{"scoreThreshold": {}}, {"nms": {}}]}

    with pytest.raises(SpecError, match=r"spec\.postprocess: .*'nms' gives prototypes; .* must give labels, "):
        parse(coins_value, "store")


def test_a_problem_of_a_store_has_a_path_and_no_line(coins_value: dict[str, Any]) -> None:
    coins_value["spec"]["runtime"]["instances"] = 0

    with pytest.raises(SpecError, match=r"^store: spec\.runtime\.instances: must be at least 1, got 0$"):
        parse(coins_value, "store")


def test_metadata_of_a_cluster_is_accepted_and_what_segserve_does_not_read_is_dropped(
    coins_value: dict[str, Any],
) -> None:
    coins_value["metadata"] |= {
        "uid": "6f9b",
        "generation": 3,
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "managedFields": [{"manager": "kubectl"}],
        "ownerReferences": [{"kind": "Fleet"}],
        "labels": {"app.kubernetes.io/name": "coins"},
    }

    meta = parse(coins_value, "store").metadata

    assert meta.generation == 3
    assert meta.labels == {"app.kubernetes.io/name": "coins"}
    assert "managedFields" not in meta.to_dict()


def test_the_status_of_a_resource_is_read_with_it(coins_value: dict[str, Any]) -> None:
    coins_value["status"] = {
        "roles": {"stable": {"revision": "coins-1", "group": "main", "since": "2026-03-01T12:00:00Z"}},
        "weight": 100,
    }

    model = parse(coins_value, "store")

    assert isinstance(model, SegmentationModel)
    assert model.status.to_dict() == {
        **coins_value["status"],
        "conditions": [],
        "revisions": [],
        "handledAnnotations": [],
    }


def test_resources_are_read_where_no_array_library_is_installed(coins_text: str) -> None:
    """The client and the command line have pydantic and PyYAML, but neither numba nor OpenCV."""
    absent = ("numpy", "cv2", "numba", "onnx", "onnxruntime", "tritonclient", "google", "grpc", "kopf", "httpx")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from segserve_operator.api.loading import load\n"
        "print(load(sys.stdin.read(), 'model.yaml')[0].pipeline.revision)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], input=coins_text, capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert done.stdout.startswith("coins-")


def test_every_registered_stage_and_family_is_named_where_one_is_unknown(coins_text: str) -> None:
    for text, known in (
        (coins_text.replace("decode", "xyz"), PREPROCESS),
        (coins_text.replace("argmax", "xyz"), POSTPROCESS),
        (coins_text.replace("semantic-logits", "xyz"), FAMILIES),
    ):
        assert problems_of(text)[0].endswith(f"known: {', '.join(sorted(known))}")


WRONG_VALUES: tuple[Any, ...] = ("", "12", "é" * 3000, 1.5, -1, 10**12, True, [None] * 100, {"a": None}, None)
PYDANTIC_WORDS = re.compile(
    r"[Ii]nput |[Vv]alue error|[Ss]hould|[Dd]ictionary|[Tt]uple|unable to parse|a valid|after validation|in year"
    r"|equal to|timezone info"
)


def paths(schema: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    for name, field in schema.get("properties", {}).items():
        yield from paths(field, (*path, name))
    for key, inner in (("items", 0), ("additionalProperties", "a")):
        if isinstance(schema.get(key), dict):
            yield from paths(schema[key], (*path, inner))


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_is_in_the_words_of_the_library(kind: str) -> None:
    """Each field gets values of other types, sizes and forms; the fields that are missing then are told too."""
    wrong = set()
    for path in paths(structural_schema(KINDS[kind].type)):
        for seen in WRONG_VALUES if path else ():
            value = seen
            for part in reversed(path):
                value = [value] if isinstance(part, int) else {part: value}
            try:
                parse({"apiVersion": "segserve.dev/v1alpha1", "kind": kind, **value}, "it")
            except SpecError as error:
                wrong |= {str(each) for each in error.problems if PYDANTIC_WORDS.search(each.message)}
    assert wrong == set()


HINTS = {
    "a choice": ("encoding: png", "encoding: pngg", "'raw', got 'pngg' (did you mean 'png'?)"),
    "a quoted number": ("minArea: 150", "minArea: '150'", "must be a whole number, got '150'; write it without quotes"),
    "a number that is a name": ("name: coin,", "name: 5,", "must be a string, got 5; write it in quotes"),
    "a large bound": ("minArea: 150", "minArea: -1", "must be at least 1, got -1"),
    "a null for what is no stage": ("keepPrevious: 1h", "keepPrevious: {a: null}",
                                    "must be a duration such as 1h, 90s or 1h30m, got {'a': None}"),
}  # fmt: skip


@pytest.mark.parametrize("case", HINTS)
def test_a_message_says_what_to_write_instead(case: str, coins_text: str) -> None:
    right, wrong, said = HINTS[case]
    assert right in coins_text

    (problem,) = problems_of(coins_text.replace(right, wrong))

    assert problem.endswith(said)


def test_an_annotation_of_ours_that_nothing_reads_is_told_in_a_file_and_kept_in_a_store(coins_text: str) -> None:
    annotations = "annotations: {segserve.dev/abrot: x, example.org/abrot: x, segserve.dev/abort: coins-1}"
    text = coins_text.replace("{name: coins}", f"{{name: coins, {annotations}}}")
    assert text != coins_text

    (problem,) = problems_of(text)

    assert re.match(r"model\.yaml:3:39: metadata\.annotations: unknown annotation 'segserve\.dev/abrot'", problem)
    assert "(did you mean 'segserve.dev/abort'?); known: segserve.dev/abort, " in problem
    stored = parse(read_documents(text, "store")[0].value, "store")
    assert stored.metadata.annotations["segserve.dev/abrot"] == "x"
