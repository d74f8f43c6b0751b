"""Several functions, one reward: how it is read, what it counts, what of it is recorded."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import ERROR, NOT_APPLICABLE, OK, STATUSES, TIMEOUT, UNPARSEABLE, RewardLoadError, Verdict
from rewards.composition import Part, check_part, compose, read_parts, score_range
from rewards.runner import RewardPool
from rlplatform.config import ConfigError, RewardConfig
from rlplatform.configfile import load_values
from rlplatform.runs import rollout_records
from rlplatform.types import Prompt, Rollout, RolloutGroup, ScoredGroup

NOT_OK = [status for status in STATUSES if status not in (OK, NOT_APPLICABLE)]


def parts(**functions: Any) -> dict[str, Part]:
    return read_parts(functions)


def said(*scores: float | str) -> list[Verdict]:
    return [Verdict(0.0, score) if isinstance(score, str) else Verdict(float(score)) for score in scores]


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_weight_or_a_mapping():
    read = read_parts(
        {
            "format": 0.1,
            "rewards/mine.py:brevity": {"weight": 2, "needs": "format", "clip": [-1, 2]},
            "code": {"needs": {"format": 0.5}, "when": {"task": "code", "level": [1, 2]}, "args": {"scoring": "all"}},
            "polite": {"function": "a.b:preference", "workers": 2, "gpus": 0.5, "timeout_s": 3},
            "kind": {"function": "a.b:preference", "per_second": 2.5, "concurrency": 4.0},
        }
    )
    assert read["format"] == Part("format", "format", 0.1)
    assert read["brevity"] == Part("brevity", "rewards/mine.py:brevity", 2.0, needs={"format": 1.0}, clip=(-1.0, 2.0))
    assert read["code"] == Part(
        "code",
        "code",
        args={"scoring": "all"},
        needs={"format": 0.5},
        when={"task": ("code",), "level": (1, 2)},
    )
    assert read["polite"] == Part("polite", "a.b:preference", timeout_s=3.0, workers=2, gpus=0.5)
    assert read["kind"] == Part("kind", "a.b:preference", concurrency=4, per_second=2.5)
    assert read_parts(read) == read


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ({}, ["at least one reward function"]),
        ({"math": {"wieght": 1}}, ["reward.functions.math", "'wieght'", "did you mean 'weight'"]),
        ({"math": {"name": "x"}}, ["reward.functions.math", "'name'"]),
        ({"math": "1.0"}, ["reward.functions.math.weight: expected a number, got '1.0'"]),
        ({"math": True}, ["expected a number, got True"]),
        ({"math": None}, ["expected a number, got None"]),
        ({"math": math.nan}, ["finite number, got nan"]),
        ({"math": {"workers": 1.5}}, ["math.workers: expected a whole number, got 1.5"]),
        ({"math": {"workers": math.inf}}, ["math.workers: expected a whole number"]),
        ({"math": {"timeout_s": -1}}, ["math.timeout_s: expected >= 0"]),
        ({"math": {"args": ["x"]}}, ["math.args: expected {setting: value}"]),
        ({"math": {"args": {"prompts": 1}}}, ["prompts come from the platform"]),
        ({"math": {"when": "task"}}, ["math.when: expected {column: value or [values]}"]),
        ({"math": {"clip": 1}}, ["math.clip: expected [low, high], got 1"]),
        ({"math": {"clip": [2, 1]}}, ["low < high"]),
        ({"math": {"clip": ["a", 1]}}, ["math.clip: expected a number, got 'a'"]),
        ({"math": {"function": 3}}, ["math.function: expected the name of a function"]),
        ({"a.py:fn": 1, "b.py:fn": 1}, ["'a.py:fn' and 'b.py:fn' are both called 'fn'", "NAME: {function: ...}"]),
        ({"math": {"needs": "format"}}, ["math.needs", "of which there are none", "'format'"]),
        ({"format": 1, "math": {"needs": ["fromat"]}}, ["math.needs", "did you mean 'format'"]),
        ({"format": 1, "math": {"needs": {"format": math.nan}}}, ["math.needs.format", "got nan"]),
        ({"math/acc": {"function": "math"}}, ["functions.math/acc", "without '/'"]),
        ({"math": {"needs": "math"}}, ["math.needs", "got 'math'"]),
        ({"format": 1, "math": {"needs": {"format": "x"}}}, ["math.needs.format: expected a number"]),
        ({"format": 1, "math": {"needs": 3}}, ["math.needs: expected a part"]),
    ],
)
def test_what_cannot_be_read_is_said_when_the_config_is_loaded(functions, words):
    with pytest.raises(RewardLoadError) as caught:
        read_parts(functions)
    for word in words:
        assert word in str(caught.value)
    if functions:
        with pytest.raises(ConfigError) as refused:
            RewardConfig(functions=functions)
        assert str(refused.value) == str(caught.value)


def test_from_yaml_to_parts():
    functions = {
        "format": 0.5,
        "math": {"weight": 1, "needs": ["format"], "when": {"task": ["a", "b"]}, "clip": [0, 1]},
    }
    config = load_values({"kind": "rl", "reward": {"functions": functions}})
    assert config.reward.parts["math"].when == {"task": ("a", "b")}
    changed = load_values({"kind": "rl", "reward": {"functions": functions}}, ["reward.functions.math.weight=2"])
    assert changed.reward.parts["math"].weight == 2.0
    with pytest.raises(ConfigError, match=r"did you mean 'weight'"):
        load_values({"kind": "rl", "reward": {"functions": functions}}, ["reward.functions.math.weigth=2"])


def test_the_compositions_of_the_page_can_be_read():
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    compositions = [block["reward"]["functions"] for block in blocks if "functions" in block.get("reward", {})]
    assert len(compositions) >= 4
    for functions in compositions:
        read_parts(functions)


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_are_keyword_only_parameters_or_those_with_a_default():
    def strict(completions, answer, language=None, *, tolerance=0.1, log_extra=None, **columns): ...
    def relaxed(completions, scale=1.0, **columns): ...
    def open_ended(completions, **kwargs): ...

    check_part(Part("f", "f", args={"tolerance": 1}), strict)
    check_part(Part("f", "f", args={"scale": 1}), relaxed)
    for fn, name, words in [
        (strict, "tolerence", "has the settings tolerance; got 'tolerence'; did you mean 'tolerance'?"),
        (strict, "language", "got 'language'"),  # a column: one value a row
        (strict, "answer", "got 'answer'"),
        (relaxed, "other", "has the settings scale; got 'other'"),
        (open_ended, "anything", "has the settings (none)"),
    ]:
        with pytest.raises(RewardLoadError) as caught:
            check_part(Part("f", "f", args={name: 1}), fn)
        assert words in str(caught.value)


def test_two_marks_exclude_each_other():
    def fn(completions): ...

    fn.rowwise = fn.groupwise = True  # type: ignore[attr-defined]
    with pytest.raises(RewardLoadError, match="both rowwise and groupwise"):
        check_part(Part("f", "f"), fn)


# --- what the reward counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "verdicts", "score", "status", "recorded"),
    [
        # a weighted sum
        ({"a": 1, "b": 0.5, "c": -2}, (1, 3, 0.25), 1 + 1.5 - 0.5, OK, {"a": 1, "b": 3, "c": 0.25}),
        ({"a": 1}, (-3.5,), -3.5, OK, {"a": -3.5}),
        # what does not apply does not count, and is not recorded
        ({"a": 1, "b": 0.5}, (NOT_APPLICABLE, 3), 1.5, OK, {"b": 3}),
        ({"a": 1, "b": 0.5}, (NOT_APPLICABLE, NOT_APPLICABLE), 0, NOT_APPLICABLE, {}),
        ({"a": 1, "b": 0.5}, (None, None), 0, NOT_APPLICABLE, {}),  # no `when` matches
        ({"a": 1, "b": 0.5}, (None, 2), 1, OK, {"b": 2}),
        # a part that is not ok leaves the rollout out; the others are recorded
        ({"a": 1, "b": 0.5}, (1, ERROR), 0, ERROR, {"a": 1}),
        ({"a": 1, "b": 0.5}, (TIMEOUT, UNPARSEABLE), 0, TIMEOUT, {}),
        ({"a": 1, "b": 0.5}, (UNPARSEABLE, ERROR), 0, ERROR, {}),
        ({"a": 1, "b": 0.5}, (NOT_APPLICABLE, UNPARSEABLE), 0, UNPARSEABLE, {}),
        ({"a": 0, "b": 1}, (ERROR, 1), 0, ERROR, {"b": 1}),  # a weight of 0 records, and its errors count
        # a row that only a weight of 0 grades has no reward; where nothing has a weight there is nothing else to say
        ({"a": 0, "b": 1}, (3, NOT_APPLICABLE), 0, NOT_APPLICABLE, {"a": 3}),
        ({"a": 0, "b": 1}, (3, None), 0, NOT_APPLICABLE, {"a": 3}),
        ({"a": 0, "b": 0}, (3, None), 0, OK, {"a": 3}),
        # beyond what a float holds
        ({"a": 1, "b": 1}, (1.7e308, 1.7e308), 0, ERROR, {"a": 1.7e308, "b": 1.7e308}),
        ({"a": 10}, (1e308,), 0, ERROR, {"a": 1e308}),
        ({"a": 10, "b": -10}, (1e308, 1e308), 0, ERROR, {"a": 1e308, "b": 1e308}),
        # gates look at raw scores
        ({"f": 0.1, "m": {"needs": "f"}}, (1, 1), 1.1, OK, {"f": 1, "m": 1}),
        ({"f": 0.1, "m": {"needs": "f"}}, (0, 1), 0, OK, {"f": 0, "m": 1}),
        ({"f": 0.1, "m": {"needs": {"f": 0.5}}}, (0.5, 1), 1.05, OK, {"f": 0.5, "m": 1}),
        ({"f": 0.1, "m": {"needs": {"f": 0.5}}}, (0.49, 1), 0.049, OK, {"f": 0.49, "m": 1}),
        ({"f": {"weight": 0, "clip": [0, 0.1]}, "m": {"needs": "f"}}, (1, 1), 1, OK, {"f": 1, "m": 1}),
        ({"f": 0.1, "m": {"needs": "f"}}, (NOT_APPLICABLE, 1), 1, OK, {"m": 1}),  # a gate that does not apply
        ({"f": 0.1, "m": {"needs": "f"}}, (None, 1), 1, OK, {"m": 1}),
        ({"f": 0.1, "m": {"needs": "f"}}, (ERROR, 1), 0, ERROR, {"m": 1}),
        (
            {"f": 0.1, "m": {"needs": "f"}},
            (0, TIMEOUT),
            0,
            TIMEOUT,
            {"f": 0},
        ),  # held back or not: nobody knows its score
        ({"f": 0.1, "m": {"weight": -1, "needs": "f"}}, (0, 5), 0, OK, {"f": 0, "m": 5}),  # a penalty is held back too
        ({"f": {"needs": "m"}, "m": {"needs": "f"}}, (1, 0.5), 0.5, OK, {"f": 1, "m": 0.5}),  # each looks at the other
        ({"f": 1, "g": 1, "m": {"needs": ["f", "g"]}}, (1, 0, 1), 1, OK, {"f": 1, "g": 0, "m": 1}),
        # clipping changes what counts, not what is recorded
        ({"a": {"clip": [-4, 4]}, "b": 1}, (9, 1), 5, OK, {"a": 9, "b": 1}),
        ({"a": {"weight": 0.5, "clip": [-4, 4]}}, (-9,), -2, OK, {"a": -9}),
        ({"a": {"clip": [-4, math.inf]}}, (99,), 99, OK, {"a": 99}),
    ],
)
def test_by_hand(config, verdicts, score, status, recorded):
    read = read_parts(config)
    of_row = {name: said(verdict)[0] for name, verdict in zip(config, verdicts, strict=True) if verdict is not None}
    whole = compose(of_row, read)
    assert whole.score == pytest.approx(score)
    assert whole.status == status
    assert dict(whole.parts) == recorded


def test_details_say_which_part_and_why_it_does_not_count():
    read = parts(f=0.1, m={"needs": "f"})
    whole = compose({"f": Verdict(0.0, detail="no think block"), "m": Verdict(1.0)}, read)
    assert whole.detail == "f: no think block\nm: counts 0: f scored 0, m needs 1"
    assert compose({"a": Verdict(0.0, ERROR, detail="why")}, parts(a=1)).detail == "why"


def test_own_parts_of_a_function_are_kept():
    whole = compose({"a": Verdict(1.0, parts={"style": 0.5}, seconds=0.25)}, parts(a=1))
    assert whole.parts == {"a": 1.0, "a/style": 0.5}
    assert whole.seconds == 0.25


NAMES = "abcd"
scores = st.floats(-10, 10).map(lambda score: Verdict(score))
verdicts = st.one_of(scores, st.sampled_from([s for s in STATUSES if s != OK]).map(lambda status: Verdict(0.0, status)))


@st.composite
def compositions(
    draw: st.DrawFn, of: st.SearchStrategy[Verdict] = verdicts
) -> tuple[dict[str, Any], dict[str, Verdict]]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    config: dict[str, Any] = {}
    for name in names:
        gates = draw(st.lists(st.sampled_from([n for n in names if n != name] or [""]), unique=True))
        config[name] = {
            "weight": draw(st.floats(-3, 3)),
            "needs": {gate: draw(st.floats(-1, 1)) for gate in gates if gate},
            "clip": draw(st.none() | st.just([-1.0, 1.0])),
        }
    return config, {name: draw(of) for name in names}


@given(compositions())
def test_ok_exactly_when_every_part_is_ok_or_does_not_apply(case):
    config, of_row = case
    whole = compose(of_row, read_parts(config))
    statuses = {verdict.status for verdict in of_row.values()}
    of_weight = {v.status for name, v in of_row.items() if config[name]["weight"]} or statuses  # none has a weight
    assert whole.ok == (statuses <= {OK, NOT_APPLICABLE} and OK in of_weight)
    assert whole.ok or whole.score == 0.0
    if statuses & set(NOT_OK):
        assert whole.status == next(status for status in (ERROR, TIMEOUT, UNPARSEABLE) if status in statuses)
    assert dict(whole.parts) == {n: v.score for n, v in of_row.items() if v.ok}  # raw, always


@given(compositions())
def test_the_order_of_parts_does_not_matter(case):
    config, of_row = case
    outcomes = set()
    for names in itertools.permutations(config):
        whole = compose({n: of_row[n] for n in reversed(names)}, read_parts({n: config[n] for n in names}))
        outcomes.add((whole.score, whole.status, tuple(sorted(whole.parts.items()))))
    assert len(outcomes) == 1


@given(compositions(scores))
def test_a_sum_is_the_sum_of_what_each_part_counts(case):
    config, of_row = case
    expected = 0.0
    for name, of_part in config.items():
        if all(of_row[gate].score >= least for gate, least in of_part["needs"].items()):
            low, high = of_part["clip"] or (-math.inf, math.inf)
            expected += of_part["weight"] * float(np.clip(of_row[name].score, low, high))
    assert compose(of_row, read_parts(config)).score == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("status", STATUSES)
@given(st.floats(-2, 2))
def test_a_gate_of_every_status(status, score):
    gate = Verdict(score if status == OK else 0.0, status)
    whole = compose({"f": gate, "m": Verdict(0.75)}, parts(f=0, m={"needs": {"f": 0.5}}))
    if status in NOT_OK:
        assert (whole.score, whole.status) == (0.0, status)
    else:
        held_back = status == OK and score < 0.5
        assert (whole.score, whole.status) == (0.0 if held_back else 0.75, OK)
    assert whole.parts["m"] == 0.75


# --- the range of the reward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        ({"math": 0.9, "format": 0.1}, (0.0, 1.0)),
        ({"math": {"weight": 0.9, "needs": "format"}, "format": 0.1}, (0.0, 1.0)),
        ({"math": {"clip": [0, 1]}}, (0.0, 1.0)),
        ({"m": {"function": "math", "weight": 2}}, (0.0, 2.0)),
        ({"math": 0.9, "format": -0.1}, None),
        ({"math": {"clip": [0, 0.5]}}, None),
        ({"math": {"when": {"task": "math"}}, "code": {"when": {"task": "code"}}}, None),
        ({"math": {"needs": {"format": 2}}, "format": 1}, None),  # a gate that nothing passes
        ({"math": 1, "a/b.py:mine": 1}, None),
    ],
)
def test_the_range_is_known_or_said_to_be_unknown(functions, expected):
    assert score_range(read_parts(functions)) == expected


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.booleans())
def test_no_reward_lies_outside_the_range(of_parts, gated):
    read = read_parts({"math": {"weight": 0.7, "needs": ["format"] * gated}, "format": 0.2, "exact": 0.1})
    low, high = score_range(read) or (0, 0)
    assert low <= compose(dict(zip(read, said(*of_parts), strict=True)), read).score <= high + 1e-12
    assert compose(dict(zip(read, said(1, 1, 1), strict=True)), read).score == high


# --- in a pool ------------------------------------------------------------------------------------------------------

FUNCTIONS = '''
import os, time
from rewards.base import Verdict, groupwise, rowwise

def scaled(completions, *, by=1.0, offset=0.0, **columns):
    return [by * len(c) + offset for c in completions]

def required(completions, *, threshold):
    return [float(len(c) > threshold) for c in completions]

@rowwise
def seen(completions, task, **columns):
    return [Verdict(1.0, detail=t) for t in task]

def all_seen(completions, **columns):
    return [float(len(completions))] * len(completions)

@groupwise
def ranked(completions, mode=None, log_extra=None, log_metric=None, **columns):
    """A rank among the completions of a prompt; the detail says how many were seen together."""
    if mode and "raise" in mode:
        raise KeyError("one of the group")
    if mode and "sleep" in mode:
        time.sleep(600)
    if mode and "exit" in mode:
        os._exit(4)
    if mode and "count" in mode:
        return [1.0]
    log_extra("size", [len(completions)] * len(completions))
    order = sorted(range(len(completions)), key=lambda i: len(completions[i]))
    return [Verdict(float(order.index(i)), detail=",".join(completions)) for i in range(len(completions))]
'''


@pytest.fixture(scope="module")
def user_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "parts.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="module")
def ranked(user_file: Path) -> Iterator[RewardPool]:
    with RewardPool({f"{user_file}:ranked": 1.0}) as pool:
        yield pool


def test_one_function_twice_with_other_settings(user_file):
    config = {
        "short": {"function": f"{user_file}:scaled", "args": {"by": -1}},
        "long": {"function": f"{user_file}:scaled", "weight": 2, "args": {"by": 3, "offset": 0.5}},
        "more": {"function": f"{user_file}:required", "args": {"threshold": 2}},
    }
    with RewardPool(config) as pool:
        (verdict,) = pool.score(["p"], ["four"], {"level": [1]})
        assert dict(verdict.parts) == {"short": -4.0, "long": 12.5, "more": 1.0}
        assert verdict.score == -4 + 25 + 1
        with pytest.raises(RewardLoadError, match=r"short: offset is a column of the rows"):
            pool.score(["p"], ["four"], {"offset": [1]})


def test_a_setting_nobody_knows_starts_no_process(user_file):
    with pytest.raises(
        RewardLoadError, match=r"scaled has the settings by, offset; got 'ofset'; did you mean 'offset'"
    ):
        RewardPool({f"{user_file}:scaled": {"args": {"ofset": 1}}})


def test_rows_are_routed_by_a_column(user_file):
    config = {
        "math_part": {"function": f"{user_file}:seen", "when": {"task": ["math", "gsm8k"]}},
        f"{user_file}:all_seen": {"weight": 0.5, "when": {"task": "code", "level": [1, 2]}},
    }
    task = ["math", "code", "gsm8k", "other", "code", "code"]
    level = [1, 1, 1, 1, 2, 3]
    with RewardPool(config) as pool:
        found = pool.score(["p"] * 6, ["c"] * 6, {"task": task, "level": level})
        assert [dict(v.parts) for v in found] == [
            {"math_part": 1.0},
            {"all_seen": 2.0},  # of three rows of code it was sent two
            {"math_part": 1.0},
            {},
            {"all_seen": 2.0},
            {},
        ]
        assert [v.status for v in found] == [OK, OK, OK, NOT_APPLICABLE, OK, NOT_APPLICABLE]
        assert [v.score for v in found] == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
        with pytest.raises(RewardLoadError, match=r"all_seen\.when: the rows have no column level; they have task"):
            pool.score(["p"], ["c"], {"task": ["math"]})


GROUPS = ["x", "y", "x", "y", "z", "x"]
TEXTS = ["a", "bbb", "cc", "d", "eeee", "fff"]


def test_groups_are_called_whole(user_file):
    with RewardPool({f"{user_file}:ranked": 1.0}, num_processes=2) as pool:
        scored = pool.score_detailed(["p"] * 6, TEXTS, groups=GROUPS)
    assert [v.score for v in scored.verdicts] == [0.0, 1.0, 1.0, 0.0, 0.0, 2.0]
    assert [v.detail for v in scored.verdicts] == ["a,cc,fff", "bbb,d", "a,cc,fff", "bbb,d", "eeee", "a,cc,fff"]
    assert scored.extras["size"] == [3, 2, 3, 2, 1, 3]


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("raise", ERROR, "KeyError: 'one of the group'"),
        ("sleep", TIMEOUT, "past its deadline"),
        ("exit", ERROR, "exit code 4"),
        ("count", ERROR, "expected 2 scores"),
    ],
)
def test_a_group_fails_as_one(user_file, mode, status, words):
    modes = ["ok", "ok", "ok", mode, "ok", "ok"]  # one row of group y
    with RewardPool({f"{user_file}:ranked": 1.0}, timeout_s=0.8) as pool:
        found = pool.score(["p"] * 6, TEXTS, {"mode": modes}, groups=GROUPS)
    assert [v.status for v in found] == [status if group == "y" else OK for group in GROUPS]
    assert all(words in v.detail for v in found if not v.ok)


def test_groups_that_are_missing_or_cut_are_named(user_file):
    with RewardPool({f"{user_file}:ranked": {"when": {"task": "a"}}}) as pool:
        columns = {"task": ["a", "a", "b"]}
        with pytest.raises(RewardLoadError, match=r"compares the completions of one prompt.*a column `group`"):
            pool.score(["p"] * 3, ["x"] * 3, columns)
        with pytest.raises(RewardLoadError, match="expected whole groups, and 1 of the 2 rows of group '1' match"):
            pool.score(["p"] * 3, ["x"] * 3, columns, groups=[0, 1, 1])
        found = pool.score(["p"] * 3, ["x", "xx", "x"], columns, groups=[0, 0, 1])
        assert [v.status for v in found] == [OK, OK, NOT_APPLICABLE]
        with pytest.raises(ValueError, match="'groups': expected 3 values"):
            pool.score(["p"] * 3, ["x"] * 3, columns, groups=[0, 0])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_any_grouping(ranked, groups):
    texts = [chr(97 + i) * (i + 1) for i in range(len(groups))]
    found = ranked.score(["p"] * len(groups), texts, groups=groups)
    for row, group in enumerate(groups):
        mine = [i for i, other in enumerate(groups) if other == group]
        assert found[row].score == mine.index(row)
        assert found[row].detail == ",".join(texts[i] for i in mine)


# --- in records -----------------------------------------------------------------------------------------------------


def test_raw_parts_stand_beside_the_reward_in_rollout_records():
    read = parts(f=0.1, m={"weight": 0.9, "needs": "f"}, p={"clip": [0, 1]})
    rollout = Rollout(
        np.arange(2, dtype=np.int32),
        np.ones(2, dtype=bool),
        np.zeros(2, dtype=np.float32),
        np.zeros(2, dtype=np.int32),
        "stop",
        "text",
    )
    prompt = Prompt("p0", (), np.arange(2, dtype=np.int32), "question")
    composed = (
        compose(dict(zip(read, said(0, 1, 7), strict=True)), read),
        compose(dict(zip(read, said(1, 1, ERROR), strict=True)), read),
    )
    scored = ScoredGroup(RolloutGroup(prompt, (rollout, rollout), step=0), composed)
    first, second = rollout_records(scored, 0)
    assert (first["reward"], json.loads(first["parts"])) == (1.0, {"f": 0.0, "m": 1.0, "p": 7.0})
    assert (second["reward"], second["status"], json.loads(second["parts"])) == (None, ERROR, {"f": 1.0, "m": 1.0})
