"""ThinkFollow, LengthCtrl, CounterFactQA, ToolUse: generators, worked answers that pass and fail, scores by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.chat import render_chat, render_example
from model.tokenizer import chat_texts, train_bpe
from rewards.base import OK, UNPARSEABLE
from rewards.runner import RewardPool
from rlplatform.tasks.general import TASKS, golden
from rlplatform.tasks.general.inhouse import counterfactqa, lengthctrl, thinkfollow, tooluse

Row = dict[str, Any]
SINGLE = {
    "lengthctrl": (lengthctrl.prompts, lengthctrl.FUNCTIONS),
    "counterfactqa": (counterfactqa.questions, counterfactqa.FUNCTIONS),
    "tooluse": (tooluse.requests, tooluse.FUNCTIONS),
}


# --- ThinkFollow ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dialogues() -> list[Row]:
    return thinkfollow.dialogues(7)["test"]


def test_dialogues_are_many_different_and_repeatable(dialogues: list[Row]) -> None:
    assert len(dialogues) >= 300
    assert len({json.dumps([row["system"], row["users"]]) for row in dialogues}) == len(dialogues)
    assert min(len(row["users"]) for row in dialogues) >= 4
    assert thinkfollow.dialogues(7)["test"] == dialogues
    assert thinkfollow.dialogues(8)["test"] != dialogues
    assert thinkfollow.dialogues(7, num_test=5)["test"] == dialogues[:5]


def test_the_mode_of_every_turn_is_that_of_the_last_flag(dialogues: list[Row]) -> None:
    """Read from the texts alone, turn by turn."""
    flag = re.compile(r"(?<!\S)/(no_)?think$")
    for row in dialogues:
        found = flag.search(row["system"])
        thinking, came_by = (found is None or found[1] is None), "after_system_flag" if found else "no_flag"
        for user, expected, sort in zip(row["users"], row["thinking"], row["sorts"], strict=True):
            if match := flag.search(user):
                thinking, came_by = match[1] is None, "after_flag"
            assert expected == thinking
            assert sort == ("flagged" if match else came_by)


def test_every_sort_of_turn_is_there_in_both_modes(dialogues: list[Row]) -> None:
    found = {(sort, mode) for row in dialogues for sort, mode in zip(row["sorts"], row["thinking"], strict=True)}
    assert found == {(s, m) for s in thinkfollow.SORTS for m in (True, False)} - {("no_flag", False)}
    for row in dialogues:
        assert {"flagged", "after_flag"} <= set(row["sorts"])
    assert 90 < sum("/" in row["system"] for row in dialogues) < 170  # two of five


def test_dialogues_are_no_training_prompts(dialogues: list[Row]) -> None:
    for name in ("mode_single", "mode_dialogue", "mode_system"):
        rows = TASKS[name].rows(7, num_train=300)["train"]
        assert max(sum(m["role"] == "user" for m in row["prompt"]) for row in rows) < 4


def test_worked_replies_follow_and_the_others_do_not(dialogues: list[Row]) -> None:
    pairs = [thinkfollow.golden(row) for row in dialogues]
    right = thinkfollow.score(dialogues, [good for good, _ in pairs])
    assert (right.per_turn, right.per_dialogue) == (1.0, 1.0)
    assert set(right.by_sort.values()) == {1.0}
    wrong = thinkfollow.score(dialogues, [bad for _, bad in pairs])
    assert wrong.per_dialogue == 0.0
    num_turns = sum(len(row["users"]) for row in dialogues)
    assert wrong.per_turn == pytest.approx(1 - len(dialogues) / num_turns)
    assert (wrong.num_turns, wrong.num_dialogues) == (num_turns, len(dialogues))


def test_a_model_that_knows_one_mode_only_is_found_out(dialogues: list[Row]) -> None:
    always = [["<think>\nhm\n</think>\n\nyes"] * len(row["users"]) for row in dialogues]
    scored = thinkfollow.score(dialogues, always)
    modes = [mode for row in dialogues for mode in row["thinking"]]
    assert scored.per_turn == pytest.approx(sum(modes) / len(modes))
    assert scored.per_dialogue < 0.2
    assert scored.by_sort["no_flag"] == 1.0


@pytest.mark.parametrize(
    ("reply", "thinks", "silent"),
    [
        ("<think>\nhm\n</think>\n\nyes", True, False),
        ("<think>\n\n</think>\n\nyes", False, True),
        ("yes", False, True),
        ("<think>\nhm", False, False),  # cut off while thinking
        ("<think>\nhm\n</think>\n\n", False, False),  # no answer
        ("hm\n</think>\n\nyes", False, False),
        ("", False, False),
        ("<think>\na\n</think>\n\n<think>\nb\n</think>\n\nyes", False, False),
    ],
)
def test_one_turn_by_hand(reply: str, thinks: bool, silent: bool) -> None:
    row = {"id": "r", "users": ["a", "b /no_think"], "thinking": [True, False]}
    assert thinkfollow.followed(row, [reply, reply]) == [thinks, silent]


def test_a_score_by_hand() -> None:
    rows = [
        {"id": "a", "users": ["x", "y"], "thinking": [True, False], "sorts": ["no_flag", "flagged"]},
        {"id": "b", "users": ["x", "y"], "thinking": [False, False], "sorts": ["flagged", "after_flag"]},
    ]
    scored = thinkfollow.score(rows, [["<think>\nt\n</think>\n\nx", "x"], ["x", "<think>\nt\n</think>\n\nx"]])
    assert (scored.per_turn, scored.per_dialogue) == (0.75, 0.5)
    assert scored.by_sort == {"flagged": 1.0, "after_flag": 0.0, "no_flag": 1.0}
    with pytest.raises(ValueError, match="expected 2 replies, got 1"):
        thinkfollow.score(rows, [["x"], ["x", "x"]])
    with pytest.raises(ValueError, match="at least 1"):
        thinkfollow.score([], [])


def test_settings_out_of_range_are_errors() -> None:
    with pytest.raises(ValueError, match="turns >= 4"):
        thinkfollow.dialogues(0, num_turns=[3])
    with pytest.raises(ValueError, match="flag_share"):
        thinkfollow.dialogues(0, flag_share=1.0)


def test_a_dialogue_is_asked_turn_by_turn(dialogues: list[Row], tmp_path: Path) -> None:
    """The next prompt through the chat template is the same with the replies as sampled, or without their thoughts."""
    tokenizer = train_bpe(chat_texts([thinkfollow.worked(row) for row in dialogues[:9]]), 500, tmp_path / "tokenizer")
    for row in dialogues[:6]:
        good, _ = thinkfollow.golden(row)
        messages = thinkfollow.worked(row)
        first = 1 if row["system"] else 0
        for turn in range(len(good)):
            prompt = thinkfollow.prompt_of(row, good[:turn])
            assert prompt[-1] == {"role": "user", "content": row["users"][turn]}
            assert not any("<think>" in message["content"] for message in prompt)
            shown = render_chat(tokenizer, prompt, add_generation_prompt=True)
            assert shown == render_chat(tokenizer, messages[: first + 2 * turn + 1], add_generation_prompt=True)
        token_ids, mask = render_example(tokenizer, messages)
        assert tokenizer.decode(token_ids[mask]) == "".join(f"{text}<|im_end|>" for text in good)


# --- the three of one answer each -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLE)
def test_rows_are_many_different_and_repeatable(name: str) -> None:
    generate, _ = SINGLE[name]
    rows = generate(3)["test"]
    assert len(rows) >= 300
    assert len({json.dumps(row["prompt"]) for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    assert generate(3)["test"] == rows
    assert generate(4)["test"] != rows
    for flag, thinking in (("", True), ("/think", True), ("/no_think", False)):
        (row,) = generate(3, num_test=1, flag=flag)["test"]
        assert row["prompt"][-1]["content"].endswith(flag)
        assert row["thinking"] == thinking
        assert bool(golden(row)[0].partition("</think>")[0].removeprefix("<think>").strip()) == thinking
    with pytest.raises(ValueError, match="flag"):
        generate(3, flag="/nothink")


@pytest.mark.parametrize("name", SINGLE)
def test_worked_answers_pass_and_the_others_fail_by_the_reward_of_a_config(name: str) -> None:
    generate, functions = SINGLE[name]
    rows = generate(5, num_test=60)["test"]
    columns = {column: [row.get(column) for row in rows] for column in rows[0] if column != "prompt"}
    with RewardPool(functions) as pool:
        right, wrong = (
            pool.score([row["prompt"] for row in rows], [golden(row)[which] for row in rows], columns)
            for which in (0, 1)
        )
    assert {(verdict.status, verdict.score) for verdict in right} == {(OK, 1.0)}
    assert {verdict.status for verdict in wrong} == {OK}
    assert max(verdict.score for verdict in wrong) < 0.9


@pytest.mark.parametrize("size", lengthctrl.SIZES)
def test_length_demands_and_their_bounds(size: str) -> None:
    rows = lengthctrl.prompts(0, size=size)["test"]
    assert {row["demand"] for row in rows} == set(lengthctrl.DEMANDS)
    for row in rows:
        text = row["prompt"][-1]["content"]
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        low, high = row["length_target"]
        assert row["demand"] in text
        expected = {
            "exactly": (numbers[0], numbers[0]),
            "between": (numbers[0], numbers[-1]),
            "at least": (numbers[0], 2 * numbers[0]),
            "at most": ((numbers[0] + 1) // 2, numbers[0]),
        }
        if row["demand"] == "about":
            assert low <= numbers[0] <= high
            assert 10 * (numbers[0] - low) <= numbers[0] >= 10 * (high - numbers[0])
        else:
            assert (low, high) == expected[row["demand"]]
        assert lengthctrl.score(row, golden(row)[0]) == 1.0
        assert lengthctrl.score(row, golden(row)[1]) < 0.5
    with pytest.raises(ValueError, match="size of short, long"):
        lengthctrl.prompts(0, size="huge")


def test_length_scores_by_hand() -> None:
    row = {"prompt": [{"role": "user", "content": "x"}], "length_target": [10, 12]}

    def of(number: int) -> float:
        return lengthctrl.score(row, f"<think>\na thought of many more words\n</think>\n\n{'word ' * number}")

    assert [of(10), of(11), of(12)] == [1.0] * 3
    assert of(24) == pytest.approx(1 - (24 / 12 - 1) / 3)
    assert of(8) == pytest.approx(1 - (10 / 8 - 1) / 2)
    assert [of(0), of(3), of(60)] == [0.0] * 3


def test_false_premises_of_every_sort_and_controls() -> None:
    rows = counterfactqa.questions(2)["test"]
    sorts = [row["sort"] for row in rows]
    assert sorts.count("control") == 80
    assert min(sorts.count(sort) for sort in counterfactqa.SORTS) >= 55
    right = counterfactqa.score(rows, [golden(row)[0] for row in rows])
    assert right.false_premise == 1.0
    assert right.by_sort == dict.fromkeys([*counterfactqa.SORTS, "control"], 1.0)
    wrong = counterfactqa.score(rows, [golden(row)[1] for row in rows])
    assert set(wrong.by_sort.values()) == {0.0} == {wrong.false_premise}
    deny = counterfactqa.score(rows, ["That is false."] * len(rows))  # one who denies everything is found out
    assert (deny.false_premise, deny.by_sort["control"]) == (1.0, 0.0)
    assert deny.num_questions == 320
    with pytest.raises(ValueError, match="of a false premise"):
        counterfactqa.score([row for row in rows if row["sort"] == "control"][:1], ["x"])
    with pytest.raises(ValueError, match="control_share"):
        counterfactqa.questions(0, control_share=0.9)
    with pytest.raises(ValueError, match="no new question of sort"):
        counterfactqa.questions(0, num_test=5000)


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("Cats do not lay eggs; they give birth.", True),
        ("Cats don’t lay eggs.", True),
        ("The premise is false.", True),
        ("Cats lay eggs to protect their young.", False),
        ("Cats do not lay eggs, but perhaps in spring.", False),
        ("<think>\nCats do not lay eggs.\n</think>\n\nIn spring.", False),
        ("", False),
    ],
)
def test_a_false_premise_by_hand(answer: str, is_right: bool) -> None:
    rows = counterfactqa.questions(0, control_share=0.0)["test"]
    row = next(row for row in rows if row["sort"] == "property")
    assert counterfactqa.right(row, answer) == is_right


CALL = '<tool_call>\n{{"name": "{}", "arguments": {{"city": "{}"}}}}\n</tool_call>'
ROME, PARIS, TIME = CALL.format("weather", "Rome"), CALL.format("weather", "Paris"), CALL.format("time", "Rome")


@pytest.mark.parametrize(
    ("calls", "answer", "expected"),
    [
        ([ROME], ROME, (1, 1, 1)),
        ([ROME], PARIS, (1, 1, 0)),
        ([ROME], TIME, (0, 1, 0)),
        ([ROME], ROME + TIME, (0, 1, 0.5)),
        ([ROME, TIME], TIME + "\n" + ROME, (1, 1, 1)),
        ([ROME, TIME], TIME + PARIS, (1, 1, 0.5)),
        ([ROME, TIME], TIME, (0, 1, 0.5)),
        ([ROME, ROME], ROME + PARIS, (1, 1, 0.5)),
        ([ROME], "It rains in Rome.", (0, 1, 0)),
        ([ROME], ROME.replace("}}", "}"), (0, 0, 0)),
        ([ROME], ROME.removesuffix("</tool_call>"), (0, 0, 0)),
        ([ROME], "", (0, 0, 0)),
        ([ROME], f"<think>\n{ROME}", (0, 0, 0)),
        ([ROME], f"<think>\n{PARIS}\n</think>\n\n{ROME}", (1, 1, 1)),
        ([], "None of the tools fits.", (1, 1, 1)),
        ([], ROME, (0, 1, 0)),
        ([], "", (0, 0, 0)),
    ],
)
def test_tool_use_by_hand(calls: list[str], answer: str, expected: tuple[float, float, float]) -> None:
    wanted = json.dumps([json.loads(call.split("\n")[1]) for call in calls])
    (verdict,) = tooluse.tool_use_reward([""], [answer], [wanted])
    assert (verdict.parts["intent"], verdict.parts["format"], verdict.parts["parameters"]) == expected
    assert verdict.score == pytest.approx(sum(expected) / 3)


def test_tool_use_scores_and_sorts() -> None:
    rows = tooluse.requests(1, difficulty=2)["test"]
    assert {row["sort"] for row in rows} == {"single_turn", "multi_turn", "multi_step"}
    assert any(row["prompt"][-1]["role"] == "tool" for row in rows)
    assert any(row["answer"] == "[]" for row in rows)
    right = tooluse.score(rows, [golden(row)[0] for row in rows])
    assert right.score == 1.0
    assert set(right.subscores.values()) | set(right.by_sort.values()) == {1.0}
    silent = tooluse.score(rows, ["I do not know." for _ in rows])
    assert silent.subscores["format"] == 1.0
    assert silent.subscores["intent"] == sum(row["answer"] == "[]" for row in rows) / len(rows)
    with pytest.raises(ValueError, match="at least 1"):
        tooluse.score([], [])
    (verdict,) = tooluse.tool_use_reward([""], [ROME], ["weather"])
    assert verdict.status == UNPARSEABLE
    with pytest.raises(ValueError, match="cannot be read"):
        tooluse.score([{**rows[0], "answer": "weather"}], [ROME])
    with pytest.raises(ValueError, match="difficulty of 1 to 3"):
        tooluse.requests(0, difficulty=9)
