"""A model's rollout at one moment: its state from the model's status, and the evidence of its record."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from segserve_operator.api.segmentation_model import SegmentationModelStatus
from segserve_operator.core.advance.advance import MAX_WRITE_INTERVAL_S
from segserve_operator.core.advance.explanations import SIGNALS
from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, STABLE
from segserve_operator.core.rollout.forecast import present, recent
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import Record, RolloutState, Row
from segserve_operator.mapping import rollouts
from segserve_operator.mapping.packed_evidence import UnreadableRecordError, unpack_rows
from segserve_operator.mapping.statuses import from_api
from segserve_platform.platforms.errors import ControlError, NotFoundError, WaitTimeoutError
from segserve_platform.platforms.port import MODEL, Json, Platform
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.waiting import is_seen, readiness

REREAD_S: Final = 1.0
STALE_S: Final = 30.0
"""Time without requests from which on the last counts say nothing about the present."""
SETTLED_S: Final = 5.0
"""Time after a change of weight from which on the counts since then show the present rates."""
UNDECIDED_CODE: Final = 4
"""Exit code of a rollout whose revision is neither promoted nor rolled back."""
_PROMOTED: Final = frozenset({Phase.BAKING, Phase.SUCCEEDED})


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two revisions: its percentage of requests now, and its counts of `seconds`.

    `latencies` are counts by bin of `EDGES_MS`.
    """

    role: str
    revision: str
    weight: int
    requests: int = 0
    errors: int = 0
    latencies: Mapping[int, int] | None = None
    seconds: float = 0.0

    @property
    def requests_per_second(self) -> float | None:
        """The rate of requests; None if none were counted yet."""
        return self.requests / self.seconds if self.seconds else None

    @property
    def error_percent(self) -> float | None:
        """The percentage of requests that failed; None without requests."""
        return 100.0 * self.errors / self.requests if self.requests else None

    def quantile_ms(self, share: float) -> float | None:
        """Return the latency that this share of requests stays below, interpolated in its bin; None without requests.

        Infinite in the last bin, which also holds requests that hung.
        """
        counts = sorted((self.latencies or {}).items())
        wanted, below = share * sum(count for _, count in counts), 0.0
        for number, count in counts:
            if count and below + count >= wanted:
                return _within(number, (wanted - below) / count)
            below += count
        return None


def _within(number: int, share: float) -> float:
    if number >= len(EDGES_MS):
        return math.inf
    low, high = (EDGES_MS[number - 1] if number else 0.0), EDGES_MS[number]
    return low + share * (high - low)


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout at `now_s`; `record` is None until it is first written, which was at `written_s`.

    `stable` is the former revision, and `present` what serves now: every weight and role is from there. `behind` means
    that the operator has not processed the newest spec yet, so this may be the previous rollout. `slo` is the SLO's
    state in the model's status (Met, Breached, Unknown; empty without SLO), `handled` the requests of users that the
    model's operator has handled, oldest first, and `problem` what needs a change while the rollout goes on, as `get`
    and `wait` say it; empty if nothing does. `runs` is False if no platform runs.
    """

    model: str
    standing: RolloutState
    stable: str
    record: Record | None
    now_s: float
    present: Present
    behind: bool = False
    slo: str = ""
    handled: tuple[str, ...] = ()
    problem: str = ""
    runs: bool = True
    written_s: float = 0.0

    @property
    def weight(self) -> int:
        """The percentage of requests that the rollout's revision gets now."""
        return self.present.share_of(self.standing.revision)

    @property
    def is_history(self) -> bool:
        """Whether the rollout has ended, and its revision is no longer what it says."""
        return self.standing.ended and not self.present.phase

    @property
    def quiet_s(self) -> float:
        """Seconds without requests before the record was written; 0 before the first request."""
        rows = self.record.rows if self.record is not None else ()
        return (self.written_s or self.now_s) - rows[-1].at_s if rows else 0.0

    @property
    def is_written(self) -> bool:
        """Whether the operator writes the record of a rollout in progress as often as it should."""
        return self.now_s - (self.written_s or self.now_s) < MAX_WRITE_INTERVAL_S + STALE_S

    @property
    def is_live(self) -> bool:
        """Whether the counts are of the present."""
        counted = self.record is not None and bool(self.record.rows) and self.quiet_s < STALE_S
        return counted and self.is_written and self.runs and not self.standing.ended

    @property
    def over(self) -> bool:
        """Whether the rollout has ended and no other is about to start."""
        return self.standing.ended and not self.behind

    @property
    def failed(self) -> bool:
        """Whether it ended without its revision in service."""
        return self.over and self.standing.phase is not Phase.SUCCEEDED

    @property
    def exit_code(self) -> int:
        """What `rollout status` exits with: 1 if it ended badly or cannot begin, 4 if it ended undecided, else 0."""
        if self.over and self.standing.phase is Phase.JUDGED:
            return 0 if self.standing.reason == SIGNALS[Signal.JUDGED_WELL][0] else UNDECIDED_CODE
        return int(self.failed or self.cannot_begin)

    @property
    def cannot_begin(self) -> bool:
        """Whether its revision cannot be loaded without a change."""
        return self.standing.phase is Phase.PENDING and bool(self.problem)

    @property
    def promoted(self) -> bool:
        """Whether the new revision is stable."""
        return self.standing.phase in _PROMOTED

    @property
    def compared(self) -> int:
        """Number of callers' requests of which both revisions got copies, in Shadow."""
        rows = () if self.record is None else self.record.rows
        return sum(sum(row.pairs.failed) for row in rows if row.pairs is not None)

    def sides(self) -> tuple[Side, Side]:
        """Return the former revision and the new one, with their counts while both had requests."""
        recorded = () if self.record is None else self.record.rows
        # Only rows in which both revisions had requests can be compared; without any, show all.
        rows = [row for row in recorded if 0 < row.weight < 100] or recorded
        return self._side(self.stable, rows), self._side(self.standing.revision, rows)

    def present_sides(self) -> tuple[Side, ...]:
        """Return the revisions of the rollout and all that get requests, as they are now.

        Their counts are of the last half minute, or of longer where requests are rare; after a change of weight, of the
        time since. Without live figures they have none.
        """
        rows = present(self.record.rows) if self.record is not None and self.is_live else ()
        changed = max((number for number, row in enumerate(rows) if row.weight != rows[-1].weight), default=-1) + 1
        settled = rows[changed:]
        shown = settled if sum(row.seconds for row in settled) >= SETTLED_S else rows
        known = (self.stable, self.standing.revision)
        roles = self.present.revisions.items()
        return tuple(self._side(each, shown) for role, each in roles if each in known or self.present.shares[role])

    def latest_sides(self, seconds: float) -> tuple[Side, Side]:
        """Return the former revision and the new one, with their counts of the last `seconds` that are recorded."""
        rows = () if self.record is None else recent(self.record.rows, seconds)
        return self._side(self.stable, rows), self._side(self.standing.revision, rows)

    def _side(self, revision: str, rows: Sequence[Row]) -> Side:
        index = CANDIDATE if revision == self.standing.revision else STABLE
        counted, latencies = rows if revision in (self.stable, self.standing.revision) else (), dict[int, int]()
        for row in counted:
            for number, count in row.latencies[index]:
                latencies[number] = latencies.get(number, 0) + count
        requests, errors = sum(row.requests[index] for row in counted), sum(row.errors[index] for row in counted)
        role, weight, seconds = (
            self.present.role_of(revision),
            self.present.share_of(revision),
            sum(row.seconds for row in counted),
        )
        return Side(role, revision, weight, int(requests), int(errors), latencies, seconds)


def record_of(manifest: Json, packed: Sequence[str] = ()) -> Record:
    """Return the record in a SegmentationRollout; `packed` are the chunks of its oldest rows, if needed.

    Raises `ControlError` for a record of unknown form.
    """
    try:
        apart = [row for chunk in packed for row in unpack_rows(chunk)]
        return rollouts.record_of(manifest, tuple(apart[: chunked_rows(manifest)]))
    except ValueError as error:
        raise ControlError(f"the oldest evidence of {manifest['metadata']['name']} cannot be read: {error}") from error
    except UnreadableRecordError as error:
        raise ControlError(f"{error}; it may be from another version of segserve") from error


def chunked_rows(manifest: Json) -> int:
    """Return how many of the oldest rows are stored outside the record."""
    return int((manifest.get("status") or {}).get("chunkedRows") or 0)


def is_written(manifest: Json | None) -> bool:
    """Return whether a record has content, as opposed to being only created."""
    return bool(manifest is not None and (manifest.get("status") or {}).get("state"))


def state_of(model: Json) -> RolloutState | None:
    """Return the state of a model's rollout from its status; None if it has had no rollout."""
    if not (model.get("status") or {}).get("rollout"):
        return None
    return from_api(SegmentationModelStatus.model_validate(model["status"])).rollout


def read_rollout(platform: Platform, model: Json, former: RolloutView | None = None) -> RolloutView | None:
    """Return a model's rollout, or None; the record of `former` is reread after a second."""
    standing, now_s, serves = state_of(model), time.time(), Present.of(model)
    if standing is None:
        return None
    runs = platform.runs()
    if former is not None and former.standing == standing and now_s - former.now_s < REREAD_S:
        behind, problem = is_behind(model, standing), _problem(model, standing)
        return replace(former, present=serves, runs=runs, behind=behind, problem=problem)
    manifest = platform.rollout(standing.rollout)
    record = record_of(manifest) if manifest is not None and is_written(manifest) else None
    written = ((manifest or {}).get("status") or {}).get("writtenAt")
    stable = record.stable if record is not None else _former_revision(model, standing)
    status = model["status"]
    return RolloutView(
        model["metadata"]["name"],
        standing,
        stable,
        record,
        now_s,
        serves,
        is_behind(model, standing),
        str(status.get("slo") or ""),
        tuple(status.get("handledAnnotations") or ()),
        _problem(model, standing),
        runs,
        datetime.fromisoformat(written).timestamp() if written else 0.0,
    )


def _problem(model: Json, standing: RolloutState) -> str:
    return "" if standing.ended else readiness(model).problem


def _former_revision(model: Json, standing: RolloutState) -> str:
    role = "previous" if standing.phase in _PROMOTED else "stable"
    holder = ((model.get("status") or {}).get("roles") or {}).get(role) or {}
    return str(holder.get("revision", ""))


def is_behind(model: Json, standing: RolloutState | None) -> bool:
    """Return whether another rollout is about to start, or may be."""
    status = model.get("status") or {}
    if not is_seen(model):
        return True
    candidate = (status.get("roles") or {}).get("candidate") or {}
    known = standing is not None and candidate.get("revision") == standing.revision
    return candidate.get("state") == "Pending" and not known


def watch_rollout(platform: Platform, name: str) -> Iterator[RolloutView | None]:
    """Yield a model's rollout now and after changes, without end; None while there is no rollout, but one may come."""
    former: RolloutView | None = None
    for manifest in platform.states(MODEL, name):
        model = manifest if manifest is not None else platform.model(name)
        former = read_rollout(platform, model, former)
        if former is None and not is_behind(model, None):
            raise no_rollout(model)
        yield former


@dataclass(frozen=True, slots=True)
class Ended:
    """A model's rollout has ended, and no other is about to start."""

    name: str
    kind: str = MODEL

    def reached(self, manifest: Json | None) -> bool:
        """Check the model's status; raises `NotFoundError` if no rollout is to come."""
        if manifest is None:
            raise NotFoundError(f"model {self.name!r} does not exist (any more)", model=self.name)
        standing = state_of(manifest)
        behind = is_behind(manifest, standing)
        if standing is None and not behind:
            raise no_rollout(manifest)
        return standing is not None and standing.ended and not behind

    def late(self, manifest: Json | None, timeout: str) -> WaitTimeoutError:
        """Return the error with the rollout's current state."""
        standing = None if manifest is None else state_of(manifest)
        state = "it has not started" if standing is None else f"{standing.revision} is {standing.phase.label}"
        return WaitTimeoutError(f"the rollout of {self.name} has not ended after {timeout}: {state}", model=self.name)


def no_rollout(model: Json) -> NotFoundError:
    """Return the error that says why a model has no rollout."""
    name = model["metadata"]["name"]
    if not (model.get("spec") or {}).get("rollout"):
        return NotFoundError(
            f"{name} has no rollout: without `spec.rollout`, a new revision is promoted as soon as it is ready"
        )
    return NotFoundError(f"{name} has had no rollout yet; the next change of its spec starts one")
