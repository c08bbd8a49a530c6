"""The dashboards: one for each question that somebody comes with."""

from __future__ import annotations

from typing import Final, TypeAlias

from charts.monitoring.answers import ANSWERS
from charts.monitoring.panels import Dashboard, Panel, Row
from charts.monitoring.rules import BURNS, MODEL, QUANTILES

POOL: Final = "namespace, pool"
OF_POOL: Final = 'namespace=~"$namespace",pool=~"$pool"'
OF_MODEL: Final = f'{OF_POOL},model=~"$model"'
NAMED: Final = "{{namespace}}/{{model}}"
POOL_NAMED: Final = "{{namespace}}/{{pool}}"
INFER: Final = f'envoy_cluster_name=~".+/.+/infer/.+",{OF_POOL}'
OF_CHOSEN: Final = f'envoy_cluster_name=~"($model)/.+/infer/.+",{OF_POOL}'
INGRESS: Final = f'envoy_http_conn_manager_prefix="ingress",{OF_POOL}'
SERVER_ERRORS: Final = f'{INGRESS},envoy_response_code_class="5"'

Query: TypeAlias = tuple[str, str]


def of_rollouts(metric: str, *more: str) -> str:
    """Return a gauge of running rollouts: of two operators one leads, but both may remember."""
    return f"max by ({', '.join((MODEL, *more))}) (segserve_rollout_{metric}{{{OF_MODEL}}})"


def counted(metric: str, *by: str, past: str = "5m") -> str:
    """Return by how much a counter of rollouts has grown in a while."""
    counter = f"segserve_rollout_{metric}{{{OF_MODEL}}}"
    # A kind of decision has no series before its first, which Prometheus does not take for an increase.
    grown = f"(increase({counter}[{past}]) and {counter} offset {past}) or ({counter} unless {counter} offset {past})"
    return f"sum by ({', '.join((MODEL, *by))}) ({grown})"


def by_role(recorded: str) -> str:
    """Return a recorded series of models and groups, by the role that each group's revision has now."""
    roles = f"max by ({MODEL}, group, role) (segserve_model_group{{{OF_MODEL}}})"
    return f"sum by ({MODEL}, role) ({recorded}{{{OF_MODEL}}} * on ({MODEL}, group) group_left (role) {roles})"


def of_models(recorded: str, aggregation: str = "sum") -> str:
    """Return a recorded series of models and groups for each model."""
    return f"{aggregation} by ({MODEL}) (segserve:{recorded}{{{OF_MODEL}}})"


def quantile_by_role(share: float) -> str:
    """Return a quantile of latencies by role."""
    roles = f"max by ({MODEL}, group, role) (segserve_model_group{{{OF_MODEL}}})"
    buckets = f"segserve:model_latency_bucket:rate2m{{{OF_MODEL}}} * on ({MODEL}, group) group_left (role) {roles}"
    return f"histogram_quantile({share}, sum by (le, {MODEL}, role) ({buckets}))"


def rate(metric: str, selector: str, by: str, past: str = "5m") -> str:
    """Return the rate of a counter."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[{past}]))"


def cost_of_an_hour() -> str:
    """Return what models use now, at the prices of `PRICES`: seconds in a second are hours in an hour."""
    cpu, memory, gpu = (
        rate(f"segserve_cost_{each}_total", OF_MODEL, MODEL)
        for each in ("cpu_seconds", "memory_byte_seconds", "gpu_seconds")
    )
    # Models without a GPU have no series of its time.
    return f"{cpu} * $cpu_hour + {memory} / 2^30 * $gib_hour + ({gpu} * $gpu_hour or {cpu} * 0)"


def of_triton(metric: str, selector: str = OF_POOL) -> str:
    """Return what a request takes in each of Triton's steps, in microseconds, from a counter of it."""
    each = f"{POOL}, model"
    return f"{rate(metric, selector, each)} / {rate('nv_inference_request_success', selector, each)}"


def by_pod(metric: str) -> Query:
    """Return a gauge of pods."""
    return f"max by ({POOL}, pod) ({metric}{{{OF_POOL}}})", "{{pod}}"


def by_gpu(gauge: str) -> tuple[Query, ...]:
    """Return a gauge of GPUs."""
    return ((f"max by ({POOL}, pod, gpu_uuid) ({gauge})", "{{pod}} {{gpu_uuid}}"),)


def of_clusters(query: str, *more: str) -> tuple[Query, ...]:
    """Return a sum by Envoy's clusters."""
    by = ("envoy_cluster_name", *more)
    return ((f"sum by ({', '.join(by)}) ({query})", " ".join(f"{{{{{each}}}}}" for each in by)),)


def variables(metric: str, *names: str) -> tuple[Query, ...]:
    """Return variables of labels of a metric, each chosen among those that fit the ones before."""
    found: list[Query] = []
    for place, name in enumerate(names):
        chosen = ",".join(f'{each}=~"${each}"' for each in names[:place])
        found.append((name, f"label_values({metric}{f'{{{chosen}}}' if chosen else ''}, {name})"))
    return tuple(found)


OF_MODELS: Final = variables("segserve:model_requests:rate2m", "namespace", "pool", "model")
OF_POOLS: Final = variables("envoy_server_live", "namespace", "pool")

PRICES: Final = (
    ("cpu_hour", "Price of a CPU hour"),
    ("gib_hour", "Price of a GiB hour of memory"),
    ("gpu_hour", "Price of a GPU hour"),
)
BUDGET_LEFT: Final = f"1 - segserve:slo_burn:rate30d{{{OF_MODEL}}}"
FAILED_SHARE: Final = f"{of_models('model_failures:rate2m')} / {of_models('model_requests:rate2m')}"
REFUSED: Final = f"rate(envoy_cluster_upstream_rq_pending_overflow{{{INFER}}}[5m])"
GPU_MEMORY: Final = f"nv_gpu_memory_used_bytes{{{OF_POOL}}} / (nv_gpu_memory_total_bytes{{{OF_POOL}}} > 0)"
NOT_READY: Final = 'sum(max by (namespace, pool, ready) (segserve_models{ready!="True"})) or vector(0)'

EXECUTIVE: Final = Dashboard(
    "executive",
    "executive",
    (
        Row("Now", (
            Panel("Models ready",
                  (('sum(max by (namespace, pool, ready) (segserve_models{ready="True"})) or vector(0)', "ready"),),
                  kind="stat", width=6, height=4),
            Panel("Models not ready", ((NOT_READY, "not ready"),), kind="stat", width=6, height=4, alarming=1),
            Panel("Requests", ((f"sum({of_models('model_requests:rate2m')})", "all models"),), "reqps", "stat",
                  width=6, height=4),
            Panel("Pages now", (('count(ALERTS{alertname=~"Segserve.*",alertstate="firing",severity="critical"}) '
                                 "or vector(0)", "critical alerts"),), kind="stat", width=6, height=4, alarming=1),
        )),
        Row("Service level objectives", (
            Panel("Error budget left", ((BUDGET_LEFT, NAMED + " {{objective}}"),), "percentunit", top=1,
                  alarming_below=0.0, signed=True, description="Of the past 30 days; below 0 the SLO is missed."),
            Panel("Requests within the SLO",
                  ((f"1 - segserve:slo_burn:rate30d{{{OF_MODEL}}} * segserve:slo_budget:ratio{{{OF_MODEL}}}",
                    NAMED + " {{objective}}"),), "percentunit", top=1, description="Of the past 30 days."),
        )),
        Row("Traffic and changes", (
            Panel("Requests by model", ((of_models("model_requests:rate2m"), NAMED),), "reqps"),
            Panel("Share of failed requests", ((FAILED_SHARE, NAMED),), "percentunit"),
            Panel("Rollouts that ended, by day", ((counted("ends_total", "phase", past="1d"), NAMED + " {{phase}}"),)),
            Panel("Rollouts under way", ((f"count({of_rollouts('weight')}) or vector(0)", "rollouts"),)),
        )),
        Row("Cost", (
            Panel("Cost of an hour", ((cost_of_an_hour(), NAMED),),
                  description="What servers use, at the prices that you type in above."),
            Panel("CPU of a request", ((f"{rate('segserve_cost_cpu_seconds_total', OF_MODEL, MODEL)} / "
                                        f"{rate('segserve_cost_requests_total', OF_MODEL, MODEL)}", NAMED),), "s",
                  description="Of servers, tests by agents included."),
        )),
    ),
    OF_MODELS,
    PRICES,
    refresh="5m",
    past="now-30d",
)  # fmt: skip

ON_CALL: Final = Dashboard(
    "on-call",
    "on-call",
    (
        Row("What is wrong", (
            Panel("Alerts", (('ALERTS{alertname=~"Segserve.*",alertstate="firing",severity!="info"}', ""),),
                  kind="table", width=24, height=7, description="The page of alerts says of each what to do."),
        )),
        Row("Callers", (
            Panel("Burn of the error budget, one hour",
                  ((f"segserve:slo_burn:rate{BURNS[0].long}{{{OF_MODEL}}}", NAMED + " {{objective}}"),),
                  description="1 uses all of a month's budget in a month; a page comes at 14.4."),
            Panel("Burn of the error budget, five minutes",
                  ((f"segserve:slo_burn:rate{BURNS[0].short}{{{OF_MODEL}}}", NAMED + " {{objective}}"),)),
            Panel("Share of failed requests", ((FAILED_SHARE, NAMED),), "percentunit"),
            Panel("p95", ((of_models("model_latency_ms:p95", "max"), NAMED),), "ms",
                  description="Of the slowest group of each model."),
            Panel("Requests", ((of_models("model_requests:rate2m"), NAMED),), "reqps"),
            Panel("Share of 5xx at the gateways",
                  ((f"{rate('envoy_http_downstream_rq_xx', SERVER_ERRORS, POOL)} / "
                    f"{rate('envoy_http_downstream_rq_xx', INGRESS, POOL)}", POOL_NAMED),), "percentunit"),
        )),
        Row("Causes", (
            Panel("Models not ready", (('max by (namespace, pool, ready) (segserve_models{ready!="True"}) or vector(0)',
                                        POOL_NAMED + " ready={{ready}}"),)),
            Panel("Servers that do not answer",
                  ((f"count by ({POOL}) (segserve_agent_server_ready{{{OF_POOL}}} == 0) or vector(0)", POOL_NAMED),)),
            Panel("Weight of candidates", ((of_rollouts("weight"), NAMED),), "percent", top=100),
            Panel("Decisions of rollouts", ((counted("decisions_total", "signal"), NAMED + " {{signal}}"),)),
            Panel("Requests refused because queues are full",
                  of_clusters(REFUSED), "reqps"),
            Panel("Writes that are refused", ((f"max by ({POOL}, effect) (segserve_failing_effects) or vector(0)",
                                               POOL_NAMED + " {{effect}}"),)),
        )),
    ),
    OF_MODELS,
)  # fmt: skip

DEBUG: Final = Dashboard(
    "debug",
    "one model",
    (
        Row("Requests", (
            Panel("Requests by group", ((f"segserve:model_requests:rate2m{{{OF_MODEL}}}", NAMED + " {{group}}"),),
                  "reqps"),
            Panel("Failures by group", ((f"segserve:model_failures:rate2m{{{OF_MODEL}}}", NAMED + " {{group}}"),),
                  "reqps", description="By the server's fault; HTTP and gRPC."),
            Panel("Responses by first digit of the status",
                  of_clusters(f"rate(envoy_cluster_upstream_rq_xx{{{OF_CHOSEN}}}[5m])", "envoy_response_code_class"),
                  "reqps"),
            Panel("Requests in flight", of_clusters(f"envoy_cluster_upstream_rq_active{{{OF_CHOSEN}}}")),
        )),
        Row("Latency", (
            *(Panel(name, ((f"segserve:model_latency_ms:{name}{{{OF_MODEL}}}", NAMED + " {{group}}"),), "ms", width=8)
              for name, _ in QUANTILES),
            Panel("Objectives", ((f"max by ({MODEL}, objective) (segserve_slo_latency_seconds{{{OF_MODEL}}})",
                                  NAMED + " {{objective}}"),), "s"),
            Panel("Share of slow requests", ((f'segserve:slo_bad_requests:rate2m{{objective!="errors",{OF_MODEL}}} / '
                                              f"segserve:slo_requests:rate2m{{{OF_MODEL}}}",
                                              NAMED + " {{objective}}"),), "percentunit"),
        )),
        Row("Steps inside Triton, of the whole pool", (
            Panel("Time in queue", ((of_triton("nv_inference_queue_duration_us"), "{{model}}"),), "µs"),
            Panel("Time of computation", ((of_triton("nv_inference_compute_infer_duration_us"), "{{model}}"),), "µs"),
            Panel("Requests per batch",
                  ((f"{rate('nv_inference_count', OF_POOL, POOL + ', model')} / "
                    f"{rate('nv_inference_exec_count', OF_POOL, POOL + ', model')}", "{{model}}"),)),
            Panel("Failures", ((rate("nv_inference_request_failure", OF_POOL, POOL + ", model, reason"),
                                "{{model}} {{reason}}"),), "reqps"),
        )),
    ),
    OF_MODELS,
)  # fmt: skip

ROLLOUTS: Final = Dashboard(
    "rollouts",
    "rollouts",
    (
        Row("Now", (
            Panel("Rollouts under way", ((f"count({of_rollouts('weight')}) or vector(0)", "rollouts"),), kind="stat",
                  width=6, height=4),
            Panel("Held", ((of_rollouts("held", "reason"), NAMED + " {{reason}}"),), kind="stat", width=6, height=4,
                  alarming=1, description="They wait for a person, or for the end of an incident."),
            Panel("Bad requests", ((of_rollouts("bad_requests"), NAMED),), kind="stat", width=6, height=4,
                  description="That went wrong because of the candidate, as far as can be told."),
            Panel("Age of the last look", ((of_rollouts("look_seconds"), NAMED),), "s", "stat", width=6, height=4,
                  alarming=60, description="At the gateways' counts; every second while rollouts run."),
        )),
        Row("Progress and evidence", (
            Panel("Weight of the candidate", ((of_rollouts("weight"), NAMED),), "percent", top=100),
            Panel("Phases", ((of_rollouts("phase", "phase"), NAMED + " {{phase}}"),), kind="state-timeline"),
            Panel("Evidence by gate", ((of_rollouts("evidence", "gate"), NAMED + " {{gate}}"),), "percentunit", top=1,
                  width=24, description="Against the candidate, as a share of its bound: at 100 % it is rolled back."),
        )),
        Row("Both revisions", (
            Panel("Requests", ((by_role("segserve:model_requests:rate2m"), NAMED + " {{role}}"),), "reqps"),
            Panel("Share of failed requests",
                  ((f"{by_role('segserve:model_failures:rate2m')} / {by_role('segserve:model_requests:rate2m')}",
                    NAMED + " {{role}}"),), "percentunit", description="By the server's fault; HTTP and gRPC."),
            Panel("p50", ((quantile_by_role(0.5), NAMED + " {{role}}"),), "ms"),
            Panel("p95", ((quantile_by_role(0.95), NAMED + " {{role}}"),), "ms"),
        )),
        Row("Ends", (
            Panel("Decisions", ((counted("decisions_total", "signal"), NAMED + " {{signal}}"),)),
            Panel("Quarantines and ends", ((counted("quarantines_total"), NAMED + " quarantined"),
                                           (counted("ends_total", "phase"), NAMED + " {{phase}}"))),
        )),
    ),
    variables("segserve_model_group", "namespace", "pool", "model"),
    refresh="10s",
)  # fmt: skip

GATEWAYS: Final = Dashboard(
    "gateways",
    "gateways",
    (
        Row("Callers", (
            Panel("Answers", ((rate("envoy_http_downstream_rq_xx", INGRESS, POOL + ", envoy_response_code_class"),
                               POOL_NAMED + " {{envoy_response_code_class}}xx"),), "reqps"),
            Panel("Connections",
                  ((f"sum by ({POOL}, pod) (envoy_http_downstream_cx_active{{{INGRESS}}})", "{{pod}}"),)),
        )),
        Row("Models", (
            Panel("Requests by model and group", of_clusters(f"rate(envoy_cluster_upstream_rq_total{{{INFER}}}[5m])"),
                  "reqps"),
            Panel("p99 by model and group",
                  ((f"segserve:model_latency_ms:p99{{{OF_POOL}}}", "{{model}}/{{group}}"),), "ms"),
            Panel("Requests in flight", of_clusters(f"envoy_cluster_upstream_rq_active{{{INFER}}}")),
            Panel("Refused because queues are full", of_clusters(REFUSED), "reqps"),
        )),
        Row("Gateways themselves", (
            Panel("Memory", (by_pod("envoy_server_memory_allocated"),), "bytes"),
            Panel("Age of the last comparison with the plan", (by_pod("segserve_gateway_pass_age_seconds"),), "s"),
            Panel("Plans followed and refused",
                  ((f"max by ({POOL}, pod) (segserve_gateway_shifts_total{{{OF_POOL}}})", "{{pod}} followed"),
                   (f"max by ({POOL}, pod) (segserve_gateway_refusals_total{{{OF_POOL}}})", "{{pod}} refused"))),
            Panel("Certificates expire in",
                  ((f"(max by ({POOL}, pod) (segserve_gateway_certificate_expires_seconds{{{OF_POOL}}}) > 0) - time()",
                    "{{pod}}"),), "s", signed=True),
        )),
    ),
    OF_POOLS,
)  # fmt: skip

OPERATOR: Final = Dashboard(
    "operator",
    "operator",
    (
        Row("Now", (
            Panel("Leaders", (("sum(segserve_is_leader)", "leaders"),), kind="stat", width=6, height=4),
            Panel("Age of the watch", (("max(segserve_watch_age_seconds)", "seconds"),), "s", "stat", width=6, height=4,
                  alarming=180),
            Panel("Models not ready", ((NOT_READY, "models"),), kind="stat", width=6, height=4, alarming=1),
            Panel("Pools not ready",
                  (('sum(max by (namespace, ready) (segserve_pools{ready!="True"})) or vector(0)', "pools"),),
                  kind="stat", width=6, height=4, alarming=1),
        )),
        Row("Work", (
            Panel("Passes", (("sum by (outcome) (rate(segserve_reconcile_passes_total[5m]))", "{{outcome}}"),), "ops"),
            Panel("Duration of a pass",
                  tuple((f"histogram_quantile({q}, sum by (le) (rate(segserve_reconcile_seconds_bucket[5m])))", name)
                        for name, q in QUANTILES), "s"),
            Panel("Requests to the API server",
                  (("sum by (verb, kind) (rate(segserve_api_requests_total[5m]))", "{{verb}} {{kind}}"),), "reqps"),
            Panel("Refused or failed requests to the API server",
                  (('sum by (verb, kind, code) (rate(segserve_api_requests_total{code!~"2.."}[5m]))',
                    "{{verb}} {{kind}} {{code}}"),), "reqps"),
        )),
        Row("Objects", (
            Panel("Models", (("max by (namespace, pool, ready) (segserve_models)", POOL_NAMED + " ready={{ready}}"),)),
            Panel("Writes that are refused", ((f"max by ({POOL}, effect) (segserve_failing_effects) or vector(0)",
                                               POOL_NAMED + " {{effect}}"),)),
            Panel("Sizes of stored objects", ((f"max by ({POOL}, purpose) (segserve_stored_bytes)",
                                               POOL_NAMED + " {{purpose}}"),), "bytes",
                  description="Kubernetes refuses those above 1 MiB."),
            Panel("Notifications", (("sum by (outcome) (increase(segserve_notifications_total[5m]))", "{{outcome}}"),)),
        )),
    ),
)  # fmt: skip

HARDWARE: Final = Dashboard(
    "hardware",
    "hardware",
    (
        Row("Processors and memory", (
            Panel("CPU of servers' machines", (by_pod("nv_cpu_utilization"),), "percentunit", top=1,
                  description="As Triton sees it: of the whole machine."),
            Panel("Memory of machines in use",
                  ((f"max by ({POOL}, pod) (nv_cpu_memory_used_bytes{{{OF_POOL}}} / "
                    f"nv_cpu_memory_total_bytes{{{OF_POOL}}})", "{{pod}}"),), "percentunit", top=1),
            Panel("Memory of Triton and its steps", (by_pod("segserve_agent_server_memory_bytes"),), "bytes"),
            Panel("Time of the agents' test requests", (by_pod("segserve_agent_probe_seconds"),), "s"),
        )),
        Row("GPUs", (
            Panel("Use", by_gpu(f"nv_gpu_utilization{{{OF_POOL}}}"), "percentunit", top=1, width=8),
            Panel("Memory", by_gpu(GPU_MEMORY), "percentunit", top=1, width=8, alarming=0.95),
            Panel("Power", by_gpu(f"nv_gpu_power_usage{{{OF_POOL}}}"), "watt", width=8),
        )),
        Row("Work", (
            Panel("Executions", ((rate("nv_inference_exec_count", OF_POOL, POOL + ", pod"), "{{pod}}"),), "ops"),
            Panel("Requests that wait", ((f"sum by ({POOL}, pod) (nv_inference_pending_request_count{{{OF_POOL}}})",
                                          "{{pod}}"),)),
            Panel("Time in queue by server",
                  ((f"{rate('nv_inference_queue_duration_us', OF_POOL, POOL + ', pod')} / "
                    f"{rate('nv_inference_request_success', OF_POOL, POOL + ', pod')}", "{{pod}}"),), "µs"),
            Panel("Models by state", ((f"sum by ({POOL}, state) (segserve_agent_models{{{OF_POOL}}})",
                                       POOL_NAMED + " {{state}}"),)),
        )),
    ),
    OF_POOLS,
)  # fmt: skip

DASHBOARDS: Final = (EXECUTIVE, ON_CALL, ANSWERS, DEBUG, ROLLOUTS, GATEWAYS, OPERATOR, HARDWARE)
