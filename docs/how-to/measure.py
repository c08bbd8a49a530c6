# %% [markdown]
# # Measure a model
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# `segserve bench` says how fast a model answers, and how many requests it takes:
#
# ```sh
# segserve bench coins examples/coins/coins.png
# ```
#
# [The reference](../reference/cli.md#bench) says how requests come and what the intervals are. `segserve.benchmark`
# does the same in Python.

# %%
import segserve

PHOTO = "examples/coins/coins.png"
report = segserve.benchmark("coins", [PHOTO], concurrency=[1, 2, 4], duration_s=2, warmup_s=0.5)
for each in report.loads:
    print(f"{each.load}: {each.per_s} per s, p50 {each.latencies_ms['p50']} ms")
# > 1 at once: ... per s, p50 ... ms
# > 2 at once: ... per s, p50 ... ms
# > 4 at once: ... per s, p50 ... ms
print(f"{report.failed} failed; {report.knee} at once are enough")
# > 0 failed; ... at once are enough

# %% [markdown]
# Callers that wait for their answers ask a slow server less. What callers will have of a model is rather told by
# requests that come at a rate, whatever becomes of the others: a latency begins when its request was due.

# %%
report = segserve.benchmark("coins", [PHOTO], requests_per_s=[20], duration_s=3, warmup_s=0.5)
print(f"p95 at 20 per s: {report.loads[0].latencies_ms['p95']} ms")
# > p95 at 20 per s: ... ms

# %% [markdown]
# ## Which one is faster
#
# Two models are asked in turns, and the ratio has an interval: where it contains 1, nothing is known.

# %%
report = segserve.benchmark("coins", [PHOTO], concurrency=[2], duration_s=3, warmup_s=0.5, against="coins-instances")
ratio = report.loads[0].ratios["p50"]
print(f"coins takes {ratio.value:.1f} times as long as coins-instances ({ratio.low:.1f} to {ratio.high:.1f})")
# > coins takes ... times as long as coins-instances (... to ...)
