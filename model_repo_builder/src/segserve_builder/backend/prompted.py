"""All steps of a promptable model in one process: images are embedded once, and prompts decoded from that."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve_builder.backend import pre
from segserve_builder.backend.batch_spans import spans
from segserve_builder.backend.joined import JoinedSteps, Run
from segserve_builder.backend.responses import SentRequest, input_array, parameters_of
from segserve_builder.errors import BadImageError, PipelineError
from segserve_builder.families.promptable import MULTIMASK
from segserve_builder.memory import allow_total, available_bytes, total_allowed
from segserve_builder.spec.names import AGENT_REQUEST_ID, CALLER_HEADER, listed_outputs
from segserve_builder.steps.answer_metrics import Measures
from segserve_builder.steps.image_session import Place
from segserve_builder.steps.prompts import (
    Embedding,
    EmbeddingCache,
    PromptDecoder,
    PromptInputs,
)
from segserve_builder.steps.public_outputs import EMBEDDING, EMBEDDING_ID, GEOMETRY, LOGITS, empty, network_output
from segserve_builder.steps.step_options import DecoderOptions, PipelineOptions
from segserve_builder.values import ResizeTransform

_IMAGES: Final = ("IMAGE", "PIXELS")


class PromptedSteps(JoinedSteps):
    """Answers prompts from any thread, about an image or the id of one that was sent before."""

    def __init__(
        self, options: PipelineOptions, prompts: DecoderOptions, encoder: Path, decoder: Path, instances: int
    ) -> None:
        """Load both files, for at most so many images at a time.

        Raises `PipelineError` if the server has too little memory for the embeddings.
        """
        if prompts.cache_bytes > (most := available_bytes() // 2):
            raise PipelineError(
                f"decoder.embeddingsMebibytes is {prompts.cache_bytes >> 20}; allowed are at most {most >> 20}, half "
                "of the memory of this server"
            )
        super().__init__(options, encoder, instances)
        self._encoder_outputs, self._logits = prompts.io.encoded, prompts.io.logits.name
        self._decoder = PromptDecoder(decoder, prompts.io, options.net.intra_op_threads)
        self._cache_bytes = prompts.cache_bytes
        self._embeddings = EmbeddingCache(options.post.revision, prompts.cache_bytes)

    def limit(self) -> int | None:
        """Limit what requests may allocate from now on beside what embeddings may, and return that."""
        limit_bytes = super().limit()
        if limit_bytes is not None:
            allow_total(total_allowed() + self._cache_bytes)
        return limit_bytes

    def free(self) -> None:
        """Give all memory back that the next request can have again."""
        super().free()
        self._decoder.close()
        self._embeddings.clear()

    def answered(self, request: SentRequest, place: Place, run: Run) -> dict[str, NDArray[Any]]:
        """Return the public outputs that a request requires; `run` runs the encoder over one image."""
        parameters = parameters_of(request)
        for name in ("score_threshold", "max_detections"):
            if name in parameters:
                raise BadImageError(f"parameter {name!r} is not for prompts, whose masks are answered in their order")
        prompt = PromptInputs.of_request(request.tensors, parameters)
        name, embedding = self._embedding(request, place, run)
        transform = ResizeTransform.from_numbers(embedding.geometry)
        masks = max(len(prompt.boxes), 1) * (MULTIMASK if prompt.multimask else 1)
        place.take(transform.height * transform.width * masks, "pixels of prompted masks")
        with spans("decoder", request.parents), self.described(lambda: "decoding a prompt"):
            decoded = self._decoder(embedding.outputs, prompt, transform)
        tensors = {network_output(each): array for each, array in decoded.items()}
        own = {EMBEDDING_ID.name, LOGITS.name}
        after = replace(
            request,
            outputs=tuple(each for each in request.outputs if each not in own),
            parameters=json.dumps(parameters),
            tensors={**request.tensors, **tensors, GEOMETRY.name: embedding.geometry},
        )
        answer = self.postprocessed(after, place)
        if EMBEDDING_ID.name in request.outputs:
            answer[EMBEDDING_ID.name] = np.array([name.encode()], np.object_)
        if LOGITS.name in request.outputs:
            wanted = LOGITS.name in listed_outputs(parameters.get("outputs", ""))
            answer[LOGITS.name] = decoded[self._logits][0] if wanted else empty(LOGITS)
        return answer

    def _embedding(self, request: SentRequest, place: Place, run: Run) -> tuple[str, Embedding]:
        """Return a request's image by its id, which is empty if it is not kept, and its embedding."""
        caller = _caller(request.parameters)
        given = input_array(request, EMBEDDING.name)
        images = [array for each in _IMAGES if (array := input_array(request, each)) is not None]
        if given is not None and given.size:
            if images:
                raise BadImageError("a request has either an image or the EMBEDDING of one; this one has both")
            name = bytes(given.item()).decode("utf-8", "replace") if given.size == 1 else f"{given.size} values"
            return name, _without_times(self._embeddings.of_id(name, caller))
        if len(images) != 1:
            sent = "both images" if images else "none"
            raise BadImageError(f"a request must have one of IMAGE, PIXELS and EMBEDDING; this one has {sent}")
        if request.id == AGENT_REQUEST_ID:
            return "", self._encoded(request, run)  # a test of the encoder as well, however often it is made
        with self.described(lambda: pre.describe(request)):
            name = self._embeddings.id_of(images[0], caller)
        if is_known := self._embeddings.holds(name):
            place.forget()
        embedding = self._embeddings.of_image(name, caller, lambda: self._encoded(request, run))
        if not self._embeddings.holds(name):
            name = ""
        return name, _without_times(embedding) if is_known else embedding

    def _encoded(self, request: SentRequest, run: Run) -> Embedding:
        tensors, outputs = self.run_network(request, run)
        # What another run of the session overwrites is not kept.
        return Embedding({each: np.array(outputs[each]) for each in self._encoder_outputs}, tensors[GEOMETRY.name])


def _caller(parameters: str) -> str:
    """Return who calls, empty for nobody that the gateway knows.

    Raises `BadImageError` if a request's own parameters name a caller, beside the gateway's header.
    """
    pairs = json.loads(parameters or "{}", object_pairs_hook=list)
    callers = [str(value) for name, value in pairs if name.lower() == CALLER_HEADER]
    if len(callers) > 1:
        raise BadImageError(f"parameter {CALLER_HEADER!r} is not allowed; gateways set the header of that name")
    return "".join(callers)


def _without_times(embedding: Embedding) -> Embedding:
    """Return an embedding whose image was measured for an earlier request."""
    if embedding.geometry.shape == GEOMETRY.shape:
        return embedding
    now_s = time.monotonic()
    measures = Measures.from_geometry(embedding.geometry)._replace(started_s=now_s, ended_s=now_s, first=0.0)
    transform = embedding.geometry[: GEOMETRY.shape[0]]
    return replace(embedding, geometry=np.concatenate([transform, measures.to_numbers()]))
