"""Benchmarks measured with a made-up engine: one code path, the same numbers in any order, sweeps, ThinkFollow."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model.messages import render_chat
from model.tokenizer import train_bpe
from rewards.base import Verdict, resolve
from rewards.composition import compose, read_parts
from rlplatform.cli import app
from rlplatform.config import BenchmarksConfig, ConfigError, DataConfig, ModelConfig, RewardConfig
from rlplatform.data import load_prompts
from rlplatform.evaluation import results, suite, think_follow
from rlplatform.evaluation.benchmarks import BENCHMARKS
from rlplatform.evaluation.budget_sweep import Point, check, plot, token_counts, with_budget
from rlplatform.evaluation.page import table
from rlplatform.evaluation.rows import files_of, rows_of, write_rows
from rlplatform.evaluation.runner import Evaluation
from rlplatform.launch import evaluator
from rlplatform.runs import RunFolder
from rlplatform.tasks.general.inhouse.thinkfollow import golden, prompt_of
from rlplatform.types import GenerationRequest, Prompt, Rollout, RolloutGroup, SamplingParams, ScoredGroup

NO_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = ["What is 347 + 285? answer question thought", "\n\n\n", "user assistant system"] * 9
    return train_bpe(texts, 340, tmp_path_factory.mktemp("tokenizer"))


def rollout(tokenizer: Any, text: str, *, inserted: str = "") -> Rollout:
    """A completion of ``text``, behind which ``inserted`` was given and a digit sampled."""
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, inserted, "7" if inserted else "")]
    mask = np.array([True] * len(ids[0]) + [False] * len(ids[1]) + [True] * len(ids[2]))
    token_ids = np.array([*ids[0], *ids[1], *ids[2]], dtype=np.int32)
    logprobs = np.where(mask, -0.5, np.nan).astype(np.float32)
    return Rollout(token_ids, mask, logprobs, np.zeros(len(mask), dtype=np.int32), "stop", text + inserted)


class Engine:
    """Its answers follow from a request's seed and budget alone; they come in any order, in batches of any size."""

    def __init__(self, tokenizer: Any, *, order: int = 0, batch: int = 1000) -> None:
        self.tokenizer, self.order, self.batch = tokenizer, np.random.default_rng(order), batch
        self.asked: list[tuple[GenerationRequest, SamplingParams]] = []

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> list[RolloutGroup]:
        self.asked += [(request, sampling) for request in requests]
        groups = []
        for first in range(0, len(requests), self.batch):
            groups += [self.group(request) for request in requests[first : first + self.batch]]
        return [groups[place] for place in self.order.permutation(len(groups))]

    def group(self, request: GenerationRequest) -> RolloutGroup:
        budget = request.prompt.columns.get("thinking_budget")
        share = 0.3 if NO_THOUGHT in request.prompt.text else 0.9 if budget is None else min(0.2 + budget / 40, 0.9)
        rollouts = []
        for k in range(request.num_samples):
            right = np.random.default_rng(request.seed + k).random() < share
            answer = rf"\boxed{{{request.prompt.columns['answer'] if right else -1}}}"
            cut = budget is not None and budget < 16
            thought, end = ("", "") if NO_THOUGHT in request.prompt.text else ("<think>\nsum", "\n</think>\n\n")
            text = f"{thought}{end}{answer}"
            made = rollout(self.tokenizer, f"{thought}", inserted=end) if cut else rollout(self.tokenizer, text)
            rollouts.append(replace(made, text=text))
        return RolloutGroup(request.prompt, tuple(rollouts), request.step, request.index)


class Grader:
    """The benchmark's own functions, in this process."""

    def __init__(self, functions: dict[str, Any]) -> None:
        self.parts = read_parts(functions)

    def graders(self, prompt: Prompt) -> list[str]:
        return list(self.parts)

    def score(self, groups: Sequence[RolloutGroup], *, step: int) -> list[ScoredGroup]:
        return [ScoredGroup(group, tuple(self.verdict(group, one) for one in group.rollouts)) for group in groups]

    def verdict(self, group: RolloutGroup, one: Rollout) -> Verdict:
        columns = {name: [value] for name, value in group.prompt.columns.items()}
        said = {
            name: resolve(part.function)(
                prompts=[group.prompt.text], completions=[one.text], prompt_text=[group.prompt.text], **columns
            )[0]  # type: ignore[index]
            for name, part in self.parts.items()
        }
        return compose(said, self.parts)


def config_of(folder: Path, **values: Any) -> BenchmarksConfig:
    rows = [{"lang": lang, "question": f"{n} + {n}?", "answer": str(2 * n)} for lang in ("de", "en") for n in range(8)]
    path = write_rows(rows, folder / "mgsm.jsonl")
    settings = {"benchmarks": ("mgsm",), "num_samples": 4, "paths": {"mgsm": str(path)}, "seed": 5}
    return BenchmarksConfig(
        run_dir=str(folder / "run"),
        model=ModelConfig(path="none", max_model_len=4096),
        sampling={"max_new_tokens": 64},
        reward=RewardConfig(probe=False),
        **{**settings, **values},
    )


def run(config: BenchmarksConfig, tokenizer: Any, engine: Engine) -> dict[str, Any]:
    folder = RunFolder(config.run_dir)
    tasks = suite.prepare(config, tokenizer, folder)

    def measure(task: Any, prompts: Sequence[Prompt], sampling: SamplingParams, name: str) -> Evaluation:
        return evaluator(
            prompts,
            fleet=engine,  # type: ignore[arg-type]
            service=Grader(dict(task.reward.functions)),  # type: ignore[arg-type]
            sampling=sampling,
            num_samples=task.num_samples,
            metric=task.benchmark.metric,
            seed=config.seed,
            greedy=False,
            folder=RunFolder(folder.path / name),
        )(0)

    return suite.measure_all(config, tasks, tokenizer, measure=measure, generate=engine.generate, folder=folder)


# --- one code path --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_numbers_in_any_order_and_batching(tokenizer: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, budgets=(4,))
    found = [run(config, tokenizer, Engine(tokenizer, order=o, batch=b)) for o, b in ((0, 1000), (1, 3))]
    texts = [json.dumps(one, sort_keys=True) for one in found]
    assert texts[0] == texts[1]
    other = run(replace(config, seed=6), tokenizer, Engine(tokenizer))
    assert json.dumps(other["entries"][0]["categories"]) != json.dumps(found[0]["entries"][0]["categories"])


def test_evaluation_in_training_and_offline_agree(tokenizer: Any, tmp_path: Path) -> None:
    """``launch.evaluator`` is what a training run calls at its steps, `eval` once, and `benchmarks` for each entry."""
    config = config_of(tmp_path, modes=("thinking",))
    engine = Engine(tokenizer)
    entry = run(config, tokenizer, engine)["entries"][0]
    data = DataConfig(path=str(tmp_path / "run" / "rows" / "mgsm.jsonl"), max_prompt_tokens=4096)
    again = Engine(tokenizer, order=7)
    at_step = evaluator(
        load_prompts(data, tokenizer).prompts,
        fleet=again,  # type: ignore[arg-type]
        service=Grader({"math": 1.0}),  # type: ignore[arg-type]
        sampling=suite.sampling_of(config, BENCHMARKS["mgsm"], "thinking"),
        num_samples=4,
        metric="math",
        seed=5,
        greedy=False,
        folder=RunFolder(tmp_path / "rl"),
    )
    metrics = at_step(30).metrics  # a later step of a run: the seeds of held-out problems are those of step 0
    assert {f"eval/{name}": entry[name] for name in ("accuracy", "accuracy_ci95", "pass_at_4")} == {
        name: metrics[name] for name in ("eval/accuracy", "eval/accuracy_ci95", "eval/pass_at_4")
    }
    assert [(r.seed, r.prompt.text, s) for r, s in engine.asked] == [(r.seed, r.prompt.text, s) for r, s in again.asked]


def test_entries_have_both_modes_categories_and_what_they_were_measured_with(tokenizer: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    engine = Engine(tokenizer)
    thinking, plain = run(config, tokenizer, engine)["entries"]
    assert (thinking["mode"], plain["mode"]) == ("thinking", "non_thinking")
    assert (thinking["problems"], thinking["num_samples"]) == (16, 4)
    assert set(thinking["categories"]) == {"de", "en"}
    halves = [thinking["categories"][lang]["accuracy"] for lang in ("de", "en")]
    assert thinking["accuracy"] == pytest.approx(sum(halves) / 2)
    assert thinking["accuracy"] > plain["accuracy"]
    assert thinking["verdicts"] == {"ok": 64}
    assert (thinking["sampling"]["temperature"], plain["sampling"]["temperature"]) == (0.6, 0.7)
    assert (thinking["sampling"]["top_p"], plain["sampling"]["top_p"]) == (0.95, 0.8)
    assert (thinking["sampling"]["presence_penalty"], plain["sampling"]["presence_penalty"]) == (0.0, 1.5)
    assert thinking["data"] == plain["data"] == results.file_hash(tmp_path / "run" / "rows" / "mgsm.jsonl")
    assert thinking["thinking_tokens"] > 0 == plain["thinking_tokens"]
    assert thinking["report"] is None  # the report has no figure of 32B here
    texts = {request.prompt.text for request, _ in engine.asked}
    assert sum(text.endswith(NO_THOUGHT) for text in texts) == 8  # both languages ask the same here
    frame = RunFolder(tmp_path / "run" / "mgsm-thinking").read_rollouts("eval")
    assert len(frame) == 64


def test_prompts_that_are_too_long_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, modes=("thinking",))
    rows = [{"lang": "en", "question": "What? " * n, "answer": "1"} for n in (1, 400)]
    write_rows(rows, tmp_path / "mgsm.jsonl")
    entry = run(replace(config, max_prompt_tokens=500), tokenizer, Engine(tokenizer))["entries"][0]
    assert (entry["problems"], entry["left_out"]) == (1, 1)
    (row,) = results.table_rows({"entries": [entry]})
    assert row[5] == "1 left out"


def scored(said: Sequence[Verdict], category: str = "") -> ScoredGroup:
    prompt = Prompt("p", (), np.array([1], dtype=np.int32), "p", {"category": category})
    zeros = np.zeros(1, dtype=np.int32)
    one = Rollout(zeros, zeros.astype(bool), zeros.astype(np.float32), zeros, "stop", "x")
    return ScoredGroup(RolloutGroup(prompt, (one,) * len(said), 0), tuple(said))


def test_verdicts_that_are_not_ok_are_shown_and_controls_do_not_count() -> None:
    right, wrong = Verdict(1.0, parts={"counterfact": 1.0}), Verdict(0.0, parts={"counterfact": 0.0})
    groups = (
        scored([right, right], "place"),
        scored([right, Verdict(0.0, "timeout")], "place"),
        scored([right], "property"),  # one sample was rejected
        scored([wrong, wrong], "control"),
    )
    benchmark = BENCHMARKS["counterfactqa"]
    found = results.record(benchmark, Evaluation({}, groups, ()), metric="counterfact", num_samples=2)
    assert found["accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found["pass_at_2"] == 1.0
    assert found["problems"] == 3
    assert found["verdicts"] == {"ok": 6, "rejected": 1, "timeout": 1}
    assert found["categories"]["control"]["accuracy"] == 0.0
    assert found["categories"]["place"]["accuracy"] == pytest.approx(0.75)
    entry = {"benchmark": "counterfactqa", "mode": "thinking", "report": 68.1, **found}
    (row,) = results.table_rows({"entries": [entry]})
    assert row == ("counterfactqa", "thinking", "3 x 2", row[3], "100.0% (k=2)", "1 rejected, 1 timeout", "68.1%")


# --- budgets --------------------------------------------------------------------------------------------------------


def test_a_sweep_asks_the_same_problems_with_the_same_seeds(tokenizer: Any, tmp_path: Path) -> None:
    engine = Engine(tokenizer)
    found = run(config_of(tmp_path, modes=("non_thinking",), budgets=(32, 0, 8)), tokenizer, engine)
    assert [(e["mode"], e["budget"]) for e in found["entries"]] == [
        ("non_thinking", None),
        ("thinking", 0),
        ("thinking", 8),
        ("thinking", 32),
    ]
    sweep = found["sweeps"]["mgsm"]
    assert sweep["monotone"]
    assert sweep["rise"] == pytest.approx(found["entries"][3]["accuracy"] - found["entries"][1]["accuracy"])
    assert [e["cut_share"] for e in found["entries"]] == [0, 1, 1, 0]
    assert found["entries"][1]["inserted_tokens"] > 0 == found["entries"][3]["inserted_tokens"]
    assert (tmp_path / "run" / "report" / "budget_mgsm.png").stat().st_size > 1000
    by_budget: dict[int, list[int]] = {}
    for request, sampling in engine.asked:
        assert sampling.thinking_budget is None  # the column says it, so that one engine serves all
        if "thinking_budget" in request.prompt.columns:
            by_budget.setdefault(request.prompt.columns["thinking_budget"], []).append(request.seed)
    assert by_budget[0] == by_budget[8] == by_budget[32]


def test_monotonicity_by_hand() -> None:
    """Four problems; differences 0, 0, .5, .5 (mean .25, s = .2887), then a sure drop of 1 in all."""
    means = {8: [0, 0, 0.5, 0.5], 16: [0, 0, 1, 1], 32: [0, 0, 1, 0.5]}
    points = [Point(b, np.array(m, dtype=float), {}) for b, m in means.items()]
    found = check(points[::-1])
    assert found["steps"][0]["difference"] == pytest.approx(0.25)
    assert found["steps"][0]["ci95"] == pytest.approx(1.96 * np.sqrt(1 / 12) / 2)
    assert found["steps"][1]["difference"] == pytest.approx(-0.125)
    assert found["monotone"]  # the drop of one problem lies within its interval
    assert (found["rise"], found["steps"][1]["from"]) == (pytest.approx(0.125), 16)
    sure = [Point(1, np.array([1.0, 1, 1, 0.9]), {}), Point(2, np.array([0.0, 0, 0, 0]), {})]
    assert not check(sure)["monotone"]
    with pytest.raises(ValueError, match="same problems"):
        check([Point(1, np.zeros(3), {}), Point(2, np.zeros(4), {})])
    with pytest.raises(ValueError, match="different budgets"):
        check([Point(1, np.zeros(3), {}), Point(1, np.zeros(3), {})])


def test_tokens_of_thoughts_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    prompt = Prompt("p", (), np.array([1], dtype=np.int32), "p", {"thinking_budget": 3, "x": 1})
    assert [p.columns for p in with_budget([prompt], None)] == [{"x": 1}]
    assert [p.columns for p in with_budget([prompt], 0)] == [{"x": 1, "thinking_budget": 0}]
    stop = "\n</think>\n\n"
    cut, whole, plain = "<think>\nsum", "<think>\nsum\n</think>\n\n7", "7"
    rollouts = (rollout(tokenizer, cut, inserted=stop), rollout(tokenizer, whole), rollout(tokenizer, plain))
    found = token_counts([ScoredGroup(RolloutGroup(prompt, rollouts, 0), (Verdict(1.0),) * 3)], tokenizer, stop)
    length = {text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (cut, stop, whole, plain)}
    assert found["cut_share"] == pytest.approx(1 / 3)
    assert found["inserted_tokens"] == pytest.approx(length[stop] / 3)
    total = length[cut] + length[stop] + 1 + length[whole] + length[plain]
    assert found["thinking_tokens"] + found["inserted_tokens"] + found["answer_tokens"] == pytest.approx(total / 3)
    points = [Point(b, np.array([0.1, b / 40]), {}) for b in (8, 16)]
    assert plot(points, tmp_path / "a.png", title="t", non_thinking=(0.2, 0.05)).is_file()


# --- ThinkFollow ----------------------------------------------------------------------------------------------------


class Speaker(Engine):
    """Answers dialogues by a function of (row, turn)."""

    def __init__(self, tokenizer: Any, rows: Sequence[dict[str, Any]], answer: Any, order: int = 0) -> None:
        super().__init__(tokenizer, order=order)
        self.rows, self.answer = rows, answer

    def group(self, request: GenerationRequest) -> RolloutGroup:
        text = self.answer(self.rows[request.index], request.step)
        made = () if text is None else (replace(rollout(self.tokenizer, "x"), text=text),)
        return RolloutGroup(request.prompt, made, request.step, request.index)


def speak(tokenizer: Any, rows: Sequence[dict[str, Any]], answer: Any, **options: Any) -> Any:
    speaker = Speaker(tokenizer, rows, answer, options.pop("order", 0))
    settings = {"sampling": SamplingParams(max_new_tokens=32), "seed": 3, "max_model_len": 10**6, **options}
    driven = think_follow.drive(rows, tokenizer=tokenizer, generate=speaker.generate, **settings)
    return think_follow.summary(rows, driven), driven, speaker


ROWS = rows_of(BENCHMARKS["thinkfollow"], seed=1)


def test_there_are_300_dialogues_of_four_turns_with_every_sort_of_turn() -> None:
    assert len(ROWS) >= 300
    assert min(len(row["users"]) for row in ROWS) >= 4
    assert {sort for row in ROWS for sort in row["sorts"]} == {"flagged", "after_flag", "after_system_flag", "no_flag"}


def test_a_model_that_follows_scores_1_and_its_own_turns_stand_in_the_context(tokenizer: Any) -> None:
    rows = ROWS[:40]
    found, driven, speaker = speak(tokenizer, rows, lambda row, turn: golden(row)[0][turn])
    assert (found["accuracy"], found["per_dialogue"], found["problems"]) == (1.0, 1.0, 40)
    assert found["per_dialogue_interval"][0] == pytest.approx(40 / (40 + 1.959964**2))  # Wilson at p = 1
    assert found["turns"] == sum(len(row["users"]) for row in rows) == len(speaker.asked) == len(driven.groups)
    assert len({request.seed for request, _ in speaker.asked}) == len(speaker.asked)
    for request, _ in speaker.asked:
        row, turn = rows[request.index], request.step
        said = [{"role": "system", "content": row["system"]}] if row["system"] else []
        for user, reply in zip(row["users"][:turn], golden(row)[0], strict=False):
            said += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
        said.append({"role": "user", "content": row["users"][turn]})
        assert request.prompt.text == render_chat(tokenizer, said, add_generation_prompt=True)  # thoughts dropped
        assert request.prompt.text.endswith("<|im_start|>assistant\n")  # no block is opened or closed for it


def test_a_model_that_always_thinks_gets_the_share_of_turns_that_ask_for_it(tokenizer: Any) -> None:
    rows = ROWS[:60]
    found, _, _ = speak(tokenizer, rows, lambda row, turn: "<think>\nhm\n</think>\n\nyes")
    asked = [thinking for row in rows for thinking in row["thinking"]]
    assert found["accuracy"] == pytest.approx(np.mean(asked))
    assert found["per_dialogue"] == pytest.approx(np.mean([all(row["thinking"]) for row in rows]))
    assert found["categories"]["no_flag"]["accuracy"] == 1.0  # no flag means thinking
    assert sum(int(one["problems"]) for one in found["categories"].values()) == len(asked)


def test_the_interval_of_turns_is_over_dialogues() -> None:
    """Hits 4 of 4 and 0 of 4: one deviation of 2 a dialogue, so 1.96 * sqrt(2 * 8 / 64)."""
    share, half = think_follow._ratio(np.array([4.0, 0.0]), np.array([4.0, 4.0]))
    assert (share, half) == (0.5, pytest.approx(1.96 * 0.5))
    assert think_follow._ratio(np.array([1.0]), np.array([4.0])) == (0.25, 0.0)


def test_unclosed_thoughts_lost_samples_and_long_dialogues_count_as_not_followed(tokenizer: Any) -> None:
    rows = [row for row in ROWS if len(row["users"]) == 4][:3]

    def answer(row: dict[str, Any], turn: int) -> str | None:
        if row is rows[1] and turn == 2:
            return None
        return "<think>\nnever ends" if row is rows[0] else golden(row)[0][turn]

    found, driven, _ = speak(tokenizer, rows, answer)
    assert found["num_rejected"] == 2
    assert driven.replies[1][2:] == (None, None)
    assert found["accuracy"] == pytest.approx((0 + 2 + 4) / 12)
    assert found["per_dialogue"] == pytest.approx(1 / 3)
    longest = max(len(tokenizer(r["users"][0])["input_ids"]) for r in rows)
    found, _, _ = speak(tokenizer, rows, answer, max_model_len=longest)
    assert (found["num_too_long"], found["accuracy"]) == (12, 0.0)


def test_dialogues_do_not_depend_on_the_order_of_replies(tokenizer: Any) -> None:
    def answer(row: dict[str, Any], turn: int) -> str:
        return golden(row)[(len(row["users"][0]) + turn) % 2][turn]

    assert speak(tokenizer, ROWS[:20], answer)[0] == speak(tokenizer, ROWS[:20], answer, order=9)[0]

    def lose(requests: Any, sampling: Any) -> list[RolloutGroup]:
        return []

    with pytest.raises(RuntimeError, match="expected 1 groups"):
        think_follow.drive(
            ROWS[:1], tokenizer=tokenizer, generate=lose, sampling=SamplingParams(), seed=0, max_model_len=10**6
        )


def test_thinkfollow_stands_in_the_results(tokenizer: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, benchmarks=("thinkfollow",), limit=10, budgets=(8,))
    rows = rows_of(BENCHMARKS["thinkfollow"], seed=5, limit=10)
    found = run(config, tokenizer, Speaker(tokenizer, rows, lambda row, turn: golden(row)[0][turn]))
    (entry,) = found["entries"]
    assert (entry["mode"], entry["accuracy"], entry["report"]) == ("dialogue", 1.0, 98.9)
    assert results.table_rows({"entries": [entry]})[0][4] == "100.0% of dialogues"
    frame = RunFolder(tmp_path / "run" / "thinkfollow-dialogue").read_rollouts("eval")
    assert len(frame) == entry["turns"]
    assert set(frame["reward"]) == {1.0}
    assert [m["role"] for m in prompt_of(rows[0], [])][-1] == "user"
    summary = {"report_model": "Qwen3-32B", "model": "m", "seed": 5, **found}
    assert results.plot(summary, tmp_path / "plot.png").is_file()
    results.print_results(summary, tmp_path)


# --- config and command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modes": ("fast",)}, "modes: expected some of thinking"),
        ({"modes": ()}, "at least one"),
        ({"budgets": (8, 8)}, "different numbers"),
        ({"budgets": (-1,)}, ">= 0"),
        ({"sampling": {"temprature": 1}}, "sampling: expected some of"),
        ({"sampling": {"thinking_budget": 1}}, "not thinking_budget"),
    ],
)
def test_a_config_that_cannot_run_says_so(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchmarksConfig(**values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data PATH or --benchmark NAME"),
        (["--data", "x.jsonl", "--benchmark", "gsm8k"], "one of the two"),
        (["--benchmark", "gsm8k", "--reward", "math"], "brings its own"),
        (["--data", "x.jsonl", "--budgets", "8"], "go with --benchmark"),
        (["--benchmark", "gsm8k", "--budgets", "8,many"], "expected numbers of tokens"),
    ],
)
def test_the_command_line_says_what_does_not_go_together(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["eval", "model", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_the_engine_holds_the_longest_benchmark() -> None:
    assert suite.max_model_len(BenchmarksConfig(benchmarks=("gsm8k", "aime24"))) == 4096 + 38912
    assert suite.max_model_len(BenchmarksConfig(benchmarks=("gsm8k",), sampling={"max_new_tokens": 100})) == 4196


def test_what_does_not_fit_the_engine_is_said_before_it_starts(tokenizer: Any, tmp_path: Path) -> None:
    config = replace(config_of(tmp_path), model=ModelConfig(path="none", max_model_len=70))
    with pytest.raises(ConfigError, match=r"mgsm: the longest prompt has .* does not fit into 70"):
        suite.prepare(config, tokenizer, RunFolder(config.run_dir))


def test_the_files_of_a_run_are_its_sets_and_exemplars() -> None:
    config = BenchmarksConfig(benchmarks=("mmlu", "lengthctrl"), data_dir="d", paths={"mmlu": "own.jsonl"})
    assert files_of(config) == ["d/mmlu/dev.jsonl", "d/mmlu/test.jsonl.gz", "own.jsonl"]
    assert files_of(BenchmarksConfig()) == []


def test_the_lineage_key_is_that_of_the_stage_that_made_the_model(tmp_path: Path) -> None:
    assert results.lineage_key(str(tmp_path)) is None
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": [{"key": "a"}, {"key": "b"}]}))
    assert results.lineage_key(str(tmp_path)) == "b"


# --- the whole run --------------------------------------------------------------------------------------------------


def test_a_run_from_the_command_line_is_written_down_and_repeats_itself(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the engine, the graders' processes and Ray."""
    from actors import engine_pool, reward_service

    class Fleet(Engine):
        def __init__(self, path: str, model: Any, rollout: Any, sampling: Any, max_model_len: int, seed: int, **_: Any):
            super().__init__(tokenizer)
            assert (path, max_model_len, seed) == (str(tmp_path), 4160, 7)
            self.done: list[RolloutGroup] = []

        def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> None:
            self.done += self.generate(requests, sampling)

        def poll(self, timeout_s: float) -> list[RolloutGroup]:
            done, self.done = self.done, []
            return done

        @property
        def num_pending(self) -> int:
            return len(self.done)

        def effective_sampling(self, sampling: SamplingParams) -> dict[str, Any]:
            return {"temperature": sampling.temperature}

        def close(self) -> None:
            closed.append("fleet")

    class Service(Grader):
        def __init__(self, reward: Any, folder: Path) -> None:
            super().__init__(dict(reward.functions))
            self.done: list[ScoredGroup] = []

        def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None:
            self.done += self.score(groups, step=step)

        def poll(self, timeout_s: float) -> list[ScoredGroup]:
            done, self.done = self.done, []
            return done

        @property
        def num_pending(self) -> int:
            return len(self.done)

        def versions(self) -> dict[str, str]:
            return {"math": "hash"}

        def close(self) -> None:
            closed.append("service")

    closed: list[str] = []
    monkeypatch.setattr(engine_pool, "RolloutFleet", Fleet)
    monkeypatch.setattr(reward_service, "RewardService", Service)
    monkeypatch.setattr(suite, "ray_session", nullcontext)
    monkeypatch.setattr(suite, "tokenizer_of", lambda path, **options: tokenizer)
    monkeypatch.setattr(suite, "check_servable", lambda *arguments: None)
    monkeypatch.delenv("RLPLATFORM_LOG_DIR", raising=False)
    config_of(tmp_path)  # writes the rows
    arguments = ["eval", str(tmp_path), "--benchmark", "mgsm", "--budgets", "4,32", "-n", "2"]
    arguments += ["--out", str(tmp_path / "out"), "seed=7", f"paths.mgsm={tmp_path}/mgsm.jsonl", "limit=4"]
    arguments += ["sampling.max_new_tokens=64", "reward.probe=false"]
    texts = []
    for _ in range(2):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        texts.append((tmp_path / "out" / "results.json").read_text())
    monkeypatch.setenv("RLPLATFORM_LOG_DIR", "")  # undone at the end
    assert texts[0] == texts[1]
    assert "mgsm: no drop beyond the interval" in done.output
    found = json.loads(texts[0])
    keys = ["mode", "budget", "problems", "num_samples"]
    assert [[entry[key] for key in keys] for entry in found["entries"]] == [
        ["thinking", None, 4, 2],
        ["non_thinking", None, 4, 2],
        ["thinking", 4, 4, 2],
        ["thinking", 32, 4, 2],
    ]
    assert (found["model"], found["seed"], found["lineage"]) == (str(tmp_path), 7, None)
    assert found["graders"] == {"mgsm": {"math": "hash"}}
    assert found["effective_sampling"] == {
        "mgsm-thinking": {"temperature": 0.6},
        "mgsm-non_thinking": {"temperature": 0.7},
    }
    assert re.fullmatch("[0-9a-f]{64}", found["config"])
    assert not (tmp_path / "out" / "groups").exists()
    assert found["template"] == results.template_hash(tokenizer)
    assert {"python", "numpy"} <= set(found["versions"])
    assert (tmp_path / "out" / "report" / "benchmarks.png").is_file()
    assert closed.count("service") == 2
    assert closed[-1] == "fleet"


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert table() in page, "run: python -m rlplatform.evaluation.page"


def test_the_reward_service_says_who_grades_a_problem() -> None:
    from actors.reward_service import RewardService

    service = RewardService.__new__(RewardService)  # without its processes
    service._parts = read_parts({"format": 0.1, "math": {"weight": 1.0, "when": {"task": "sums"}}})
    prompts = [Prompt("p", (), np.array([1], dtype=np.int32), "p", {"task": task}) for task in ("sums", "words")]
    assert [service.graders(prompt) for prompt in prompts] == [["format", "math"], ["format"]]
