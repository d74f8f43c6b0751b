"""Weights from labels, and the fit that finds them, against hand-made and independent answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.mixture_fit import draw_thetas, fit_losses, spearman
from pretrain.data.weighting import MAX_LOG_WEIGHT, Feature, Weighting, features_of
from rlplatform.datafiles import DataError

COLUMNS = {
    "domain": np.array(["web", "code", "web", "books"]),
    "quality": np.array([0.0, 2.0, np.nan, 4.0]),
    "same": np.array(["a", "a", "a", "a"]),
}
SIZES = np.array([10, 10, 10, 20])


def test_features_are_centred_over_tokens() -> None:
    features = features_of(COLUMNS, SIZES, ["domain", "same"], ["quality"])
    assert [(f.label, f.value) for f in features] == [
        ("domain", "books"),
        ("domain", "code"),
        ("domain", "web"),
        ("quality", None),
    ]
    assert [f.mean for f in features] == pytest.approx([0.4, 0.2, 0.4, (0 * 10 + 2 * 10 + 4 * 20) / 40])
    assert features[3].scale == pytest.approx(((2.5**2 * 10 + 0.5**2 * 10 + 1.5**2 * 20) / 40) ** 0.5)
    phi = np.stack([feature.of(COLUMNS[feature.label]) for feature in features])
    assert (phi[:3] @ SIZES).tolist() == pytest.approx([0.0, 0.0, 0.0])
    assert phi[3, 2] == 0.0  # nobody knows: as an average document


def test_weights_by_hand_and_their_bound() -> None:
    weighting = Weighting((Feature("domain", "code", 0.5, 1.0),), (2.0,))
    weights = weighting.weights(COLUMNS, 4)
    assert weights.tolist() == pytest.approx([np.exp(-1), np.exp(1), np.exp(-1), np.exp(-1)])
    far = Weighting((Feature("domain", "code", 0.0, 1.0),), (50.0,)).weights(COLUMNS, 4)
    assert far.tolist() == pytest.approx([1.0, np.exp(MAX_LOG_WEIGHT), 1.0, 1.0])
    assert Weighting((), ()).weights(COLUMNS, 4).tolist() == [1.0] * 4


def test_a_weighting_is_read_back_and_other_files_are_refused(tmp_path: Path) -> None:
    weighting = Weighting(features_of(COLUMNS, SIZES, ["domain"], ["quality"]), (0.1, -0.2, 0.3, 1.0))
    weighting.save(tmp_path / "weights.json")
    assert Weighting.load(tmp_path / "weights.json") == weighting
    assert (weighting.classes, weighting.numbers) == (["domain"], ["quality"])
    (tmp_path / "other.json").write_text('{"features": 3}')
    with pytest.raises(DataError, match=r"expected the weights\.json of a mixture_search stage"):
        Weighting.load(tmp_path / "other.json")
    with pytest.raises(DataError, match="no document has one"):
        features_of({"q": np.array([np.nan, np.nan])}, SIZES[:2], [], ["q"])


def test_thetas_come_in_opposite_pairs_of_one_length() -> None:
    thetas = draw_thetas(16, 5, radius=2.0, seed=0)
    assert thetas.shape == (16, 5)
    assert np.linalg.norm(thetas, axis=1) == pytest.approx(np.full(16, 2.0))
    assert (thetas[::2] == -thetas[1::2]).all()
    assert (draw_thetas(16, 5, radius=2.0, seed=1) != thetas).any()
    assert len(draw_thetas(5, 2, radius=1.0, seed=0)) == 5


def test_the_fit_finds_a_linear_loss_through_noise() -> None:
    rng = np.random.default_rng(0)
    thetas = draw_thetas(16, 4, radius=1.0, seed=0)
    slope = np.array([0.3, -0.2, 0.0, 0.1])
    fit = fit_losses(thetas, 2.0 + thetas @ slope + rng.normal(scale=0.01, size=16))
    assert fit.rank_correlation > 0.9
    best = fit.best(1.0)
    assert np.linalg.norm(best) == pytest.approx(1.0)
    assert best @ slope == pytest.approx(-np.linalg.norm(slope), rel=0.02)


def test_a_loss_that_theta_does_not_move_correlates_with_nothing() -> None:
    thetas = draw_thetas(16, 4, radius=1.0, seed=0)
    flat = fit_losses(thetas, np.full(16, 2.0))
    assert flat.rank_correlation == 0.0
    assert flat.best(1.0).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="at least four finite losses"):
        fit_losses(thetas[:3], np.ones(3))


def test_noise_correlates_with_nothing_on_average() -> None:
    noise = [np.random.default_rng(seed).normal(size=16) for seed in range(60)]
    fits = [fit_losses(draw_thetas(16, 3, radius=1.0, seed=seed), losses) for seed, losses in enumerate(noise)]
    assert np.mean([fit.rank_correlation for fit in fits]) == pytest.approx(0.0, abs=0.2)


def test_rank_correlation_by_hand() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])) == pytest.approx(0.5)
    assert spearman(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == 0.0
