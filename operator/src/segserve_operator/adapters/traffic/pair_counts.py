"""Counts of pairs: as JSON, and from the comparator beside a gateway."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segserve_builder.capture.rule import CaptureFolder
from segserve_builder.comparator.folder import COMPARISONS, ComparatorFolder
from segserve_common.http.guard import get_bounded
from segserve_common.http.urls import RequestError
from segserve_operator.adapters.traffic.envoy_admin import WITHOUT_TLS
from segserve_operator.core.rollout.counters import PairCounts

TIMEOUT_S: Final = 0.3
"""A comparator that takes longer is left out of a sample."""
MAX_BYTES: Final = 4 * 2**20
_Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]
_Name: TypeAlias = Annotated[str, Field(max_length=300)]
_Bins: TypeAlias = Annotated[
    tuple[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], _Count], ...], Field(max_length=500)
]
_Histogram: TypeAlias = Annotated[tuple[_Count, ...], Field(max_length=50)]


class _Pairs(BaseModel):
    """The fields of `PairCounts`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    epoch: _Name
    stable: _Name
    candidate: _Name
    failed: tuple[_Count, _Count, _Count, _Count] = (0, 0, 0, 0)
    latencies: tuple[_Bins, _Bins] = ((), ())
    ratios: _Histogram = ()
    disagreements: _Histogram = ()
    dropped: _Count = 0
    baseline: _Histogram = ()
    shifts: _Histogram = ()


def pairs_json(counts: PairCounts) -> dict[str, Any]:
    """Return counts as a JSON object."""
    return _Pairs.model_validate(counts, from_attributes=True).model_dump(mode="json")


def parse_pairs(value: Any) -> PairCounts | None:
    """Return the counts in a JSON value; None for anything else, since without pairs there is just no such evidence."""
    try:
        return PairCounts(**dict(_Pairs.model_validate(value)))
    except ValidationError:
        return None


async def fetch_pairs(folder: ComparatorFolder) -> dict[str, PairCounts]:
    """Return the comparator's counts by model; empty if nothing is compared, or it does not answer in time."""
    if not _is_comparing(folder):
        return {}
    try:
        answer = json.loads(await _fetch(folder.control, "http://comparator/pairs"))
    except (RequestError, ValueError, RecursionError):
        return {}
    said = answer.items() if isinstance(answer, Mapping) else ()
    return {model: counts for model, value in said if (counts := parse_pairs(value)) is not None}


async def fetch_capture_metrics(folder: CaptureFolder) -> bytes:
    """Return the capture service's counts in Prometheus' text format; nothing if it does not answer in time."""
    if not folder.control.exists():
        return b""
    try:
        return await _fetch(folder.control, "http://capture/metrics")
    except RequestError:
        return b""


async def _fetch(socket: Path, url: str) -> bytes:
    transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=WITHOUT_TLS)
    async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT_S, trust_env=False) as client:
        return await get_bounded(client, url, max_bytes=MAX_BYTES, timeout_s=TIMEOUT_S)


def _is_comparing(folder: ComparatorFolder) -> bool:
    # On a cluster the comparator runs all the time, and counts are read every second: most of them have no pairs.
    try:
        return any(COMPARISONS.validate_json(folder.comparisons.read_bytes()).values())
    except (OSError, ValidationError):
        return False
