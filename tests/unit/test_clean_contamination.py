"""Benchmark items in documents: against n-grams of strings, at every bound, and in the real sets."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.contamination import Index, Item, build_index, contamination, hits
from pretrain.data.document import document
from pretrain.data.edits import KEEP, Decision, Edited, edit_text
from rlplatform.datafiles import DataError
from rlplatform.evaluation.benchmarks import BENCHMARKS
from rlplatform.evaluation.contents import asked, item_files, items_of
from rlplatform.evaluation.rows import rows_of

DATA = Path(__file__).parents[2].parent / "shared" / "data"
QUESTION = "A farmer has 17 sheep and all but 9 of them run away; how many sheep are left?"  # 18 words
FILLER = "Nothing of this is in any benchmark, it only stands here so that there is some text around. "


def doc(text: str) -> dict[str, Any]:
    return document("s", text, "s:1", text)


def index_of(*texts: str, **kwargs: Any) -> Index:
    return build_index([Item("bench", f"{k}", text) for k, text in enumerate(texts)], **kwargs)


# --- the grams ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), min_size=1, max_size=4),
    st.lists(st.sampled_from("abc"), max_size=25),
    st.integers(2, 5),
)
def test_hits_are_the_shared_grams_of_strings(items: list[list[str]], text: list[str], n: int) -> None:
    """Independent reference: tuples of words, compared one by one."""
    shortest = min(2, n)
    found = {
        (hit.start, hit.n) for hit in hits(" ".join(text), index_of(*map(" ".join, items), n=n, shortest=shortest))
    }
    expected = set()
    for words in items:
        size = min(n, len(words))
        if size >= shortest:
            grams = {tuple(words[k : k + size]) for k in range(len(words) - size + 1)}
            expected |= {(2 * k, size) for k in range(len(text) - size + 1) if tuple(text[k : k + size]) in grams}
    assert found == expected


def test_case_signs_and_spaces_do_not_hide_an_item() -> None:
    index = index_of(QUESTION)
    for text in (QUESTION.upper(), QUESTION.replace(" ", "\n"), re.sub(r"[;?]", " —", QUESTION), f"**{QUESTION}**"):
        assert hits(text, index), text
    assert hits(QUESTION.replace("17", "18").replace("9", "8"), index) == []  # another question


def test_one_word_below_and_at_thirteen() -> None:
    words = QUESTION.split()
    index = index_of(QUESTION)
    assert hits(" ".join(words[:12]), index) == []
    assert [(hit.start, hit.n) for hit in hits(" ".join(words[:13]), index)] == [(0, 13)]
    assert len(hits(QUESTION, index)) == 18 - 13 + 1


def test_short_items_are_looked_for_whole_or_not_at_all_and_counted() -> None:
    eight, seven = "one two three four five six seven eight", "one two three four five six sevenn"
    index = index_of(eight, seven, "???")
    assert index.counts == {"bench: looked for": 1, "bench: too short": 2}
    assert [(hit.item, hit.n) for hit in hits(f"zero {eight} nine", index)] == [("bench/0", 8)]
    assert hits(f"zero {seven} nine", index) == []
    assert hits(eight.removesuffix(" eight"), index) == []


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    chinese = "一个农夫有十七只羊，除了九只以外都跑了，还剩几只？"
    index = index_of(chinese)
    assert index.counts == {"bench: looked for": 1}
    assert hits(f"题目：{chinese}答案是九。", index)
    assert hits("一个农夫有三头牛，都跑了。", index) == []


def test_wording_that_many_items_share_is_not_an_item() -> None:
    tail = "Please reason step by step, and put your final answer within the box at the very end."
    questions = [
        f"What do {k} boxes with {k} apples and {k} pears and nothing else weigh?\n\n{tail}" for k in range(12)
    ]
    index = index_of(*questions, max_items=10)
    assert hits(tail, index) == []
    assert hits(FILLER + questions[3].splitlines()[0], index)
    assert hits(tail, index_of(*questions, max_items=12))
    only_shared = index_of(*[tail] * 11, QUESTION, max_items=10)
    assert only_shared.counts == {"bench: too short": 11, "bench: looked for": 1}
    in_one_line = [f"The same long opening of thirteen words and more stands in every one, {k}" for k in range(11)]
    assert index_of(*in_one_line).counts == {"bench: looked for": 11}
    grams = index_of(*[f"{line} ends here" for line in in_one_line], max_items=10)
    assert hits("The same long opening of thirteen words and more stands in every one", grams) == []


def test_the_index_goes_through_its_file(tmp_path: Path) -> None:
    index = index_of(QUESTION, "一二三四五六七八九十", "eight words are just enough to be found")
    index.save(tmp_path / "index.npz")
    loaded = Index.load(tmp_path / "index.npz")
    assert (loaded.n, loaded.items) == (index.n, index.items)
    text = f"{QUESTION} 一二三四五六七八九十 Eight words are just enough to be found."
    assert hits(text, loaded) == hits(text, index)
    assert {hit.item for hit in hits(text, loaded)} == {"bench/0", "bench/1", "bench/2"}


# --- what becomes of the document -----------------------------------------------------------------------------------


def test_drop_names_benchmark_item_and_grams() -> None:
    (kept, dropped) = contamination([doc(FILLER), doc(FILLER + QUESTION)], index_of(QUESTION))
    assert kept is KEEP
    assert dropped == Decision("bench", "bench/0: 6 of 13 words")


def test_cut_takes_the_gram_and_a_window_in_whole_words() -> None:
    text = FILLER * 10 + QUESTION + " " + FILLER * 10
    (answer,) = contamination([doc(text)], index_of(QUESTION), mode="cut")
    assert isinstance(answer, Edited)
    (edit,) = answer.edits
    start, end = text.index(QUESTION), text.index(QUESTION) + len(QUESTION)
    assert start - 220 < edit.start <= start - 200
    assert end + 199 <= edit.end < end + 220
    assert text[edit.start - 1] == " " and text[edit.end] == " "  # noqa: PT018
    assert (edit.reason, edit.detail) == ("bench", "bench/0: 6 of 13 words")
    left = edit_text(text, answer.edits)
    assert hits(left, index_of(QUESTION)) == []
    assert len(left) == len(text) - (edit.end - edit.start)


def test_pieces_that_are_too_short_go_too() -> None:
    text = "Short. " + FILLER * 3 + QUESTION + " " + FILLER * 10
    (answer,) = contamination([doc(text)], index_of(QUESTION), mode="cut", window=200, min_piece=200)
    assert isinstance(answer, Edited)
    assert [edit.reason for edit in answer.edits] == ["short_piece", "bench"]
    assert answer.edits[0].start == 0
    (longer,) = contamination([doc(text)], index_of(QUESTION), mode="cut", window=200, min_piece=10)
    assert isinstance(longer, Edited)
    assert [edit.reason for edit in longer.edits] == ["bench"]


def test_a_document_of_many_cuts_is_dropped() -> None:
    apart = (FILLER * 12).join([QUESTION + " "] * 4)
    index = index_of(QUESTION)
    (cut,) = contamination([doc(apart)], index, mode="cut", max_cuts=4)
    assert isinstance(cut, Edited)
    (dropped,) = contamination([doc(apart)], index, mode="cut", max_cuts=3)
    assert dropped == Decision("too_many_cuts", "4 > 3; bench/0: 24 of 13 words")


def test_cuts_that_touch_are_one_and_name_all_items() -> None:
    other = "Every second week the baker of our town sells twelve dozen rolls for half their usual price."
    text = FILLER * 10 + QUESTION + " And: " + other + " " + FILLER * 10
    (answer,) = contamination([doc(text)], index_of(QUESTION, other), mode="cut")
    assert isinstance(answer, Edited)
    assert [edit.detail for edit in answer.edits] == ["bench/0: 6 of 13 words; bench/1: 5 of 13 words"]


def test_text_without_spaces_is_cut_too() -> None:
    chinese = "一个农夫有十七只羊，除了九只以外都跑了，还剩几只？"
    text = "天地玄黄宇宙洪荒" * 200 + chinese + "日月盈昃辰宿列张" * 200
    index = index_of(chinese)
    (answer,) = contamination([doc(text)], index, mode="cut")
    assert isinstance(answer, Edited)
    assert hits(edit_text(text, answer.edits), index) == []
    assert sum(edit.end - edit.start for edit in answer.edits) < 1000


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "mask"}, "expected mode to be one of drop, cut, got 'mask'"),
        ({"window": -1}, "expected numbers >= 0, got window=-1"),
    ],
)
def test_settings_that_make_no_sense(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        contamination([], index_of(QUESTION), **kwargs)


def test_an_index_without_items_or_with_wrong_lengths() -> None:
    with pytest.raises(DataError, match="at least one benchmark item"):
        build_index([])
    with pytest.raises(DataError, match="expected 1 <= shortest <= n words, got shortest 9 and n 8"):
        index_of(QUESTION, n=8, shortest=9)


# --- the sets of the table ------------------------------------------------------------------------------------------


def test_items_are_what_is_asked() -> None:
    rows = rows_of(BENCHMARKS["thinkfollow"])
    assert asked(BENCHMARKS["thinkfollow"], rows[0]) == "\n".join(rows[0]["users"])
    exemplars = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "a"}]
    row = {"id": "x", "prompt": [*exemplars, {"role": "user", "content": "new"}]}
    assert asked(BENCHMARKS["mmlu"], row) == "new"


def shared(*names: str) -> dict[str, Any]:
    for name in names:
        source = BENCHMARKS[name].source
        if source is None or not (DATA / source.local).is_file():
            pytest.skip(f"{name} is not in ../shared/data")
    return {"benchmarks": list(names), "data_dir": str(DATA)}


def test_every_question_of_a_real_set_is_found_in_a_web_page() -> None:
    """GSM8K's own test file as a scraper would have it: each of its 1,319 questions, in other white space."""
    index = build_index(items_of(shared("gsm8k", "mmlu", "humaneval", "mbpp")))
    assert {key for key in index.counts if key.startswith("gsm8k")} == {"gsm8k: looked for"}
    with gzip.open(DATA / "gsm8k" / "test.jsonl.gz", "rt") as file:
        questions = [json.loads(line)["question"] for line in file]
    pages = [doc(f"<p>{question.replace(' ', '  ')}</p>\n{FILLER}") for question in questions]
    answers = contamination(pages, index)
    assert [getattr(answer, "reason", "") for answer in answers] == ["gsm8k"] * len(pages)
    assert answers[0].detail.startswith("gsm8k/gsm8k-00000: ")  # type: ignore[union-attr]
    assert item_files(shared("gsm8k")) == [str(DATA / "gsm8k" / "test.jsonl.gz")]


def test_ordinary_documents_do_not_hold_benchmark_items() -> None:
    index = build_index(items_of(shared("gsm8k", "mmlu", "humaneval", "mbpp", "math500", "ifeval", "mgsm", "bbh")))
    path = DATA / "pretrain" / "c4_demo.jsonl.gz"
    if not path.is_file():
        pytest.skip("pretrain/c4_demo is not in ../shared/data")
    with gzip.open(path, "rt") as file:
        rows = [doc(json.loads(line)["text"]) for line in file]
    assert [answer for answer in contamination(rows, index) if answer is not KEEP] == []
    rng, planted = random.Random(0), items_of(shared("mmlu"))
    for item in rng.sample([item for item in planted if len(item.text.split("\n\n")[0].split()) > 15], 20):
        (answer,) = contamination([doc(rows[0]["text"] + "\n" + item.text.split("\n\nPlease show")[0])], index)
        assert isinstance(answer, Decision)
        assert f"{item.benchmark}/{item.name}: " in answer.detail
