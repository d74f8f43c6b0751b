"""`judge_model`: a judge in a vLLM engine of a reward service, with a model whose every reply is known.

No tiny model can judge. This one writes ``Score: 1`` whatever it is asked: attention and MLP add nothing, so a hidden
state is the embedding of the last token, and a row of the output layer is the embedding of the token before its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoTokenizer

from actors.grading_request import GradingRequest
from actors.judge_worker import JudgeWorker, read_args
from actors.reward_service import RewardService
from rewards.base import ERROR, OK, TIMEOUT, UNPARSEABLE, RewardLoadError
from rewards.judge_prompts import JudgeSettingsError
from rewards.judge_rules import Ask, NoReply, Reply
from rlplatform.config import ModelConfig, RewardConfig
from rlplatform.types import FINISH_LENGTH, FINISH_STOP, Prompt, Rollout, RolloutGroup
from tests.integration import rollout_models as kit

SAYS = ["S", "c", "o", "r", "e", ":", "Ġ", "1"]  # tokens of one byte, each once, so that each tells the next


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("judge")
    model: Any = kit.make_model(tied=False)
    path = kit.save(model, folder)
    vocabulary = AutoTokenizer.from_pretrained(path).get_vocab()
    chain = [kit.IM_END, *(vocabulary[token] for token in SAYS), kit.ENDOFTEXT]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        embeddings = model.model.embed_tokens.weight
        embeddings /= embeddings.norm(dim=1, keepdim=True)
        model.lm_head.weight.zero_()
        for before, after in pairwise(chain):
            model.lm_head.weight[after] = embeddings[before]
    model.save_pretrained(folder)
    return path


def group(texts: Sequence[str], **columns: Any) -> RolloutGroup:
    prompt = Prompt("p", ({"role": "user", "content": "1+1?"},), np.arange(1, 4, dtype=np.int32), "1+1?", columns)
    rollouts = [
        Rollout(
            token_ids=np.arange(3, dtype=np.int32),
            loss_mask=np.ones(3, dtype=bool),
            rollout_logprobs=np.zeros(3, dtype=np.float32),
            policy_version=np.zeros(3, dtype=np.int32),
            finish=FINISH_STOP,
            text=text,
        )
        for text in texts
    ]
    return RolloutGroup(prompt, tuple(rollouts), step=0, index=0)


@pytest.fixture(scope="module")
def service(model_path: str) -> Iterator[RewardService]:
    """The same judge twice: as it is, and under a scale that its score lies outside of."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    args = {"model_path": model_path, "dtype": "float32", "max_model_len": 1024, "kv_cache_gib": 0.1, "max_tokens": 16}
    config = RewardConfig(
        functions={
            "judge_model": {"args": args},
            "strict": {
                "function": "judge_model",
                "args": {**args, "scale": [2, 3]},
                "when": {"part": "strict"},
            },
        },
        timeout_s=60.0,
        max_error_rate=1.0,
    )
    service = RewardService(config)
    yield service
    service.close()
    ray.shutdown()


def test_replies_of_the_engine_are_read_by_the_same_rules(service: RewardService) -> None:
    easy = group(["<think>x</think>2", "3", "", "<|im_end|>", "3" * 900], answer="2", part="judge_model")
    strict = group(["2"], answer="2", part="strict")
    missing = group(["2"], answer="", part="judge_model")
    verdicts = [scored.verdicts for scored in service.score([easy, strict, missing], step=0)]
    assert [v.status for v in verdicts[0]] == [OK, OK, OK, OK, ERROR]
    assert [v.score for v in verdicts[0]] == [1.0, 1.0, 0.0, 0.0, 0.0]  # it says 1 to whatever it is asked about
    assert "Score: 1" in verdicts[0][0].detail
    assert verdicts[0][0].parts["judge_model/score_raw"] == 1.0
    assert "max_model_len=1024: raise it" in verdicts[0][4].detail
    assert verdicts[1][0].status == UNPARSEABLE
    assert "the score 1 is outside 2 to 3" in verdicts[1][0].detail
    assert verdicts[2][0].status == UNPARSEABLE
    assert "expected a reference" in verdicts[2][0].detail
    metrics = service.metrics()
    assert metrics["score/custom/judge/completion_tokens"] == len(SAYS) + 1  # and the token that ends it


# --- without an engine: what the worker makes of replies ------------------------------------------------------------


class Scripted(JudgeWorker):
    """A worker whose engine is a function from prompt to reply."""

    def __init__(self, say: Any, **args: Any) -> None:
        self._settings, self._rules = read_args({"model_path": "none", **args})
        self._timeout_s, self._tokens, self._version_name = 1.0, ["<extra>"], "none 0"
        self._say, self.asked = say, []

    def replies(self, asks: Sequence[Ask], timeout_s: float) -> list[Reply | NoReply]:
        self.asked += [ask.messages[-1]["content"] for ask in asks]
        said = [self._say(ask) for ask in asks]
        return [one if isinstance(one, NoReply) else Reply(one) for one in said]


def request(completions: Sequence[str], **columns: Any) -> GradingRequest:
    return GradingRequest("judge_model", ["1+1?"] * len(completions), completions, columns, (len(completions),))


def test_the_parse_path_is_that_of_the_endpoint() -> None:
    worker = Scripted(lambda ask: "Fine.\nScore: 7" if "\n2\n" in ask.messages[0]["content"] else "No.", scale=[1, 10])
    score = worker.score(request(["2", "", "3<extra>"], reference=["two"] * 3))
    assert [v.status for v in score.verdicts] == [OK, OK, UNPARSEABLE]
    assert score.verdicts[0].score == pytest.approx(6 / 9)
    assert len(worker.asked) == 2
    assert "\n3< extra>\n" in worker.asked[1]
    assert score.version == "none 0"
    assert not score.tracebacks


def test_pairwise_and_votes_in_one_batch() -> None:
    worker = Scripted(lambda ask: "Verdict: A", pairwise=True, votes=3, temperature=0.5)
    score = worker.score(request(["2", "3"], baseline=["3", "2"]))
    assert len(worker.asked) == 12
    assert [v.score for v in score.verdicts] == [0.5, 0.5]
    assert all(v.parts["order_conflicts"] == 1.0 for v in score.verdicts)


def test_a_reply_that_is_late_is_a_timeout_and_told() -> None:
    worker = Scripted(lambda ask: NoReply(TIMEOUT, "late"))
    score = worker.score(request(["2", "3"]))
    assert [v.status for v in score.verdicts] == [TIMEOUT, TIMEOUT]
    assert list(score.tracebacks) == ["late"]


class Pumped(JudgeWorker):
    """A worker whose engine finishes what ``finishes`` lists, a ticket a call."""

    def __init__(self, model_path: str, finishes: list[int]) -> None:
        self._settings, self._rules = read_args({"model_path": model_path, "max_tokens": 8})
        self._tokenizer, self._tickets, self._running = AutoTokenizer.from_pretrained(model_path), 0, {}
        self._finishes, self.jobs, self.aborted = list(finishes), [], []
        self._engine = SimpleNamespace(abort_request=self.aborted.extend)

    def pump(self, jobs: Any, budget_s: float) -> Any:
        self.jobs += jobs
        ticket = self._finishes.pop(0) if self._finishes else 0
        finish = FINISH_LENGTH if ticket == 2 else FINISH_STOP
        rollout = SimpleNamespace(text=f"Score: {ticket}", finish=finish, token_ids=[1, 2])
        return SimpleNamespace(finished=[SimpleNamespace(ticket=ticket, rollouts=(rollout,))] if ticket else [])


def test_equal_requests_are_one_and_replies_come_back_in_place(model_path: str) -> None:
    worker = Pumped(model_path, finishes=[2, 1])
    asks = [Ask(({"role": "user", "content": text},), vote) for text, vote in [("a", 0), ("b", 0), ("a", 0)]]
    replies = worker.replies(asks, timeout_s=30.0)
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == ["Score: 1", "Score: 2", "Score: 1"]
    assert [reply.complete for reply in replies if isinstance(reply, Reply)] == [True, False, True]
    assert len(worker.jobs) == 2
    assert not worker.aborted


def test_what_is_late_is_aborted(model_path: str) -> None:
    worker = Pumped(model_path, finishes=[1])
    asks = [Ask(({"role": "user", "content": text},), 0) for text in "ab"]
    first, second = worker.replies(asks, timeout_s=0.2)
    assert isinstance(first, Reply)
    assert isinstance(second, NoReply)
    assert second.status == TIMEOUT
    assert worker.aborted == ["2"]


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    for args, words in [({}, "model_path"), ({"model_path": "m", "dtyp": "x"}, "did you mean 'dtype'")]:
        with pytest.raises(JudgeSettingsError, match=words):
            read_args(args)
    config = RewardConfig(functions={"judge_model": {"args": {"votes": 3}}})
    with pytest.raises(RewardLoadError, match="temperature"):
        RewardService(config)
    assert ModelConfig(path="m", dtype=read_args({"model_path": "m"})[0].dtype)  # type: ignore[arg-type]
