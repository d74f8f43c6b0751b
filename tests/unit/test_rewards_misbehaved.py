"""Functions that would make a score wrong without anybody noticing, and what they get instead."""

from __future__ import annotations

import pytest

from actors.reward_versions import versions
from rewards.base import ERROR, OK, TIMEOUT, RewardLoadError, resolve
from rewards.composition import read_parts
from rewards.runner import RewardPool

FUNCTIONS = r'''
import asyncio, os, time
import numpy as np
from rewards.base import Verdict, groupwise, rowwise

def spin_if(text):
    if text == "slow":
        end = time.monotonic() + 30
        while time.monotonic() < end: pass
    return 1.0

def swallows(completions, **columns):
    """Takes every exception for a wrong answer, its own deadline too."""
    scores = []
    for text in completions:
        try:
            scores.append(spin_if(text))
        except:
            scores.append(0.0)
    return scores

@rowwise
def swallows_by_row(completions, **columns): return swallows(completions)

@groupwise
def swallows_by_group(completions, **columns): return swallows(completions)

@rowwise
async def swallows_async(completions, **columns): return swallows(completions)

@rowwise
def renames(completions, **columns):
    try:
        return [spin_if(completions[0])]
    except BaseException as error:
        raise ValueError("no answer") from error

@rowwise
async def renames_async(completions, **columns): return renames(completions)

class Mute:
    def __repr__(self): return 5

UNTELLABLE = {
    "huge": lambda: 10**400,
    "parts": lambda: Verdict(1.0, parts={"a": "much"}),
    "detail": lambda: Verdict(1.0, detail=None),
    "mute": Mute,
}

def answers(completions, **columns):
    return [UNTELLABLE[text]() if text in UNTELLABLE else 1.0 for text in completions]

@rowwise
async def answers_async(completions, **columns): return answers(completions)

def logs(completions, log_extra, **columns):
    loop = []
    loop.append(loop)
    values = {"int": np.int64(3), "half": np.float32(0.5), "list": np.arange(2), "pair": {(1, 2): {3}}, "loop": loop}
    log_extra("seen", [values[text] for text in completions])
    return [1.0] * len(completions)

@rowwise
def breaks_text(completions, log_extra, **columns):
    log_extra("\udcff", ["\ud800"])
    if completions[0] == "raise":
        raise ValueError("cannot open b\udcff.txt")
    return [Verdict(1.0, detail="half: \ud83d", parts={"\ud83d": 1.0})]

def dies_of_a_signal_without_a_name(completions, **columns):
    os.kill(os.getpid(), 40)

class Ours(BaseException): pass

def raises(completions, **columns):
    kinds = {"cancel": asyncio.CancelledError, "close": GeneratorExit, "ours": Ours}
    if completions[0] in kinds:
        raise kinds[completions[0]]("no answer")
    return [1.0] * len(completions)

@rowwise
async def raises_async(completions, **columns):
    if completions[0] == "cancels itself":
        asyncio.current_task().cancel()
    await asyncio.sleep(0)
    return raises(completions)

def lenient(completions, *, strict=False, answer): return [0.0 if strict else 1.0] * len(answer)
def open_to_all(completions, strict=None): return [float(strict[0])]

def forks(completions, **columns):
    if os.fork() == 0:
        return [0.0] * len(completions)   # the child forgets to exit
    os.wait()
    return [1.0] * len(completions)

def changes_what_it_is_given(prompts, completions, tests, **columns):
    scores = []
    for prompt, completion, test in zip(prompts, completions, tests):
        prompt += completion
        scores.append(len(prompt) + 10.0 * test.pop("weight", 0))
    return scores

@rowwise
def changes_by_row(**columns): return changes_what_it_is_given(**columns)
'''


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "misbehaved.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture
def pool(path):
    pools = []

    def make(name, **settings):
        pools.append(RewardPool({f"{path}:{name}": 1.0}, **{"timeout_s": 1.0, **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def statuses(verdicts):
    return [verdict.status for verdict in verdicts]


@pytest.mark.parametrize("name", ["swallows", "swallows_by_row", "swallows_async", "renames", "renames_async"])
def test_a_deadline_that_the_function_takes_for_its_own_exception_is_a_timeout(pool, name):
    verdicts = pool(name).score(["q"] * 3, ["fast", "slow", "fast"])
    assert statuses(verdicts) == [OK, TIMEOUT, OK], verdicts
    assert [v.score for v in verdicts] == [1.0, 0.0, 1.0]
    assert "past its deadline" in verdicts[1].detail


def test_a_group_that_swallows_its_deadline_is_a_timeout(pool):
    verdicts = pool("swallows_by_group").score(["q"] * 4, ["fast", "slow", "fast", "fast"], groups=[0, 0, 1, 1])
    assert statuses(verdicts) == [TIMEOUT, TIMEOUT, OK, OK]


@pytest.mark.parametrize("name", ["answers", "answers_async"])
@pytest.mark.parametrize(
    ("text", "words"),
    [("huge", "OverflowError"), ("parts", "much"), ("detail", "Verdict.detail: expected a text"), ("mute", "__repr__")],
)
def test_a_value_that_cannot_be_told_is_an_error_of_its_row(pool, name, text, words):
    grader = pool(name, timeout_s=20.0)
    scored = grader.score_detailed(["q"] * 3, ["fine", text, "fine"])
    assert statuses(scored.verdicts) == [OK, ERROR, OK]
    assert words in scored.verdicts[1].detail
    assert name in scored.verdicts[1].detail
    assert words in scored.tracebacks[name]
    assert grader.num_restarts == 0


def test_extras_arrive_as_numbers_and_lists(pool):
    scored = pool("logs").score_detailed(["q"] * 4, ["int", "half", "list", "pair"])
    assert statuses(scored.verdicts) == [OK] * 4
    assert scored.extras["seen"] == [3, 0.5, [0, 1], {"(1, 2)": [3]}]


def test_an_extra_without_an_end_is_an_error(pool):
    verdicts = pool("logs").score(["q"] * 2, ["int", "loop"])
    assert statuses(verdicts) == [OK, ERROR]


def test_halves_of_characters_become_text_that_a_file_takes(pool):
    """A run writes details to parquet and tracebacks to a text file; both refuse what is no UTF-8."""
    scored = pool("breaks_text").score_detailed(["q"] * 3, ["a\ud800", "raise", ""])
    assert statuses(scored.verdicts) == [OK, ERROR, OK]
    assert scored.verdicts[0].detail == "half: \\ud83d"
    assert "cannot open b\\udcff.txt" in scored.verdicts[1].detail
    assert scored.tracebacks["breaks_text"].encode()
    assert scored.verdicts[0].parts == {"breaks_text": 1.0, "breaks_text/\\ud83d": 1.0}
    assert scored.extras == {"\\udcff": ["\\ud800"] * 3}


def test_a_signal_without_a_name_ends_one_row(pool):
    (verdict,) = pool("dies_of_a_signal_without_a_name").score(["q"], ["a"])
    assert (verdict.status, verdict.detail) == (ERROR, "the reward process died while grading: signal 40")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("raises", ["cancel", "close", "ours"]), ("raises_async", ["cancel", "close", "ours", "cancels itself"])],
)
def test_whatever_is_raised_is_an_error_of_its_row(pool, name, kinds):
    """A library may cancel a request of its own; that is neither our deadline nor a dead process."""
    grader = pool(name, timeout_s=20.0)
    verdicts = grader.score(["q"] * (2 * len(kinds)), [text for kind in kinds for text in (kind, "fine")])
    assert statuses(verdicts) == [ERROR, OK] * len(kinds)
    for kind, verdict in zip(kinds, verdicts[::2], strict=True):
        assert {"close": "GeneratorExit", "ours": "Ours"}.get(kind, "CancelledError") in verdict.detail
    assert grader.num_restarts == 0


def test_no_column_becomes_a_setting(pool):
    """A column of flags is a list, and a list is true."""
    grader = pool("lenient")
    assert grader.score(["q"], ["a"], {"answer": ["x"]})[0].score == 1.0
    with pytest.raises(RewardLoadError, match=r"lenient: strict is a column of the rows.* rename the column"):
        grader.score(["q"], ["a"], {"answer": ["x"], "strict": [False]})
    assert pool("open_to_all").score(["q"], ["a"], {"strict": [False]})[0].score == 0.0


def test_a_fork_that_comes_back_says_nothing(pool):
    grader = pool("forks")
    for _ in range(3):
        assert [(v.score, v.status) for v in grader.score(["q"] * 2, ["a", "b"])] == [(1.0, OK)] * 2


@pytest.mark.parametrize("name", ["changes_what_it_is_given", "changes_by_row"])
def test_rows_share_nothing_that_a_function_may_change(pool, name):
    """All rollouts of a group come with one prompt object and one object a column."""
    prompt, test = [{"role": "user", "content": "q"}], {"weight": 1}
    verdicts = pool(name).score([prompt] * 12, ["a"] * 12, {"tests": [test] * 12})
    assert [(v.score, v.status) for v in verdicts] == [(12.0, OK)] * 12, verdicts
    assert (len(prompt), test) == (1, {"weight": 1})


@pytest.mark.parametrize(
    "change", [lambda file: file.write_text("def f(completions): return [7.0]"), lambda file: file.unlink()]
)
def test_a_file_that_changes_while_it_grades_changes_no_score(tmp_path, change):
    """Processes that are forked later, for a row that died or was slow, load what the first ones loaded."""
    file = tmp_path / "edited.py"
    file.write_text("import os\ndef f(completions): return [os._exit(1) if t == 'die' else 1.0 for t in completions]\n")
    with RewardPool({f"{file}:f": 1.0}) as pool:
        assert [v.score for v in pool.score(["q"], ["a"])] == [1.0]
        change(file)
        verdicts = pool.score(["q"] * 3, ["a", "die", "b"])
    assert [(v.score, v.status) for v in verdicts] == [(1.0, OK), (0.0, ERROR), (1.0, OK)]


def test_a_judge_whose_prompt_file_changes_is_another_grader(tmp_path):
    prompt = tmp_path / "prompt.txt"
    args = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "prompt": str(prompt)}
    parts = read_parts({"judge": {"args": args}})
    known = []
    for text in ("Rate {answer}", "Rate {answer}", "Rate {answer} well"):
        prompt.write_text(text)
        known.append(versions(parts, {"judge": resolve("judge")}, {})["functions"]["judge"]["settings"])
    assert known[0] == known[1] != known[2]
