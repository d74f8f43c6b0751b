"""The data stages without engines: nothing is lost, statuses are reasons, keys follow the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import Verdict
from rlplatform import data_stages, pipeline
from rlplatform.config import (
    AlgorithmConfig,
    ConfigError,
    DataConfig,
    FilterConfig,
    FusionConfig,
    RecipeConfig,
    RewardConfig,
    RLConfig,
    SampleConfig,
)
from rlplatform.configfile import load_values, stages
from rlplatform.data import CurriculumPrompts, ShuffledPrompts, prompt_stream
from rlplatform.data_stages import conversation, filter_rows, fusion
from rlplatform.datafiles import DataError
from rlplatform.pipeline import run_config
from rlplatform.plan import FINISHED, STARTS_OVER, plan_recipe
from rlplatform.sample_stage import ask, query_rows, response_rows, sample_summary, with_demonstrations, write_rows
from rlplatform.smoke import shorten
from rlplatform.stages.records import read_parquet
from rlplatform.types import GenerationRequest, Prompt, Rollout, RolloutGroup, SamplingParams, ScoredGroup


def prompt(number: int, text: str = "", **columns: Any) -> Prompt:
    asked = text or f"What is {number} + 1?"
    return Prompt(
        prompt_id=f"train-{number}",
        messages=({"role": "user", "content": asked},),
        token_ids=np.array([1, 2], dtype=np.int32),
        text=f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
        columns={"answer": str(number + 1), **columns},
    )


def rollout(text: str, finish: str = "stop") -> Rollout:
    length = max(len(text), 1)
    return Rollout(
        token_ids=np.ones(length, dtype=np.int32),
        loss_mask=np.ones(length, dtype=np.bool_),
        rollout_logprobs=np.zeros(length, dtype=np.float32),
        policy_version=np.zeros(length, dtype=np.int32),
        finish=finish,
        text=text,
    )


class FakeFleet:
    """Answers by a function of (prompt, sample); the graders' verdict is one of (prompt, text). Out of order."""

    def __init__(self, say: Callable[[Prompt, int], str], judge: Callable[[Prompt, str], Verdict]) -> None:
        self._say, self._judge = say, judge
        self.requests: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> list[RolloutGroup]:
        self.requests += requests
        return [
            RolloutGroup(
                request.prompt,
                tuple(rollout(self._say(request.prompt, k)) for k in range(request.num_samples)),
                request.step,
                request.index,
            )
            for request in reversed(requests)
        ]

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        return [
            ScoredGroup(group, tuple(self._judge(group.prompt, one.text) for one in group.rollouts)) for group in groups
        ]


def exact(one: Prompt, text: str) -> Verdict:
    score = float(text.endswith(f"\n{one.columns['answer']}"))
    return Verdict(score, parts={"math": score})


def asked(fleet: FakeFleet, prompts: Sequence[Prompt], *, num_samples: int, **kwargs: Any) -> list[ScoredGroup]:
    return ask(
        prompts,
        generate=fleet.generate,
        score=fleet.score,
        sampling=SamplingParams(),
        num_samples=num_samples,
        seed=3,
        **kwargs,
    )


THOUGHT = "<think>\nCounting on from the number by one step at a time, and then checking it once more.\n</think>\n\n"


# --- sample ---------------------------------------------------------------------------------------------------------


def test_rows_of_a_sample_stage_are_every_response_in_order_with_its_verdict() -> None:
    verdicts = {
        0: lambda k: f"{THOUGHT}1" if k < 3 else f"{THOUGHT}7",
        1: lambda k: "no",
        2: lambda k: f"{THOUGHT}3",
    }
    prompts = [prompt(n, id=f"q{n}", messages=[{"role": "user"}], domain="sums") for n in range(3)]

    def judge(one: Prompt, text: str) -> Verdict:
        if one.columns["id"] == "q2":
            return Verdict(0.0, "timeout", detail="10 s")
        return exact(one, text)

    fleet = FakeFleet(lambda one, k: verdicts[int(one.columns["id"][1])](k), judge)
    groups = asked(fleet, prompts, num_samples=4)
    rows = [row for group in groups for row in response_rows(group, "math")]
    assert [(row["id"], row["sample"]) for row in rows] == [(f"q{n}", k) for n in range(3) for k in range(4)]
    assert all("messages" not in row and row["domain"] == "sums" for row in rows)
    assert [row["score"] for row in rows] == [1, 1, 1, 0, 0, 0, 0, 0, None, None, None, None]
    assert [row["status"] for row in rows[-4:]] == ["timeout"] * 4

    queries = query_rows(prompts, rows)
    assert [(q["pass_rate"], q["num_correct"], q["num_samples"], q["num_not_ok"]) for q in queries] == [
        (0.75, 3, 4, 0),
        (0.0, 0, 4, 0),
        (None, 0, 0, 4),
    ]
    summary = sample_summary(queries, rows, groups)
    assert summary["statuses"] == {"ok": 8, "timeout": 4}
    assert summary["pass_rate"] == pytest.approx(0.375)
    assert summary["pass_rates"] == {"0": 1, "0.75": 1}
    assert (summary["queries"], summary["responses"], summary["solved"]) == (3, 12, 1)


def test_a_verdict_that_says_nothing_of_the_metric_is_not_a_wrong_answer() -> None:
    group = ScoredGroup(RolloutGroup(prompt(0), (rollout("x"),), 0), (Verdict(0.4, parts={"format": 0.4}),))
    (row,) = response_rows(group, "math")
    assert (row["status"], row["score"], row["reward"]) == ("not_applicable", None, 0.4)


def test_samples_have_seeds_of_their_own_and_the_same_ones_again() -> None:
    fleets = [FakeFleet(lambda one, k: "x", exact) for _ in range(2)]
    for fleet in fleets:
        asked(fleet, [prompt(n) for n in range(20)], num_samples=4)
    first, second = ([request.seed for request in fleet.requests] for fleet in fleets)
    assert first == second
    assert len({seed + k for seed in first for k in range(4)}) == 80


def test_demonstrations_replace_every_second_sample_and_are_graded_as_they_are() -> None:
    fleet = FakeFleet(lambda one, k: "gibberish", exact)
    prompts = [prompt(n, worked=f"{THOUGHT}{n + 1}") for n in range(2)]
    plain = [scored.group for scored in asked(fleet, prompts, num_samples=3)]
    groups = fleet.score([with_demonstrations(group, "worked") for group in plain])
    assert [[v.score for v in group.verdicts] for group in groups] == [[1, 0, 1]] * 2
    with pytest.raises(ConfigError, match="expected text in column 'nope'"):
        with_demonstrations(plain[0], "nope")


def test_two_queries_of_one_id_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['q'\] came more than once"):
        query_rows([prompt(0, id="q"), prompt(1, id="q")], [])


def test_a_lost_group_is_an_error() -> None:
    fleet = FakeFleet(lambda one, k: "x", exact)
    with pytest.raises(RuntimeError, match="expected 2 graded groups, one a query, got 1"):
        ask(
            [prompt(0), prompt(1)],
            generate=lambda requests, params: fleet.generate(requests[:1], params),
            score=fleet.score,
            sampling=SamplingParams(),
            num_samples=1,
            seed=0,
        )


# --- filter ---------------------------------------------------------------------------------------------------------


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def response(name: str, number: int = 0, *, status: str = "ok", score: float | None = 1.0, text: str = "") -> Any:
    return {
        "id": name,
        "sample": number,
        "prompt": f"Question {name}",
        "response": text or f"{THOUGHT}1",
        "status": status,
        "score": score,
    }


def step(tmp_path: Path, path: str, steps: dict[str, Any], **kwargs: Any) -> FilterConfig:
    return FilterConfig(
        name="f", run_dir=str(tmp_path / "f"), data=DataConfig(path=path, shuffle=False), steps=steps, **kwargs
    )


def test_statuses_that_are_not_ok_are_reasons_of_their_own_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows = [
        response("a"),
        response("a", 1, score=0.0),
        response("b", status="timeout", score=None),
        response("b", 1, status="error", score=None),
        response("c", status="unparseable", score=None),
        response("d", status="not_applicable", score=None),
    ]
    done = filter_rows(step(tmp_path, write(tmp_path / "r.jsonl", rows), {"wrong_answer": {}}, messages=True))
    assert done.summary["by_filter"] == {
        "wrong_answer": {
            "wrong_answer": 1,
            "grader_timeout": 1,
            "grader_error": 1,
            "grader_unparseable": 1,
            "grader_not_applicable": 1,
        }
    }
    assert (done.summary["rows"], done.summary["kept"], done.summary["dropped"]) == (6, 1, 5)
    (kept,) = lines(tmp_path / "f/train.jsonl")
    assert kept["messages"] == [
        {"role": "user", "content": "Question a"},
        {"role": "assistant", "content": f"{THOUGHT}1"},
    ]
    assert [record.row for record in read_parquet(tmp_path / "f/records.parquet").records] == rows
    assert {row["id"] for row in lines(tmp_path / "f/never_solved.jsonl")} == {"b", "c", "d"}
    assert done.summary["never_solved"] == 3


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["ok1", "ok0", "timeout", "error"]), min_size=1, max_size=12))
def test_rows_in_are_kept_plus_dropped(kinds: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        scores: dict[str, Any] = {"ok1": ("ok", 1.0), "ok0": ("ok", 0.0)}
        rows = [response("ok", 0)]
        for n, kind in enumerate(kinds):
            status, score = scores.get(kind, (kind, None))
            rows.append(response(f"q{n % 3}", n, status=status, score=score))
        path = write(Path(folder) / "r.jsonl", rows)
        done = filter_rows(
            step(Path(folder), path, {"wrong_answer": {}, "select_samples": {"per_query": 1, "how": "shortest"}})
        )
        dropped = sum(count for reasons in done.summary["by_filter"].values() for count in reasons.values())
        assert done.summary["kept"] + dropped == len(rows)
        kept = [(row["id"], row["sample"]) for row in lines(Path(folder) / "f/train.jsonl")]
        records = read_parquet(Path(folder) / "f/records.parquet").records
        assert [r.key for r in records] == [f"{row['id']}#{row['sample']}" for row in rows]
        assert kept == [(r.row["id"], r.row["sample"]) for r in records if r.kept]


def test_query_steps_read_what_they_need_from_files(tmp_path: Path) -> None:
    queries = [{"id": f"q{n}", "prompt": f"What is {n} + 1?", "answer": str(n + 1), "domain": "sums"} for n in range(6)]
    plain = [
        {**response(f"q{n}", text=str(n + 1)), "score": float(n < 2)} for n in range(6)
    ]  # q0 and q1 need no thought
    steps = {
        "hold_out": {"num": 1},
        "not_verifiable": {},
        "solved_without_thinking": {"rates": write(tmp_path / "plain.jsonl", plain)},
        "balance_domains": {"caps": 2},
    }
    config = step(tmp_path, write(tmp_path / "q.jsonl", queries), steps)
    done = filter_rows(config)
    (held,) = lines(tmp_path / "f/validation.jsonl")
    easy = len({"q0", "q1"} - {held["id"]})
    assert done.summary["by_filter"]["solved_without_thinking"] == {"solved_without_thinking": easy}
    assert done.summary["kept"] == 2
    assert config.files == [str(tmp_path / "plain.jsonl")]

    thinking = [{**row, "response": f"{THOUGHT}1"} for row in plain]
    write(tmp_path / "plain.jsonl", thinking)  # the reference model must not have thought
    with pytest.raises(ConfigError, match="expected a response without a thought"):
        filter_rows(config)

    write(tmp_path / "plain.jsonl", [*thinking[:2], *plain[2:]])  # two that strayed say nothing, right as they are
    assert "solved_without_thinking" not in filter_rows(config).summary["by_filter"]


def test_peoples_verdicts_count_as_the_graders(tmp_path: Path) -> None:
    rows = [response("a"), response("b", score=0.0), response("b", 1, status="timeout", score=None)]
    path = write(tmp_path / "r.jsonl", rows)
    filter_rows(step(tmp_path, path, {"wrong_answer": {}}))
    exported = lines(tmp_path / "f/never_solved.jsonl")
    assert [(row["id"], row["sample"], row["verdict"]) for row in exported] == [("b", 0, ""), ("b", 1, "")]
    said = [{**row, "verdict": "correct" if row["sample"] else "incorrect"} for row in exported]
    judged = write(tmp_path / "people.jsonl", said)
    done = filter_rows(step(tmp_path, path, {"wrong_answer": {}}, verdicts=judged))
    assert [(row["id"], row["sample"]) for row in lines(tmp_path / "f/train.jsonl")] == [("a", 0), ("b", 1)]
    assert "never_solved" not in done.summary
    assert not (tmp_path / "f/never_solved.jsonl").exists()
    with pytest.raises(ConfigError, match="expected a copy outside"):
        step(tmp_path, path, {}, verdicts=str(tmp_path / "f/never_solved.jsonl"))


def test_nothing_left_and_unknown_settings_are_said_plainly(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [response("a", score=0.0)])
    with pytest.raises(ConfigError, match=r"nothing is left; .*records.parquet says why\n.*\n.*wrong_answer 1"):
        filter_rows(step(tmp_path, path, {"wrong_answer": {}}))
    with pytest.raises(ConfigError, match="did you mean wrong_answer"):
        step(tmp_path, path, {"wrong_answr": {}})
    with pytest.raises(ConfigError, match=r"steps.repetition.max_repeat: .*did you mean max_repeated"):
        step(tmp_path, path, {"repetition": {"max_repeat": 0.1}})
    with pytest.raises(ConfigError, match=r"steps.select_queries: expected the settings rates, used, num"):
        step(tmp_path, path, {"select_queries": {}})


def test_a_filter_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from rlplatform.stages.records import KEEP, Decision\n"
        "def short(rows, *, most):\n"
        "    return [KEEP if len(row['prompt']) <= most else Decision('long') for row in rows]\n"
    )
    path = write(tmp_path / "r.jsonl", [{"prompt": "ab"}, {"prompt": "abcdef"}])
    steps = {"length": {"function": f"{tmp_path / 'own.py'}:short", "most": 3}}
    done = filter_rows(step(tmp_path, path, steps))
    assert done.summary["by_filter"] == {"length": {"long": 1}}
    assert [row["id"] for row in lines(tmp_path / "f/train.jsonl")] == ["train-0"]


def test_a_response_to_an_opened_block_is_trained_with_its_opening() -> None:
    row = conversation({"id": "a", "prompt": "Q", "response": "1+1\n</think>\n\n2<|im_end|>", "opened": True})
    assert row["messages"][-1]["content"] == "<think>\n1+1\n</think>\n\n2"
    with pytest.raises(ConfigError, match="expected a column response"):
        conversation({"id": "a", "prompt": "Q"})


# --- fusion ---------------------------------------------------------------------------------------------------------


def test_fusion_rows_train_exactly_the_answers(tmp_path: Path) -> None:
    from model.chat import render_example
    from model.tokenizer import chat_texts, load_tokenizer, train_bpe

    thinking = [response(f"t{n}") for n in range(6)] + [response("bad", score=0.0), response("late", status="timeout")]
    plain = [{**response(f"p{n}", text="\\boxed{1}"), "grader": "math", "answer": "1"} for n in range(5)]
    plain += [
        {**response("wrong", text="\\boxed{2}"), "grader": "math", "answer": "1"},
        {**response("thinks"), "grader": "math", "answer": "1"},
    ]
    config = FusionConfig(
        name="u",
        run_dir=str(tmp_path / "u"),
        thinking=(write(tmp_path / "t.jsonl", thinking),),
        plain=(write(tmp_path / "p.jsonl", plain),),
        num=10,
        task="sums",
        shares={"turns": {"1": 1}, "translation": 0.0},
    )
    summary = fusion(config).summary
    assert summary["thinking"]["by_filter"] == {"usable": {"not_correct": 2}}
    assert summary["plain"]["by_filter"] == {"usable": {"wrong_mode": 1}, "checklist": {"failed:correct": 1}}
    assert (summary["conversations"], summary["thinking_turns"]) == (10, 5)
    rows = lines(tmp_path / "u/train.jsonl")
    train_bpe(chat_texts([row["messages"] for row in rows]), 320, str(tmp_path / "tokenizer"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    for row in rows:
        token_ids, mask = render_example(tokenizer, row["messages"])
        wanted = f"{THOUGHT}1" if row["thinking"][0] else "\\boxed{1}"
        empty = "" if row["thinking"][0] else "<think>\n\n</think>\n\n"
        assert tokenizer.decode(token_ids[mask]) == f"{empty}{wanted}<|im_end|>"
    with pytest.raises(ConfigError, match="all used after 5 turns"):
        fusion(replace(config, num=12))


def test_fusion_settings_are_checked_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="expected files of responses of both modes"):
        FusionConfig(thinking=("a.jsonl",))
    with pytest.raises(ConfigError, match=r"shares: .*thinkin"):
        FusionConfig(thinking=("a",), plain=("b",), shares={"thinkin": 0.5})


# --- in a recipe ----------------------------------------------------------------------------------------------------

GENERATOR = """
def rows(seed, count=8):
    make = lambda k: {"id": f"q{k}", "prompt": f"What is {k} + 1?", "answer": str(k + 1), "domain": "sums"}
    return {"train": [make(k) for k in range(count)]}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RecipeConfig]:
    """data -> queries -> candidates -> cold, with a fleet that is right every second time."""
    fleet = FakeFleet(lambda one, k: f"{THOUGHT}{one.columns['answer'] if k % 2 == 0 else 'no'}", exact)
    (tmp_path / "task.py").write_text(GENERATOR)

    def sample(config: SampleConfig) -> Any:
        rows = [
            prompt(n, row["prompt"], **{k: v for k, v in row.items() if k != "prompt"})
            for n, row in enumerate(data_stages.input_rows(config.data))
        ]
        groups = asked(fleet, rows, num_samples=config.num_samples)
        responses = [row for group in groups for row in response_rows(group, "math")]
        queries = query_rows(rows, responses)
        write_rows(Path(config.run_dir) / "responses.jsonl", responses)
        write_rows(Path(config.run_dir) / "queries.jsonl", queries)
        return data_stages.Outcome(config.run_dir, sample_summary(queries, responses, groups))

    monkeypatch.setitem(pipeline.STAGES, "sample", sample)
    monkeypatch.setattr(pipeline, "ray_session", nullcontext)

    def made(*, caps: int = 4, per_query: int = 1, count: int = 8) -> RecipeConfig:
        config = load_values(
            {
                "kind": "recipe",
                "name": "r",
                "run_dir": str(tmp_path / "run"),
                "stages": {
                    "data": {"kind": "dataset", "function": f"{tmp_path / 'task.py'}:rows", "args": {"count": count}},
                    "queries": {
                        "kind": "filter",
                        "data": {"path": "stage:data"},
                        "steps": {"hold_out": {"num": 2}, "balance_domains": {"caps": caps}},
                    },
                    "candidates": {
                        "kind": "sample",
                        "data": {"path": "stage:queries"},
                        "model": {"path": "somewhere"},
                        "reward": {"functions": {"math": 1.0}},
                    },
                    "cold": {
                        "kind": "filter",
                        "messages": True,
                        "data": {"path": "stage:candidates", "split": "responses"},
                        "steps": {
                            "wrong_answer": {},
                            "guessing": {"min_thought_tokens": 5},
                            "similar_to_validation": {
                                "validation": "stage:queries/validation.jsonl",
                                "n": 3,
                                "max_similarity": 0.9,
                            },
                            "select_samples": {"per_query": per_query, "how": "diverse"},
                        },
                    },
                },
            }
        )
        assert isinstance(config, RecipeConfig)
        return config

    return made


def test_a_recipe_of_data_stages_runs_once_and_what_changed_runs_again(
    recipe: Callable[..., RecipeConfig], tmp_path: Path
) -> None:
    results = run_config(recipe())
    said = results["stages"]
    assert (said["queries"]["kept"], said["queries"]["held_out"]) == (4, 2)
    assert (said["candidates"]["queries"], said["candidates"]["responses"]) == (4, 16)
    assert said["cold"]["by_filter"] == {"wrong_answer": {"wrong_answer": 8}, "select_samples": {"not_selected": 4}}
    assert said["cold"]["headline"].startswith("4 of 16 kept")
    assert said["candidates"]["headline"] == "4 queries, 16 responses, pass rate 50.0%"
    assert len(lines(tmp_path / "run/cold/train.jsonl")) == 4

    states = {name: row.state for name, row in plan_recipe(recipe()).items()}
    assert set(states.values()) == {FINISHED}
    states = {name: row.state for name, row in plan_recipe(recipe(per_query=2)).items()}
    assert states == {"data": FINISHED, "queries": FINISHED, "candidates": FINISHED, "cold": STARTS_OVER}
    states = {name: row.state for name, row in plan_recipe(recipe(caps=3)).items()}
    assert states == {"data": FINISHED, "queries": STARTS_OVER, "candidates": STARTS_OVER, "cold": STARTS_OVER}


def test_a_file_beside_the_rows_changes_the_key(tmp_path: Path) -> None:
    from rlplatform.plan import stage_key

    rows = write(tmp_path / "r.jsonl", [response("a")])
    side = write(tmp_path / "side.jsonl", [response("b")])
    config = step(tmp_path, rows, {"similar_to_validation": {"validation": side}})
    before = stage_key(config, config, {})
    assert stage_key(config, config, {}) == before
    write(tmp_path / "side.jsonl", [response("c")])
    assert stage_key(config, config, {}) != before


def test_the_smoke_twin_keeps_the_path(recipe: Callable[..., RecipeConfig]) -> None:
    short = shorten(recipe())
    assert isinstance(short, RecipeConfig)
    candidates = stages(short)["candidates"]
    assert isinstance(candidates, SampleConfig)
    assert (candidates.num_samples, candidates.data.limit, candidates.use_demonstrations) == (2, 8, False)


# --- curriculum and entropy settings --------------------------------------------------------------------------------


def curriculum(num: int = 12, seed: int = 0) -> CurriculumPrompts:
    prompts = [prompt(n, pass_rate=1 - n / num) for n in range(num)]
    return CurriculumPrompts(
        prompts, column="pass_rate", num_steps=6, prompts_per_step=2, num_buckets=3, seed=seed, group_size=4
    )


def places(requests: Sequence[GenerationRequest]) -> list[int]:
    return [int(request.prompt.prompt_id.split("-")[1]) for request in requests]


def test_easy_prompts_come_first_and_every_one_once() -> None:
    stream = curriculum()
    steps = [places(stream.next_requests(2, step=k)) for k in range(6)]
    for bucket in range(3):
        assert sorted(steps[2 * bucket] + steps[2 * bucket + 1]) == list(range(4 * bucket, 4 * bucket + 4))


def test_a_resumed_curriculum_asks_the_same() -> None:
    first, resumed = curriculum(), curriculum()
    first.next_requests(2, step=0)
    state = json.loads(json.dumps(first.state_dict()))
    resumed.load_state_dict(state)
    for k in range(1, 6):
        ours, theirs = first.next_requests(2, step=k), resumed.next_requests(2, step=k)
        assert places(ours) == places(theirs)
        assert [request.seed for request in ours] == [request.seed for request in theirs]
    with pytest.raises(ConfigError, match="another order of prompts"):
        curriculum(seed=1).load_state_dict(state)


def test_a_step_that_asks_again_gets_other_prompts_and_seeds() -> None:
    stream = curriculum()
    first, again = stream.next_requests(2, step=0), stream.next_requests(2, step=0)
    assert not set(places(first)) & set(places(again))
    assert [request.index for request in first + again] == [0, 1, 2, 3]
    assert len({request.seed for request in first + again}) == 4


def test_the_stream_follows_the_config(tmp_path: Path) -> None:
    config = RLConfig(prompts_per_step=2, num_steps=6, reward=RewardConfig(functions={"math": 1.0}))
    prompts = [prompt(n, pass_rate=None) for n in range(12)]
    assert isinstance(prompt_stream(prompts, config), ShuffledPrompts)
    eased = replace(config, data=DataConfig(curriculum="pass_rate"))
    with pytest.raises(DataError, match=r"expected a pass rate in \[0, 1\] in column 'pass_rate', got None"):
        prompt_stream(prompts, eased)
    with pytest.raises(ConfigError, match=r"data.curriculum with algorithm.dynamic_sampling"):
        replace(eased, algorithm=AlgorithmConfig(dynamic_sampling=True))
