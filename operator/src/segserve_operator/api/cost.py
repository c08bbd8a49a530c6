"""Prices of what a pool's servers use (`spec.cost`)."""

from __future__ import annotations

from pydantic import Field

from segserve_operator.api.meta import ApiValue


class Cost(ApiValue):
    """Prices of an hour of what servers use, and what a month may cost."""

    cpu_hour: float | None = Field(default=None, ge=0, description="Price of a CPU core for an hour. Default: none.")
    gpu_hour: float | None = Field(default=None, ge=0, description="Price of a GPU for an hour. Default: none.")
    memory_gi_b_hour: float | None = Field(
        default=None, ge=0, description="Price of a GiB of memory for an hour. Default: none."
    )
    currency: str = Field(
        default="USD", pattern=r"^[A-Z]{3}$", description="Currency of the prices (ISO 4217). Default USD."
    )
    monthly_budget: float | None = Field(
        default=None,
        gt=0,
        description="What the pool's servers may cost in 30 days, which an alert compares. Default: no limit.",
    )
