"""The held-out report against numbers computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.preference_report import pair_report, table, write_report
from rlplatform.runs import RunFolder
from rlplatform.stages.pass_rates import wilson

SCORES = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
TOKENS = np.array([[4, 8], [5, 9], [7, 7], [9, 3]])


def test_by_hand() -> None:
    report = pair_report(SCORES, TOKENS)
    assert report["pairs"] == 4
    assert report["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert report["ties"] == 1
    assert report["loss"] == pytest.approx(np.mean([math.log(1 + math.exp(-m)) for m in (2, -1, 0, 3)]))
    assert report["margin_mean"] == pytest.approx(1.0)
    length = report["length"]
    assert length["chosen_shorter"] == {"pairs": 2, "accuracy": 0.5}
    assert length["chosen_longer"] == {"pairs": 1, "accuracy": 1.0}
    assert length["equally_long"] == {"pairs": 1, "accuracy": 0.5}
    assert length["prefer_shorter_accuracy"] == pytest.approx(2.5 / 4)
    differences, margins = [-4, -4, 0, 6], [2, -1, 0, 3]
    assert length["margin_length_correlation"] == pytest.approx(np.corrcoef(differences, margins)[0, 1])
    assert sum(report["margin_histogram"]["counts"]) == 4


def test_calibration_by_hand() -> None:
    """Confidences 0.5 (tie), 0.731 (wrong), 0.881 and 0.953 (right) lie in four bins of width 0.05."""
    calibration = pair_report(SCORES, TOKENS)["calibration"]
    sigmoid = [1 / (1 + math.exp(-m)) for m in (0, 1, 2, 3)]
    right = [0.5, 0.0, 1.0, 1.0]
    expected = sum(abs(c - r) for c, r in zip(sigmoid, right, strict=True)) / 4
    assert calibration["expected_calibration_error"] == pytest.approx(expected)
    assert [b["pairs"] for b in calibration["bins"]] == [1, 1, 1, 1]
    assert [round(b["from"], 2) for b in calibration["bins"]] == [0.5, 0.7, 0.85, 0.95]


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has() -> None:
    random = np.random.default_rng(0)
    true = np.abs(random.normal(0, 1.5, size=40_000))
    right = random.random(len(true)) < 1 / (1 + np.exp(-true))
    margins = np.where(right, true, -true)
    tokens = np.ones((len(true), 2))

    def error(margins: np.ndarray) -> float:
        report = pair_report(np.stack([margins, np.zeros_like(margins)], axis=1), tokens)
        return report["calibration"]["expected_calibration_error"]

    assert error(margins) < 0.01
    assert error(4 * margins) > 0.1


def test_wilson_is_the_textbook_interval() -> None:
    assert wilson(0.8, 50) == pytest.approx((0.6696, 0.8876), abs=1e-3)
    low, high = wilson(1.0, 50)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.9287, abs=1e-3)


@given(st.floats(0, 1), st.integers(1, 1000))
def test_an_interval_holds_its_share(share: float, num: int) -> None:
    low, high = wilson(share, num)
    assert 0.0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1.0


def test_lengths_that_do_not_vary_have_no_correlation_and_bad_scores_are_refused(tmp_path: Path) -> None:
    report = pair_report(SCORES, np.full((4, 2), 5))
    assert report["length"]["margin_length_correlation"] is None
    assert report["length"]["chosen_shorter"] == {"pairs": 0, "accuracy": None}
    json.dumps(report, allow_nan=False)
    with pytest.raises(ValueError, match="at least one pair and finite scores"):
        pair_report(np.array([[math.nan, 0.0]]), np.ones((1, 2)))
    with pytest.raises(ValueError, match="got 0 pairs"):
        pair_report(np.zeros((0, 2)), np.zeros((0, 2)))


def test_the_page_shows_the_numbers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.append_metrics({"step": step, "loss": 0.6, "preference/accuracy": 0.7, "eval/pair_accuracy": 0.65})
    report = pair_report(SCORES, TOKENS)
    page = write_report(folder, report, SCORES, TOKENS).read_text()
    assert all(value in page for _, value in table(report))
    assert "62.5%" in page
    assert (folder.report / "plots.png").stat().st_size > 10_000
