"""A thinking budget where there is no thought to bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlplatform.budget import BudgetTokens
from rlplatform.completion import Sample
from rlplatform.environments.episode import EpisodeLimits, EpisodeTokens
from rlplatform.types import FINISH_STOP

TOKENS = BudgetTokens(end_think=(91,), stop_text=(70, 91), open_think=(90,), open_text=(90, 80))


class Chat:
    turn_end = 99

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


def asked(text: str, budget: int | None) -> list[int]:
    turn = EpisodeTokens(
        Chat(),  # type: ignore[arg-type]
        EpisodeLimits(max_turns=1, max_tokens=20, max_turn_tokens=20),
        stop_ids=(99,),
        budget=budget,
        budget_tokens=TOKENS,
    )
    turn.begin_at(text, np.array([1, 2], dtype=np.int32))
    ids = turn.request(0).token_ids.tolist()
    turn.take(Sample(np.array([5, 99], np.int32), np.zeros(2, np.float32), np.zeros(2, np.int32), FINISH_STOP))
    assert turn.num_turns == 1
    return ids


@pytest.mark.parametrize("budget", [0, 4])
def test_a_prompt_of_the_non_thinking_mode_gets_no_second_block(budget: int) -> None:
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert asked(closed, budget) == asked(closed, None) == [1, 2]


def test_a_thinking_prompt_with_a_budget_of_zero_is_closed_at_once() -> None:
    assert asked("<|im_start|>assistant\n", 0) == [1, 2, 90, 80, 70, 91]
