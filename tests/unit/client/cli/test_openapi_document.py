"""The OpenAPI document of plain HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import validate

from segserve_builder.openapi import DescribedModel, describe_gateway, describe_models

OPTIONS = ("score_threshold", "max_detections", "encoding")
COINS = DescribedModel("coins", "instance", ((0, "background"), (1, "coin")), OPTIONS)
TASKS: dict[Any, tuple[str, tuple[str, ...]]] = {
    "semantic": ("ClassesAnswer", OPTIONS[2:]),
    "instance": ("ObjectsAnswer", OPTIONS),
    "panoptic": ("SegmentsAnswer", OPTIONS[2:]),
    "detection": ("ObjectsAnswer", OPTIONS[:2]),
    "keypoints": ("ObjectsAnswer", OPTIONS[:2]),
}


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(describe_models([], version="1"), id="no model"),
        pytest.param(
            describe_models(
                [DescribedModel(task, task, options=OPTIONS) for task in TASKS], version="1", url="http://a"
            ),
            id="a model of each task",
        ),
        pytest.param(describe_gateway(None, version="1"), id="a gateway that names no model"),
        pytest.param(describe_gateway([], version="1"), id="a gateway without models"),
        pytest.param(describe_gateway(["coins", "cells"], version="1"), id="a gateway with models"),
    ],
)
def test_every_document_is_valid(described: Any) -> None:
    validate(described)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_takes_the_options_of_its_task_and_answers_as_that_does(task: Any) -> None:
    answer, options = TASKS[task]

    described = describe_models([DescribedModel("it", task, options=OPTIONS)], version="1")

    post = described["paths"]["/v1/models/it:segment"]["post"]
    assert tuple(each["name"] for each in post["parameters"]) == (*options, "picture")
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert tuple(form) == ("image", *options, "picture")
    answered = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert answered == {"$ref": f"#/components/schemas/{answer}"}


def test_a_model_has_the_options_that_its_resource_allows_and_its_classes_by_name() -> None:
    model = DescribedModel("coins", "instance", COINS.classes, ("encoding",))

    described = describe_models([model], version="1", url="http://here:8080")

    post = described["paths"]["/v1/models/coins:segment"]["post"]
    assert [each["name"] for each in post["parameters"]] == ["encoding", "picture"]
    assert post["description"] == "Classes: 0 background, 1 coin."
    assert described["servers"] == [{"url": "http://here:8080"}]


def test_what_an_answer_may_lack_is_not_required_and_never_null() -> None:
    found = describe_models([COINS], version="1")["components"]["schemas"]["FoundObject"]

    assert found["required"] == ["class_id", "score", "box"]
    assert found["properties"]["class"]["type"] == "string"
    assert "null" not in json.dumps(found)


def test_a_gateway_lists_its_models_unless_it_is_to_name_none() -> None:
    path = "/v1/models/{model}:segment"

    names = [
        describe_gateway(known, version="1")["paths"][path]["post"]["parameters"][0]["schema"]
        for known in (["coins", "cells"], None)
    ]

    assert names == [{"type": "string", "enum": ["coins", "cells"]}, {"type": "string"}]
    assert path not in describe_gateway([], version="1")["paths"]
