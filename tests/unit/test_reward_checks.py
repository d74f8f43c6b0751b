"""What stops a run before anything is started: columns, settings, and a function that fails at its first call."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rewards.base import RewardLoadError
from rlplatform import reward_checks
from rlplatform.config import ConfigError, RewardConfig
from rlplatform.reward_checks import accuracy_metric, check_columns, probe
from rlplatform.types import Prompt

FUNCTIONS = """
import os, time
from rewards.base import Verdict, groupwise, rowwise, served_by

def fine(prompts, completions, answer, completion_ids, trainer_state, log_extra, *, scale=1.0):
    assert prompts[0] == "1 + 1?" and len(completion_ids) == len(completions) and trainer_state.global_step == 0
    return [scale] * len(completions)

def broken(completions, answer, **columns):
    return [helper(a) for a in answer]

def helper(answer):
    return {}[answer]

def wrong_count(completions): return [1.0]
def dies(completions): os._exit(7)
def hangs(completions): time.sleep(600)
def unparseable(completions): return [Verdict(0.0, "unparseable", detail="no reference")] * len(completions)
def none(completions): return [None] * len(completions)

@groupwise
def whole(completions):
    assert len(completions) == 2
    return [0.0, 1.0]

@rowwise
async def costs_money(completions): raise RuntimeError("called")

@served_by("a.b:C")
def needs_a_model(completions): raise RuntimeError("called")
"""


@pytest.fixture(scope="module")
def user_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "probed.py"
    path.write_text(FUNCTIONS)
    return path


def prompt(number: int = 0, **columns: Any) -> Prompt:
    return Prompt(f"p{number}", (), np.array([1], dtype=np.int32), "1 + 1?", columns)


PROMPTS = [prompt(0, answer="2", task="a"), prompt(1, answer="3", task="b")]


def tried(user_file: Path, *names: str, prompts: list[Prompt] = PROMPTS, config: Any = None, **part: Any) -> None:
    functions = {name: {"function": f"{user_file}:{name}", **part} for name in names}
    with probe(RewardConfig(functions=functions, **(config or {}))) as rewards:
        rewards.check(prompts)


def test_what_works_passes_and_leaves_no_process(user_file):
    before = psutil.Process().children(recursive=True)
    tried(user_file, "fine", "none", "whole")
    tried(user_file, "fine", args={"scale": 2.0})
    assert psutil.Process().children(recursive=True) == before


def test_what_costs_money_or_a_model_is_not_called(user_file):
    tried(user_file, "costs_money", "needs_a_model")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ["KeyError: '2', at {file}:{line} in helper", "Traceback", "reward.probe=false"]),
        ("wrong_count", ["expected 2 scores, one a row, got 1"]),
        ("dies", ["exit code 7"]),
    ],
)
def test_what_fails_is_told_with_its_line(user_file, name, words):
    line = 1 + FUNCTIONS[: FUNCTIONS.index("return {}[answer]")].count("\n")
    with pytest.raises(RewardLoadError) as caught:
        tried(user_file, name)
    told = str(caught.value)
    assert f"reward '{name}', tried on prompt p0 with a made-up completion: error: " in told.split("\n")[0]
    for word in words:
        assert word.format(file=user_file, line=line) in told
    tried(user_file, name, config={"probe": False})


def test_the_probe_asks_a_row_that_the_function_grades(user_file):
    with pytest.raises(RewardLoadError, match=r"tried on prompt p1 .*KeyError: '3'"):
        tried(user_file, "broken", when={"task": "b"})
    tried(user_file, "broken", when={"task": "c"})


@pytest.mark.parametrize(("name", "word"), [("hangs", "timeout"), ("unparseable", "no reference")])
def test_what_may_be_the_row_s_fault_is_only_warned_of(user_file, name, word, caplog, monkeypatch):
    monkeypatch.setattr(reward_checks, "PROBE_TIMEOUT_S", 0.5)
    with caplog.at_level(logging.WARNING):
        tried(user_file, name)
    assert word in caplog.text
    assert f"reward '{name}', tried on prompt p0" in caplog.text


def test_a_function_that_does_not_load_in_a_child(tmp_path, monkeypatch):
    path = tmp_path / "only_here.py"
    path.write_text("import os\nif 'IN_CHILD' in os.environ: 1 / 0\ndef fn(completions): return [1.0]\n")
    config = RewardConfig(functions={f"{path}:fn": 1.0})
    accuracy_metric(config, "")
    monkeypatch.setenv("IN_CHILD", "1")
    with pytest.raises(RewardLoadError, match="ZeroDivisionError"), probe(config) as rewards:
        rewards.check(PROMPTS)


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ({"math": 1.0}, None),
        ({"tool_calls": 1.0}, None),
        (
            {"grounded_qa": 1.0},
            "'grounded_qa' needs the columns ['context'], and prompt p0 has ['answer', 'task']",
        ),
        ({"grounded_qa": {"when": {"task": "b"}}}, "['context'], and prompt p1 has"),
        ({"grounded_qa": {"when": {"task": "c"}}}, None),
        (
            {"math": {"when": {"level": 1}}},
            "math.when: the rows have no column level; they have answer, prompt_text,",
        ),
        ({"math": {"when": {"prompt_text": "1 + 1?"}}}, None),
    ],
)
def test_columns(functions, words):
    if words is None:
        check_columns(RewardConfig(functions=functions), PROMPTS)
    else:
        with pytest.raises(ConfigError) as caught:
            check_columns(RewardConfig(functions=functions), PROMPTS)
        assert words in str(caught.value)


def test_columns_of_every_prompt_count_and_none_has_the_name_of_a_setting(user_file):
    with pytest.raises(ConfigError, match=r"needs the columns \['answer'\], and prompt p2 has \['task'\]"):
        check_columns(RewardConfig(functions={"math": 1.0}), [*PROMPTS, prompt(2, task="a")])
    scaled = {"fine": {"function": f"{user_file}:fine", "args": {"scale": 2.0}}}
    check_columns(RewardConfig(functions=scaled), PROMPTS)
    with pytest.raises(ConfigError, match=r"prompt p2: reward\.functions\.fine\.args: scale is a column"):
        check_columns(RewardConfig(functions=scaled), [*PROMPTS, prompt(2, answer="x", scale=1)])


@pytest.mark.parametrize("name", ["completions", "trainer_state", "prompt_text"])
def test_columns_that_the_platform_gives_itself_are_refused(name):
    with pytest.raises(ConfigError, match=rf"prompt p1: the columns \['{name}'\] have names"):
        check_columns(RewardConfig(functions={"math": 1.0}), [PROMPTS[0], prompt(1, answer="7", **{name: "x"})])


def test_routing_that_reaches_no_row_is_warned_of(caplog):
    functions = {"math": {"when": {"task": "a"}}, "exact": {"when": {"task": ["c", "d"]}}}
    with caplog.at_level(logging.WARNING):
        check_columns(RewardConfig(functions=functions), PROMPTS)
    assert """reward.functions.exact.when matches no row; the rows have {'task': ["'a'", "'b'"]}""" in caplog.text
    assert "1 of 2 rows are graded by no reward function" in caplog.text
    assert "functions.math" not in caplog.text


def test_the_accuracy_is_a_part():
    config = RewardConfig(functions={"format": 0.1, "maths": {"function": "math"}})
    assert accuracy_metric(config, "") == "format"
    assert accuracy_metric(config, "maths") == "maths"
    with pytest.raises(ConfigError, match=r"expected one of the reward functions, \['format', 'maths'\]"):
        accuracy_metric(config, "math")
    with pytest.raises(RewardLoadError, match="did you mean 'scoring'"):
        accuracy_metric(RewardConfig(functions={"code": {"args": {"scorings": "all"}}}), "")
