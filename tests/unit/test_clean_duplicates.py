"""Duplicates: signatures against theory, pairs against brute force, components against networkx, order and sharding."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus_steps import ExactDuplicates, NearDuplicates, RepeatedParagraphs, paragraphs
from pretrain.data.duplicates import (
    Components,
    Near,
    band_keys,
    buckets,
    first_of_equal,
    signatures,
    similarity_of,
    verified,
)
from pretrain.data.words import Hashes, exact_key, jaccard, shingles
from rlplatform.datafiles import DataError


def pair_of_sets(rng: np.random.Generator, size: int, similarity: float) -> tuple[Hashes, Hashes, float]:
    """Two random sets of ``size`` and their true Jaccard index, near ``similarity``."""
    shared = round(2 * size * similarity / (1 + similarity))
    ids = rng.integers(0, 2**64 - 1, size=2 * size, dtype=np.uint64)
    a, b = ids[:size], ids[size - shared : 2 * size - shared]
    return np.unique(a), np.unique(b), shared / (2 * size - shared)


# --- signatures against theory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "similarity"), [(30, 0.5), (200, 0.8), (1000, 0.3)])
def test_equal_slots_estimate_the_jaccard_index(size: int, similarity: float) -> None:
    """The mean over 300 pairs of 120 slots: no bias, and no more scatter than independent slots have."""
    rng, near, off = np.random.default_rng(1), Near(), []
    for _ in range(300):
        a, b, true = pair_of_sets(rng, size, similarity)
        one, other = signatures([a, b], near)
        off.append(float(np.mean(one == other)) - true)
    scatter = (true * (1 - true) / 120) ** 0.5
    assert abs(np.mean(off)) < 4 * scatter / 300**0.5
    assert np.std(off) < 1.2 * scatter


@pytest.mark.parametrize(
    ("bands", "rows", "similarity"), [(20, 6, 0.5), (20, 6, 0.6), (20, 6, 0.7), (16, 8, 0.7), (5, 3, 0.4)]
)
def test_candidates_follow_the_s_curve(bands: int, rows: int, similarity: float) -> None:
    """1 - (1 - s**r)**b, within four standard errors of 600 pairs."""
    rng, near, hits, num = np.random.default_rng(2), Near(bands=bands, rows=rows), 0, 600
    for _ in range(num):
        a, b, true = pair_of_sets(rng, 150, similarity)
        one, other = band_keys(signatures([a, b], near), near)
        hits += bool(np.any(one == other))
    expected = 1 - (1 - true**rows) ** bands
    assert near.recall(true) == pytest.approx(expected)
    assert abs(hits / num - expected) < 4 * (expected * (1 - expected) / num) ** 0.5


def test_the_curve_by_hand() -> None:
    near = Near(bands=2, rows=1)
    assert near.recall(0.5) == pytest.approx(0.75)
    assert near.recall(1.0) == 1.0
    assert [round(Near().recall(s), 3) for s in (0.5, 0.7, 0.8)] == [0.27, 0.918, 0.998]  # as the page says


def test_signatures_do_not_depend_on_what_else_is_in_the_batch() -> None:
    sets = [shingles(f"words of text number {k} and more of them", 3) for k in range(20)]
    together = signatures(sets, Near())
    apart = np.concatenate([signatures([one], Near()) for one in sets])
    assert np.array_equal(together, apart)
    assert signatures([], Near()).shape == (0, 120)
    assert not np.array_equal(together, signatures(sets, Near(seed=2)))


def test_band_keys_are_equal_exactly_where_all_slots_of_a_band_are() -> None:
    near = Near(bands=2, rows=3)
    signed = np.array([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [3, 2, 1, 4, 5, 6]], np.uint32)
    keys = band_keys(signed, near)
    assert keys[0, 0] == keys[1, 0] != keys[2, 0]
    assert keys[0, 1] == keys[2, 1] != keys[1, 1]


# --- pairs and components -------------------------------------------------------------------------------------------


def corpus_texts(seed: int, num: int) -> list[str]:
    """Texts of 40 words, many of them edited copies of earlier ones: similarities all over (0, 1)."""
    rng = random.Random(seed)
    vocabulary = [f"w{k}" for k in range(400)]
    texts: list[list[str]] = []
    for _ in range(num):
        if texts and rng.random() < 0.7:
            words = list(rng.choice(texts))
            for _ in range(rng.choice([0, 1, 1, 2, 4, 8])):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
        else:
            words = rng.choices(vocabulary, k=40)
        texts.append(words)
    return [" ".join(words) for words in texts]


def found_roots(sets: list[Hashes], near: Near) -> list[int]:
    keys = band_keys(signatures(sets, near), near)
    joined = Components(len(sets))
    for band in range(near.bands):
        edges, cut_short = verified(
            buckets(keys[:, band], np.arange(len(sets), dtype=np.int64)), similarity_of(lambda unit: sets[unit]), near
        )
        assert not cut_short
        for a, b in edges:
            joined.join(a, b)
    return joined.roots().tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_duplicates_against_brute_force(seed: int) -> None:
    """No pair below the threshold is joined; of those above, as many are found as the curve says (here: all)."""
    sets = [shingles(text, 2) for text in corpus_texts(seed, 80)]
    near = Near(threshold=0.6, ngram=2, bands=60, rows=4)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(sets)))
    true = [(a, b) for a, b in combinations(range(len(sets)), 2) if jaccard(sets[a], sets[b]) >= near.threshold]
    graph.add_edges_from(true)
    assert len(true) > 20
    assert min(near.recall(jaccard(sets[a], sets[b])) for a, b in true) > 0.9997
    roots = found_roots(sets, near)
    expected = {unit: min(component) for component in nx.connected_components(graph) for unit in component}
    assert roots == [expected[unit] for unit in range(len(sets))]


def test_precision_is_one_even_where_everything_is_a_candidate() -> None:
    """One row a band makes almost every pair a candidate; what is joined is still above the threshold or chained."""
    sets = [shingles(text, 1) for text in corpus_texts(5, 50)]
    near = Near(threshold=0.75, ngram=1, bands=40, rows=1)
    keys = band_keys(signatures(sets, near), near)
    for band in range(near.bands):
        grouped = buckets(keys[:, band], np.arange(len(sets), dtype=np.int64))
        for a, b in verified(grouped, similarity_of(lambda unit: sets[unit]), near)[0]:
            assert a < b
            assert jaccard(sets[a], sets[b]) >= near.threshold


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=25), st.randoms())
def test_components_are_those_of_networkx_in_any_order(num: int, pairs: list[tuple[int, int]], rng: Any) -> None:
    edges = [(a % num, b % num) for a, b in pairs]
    graph = nx.Graph()
    graph.add_nodes_from(range(num))
    graph.add_edges_from(edges)
    rng.shuffle(edges)
    joined = Components(num)
    for a, b in edges:
        joined.join(a, b)
    expected = {unit: min(component) for component in nx.connected_components(graph) for unit in component}
    assert joined.roots().tolist() == [expected[unit] for unit in range(num)]


def test_a_bucket_of_equal_units_costs_one_comparison_a_unit() -> None:
    compared = []

    def similarity(a: int, b: int, threshold: float) -> float:
        compared.append((a, b))
        return 1.0

    edges, cut_short = verified([np.arange(50)], similarity, Near())
    assert len(compared) == len(edges) == 49
    assert cut_short == 0


def test_a_match_may_connect_groups_of_the_bucket_that_is_being_looked_at() -> None:
    """Unit 9 is of group 5 before the last bucket; it matches unit 8 of group 3, which that bucket meets later."""
    like = {(5, 9), (3, 8), (8, 9)}
    grouped = [np.array([5, 9]), np.array([3, 8]), np.array([5, 8, 9])]
    edges, _ = verified(grouped, lambda a, b, threshold: float((a, b) in like), Near())
    assert edges == [(5, 9), (3, 8), (8, 9)]


BUCKETS = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=8, unique=True), max_size=6)


@settings(max_examples=300, deadline=None)
@given(BUCKETS, st.sets(st.integers(0, 99), min_size=10))
def test_components_over_buckets_are_those_of_all_pairs(bins: list[list[int]], alike: set[int]) -> None:
    """Independent reference: every pair of every bucket that is alike, in a graph."""

    def similarity(a: int, b: int, threshold: float) -> float:
        return float(10 * min(a, b) + max(a, b) in alike)

    grouped = [np.array(sorted(bucket)) for bucket in bins]
    edges, cut_short = verified(grouped, similarity, Near())
    graph, found = nx.Graph(), nx.Graph()
    for one in (graph, found):
        one.add_nodes_from(range(10))
    pairs = {(int(a), int(b)) for bucket in grouped for a, b in combinations(bucket, 2)}
    graph.add_edges_from((a, b) for a, b in pairs if similarity(a, b, 1.0))
    found.add_edges_from(edges)
    assert set(edges) <= {(a, b) for a, b in pairs if similarity(a, b, 1.0)}
    assert sorted(map(sorted, nx.connected_components(found))) == sorted(map(sorted, nx.connected_components(graph)))
    assert len(edges) == 10 - nx.number_connected_components(graph)  # a forest: no comparison that says nothing new
    assert cut_short == 0


def test_a_bucket_of_units_that_are_not_alike_is_bounded_and_counted() -> None:
    compared = []

    def similarity(a: int, b: int, threshold: float) -> float:
        compared.append((a, b))
        return 0.0

    edges, cut_short = verified([np.arange(10)], similarity, Near(max_compare=3))
    assert (edges, cut_short) == ([], 6)  # units 4 to 9 have more than three before them
    assert len(compared) == 0 + 1 + 2 + 3 * 7
    assert (9, 5) not in compared
    assert [(a, b) for a, b in compared if b == 9] == [(8, 9), (7, 9), (6, 9)]


def test_sizes_alone_rule_out_a_pair() -> None:
    sets = [np.arange(10, dtype=np.uint64), np.arange(8, dtype=np.uint64), np.empty(0, np.uint64)]
    similarity = similarity_of(lambda unit: sets[unit])
    assert similarity(0, 1, 0.8) == pytest.approx(0.8)
    assert similarity(0, 1, 0.81) == 0.0
    assert similarity(2, 2, 0.5) == 0.0


def test_buckets_hold_equal_keys_in_document_order() -> None:
    keys = np.array([7, 3, 7, 9, 3, 7], np.uint64)
    assert [bucket.tolist() for bucket in buckets(keys, np.arange(6))] == [[1, 4], [0, 2, 5]]
    assert list(buckets(np.empty(0, np.uint64), np.arange(0))) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "A ", "b", "b\n", "c", ""]), max_size=20))
def test_the_first_of_equal_texts_stays(texts: list[str]) -> None:
    keys = np.frombuffer(b"".join(exact_key(text) for text in texts), np.dtype("V16"))
    first: dict[str, int] = {}
    expected = [first.setdefault(text.strip().lower(), place) for place, text in enumerate(texts)]
    assert first_of_equal(keys).tolist() == expected


# --- units ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \n\t", max_size=40), st.sampled_from(["blank_line", "line"]))
def test_paragraphs_together_are_the_text(text: str, split: str) -> None:
    found = paragraphs(text, split)
    assert "".join(text[a:b] for a, b in found) == text
    assert all(a < b for a, b in found)


def test_paragraphs_by_lines_and_by_blank_lines() -> None:
    text = "one\ntwo\n \nthree"
    assert [text[a:b] for a, b in paragraphs(text, "line")] == ["one\n", "two\n \n", "three"]
    assert [text[a:b] for a, b in paragraphs(text, "blank_line")] == ["one\ntwo\n \n", "three"]


def test_short_paragraphs_are_no_units() -> None:
    text = "Home\n\nThis paragraph has quite enough words in it.\n\nYes."
    assert [text[a:b] for a, b in RepeatedParagraphs(min_words=5).units(text)] == [
        "This paragraph has quite enough words in it.\n\n"
    ]
    assert ExactDuplicates().units(text) == NearDuplicates().units(text) == [(0, len(text))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearDuplicates(threshold=0), r"threshold: expected a Jaccard index in \(0, 1\], got 0"),
        (lambda: NearDuplicates(bands=0), "expected whole numbers >= 1"),
        (lambda: RepeatedParagraphs(max_documents=0), "max_documents: expected >= 1, got 0"),
        (lambda: RepeatedParagraphs(split="page"), "split: expected one of blank_line, line, got 'page'"),
        (lambda: RepeatedParagraphs(similarity=1.5), "expected a Jaccard index"),
    ],
)
def test_settings_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
