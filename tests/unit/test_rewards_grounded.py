"""`grounded_qa`: what is in the context, what is not, and who says so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rewards.base import OK, UNPARSEABLE
from rewards.grounded import abstains, grounded_qa_reward

DATA = Path(__file__).parents[2].parent / "shared" / "data"
CONTEXT = "The Panthers defense gave up just 308 points, ranking sixth in the league. Kawann Short led with 11 sacks."

# (references, completion, score)
TABLE = [
    ("308", "308", 1),
    ("308", "308.", 1),
    ("308", "<think>11</think>308", 1),
    ("308", r"They gave up \boxed{308}", 1),
    ("308", "308 points", 2 / 3),
    (["308", "308 points"], "308 points", 1),
    ("Kawann Short", "kawann short", 1),
    ("Kawann Short", "Short", 2 / 3),
    ("308", "They allowed 308 points", 2 / 5 * 2 / 4),  # `they` and `allowed` are not in the context
    ("308", "11", 0),
    ("308", "309", 0),
    ("308", "", 0),
    ("308", "I don't know.", 0),
    ("308", "<think>308", 0),
    ("308", "<think>308</think>", 0),
    ("308", "<think>308</think>11", 0),
    ("308", CONTEXT, 2 / 18),  # the whole context: 17 words without articles
    ("308", "308 or 11 or 6 or 12", 2 / 8 * 2 / 7),
    # no answer in the context
    ([], "I don't know.", 1),
    ([], "I do not know", 1),
    ([], "The text does not mention it.", 1),
    ([], "It is not mentioned in the passage.", 1),
    ([], "This cannot be answered from the context.", 1),
    ([], "There is not enough information.", 1),
    ([], "unanswerable", 1),
    ([], "<think>308?</think>I don't know.", 1),
    ([], "无法回答。", 1),
    ([], "文中没有提到。", 1),
    ([], "308", 0),
    ([], "", 0),
    ([], "I know: 308", 0),
    ([], "I don't know, but maybe 308.", 0),
    ([], "It is not mentioned. However, I believe it is 308.", 0),
    ([], "I don't know. " + "The defense was good. " * 20, 0),
    ([], "<think>I don't know</think>308", 0),
    ([], "<think>I don't know", 0),
    ([], "Unknowable", 0),
]


@pytest.mark.parametrize(("answer", "completion", "score"), TABLE)
def test_table(answer, completion, score):
    [verdict] = grounded_qa_reward(["x"], [completion], [CONTEXT], [answer])
    assert verdict.status == OK
    assert verdict.score == pytest.approx(score)


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        (None, "308"),
        ("", "308"),
        (7, "308"),
        ("!", []),
        (CONTEXT, None),
        (CONTEXT, ""),
        (CONTEXT, "?"),
        (CONTEXT, [""]),
        (CONTEXT, {"text": "308"}),
        (CONTEXT, "309"),
        (CONTEXT, "08 points"),
        (CONTEXT, ["309", "310"]),
    ],
)
def test_rows_that_cannot_be_graded(context, answer):
    for completion in ("308", "I don't know.", ""):
        [verdict] = grounded_qa_reward(["x"], [completion], [context], [answer])
        assert (verdict.status, verdict.score) == (UNPARSEABLE, 0.0)


def test_an_abstention_that_is_the_reference_is_an_answer():
    context = "He said: it was not mentioned."
    [verdict] = grounded_qa_reward(["x"], ["not mentioned"], [context], ["not mentioned"])
    assert verdict.score == 1.0
    assert abstains("not mentioned")


def test_parts_tell_why():
    [verdict] = grounded_qa_reward(["x"], ["308 goals"], [CONTEXT], ["308"])
    assert verdict.parts == pytest.approx({"f1": 2 / 3, "grounded": 1 / 2, "abstained": 0.0})


@pytest.mark.parametrize("name", ["xquad_en", "xquad_zh"])
def test_reference_answers_of_real_questions(name):
    path = DATA / "xquad" / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(200), file, strict=False)]
    golds = [row["answers"] for row in rows]
    contexts = [row["context"] for row in rows]
    verdicts = grounded_qa_reward(["q"] * len(rows), [gold[0] for gold in golds], contexts, golds)
    right = [verdict.score == 1.0 for verdict in verdicts if verdict.ok]
    assert all(right)
    assert len(right) >= 0.95 * len(rows)
    wrong = grounded_qa_reward(["q"] * len(rows), ["zebra"] * len(rows), contexts, golds)
    assert {verdict.score for verdict in wrong} == {0.0}
