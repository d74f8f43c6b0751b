"""The made-up preferences: the rule holds in every pair, and splits share no text."""

from __future__ import annotations

import numpy as np
import pytest

from rlplatform.tasks.preferences import POLITE, RUDE, gold_reward, pairs, quality

SENTENCE = "The old ferry crosses the green valley."


def test_quality_by_hand() -> None:
    assert quality(SENTENCE) == pytest.approx(0.7 - 0.07)
    assert quality(f"Certainly! {SENTENCE}") == pytest.approx(1.0 - 0.08)
    assert quality(f"Look it up. {SENTENCE}") == pytest.approx(0.4 - 0.10)
    assert quality(f"Certainly! Certainly! {SENTENCE}") == pytest.approx(1.0 - 0.09)
    assert quality(f"Certainly! {SENTENCE} {'blah ' * 200}") == 0.0
    for empty in ("", "Certainly!", "The old ferry.", "The old ferry crosses the green valley"):
        assert quality(empty) == 0.0
    thoughtful = f"<think>\n{SENTENCE}\n</think>\n\n{SENTENCE}"
    assert gold_reward([SENTENCE, [{"role": "assistant", "content": "Certainly!"}]]) == [quality(SENTENCE), 0.0]
    assert gold_reward([thoughtful, f"<think>\n{SENTENCE}"]) == [quality(SENTENCE), 0.0]


@pytest.mark.parametrize("rule", ["shorter", "polite", "quality"])
def test_the_rule_holds_and_no_text_stands_in_two_splits(rule) -> None:
    splits = pairs(3, rule=rule, num_train=300, num_test=100, num_sft=50, num_prompts=50)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 300, "test": 100, "sft": 50, "prompts": 50}
    for row in splits["train"] + splits["test"]:
        chosen, rejected = row["chosen"], row["rejected"]
        if rule == "shorter":
            assert len(chosen.split()) < len(rejected.split())
        elif rule == "polite":
            assert any(phrase in chosen for phrase in POLITE)
            assert any(phrase in rejected for phrase in RUDE)
        else:
            assert quality(chosen) > quality(rejected)
    texts = [
        [row[name] for row in rows for name in ("prompt", "chosen", "rejected") if name in row]
        + [message["content"] for row in rows for message in row.get("messages", ())]
        for rows in splits.values()
    ]
    everything = [text for split in texts for text in split]
    assert len(set(everything)) == len(everything)
    assert pairs(3, rule=rule, num_train=300, num_test=100, num_sft=50, num_prompts=50) == splits
    assert pairs(4, rule=rule, num_train=300, num_test=100)["train"] != splits["train"]


def test_politeness_cannot_be_told_from_length() -> None:
    rows = pairs(0, rule="polite", num_train=2000, num_test=1)["train"]
    longer = [len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows]
    assert abs(np.mean(np.sign(longer))) < 0.1


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="expected rule shorter, polite or quality, got 'longer'"):
        pairs(0, rule="longer")  # type: ignore[arg-type]
