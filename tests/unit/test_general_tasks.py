"""Every task of general RL: its prompts, splits and modes, and that its reward knows the good answer from the bad."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from model.chat import render_chat, render_example
from model.tokenizer import chat_texts, train_bpe
from rewards.base import OK, load_function
from rewards.composition import read_parts
from rewards.math import math_reward
from rewards.runner import RewardPool
from rlplatform.config import DataConfig
from rlplatform.data import load_prompts
from rlplatform.tasks.general import ABILITIES, TASKS, golden, page, results, reward_functions, suite
from rlplatform.tasks.general.suite import apportion
from rlplatform.tasks.general.task import Example, Task, make_row, modes
from rlplatform.tasks.general.tools import TOOLS, offer

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
FLAG = re.compile(r"(?:^|\s)/(no_)?think\b")


def unflagged(messages: list[dict[str, str]]) -> str:
    """What is asked, without flags: this file's own idea of when two prompts are the same."""
    return json.dumps([FLAG.sub("", m["content"]).strip() for m in messages if m["role"] in ("system", "user", "tool")])


# --- what there is --------------------------------------------------------------------------------------------------


def test_the_suite_is_as_broad_as_the_report_says() -> None:
    assert len(TASKS) >= 24
    abilities, kinds = (Counter(getattr(task, what) for task in TASKS.values()) for what in ("ability", "kind"))
    assert set(abilities) == set(ABILITIES)
    assert min(abilities.values()) >= 3
    assert kinds["with_reference"] >= 4
    assert kinds["without_reference"] >= 4
    assert kinds["rule"] >= 4
    spoken = {code for task in TASKS.values() if "language" in task.functions for code in task.languages}
    assert len(spoken) >= 5
    assert len({task.about for task in TASKS.values()}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_parts_of_a_task_weigh_1_and_exist(task: Task) -> None:
    parts = read_parts(reward_functions([task.name]))
    assert sum(part.weight for part in parts.values()) == pytest.approx(1.0)
    assert {part.when["task"] for part in parts.values()} == {(task.name,)}
    formats = [part for part in parts.values() if part.function == "format"]
    assert len(formats) == 1  # every task asks for its mode


# --- prompts and splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_splits_are_large_disjoint_and_repeatable(task: Task) -> None:
    sizes = {"num_sft": 40, "num_train": 210, "num_test": 60}
    splits = task.rows(3, **sizes)
    assert {name: len(rows) for name, rows in splits.items()} == {"test": 60, "train": 210, "sft": 40}
    asked = [unflagged(row["prompt"]) for rows in splits.values() for row in rows]
    assert len(set(asked)) == len(asked) == 310
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)
    assert task.rows(3, **sizes) == splits
    assert task.rows(4, **sizes) != splits
    assert task.rows(3, num_test=60, num_train=5)["test"] == splits["test"]  # whatever the other sizes


@pytest.mark.parametrize("difficulty", [2, 3])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_harder_levels_hold_as_many_prompts(task: Task, difficulty: int) -> None:
    rows = task.rows(0, num_train=230, num_test=30, difficulty=difficulty)
    asked = {unflagged(row["prompt"]) for split in rows.values() for row in split}
    assert len(asked) == 260
    assert {row["difficulty"] for split in rows.values() for row in split} == {difficulty}


def test_more_prompts_than_there_are_is_an_error() -> None:
    few = Task("few", "format", "rule", "", {}, lambda rng, level: Example(str(rng.randrange(3)), "", "", ""))
    assert len(few.rows(0, num_train=3)["train"]) == 3
    with pytest.raises(ValueError, match=r"task few: no new prompt after 3 at difficulty 1.* need 4"):
        few.rows(0, num_train=2, num_test=2)
    with pytest.raises(ValueError, match="expected a difficulty of"):
        few.rows(0, num_train=1, difficulty=4)
    with pytest.raises(ValueError, match="sizes >= 0"):
        few.rows(0, num_train=-1)
    with pytest.raises(ValueError, match="flag_shares"):
        few.rows(0, num_train=1, flag_shares={"thnik": 1.0})
    with pytest.raises(ValueError, match="flag_shares"):
        few.rows(0, num_train=1, flag_shares={})
    with pytest.raises(ValueError, match="system_share"):
        few.rows(0, num_train=1, system_share=1.5)
    with pytest.raises(ValueError, match="expected an ability"):
        Task("bad", "cooking", "rule", "", {}, few.draw)


# --- modes ----------------------------------------------------------------------------------------------------------


def asked_mode(messages: list[dict[str, str]]) -> bool:
    """The last flag in system and user messages; thinking where there is none."""
    said = " ".join(message["content"] for message in messages if message["role"] in ("system", "user"))
    flags = re.findall(r"(?<!\S)/(?:no_)?think(?!\S)", said)
    return not flags or flags[-1] == "/think"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_worked_answers_think_as_the_flags_say(task: Task) -> None:
    for row in task.rows(5, num_train=60)["train"]:
        assert row["thinking"] == asked_mode(row["prompt"])
        messages = row["messages"]
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                thought = re.fullmatch(r"<think>\n(.*?)\n</think>\n\n(\S.*)", message["content"], re.DOTALL)
                assert thought is not None, message
                assert bool(thought[1].strip()) == asked_mode(messages[:place])
        assert re.match(r"<think>\n.*\n</think>\n\n\S", row["rejected"], re.DOTALL)
        assert bool(row["rejected"].partition("</think>")[0].removeprefix("<think>").strip()) == row["thinking"]
        # The prompt is what is worked, but for the thoughts of earlier turns.
        assert [m["role"] for m in row["prompt"]] == [m["role"] for m in messages[:-1]]
        last = max(place for place, message in enumerate(messages) if message["role"] == "user")
        for place, (shown, worked) in enumerate(zip(row["prompt"], messages, strict=False)):
            if shown["role"] == "assistant":
                assert place > last or "<think>" not in shown["content"]
                assert worked["content"].endswith(shown["content"])
            else:
                assert shown == worked


def test_flags_are_sampled_by_their_shares() -> None:
    shares = {"think": 0.2, "no_think": 0.5, "none": 0.3}
    rows = TASKS["glossary"].rows(0, num_train=1000, flag_shares=shares, system_share=0.25)["train"]
    counts: Counter[str] = Counter()
    for row in rows:
        said = [(m["role"], flag[0].strip()) for m in row["prompt"] if (flag := FLAG.search(m["content"]))]
        assert len(said) <= 1
        counts.update([said[0][1] if said else "none"])
        counts.update(f"in {role}" for role, _ in said)
    assert counts["/think"] == pytest.approx(200, abs=50)
    assert counts["/no_think"] == pytest.approx(500, abs=60)
    assert counts["in system"] == pytest.approx(700 / 4, abs=50)
    assert {row["thinking"] for row in TASKS["table"].rows(0, num_train=50, flag_shares={"no_think": 1})["train"]} == {
        False
    }


def test_modes_by_hand() -> None:
    assert modes(["", ""]) == (True,)
    assert modes(["/no_think", "", "/think", "", "/no_think"]) == (False, True, True, False)
    assert modes(["/think", "", "/no_think", ""]) == (True, False, False)


def test_dialogues_have_flags_at_every_place() -> None:
    rows = TASKS["mode_dialogue"].rows(0, num_train=300)["train"]
    users = [[m["content"] for m in row["prompt"] if m["role"] == "user"] for row in rows]
    kinds = {tuple((flag := FLAG.search(text)) and flag[0].strip() for text in texts) for texts in users}
    assert {(a, b) for a in ("/think", "/no_think", None) for b in ("/think", "/no_think", None)} <= kinds
    system = TASKS["mode_system"].rows(0, num_train=300)["train"]
    assert all(FLAG.search(row["prompt"][0]["content"]) and row["prompt"][0]["role"] == "system" for row in system)
    overruled = [r for r in system if r["thinking"] != (not r["prompt"][0]["content"].endswith("/no_think"))]
    assert 30 < len(overruled) < 150


def test_a_row_by_hand() -> None:
    example = Example("Say: hat", "The word.", "hat", "cat", {"answer": "hat"}, system="Be brief.")
    row = make_row(example, ("/think", "/no_think"), "t", "format", row_id="r")
    prompt = [{"role": "system", "content": "Be brief. /think"}, {"role": "user", "content": "Say: hat /no_think"}]
    assert row == {
        "id": "r",
        "prompt": prompt,
        "task": "t",
        "ability": "format",
        "thinking": False,
        "answer": "hat",
        "messages": [*prompt, {"role": "assistant", "content": "<think>\n\n</think>\n\nhat"}],
        "rejected": "<think>\n\n</think>\n\ncat",
    }


# --- rewards --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A few of every task at every difficulty, and more of the first."""
    drawn = [
        row
        for task in TASKS.values()
        for level, number in ((1, 10), (2, 3), (3, 3))
        for row in task.rows(11, num_test=number, difficulty=level)["test"]
    ]
    return json.loads(json.dumps(drawn))


@pytest.fixture(scope="module")
def score(rows: list[Row]):
    """completions -> verdicts, by the whole suite's reward: every row goes to its own task's functions."""
    columns = {name: [row.get(name) for row in rows] for name in {key for row in rows for key in row} - {"prompt"}}
    with RewardPool(reward_functions(), 1, 20.0) as pool:
        yield lambda said: pool.score([row["prompt"] for row in rows], said, columns)


def by_task(rows: list[Row], verdicts: list[Any]) -> dict[str, list[float]]:
    assert {verdict.status for verdict in verdicts} == {OK}, [v for v in verdicts if not v.ok][:1]
    found = defaultdict(list)
    for row, verdict in zip(rows, verdicts, strict=True):
        found[row["task"]].append(verdict.score)
    return found


def test_the_worked_answer_has_the_full_score_and_the_other_less(rows: list[Row], score) -> None:
    passing = score([golden(row)[0] for row in rows])
    failing = score([golden(row)[1] for row in rows])
    by_task(rows, passing)
    for row, verdict in zip(rows, passing, strict=True):
        assert verdict.score == pytest.approx(1.0), (row["task"], golden(row), verdict)
    for name, scores in by_task(rows, failing).items():
        assert max(scores) < 0.9, (name, max(scores))
    for row, verdict in zip(rows, failing, strict=True):  # it fails for what it says, not for its mode
        mode = verdict.parts.get("format", verdict.parts.get("mode"))
        assert mode == 1.0, (row["task"], golden(row))


def test_the_other_mode_costs_as_much_as_the_format_weighs(rows: list[Row], score) -> None:
    def turned(row: Row) -> str:
        answer = golden(row)[0].partition("</think>\n\n")[2]
        thought = "" if row["thinking"] else "so it is"
        return f"<think>\n{thought}\n</think>\n\n{answer}"

    for name, scores in by_task(rows, score([turned(row) for row in rows])).items():
        # The tasks of the mode count nothing else; elsewhere the 0.2 of `format` is lost, and no more than a
        # thought in another language costs.
        most = 0.0 if name.startswith("mode_") else 0.8
        assert max(scores) == pytest.approx(most, abs=1e-9), name
        assert min(scores) >= (0.6 if "language" in TASKS[name].functions and most else most) - 1e-9, name


def test_answers_that_answer_nothing_are_not_worth_much(rows: list[Row], score) -> None:
    def say(row: Row, text: str) -> str:
        return f"<think>\nwell\n</think>\n\n{text}" if row["thinking"] else text

    assert max(map(max, by_task(rows, score(["" for _ in rows])).values())) == 0.0
    assert max(map(max, by_task(rows, score(["<think>\nhm" for _ in rows])).values())) <= 0.5
    echoes = by_task(rows, score([say(row, FLAG.sub("", row["prompt"][-1]["content"])) for row in rows]))
    for name, scores in echoes.items():
        assert max(scores) < 0.95, name
    constant = by_task(rows, score([say(row, "Yes, it is so.") for row in rows]))
    for name, scores in constant.items():
        assert max(scores) < 0.95, name
        assert sum(scores) / len(scores) < 0.8, name


def test_a_unit_is_converted_not_repeated() -> None:
    rows = TASKS["unit_conversion"].rows(0, num_train=40)["train"]
    asked = [re.search(r"(\d+) (\w+)\?", row["prompt"][-1]["content"]) for row in rows]
    said = [f"\\boxed{{{match[1]} {match[2]}}}" for match in asked if match]
    verdicts = math_reward([row["prompt"] for row in rows], said, [row["answer"] for row in rows])
    assert [(verdict.status, verdict.score) for verdict in verdicts] == [(OK, 0.0)] * 40


# --- all together ---------------------------------------------------------------------------------------------------


def test_a_mixed_suite_follows_its_weights() -> None:
    splits = suite(1, tasks={"table": 3.0, "polite": 1}, num_sft=0, num_train=41, num_test=8)
    assert set(splits) == {"train", "test"}
    assert Counter(row["task"] for row in splits["train"]) == {"table": 31, "polite": 10}
    assert Counter(row["task"] for row in splits["test"]) == {"table": 6, "polite": 2}
    order = [row["task"] for row in splits["train"]]
    assert sum(a != b for a, b in pairwise(order)) > 4  # mixed: 16 changes are expected
    assert suite(1, tasks={"table": 3.0, "polite": 1}, num_sft=0, num_train=41, num_test=8) == splits
    everything = suite(0, num_sft=70, num_train=105, num_test=70)
    assert {tuple(Counter(row["task"] for row in rows).values()) for rows in everything.values()} == {
        (2,) * 35,
        (3,) * 35,
    }
    asked = [unflagged(row["prompt"]) for rows in everything.values() for row in rows]
    assert len(asked) == len(set(asked))


def test_apportion_by_hand() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(3, [0.1, 0.8, 0.1]) == [0, 3, 0]
    assert apportion(0, [1, 2]) == [0, 0]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["tabel"], "did you mean 'table'"),
        (["table", "table"], "different names"),
        ({"table": 0.0}, "weights > 0"),
        ([], "different names"),
    ],
)
def test_a_selection_that_means_nothing_is_an_error(tasks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(0, tasks=tasks, num_sft=0, num_train=1, num_test=1)


def test_rewards_are_routed_and_models_stand_beside_them() -> None:
    found = reward_functions(
        ["polite", "table", "single_call", "mode_single"],
        without_reference={"preference": {"weight": 0.5, "clip": [-4, 4], "args": {"model": "m"}}},
        with_reference={"judge": 0.3},
    )
    assert found["format"] == {"weight": 0.2, "when": {"task": ["polite", "table", "single_call"]}}
    assert found["preference"]["when"] == {"task": ["polite"]}
    assert found["preference"]["clip"] == [-4, 4]
    assert found["judge"] == {"weight": 0.3, "when": {"task": ["table"]}}  # calls are compared, not judged
    assert found["mode"]["when"] == {"task": ["mode_single"]}
    assert set(read_parts(found)) == set(found)
    with pytest.raises(ValueError, match=r"two parts are called 'format'"):
        reward_functions(["polite"], without_reference={"format": 0.9})
    assert "when" not in TASKS["polite"].functions["checklist"]  # the tasks themselves are left as they are


def test_files_prompts_and_training_examples(tmp_path: Path) -> None:
    """As the dataset stage writes them, prompts are loaded as for a run, and what is trained is the worked answers."""
    args = {"num_sft": 70, "num_train": 70, "num_test": 0}
    (tmp_path / "data").mkdir()
    for split, made in load_function("rlplatform.tasks.general:suite", "function")(seed=0, **args).items():
        lines = [json.dumps(row, ensure_ascii=False) for row in made]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sft = [json.loads(line) for line in (tmp_path / "data" / "sft.jsonl").read_text().splitlines()]
    assert sft == suite(0, **args)["sft"]
    tokenizer = train_bpe(chat_texts([row["messages"] for row in sft]), 640, tmp_path / "tokenizer")
    loaded = load_prompts(DataConfig(path=str(tmp_path / "data"), split="train", max_prompt_tokens=320), tokenizer)
    assert len(loaded.prompts) == 70
    assert not loaded.too_long
    train = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    for prompt, row in zip(loaded.prompts, train, strict=True):
        assert list(prompt.messages) == row["prompt"]
        assert prompt.columns["task"] == row["task"]
        assert prompt.text.endswith("<|im_start|>assistant\n")
        for message in row["prompt"]:
            if message["role"] != "assistant":
                assert message["content"] in prompt.text
    for row in sft:
        token_ids, mask = render_example(tokenizer, row["messages"])
        said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert tokenizer.decode(token_ids[mask]) == "".join(f"{text}<|im_end|>" for text in said)


def test_tools_stand_in_the_prompt_as_the_template_writes_them(tmp_path: Path) -> None:
    text = offer(random.Random(0), ["weather"], 3)
    shown = [json.loads(line) for line in text.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()]
    assert TOOLS["weather"].schema in shown
    assert len(shown) == 4
    tokenizer = train_bpe(["a b c"], 300, tmp_path / "tokenizer")
    user = {"role": "user", "content": "What is the weather in Rome?"}
    by_hand = render_chat(tokenizer, [{"role": "system", "content": text}, user], add_generation_prompt=True)
    assert by_hand == render_chat(tokenizer, [user], tools=shown, add_generation_prompt=True)


def test_results_task_by_task(tmp_path: Path) -> None:
    rows = [{"task": "a"}, {"task": "b"}, {"task": "a"}, {"task": "c"}]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results.read_rows_of(path) == rows
    records = [
        {"prompt_id": "test-0", "reward": 1.0},
        {"prompt_id": "test-0", "reward": 0.5},
        {"prompt_id": "test-2", "reward": None},
        {"prompt_id": "test-2", "reward": float("nan")},
        {"prompt_id": "test-1", "reward": 0.2 + 0.8},
    ]
    found = results.per_task(rows, records)
    assert found == {"a": results.TaskResult(4, 0.375, 0.25), "b": results.TaskResult(1, 1.0, 1.0)}
    assert results.comparison({}, found).splitlines()[2:] == [
        "| a | – | 25.0% | – | 0.375 |",
        "| b | – | 100.0% | – | 1.000 |",
    ]
    before = {"a": results.TaskResult(4, 0.125, 0.0), "c": results.TaskResult(4, 0.5, 0.5)}
    assert results.comparison(before, {**found, "c": results.TaskResult(4, 1.0, 1.0)}, {"a": 0.5}).splitlines()[2:] == [
        "| a | 0.0% | 25.0% | 0.125 | 0.375 | 50% |",
        "| c | 50.0% | 100.0% | 0.500 | 1.000 | 0% |",
        "| b | – | 100.0% | – | 1.000 | 0% |",
        "| **mean of 2 tasks** | 25.0% | 62.5% | 0.312 | 0.688 | 25% |",
    ]
    for wrong in ("test-4", "x"):
        with pytest.raises(ValueError, match="from SPLIT-0 to SPLIT-3"):
            results.per_task(rows, [{"prompt_id": wrong, "reward": 1.0}])


def test_groups_that_differ() -> None:
    rows = [{"task": "a"}, {"task": "b"}]
    groups = [  # (step, index, row, rewards)
        (0, 0, 0, [0.2, 0.2]),
        (0, 1, 0, [0.2, 1.0]),
        (1, 0, 0, [0.2, None]),
        (1, 1, 0, [float("nan"), None]),
        (1, 2, 1, [0.0, 0.2, None]),
    ]
    records = [
        {"step": step, "index": index, "prompt_id": f"train-{row}", "reward": reward}
        for step, index, row, rewards in groups
        for reward in rewards
    ]
    assert results.differing(rows, records) == {"a": 0.25, "b": 1.0}


def test_the_table_of_a_run_goes_into_a_page(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("test", "train"):
        (tmp_path / "data" / f"{split}.jsonl").write_text('{"task": "marks"}\n{"task": "table"}\n')
    for kind, split, step, scores in (
        ("eval", "test", 0, [0.2, 0.2]),
        ("eval", "test", 2, [0.2, 1.0]),
        ("eval", "test", 4, [1.0, 0.2]),  # the last counts, not the best
        ("rollouts", "train", 0, [0.2, 0.2, 1.0, 1.0]),
    ):
        frame = pd.DataFrame(
            {
                "step": step,
                "index": [0, 1, 0, 1][: len(scores)],
                "prompt_id": [f"{split}-0", f"{split}-1"] * (len(scores) // 2),
                "reward": scores,
            }
        )
        folder = tmp_path / "rl" / kind
        folder.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(folder / f"step-{step:06d}.parquet")
    table = results.table_of_run(tmp_path)
    assert table.splitlines()[2:] == [  # as the suite has them
        "| marks | 0.0% | 100.0% | 0.200 | 1.000 | 100% |",
        "| table | 0.0% | 0.0% | 0.200 | 0.200 | 100% |",
        "| **mean of 2 tasks** | 0.0% | 50.0% | 0.200 | 0.600 | 100% |",
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    for _ in range(2):
        results.write_into(page, table)
        assert page.read_text() == f"before\n{results.BEGIN}\n\n{table}\n\n{results.END}\nafter\n"
    page.write_text(results.END + results.BEGIN)
    with pytest.raises(ValueError, match="expected one <!-- measured -->"):
        results.write_into(page, table)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("SECTION 1\nThe hat is red.\nSECTION 2\nThe box is blue.", 1.0),
        ("SECTION 1\nThe hat is red.\nSECTION 2\nThe box is blue.\nSECTION 3\nThe end is near.", 0.6),
        ("SECTION 2\nThe box is blue.\nSECTION 1\nThe hat is red.", 0.6),  # both are there, neither in order
        ("The hat is red. SECTION 1 The box is blue. SECTION 2", 0.4),  # no lines of their own; the things in order
        ("The box and the hat are red.", 0.2),
    ],
)
def test_sections_are_numbered_and_in_order(said: str, expected: float) -> None:
    columns: Row = {
        "task": ["sections"],
        "thinking": [False],
        "instruction_id_list": [["detectable_format:multiple_sections"]],
        "kwargs": [[{"section_spliter": "SECTION", "num_sections": 2}]],
        "checklist": [[{"order": ["hat", "box"]}, {"order": ["SECTION 1", "hat", "SECTION 2", "box"]}]],
    }
    with RewardPool(reward_functions(["sections"]), 1, 20.0) as pool:
        verdict = pool.score(["Write 2 sections /no_think"], [said], columns)[0]
    assert verdict.score == pytest.approx(expected), verdict


# --- what is written down -------------------------------------------------------------------------------------------


def test_the_page_holds_the_table() -> None:
    assert f"\n{page.table()}\n" in (ROOT / "docs" / "general_rl.md").read_text()


def test_the_page_has_a_measurement_of_every_task() -> None:
    measured = (ROOT / "docs" / "general_rl.md").read_text().partition(results.BEGIN)[2].partition(results.END)[0]
    names = [line.split("|")[1].strip() for line in measured.splitlines() if line.startswith("|")]
    assert names == ["task", "---", *TASKS, f"**mean of {len(TASKS)} tasks**"]


def test_the_config_has_the_reward_of_every_task() -> None:
    written = yaml.safe_load((ROOT / "configs" / "rl" / "general.yaml").read_text())
    assert written["stages"]["rl"]["reward"]["functions"] == reward_functions()
    assert yaml.safe_load(page.reward_yaml()) == reward_functions()
