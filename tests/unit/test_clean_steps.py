"""The steps of a config: what is refused and how, and what the whole stage keeps, drops and changes, on any shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data import cleaning, corpus_plan
from pretrain.data.clean_steps import STEPS, steps_of
from pretrain.data.cleaning import Cleaned, clean, passes
from pretrain.data.contamination import Item
from pretrain.data.document import DROPPED, document, read_documents, shards_of, write_shards
from pretrain.data.edits import Decision, Edit, Edited, undo
from pretrain.data.fates import CHANGES
from pretrain.data.shards import Counts, Workers
from rlplatform.config import CleanConfig, ConfigError
from rlplatform.datafiles import DataError


def no_poems(rows: Sequence[dict[str, Any]], *, marker: str = "poem") -> list[Decision]:
    """A filter of one's own."""
    return [Decision("poem", row["text"][:9]) if marker in row["text"] else Decision() for row in rows]


def without_stars(rows: Sequence[dict[str, Any]]) -> list[Edited]:
    stars = [[k for k, letter in enumerate(row["text"]) if letter == "*"] for row in rows]
    return [Edited(tuple(Edit(k, k + 1, "", "star") for k in places)) for places in stars]


OWN = Path(__file__)  # this file, as a user names it


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "expected at least one step"),
        ({"near_duplicate": {}}, "steps.near_duplicate: expected one of .*; did you mean near_duplicates?"),
        ({"x": {"function": "privcy"}}, "steps.x: expected one of .*; did you mean privacy?"),
        (
            {"privacy": {"region": ["US"]}},
            "steps.privacy.region: .*; did you mean regions?",
        ),
        ({"near_duplicates": {"treshold": 0.8}}, "steps.near_duplicates.treshold: .*; did you mean threshold?"),
        ({"label": {"keep": ["en"]}}, "steps.label: expected the settings name"),
        ({"exact_duplicates": {"bands": 3}}, "steps.exact_duplicates.bands: expected one of the settings none"),
        ({"contamination": {"benchmark": ["gsm8k"]}}, "steps.contamination.benchmark: .*; did you mean benchmarks?"),
        ({"contamination": {"index": 1}}, "steps.contamination.index: expected one of the settings mode"),
        (
            {"contamination": {"mode": "mask"}},
            "steps.contamination: contamination: expected mode to be one of drop",
        ),
        ({"contamination": {"n": 5}}, "steps.contamination: contamination: expected 1 <= shortest <= n"),
        ({"near_duplicates": {"threshold": 2}}, "steps.near_duplicates: threshold: expected a Jaccard index"),
        ({"privacy": {"replace": ["mail"]}}, "steps.privacy: privacy: expected replace to name"),
        ({"signal": {"name": "x"}}, "steps.signal: signal: expected min, max or both"),
        ({"near_duplicates": {"threshold": "high"}}, "steps.near_duplicates: "),
        ({"exact_duplicates": None}, "steps.exact_duplicates: expected a mapping of settings"),
        ({"a|b": {"function": "length"}}, r"steps.a\|b: expected a name without |"),
        ({"mine": {"function": f"{OWN}:no_poem"}}, "steps.mine.function: .*did you mean 'no_poems'"),
        ({"mine": {"function": f"{OWN}:no_poems", "marked": "x"}}, "steps.mine.marked: .*; did you mean marker?"),
    ],
)
def test_what_is_wrong_with_a_step_is_said_before_anything_starts(steps: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps_of(steps)


def test_every_step_can_stand_with_its_defaults_or_its_name() -> None:
    needed = {"label": {"name": "language"}, "signal": {"name": "mean", "min": 1}}
    steps = steps_of({name: needed.get(name, {}) for name in STEPS} | {"again": {"function": "length", "min": 5}})
    assert [step.name for step in steps] == [*STEPS, "again"]
    corpus = [step.name for step in steps if step.corpus is not None]
    assert corpus == ["exact_duplicates", "near_duplicates", "repeated_paragraphs"]


def test_a_stage_is_cut_into_passes_at_the_steps_that_need_the_corpus() -> None:
    steps = steps_of({"length": {}, "exact_duplicates": {}, "near_duplicates": {}, "privacy": {}, "safety": {}})
    found = [([one.name for one in local], corpus and corpus.name) for local, corpus in passes(steps)]
    assert found == [(["length"], "exact_duplicates"), ([], "near_duplicates"), (["privacy", "safety"], None)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": {"length": {}}}, "documents: expected the folder of an earlier stage"),
        ({"documents": "x"}, "steps: expected at least one"),
        ({"documents": "x", "steps": {"length": 5}}, "steps.length: expected a mapping of settings"),
        ({"documents": "x", "steps": {"length": {}}, "batch_documents": 0}, "batch_documents: expected >= 1, got 0"),
    ],
)
def test_the_config_says_what_it_lacks(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CleanConfig(**kwargs)


# --- the whole stage, without Ray -----------------------------------------------------------------------------------


def one_after_another(
    process: Callable[[int, Any], Counts], tasks: Sequence[Any], folder: Path, **kwargs: Any
) -> list[Counts]:
    """``shards.run_tasks`` in this process, the last task first; tests/integration has the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {index: process(index, tasks[index]) for index in reversed(range(len(tasks)))}
    return [counts[index] for index in range(len(tasks))]


ITEM = Item("bench", "1", "a farmer has seventeen sheep and all but nine of them run away today")
PARAGRAPH = "Subscribe to our newsletter to hear about all our new products first"
ALL = {
    "long": {"function": "length", "min": 3},
    "same": {"function": "exact_duplicates"},
    "near": {"function": "near_duplicates", "threshold": 0.8, "ngram": 2, "bands": 30, "rows": 3},
    "stars": {"function": f"{OWN}:without_stars"},
    "paragraphs": {"function": "repeated_paragraphs", "max_documents": 2},
    "bench": {"function": "contamination", "mode": "cut", "window": 5, "min_piece": 5},
    "privacy": {"drop": ["card"]},
    "mine": {"function": f"{OWN}:no_poems"},
    "again": {"function": "exact_duplicates"},
}


def run(texts: Sequence[str], folder: Path, per_shard: int, steps: dict[str, Any]) -> Cleaned:
    shutil.rmtree(folder, ignore_errors=True)
    rows = [document("s", str(k), f"s:{k}", text, {"k": k}) for k, text in enumerate(texts)]
    shards = write_shards(rows, folder / "in", per_shard)
    return clean(shards, folder / "out", steps_of(steps), items=lambda step: [ITEM], workers=Workers(), batch_rows=3)


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "run_tasks", one_after_another)
    monkeypatch.setattr(corpus_plan, "run_tasks", one_after_another)


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a stage left, in document order."""
    changed = [row for path in shards_of(folder, CHANGES) for row in pq.read_table(path).to_pylist()]
    kept, dropped = list(read_documents(folder)), list(read_dropped(folder))
    return {"kept": kept, "dropped": dropped, "changes": changed}


def read_dropped(folder: Path) -> list[dict[str, Any]]:
    return [row for path in shards_of(folder, DROPPED) for row in pq.read_table(path).to_pylist()]


WORDS = st.lists(st.sampled_from(["red", "green", "blue", "old", "new", "sea", "*sky*", "sun", "a"]), max_size=12).map(
    " ".join
)
SPECIAL = st.sampled_from(
    ["mail a@b.org now", "pay 4111 1111 1111 1111", "a poem of mine", "x", ITEM.text, f"Look:\n\n{PARAGRAPH}"]
)
BODIES = st.lists(st.one_of(WORDS, SPECIAL), min_size=1, max_size=3).map("\n\n".join)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(BODIES, min_size=1, max_size=14), per_shard=st.integers(1, 6))
def test_kept_and_dropped_are_the_input_and_shards_do_not_matter(
    texts: list[str], per_shard: int, tmp_path: Path, serial: None
) -> None:
    cleaned = run(texts, tmp_path / "a", per_shard, ALL)
    found = outcome(tmp_path / "a" / "out")
    ids = [document("s", str(k), "", "")["id"] for k in range(len(texts))]
    originals = dict(zip(ids, texts, strict=True))
    kept, dropped = ([row["id"] for row in found[which]] for which in ("kept", "dropped"))
    assert sorted(kept + dropped) == sorted(ids)
    assert kept == [name for name in ids if name in set(kept)]  # the order of the input
    for row in (*found["kept"], *found["dropped"]):  # nothing of a row is lost, and its changes undo themselves
        assert json.loads(row["meta"]) == {"k": ids.index(row["id"])}
        assert restored(row["text"], [c for c in found["changes"] if c["id"] == row["id"]], originals[row["id"]])
    assert all(row["step"] in ALL and row["reason"] for row in found["dropped"])
    assert cleaned.flow.documents == len(texts)
    assert cleaned.flow.characters == sum(map(len, texts))
    assert (cleaned.flow.kept, cleaned.flow.kept_characters) == (
        len(kept),
        sum(len(row["text"]) for row in found["kept"]),
    )
    whole = run(texts, tmp_path / "b", 1000, ALL)
    assert outcome(tmp_path / "b" / "out") == found
    assert whole.flow == cleaned.flow


def restored(text: str, changed: list[dict[str, Any]], original: str) -> bool:
    """``changed`` undone, last step first, gives the original, but for personal data, of which the length is known."""
    steps = list(dict.fromkeys(change["step"] for change in changed))
    for step in reversed(steps):
        own = [change for change in changed if change["step"] == step]
        edits = [Edit(c["start"], c["end"], c["put"], c["reason"]) for c in own]
        gaps = ["\0" * (c["end"] - c["start"]) if c["secret"] else c["removed"] for c in own]
        text = undo(text, edits, gaps)
    return len(text) == len(original) and all(a in (b, "\0") for a, b in zip(text, original, strict=True))


def test_each_step_does_its_part(tmp_path: Path, serial: None) -> None:
    near = "the quick brown fox jumps over the lazy dog near the old river bank at noon"
    texts = [
        "x",  # 0: too short
        near,
        near.upper() + " ",  # 2: the same text
        near.replace("noon", "night"),  # 3: nearly
        f"One story of its own.\n\n{PARAGRAPH}\n\nThe end is here.",
        f"Quite another story.\n\n{PARAGRAPH.upper()}",
        f"{PARAGRAPH}\n\nA third one, of something else.",
        PARAGRAPH + "  ",  # 7: nothing is left
        "Before it all. " + ITEM.text.title() + " And what comes after it.",
        "pay 4111 1111 1111 1111 soon",  # 9: dropped for its card
        "write to a@b.org *now*",
        "write to c@d.net now",  # 11: the same once the addresses are gone
        "a poem",  # 12
    ]
    cleaned = run(texts, tmp_path, 4, ALL)
    found = outcome(tmp_path / "out")
    ids = [document("s", str(k), "", "")["id"] for k in range(len(texts))]
    assert [(ids.index(r["id"]), r["step"], r["reason"]) for r in found["dropped"]] == [
        (0, "long", "too_low"),
        (2, "same", "duplicate"),
        (3, "near", "near_duplicate"),
        (7, "paragraphs", "nothing_left"),
        (9, "privacy", "card"),
        (11, "again", "duplicate"),
        (12, "mine", "poem"),
    ]
    details = {ids.index(row["id"]): row["detail"] for row in found["dropped"]}
    assert details[2] == f"of {ids[1]}"
    assert details[3] == f"of {ids[1]}, Jaccard {14 / 16:.3f}"  # 15 bigrams each, 14 of them shared
    assert details[7] == "1 repeated_paragraph"
    texts_left = {ids.index(row["id"]): row["text"] for row in found["kept"]}
    assert texts_left == {
        1: near,
        4: texts[4],  # the first occurrence of the paragraph stays
        5: "Quite another story.\n\n",
        6: "A third one, of something else.",
        8: "Before it  comes after it.",
        10: "write to [EMAIL] now",
    }
    changed = [(ids.index(c["id"]), c["step"], c["removed"], c["put"]) for c in found["changes"]]
    assert (6, "paragraphs", f"{PARAGRAPH}\n\n", "") in changed
    assert (10, "privacy", "", "[EMAIL]") in changed
    assert sum(step == "paragraphs" for _, step, _, _ in changed) == 2
    (paragraph,) = (c for c in found["changes"] if c["step"] == "paragraphs" and c["id"] == ids[6])
    assert paragraph["detail"] == f"in 4 documents, first in {ids[4]}"
    assert cleaned.contamination == {"bench": {"bench: looked for": 1}}
    assert [step.num_dropped for step in cleaned.flow.steps] == [1, 1, 1, 0, 1, 0, 1, 1, 1]
    assert not (tmp_path / "out" / "work").exists()


def test_near_duplicate_paragraphs_are_removed_where_they_are_alike(tmp_path: Path, serial: None) -> None:
    notes = [PARAGRAPH.replace("first", word) for word in ("first", "soon", "today", "earlier")]
    texts = [f"Story number {k} about {k}.\n\n{note}" for k, note in enumerate(notes)]
    step = {"function": "repeated_paragraphs", "max_documents": 1}
    run(texts, tmp_path, 2, {"p": step})
    assert [row["text"] for row in outcome(tmp_path / "out")["kept"]] == texts
    run(texts, tmp_path, 2, {"p": {**step, "similarity": 0.6, "bands": 40, "rows": 2}})
    kept = [row["text"] for row in outcome(tmp_path / "out")["kept"]]
    assert kept == [texts[0], *(f"Story number {k} about {k}.\n\n" for k in (1, 2, 3))]
    run(texts, tmp_path, 2, {"p": {**step, "similarity": 0.6, "bands": 40, "rows": 2, "keep_first": False}})
    assert outcome(tmp_path / "out")["kept"][0]["text"] == "Story number 0 about 0.\n\n"


def test_a_paragraph_twice_in_one_document_is_in_one_document(tmp_path: Path, serial: None) -> None:
    texts = [f"{PARAGRAPH}\n\n{PARAGRAPH}\n\n{PARAGRAPH}", "Something else entirely, with no such words in it."]
    run(texts, tmp_path, 1, {"p": {"function": "repeated_paragraphs", "max_documents": 1}})
    assert [row["text"] for row in outcome(tmp_path / "out")["kept"]] == texts


def test_a_chain_leaves_its_first_document(tmp_path: Path, serial: None) -> None:
    """A like B, B like C, A not like C: B and C go, and the detail says how like A each is."""
    words = [f"w{k}" for k in range(30)]
    texts = [" ".join(words[k : k + 20]) for k in (0, 3, 6)]  # 20 words, 17 shared by neighbours
    near = {"function": "near_duplicates", "threshold": 0.7, "ngram": 1, "bands": 60, "rows": 2}
    run(texts, tmp_path, 1, {"near": near})
    details = [row["detail"] for row in outcome(tmp_path / "out")["dropped"]]
    assert [detail.rpartition(" ")[2] for detail in details] == [f"{17 / 23:.3f}", f"{14 / 26:.3f}"]


def test_an_error_names_shard_document_and_step(tmp_path: Path, serial: None) -> None:
    with pytest.raises(DataError) as raised:
        run(["long enough", "two words"], tmp_path, 1, {"language": {"function": "label", "name": "language"}})
    assert "documents-00001.parquet, document 's/" in str(raised.value)  # the last shard is the first to run here
    assert "expected a label 'language', there are none" in str(raised.value)


def test_separators_of_lines_in_a_detail_do_not_move_other_documents(tmp_path: Path, serial: None) -> None:
    texts = ["a\u2028\x85\x0bpoem", "kept", "a\u2029poem too"]
    run(texts, tmp_path, 3, {"mine": {"function": f"{OWN}:no_poems"}, "same": {"function": "exact_duplicates"}})
    found = outcome(tmp_path / "out")
    assert [row["text"] for row in found["kept"]] == ["kept"]
    assert [row["detail"] for row in found["dropped"]] == [texts[0][:9], texts[2][:9]]


def test_a_second_attempt_on_fewer_shards_leaves_no_shard_of_the_first(tmp_path: Path, serial: None) -> None:
    rows = [document("s", str(k), f"s:{k}", f"text {k}") for k in range(6)]
    for per_shard in (1, 3):
        shards = write_shards(rows, tmp_path / f"in-{per_shard}", per_shard)
        clean(shards, tmp_path / "out", steps_of({"length": {}}), items=lambda step: [], workers=Workers())
    assert [row["id"] for row in read_documents(tmp_path / "out")] == [row["id"] for row in rows]
    assert [len(shards_of(tmp_path / "out", prefix)) for prefix in ("documents", DROPPED, CHANGES)] == [2, 2, 2]


def test_another_function_of_the_same_name_is_other_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serial: None
) -> None:
    keys: list[str] = []

    def noted(*arguments: Any, key: str, **rest: Any) -> list[Counts]:
        keys.append(key)
        return one_after_another(*arguments, **rest)

    monkeypatch.setattr(cleaning, "run_tasks", noted)
    shards = write_shards([document("s", "1", "s:1", "text")], tmp_path / "in", 1)
    own = tmp_path / "own.py"
    for number in (1, 1, 2):
        own.write_text(
            f"from pretrain.data.edits import KEEP\n\nmine = lambda rows: [KEEP for _ in rows]  # {number}\n"
        )
        steps = steps_of({"mine": {"function": f"{own}:mine"}})
        clean(shards, tmp_path / "out", steps, items=lambda step: [], workers=Workers())
    assert keys[:2] == keys[2:4]
    assert set(keys[:2]).isdisjoint(keys[4:])


def test_nothing_that_was_lost_goes_unnoticed(tmp_path: Path, serial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning.Write, "__call__", lambda self, index, task: {"kept": 1, "dropped": 0, "changes": 0})
    with pytest.raises(RuntimeError, match="documents were lost"):
        run(["one", "two"], tmp_path, 2, {"length": {}})


def test_empty_shards_and_empty_texts(tmp_path: Path, serial: None) -> None:
    cleaned = run([], tmp_path / "none", 5, {"exact_duplicates": {}, "near_duplicates": {}})
    assert (cleaned.flow.documents, cleaned.flow.kept) == (0, 0)
    run(["", "!!", "", "??"], tmp_path / "some", 1, {"near": {"function": "near_duplicates"}})
    assert len(outcome(tmp_path / "some" / "out")["kept"]) == 4  # without a word they are like nothing
