"""The six response filters, each against a table of texts made to fool it, and the choice among what is left."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplatform.stages.loops import longest_cycle
from rlplatform.stages.records import Row, apply_filters
from rlplatform.stages.response_filters import (
    disagreement,
    guessing,
    last_stated_answer,
    mixed_languages,
    repetition,
    same_answer,
    similar_to_validation,
    wrong_answer,
)
from rlplatform.stages.sample_selection import select_samples

REASONING = (
    "We add the units first: seven and five make twelve, so we write two and carry one. Then the tens: four and eight "
    "and the carried one make thirteen, so we write three and carry one. The hundreds: three and two and one make six."
)


def row(response: str, *, sample: int = 0, name: str = "q", **columns: object) -> dict:
    return {
        "id": name,
        "sample": sample,
        "prompt": "What is 347 + 285?",
        "status": "ok",
        "score": 1.0,
        "response": response,
        **columns,
    }


def think(thought: str, answer: str = r"\boxed{632}") -> str:
    return f"<think>\n{thought}\n</think>\n\n{answer}"


# --- 1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "score", "reason"),
    [
        ("ok", 1.0, ""),
        ("ok", 0.9999999, ""),  # float noise of a weighted sum
        ("ok", 0.99, "wrong_answer"),
        ("ok", 0.0, "wrong_answer"),
        ("ok", -1.0, "wrong_answer"),
        ("timeout", 0.0, "grader_timeout"),
        ("error", 1.0, "grader_error"),  # its score is not read
        ("unparseable", 0.0, "grader_unparseable"),
        ("not_applicable", 0.0, "grader_not_applicable"),
    ],
)
def test_wrong_answers_are_the_models_and_other_verdicts_the_graders(status: str, score: float, reason: str) -> None:
    assert wrong_answer([row("x", status=status, score=score)])[0].reason == reason


@pytest.mark.parametrize("change", [{"status": None}, {"status": "correct"}, {"score": None}, {"score": True}])
def test_broken_verdicts_are_errors(change: dict) -> None:
    with pytest.raises(ValueError, match="row 'q#0': expected"):
        wrong_answer([row("x", **change)])


# --- 2 --------------------------------------------------------------------------------------------------------------

LINES = "\n".join(f"Step {k}: we look at number {k} and find nothing new about it." for k in range(30))
REPETITION = [
    (REASONING, ""),
    ("short", ""),
    ("", ""),
    (" ".join([REASONING] * 2), "repeated_ngrams"),
    (" ".join([REASONING] * 5), "repeated_ngrams"),
    ("Wait. " * 100, "repeated_ngrams"),
    ("hahahahaha" * 30, "repeated_ngrams"),
    ("等等，让我再想想。" * 30, "repeated_ngrams"),
    # a loop in the middle or at the end of a long and otherwise new text: a small share of it
    (" ".join(f"w{k}" for k in range(400)) + " let me check again and" * 12, "loop"),
    (" ".join(f"w{k}" for k in range(400)) + " so so so so" * 12 + " ".join(f"v{k}" for k in range(400)), "loop"),
    (" ".join(f"w{k}" for k in range(900)) + "\n- no\n\n- yes\n" * 20 + " ".join(f"v{k}" for k in range(900)), "loop"),
    ("7+5=12 carry 1\n4+8+1=13 carry 1\n3+2+1=6", ""),  # a worked sum
    ("\n".join(f"{k} + {k} = {2 * k}" for k in range(40)), ""),  # a table
    ("the set is {" + ", ".join(map(str, range(200))) + "}", ""),
    (REASONING + " 0.33333333333333333333333333333333333333333333333333333333", ""),
    ("x " * 39, "repeated_ngrams"),
    (" ".join(f"w{k}" for k in range(400)) + " x" * 39, ""),  # one sign short of a loop
    (" ".join(f"w{k}" for k in range(400)) + " x" * 40, "loop"),
]


@pytest.mark.parametrize(("text", "reason"), REPETITION)
def test_repetition(text: str, reason: str) -> None:
    assert repetition([row(text)])[0].reason == reason


def test_repetition_says_what_and_takes_bounds() -> None:
    text = " ".join(f"w{k}" for k in range(400)) + " a b" * 30
    decision = repetition([row(text)])[0]
    assert decision.detail == "30 times 'a b'"
    assert repetition([row(text)], min_cycles=31)[0].kept
    assert repetition([row(text)], min_loop_tokens=61)[0].kept
    assert not repetition([row(LINES)], n=4, max_repeated=0.05)[0].kept


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(2, 4))
def test_the_longest_cycle_against_brute_force(items: list[str], min_cycles: int) -> None:
    def brute() -> int:
        best = 0
        for period in range(1, len(items) // min_cycles + 1):
            for start in range(len(items)):
                stop = start + period
                while stop < len(items) and items[stop] == items[stop - period]:
                    stop += 1
                if start + period <= len(items) and stop - start >= max(min_cycles * period, 2):
                    best = max(best, stop - start)
        return best

    start, length, period = longest_cycle(items, min_cycles)
    assert length == brute()
    assert all(items[k] == items[k - period] for k in range(start + period, start + length))


# --- 3 --------------------------------------------------------------------------------------------------------------

GUESSING = [
    (think(REASONING), ""),
    (r"\boxed{632}", "no_reasoning"),
    (think(""), "no_reasoning"),
    (think("632."), "no_reasoning"),
    (think("I think it is 632."), "no_reasoning"),
    (think(REASONING + " I can't figure it out, so I'll just guess 632."), "guess"),
    (think(REASONING + " Let me guess: 632."), "guess"),
    (think(REASONING + " My best guess is 632."), "guess"),
    (think(REASONING + " I have no idea. 632."), "guess"),
    (think(REASONING + " Not sure, but 632."), "guess"),
    (think(REASONING + " I'll randomly pick 632."), "guess"),
    (think(REASONING + " 算不出来，我猜是632。"), "guess"),
    (think(REASONING, r"I will guess \boxed{632}."), "guess"),
    (think(REASONING + " I'll guess 632 without checking."), "guess"),
    (think(REASONING + " I'll guess 632; I can't verify it."), "guess"),
    (think(REASONING + " I'll guess 632, hopefully it works."), "guess"),
    # a guess that is checked is a method
    (think(REASONING + " Let me guess x = 632 and check: 632 - 285 = 347. That works."), ""),
    (think(REASONING + " I'll guess 632. Substituting gives 347, so it holds."), ""),
    (think("Let me guess 600 first. Too small. " + REASONING + " " + REASONING), ""),  # an early guess, left behind
    (think(REASONING + " A ball is drawn at random, we choose one of six."), ""),
    (think("The reader's guess does not matter. " + REASONING), ""),
    (think(REASONING + " The guessing game has 632 rounds."), ""),
]


@pytest.mark.parametrize(("response", "reason"), GUESSING)
def test_guessing(response: str, reason: str) -> None:
    assert guessing([row(response)])[0].reason == reason


def test_a_thought_far_shorter_than_its_peers() -> None:
    long, short = think(" ".join([REASONING] * 6)), think("Seven and five are twelve. " * 4)
    rows = [row(long, sample=k) for k in range(4)] + [row(short, sample=4)]
    assert [decision.reason for decision in guessing(rows)] == ["", "", "", "", "short_reasoning"]
    assert guessing([*rows[:1], rows[4]])[1].kept  # two responses are no peers
    wrong = [{**r, "score": 0.0} for r in rows[:4]]
    assert guessing([*wrong, rows[4]])[4].kept  # what is wrong sets no standard
    assert guessing([*rows[:4], {**rows[4], "id": "other"}])[4].kept
    assert guessing(rows, min_share=0.01)[4].kept


def test_short_tasks_set_their_own_bound() -> None:
    response = think("7+5=12 carry 1\n4+8+1=13 carry 1\n3+2+1=6")
    assert guessing([row(response)], min_thought_tokens=15)[0].kept
    opened = "7+5=12 carry 1\n4+8+1=13 carry 1\n3+2+1=6\n</think>\n\n632"
    assert guessing([row(opened, opened=True)], min_thought_tokens=15)[0].kept
    assert not guessing([row(opened.replace("7+5=12 carry 1\n", ""), opened=True)], min_thought_tokens=20)[0].kept


# --- 4 --------------------------------------------------------------------------------------------------------------

DISAGREEMENT = [
    ("so the answer is 632.", r"\boxed{632}", ""),
    (r"so \boxed{632}", r"The sum is \boxed{632}.", ""),
    ("the answer is 631.", r"\boxed{632}", "thought_disagrees"),
    (r"\boxed{631}", r"\boxed{632}", "thought_disagrees"),
    (r"the answer is 631. No, wait: the answer is 632", r"\boxed{632}", ""),
    (r"\boxed{632}? Let me redo it. So the answer is 633.", r"\boxed{632}", "thought_disagrees"),
    (r"The answer is 63. Hmm, again: \boxed{632}", r"\boxed{632}", ""),
    ("the answer is 0.5", r"\boxed{\frac{1}{2}}", ""),
    (r"the answer is $\frac{2}{4}$.", r"\boxed{0.5}", ""),
    ("Final answer: (B)", r"\boxed{B}", ""),
    ("Final answer: (C)", r"\boxed{B}", "thought_disagrees"),
    ("the answer is yes", r"\boxed{no}", "thought_disagrees"),
    ("答案是632。", r"\boxed{632}", ""),
    ("答案是631。", r"\boxed{632}", "thought_disagrees"),
    ("the answer is 1,000", r"\boxed{1000}", ""),
    (r"\boxed{900000000}", r"\boxed{900,\!000,\!000}", ""),
    ("the answer is 632", "632", ""),  # a bare final answer
    ("the answer is 631", "632", "thought_disagrees"),
    ("so the answer is 632, so I write that.", r"\boxed{632}", ""),
]
UNKNOWN = [
    ("7+5=12 carry 1\n4+8+1=13", r"\boxed{632}"),
    ("the answer is obvious", r"\boxed{632}"),
    ("the answer is not 5", r"\boxed{632}"),
    ("if the answer is 5 then x is 3", r"\boxed{632}"),
    ("", r"\boxed{632}"),
    ("the answer is 632", "That depends on many things, and none of them was given in the question that was asked."),
    (r"\boxed{9^{9^{9}}}", r"\boxed{9^{9^{8}}}"),  # nobody computes that
    (r"\boxed{(10^9)!}", r"\boxed{7}"),
]


@pytest.mark.parametrize(("thought", "answer", "reason"), DISAGREEMENT)
def test_thought_and_answer(thought: str, answer: str, reason: str) -> None:
    decision = disagreement([row(think(thought, answer))])[0]
    assert (decision.reason, decision.detail.startswith("unknown")) == (reason, False)


@pytest.mark.parametrize(("thought", "answer"), UNKNOWN)
def test_what_cannot_be_told_is_kept_and_said(thought: str, answer: str) -> None:
    decision = disagreement([row(think(thought, answer))])[0]
    assert decision.kept
    assert decision.detail.startswith("unknown: ")


def test_an_unfinished_thought() -> None:
    assert disagreement([row("<think>\nthe answer is 5")])[0].reason == "unfinished"
    assert disagreement([row("the answer is 5", opened=True)])[0].reason == "unfinished"


def test_another_comparison_may_be_plugged_in() -> None:
    asked = []

    def same(a: str, b: str) -> bool | None:
        asked.append((a, b))
        return None

    assert disagreement([row(think("the answer is 1"))], same=same)[0].detail.endswith("cannot be compared")
    assert asked == [("1", "632")]
    assert same_answer("x = 3", "3")
    assert last_stated_answer("nothing") is None


# --- 5 --------------------------------------------------------------------------------------------------------------

EN = "The train leaves the station at noon and arrives in the evening. We add both distances."
DE = "Der Zug verlässt den Bahnhof am Mittag und kommt am Abend an. Wir addieren beide Strecken."
ZH = "火车中午离开车站，晚上到达。我们把两段距离相加，再除以速度。"
LANGUAGES = [
    (think(EN, EN), "en", ""),
    (think(DE, DE), "de", ""),
    (think(ZH, ZH + r"\boxed{5}"), "zh", ""),
    (think(ZH, EN), "en", "mixed_languages"),
    (think(EN, DE), "en", "mixed_languages"),
    (think(EN + " " + ZH, EN), "en", "mixed_languages"),
    (think(DE, EN), "de", "mixed_languages"),
    (think(EN + " The word 猫 means cat.", EN), "en", ""),
    (think(EN + r" $\alpha \beta \gamma$ `für i in range`", EN), "en", ""),
    (think("3 + 4 = 7", "7"), "en", ""),
    (think(EN, EN + "<|im_end|>"), "en", ""),  # the stop token
    (think(EN, EN + "<|im_start|>user\nmore"), "en", "style_shift"),
    (think(EN, EN + "\nUser: and now?\nAssistant: well"), "en", "style_shift"),
    (think(EN, EN + "\n\nTHE TRAIN LEAVES THE STATION AT NOON AND ARRIVES IN THE EVENING."), "en", "style_shift"),
    ("A user: a person who uses a thing.\n\n" + EN, "en", ""),
    (think(EN, "<think>\nagain\n</think>\n\n" + EN), "en", "malformed"),
    (think(EN, ""), "en", "malformed"),
]


@pytest.mark.parametrize(("response", "language", "reason"), LANGUAGES)
def test_languages_and_style(response: str, language: str, reason: str) -> None:
    assert mixed_languages([row(response, language=language)])[0].reason == reason


def test_the_language_of_the_prompt_or_of_the_response() -> None:
    german = {"prompt": "Ein Zug fährt am Mittag los und kommt am Abend an. Wie lange fährt er?"}
    assert mixed_languages([row(think(DE, DE), **german)])[0].kept
    assert mixed_languages([row(think(EN, EN), **german)])[0].reason == "mixed_languages"
    assert mixed_languages([row(think(DE, DE))])[0].kept  # the prompt is too short to tell
    assert mixed_languages([row(think(DE, EN))])[0].reason == "mixed_languages"
    decision = mixed_languages([row(think("3 + 4", "7"))])[0]
    assert decision.kept
    assert decision.detail.startswith("unknown")
    with pytest.raises(ValueError, match="expected a language code"):
        mixed_languages([row(think(EN, EN), language="klingon")])


# --- 6 --------------------------------------------------------------------------------------------------------------

VALIDATION = [
    {"id": "v1", "prompt": "A farmer has 17 sheep and all but 9 run away. How many sheep are left on his farm?"},
    {"id": "v2", "prompt": "What is 12 + 13?"},
    {"id": "v3", "prompt": "农夫有十七只羊，除了九只以外都跑了。还剩几只羊？"},
]
SIMILAR = [
    ("What is 347 + 285?", think(REASONING), ""),
    (VALIDATION[0]["prompt"], think(REASONING), "similar_query"),
    (VALIDATION[0]["prompt"].upper() + "!!", think(REASONING), "similar_query"),
    ("A farmer has 17 sheep and all but 9 run away. How many sheep does he have?", think(REASONING), "similar_query"),
    ("A baker has 4 loaves and sells 2 of them. How many loaves are left on his shelf?", think(REASONING), ""),
    ("What is 12 + 13?", think(REASONING), "similar_query"),
    ("What is 12 - 13?", think(REASONING), ""),
    ("What is 12 + 14?", think(REASONING), ""),
    ("How many?", think("Example: " + VALIDATION[0]["prompt"] + " Now ours. " + REASONING), "validation_query_inside"),
    ("还剩几只？", think("农夫有十七只羊，除了九只以外都跑了。还剩几只羊？答案是九。"), "validation_query_inside"),
    ("", think(""), ""),
]


@pytest.mark.parametrize(("prompt", "response", "reason"), SIMILAR)
def test_similarity_to_validation(prompt: str, response: str, reason: str) -> None:
    decision = similar_to_validation([row(response, prompt=prompt)], validation=VALIDATION)[0]
    assert decision.reason == reason


def test_the_similarity_by_hand() -> None:
    """3-grams abc bcd cde and bcd cde def: 2 shared of 4."""
    rows = [row("zzz", prompt="a b c d e")]
    decide = partial(similar_to_validation, rows, validation=[{"id": "v", "prompt": "b c d e f"}], n=3)
    assert decide(max_similarity=0.5)[0].kept
    assert decide(max_similarity=0.49)[0].detail == "0.50 to v, bound 0.49"
    with pytest.raises(ValueError, match="at least one validation item"):
        similar_to_validation(rows, validation=[])
    with pytest.raises(ValueError, match="0 <= bound < 1"):
        decide(max_similarity=1.0)


def test_the_six_in_a_row_keep_a_good_response() -> None:
    good = row(think(REASONING + " So the answer is 632."), sample=0)
    rows = [
        good,
        row(think(REASONING), sample=1, score=0.0),
        row(think(" ".join([REASONING] * 3)), sample=2),
        row(think("632"), sample=3),
        row(think(REASONING + " So the answer is 631."), sample=4),
        row(think(REASONING + ZH), sample=5),
        row(think(REASONING + VALIDATION[0]["prompt"]), sample=6),
    ]
    records = apply_filters(
        "responses",
        rows,
        {
            "wrong": wrong_answer,
            "repetition": repetition,
            "guessing": guessing,
            "disagreement": disagreement,
            "languages": mixed_languages,
            "validation": partial(similar_to_validation, validation=VALIDATION),
        },
    )
    assert records.kept == [good]
    assert [record.reason for record in records.records[1:]] == [
        "wrong_answer",
        "repeated_ngrams",
        "no_reasoning",
        "thought_disagrees",
        "mixed_languages",
        "validation_query_inside",
    ]


# --- minimal samples ------------------------------------------------------------------------------------------------


def kept(rows: list[Row], **settings: object) -> list[tuple[str, int]]:
    decisions = select_samples(rows, **settings)  # type: ignore[arg-type]
    return [(r["id"], r["sample"]) for r, decision in zip(rows, decisions, strict=True) if decision.kept]


def test_the_shortest_and_the_most_different() -> None:
    rows = [
        row("a b c d e f", sample=0),
        row("a b c d e", sample=1),  # shortest
        row("a b c d e g", sample=2),
        row("u v w x y z", sample=3),  # shares nothing with it
        row("a b c u v w", sample=4),  # shares abc with one, uvw with the other
        row("one two", sample=0, name="other"),
    ]
    assert kept(rows, per_query=1, how="shortest", seed=0) == [("q", 1), ("other", 0)]
    assert kept(rows, per_query=2, how="diverse", seed=0) == [("q", 1), ("q", 3), ("other", 0)]
    assert kept(rows, per_query=3, how="diverse", seed=0) == [("q", 1), ("q", 3), ("q", 4), ("other", 0)]
    assert len(kept(rows, per_query=9, how="random", seed=0)) == 6
    with pytest.raises(ValueError, match="per_query >= 1"):
        kept(rows, per_query=0, how="random", seed=0)
    with pytest.raises(ValueError, match="shortest, diverse or random"):
        kept(rows, per_query=1, how="longest", seed=0)


@pytest.mark.parametrize("how", ["shortest", "diverse", "random"])
def test_the_order_of_rows_does_not_matter(how: str) -> None:
    rows = [row("same words here " + "x" * (k % 3 == 0), sample=k, name=f"q{k % 4}") for k in range(24)]
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    first = sorted(kept(rows, per_query=2, how=how, seed=5))
    assert first == sorted(kept(shuffled, per_query=2, how=how, seed=5))
    assert len(first) == 8
    assert any(sorted(kept(rows, per_query=2, how=how, seed=seed)) != first for seed in range(6, 10))
