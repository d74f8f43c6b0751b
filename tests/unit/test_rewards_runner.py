"""The pool of child processes: deadlines, deaths, contexts, what is passed in and what comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from rewards.base import ERROR, NOT_APPLICABLE, OK, TIMEOUT, RewardLoadError
from rewards.runner import RewardPool

FUNCTIONS = '''
import asyncio, os, signal, subprocess, sys, threading, time
from rewards.base import Verdict, rowwise

def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]

def behave(prompts, completions, mode):
    """Whole batches; each row does what column `mode` says."""
    return [act(m) for m in mode]

@rowwise
def behave_by_row(completions, mode):
    return [act(m) for m in mode]

def act(mode):
    if mode == "raise":
        raise KeyError("no such key")
    elif mode == "sleep":
        time.sleep(600)
    elif mode == "spin":
        while True: pass
    elif mode == "stubborn":  # swallows the soft signal and ignores every other that it can
        for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(name, signal.SIG_IGN)
        while True: pass
    elif mode == "exit":
        os._exit(3)
    elif mode == "sys.exit":
        sys.exit(0)
    elif mode == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "nap":
        time.sleep(0.6)
    elif mode == "daemon":  # a grandchild in a session of its own, that keeps its pipes
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        time.sleep(600)
    elif mode == "nan":
        return float("nan")
    elif mode == "none":
        return None
    return 1.0

async def slow_async(completions):
    await asyncio.sleep(0.01)
    return [0.5] * len(completions)

def wrong_count(completions, **columns): return [1.0]
def scalar(completions, **columns): return 0.5
def booleans(completions, **columns): return [True for _ in completions]

def noisy(completions, **columns):
    print("to stdout, {not json}")
    print("to stderr", file=sys.stderr)
    os.write(1, b"straight to descriptor 1\\n")
    return [1.0] * len(completions)

def context(completions, **columns):
    main = threading.current_thread() is threading.main_thread()
    signal.signal(signal.SIGALRM, lambda *_: None)   # only the main thread may
    loaded = ["ray" in sys.modules, "torch" in sys.modules]
    return [Verdict(float(main), detail=f"{os.getpid()} {loaded[0]} {loaded[1]}")] * len(completions)

def everything(prompts, completions, answer, completion_ids, trainer_state, log_extra, log_metric, **rest):
    log_extra("seen", [f"{p}|{c}|{a}" for p, c, a in zip(prompts, completions, answer)])
    log_metric("rows", len(completions))
    assert sorted(rest) == ["level"]
    return [float(len(ids) + trainer_state.global_step) for ids in completion_ids]

def narrow(completions, answer):
    return [float(c == a) for c, a in zip(completions, answer)]

def messages(prompts, completions):
    return [float(isinstance(c, list) and c[0] == {"role": "assistant", "content": "hi"}) for c in completions]

@rowwise
def rows_seen(completions):
    return [float(len(completions))] * len(completions)
'''


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture
def pool(functions):
    """``pool(name, ...)``: a pool of functions of the file, closed at the end, with no process left."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    pools = []

    def make(*names: str, num_processes: int = 2, timeout_s: float = 1.0) -> RewardPool:
        pools.append(RewardPool({f"{functions}:{n}": 1.0 for n in names}, num_processes, timeout_s))
        return pools[-1]

    yield make
    for made in pools:
        made.close()
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert left == []


def descendants(pool: RewardPool) -> list[psutil.Process]:
    return psutil.Process(pool.pids()[0]).children(recursive=True)


def assert_whole(pool: RewardPool) -> None:
    """As many processes as at the start, all idle, none a zombie."""
    assert pool.num_idle == pool.num_processes
    processes = descendants(pool)
    assert [p.status() for p in processes if p.status() == psutil.STATUS_ZOMBIE] == []
    assert {p.pid for p in processes} == set(pool.pids()[1:])


# --- one bad row has one bad status ---------------------------------------------------------------------------------

MODES = ["ok", "raise", "sleep", "ok", "spin", "exit", "segfault", "sys.exit", "stubborn", "nan", "none", "ok"]
STATUS = {
    "ok": OK,
    "raise": ERROR,
    "sleep": TIMEOUT,
    "spin": TIMEOUT,
    "stubborn": TIMEOUT,
    "exit": ERROR,
    "segfault": ERROR,
    "sys.exit": ERROR,
    "nan": ERROR,
    "none": NOT_APPLICABLE,
}


@pytest.mark.parametrize(("name", "num_processes"), [("behave", 1), ("behave_by_row", 1), ("behave_by_row", 2)])
def test_one_bad_row_has_one_bad_status(pool, name, num_processes):
    made = pool(name, num_processes=num_processes, timeout_s=0.8)
    verdicts = made.score(["p"] * len(MODES), ["c"] * len(MODES), {"mode": MODES})
    assert [v.status for v in verdicts] == [STATUS[mode] for mode in MODES]
    assert [v.score for v in verdicts] == [float(mode == "ok") for mode in MODES]
    assert_whole(made)
    again = made.score(["p"] * 3, ["c"] * 3, {"mode": ["ok"] * 3})
    assert [v.score for v in again] == [1.0, 1.0, 1.0]


def test_details_say_where(pool, functions):
    made = pool("behave", timeout_s=0.5)
    modes = ["raise", "sleep", "stubborn", "exit", "segfault"]
    details = [v.detail for v in made.score(["p"] * 5, ["c"] * 5, {"mode": modes})]
    line = 1 + FUNCTIONS[: FUNCTIONS.index('raise KeyError("no such key")')].count("\n")
    assert f'File "{functions}", line {line}, in act' in details[0]
    assert details[0].endswith("KeyError: 'no such key'")
    line = 1 + FUNCTIONS[: FUNCTIONS.index("time.sleep(600)")].count("\n")
    assert f"{functions}:{line} (act)" in details[1]
    assert "killed" in details[2]
    assert "exit code 3" in details[3]
    assert "SIGSEGV" in details[4]
    first = made.first_tracebacks["behave"]
    assert first.startswith("Traceback")
    assert str(functions) in first


def test_a_whole_batch_that_hangs_is_graded_row_by_row(pool):
    made = pool("behave", num_processes=1, timeout_s=0.5)
    modes = ["ok"] * 20 + ["sleep"] + ["ok"] * 20
    verdicts = made.score(["p"] * 41, ["c"] * 41, {"mode": modes})
    assert [i for i, v in enumerate(verdicts) if v.status != OK] == [20]
    assert_whole(made)


def test_slow_rows_do_not_hold_up_the_rows_behind_them(pool):
    """Eight rows of 0.6 s within a deadline of 5 s end as ok, though each lost its place in the pool."""
    made = pool("behave_by_row", num_processes=1, timeout_s=5.0)
    modes = ["nap", "ok"] * 8
    verdicts = made.score(["p"] * 16, ["c"] * 16, {"mode": modes})
    assert [v.status for v in verdicts] == [OK] * 16
    assert made.num_restarts > 0
    assert_whole(made)


def test_many_timeouts_leave_no_process(pool):
    made = pool("behave_by_row", num_processes=2, timeout_s=0.2)
    modes = ["stubborn", "sleep", "exit", "ok"] * 4
    verdicts = made.score(["p"] * 16, ["c"] * 16, {"mode": modes})
    assert [v.status for v in verdicts] == [TIMEOUT, TIMEOUT, ERROR, OK] * 4
    assert_whole(made)


def test_what_a_reward_started_dies_with_it(pool):
    made = pool("behave", num_processes=1, timeout_s=0.4)
    (verdict,) = made.score(["p"], ["c"], {"mode": ["daemon"]})
    assert verdict.status == TIMEOUT
    assert_whole(made)  # neither the worker nor its daemon


# --- results that are no results ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong_count", "expected 3 scores, one a row, got 1"),
        ("scalar", "a single value is not spread over the rows"),
        ("booleans", "expected a finite float, None or a Verdict, got True (bool); write float(...)"),
    ],
)
def test_results_against_the_contract(pool, name, words):
    verdicts = pool(name).score(["p"] * 3, ["c"] * 3)
    assert [v.status for v in verdicts] == [ERROR] * 3
    assert all(words in v.detail and name in v.detail and f"row {row}" in v.detail for row, v in enumerate(verdicts))


def test_an_absent_column_is_named(pool):
    made = pool("narrow")
    verdicts = made.score(["p"], ["c"], {"solution": ["c"]})
    assert verdicts[0].status == ERROR
    assert "needs the column answer; the rows have solution" in verdicts[0].detail


# --- what functions are given ---------------------------------------------------------------------------------------


def test_functions_get_what_they_name(pool):
    made = pool("everything", "narrow")
    scored = made.score_detailed(
        ["p0", "p1"],
        ["a", "b"],
        {"answer": ["a", "x"], "level": [1, 2]},
        completion_ids=[[1, 2, 3], [1]],
        trainer_state={"global_step": 10},
    )
    assert [list(v.parts.values()) for v in scored.verdicts] == [[13.0, 1.0], [11.0, 0.0]]
    assert scored.extras == {"seen": ["p0|a|a", "p1|b|x"]}
    assert scored.metrics == {"rows": 2.0}


def test_message_prompts_give_message_completions(pool):
    made = pool("messages")
    prompts = [[{"role": "user", "content": "hello"}], "hello"]
    assert [v.score for v in made.score(prompts, ["hi", "hi"])] == [1.0, 0.0]
    already = [[{"role": "assistant", "content": "hi"}]]
    assert [v.score for v in made.score(["hello"], already)] == [1.0]


def test_async_functions(pool):
    assert [v.score for v in pool("slow_async").score(["p"] * 3, ["c"] * 3)] == [0.5] * 3


def test_rowwise_functions_see_one_row(pool):
    assert [v.score for v in pool("rows_seen").score(["p"] * 100, ["c"] * 100)] == [1.0] * 100


def test_weights_and_no_rows(functions):
    weights = {f"{functions}:length": 0.5, f"{functions}:slow_async": -1.0}
    with RewardPool(weights) as made:
        (verdict,) = made.score(["p"], ["four"])
        assert verdict.score == pytest.approx(0.5 * 4 - 0.5)
        assert made.score([], []) == []


def test_prints_do_not_corrupt_the_protocol(pool, capfd):
    verdicts = pool("noisy").score(["p"] * 2, ["c"] * 2)
    assert [v.score for v in verdicts] == [1.0, 1.0]
    told = capfd.readouterr()
    assert told.out == ""
    for words in ("{not json}", "to stderr", "descriptor 1"):
        assert words in told.err


@pytest.mark.parametrize("columns", [{"answer": ["a"]}, {"answer": "ab"}, {"prompts": ["a", "b"]}])
def test_columns_of_another_length_are_refused(pool, columns):
    made = pool("length")
    with pytest.raises(ValueError, match=r"expected 2 values|supplied by the platform"):
        made.score(["p", "p"], ["c", "c"], columns)
    with pytest.raises(ValueError, match="'prompts': expected 2 values"):
        made.score(["p"], ["c", "c"])


# --- where it is called, and who dies -------------------------------------------------------------------------------


def test_same_scores_from_main_thread_thread_and_event_loop(pool):
    made = pool("context", "behave", timeout_s=1.5)
    rows = (["p"] * 4, ["c"] * 4, {"mode": ["ok", "raise", "sleep", "ok"]})

    def outcome():
        return [(v.score, v.status, v.parts) for v in made.score(*rows)]

    async def in_loop():
        return outcome(), await asyncio.get_running_loop().run_in_executor(None, outcome)

    here = outcome()
    there: list[object] = []
    thread = threading.Thread(target=lambda: there.append(outcome()))
    thread.start()
    thread.join(timeout=30)
    assert here[0][:2] == (2.0, OK)
    assert there == [here]
    assert asyncio.run(in_loop()) == (here, here)


def test_functions_run_in_the_main_thread_of_a_clean_process(pool):
    (verdict,) = pool("context").score(["p"], ["c"])
    pid, has_ray, has_torch = verdict.detail.split()
    assert (verdict.score, has_ray, has_torch) == (1.0, "False", "False")
    assert int(pid) != os.getpid()


def test_threads_share_a_pool(pool):
    made = pool("behave_by_row", "length", num_processes=2, timeout_s=0.6)
    results: dict[int, list[object]] = {}

    def work(thread: int) -> None:
        modes = ["ok", "sleep", "raise", "ok"]
        verdicts = made.score(["p"] * 4, ["c" * thread] * 4, {"mode": modes})
        results[thread] = [(v.score, v.status) for v in verdicts]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == {i: [(1.0 + i, OK), (0.0, TIMEOUT), (0.0, ERROR), (1.0 + i, OK)] for i in range(6)}
    assert_whole(made)


def test_an_idle_worker_that_was_killed_is_replaced(pool):
    made = pool("length", num_processes=2)
    for pid in made.pids()[1:]:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert [v.score for v in made.score(["p"] * 5, ["abc"] * 5)] == [3.0] * 5
    made.score(["p"], ["abc"])


def test_a_killed_fork_server_costs_no_row(pool):
    made = pool("behave_by_row", num_processes=2, timeout_s=5.0)
    server = made.pids()[0]
    threading.Timer(0.3, os.kill, (server, signal.SIGKILL)).start()
    verdicts = made.score(["p"] * 4, ["c"] * 4, {"mode": ["nap"] * 4})
    assert [v.status for v in verdicts] == [OK] * 4
    assert made.pids()[0] != server
    assert_whole(made)


def test_close_ends_every_process_and_forbids_scoring(pool):
    made = pool("length")
    processes = [psutil.Process(pid) for pid in made.pids()]
    made.close()
    made.close()
    assert [p for p in processes if p.is_running()] == []
    with pytest.raises(RuntimeError, match="closed"):
        made.score(["p"], ["c"])


def test_children_die_with_a_killed_parent(functions):
    code = (
        "import threading, time\nfrom rewards.runner import RewardPool\n"
        f"pool = RewardPool({{'{functions}:behave': 1.0}}, 2, 600.0)\n"
        "print(*pool.pids(), flush=True)\n"
        "pool.score(['p'], ['c'], {'mode': ['stubborn']})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(processes) == 3
    time.sleep(0.2)
    parent.kill()
    parent.wait(timeout=10)
    parent.stdout.close()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\nif os.environ.get('IN_CHILD'):\n    os._exit(9)\ndef fn(completions): return []\n", "exit code 9"),
        ("import os\nif os.environ.get('IN_CHILD'):\n    1 / 0\ndef fn(completions): return []\n", "ZeroDivisionError"),
    ],
)
def test_a_function_that_loads_only_in_the_driver(tmp_path, monkeypatch, source, words):
    path = tmp_path / f"only_here_{len(source)}.py"
    path.write_text(source)
    from rewards.base import resolve

    resolve(f"{path}:fn")
    monkeypatch.setenv("IN_CHILD", "1")
    with pytest.raises(RewardLoadError, match=words):
        RewardPool({f"{path}:fn": 1.0})


def test_arguments_are_checked(functions):
    with pytest.raises(RewardLoadError, match="at least one"):
        RewardPool({})
    with pytest.raises(ValueError, match="num_processes >= 1"):
        RewardPool({"math": 1.0}, 0)
    with pytest.raises(RewardLoadError, match="did you mean 'length'"):
        RewardPool({f"{functions}:lenght": 1.0})


# --- TRL's own functions --------------------------------------------------------------------------------------------


def test_trl_functions_run_unchanged():
    completions = [
        r"<think>1/3</think>My answer is \boxed{\frac{1}{3}}",
        r"My answer is \boxed{\frac{1}{2}}",
        r"My answer is \boxed{\frac{1}{3}}",
    ]
    prompts = [[{"role": "user", "content": "a third?"}]] * 3
    columns = {"solution": [r"$\frac{1}{3}$", r"$\frac{1}{3}$", ""]}
    weights = {"trl.rewards:accuracy_reward": 1.0, "trl.rewards:think_format_reward": 0.5}
    with RewardPool(weights, num_processes=1, timeout_s=20.0) as made:
        scored = made.score_detailed(prompts, completions, columns)
    assert [v.score for v in scored.verdicts] == [1.5, 0.0, 0.0]
    assert [v.status for v in scored.verdicts] == [OK] * 3
    assert "accuracy_reward" not in scored.verdicts[2].parts  # None: no gold to compare with
    assert scored.extras["gold_parsed"][2] == "[unparseable]"
