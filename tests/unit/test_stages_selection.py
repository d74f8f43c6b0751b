"""Reasoning RL: pass rates, the four criteria, the curriculum. Numbers by hand; and what goes to people and back."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplatform.stages.annotation import AnnotationError, export, never_solved, read_verdicts
from rlplatform.stages.pass_rates import PassRate, measure
from rlplatform.stages.query_selection import Curriculum, easiest_first, select_queries

# --- pass rates -----------------------------------------------------------------------------------------------------


def test_wilsons_interval_by_hand() -> None:
    """Wilson 1927 with z = 1.96: 0 of 10 gives z²/(n + z²) = 0.2775; 8 of 10 (0.4902, 0.9433); symmetric at 1/2."""
    assert PassRate(0, 10).interval() == (0.0, pytest.approx(0.27753, abs=1e-4))
    assert PassRate(10, 10).interval() == (pytest.approx(1 - 0.27753, abs=1e-4), pytest.approx(1.0))
    assert PassRate(8, 10).interval() == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94332, abs=1e-4))
    low, high = PassRate(8, 16).interval()
    assert low + high == pytest.approx(1.0)
    assert PassRate(0, 0, 3).interval() == (0.0, 1.0)
    assert math.isnan(PassRate(0, 0, 3).rate)
    for counts in ((2, 1, 0), (-1, 1, 0), (0, 1, -1)):
        with pytest.raises(ValueError, match="expected 0 <= num_correct"):
            PassRate(*counts)


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_interval_holds_the_rate(correct: int, samples: int) -> None:
    rate = PassRate(min(correct, samples), samples)
    low, high = rate.interval()
    assert 0 <= low <= rate.rate + 1e-12
    assert rate.rate - 1e-12 <= high <= 1
    more = PassRate(rate.num_correct * 4, samples * 4).interval()
    assert more[1] - more[0] < high - low


def test_verdicts_that_are_not_ok_count_for_nothing() -> None:
    statuses = ["ok", "ok", "timeout", "error", "ok"]
    rows = [{"id": "a", "sample": k, "status": s, "score": float(k == 4)} for k, s in enumerate(statuses)]
    assert measure(rows) == {"a": PassRate(1, 3, 2)}


# --- selection ------------------------------------------------------------------------------------------------------


def queries(**domains: list[int]) -> tuple[list[dict], dict[str, PassRate]]:
    """A query for each number of correct samples of 8."""
    rows, rates = [], {}
    for domain, corrects in domains.items():
        for place, correct in enumerate(corrects):
            name = f"{domain}-{place}"
            rows.append({"id": name, "prompt": f"{name}?", "domain": domain})
            rates[name] = PassRate(correct, 8)
    return rows, rates


def select(rows: list[dict], rates: dict[str, PassRate], **changes: object) -> dict[str, str]:
    arguments = {"used": [], "num": 100, "seed": 0, **changes}
    decisions = select_queries(rows, rates, **arguments)  # type: ignore[arg-type]
    return {row["id"]: decision.reason for row, decision in zip(rows, decisions, strict=True)}


def test_the_criteria_one_by_one() -> None:
    rows, rates = queries(a=[0, 1, 6, 7, 8, 4, 4])
    rates["a-6"] = PassRate(0, 0, 8)
    rows.append({"id": "a-9", "prompt": "A-1? ", "domain": "a"})  # the same question under another id
    rates["a-9"] = PassRate(4, 8)
    used = [rows[5], {"id": "x", "prompt": "a-1?"}]
    assert select(rows, rates, used=used) == {
        "a-0": "never_solved",
        "a-1": "used_in_cold_start",
        "a-2": "",  # 6 of 8 is the bound of 3/4
        "a-3": "too_easy",
        "a-4": "too_easy",
        "a-5": "used_in_cold_start",
        "a-6": "unmeasured",
        "a-9": "used_in_cold_start",
    }
    assert select(rows, rates, min_rate=0.2)["a-1"] == "too_hard"
    assert select(rows, rates, max_rate=1.0)["a-4"] == ""


def test_the_hardest_and_over_all_domains() -> None:
    """Five places over three domains: two rounds, and the last place to the harder of the second heads."""
    rows, rates = queries(a=[1, 2, 3, 4], b=[5, 4], c=[2])
    kept = {name for name, reason in select(rows, rates, num=5).items() if not reason}
    assert kept == {"a-0", "a-1", "b-0", "b-1", "c-0"}  # round 1: a 1/8, b 4/8, c 2/8; round 2: a 2/8, b 5/8
    kept = {name for name, reason in select(rows, rates, num=4).items() if not reason}
    assert kept == {"a-0", "b-1", "c-0", "a-1"}
    assert select(rows, rates, num=4)["a-2"] == "easier_than_needed"
    assert {name for name, reason in select(rows, rates, num=2).items() if not reason} == {"a-0", "c-0"}
    assert set(select(rows, rates, num=50).values()) == {""}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 8), max_size=8), min_size=1), st.integers(1, 20)
)
def test_even_domains_and_none_easier_than_one_left_out(drawn: dict[str, list[int]], num: int) -> None:
    rows, rates = queries(**drawn)
    reasons = select(rows, rates, num=num)
    passing = [name for name, reason in reasons.items() if reason in ("", "easier_than_needed")]
    kept = [name for name, reason in reasons.items() if not reason]
    assert len(kept) == min(num, len(passing))
    counts = Counter(name[0] for name in kept)
    for domain in drawn:
        left = [rates[name].rate for name in passing if name[0] == domain and reasons[name]]
        inside = [rates[name].rate for name in kept if name[0] == domain]
        if left:
            assert max(inside, default=0.0) <= min(left)
            assert counts[domain] >= max(counts.values(), default=0) - 1


def test_ties_go_by_seed_and_id_whatever_the_order() -> None:
    rows, rates = queries(a=[2] * 12)
    first = select(rows, rates, num=4)
    assert select(rows[::-1], rates, num=4) == first
    assert any(select(rows, rates, num=4, seed=seed) != first for seed in range(1, 6))


def test_selection_errors() -> None:
    rows, rates = queries(a=[2])
    with pytest.raises(ValueError, match="no verdict on query 'a-0'"):
        select(rows, {})
    with pytest.raises(ValueError, match="0 <= min_rate < max_rate"):
        select(rows, rates, min_rate=0.9)
    with pytest.raises(ValueError, match="expected column domain"):
        select([{"id": "a-0", "prompt": "?"}], rates)


# --- curriculum -----------------------------------------------------------------------------------------------------


def test_easiest_first_by_hand() -> None:
    rates = {"a": PassRate(1, 8), "b": PassRate(7, 8), "c": PassRate(4, 8), "d": PassRate(2, 4)}
    order = easiest_first(rates, seed=0)
    assert order[0] == "b"
    assert order[-1] == "a"
    assert {easiest_first(rates, seed=seed)[1] for seed in range(8)} == {"c", "d"}
    with pytest.raises(ValueError, match="no ok verdict"):
        easiest_first({"a": PassRate(0, 0, 1)}, seed=0)


def test_the_buckets_of_steps_by_hand() -> None:
    """10 queries in 3 buckets of 3, 3 and 4; 7 steps: 0-2, 3-4 (from 7/3 up to 3), 5-6 (from 14/3 up to 5)."""
    curriculum = Curriculum(tuple("abcdefghij"), num_steps=7, prompts_per_step=2, seed=0, num_buckets=3)
    assert [curriculum.bucket(k) for k in range(3)] == [("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i", "j")]
    assert [curriculum.bucket_of(step) for step in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(5, 30), st.integers(1, 4), st.integers(20, 60), st.integers(0, 3))
def test_a_step_is_a_function_of_seed_and_step(buckets: int, steps: int, per_step: int, num: int, seed: int) -> None:
    def make() -> Curriculum:
        return Curriculum(
            tuple(f"q{k}" for k in range(num)),
            num_steps=steps,
            prompts_per_step=per_step,
            seed=seed,
            num_buckets=buckets,
        )

    whole = [make().ids(step) for step in range(steps)]
    resumed = make()
    assert [resumed.ids(step) for step in reversed(range(steps))] == whole[::-1]
    for step, ids in enumerate(whole):
        assert len(set(ids)) == per_step
        assert set(ids) <= set(make().bucket(make().bucket_of(step)))
    assert sum(len(make().bucket(k)) for k in range(buckets)) == num


def test_an_epoch_asks_every_query_once() -> None:
    curriculum = Curriculum(tuple("abcdef"), num_steps=30, prompts_per_step=2, seed=1, num_buckets=1)
    for epoch in range(5):
        asked = [name for step in range(3 * epoch, 3 * epoch + 3) for name in curriculum.ids(step)]
        assert sorted(asked) == list("abcdef")
    assert len({tuple(curriculum.ids(step)) for step in range(0, 30, 3)}) > 3


def test_curriculum_errors() -> None:
    for settings_, message in (
        ({"prompts_per_step": 4}, "3 a bucket, fewer than the 4"),
        ({"num_buckets": 0}, "num_buckets"),
        ({"num_steps": 1}, "num_buckets <= num_steps"),
        ({"ordered": ("a",) * 6}, "every query once"),
    ):
        with pytest.raises(ValueError, match=message):
            Curriculum(
                **{
                    "ordered": tuple("abcdef"),
                    "num_steps": 4,
                    "prompts_per_step": 2,
                    "seed": 0,
                    "num_buckets": 2,
                    **settings_,
                }
            )
    with pytest.raises(ValueError, match="step >= 0"):
        Curriculum(tuple("abcdef"), num_steps=4, prompts_per_step=2, seed=0, num_buckets=2).ids(-1)


# --- people ---------------------------------------------------------------------------------------------------------

AWKWARD = 'a "quoted", text;\r\nwith lines\u2028 and 7,5 and émojis 🙂\n'


def responses() -> list[dict]:
    rows = [
        ("a", 0, "ok", 1.0),
        ("a", 1, "ok", 0.0),
        ("b", 0, "ok", 0.0),
        ("b", 1, "timeout", 0.0),
        ("c", 0, "error", 0.0),
    ]
    return [
        {
            "id": name,
            "sample": sample,
            "prompt": "q?",
            "answer": "5",
            "response": AWKWARD if name == "b" else "r" * 200_000,
            "status": status,
            "score": score,
        }
        for name, sample, status, score in rows
    ]


def fill(path: Path, verdicts: dict[tuple[str, int], str]) -> None:
    """What people do with the file."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        for line in lines:
            line["verdict"] = verdicts.get((line["id"], line["sample"]), "")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["verdict"] = verdicts.get((row["id"], int(row["sample"])), "")
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet saves it
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


GOOD = {("b", 0): "correct", ("b", 1): " Incorrect ", ("c", 0): "incorrect"}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_to_people_and_back(suffix: str, tmp_path: Path) -> None:
    unsolved = never_solved(responses())
    assert [(row["id"], row["sample"]) for row in unsolved] == [("b", 0), ("b", 1), ("c", 0)]
    path = tmp_path / f"people{suffix}"
    export(unsolved, path)
    fill(path, GOOD)
    judged = read_verdicts(path, unsolved)
    assert [(row["id"], row["sample"], row["status"], row["score"]) for row in judged] == [
        ("b", 0, "ok", 1.0),
        ("b", 1, "ok", 0.0),
        ("c", 0, "ok", 0.0),
    ]
    assert judged[0]["response"] == AWKWARD
    assert {row["judged_by"] for row in judged} == {"people"}
    assert measure(judged)["b"] == PassRate(1, 2)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, list]:
    unsolved = never_solved(responses())
    path = tmp_path / "people.jsonl"
    export(unsolved, path)
    fill(path, GOOD)
    return path, unsolved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:2], r"no line judges 'c#0'"),
        (lambda lines: [{**lines[0], "verdict": ""}, *lines[1:]], r"line 1: 'b#0' has no verdict"),
        (lambda lines: [{**lines[0], "verdict": "maybe"}, *lines[1:]], r"'b#0': expected a verdict of correct or inc"),
        (
            lambda lines: [*lines, {**lines[0], "verdict": "incorrect"}],
            r"line 4: 'b#0' is incorrect here and correct at",
        ),
        (lambda lines: [*lines, {"id": "z", "sample": 0, "verdict": "correct"}], r"'z#0' was not exported"),
        (lambda lines: [*lines, {"id": "b", "sample": 7, "verdict": "correct"}], r"'b#7' was not exported"),
        (lambda lines: [*lines, {"id": "b", "verdict": "correct"}], r"'b' was not exported"),
        (lambda lines: [*lines, {"sample": 0, "verdict": "correct"}], r"line 4: expected a column id"),
        (lambda lines: [{**lines[0], "response": "5"}, *lines[1:]], r"the response of 'b#0' is not the exported one"),
    ],
)
def test_what_people_get_wrong(filled: tuple[Path, list], change, message: str) -> None:
    path, unsolved = filled
    write_lines(path, change(lines_of(path)))
    with pytest.raises(AnnotationError, match=message):
        read_verdicts(path, unsolved)


def test_two_people_who_agree(filled: tuple[Path, list]) -> None:
    path, unsolved = filled
    write_lines(path, lines_of(path) * 2)
    assert len(read_verdicts(path, unsolved)) == 3


def test_all_problems_at_once(filled: tuple[Path, list]) -> None:
    path, unsolved = filled
    write_lines(path, [{**line, "verdict": ""} for line in lines_of(path)])
    with pytest.raises(AnnotationError) as caught:
        read_verdicts(path, unsolved)
    assert str(caught.value).count("has no verdict") == 3
    assert "no line judges" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'])
def test_files_that_are_broken(text: str, filled: tuple[Path, list]) -> None:
    path, unsolved = filled
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match=r":1: expected"):
        read_verdicts(path, unsolved)
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_verdicts(path.with_name("absent.jsonl"), unsolved)
    table = path.with_suffix(".csv")
    table.write_text("id,sample,verdict\nb,0,correct,more\n")
    with pytest.raises(AnnotationError, match="line 2: expected as many fields"):
        read_verdicts(table, unsolved)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    rows = never_solved(responses())
    with pytest.raises(ValueError, match=r"ends in .jsonl or .csv"):
        export(rows, tmp_path / "people.xlsx")
    for wrong in ([], rows + rows, [{**rows[0], "sample": None}]):
        with pytest.raises(ValueError, match="different ids and samples"):
            export(wrong, tmp_path / "people.csv")
