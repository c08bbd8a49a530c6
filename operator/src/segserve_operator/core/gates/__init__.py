"""What judges a candidate: one gate a file, in one of two registries, measured and asked."""

from segserve_operator.core.gates.measured import MEASURED, measured_gates

__all__ = ["MEASURED", "measured_gates"]
