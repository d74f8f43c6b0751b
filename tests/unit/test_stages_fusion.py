"""Fusion data: flags, modes and think blocks of assembled conversations, down to the tokens that are trained."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.chat import render_example, render_segments
from model.tokenizer import train_bpe
from rlplatform.stages.fusion import (
    FusionShares,
    Sample,
    assemble,
    counts_of,
    last_flag,
    plan_conversations,
    samples,
    usable,
    wants_thinking,
    with_flag,
)

EMPTY = "<think>\n\n</think>\n\n"


def pool(thinking: bool, num: int, **fields: str) -> list[Sample]:
    mark = "t" if thinking else fields.get("task", "n")
    return [
        Sample(f"{mark}{k}", f"{mark} question {k}?", f"thought {k}" * thinking, f"answer {k}", **fields)
        for k in range(num)
    ]


THINKING, PLAIN = pool(True, 60), pool(False, 60, task="qa")
RARE = pool(False, 60, task="translation", language="sw")
FRENCH = [Sample(f"f{k}", f"To French: {k}", "", f"{k}", task="translation", language="fr") for k in range(20)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = ["What is 347 + 285? answer question thought", "\n\n\n", "user assistant system"] * 9
    return train_bpe(texts, 340, tmp_path_factory.mktemp("tokenizer"))


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("", None),
        ("What is 1 + 1?", None),
        ("What is 1 + 1? /think", "/think"),
        ("What is 1 + 1? /no_think", "/no_think"),
        ("/no_think", "/no_think"),
        ("/think first /no_think then", "/no_think"),
        ("/no_think\n/think", "/think"),
        ("see a/think or /thinking, http://x/no_think", None),
        ("/no_think.", None),
        ("/nothink /no think", None),
        ("no_think", None),
    ],
)
def test_the_last_flag_of_a_text(text: str, flag: str | None) -> None:
    assert last_flag(text) == flag


messages = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.lists(st.sampled_from(["/think", "/no_think", "word", "/thinkx", "a/no_think"]), max_size=4),
    ),
    max_size=8,
)


@given(messages)
def test_the_last_flag_wins(drawn: list[tuple[str, list[str]]]) -> None:
    """Against one scan over all words that may command."""
    words = [word for role, words in drawn if role in ("system", "user") for word in words]
    flags = [word for word in words if word in ("/think", "/no_think")]
    expected = not flags or flags[-1] == "/think"
    assert wants_thinking([{"role": role, "content": " ".join(words)} for role, words in drawn]) == expected


def test_where_a_flag_stands() -> None:
    assert with_flag("What?", "/no_think") == "What? /no_think"
    assert with_flag("", "/think") == "/think"
    assert with_flag("What?", None) == "What?"


# --- samples --------------------------------------------------------------------------------------------------------


def response(text: str, **columns: object) -> dict:
    return {
        "id": "q",
        "sample": 0,
        "prompt": "q?",
        "status": "ok",
        "score": 1.0,
        "task": "qa",
        "response": text,
        **columns,
    }


@pytest.mark.parametrize(
    ("row", "thinking", "reason"),
    [
        (response("<think>\nhm\n</think>\n\nyes"), True, ""),
        (response("hm\n</think>\n\nyes", opened=True), True, ""),
        (response("<think>\nhm\n</think>\n\nyes"), False, "wrong_mode"),
        (response("yes"), True, "wrong_mode"),
        (response("<think>\n\n</think>\n\nyes"), True, "wrong_mode"),
        (response("yes"), False, ""),
        (response("<think>\n\n</think>\n\nyes"), False, ""),
        (response("<think>\nhm"), True, "malformed"),
        (response("<think>\nhm\n</think>\n\n"), True, "malformed"),
        (response("<think>a</think><think>b</think>c"), True, "malformed"),
        (response(""), False, "malformed"),
        (response("yes", prompt="q? /think"), False, "holds_a_flag"),
        (response("<think>\nhm\n</think>\n\nyes", score=0.0), True, "not_correct"),
        (response("<think>\nhm\n</think>\n\nyes", status="timeout"), True, "not_correct"),
        (response("yes", status="not_applicable", score=0.0), False, ""),  # checklists judge these
    ],
)
def test_what_may_become_a_sample(row: dict, thinking: bool, reason: str) -> None:
    assert usable([row], thinking=thinking)[0].reason == reason
    if reason:
        with pytest.raises(ValueError, match=rf"row 'q#0' is no sample: {reason}"):
            samples([row], thinking=thinking)
    else:
        (sample,) = samples([row], thinking=thinking)
        assert (sample.thought, sample.answer, sample.key) == ("hm" if thinking else "", "yes", "q#0")
        assert sample.content == ("<think>\nhm\n</think>\n\nyes" if thinking else EMPTY + "yes")


def test_samples_of_one_turn() -> None:
    user = [{"role": "user", "content": "q?"}]
    assert samples([response("yes", prompt=user)], thinking=False)[0].prompt == "q?"
    with pytest.raises(ValueError, match="expected one user message"):
        samples([response("yes", prompt=[*user, {"role": "assistant", "content": "a"}, *user])], thinking=False)
    with pytest.raises(ValueError, match="expected column task"):
        samples([response("yes", task=None)], thinking=False)


# --- golden ---------------------------------------------------------------------------------------------------------


def one(shares: FusionShares, **arguments: Any) -> dict[str, Any]:
    return assemble(THINKING[:1], PLAIN[:1], num=1, seed=0, shares=shares, **arguments)[0]


SINGLE = {"turns": {1: 1.0}, "system": 0.0, "doubled": 0.0, "translation": 0.0}
GOLDEN = [
    # the report's sample texts, table 9
    (
        FusionShares(thinking=0.0, **SINGLE),
        {},
        "<|im_start|>user\nqa question 0? /no_think<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\nanswer 0<|im_end|>",
    ),
    (
        FusionShares(thinking=1.0, unflagged=0.0, **SINGLE),
        {},
        "<|im_start|>user\nt question 0? /think<|im_end|>\n<|im_start|>assistant\n"
        "<think>\nthought 0\n</think>\n\nanswer 0<|im_end|>",
    ),
    (
        FusionShares(thinking=1.0, unflagged=1.0, **SINGLE),
        {},
        "<|im_start|>user\nt question 0?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\nthought 0\n</think>\n\nanswer 0<|im_end|>",
    ),
    (
        FusionShares(thinking=0.0, **(SINGLE | {"system": 1.0})),
        {},
        "<|im_start|>system\n/no_think<|im_end|>\n<|im_start|>user\nqa question 0?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\nanswer 0<|im_end|>",
    ),
    (
        FusionShares(thinking=0.0, **(SINGLE | {"system": 1.0})),
        {"systems": ["Be brief."], "system_share": 1.0},
        "<|im_start|>system\nBe brief. /no_think<|im_end|>\n<|im_start|>user\nqa question 0?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nanswer 0<|im_end|>",
    ),
    (
        FusionShares(thinking=0.0, **(SINGLE | {"doubled": 1.0})),
        {},
        "<|im_start|>user\nqa question 0? /think /no_think<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\nanswer 0<|im_end|>",
    ),
]


@pytest.mark.parametrize(("shares", "arguments", "text"), GOLDEN)
def test_rendered_as_in_the_report(shares: FusionShares, arguments: dict, text: str, tokenizer: Any) -> None:
    row = one(shares, **arguments)
    segments = render_segments(tokenizer, row["messages"])
    assert "".join(segment.text for segment in segments) == text + "\n"
    token_ids, mask = render_example(tokenizer, row["messages"])
    assert tokenizer.decode(token_ids) == text + "\n"
    answer = text.rpartition("<|im_start|>assistant\n")[2]
    assert tokenizer.decode(token_ids[mask]) == answer  # the block, the answer and its end, nothing else


def test_the_think_tags_are_single_tokens_and_trained(tokenizer: Any) -> None:
    token_ids, mask = render_example(tokenizer, one(FusionShares(thinking=0.0, **SINGLE))["messages"])
    for tag in ("<think>", "</think>"):
        place = int(np.flatnonzero(token_ids == tokenizer.convert_tokens_to_ids(tag))[0])
        assert mask[place]


# --- assembled sets -------------------------------------------------------------------------------------------------

ALL = [*PLAIN, *RARE, *FRENCH]


def check(row: dict[str, Any], by_key: dict[str, Sample]) -> None:
    """Each answer is its sample's, word for word, and in the mode that the flags before it ask for."""
    turns = [k for k, message in enumerate(row["messages"]) if message["role"] == "assistant"]
    assert len(turns) == len(row["thinking"]) == len(row["sources"])
    for place, mode, key in zip(turns, row["thinking"], row["sources"], strict=True):
        sample = by_key[key]
        assert wants_thinking(row["messages"][:place]) == mode == sample.thinking
        content, user = row["messages"][place]["content"], row["messages"][place - 1]["content"]
        assert content == (f"<think>\n{sample.thought}\n</think>\n\n" if mode else EMPTY) + sample.answer
        assert re.sub(r"( /(no_)?think)*$", "", user) == sample.prompt


share = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(0, 5),
    st.tuples(share, share, share, share, share, share),
    st.dictionaries(st.integers(1, 4), st.floats(0.1, 1), min_size=1),
    share,
)
def test_every_answer_obeys_the_last_flag(
    num: int, seed: int, drawn: tuple[float, ...], turns: dict[int, float], system_share: float
) -> None:
    names = ("thinking", "unflagged", "system", "flag_later", "doubled", "translation")
    shares = FusionShares(turns=turns, **dict(zip(names, drawn, strict=True)))
    arguments: dict[str, Any] = {
        "num": num,
        "seed": seed,
        "shares": shares,
        "low_resource": frozenset({"sw"}),
        "systems": ["Be brief.", "Be kind."],
        "system_share": system_share,
    }
    rows = assemble(THINKING, ALL, **arguments)
    by_key = {sample.key: sample for sample in [*THINKING, *ALL]}
    assert len({row["id"] for row in rows}) == num
    for row in rows:
        check(row, by_key)
    used = [key for row in rows for key in row["sources"]]
    assert len(set(used)) == len(used)  # each sample once while the pools last
    plain = [key for row in rows for key, mode in zip(row["sources"], row["thinking"], strict=True) if not mode]
    rare = sum(by_key[key].language == "sw" for key in plain)
    assert rare == round(shares.translation * len(plain))
    assert sum(row["thinking"][0] for row in rows) == round(shares.thinking * num)
    flagless = [row for row in rows if not any(map(last_flag, (m["content"] for m in row["messages"][:2])))]
    if system_share == 0 and shares.system == 0:
        assert sum(row["thinking"][0] for row in flagless) == round(
            shares.unflagged * sum(row["thinking"][0] for row in rows)
        )
    shuffled = [THINKING[:], ALL[:]]
    for members in shuffled:
        random.Random(0).shuffle(members)
    assert assemble(*shuffled, **arguments) == rows


def test_the_training_mask_is_exactly_the_answers(tokenizer: Any) -> None:
    rows = assemble(
        THINKING,
        ALL,
        num=20,
        seed=4,
        low_resource=frozenset({"sw"}),
        systems=["Be brief."],
        system_share=0.5,
    )
    assert any(len(row["sources"]) > 1 for row in rows)
    for row in rows:
        token_ids, mask = render_example(tokenizer, row["messages"])
        answers = [m["content"] + "<|im_end|>" for m in row["messages"] if m["role"] == "assistant"]
        assert tokenizer.decode(token_ids[mask]) == "".join(answers)


def test_flags_stand_at_random_turns() -> None:
    """Later user turns carry both flags, unflagged turns follow them in either mode, and some modes are carried on."""
    rows = assemble(
        pool(True, 400),
        pool(False, 400, task="qa"),
        num=100,
        seed=2,
        shares=FusionShares(turns={4: 1.0}, translation=0.0, doubled=0.0, system=0.25),
    )
    seen: Counter[tuple[int, str | None, bool]] = Counter()
    for row in rows:
        users = [m["content"] for m in row["messages"] if m["role"] == "user"]
        for turn, (user, mode) in enumerate(zip(users, row["thinking"], strict=True)):
            seen[turn, last_flag(user), mode] += 1
    for turn in range(1, 4):
        assert seen[turn, "/think", True] > 5
        assert seen[turn, "/no_think", False] > 5
        assert seen[turn, None, True] > 5
        assert seen[turn, None, False] > 5
        assert not seen[turn, "/think", False]
    systems = [row for row in rows if row["messages"][0]["role"] == "system"]
    flagged_first = sum(
        last_flag(row["messages"][0]["content"]) is not None
        or bool(row["messages"][0]["role"] == "user" and last_flag(row["messages"][0]["content"]))
        for row in rows
    )
    assert len(systems) == round(0.25 * flagged_first)


def test_the_same_seed_and_another() -> None:
    first, again, other = (
        assemble(THINKING, PLAIN, num=20, seed=s, shares=FusionShares(translation=0)) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_counts_by_hand() -> None:
    assert counts_of({1: 0.6, 2: 0.2, 4: 0.2}, 10) == {1: 6, 2: 2, 4: 2}
    assert counts_of({1: 1.0, 2: 1.0, 3: 1.0}, 4) == {1: 2, 2: 1, 3: 1}
    assert counts_of({1: 0.7, 2: 0.3}, 1) == {1: 1, 2: 0}
    assert [len(plan.users) for plan in plan_conversations(10, shares=FusionShares(), seed=0)].count(1) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thinking": THINKING[:2]}, "pool of thinking samples has 2 samples, all used after 2 turns"),
        ({"non_thinking": PLAIN}, "pool of low-resource translations has 0 samples"),
        ({"thinking": PLAIN[:1]}, "expected samples with a thought, got"),
        ({"non_thinking": [*ALL, THINKING[0]]}, "expected samples without a thought, got"),
        ({"systems": ["Be brief /think"]}, "system messages without a flag"),
        ({"thinking": [Sample("x", "q /think", "t", "a")]}, "sample 'x' holds /think in its prompt"),
    ],
)
def test_pools_that_do_not_fit(change: dict, message: str) -> None:
    arguments = {"thinking": THINKING, "non_thinking": ALL, "num": 20, "seed": 0, "low_resource": frozenset({"sw"})}
    with pytest.raises(ValueError, match=message):
        assemble(**(arguments | change))


def test_samples_may_be_used_again_where_that_is_said() -> None:
    rows = assemble(THINKING[:2], PLAIN[:3], num=12, seed=0, shares=FusionShares(translation=0), repeat=True)
    counts = Counter(key for row in rows for key in row["sources"])
    for mark, size in (("t", 2), ("qa", 3)):
        uses = [counts[key] for key in counts if re.fullmatch(rf"{mark}\d+", key)]
        assert len(uses) == size
        assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"thinking": 1.1}, "FusionShares.thinking"),
        ({"translation": float("nan")}, "FusionShares.translation"),
        ({"turns": {}}, "FusionShares.turns"),
        ({"turns": {0: 1.0}}, "FusionShares.turns"),
        ({"turns": {1: 0.0}}, "FusionShares.turns"),
        ({"turns": {1: -1.0, 2: 2.0}}, "FusionShares.turns"),
    ],
)
def test_shares_out_of_range(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusionShares(**settings_)
