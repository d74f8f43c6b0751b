"""Episodes of environments on real vLLM engines: tokens against transformers, faults, publishes, mixed batches."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from transformers import PreTrainedModel

from actors.payload import flatten
from actors.reward_service import RewardService
from actors.rollout_fleet import RolloutFleet
from actors.rollout_worker import RolloutWorker
from actors.weight_sync import WeightSync
from model.chat import render_chat
from model.tokenizer import load_tokenizer, train_bpe
from rewards.base import ERROR, NOT_APPLICABLE, OK, TIMEOUT
from rlplatform.config import EnvironmentConfig, ModelConfig, PublishConfig, RewardConfig, RolloutConfig
from rlplatform.evaluation.runner import evaluate
from rlplatform.seeds import request_seed
from rlplatform.types import FINISH_LENGTH, GenerationRequest, Prompt, Rollout, RolloutGroup, SamplingParams
from tests.integration import agent_environments as environments
from tests.integration import rollout_models as kit

ECHO = f"{environments.__file__}:Echo"
SAMPLING = SamplingParams(max_new_tokens=200)
MAX_MODEL_LEN = 768
PLAYED = EnvironmentConfig(
    column="environment", max_turns=4, max_turn_tokens=12, step_timeout_s=4.0, close_cut_turns=True
)
ROWS: list[dict[str, Any]] = [{"turns": 1 + n % 3} if n % 4 else {"environment": ""} for n in range(12)]


@dataclass
class Setup:
    fleet: RolloutFleet
    model: PreTrainedModel
    tokenizer: Any
    folder: Path


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    model = kit.make_model()
    folder = tmp_path_factory.mktemp("tiny")
    path = kit.save(model, folder)
    train_bpe(["user assistant tool one two three characters\n"] * 9, 400, folder)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    fleet = RolloutFleet(
        path,
        ModelConfig(path=path),
        RolloutConfig(num_workers=1, max_num_seqs=64, kv_cache_gib=0.25),
        SAMPLING,
        MAX_MODEL_LEN,
        seed=0,
        environment=PLAYED,
    )
    yield Setup(fleet, model, load_tokenizer(path), folder)
    fleet.close()
    ray.shutdown()


def requests(setup: Setup, rows: Sequence[dict[str, Any]], num_samples: int = 3) -> list[GenerationRequest]:
    """A request a row: its prompt is rendered as a dataset's is, its columns go with it."""
    found = []
    for index, row in enumerate(rows):
        columns = {"environment": ECHO, **row}
        messages = ({"role": "user", "content": f"prompt {index}"},)
        tools = [environments.TOOL] if columns["environment"] else None
        text = render_chat(setup.tokenizer, messages, tools=tools, add_generation_prompt=True)
        ids = np.array(setup.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        prompt = Prompt(f"p{index}", messages, ids, text, columns)
        found.append(GenerationRequest(prompt, num_samples, 0, index, request_seed(0, 0, index, num_samples)))
    return found


def tokens(group: RolloutGroup) -> list[tuple[int, ...]]:
    return [tuple(rollout.token_ids.tolist()) for rollout in group.rollouts]


def turns(rollout: Rollout) -> list[slice]:
    """The stretches that were sampled."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], rollout.loss_mask.astype(int), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.fixture(scope="module")
def groups(setup: Setup) -> list[RolloutGroup]:
    """Episodes of one to four turns, beside completions that no environment answers."""
    return setup.fleet.generate(requests(setup, ROWS))


def test_all_turns_are_one_forward_pass_of_the_model(setup: Setup, groups: list[RolloutGroup]) -> None:
    """Sampled tokens have the log-probability that transformers gives them in the whole row, given ones have none."""
    num_turns = []
    for group in groups:
        for rollout in group.rollouts:
            row = np.concatenate([group.prompt.token_ids, rollout.token_ids])
            reference = kit.reference_logprobs(setup.model, row)[len(group.prompt.token_ids) :]
            mask = rollout.loss_mask
            np.testing.assert_allclose(rollout.rollout_logprobs[mask], reference[mask], atol=1e-4)
            assert np.isnan(rollout.rollout_logprobs[~mask]).all()
            assert (rollout.policy_version == 0).all()
            num_turns.append(len(turns(rollout)))
    assert set(num_turns) == {1, 2, 3}


def test_what_stands_between_turns_is_the_templates_with_results_spelled_out(
    setup: Setup, groups: list[RolloutGroup]
) -> None:
    im_end = setup.tokenizer.convert_tokens_to_ids("<|im_end|>")
    seen = 0
    for rollout in (rollout for group in groups for rollout in group.rollouts if group.prompt.columns["environment"]):
        parts = turns(rollout)
        for before, after in itertools.pairwise(parts):
            said = rollout.token_ids[before]
            stopped = said[-1] in {im_end, 1, kit.CONFIG_EOS, kit.GENERATION_EOS, setup.tokenizer.eos_token_id}
            assert len(said) <= PLAYED.max_turn_tokens
            assert stopped or len(said) == PLAYED.max_turn_tokens
            given = rollout.token_ids[before.stop : after.start]
            text = setup.tokenizer.decode(given, skip_special_tokens=False)
            length = len(setup.tokenizer.decode(said[:-1] if stopped else said, skip_special_tokens=False))
            closing = "" if said[-1] == im_end else "<|im_end|>"
            assert text == (
                f"{closing}\n<|im_start|>user\n<tool_response>\n{length} characters <|im_end|> \n</tool_response>"
                "<|im_end|>\n<|im_start|>assistant\n"
            )
            assert list(given).count(im_end) == 1 + bool(closing)  # the result's own is spelled in plain tokens
            seen += 1
    assert seen > 10


def test_records_and_verdicts_of_episodes_and_of_plain_completions(groups: list[RolloutGroup]) -> None:
    for group in groups:
        assert len(group.rollouts) == 3
        assert group.num_rejected == 0
        assert len(set(tokens(group))) == 3  # the episodes of a group are independent
        for rollout in group.rollouts:
            if not group.prompt.columns["environment"]:
                assert rollout.episode is None
                assert rollout.verdict is None
                assert rollout.final_text == rollout.text
                continue
            wanted, episode = group.prompt.columns["turns"], rollout.episode
            assert episode is not None
            assert episode.num_turns == len(turns(rollout)) == wanted
            assert episode.num_tool_calls == wanted - 1
            assert episode.ended_by == ""
            assert episode.verdict.status == OK
            assert episode.verdict.score == 0.5
            assert rollout.text.endswith(rollout.final_text)
            assert "tool_response" not in rollout.final_text


def test_the_same_requests_again_give_the_same_tokens(setup: Setup, groups: list[RolloutGroup]) -> None:
    """Whoever shares the batch: this time without the plain completions, which are the engine's plain ones."""
    again = requests(setup, ROWS)
    episodes = setup.fleet.generate([r for r in again if r.prompt.columns["environment"]])
    plain = setup.fleet.generate([r for r in again if not r.prompt.columns["environment"]])
    found = {group.index: group for group in [*episodes, *plain]}
    assert [tokens(found[group.index]) for group in groups] == [tokens(group) for group in groups]


def test_later_turns_find_the_earlier_ones_in_the_prefix_cache(setup: Setup) -> None:
    setup.fleet.metrics()
    setup.fleet.generate(requests(setup, [{"turns": 4}], num_samples=1))
    assert setup.fleet.metrics()["generate/prefix_hit_share"] > 0.5  # blocks of 32 tokens


def test_limits_end_an_episode_and_are_said(setup: Setup) -> None:
    (many,) = setup.fleet.generate(requests(setup, [{"turns": 9}]))
    for rollout in many.rollouts:
        assert rollout.finish == FINISH_LENGTH
        assert rollout.episode is not None
        assert rollout.episode.ended_by == "the limit of 4 turns"
        assert rollout.verdict is not None
        assert rollout.verdict.status == OK
        assert rollout.verdict.score == 0.0
        assert len(turns(rollout)) == 4
        assert rollout.loss_mask[-1]
    (short,) = setup.fleet.generate(requests(setup, [{"turns": 9}]), replace(SAMPLING, max_new_tokens=50))
    for rollout in short.rollouts:
        assert len(rollout) <= 50
        assert rollout.finish == FINISH_LENGTH
        assert rollout.episode is not None
        assert rollout.episode.ended_by == "the limit of 50 tokens"


def test_a_budget_is_of_each_turn(setup: Setup) -> None:
    sampling = replace(SAMPLING, thinking_stop_text="</think>")
    (group,) = setup.fleet.generate(requests(setup, [{"turns": 2, "thinking_budget": 0}]), sampling)
    insert = setup.tokenizer("<think>\n</think>", add_special_tokens=False)["input_ids"]
    for rollout in group.rollouts:
        assert len(turns(rollout)) == 2
        for turn in turns(rollout):
            assert rollout.token_ids[turn.start - len(insert) : turn.start].tolist() == insert


def test_an_environments_failure_is_an_error_and_its_silence_a_timeout(setup: Setup) -> None:
    """Neither is a score of 0, and the others of the batch do not wait: 4 s is the deadline of a step."""
    rows: list[dict[str, Any]] = [{"trouble": "raises"}, {"turns": 2}, {"trouble": "hangs"}, {"trouble": "slow"}]
    setup.fleet.submit(requests(setup, rows))
    order: list[RolloutGroup] = []
    while setup.fleet.num_pending:
        order += setup.fleet.poll(1.0)
    assert order[-1].index == 2
    found = {group.index: [rollout.verdict for rollout in group.rollouts] for group in order}
    assert [[verdict.status for verdict in found[n] if verdict] for n in range(4)] == [
        [ERROR] * 3,
        [OK] * 3,
        [TIMEOUT] * 3,
        [OK] * 3,
    ]
    assert "the environment's own bug" in found[0][0].detail
    assert "no answer within 4 s after turn 1" in found[2][0].detail


def test_an_environment_that_cannot_begin_is_counted_too(setup: Setup) -> None:
    (request,) = requests(setup, [{"environment": f"{environments.__file__}:NoOpening"}])
    (group,) = setup.fleet.generate([request])
    assert [len(rollout) for rollout in group.rollouts] == [0, 0, 0]
    assert group.num_rejected == 0
    assert [rollout.verdict.status for rollout in group.rollouts if rollout.verdict] == [ERROR] * 3


def test_the_interpreter_and_async_functions_play_in_a_worker_too(setup: Setup) -> None:
    """Sandboxes start inside an engine's process; an event loop turns beside it."""
    rows = [
        {"environment": f"{environments.__file__}:Interpreter", "answer": "42"},
        {"environment": f"{environments.__file__}:talk"},
    ]
    ran, talked = setup.fleet.generate(requests(setup, rows, num_samples=2))
    for rollout in ran.rollouts:
        assert rollout.verdict is not None
        assert (rollout.verdict.status, rollout.verdict.score) == (OK, 1.0), rollout.verdict.detail
        assert "<tool_response>\n42\n</tool_response>" in rollout.text
    for rollout in talked.rollouts:
        assert rollout.verdict is not None
        assert (rollout.verdict.status, rollout.verdict.score) == (OK, 4.0), rollout.verdict.detail
        assert len(turns(rollout)) == 4
    assert len(talked.prompt.token_ids) < len(ran.prompt.token_ids)  # it shows no tools: its opening is the prompt


def test_a_publish_between_two_turns_is_seen_in_the_later_one(setup: Setup, tmp_path: Path) -> None:
    """The environments have the word while other weights are published."""
    fleet = setup.fleet
    changed = kit.make_model()
    kit.add_noise(changed, seed=3)
    fleet.submit(requests(setup, [{"turns": 2, "folder": str(tmp_path)}]))
    while len(list(tmp_path.glob("asked-*"))) < 3:
        assert fleet.poll(0.02) == []
    publish(setup, changed, version=1)
    (tmp_path / "go").touch()
    try:
        groups: list[RolloutGroup] = []
        while fleet.num_pending:
            groups += fleet.poll(1.0)
        for rollout in groups[0].rollouts:
            first, second = turns(rollout)
            versions = rollout.policy_version
            assert (versions[first] == 0).all()
            assert (versions[second] == 1).all()
            row = np.concatenate([groups[0].prompt.token_ids, rollout.token_ids])
            shift = len(groups[0].prompt.token_ids)
            for version, model in ((0, setup.model), (1, changed)):
                mine = rollout.loss_mask & (versions == version)
                reference = kit.reference_logprobs(model, row)[shift:]
                np.testing.assert_allclose(rollout.rollout_logprobs[mine], reference[mine], atol=1e-4)
    finally:
        publish(setup, setup.model, version=0)
    assert fleet.workers.call(0, RolloutWorker.version) == 0


def publish(setup: Setup, model: PreTrainedModel, version: int) -> None:
    """As the learner's rank 0 does."""

    class Weights:
        def gather_weights(self) -> Any:
            return ray.put(flatten(kit.checkpoint_tensors(model, Path(setup.folder) / "sent")))

    WeightSync(setup.fleet, PublishConfig()).publish(Weights(), version)


SERVICE = RewardConfig(functions={"environment": 1.0, "brief": {"function": f"{environments.__file__}:brief"}})


def test_verdicts_travel_to_the_reward_and_text_functions_see_the_last_turn(
    setup: Setup, groups: list[RolloutGroup]
) -> None:
    bad = setup.fleet.generate(requests(setup, [{"trouble": "raises"}]))
    service = RewardService(replace(SERVICE, max_error_rate=1.0))
    try:
        scored = service.score([*groups, *bad], step=0)
        assert "the environment's own bug" in service.first_tracebacks["environment"]
    finally:
        service.close()
    for group in scored[:-1]:
        for rollout, verdict in zip(group.group.rollouts, group.verdicts, strict=True):
            assert verdict.status == OK
            assert verdict.parts["brief"] == float(len(rollout.final_text))
            played = 0.5 if rollout.episode is not None else 0.0
            assert verdict.score == played + verdict.parts["brief"]
            assert verdict.parts.get("environment", 0.0) == played
            assert ("environment/turns" in verdict.parts) == (rollout.episode is not None)
    assert [verdict.status for verdict in scored[-1].verdicts] == [ERROR] * 3


def test_with_the_environment_alone_no_worker_is_started(setup: Setup, groups: list[RolloutGroup]) -> None:
    service = RewardService(RewardConfig(functions={"environment": 2.0}))
    try:
        (played, plain) = service.score([groups[1], groups[0]], step=0)
    finally:
        service.close()
    assert [verdict.score for verdict in played.verdicts] == [1.0] * 3
    assert [verdict.status for verdict in plain.verdicts] == [NOT_APPLICABLE] * 3


def test_held_out_success_is_the_share_of_episodes(setup: Setup) -> None:
    """Twice the same; an environment that fails counts as wrong and is counted."""
    rows: list[dict[str, Any]] = [{"turns": 1}, {"turns": 2}, {"turns": 9}, {"trouble": "raises"}]
    prompts = [request.prompt for request in requests(setup, rows)]
    service = RewardService(RewardConfig(functions={"environment": 2.0}))
    try:
        first, again = (
            evaluate(
                prompts,
                generate=setup.fleet.generate,
                score=lambda groups: service.score(groups, step=0),
                sampling=SAMPLING,
                num_samples=2,
                metric="environment",
                seed=0,
                greedy=True,
            )
            for _ in range(2)
        )
    finally:
        service.close()
    assert first.metrics["eval/accuracy"] == first.metrics["eval/greedy_accuracy"] == (0.5 + 0.5) / 4
    assert first.metrics["eval/not_ok"] == 2
    assert first.metrics == again.metrics
    assert [tokens(group.group) for group in first.sampled] == [tokens(group.group) for group in again.sampled]


def test_a_worker_killed_in_the_middle_of_an_episode_plays_it_again(
    setup: Setup, groups: list[RolloutGroup], tmp_path: Path
) -> None:
    """Killed while environments of one group have the word. Every group once, the tokens of an undisturbed run."""
    rows = [dict(row) for row in ROWS]
    rows[1]["folder"] = str(tmp_path)
    setup.fleet.submit(requests(setup, rows))
    while len(list(tmp_path.glob("asked-*"))) < 3:
        setup.fleet.poll(0.0)
    os.kill(setup.fleet.workers.incarnation(0).pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    found: list[RolloutGroup] = []
    while setup.fleet.num_pending:
        found += setup.fleet.poll(5.0)
    assert setup.fleet.metrics()["generate/restarts"] == 1
    by_index = {group.index: group for group in found}
    assert len(by_index) == len(found)
    assert 1 in by_index
    for group in found:
        assert tokens(group) == tokens(groups[group.index])
