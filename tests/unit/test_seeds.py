"""No two samples of a run share a seed, and the run seed changes all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.seeds import request_seed

groups = st.tuples(st.integers(0, 20_000), st.integers(0, 2_000))


@given(st.integers(-(2**63), 2**63), st.sets(groups, min_size=2, max_size=20), st.integers(1, 16))
def test_samples_never_share_a_seed_not_even_its_low_32_bits(run_seed, cells, group_size) -> None:
    seeds = [request_seed(run_seed, *cell, group_size) + k for cell in cells for k in range(group_size)]
    assert len({seed % 2**32 for seed in seeds}) == len(cells) * group_size
    assert all(0 <= seed < 2**63 - 1 for seed in seeds)


def test_a_dense_run_repeats_no_seed() -> None:
    seeds = {request_seed(7, step, index, 8) + k for step in range(60) for index in range(60) for k in range(8)}
    assert len(seeds) == 60 * 60 * 8


@given(st.integers(0, 1000), st.integers(0, 1000), groups)
def test_the_run_seed_changes_every_sample(one, other, cell) -> None:
    same = request_seed(one, *cell, 8) == request_seed(other, *cell, 8)
    assert same == (one == other)


def test_evaluation_draws_other_samples_than_training() -> None:
    assert request_seed(0, 3, 4, 8) != request_seed(0, 3, 4, 8, stream="evaluation")


def test_the_seed_is_the_same_on_every_machine() -> None:
    assert request_seed(0, 0, 0, 8) == 4395619429651857687
    assert request_seed(0, 2, 1, 8) - request_seed(0, 0, 0, 8) == (3 * 4 // 2 + 1) * 8


def test_why_the_low_32_bits_count() -> None:
    generator = torch.Generator()
    draws = [torch.rand(4, generator=generator.manual_seed(seed)) for seed in (5, 5 + 2**40, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("cell", [(-1, 0, 8), (0, -1, 8), (0, 0, 0)])
def test_arguments_out_of_range_are_errors(cell) -> None:
    with pytest.raises(ValueError, match="expected step >= 0"):
        request_seed(0, *cell)


def test_beyond_the_range_of_a_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="beyond"):
        request_seed(0, 2**32, 0, 8)
