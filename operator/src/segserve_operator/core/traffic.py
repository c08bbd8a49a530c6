"""Traffic plans: the groups that serve a model's requests and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, Self

from segserve_builder.capture.rule import CaptureRule
from segserve_operator.core.failure import FailureReason

RESTART_S: Final = 2
"""Time in seconds in which Triton starts, without its models."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Addresses of one Triton server."""

    host: str
    http_port: int
    grpc_port: int


@dataclass(frozen=True, slots=True)
class Share:
    """A group and the revision it holds get `weight` of 100 requests.

    With the weight 0 the gateway has it, and can send it requests from one moment to the next; until then only our
    own come, which name the group.

    `endpoints` are the group's servers whose agents report that very revision loaded and proved; with none, its
    requests get 503. `max_requests` may be in flight at once over each protocol; more get 503 at once.
    `classes` are the ids and names of the revision's classes, where the gateway adds them to plain answers. `device` is
    the device of its networks, `cpu`, `gpu` or `cpu,gpu`, None if no server reports it. A server of it that ended
    answers again after about `restart_s` seconds.
    """

    group: str
    revision: str
    weight: int
    endpoints: tuple[Endpoint, ...] = ()
    max_requests: int = 1024
    classes: tuple[tuple[int, str], ...] | None = None
    device: str | None = None
    restart_s: int = RESTART_S


class Callers(StrEnum):
    """Callers of a gateway, by their credentials."""

    AUTHENTICATED = "Authenticated"
    ANONYMOUS = "Anonymous"


class CredentialKind(StrEnum):
    """Kinds of credentials that a gateway takes, as the fields of `spec.gateway.auth` are called."""

    TOKEN = "jwt"
    KEY = "apiKeys"
    CERTIFICATE = "mtls"


@dataclass(frozen=True, slots=True)
class AccessRule:
    """Callers who may use a model.

    They have a token (of `issuer`, or of any) whose `claim` is one of `values` or contains one, an API key of one of
    the names `keys`, a certificate with one of the names `certificates`, or any credentials; ANONYMOUS is any caller.
    """

    claim: str = ""
    values: tuple[str, ...] = ()
    issuer: str = ""
    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    callers: Callers | None = None

    def can_admit(self, taken: frozenset[CredentialKind]) -> bool:
        """Return whether the rule can admit a caller at a gateway that takes credentials of these kinds."""
        if self.callers is not None:
            return self.callers is Callers.ANONYMOUS or bool(taken)
        kinds = {CredentialKind.TOKEN: self.values, CredentialKind.KEY: self.keys}
        kinds[CredentialKind.CERTIFICATE] = self.certificates
        return any(names and kind in taken for kind, names in kinds.items())


@dataclass(frozen=True, slots=True)
class RequestRate:
    """Inference requests per second, and million bytes of them; None is not limited."""

    requests_per_s: int | None = None
    megabytes_per_s: int | None = None


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """How much one gateway takes for a model: of each caller, and of all together."""

    per_caller: RequestRate = RequestRate()
    total: RequestRate = RequestRate()


@dataclass(frozen=True, slots=True)
class RouteAffinity:
    """Where a model's requests of one id go: to one revision, and to one server of its group.

    `last` is the group whose revision is to have all requests in the end, or empty: ids that are on it
    stay there as its weight grows. Ids are in another order for each `salt`, so that not always the same ones are the
    first; servers are chosen without it.
    """

    last: str = ""
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Requests of callers that are also sent to two groups, for comparison; callers see nothing of it.

    `percent` of the inference requests are copied to the comparator of the gateway, which sends at most
    `requests_per_s` of them to both groups. has_baseline: stable is also compared with itself.
    """

    stable: str
    candidate: str
    percent: int
    requests_per_s: float
    has_baseline: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A model's requests, split over its shares; the weights sum to 100.

    `steps` are the names of the composing models that the heaviest share's group holds; clients such as
    perf_analyzer request their configuration. `exposed` names the bare networks that are public. `access` says who may
    use the model: any of these callers, no caller if it is empty, and any caller that the gateway admits if it is None.
    Without an `affinity` each request goes its own way. With a `mirror`, some are compared; with `keeps_pairs`, what
    was compared before may be kept in memory for a person to look at. With `capture`, samples of some are kept.
    """

    model: str
    shares: tuple[Share, ...]
    steps: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    access: tuple[AccessRule, ...] | None = None
    limits: RouteLimits | None = None
    affinity: RouteAffinity | None = None
    mirror: Mirror | None = None
    keeps_pairs: Literal[True] | None = None
    capture: CaptureRule | None = None

    def __post_init__(self) -> None:
        total = sum(share.weight for share in self.shares)
        if total != 100 or any(share.weight < 0 for share in self.shares):
            weights = {share.group: share.weight for share in self.shares}
            raise ValueError(f"weights of {self.model!r} must be positive and sum to 100, got {weights}")


@dataclass(frozen=True, slots=True)
class TrafficPlan:
    """Configuration of the gateways: routes by model, and the servers for requests that name no model."""

    routes: tuple[Route, ...] = ()
    servers: tuple[Endpoint, ...] = ()

    @property
    def is_restricted(self) -> bool:
        """Whether some model is not for all callers, so that none may learn the names of all."""
        return any(route.access is not None for route in self.routes)

    @classmethod
    def joined(cls, parts: Iterable[TrafficPlan]) -> Self:
        """Return the union of plans; no model may be in two of them."""
        held = tuple(parts)
        routes = sorted((route for part in held for route in part.routes), key=lambda route: route.model)
        return cls(tuple(routes), tuple(server for part in held for server in part.servers))


@dataclass(frozen=True, slots=True)
class TrafficState:
    """Observed state of the gateways.

    `plan` is what they follow (None before the first), except for the models `pending`: some gateway still sends their
    requests as an earlier plan said. `active` counts requests under way by (model, group). `answering` is False where
    no gateway takes requests, `intact` where something of the gateways is not as it should be, and `problem` says why
    some do not come up.
    """

    plan: TrafficPlan | None
    active: Mapping[tuple[str, str], int] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    answering: bool = True
    intact: bool = True
    problem: FailureReason | None = None
    _shares: Mapping[tuple[str, str], Share] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        routes = self.plan.routes if self.plan is not None else ()
        object.__setattr__(self, "_shares", {(r.model, share.group): share for r in routes for share in r.shares})

    def share(self, model: str, group: str) -> Share | None:
        """Return a group's share of a model in the plan; None until every gateway follows it."""
        if self.plan is None or model in self.pending:
            return None
        return self._shares.get((model, group))

    def idle(self, model: str, group: str) -> bool:
        """Return whether no request of a caller for a model is in flight to a group, nor can be sent to it."""
        if self.plan is None or model in self.pending or self.active.get((model, group), 0):
            return False
        share = self.share(model, group)
        return share is None or share.weight == 0

    def drained(self, model: str, group: str) -> bool:
        """Return whether no request for a model can reach a group: the gateways no longer have a route to it."""
        return self.idle(model, group) and self.share(model, group) is None
