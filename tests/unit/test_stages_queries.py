"""Cold-start queries: what is verifiable, what needs thinking, even domains, a validation set without twins."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplatform.stages.pass_rates import PassRate, measure
from rlplatform.stages.query_filters import (
    HELD_OUT,
    TWIN,
    balance_domains,
    even_caps,
    hold_out,
    not_verifiable,
    solved_without_thinking,
)
from rlplatform.stages.records import apply_filters

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def query(prompt: str, **columns: object) -> dict:
    return {"id": "q", "prompt": prompt, "answer": "5", **columns}


# (prompt, reason or "" = verifiable)
TABLE = [
    ("What is 347 + 285?", ""),
    ("Find all x with x^2 = 4.", ""),
    ("Tom has 3 apples. He buys 2. How many apples does he have?", ""),
    ("How many? Tom has 3 apples and buys 2. How many has he?", "several_questions"),
    ("(a) Find the area. (b) Find the perimeter.", "several_questions"),
    ("Consider a square.\n1. Compute its area.\n2. Compute its diagonal.", "several_questions"),
    ("Part a: determine x. Part b: determine y.", "several_questions"),
    ("i) What is x? ii) What is y?", "several_questions"),
    ("Which is prime? (A) 4 (B) 5 (C) 6 (D) 8", ""),
    ("Which is prime?\nA. 4\nB. 5\nC. 6", ""),
    ("A die shows 1. Then it shows 2. What is the sum?", ""),
    ('He said "why?" twice. How many words is that?', ""),
    ("Prove that there are infinitely many primes.", "proof"),
    ("Show that n^2 >= n for all n.", "proof"),
    ("A proof that x > 2 has 3 steps. How many steps?", ""),
    ("Write a poem about the sea.", "text_generation"),
    ("Please write me a short story about a fox.", "text_generation"),
    ("Could you compose an email to my boss?", "text_generation"),
    ("Write 0.25 as a fraction.", ""),
    ("Write an equation for the line through (0,0) and (1,1).", ""),
    ("Summarize the following text: cats are nice.", "text_generation"),
    ("Translate into French: the cat sleeps.", "text_generation"),
    ("Explain the theory of relativity.", "text_generation"),
    ("What is 2 + 2? Explain your answer.", ""),
    ("Describe the life of a bee.", "text_generation"),
    ("The points describe a circle. What is its radius?", ""),
    ("What do you think about cats?", "text_generation"),
    ("请写一首关于大海的诗。", "text_generation"),
    ("1+1等于多少？", ""),
    ("1+1等于多少？2+2等于多少？", "several_questions"),
]


@pytest.mark.parametrize(("prompt", "reason"), TABLE)
def test_what_is_easily_verifiable(prompt: str, reason: str) -> None:
    assert not_verifiable([query(prompt)])[0].reason == reason


def test_references() -> None:
    for answer in (None, "", "  ", []):
        assert not_verifiable([query("What is 1 + 1?", answer=answer)])[0].reason == "no_reference"
    assert not_verifiable([query("What is 1 - 1?", answer=0)])[0].kept
    program = {
        "id": "q",
        "prompt": "Write a function that draws a caption. Describe the steps.",
        "tests": [{"call": [1]}],
    }
    assert not_verifiable([program])[0].kept
    assert not_verifiable([query("x", gold="5", answer=None)], reference_columns=("gold",))[0].kept


def test_messages_are_prompts_too() -> None:
    row = query("")
    row["prompt"] = [{"role": "system", "content": "Write a poem."}, {"role": "user", "content": "What is 1 + 1?"}]
    assert not_verifiable([row])[0].kept
    with pytest.raises(ValueError, match="expected prompt to be a string or messages"):
        not_verifiable([{"id": "q", "prompt": 3, "answer": "5"}])


def test_the_labeller_is_asked_about_the_rest() -> None:
    asked: list[str] = []

    def labeller(rows):
        asked.extend(row["id"] for row in rows)
        return ["opinion" if "best" in row["prompt"] else None for row in rows]

    rows = [{**query(p), "id": str(k)} for k, p in enumerate(["Write a poem.", "Who is best?", "What is 1 + 1?"])]
    assert [d.reason for d in not_verifiable(rows, labeller=labeller)] == ["text_generation", "opinion", ""]
    assert asked == ["1", "2"]
    with pytest.raises(ValueError, match="a reason or None for each of 2 rows, got 1"):
        not_verifiable(rows, labeller=lambda left: [None])


def test_word_problems_are_verifiable() -> None:
    """GSM8K has none of these flaws by construction: nearly all of it must pass, most failures being two questions."""
    import gzip

    path = SHARED / "gsm8k" / "test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent: real word problems are needed to measure how many the rules drop")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    rows = [{"id": str(k), "prompt": json.loads(line)["question"], "answer": "1"} for k, line in enumerate(lines)]
    counts = Counter(decision.reason for decision in not_verifiable(rows))
    assert counts[""] > 0.95 * len(rows)
    assert counts["proof"] + counts["text_generation"] < 0.01 * len(rows)


# --- solved without thinking ----------------------------------------------------------------------------------------


def verdicts(name: str, *results: float | str, response: str = "5") -> list[dict]:
    return [
        {
            "id": name,
            "sample": k,
            "status": result if isinstance(result, str) else "ok",
            "score": 0.0 if isinstance(result, str) else result,
            "response": response,
        }
        for k, result in enumerate(results)
    ]


def test_solved_without_thinking() -> None:
    rows = [{"id": name} for name in ("easy", "half", "hard", "never", "broken", "partly")]
    rates = measure(
        [
            *verdicts("easy", 1.0, 1.0, 1.0, 0.0),
            *verdicts("half", 1.0, 0.0),
            *verdicts("hard", 1.0, 0.0, 0.0),
            *verdicts("never", 0.0, 0.5),
            *verdicts("broken", "timeout", "error"),
            *verdicts("partly", 1.0, "timeout", "timeout"),
        ],
        thinking=False,
    )
    decisions = solved_without_thinking(rows, rates)
    dropped = "solved_without_thinking"
    assert [decision.reason for decision in decisions] == [dropped, dropped, "", "", "", dropped]
    assert decisions[4].detail == "unknown: none of 2 verdicts is ok"
    assert decisions[5].detail == "1 of 1 correct"
    assert [d.kept for d in solved_without_thinking(rows[:3], rates, min_pass_rate=0.7)] == [False, True, True]


def test_verdicts_that_are_missing_or_of_the_other_mode() -> None:
    rates = measure(verdicts("a", 1.0))
    with pytest.raises(ValueError, match="no verdict on 1 of 2 queries"):
        solved_without_thinking([{"id": "a"}, {"id": "b"}], rates)
    with pytest.raises(ValueError, match="min_pass_rate"):
        solved_without_thinking([], rates, min_pass_rate=0.0)
    thought = verdicts("a", 1.0, response="<think>\nhm\n</think>\n\n5")
    with pytest.raises(ValueError, match="expected a response without a thought"):
        measure(thought, thinking=False)
    assert measure(thought, thinking=True)["a"].rate == 1.0
    assert measure(verdicts("a", 1.0, response="<think>\n\n</think>\n\n5"), thinking=False)["a"].rate == 1.0
    with pytest.raises(ValueError, match="came twice"):
        measure(verdicts("a", 1.0) * 2)
    with pytest.raises(ValueError, match="expected status"):
        measure([{"id": "a", "sample": 0, "status": "fine", "score": 1.0}])
    with pytest.raises(ValueError, match="finite score"):
        measure([{"id": "a", "sample": 0, "status": "ok", "score": float("nan")}])


# --- domains --------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30)), st.integers(0, 120))
def test_even_caps(available: dict[str, int], num: int) -> None:
    caps = even_caps(available, num)
    assert sum(caps.values()) == min(num, sum(available.values()))
    assert all(caps[name] <= available[name] for name in available)
    full = [name for name in available if caps[name] == available[name]]
    open_ = [caps[name] for name in available if caps[name] < available[name]]
    if open_:
        assert max(open_) - min(open_) <= 1
        assert all(caps[name] <= min(open_) + 1 for name in full)


def domain_rows(**sizes: int) -> list[dict]:
    return [
        {"id": f"{name}{k}", "prompt": f"{name} question {k}", "domain": name}
        for name, size in sizes.items()
        for k in range(size)
    ]


def test_domains_are_capped_and_the_rest_is_said() -> None:
    rows = domain_rows(algebra=6, logic=2)
    decisions = balance_domains(rows, seed=0, caps=3)
    kept = Counter(row["domain"] for row, decision in zip(rows, decisions, strict=True) if decision.kept)
    assert kept == {"algebra": 3, "logic": 2}
    assert {d.detail for d in decisions if not d.kept} == {"algebra: 6 rows for 3 places"}
    caps = even_caps(Counter(row["domain"] for row in rows), 5)
    assert caps == {"algebra": 3, "logic": 2}
    assert balance_domains(rows, seed=0, caps=caps) == decisions
    assert balance_domains(rows, seed=1, caps=3) != decisions


def test_the_draw_depends_on_seed_and_id_alone() -> None:
    rows = domain_rows(algebra=20)
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)

    def kept(some: list[dict], cap: int) -> set[str]:
        decisions = balance_domains(some, seed=7, caps=cap)
        return {row["id"] for row, decision in zip(some, decisions, strict=True) if decision.kept}

    assert kept(rows, 5) == kept(shuffled, 5)
    assert kept(rows, 5) < kept(rows, 6)
    assert kept(rows + domain_rows(logic=3), 5) >= kept(rows, 5)
    assert len(kept(rows[:-1], 5) & kept(rows, 5)) >= 4


def test_domains_that_are_missing() -> None:
    rows = [{"id": "a", "prompt": "p", "domain": "x"}, {"id": "b", "prompt": "p", "domain": None}]
    with pytest.raises(ValueError, match="row 'b': expected a name"):
        balance_domains(rows, seed=0, caps=1)
    decisions = balance_domains(rows, seed=0, caps=1, labeller=lambda left: ["x"] * len(left))
    assert sorted(decision.kept for decision in decisions) == [False, True]
    with pytest.raises(ValueError, match=r"none for \['x'\]"):
        balance_domains(rows[:1], seed=0, caps={"y": 1})


# --- validation -----------------------------------------------------------------------------------------------------


def test_validation_is_held_out_with_its_twins() -> None:
    rows = domain_rows(algebra=10, logic=10)
    rows += [{**row, "id": row["id"] + "-again", "prompt": row["prompt"].upper() + " "} for row in rows[:10]]
    decisions = hold_out(rows, num=8, seed=3)
    held = [row for row, decision in zip(rows, decisions, strict=True) if decision.reason == HELD_OUT]
    left = [row for row, decision in zip(rows, decisions, strict=True) if decision.kept]
    assert len(held) == 8
    questions = {row["prompt"].lower().strip() for row in held}
    assert len(questions) == 8
    assert not questions & {row["prompt"].lower().strip() for row in left}
    assert any(decision.reason == TWIN for decision in decisions)
    small = hold_out(rows, num=4, seed=3)
    assert all(big.reason == HELD_OUT for few, big in zip(small, decisions, strict=True) if few.reason == HELD_OUT)


def test_validation_over_the_domains() -> None:
    rows = domain_rows(algebra=30, logic=2, code=10)
    decisions = hold_out(rows, num=8, seed=0, domain_column="domain")
    held = Counter(row["domain"] for row, decision in zip(rows, decisions, strict=True) if decision.reason == HELD_OUT)
    assert held == {"algebra": 3, "code": 3, "logic": 2}


def test_nothing_to_hold_out_or_nothing_left() -> None:
    rows = domain_rows(algebra=3)
    assert all(decision.kept for decision in hold_out(rows, num=0, seed=0))
    for num in (3, 4, -1):
        with pytest.raises(ValueError, match="hold_out: expected num"):
            hold_out(rows, num=num, seed=0)


def test_the_query_stage_as_a_whole() -> None:
    rows = [
        {"id": str(k), "prompt": f"What is {k} + {k}?", "answer": str(2 * k), "domain": "low" if k < 10 else "high"}
        for k in range(20)
    ]
    rows.append({"id": "poem", "prompt": "Write a poem.", "answer": "x", "domain": "low"})
    rates = {row["id"]: PassRate(int(int(row["id"]) % 2), 1) for row in rows[:-1]}
    records = apply_filters(
        "cold_start_queries",
        rows,
        {
            "hold_out": partial(hold_out, num=4, seed=0),
            "verifiable": not_verifiable,
            "thinking": lambda left: solved_without_thinking(left, rates),
            "domains": partial(balance_domains, seed=0, caps=3),
        },
    )
    counts = records.counts
    assert counts[("hold_out", HELD_OUT)] == 4
    assert counts.get(("verifiable", "text_generation"), 0) <= 1
    assert all(int(row["id"]) % 2 == 0 for row in records.kept)
    assert max(Counter(row["domain"] for row in records.kept).values()) <= 3
