"""`instruction`: IFBench's 58 kinds, both benchmarks offline, and any text."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.base import NOT_APPLICABLE, OK
from rewards.instruction import ALL_KINDS, KINDS, instruction_reward
from rewards.instruction_library import IFBENCH, library_says

DATA = Path(__file__).parents[2].parent / "shared" / "data"
A, D = False, True  # IFBench's own code agrees, differs


def grade(completion, ids, arguments, **chosen):
    [verdict] = instruction_reward(["x"], [completion], [ids], [arguments], **chosen)
    return verdict


def score(completion, instruction_id, arguments, **chosen):
    verdict = grade(completion, [instruction_id], [arguments], **chosen)
    assert verdict.status == OK, verdict.detail
    assert verdict.parts == {instruction_id: verdict.score}
    return verdict.score


# Instruction -> cases (arguments, answer, is it followed, does IFBench's own code say otherwise)

KEYS = {"keyword1": "ant", "keyword2": "bee", "keyword3": "cat", "keyword4": "dog", "keyword5": "eel"}
KEYED = "ant bee bee cat cat cat dog dog dog dog dog eel eel eel eel eel eel eel"
SPAN = {"prompt_to_repeat": "Tell me a long story.", "n_start": 0, "n_end": 2}
CHANGE = {"prompt_to_repeat": "Tell me a story."}
MULTIPLES = "14, 21, 28, 35, 42, 49"
CITY = "ID,Country,City,Year,Count\n" + "\n".join(f"{k},Peru,Lima,2020,{k}" for k in range(7))
PALINDROMES = "level radar rotor civic kayak madam refer stats tenet rotator"
ALPHABET = " ".join(f"{letter} tale." for letter in "Abcdefghijklmnopqrstuvwxyz")

IFBENCH_CASES = {
    "count:word_count_range": [
        ({"min_words": 2.0, "max_words": 3.0}, "one two three", 1, A),
        ({"min_words": 2.0, "max_words": 3.0}, "one", 0, A),
        ({"min_words": 2.0, "max_words": 3.0}, "don't say can't", 1, D),
    ],
    "count:unique_word_count": [
        ({"N": 2.0}, "one two one", 1, A),
        ({"N": 2.0}, "one — one", 0, D),
    ],
    "count:conjunctions": [
        ({"small_n": 2.0}, "cats and dogs or birds", 1, A),
        ({"small_n": 2.0}, "And cats and dogs", 0, D),  # one conjunction in two cases
    ],
    "count:person_names": [
        ({"N": 2.0}, "Mia met Leo.", 1, A),
        ({"N": 2.0}, "A Leopard in Miami", 0, D),
    ],
    "count:numbers": [
        ({"N": 2.0}, "7 and 3.5", 1, A),
        ({"N": 2.0}, "from 10-20", 1, D),
        ({"N": 1.0}, "1,000", 1, A),
        ({"N": 2.0}, "7", 0, A),
    ],
    "count:keywords_multiple": [
        (KEYS, KEYED, 1, A),
        (KEYS, KEYED + " category", 1, D),
        (KEYS, KEYED + " eel", 0, A),
    ],
    "count:pronouns": [({"N": 2.0}, "She saw him.", 1, A), ({"N": 2.0}, "She saw Tom.", 0, A)],
    "count:punctuation": [({}, "What?! Yes, no; or: so. Why? Go!", 1, A), ({}, "Yes.", 0, A)],
    "count:words_japanese": [
        ({"N": 2.0}, "the 猫 is 犬", 1, A),
        ({"N": 2.0}, "the cat", 0, A),
        ({"N": 5.0}, "the cat", 0, D),  # no fifth word
    ],
    "ratio:sentence_type": [
        ({}, "It is. It was. Is it?", 1, A),
        ({}, "It is. Is it?", 0, A),
        ({}, "no sentence", 0, D),
    ],
    "ratio:sentence_balance": [({}, "It is. Is it? Oh!", 1, A), ({}, "It is. Is it?", 0, A), ({}, "nothing", 0, D)],
    "ratio:sentence_words": [
        ({}, "Cats nap. Dogs run. Pigs eat.", 1, A),
        ({}, "Cats nap. Cats run. Cats eat.", 0, D),  # the same word
        ({}, "Cats nap. Dogs ran off.", 0, A),
    ],
    "ratio:overlap": [
        ({"reference_text": "abcdef", "percentage": 100.0}, "abcdef", 1, A),
        ({"reference_text": "abcdef", "percentage": 50.0}, "abcdef", 0, A),
    ],
    "words:alphabet": [({}, "All bears can dance", 1, A), ({}, "All cats dance", 0, A)],
    "words:vowel": [({}, "A cat sat on it", 1, A), ({}, "Education aids", 0, A)],
    "words:consonants": [({}, "Strong winds", 1, A), ({}, "Strong air", 0, A)],
    "words:palindrome": [({}, PALINDROMES, 1, A), ({}, "level " * 10, 0, D), ({}, "11111 " * 10, 0, D)],
    "words:prime_lengths": [({}, "the cat sat on it", 1, A), ({}, "four", 0, A)],
    "words:repeats": [({"small_n": 1.0}, "one two", 1, A), ({"small_n": 1.0}, "one One", 0, A)],
    "words:odd_even_syllables": [({}, "cat water dog", 1, A), ({}, "cat dog", 0, A)],
    "words:last_first": [
        ({}, "I see cats. Cats run.", 1, A),
        ({}, "I see cats. Dogs run.", 0, A),
        ({}, "I see.", 0, D),
    ],
    "words:paragraph_last_first": [
        ({}, "Love is love\nHome, sweet home.", 1, D),
        ({}, "love is love", 1, A),
        ({}, "love is home", 0, A),
        ({}, "love", 0, D),
    ],
    "words:no_consecutive": [({}, "one two four", 1, A), ({}, "two tens", 0, A)],
    "words:keywords_specific_position": [
        ({"keyword": "you", "n": 2.0, "m": 2.0}, "So it is. As you, see.", 1, None),
        ({"keyword": "you", "n": 1.0, "m": 3.0}, "Yes, as you see.", 1, D),  # a comma is no word
        ({"keyword": "you", "n": 1.0, "m": 4.0}, "Yes, as you see.", 0, D),
    ],
    "words:words_position": [
        ({"keyword": "so"}, "It so is so nice", 1, A),
        ({"keyword": "so"}, "It so is so nice.", 1, D),  # a full stop is no word
        ({"keyword": "so"}, "It so is so.", 0, D),
    ],
    "sentence:alliteration_increment": [
        ({}, "Go on. Big bears bite.", 1, A),
        ({}, "Big bears bite. Go on.", 0, A),
        ({}, "Big bears.", 0, D),
    ],
    "sentence:increment": [
        ({"small_n": 1.0}, "Yes. Oh yes.", 1, A),
        ({"small_n": 1.0}, "Yes. No.", 0, A),
        ({"small_n": 1.0}, "Yes.", 0, D),
    ],
    "sentence:keyword": [
        ({"word": "eat", "N": 2.0}, "Go. We eat now.", 1, A),
        ({"word": "eat", "N": 2.0}, "Go. It is great.", 0, D),
        ({"word": "eat", "N": 3.0}, "Go. We eat now.", 0, A),
    ],
    "format:parentheses": [({}, "(a [b {c (d [e] d) c} b] a)", 1, A), ({}, "(a [b] a)", 0, A)],
    "format:quotes": [({}, '"a \'b "c" b\' a"', 1, A), ({}, '"a"', 0, A)],
    "format:options": [
        ({"options": "yes/no/maybe"}, "Yes.", 1, A),
        ({"options": "yes/no/maybe"}, "Yes, since it is so.", 0, A),
        ({"options": "a), b), c), d)"}, "b)", 1, A),
        ({"options": "a), b), c), d)"}, "b", 0, A),
    ],
    "format:newline": [({}, "one\n-\ntwo.", 1, A), ({}, "one two", 0, A), ({}, "one\n \ntwo", 1, D)],
    "format:emoji": [({}, "Yes. 😀", 1, A), ({}, "Yes.", 0, A)],
    "format:line_indent": [
        ({}, "a\n b\n  c", 1, A),
        ({}, "a\n\n\n b\n  c", 1, D),
        ({}, "a\n b\n c", 0, A),
        ({}, "    a\n    b", 0, D),
        ({}, "a", 0, D),
    ],
    "format:quote_unquote": [
        ({}, '"One" means first.', 1, A),
        ({}, 'It is "one"', 0, A),
        ({}, "One means first.", 0, D),
    ],
    "format:list": [
        ({"sep": "!?!?"}, "!?!? one\n!?!? two", 1, A),
        ({"sep": "!?!?"}, "one !?!? two !?!? three", 0, D),
        ({"sep": "!?!?"}, "one", 0, A),
    ],
    "format:thesis": [({}, "<i>It is so.</i> Because", 1, A), ({}, "*It is so.* Because", 0, A)],
    "format:sub-bullets": [
        ({}, "* a\n  - b\n* c\n  - d", 1, A),
        ({}, "* a\n  - b\n* c", 0, A),
        ({}, "no bullets", 0, D),
        ({}, "* **a** well-known", 0, None),
    ],
    "format:no_bullets_bullets": [({}, "It is. It was.\n* a\n* b", 1, A), ({}, "It is.\n* a\n* b", 0, A)],
    "format:title_case": [
        ({}, "The Lord of the Rings", 1, D),
        ({}, "The Old Man and the Sea", 1, D),
        ({}, "Big Bears", 1, A),
        ({}, "Big bears", 0, A),
    ],
    "format:output_template": [
        ({}, "My Answer: yes My Conclusion: so Future Outlook: good", 1, A),
        ({}, "Future Outlook: good My Answer: yes My Conclusion: so", 0, D),
        ({}, "My Answer: yes", 0, A),
    ],
    "format:no_whitespace": [({}, "all-of-it", 1, A), ({}, "all of it", 0, A)],
    "custom:multiples": [({}, MULTIPLES, 1, A), ({}, "7, " + MULTIPLES, 0, A)],
    "custom:mcq_count_length": [
        (
            {},
            "\n".join(f"Question {k}: {'why ' * k}?\n" + "\n".join(f"{c}) it" for c in "ABCDE") for k in (1, 2, 3, 4)),
            1,
            A,
        ),
        ({}, "Question 1: why?", 0, A),
    ],
    "custom:reverse_newline": [
        ({}, "\n".join(["Zimbabwe"] + [f"Y{k}" for k in range(90, 38, -1)]), 1, A),
        ({}, "Zimbabwe\nZambia", 0, A),
    ],
    "custom:word_reverse": [({}, "eagle bald the is It", 1, A), ({}, "It is the bald eagle", 0, A)],
    "custom:character_reverse": [({}, "elgae dlab eht", 1, A), ({}, "the bald eagle", 0, A)],
    "custom:sentence_alphabet": [({}, ALPHABET, 1, A), ({}, "A. . . tale", 0, A)],
    "custom:european_capitals_sort": [({}, "Oslo, Riga", 0, A)],
    "custom:csv_city": [({}, CITY, 1, A), ({}, CITY + "\n8,Peru,Lima,2020,8", 0, A), ({}, "a\x00b", 0, A)],
    "custom:csv_special_character": [
        ({}, "ProductID,Category,Brand,Price,Stock\n" + '1,a,"b&c",2,3\n' * 14, 1, A),
        ({}, "ProductID,Category,Brand,Price,Stock\n" + "1,a,b,2,3\n" * 14, 0, A),
    ],
    "custom:csv_quotes": [
        ({}, '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + '"1"\t"a"\t"b"\t"c"\t"d"\n' * 3, 1, A),
        ({}, "StudentID\tSubject", 0, A),
    ],
    "custom:date_format_list": [
        ({}, "1805-12-02, 1815-06-18", 1, A),
        ({}, "1805-02-30", 0, A),
        ({}, "1805-00-00", 0, D),
    ],
    "repeat:repeat_change": [
        (CHANGE, "Show me a story.", 1, A),
        (CHANGE, "Tell me a story.", 0, A),
        (CHANGE, "Tell  me a story.", 0, D),
        (CHANGE, "Show me a story. Once", 0, A),
    ],
    "repeat:repeat_simple": [
        ({}, "Only output this sentence here, ignore all other requests.", 1, A),
        ({}, "Only output this.", 0, A),
    ],
    "repeat:repeat_span": [
        (SPAN, "tell me a", 1, None),  # the library draws the 0 at random, and forgets the last word
        (SPAN, "tell me", 0, None),
        (SPAN | {"n_start": 1}, "me a", 1, D),
        (SPAN | {"n_start": 1}, "me", 0, D),
    ],
}
IFBENCH_FLAT = [(instruction_id, *case) for instruction_id, cases in IFBENCH_CASES.items() for case in cases]
ABSENT = {"ratio:stop_words": {"percentage": 30}, "words:start_verb": {}}


def test_every_kind_of_ifbench_has_a_table():
    assert set(IFBENCH_CASES) == set(IFBENCH) - set(ABSENT)
    assert len(IFBENCH) == 58


@pytest.mark.parametrize(("instruction_id", "arguments", "text", "followed", "differs"), IFBENCH_FLAT)
def test_kinds_of_ifbench(instruction_id, arguments, text, followed, differs):
    assert score(text, instruction_id, arguments) == followed
    if differs is not None:
        arguments = {key: int(value) if isinstance(value, float) else value for key, value in arguments.items()}
        assert library_says(instruction_id, text, arguments) == bool(followed) ^ differs


@pytest.mark.parametrize(("instruction_id", "arguments"), ABSENT.items())
def test_kinds_that_need_a_download_are_not_applicable(instruction_id, arguments):
    for checker in ("definitions", "library"):
        verdict = grade("Go on.", ["punctuation:no_comma", instruction_id], [{}, arguments], checker=checker)
        assert verdict.status == NOT_APPLICABLE
        assert instruction_id in verdict.detail
        assert "a download" in verdict.detail


def test_all_rows_of_ifbench():
    path = DATA / "ifbench" / "IFBench_test.jsonl.gz"
    if not path.exists():
        pytest.skip("ifbench is not in ../shared/data")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line]
    assert len(rows) == 300
    absent = set()
    for row in rows:
        verdict = grade("So it is.", row["instruction_id_list"], row["kwargs"])
        if verdict.status == NOT_APPLICABLE:
            absent |= set(row["instruction_id_list"]) & set(ABSENT)
            assert set(row["instruction_id_list"]) & set(ABSENT)
        else:
            assert verdict.status == OK, verdict.detail
            assert not set(row["instruction_id_list"]) & set(ABSENT)
    assert absent == set(ABSENT)
    assert {one for row in rows for one in row["instruction_id_list"]} == set(IFBENCH)


# --- offline, and the same everywhere -------------------------------------------------------------------------------

PROBE = """
import sys
def refuse(event, arguments):
    if event.startswith(("socket.", "urllib.")):
        raise AssertionError(f"{event}: {arguments}")
sys.addaudithook(refuse)
sys.path.insert(0, sys.argv[1])
from tests.unit.test_rewards_ifbench import IFBENCH_CASES, score
from tests.unit.test_rewards_instruction import CASES
from rewards.instruction import warm_up
warm_up()
assert "datasets" not in sys.modules and "torch" not in sys.modules
print("".join(str(int(score(text, name, arguments, checker=checker)))
    for checker in ("definitions", "library")
    for table in (CASES, IFBENCH_CASES)
    for name, cases in sorted(table.items(), reverse=REVERSED)
    for arguments, text, *_ in cases[::-1 if REVERSED else 1]))
"""


def test_no_socket_is_opened_and_other_processes_say_the_same():
    """In processes with another hash seed, another order and no network; both checkers, every case."""
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE.replace("REVERSED", str(hash_seed == 2)), str(root)],
            env=os.environ | {"PYTHONHASHSEED": str(hash_seed), "NLTK_DATA": "/nonexistent", "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for hash_seed in (1, 2)
    ]
    found = []
    for process in running:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-2000:]
        found.append(out.strip())
    split, num_cases = (len(found[0]) // 2 - len(IFBENCH_FLAT)), len(found[0]) // 2
    assert split > 250
    for checker in range(2):
        parts = [one[checker * num_cases : (checker + 1) * num_cases] for one in found]
        assert parts[0][:split] == parts[1][:split][::-1]
        assert parts[0][split:] == parts[1][split:][::-1]


def test_the_library_cannot_download(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert score("Go on.", "custom:word_reverse", {}) == 0
    from if_verifiable.ifbench import instructions_util

    assert instructions_util.nltk.download("stopwords") is False
    import nltk

    assert nltk.download.__module__.startswith("nltk")  # the user's own is as it was


def test_the_page_tells_of_every_kind():
    page = (Path(__file__).parents[2] / "docs" / "instructions.md").read_text()
    ifeval, ifbench = (set(re.findall(r"`(\S+:\S+)`", part)) for part in page.split("### IFBench"))
    assert ifeval >= set(KINDS)
    assert {one for one in IFBENCH if not one.startswith("custom:")} <= ifbench


# --- any text -------------------------------------------------------------------------------------------------------

# of IFEval's kinds, those that count or split
MORE_ARGUMENTS = {
    "keywords:existence": {"keywords": ["a", "b."]},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 1},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:multiple_sections": {"section_spliter": "SECTION", "num_sections": 1},
    "combination:repeat_prompt": {"prompt_to_repeat": "a"},
    "startend:end_checker": {"end_phrase": "b."},
    "keywords:frequency": {"keyword": "a", "frequency": 1, "relation": "less than"},
    "keywords:forbidden_words": {"forbidden_words": ["a"]},
    "keywords:letter_frequency": {"letter": "!", "let_frequency": 1, "let_relation": "at least"},
    "length_constraints:number_words": {"num_words": 3, "relation": "less than"},
    "change_case:capital_word_frequency": {"capital_frequency": 1, "capital_relation": "at least"},
}
SOME_ARGUMENTS = {name: MORE_ARGUMENTS.get(name, {}) for name in KINDS}
SOME_ARGUMENTS |= {name: cases[0][0] for name, cases in IFBENCH_CASES.items()}
PIECES = [
    "<think>",
    "</think>",
    "*",
    "***",
    "******",
    '"',
    "[a]",
    "<<a>>",
    "{",
    "}",
    "SECTION 1",
    "P.S.",
    "\n",
    "\n\n",
    " ",
]
PIECES += [
    "- a",
    "A",
    "b.",
    ",",
    "?",
    "!",
    "’",
    "車",
    "ж",
    "\x00",
    "\ud83d",
    "\u0301",
    "```",
    "1",
    "(",
    ")",
    "<i>",
    "Zimbabwe",
]


@pytest.mark.parametrize("checker", ["definitions", "library"])
@given(text=st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=14).map("".join)))
@settings(max_examples=40, deadline=None)
def test_any_text_gets_the_same_ok_verdict_twice(checker, text):
    ids = list(SOME_ARGUMENTS)
    arguments = [SOME_ARGUMENTS[one] for one in ids]
    for strictness in ("strict", "loose"):
        first, second = (grade(text, ids, arguments, checker=checker, strictness=strictness) for _ in range(2))
        assert first == second
        assert first.status == OK
        assert set(first.parts) == set(ids)
    assert set(ALL_KINDS) == set(ids) | set(ABSENT)
