"""Environments in a run, without engines: what is refused before anything starts, what becomes of episodes, records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.episodes import Episodes, FinishedGroup, finished_episodes, play_of, row_of
from model.tokenizer import train_bpe
from rewards.base import ERROR, OK, Verdict, resolve
from rewards.composition import compose, read_parts
from rlplatform.completion import Completion, Sample
from rlplatform.config import ConfigError, DataConfig, EnvironmentConfig
from rlplatform.configfile import load_values
from rlplatform.data import load_prompts
from rlplatform.environment_checks import check_environment
from rlplatform.environments.driver import EpisodeResult
from rlplatform.environments.rows import problems
from rlplatform.metrics import check_names
from rlplatform.rollout_metrics import rollout_metrics
from rlplatform.runs import rollout_records
from rlplatform.shipped_functions import check_function_files
from rlplatform.types import (
    FINISH_STOP,
    GenerationRequest,
    Prompt,
    RolloutGroup,
    SamplingParams,
    ScoredGroup,
)

RL: dict[str, Any] = {
    "kind": "rl",
    "reward": {"functions": {"environment": 1.0}},
    "environment": {"name": "calculator"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_bpe(["What is 347 + 285? user assistant tool\n"] * 9, 400, tmp_path_factory.mktemp("tokenizer"))


def prompt(**columns: Any) -> Prompt:
    return Prompt("p0", ({"role": "user", "content": "hi"},), np.array([1, 2], np.int32), "hi", columns)


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": {"name": "calculator", "column": "environment"}}, "expected name or column, got both"),
        ({"environment": {"name": "calculator", "max_turns": 0}}, "max_turns: expected >= 1, got 0"),
        ({"environment": {"name": "calculator", "step_timeout_s": 0}}, "step_timeout_s: expected > 0"),
        ({"reward": {"functions": {"math": 1.0}}}, "reward.functions: expected `environment` among them"),
        ({"data": {"chat": False}}, "data.chat: expected true with an environment"),
    ],
)
@pytest.mark.parametrize("kind", ["rl", "eval"])
def test_a_run_that_could_not_be_played_is_refused_by_its_config(kind: str, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_values({**RL, "kind": kind, **change})


def test_without_an_environment_nothing_is_asked_of_the_rewards() -> None:
    config = load_values({"kind": "rl", "reward": {"functions": {"math": 1.0}}})
    assert play_of(prompt(environment="calculator"), config.environment) is None  # type: ignore[union-attr]


def test_environments_are_loaded_before_anything_starts(tmp_path: Path) -> None:
    check_environment(EnvironmentConfig(name="calculator", args={"show_tools": False}), [prompt()])
    check_environment(EnvironmentConfig(), [prompt(environment=3)])
    check_environment(EnvironmentConfig(column="env"), [prompt(env=None), prompt(env="search")])
    with pytest.raises(ConfigError, match=r"environment.name: environment 'calculatr'.*did you mean 'calculator'"):
        check_environment(EnvironmentConfig(name="calculatr"), [prompt()])
    with pytest.raises(ConfigError, match="cannot be called as"):
        check_environment(EnvironmentConfig(name="calculator", args={"digits": 3}), [prompt()])
    with pytest.raises(ConfigError, match=r"prompt p0: .*no file"):
        check_environment(EnvironmentConfig(column="env"), [prompt(env=f"{tmp_path}/none.py:Game")])
    with pytest.raises(ConfigError, match="column env: expected an environment's name or null, got 7"):
        check_environment(EnvironmentConfig(column="env"), [prompt(env=7)])
    with pytest.raises(ConfigError, match="no row names an environment there; the rows have task"):
        check_environment(EnvironmentConfig(column="env"), [prompt(task=1)])
    with pytest.raises(ConfigError, match=r"expected data\.chat=true"):
        check_environment(EnvironmentConfig(name="search"), [replace(prompt(), messages=())])


def test_a_file_is_named_absolutely_and_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "games.py").write_text("class Game:\n    def reset(self): ...\n    def step(self): ...\n")
    config: Any = load_values({**RL, "environment": {"name": "games.py:Game"}})
    play = play_of(prompt(), config.environment)
    assert play is not None
    assert play.name == f"{tmp_path.resolve()}/games.py:Game"
    assert check_function_files(config, {"games.py": tmp_path / "games.py"}, tmp_path) == []
    with pytest.raises(ConfigError, match=r"environment.name: games.py would not reach the cluster"):
        check_function_files(config, {}, tmp_path)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_the_tools_of_a_row_stand_in_its_prompt(tmp_path: Path, tokenizer: Any) -> None:
    """The environment's own opening is the very prompt that the dataset gives; JSON text of tools reads alike."""
    rows = problems(0, environment="calculator", num_sft=0, num_train=2, num_test=0)["train"]
    rows.append({**rows[0], "tools": json.dumps(rows[0]["tools"])})
    rows.append({key: value for key, value in rows[0].items() if key != "tools"})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts(DataConfig(path=str(path), max_prompt_tokens=2000), tokenizer).prompts
    assert '"name": "calculate"' in found[0].text
    assert found[2].text == found[0].text
    assert "calculate" not in found[3].text
    group = played(tokenizer, found[0], [Sample(np.array([9], np.int32), np.zeros(1, np.float32), *_end())])
    assert group.prompt is found[0]  # the opening is equal: nothing is replaced


def _end() -> tuple[np.ndarray, str]:
    return np.zeros(1, np.int32), FINISH_STOP


def played(tokenizer: Any, asked: Prompt, samples: list[Sample]) -> FinishedGroup:
    """One episode of the calculator; its turns are given."""
    episodes = Episodes(tokenizer, [9], 4096)
    play = play_of(asked, EnvironmentConfig(name="calculator"))
    episodes.begin(0, GenerationRequest(asked, 1, 0, 0, seed=5), SamplingParams(), play, None)
    try:
        while episodes.num_open:
            for call in episodes.calls(1.0):
                episodes.give(call, samples.pop(0))
        (group,) = episodes.take_finished()
    finally:
        episodes.close()
    return group


def test_a_row_as_an_environment_sees_it() -> None:
    asked = prompt(answer="4")
    assert row_of(asked) == {"answer": "4", "prompt": "hi"}
    system = ({"role": "system", "content": "Be brief."}, *asked.messages)
    assert row_of(replace(asked, messages=system))["prompt"] == [dict(message) for message in system]


# --- episodes -------------------------------------------------------------------------------------------------------


def result(name: str, ids: list[int], verdict: Verdict, *, sampled: int = 2, **changes: Any) -> EpisodeResult:
    completion = Completion()
    if sampled:
        arrays = np.arange(sampled, dtype=np.int32), np.zeros(sampled, np.float32), np.zeros(sampled, np.int32)
        completion.add_sample(Sample(*arrays, FINISH_STOP))
    rollout = completion.rollout(finish=FINISH_STOP, text="all") if sampled else None
    messages = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "x"},
        {"role": "tool", "content": ""},
    )
    values: dict[str, Any] = {"num_turns": 2, "ended_by": "", "seconds": 0.1, "final_text": "last"} | changes
    return EpisodeResult(name, "text", np.array(ids, np.int32), rollout, verdict, messages, **values)


def test_failed_rejected_and_differing_episodes_of_a_group() -> None:
    failed = Verdict(0.0, ERROR, detail="raised")
    group = finished_episodes(
        3,
        prompt(),
        [
            result("3/0", [], failed, sampled=0),
            result("3/1", [7, 8], Verdict(1.0)),
            result("3/2", [7, 8], failed, rejected=True),
            result("3/3", [7, 9], Verdict(1.0)),
        ],
    )
    assert (group.ticket, group.num_rejected, len(group.rollouts)) == (3, 1, 3)
    assert group.prompt is not None
    assert group.prompt.token_ids.tolist() == [7, 8]  # as the environment opened it
    assert group.prompt.text == "text"
    assert [rollout.verdict.status for rollout in group.rollouts if rollout.verdict] == [ERROR, OK, ERROR]
    assert len(group.rollouts[0]) == 0
    differing = group.rollouts[2].verdict
    assert differing is not None
    assert "depend on the row alone" in differing.detail


def test_what_is_recorded_and_measured_of_episodes() -> None:
    results = [
        result("0/0", [1, 2], Verdict(1.0)),
        result("0/1", [1, 2], Verdict(0.0), ended_by="the limit of 4 turns", num_turns=4),
    ]
    rollouts = finished_episodes(0, prompt(), results).rollouts
    plain = Completion()
    plain.add_sample(Sample(np.array([1], np.int32), np.zeros(1, np.float32), *_end()))
    rollouts = (*rollouts, plain.rollout(finish=FINISH_STOP, text="plain"))
    verdicts = tuple(rollout.verdict or Verdict(0.0) for rollout in rollouts)
    scored = ScoredGroup(RolloutGroup(prompt(), rollouts, step=0), verdicts)
    records = list(rollout_records(scored, 0))
    assert [(row["turns"], row["tool_calls"], row["ended_by"]) for row in records] == [
        (2, 1, ""),
        (4, 1, "the limit of 4 turns"),
        (1, 0, ""),
    ]
    assert [rollout.final_text for rollout in rollouts] == ["last", "last", "plain"]
    metrics = rollout_metrics([scored], [scored], version=0)
    assert metrics["episode/turns_mean"] == 3.0
    assert metrics["episode/tool_calls_mean"] == 1.0
    assert metrics["episode/limit_share"] == 0.5
    check_names(metrics)
    alone = ScoredGroup(RolloutGroup(prompt(), rollouts[2:], step=0), verdicts[2:])
    assert not [name for name in rollout_metrics([alone], [alone], version=0) if name.startswith("episode/")]


def test_the_reward_is_composed_like_any_other_part() -> None:
    parts = read_parts(
        {"environment": {"weight": 2.0, "clip": [0, 1]}, "format": {"weight": 0.5, "needs": "environment"}}
    )
    won = {"environment": Verdict(3.0, parts={"orders": 2.0}), "format": Verdict(1.0)}
    assert compose(won, parts).score == 2.5
    assert compose(won, parts).parts == {"environment": 3.0, "environment/orders": 2.0, "format": 1.0}
    assert compose({**won, "environment": Verdict(0.0)}, parts).score == 0.0
    assert compose({**won, "environment": Verdict(0.0, ERROR)}, parts).status == ERROR
    (verdict,) = resolve("environment")(completions=["text"])  # type: ignore[misc]
    assert verdict.status == "not_applicable"
