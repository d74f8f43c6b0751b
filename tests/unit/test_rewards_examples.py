"""Every built-in function has examples, and they are what it says of them."""

from __future__ import annotations

import pytest

from rewards.base import REWARDS, resolve
from rewards.examples import EXAMPLES, TOLERANCE, WITHOUT
from rewards.runner import RewardPool


def test_every_built_in_has_examples_or_a_reason():
    assert set(REWARDS) <= set(EXAMPLES) | set(WITHOUT), "add examples of it to rewards/examples.py"
    assert set(EXAMPLES) <= set(REWARDS)
    assert not set(EXAMPLES) & set(WITHOUT)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_get_the_verdicts_that_are_shown(name):
    examples = EXAMPLES[name]
    columns = {column: [e.columns.get(column) for e in examples] for e in examples for column in e.columns}
    with RewardPool({name: 1.0}, timeout_s=30.0) as pool:
        verdicts = pool.score([e.prompt for e in examples], [e.completion for e in examples], columns)
    for example, verdict in zip(examples, verdicts, strict=True):
        assert verdict.status == example.status, verdict.detail
        if example.score is not None:
            assert verdict.score == pytest.approx(example.score, abs=TOLERANCE), verdict.detail
        assert verdict.ok == (example.score is not None)
    assert resolve(name).__doc__
