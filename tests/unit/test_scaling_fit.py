"""Optima and power laws by hand and against curves whose answer is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.scaling_fit import fit_power_law, optimum


@settings(max_examples=100, deadline=None)
@given(st.floats(-6.4, -3.6), st.floats(0.01, 3.0), st.floats(1.0, 5.0))
def test_a_parabola_in_log_lr_gives_its_vertex(vertex: float, bend: float, level: float) -> None:
    lrs = [math.exp(k) for k in (-7, -6, -5, -4, -3)]
    found = optimum(lrs, [level + bend * (math.log(lr) - vertex) ** 2 for lr in lrs])
    assert found.value == pytest.approx(math.exp(vertex), rel=1e-6)
    assert found.loss == pytest.approx(level, rel=1e-6)
    assert not found.at_edge


def test_edges_and_diverged_runs_are_told() -> None:
    assert optimum([1, 2, 4], [1.0, 2.0, 3.0]).at_edge
    assert optimum([1, 2, 4], [3.0, 2.0, 1.0]) == optimum([1, 2, 4], [3.0, math.nan, 1.0])
    beside = optimum([1, 2, 4], [3.0, 2.0, math.inf])
    assert (beside.value, beside.at_edge) == (2.0, False)
    assert optimum([1, 2, 4], [2.0, 2.0, 2.0]).loss == 2.0


@pytest.mark.parametrize(
    ("lrs", "losses"), [([1, 2], [1, 2]), ([1, 3, 2], [1, 2, 3]), ([1, 2, 3], [math.nan] * 3), ([0, 1, 2], [1, 2, 3])]
)
def test_what_has_no_optimum_is_refused(lrs: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least three increasing settings"):
        optimum(lrs, losses)


def test_a_law_in_two_variables_is_found_and_predicts() -> None:
    sizes, tokens = [1e5, 1e5, 1e6, 1e6, 1e7], [1e7, 1e8, 1e7, 1e8, 1e8]
    law = fit_power_law({"N": sizes, "D": tokens}, [3.0 * n**-0.3 * d**0.1 for n, d in zip(sizes, tokens, strict=True)])
    assert law.exponents == pytest.approx({"N": -0.3, "D": 0.1})
    assert law(N=1e8, D=1e9) == pytest.approx(3.0 * 1e8**-0.3 * 1e9**0.1)
    assert law.spread == pytest.approx(1.0)


def test_what_does_not_vary_has_no_exponent_and_residuals_are_factors() -> None:
    law = fit_power_law({"N": [1.0, 10.0, 100.0], "D": [5.0, 5.0, 5.0]}, [1.0, 2.0, 1.0])
    assert law.exponents == pytest.approx({"N": 0.0})
    assert law(N=7.0) == pytest.approx(2 ** (1 / 3))
    assert law.residuals == pytest.approx([-math.log(2) / 3, 2 * math.log(2) / 3, -math.log(2) / 3])
    with pytest.raises(ValueError, match="expected at least 2 points"):
        fit_power_law({"N": [1.0, 2.0]}, [1.0])
