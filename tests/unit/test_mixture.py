"""Shares, weights and copies of a mixture, by hand and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.mixture import MixtureError, Part, assign, expected_copies, whole_copies

ALL = {"all": Part(1.0, {})}


def copies_of(sizes: list[int], weights: list[float], num_tokens: float, max_copies: float = 4.0) -> list[float]:
    arrays = np.array(sizes), np.array(weights, dtype=float), np.zeros(len(sizes), dtype=np.int64)
    return expected_copies(*arrays, ALL, num_tokens=num_tokens, max_copies=max_copies).tolist()


def test_a_document_belongs_to_the_first_part_that_takes_it() -> None:
    sizes = np.array([10, 600, 600, 20])
    values = {"domain": np.array(["web", "web", "code", "code"])}
    parts = {
        "long": Part(0.75, {}, min_size=512),
        "code": Part(0.15, {"domain": ["code"]}),
        "short": Part(0.1, {"domain": ["web"]}, max_size=9),
    }
    assert assign(sizes, values, parts).tolist() == [-1, 0, 0, 1]


def test_copies_follow_the_weights() -> None:
    # s (1 * 10 + 3 * 20) = 70
    assert copies_of([10, 20], [1.0, 3.0], 70) == pytest.approx([1.0, 3.0])
    assert copies_of([10, 20], [1.0, 1.0], 60) == pytest.approx([2.0, 2.0])
    assert copies_of([10, 20, 5], [1.0, 0.0, 2.0], 40) == pytest.approx([2.0, 0.0, 4.0])


def test_what_the_cap_holds_back_comes_from_the_others() -> None:
    # uncapped 10 : 1 would be 10 x 10 + 1 x 10; at most 2 copies of the first leave 90 tokens to the second
    assert copies_of([10, 60], [10.0, 1.0], 110, max_copies=2.0) == pytest.approx([2.0, 1.5])
    assert copies_of([10, 10], [5.0, 1.0], 40, max_copies=2.0) == pytest.approx([2.0, 2.0])


def test_a_part_that_does_not_hold_its_share_is_an_error() -> None:
    with pytest.raises(MixtureError, match=r"part 'all': expected 50 tokens .* its 1 documents hold 40"):
        copies_of([10], [1.0], 50)


def test_shares_are_kept_whatever_a_part_holds() -> None:
    sizes = np.array([100, 100, 10])
    parts = {"a": Part(0.75, {}, min_size=50), "b": Part(0.25, {})}
    part_of = assign(sizes, {}, parts)
    copies = expected_copies(sizes, np.ones(3), part_of, parts, num_tokens=160, max_copies=4.0)
    assert copies.tolist() == pytest.approx([0.6, 0.6, 4.0])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 100.0)), min_size=1, max_size=30),
    st.floats(0.01, 0.999),
    st.floats(1.0, 5.0),
)
def test_tokens_come_out_as_asked_and_no_copy_exceeds_the_cap(
    documents: list[tuple[int, float]], filled: float, max_copies: float
) -> None:
    sizes, weights = (list(column) for column in zip(*documents, strict=True))
    wanted = filled * max_copies * sum(sizes)
    copies = np.array(copies_of(sizes, weights, wanted, max_copies))
    assert (copies * np.array(sizes)).sum() == pytest.approx(wanted)
    assert (copies <= max_copies * (1 + 1e-9)).all()
    free = copies < max_copies * (1 - 1e-9)
    ratios = copies[free] / np.array(weights)[free]
    assert ratios == pytest.approx(ratios[:1].repeat(len(ratios)))


def test_whole_copies_have_the_right_mean_and_do_not_depend_on_the_others() -> None:
    ids = [f"made/{k}" for k in range(20_000)]
    expected = np.full(len(ids), 1.3)
    copies = whole_copies(expected, ids, seed=0)
    assert set(copies.tolist()) == {1, 2}
    assert copies.mean() == pytest.approx(1.3, abs=0.01)
    alone = whole_copies(expected[5:6], ids[5:6], seed=0)
    assert alone[0] == copies[5]
    assert (whole_copies(expected, ids, seed=1) != copies).any()
    assert whole_copies(np.array([2.0, 0.0]), ["a", "b"], seed=0).tolist() == [2, 0]
