"""Every built-in function has examples, and they are what it says of them."""

from __future__ import annotations

import pytest

from rewards.base import REWARDS, resolve
from rewards.examples import EXAMPLES, TOLERANCE, WITHOUT
from rlplatform.reward_show import examples_of, grade_examples


def test_every_built_in_has_examples_or_a_reason():
    assert set(REWARDS) <= set(EXAMPLES) | set(WITHOUT), "add examples of it to rewards/examples.py"
    assert set(EXAMPLES) <= set(REWARDS)
    assert not set(EXAMPLES) & set(WITHOUT)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_get_the_verdicts_that_are_shown(name):
    examples = EXAMPLES[name]
    verdicts = grade_examples(name, examples_of(name))
    for example, verdict in zip(examples, verdicts, strict=True):
        assert verdict.status == example.status, verdict.detail
        if example.score is not None:
            assert verdict.score == pytest.approx(example.score, abs=TOLERANCE), verdict.detail
        assert verdict.ok == (example.score is not None)
    assert resolve(name).__doc__
