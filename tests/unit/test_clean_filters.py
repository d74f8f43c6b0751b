"""Filters by labels and length: every branch with values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pretrain.data.document import document, label
from pretrain.data.filters import label as by_label
from pretrain.data.filters import length, safety, signal
from pretrain.data.label_schema import HARMS
from pretrain.data.labels import Failed
from rlplatform.datafiles import DataError


def labelled(*labels: tuple[str, str, float | None, str], text: str = "text") -> dict[str, Any]:
    row = document("s", repr(labels), "s:1", text)
    return {**row, "labels": [label(name, value, labeller, score) for name, value, score, labeller in labels]}


EN, DE = labelled(("language", "en", 0.99, "langid")), labelled(("language", "de", 0.6, "langid"))


def reasons(decisions: list[Any]) -> list[str]:
    return [decision.reason for decision in decisions]


def test_a_label_is_kept_or_dropped_by_value() -> None:
    assert reasons(by_label([EN, DE], name="language", keep=["en"])) == ["", "value"]
    assert reasons(by_label([EN, DE], name="language", drop=["en"])) == ["value", ""]
    assert reasons(by_label([EN, DE], name="language", keep=["en", "de"])) == ["", ""]
    assert by_label([DE], name="language", keep=["en"])[0].detail == "language is de (langid)"


def test_a_label_needs_its_score() -> None:
    assert reasons(by_label([EN, DE], name="language", min_score=0.6)) == ["", ""]
    (_, decision) = by_label([EN, DE], name="language", min_score=0.61)
    assert (decision.reason, decision.detail) == ("low_score", "language is de with 0.6 < 0.61 (langid)")
    for score in (None, math.nan):
        row = labelled(("language", "en", score, "langid"))
        with pytest.raises(DataError, match="expected label 'language' to have a score"):
            by_label([row], name="language", min_score=0.5)
        assert reasons(by_label([row], name="language", keep=["en"])) == [""]


def test_the_last_label_counts_and_a_labeller_can_be_named() -> None:
    row = labelled(("domain", "law", 0.5, "rule"), ("domain", "code", 0.9, "model"))
    assert reasons(by_label([row], name="domain", keep=["code"])) == [""]
    assert reasons(by_label([row], name="domain", keep=["code"], labeller="rule")) == ["value"]


def test_a_missing_label_is_an_error_until_the_config_says_otherwise() -> None:
    with pytest.raises(DataError, match=r"expected a label 'domain', there are language \(langid\); annotate"):
        by_label([EN], name="domain", keep=["law"])
    with pytest.raises(DataError, match="'language' by other, there are"):
        by_label([EN], name="language", keep=["en"], labeller="other")
    assert reasons(by_label([EN], name="domain", keep=["law"], missing="keep")) == [""]
    assert reasons(by_label([EN], name="domain", keep=["law"], missing="drop")) == ["no_label"]
    assert reasons(signal([EN], name="mean", min=1, missing="drop")) == ["no_label"]
    for function in (by_label, signal):
        with pytest.raises(DataError, match="missing: expected one of error, keep, drop, got 'skip'"):
            function([], name="x", missing="skip", **({"min": 1} if function is signal else {}))


def test_words_that_yaml_takes_for_truth_values_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected keep to be a list of strings, got \[False\]; quote words"):
        by_label([EN], name="language", keep=[False])  # type: ignore[list-item]
    with pytest.raises(DataError, match="expected drop to be a list of strings, got 'en'"):
        by_label([EN], name="language", drop="en")
    with pytest.raises(DataError, match="share no value"):
        by_label([EN], name="language", keep=["en"], drop=["en"])


def test_safety_drops_what_is_called_unsafe_or_is_not_safe_enough() -> None:
    safe, unsafe = labelled(("safety", "safe", 0.9, "rule")), labelled(("safety", "unsafe", 0.8, "rule"))
    unsure = labelled(("safety", "safe", 0.4, "rule"))
    assert reasons(safety([safe, unsafe, unsure])) == ["", "value", ""]
    assert reasons(safety([safe, unsafe, unsure], min_score=0.5)) == ["", "value", "low_score"]
    with pytest.raises(DataError, match="expected a label 'safety'"):
        safety([EN])


def test_safety_drops_every_harm_that_the_schema_names() -> None:
    made = [labelled(("safety", value, None, "llm@1")) for value in HARMS]
    assert reasons(safety(made)) == ["" if value == "safe" else "value" for value in HARMS]


def test_a_label_that_failed_is_no_label() -> None:
    timeout = Failed("timeout", "no reply").value
    failed = labelled(("safety", timeout, None, "llm@1"), ("n", "!not_applicable", None, "q"))
    with pytest.raises(DataError, match=r"label 'safety', there are n not_applicable \(q\), safety timeout \(llm@1\);"):
        safety([failed])
    assert reasons(safety([failed], missing="drop")) == ["no_label"]
    assert reasons(safety([failed], missing="keep")) == [""]
    assert reasons(by_label([failed], name="safety", keep=["safe"], missing="keep")) == [""]
    with pytest.raises(DataError, match="expected a label 'n'"):
        signal([failed], name="n", min=1)
    assert reasons(signal([failed], name="n", min=1, missing="keep")) == [""]
    (decision,) = signal([failed], name="n", min=1, missing="drop")
    assert (decision.reason, decision.detail) == ("no_label", "no label n")


def test_a_signal_lies_between_its_bounds_which_count_as_inside() -> None:
    made = [labelled(("mean_word_length", "", value, "rules")) for value in (2.9, 3.0, 5.0, 10.0, 10.1)]
    found = signal(made, name="mean_word_length", min=3, max=10)
    assert reasons(found) == ["too_low", "", "", "", "too_high"]
    assert found[0].detail == "mean_word_length 2.9 < 3"
    assert found[-1].detail == "mean_word_length 10.1 > 10"
    for bounds in ({}, {"min": 3, "max": 2}, {"min": math.nan}):
        with pytest.raises(DataError, match="expected min, max or both"):
            signal(made, name="mean_word_length", **bounds)


def test_length_counts_characters() -> None:
    made = [labelled(text=text) for text in ("", "é" * 3, "x" * 4, "x" * 5)]
    assert reasons(length(made, min=3, max=4)) == ["too_low", "", "", "too_high"]
    assert reasons(length(made)) == ["too_low", "", "", ""]
