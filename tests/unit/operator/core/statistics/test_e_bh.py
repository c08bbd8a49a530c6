"""The e-BH procedure: how many discoveries there are, and how many of them are false."""

from __future__ import annotations

import numpy as np

from fakes.cases import cases
from segserve_operator.core.statistics.e_bh import discoveries, strongest


@cases(
    ("e_values", "found"),
    {
        "one of two needs twice as much as one alone": ([39.0, 1.0], [False, False]),
        "which is enough": ([40.0, 1.0], [True, False]),
        "two of two help each other": ([21.0, 20.0], [True, True]),
        "the place in the list does not matter": ([1.0, 0.0, 1e9, 30.0], [False, False, True, False]),
        "the second of four needs half as much": ([1.0, 0.0, 1e9, 40.0], [False, False, True, True]),
        "no evidence": ([0.0], [False]),
        "no hypotheses": ([], []),
    },
)
def test_the_k_largest_are_discoveries_if_each_is_at_least_the_number_by_k_and_level(
    e_values: list[float], found: list[bool]
) -> None:
    with np.errstate(divide="ignore"):
        logs = np.log(np.array(e_values))

    assert discoveries(logs, 0.05).tolist() == found
    if e_values:
        assert bool(strongest(logs) >= -np.log(0.05)) is any(found)


def test_of_true_hypotheses_any_is_refuted_as_rarely_as_declared_however_they_depend_on_each_other() -> None:
    generator, level, runs = np.random.default_rng(4), 0.05, 20_000
    shared = generator.standard_normal((runs, 1))
    for correlation in (0.0, 0.9):
        z = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * generator.standard_normal((runs, 20))
        # Likelihood ratios, whose mean is 1 if the null is true.
        assert (strongest(2.0 * z - 2.0) >= -np.log(level)).mean() <= level
