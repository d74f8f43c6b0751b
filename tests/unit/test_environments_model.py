"""Episodes of a real (tiny, untrained) model: the log-probabilities of every turn are those of the whole sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from model.config import Qwen3Config
from model.generate import generate
from model.qwen3 import Qwen3
from model.tokenizer import train_bpe
from rlplatform.budget import budget_tokens
from rlplatform.completion import Sample
from rlplatform.environments.base import Environment
from rlplatform.environments.contract import Opening, Step
from rlplatform.environments.driver import Episode, run_episodes
from rlplatform.environments.episode import ChatTokens, EpisodeLimits, SampleRequest
from rlplatform.types import Message


class Answers:
    """A tool result, longer each turn, until the third."""

    def reset(self, *, seed: int, row: Any) -> Opening:
        self._row, self._turns = row, 0
        return Opening([{"role": "user", "content": f"Count from {row['n']}"}])

    def step(self, message: Message) -> Step:
        self._turns += 1
        results = [{"role": "tool", "content": str(self._row["n"] + k)} for k in range(self._turns)]
        return Step(results, 1.0, terminated=self._turns == 3)


@pytest.mark.parametrize("budget", [None, 4])
def test_logprobs_of_all_turns_are_those_of_one_forward_pass(tmp_path: Any, budget: int | None) -> None:
    """An off-by-one in any turn, or a mask on the wrong tokens, would show here."""
    tokenizer = train_bpe(["Count from 1 user assistant tool\n\n"] * 9, 320, tmp_path)
    config = Qwen3Config(32, 48, 2, 2, 1, head_dim=16, vocab_size=len(tokenizer), max_position_embeddings=512)
    policy = Qwen3(config).init_weights(0)
    chat = ChatTokens(tokenizer)

    def sample(requests: list[SampleRequest]) -> list[Sample | None]:
        found: list[Sample | None] = []
        for request in requests:
            (one,) = generate(
                policy,
                [request.token_ids.tolist()],
                max_new_tokens=request.max_new_tokens,
                seed=request.seed,
                stop_token_ids=[chat.turn_end],
            )
            ids, logprobs = np.array(one.token_ids, dtype=np.int32), np.array(one.logprobs, dtype=np.float32)
            found.append(Sample(ids, logprobs, np.zeros(len(ids), dtype=np.int32), one.finish))
        return found

    limits = EpisodeLimits(max_turn_tokens=16, max_tokens=400, close_cut_turns=True)
    environment = Environment("answers", Answers, is_function=False)
    episodes = [Episode(str(n), environment, {"n": n}, seed=100 * n, thinking_budget=budget) for n in range(4)]
    # without <think> to open it, the thought begins with the turn
    ids = budget_tokens(tokenizer, "\nenough</think>", opened=True)
    results = run_episodes(episodes, sample, chat, limits, budget_tokens=ids)
    sampled: set[tuple[int, ...]] = set()
    for result in results:
        rollout = result.rollout
        assert rollout is not None
        assert result.num_turns == 3
        row = torch.from_numpy(np.concatenate([result.prompt_ids, rollout.token_ids])).long()
        with torch.no_grad():
            hidden = policy(row, torch.arange(len(row)), torch.tensor([0, len(row)], dtype=torch.int32))
            logits = hidden @ policy.lm_head_weight.T
        every = torch.log_softmax(logits[:-1], dim=-1).gather(1, row[1:, None])[:, 0].numpy()
        expected = every[len(result.prompt_ids) - 1 :]
        mask = rollout.loss_mask
        np.testing.assert_allclose(rollout.rollout_logprobs[mask], expected[mask], atol=2e-5)
        assert mask.any()
        assert (~mask).any()
        sampled.add(tuple(rollout.token_ids[mask]))
        if budget is not None:
            assert chat.decode(rollout.token_ids).count("enough</think>") >= 1
    assert len(sampled) == 4
