"""Documents into rows: nothing is lost, rows are full, documents are whole where they can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.packing import PACKINGS, Rows, best_fit, concatenate


def pieces(rows: Rows) -> list[list[tuple[int, int, int]]]:
    flat = list(zip(rows.document.tolist(), rows.start.tolist(), rows.length.tolist(), strict=True))
    return [flat[a:b] for a, b in zip(rows.cu_pieces[:-1], rows.cu_pieces[1:], strict=True)]


def test_concatenation_by_hand() -> None:
    rows = concatenate(np.array([3, 5, 2]), 4)
    assert pieces(rows) == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 4)], [(2, 0, 2)]]
    assert rows.lengths.tolist() == [4, 4, 2]
    assert rows.waste == pytest.approx(2 / 12)
    assert len(rows.document) - 3 == 1  # cuts


def test_best_fit_by_hand() -> None:
    rows = best_fit(np.array([3, 9, 2, 4, 1]), 4)
    # 9 = 4 + 4 + a rest of 1; then 4, 3, 2, 1 (document 1's rest), 1: each into the least room
    assert pieces(rows) == [[(1, 0, 4)], [(1, 4, 4)], [(3, 0, 4)], [(0, 0, 3), (1, 8, 1)], [(2, 0, 2), (4, 0, 1)]]
    assert rows.waste == pytest.approx(1 / 20)


@pytest.mark.parametrize("name", PACKINGS)
def test_no_documents_make_no_rows(name: str) -> None:
    rows = PACKINGS[name](np.array([], dtype=np.int64), 4)
    assert len(rows) == 0
    assert rows.waste == 0.0


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize(("lengths", "row_tokens"), [([1, 0], 4), ([1], 0)])
def test_what_cannot_be_packed_is_refused(name: str, lengths: list[int], row_tokens: int) -> None:
    with pytest.raises(ValueError, match="expected row_tokens >= 1 and documents of at least one token"):
        PACKINGS[name](np.array(lengths), row_tokens)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(PACKINGS)), st.lists(st.integers(1, 40), max_size=60), st.integers(1, 17))
def test_every_token_is_in_exactly_one_piece(name: str, lengths: list[int], row_tokens: int) -> None:
    rows = PACKINGS[name](np.array(lengths, dtype=np.int64), row_tokens)
    seen = [np.zeros(length, dtype=np.int64) for length in lengths]
    for document, start, length in (piece for row in pieces(rows) for piece in row):
        assert length >= 1
        seen[document][start : start + length] += 1
    assert all((count == 1).all() for count in seen)
    assert (rows.lengths <= row_tokens).all()
    assert (rows.lengths > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 17))
def test_concatenation_leaves_room_in_the_last_row_only(lengths: list[int], row_tokens: int) -> None:
    rows = concatenate(np.array(lengths), row_tokens)
    assert (rows.lengths[:-1] == row_tokens).all()
    order = [(d, s) for row in pieces(rows) for d, s, _ in row]
    assert order == sorted(order)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60))
def test_best_fit_cuts_no_document_that_fits_and_leaves_no_two_half_empty_rows(lengths: list[int]) -> None:
    rows = best_fit(np.array(lengths), 16)
    assert len(rows.document) == len(lengths)
    assert (rows.lengths <= 8).sum() <= 1  # the content of two such rows would have been put together
