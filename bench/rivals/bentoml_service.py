"""`bentoml serve bench.rivals.bentoml_service:Yolo`, with the network and the number of workers in the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import bentoml
import torch
from bentoml.validators import ContentType

from bench.rivals.pipeline import masks, prepare
from bench.rivals.session import session


@bentoml.service(workers=int(os.environ.get("WORKERS", "1")), traffic={"timeout": 300})
class Yolo:
    """A process with one thread for each worker."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.network = session(Path(os.environ["NETWORK"]), 1)

    @bentoml.api
    def predict(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, list[str]]:
        tensor, size = prepare(image.read_bytes())
        return {"masks": [each.decode() for each in masks(self.network(tensor), size)]}
