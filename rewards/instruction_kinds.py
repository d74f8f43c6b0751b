r"""IFEval's 25 instruction kinds, each a predicate on the answer (Zhou et al. 2023, arXiv 2311.07911, Table 1).

The definitions are the paper's. Where the benchmark's own code calls something followed that is not, or the reverse
(``rate`` in ``corporate``, a random letter in place of ``!``, three counted words in ``don't stop``), the definition
wins; docs/instructions.md lists every difference. The benchmark's code itself is in ``rewards/instruction_library.py``.
"""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.instruction_text import (
    count_phrase,
    has_words,
    is_in_language,
    paragraphs,
    plain,
    sentences,
    without_code,
    words,
)
from rewards.structured import out_of_fence, read_json

Check = Callable[[str, Mapping[str, Any]], bool]

# What an argument may be: see ``rewards.instruction.read_argument``.
COUNT, POSITIVE, TEXT, TEXTS, CHARACTER, RELATION, LANGUAGE = (
    "a whole number",
    "a whole number from 1",
    "a text that is not empty",
    "a list of texts that are not empty",
    "one character",
    "'less than' or 'at least'",
    "the code of a known language",
)


@dataclass(frozen=True)
class Kind:
    """One kind of instruction: what it needs to be told, and whether an answer follows it."""

    arguments: Mapping[str, str]  # name -> what it may be; all of them are needed
    check: Check | None = None  # None: the library's alone
    guard: Check | None = None  # beside the library's: both must hold
    reason: str = ""  # why it cannot be checked here


def related(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


# --- words and letters ----------------------------------------------------------------------------------------------


def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(count_phrase(keyword, text) for keyword in keywords)


def _letters(text: str, letter: str) -> int:
    """Any character counts, ``!`` too; an accented letter is another letter."""
    letter = unicodedata.normalize("NFC", letter).lower()
    return sum(c.lower() == letter for c in unicodedata.normalize("NFC", text))


def _capital_words(text: str) -> int:
    """Words of two letters and more, all capitals; hyphens do not cut a word. ``I`` and ``A`` are no such words."""
    pieces = re.split(r"\s+|[—–/,.;:!?](?=\s|$)|[—–/]", plain(text))
    letters = [[c for c in piece if c.isalpha()] for piece in pieces]
    return sum(len(found) >= 2 and all(c.isupper() for c in found) for found in letters)


def _has_comma(text: str) -> bool:
    """Of any script: ``，``, ``、``, ``،``."""
    return any(unicodedata.category(c) == "Po" and "COMMA" in unicodedata.name(c, "") for c in text)


# --- paragraphs, sections, lists ------------------------------------------------------------------------------------

_DIVIDER = re.compile(r"^[^\S\n]*(?:\*[^\S\n]*){3,}$|(?<!\S)\*{3}(?!\S)", re.MULTILINE)
_BULLET = re.compile(r"^[^\S\n]*[*+-][^\S\n]+(?P<item>\S.*)$", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![*\d\\])(?P<stars>\*{1,3})(?=[^\s*])(?P<inside>[^*\n]*)(?<=[^\s\\])(?P=stars)(?![*\d])")
_BEGINS = re.compile(r"(?:(?:\A|\n)[^\w\n]*|[.!?…。！？:>)\]\"”'][^\w\n]*)\Z")
_PLACEHOLDER = re.compile(r"(?<!\\)\[(?P<inside>[^\[\]\n]*)\](?!\()")


def _divided(text: str, num_paragraphs: int) -> bool:
    r"""Dividers are ``***`` between spaces, or a line of asterisks; ``***bold***`` is none."""
    found = _DIVIDER.split(text)
    inner = found[1:-1]
    edges = [part for part in (found[0], found[-1]) if has_words(part)] if len(found) > 1 else found
    return all(map(has_words, inner)) and len(inner) + len(edges) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Markdown and quotation marks before the word do not count; ``it's`` does not start with the word ``it``."""
    found = paragraphs(text)
    if len(found) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    start = plain(re.sub(r"^[\W_]+", "", found[nth_paragraph - 1])).casefold()
    word = plain(first_word).strip().casefold()
    rest = start.removeprefix(word)
    return start.startswith(word) and re.match(r"['-]?\w", rest) is None


def _sections(text: str, splitter: str, num_sections: int) -> bool:
    """Lines that begin with the marker and a number: 1 to ``num_sections``, no other, each with something after it."""
    found = list(re.finditer(rf"^[^\w\n]*{re.escape(splitter.strip())}[^\S\n]*(\d+)\b", text, re.MULTILINE))
    ends = [*(match.start() for match in found), len(text)][1:]
    filled = all(has_words(text[match.end() : end]) for match, end in zip(found, ends, strict=True))
    return filled and {int(match[1]) for match in found} == set(range(1, num_sections + 1))


def _num_bullets(text: str) -> int:
    """Markdown's: a sign, a space, a text, outside of code; ``* * *`` and ``*Note*:`` are none."""
    return sum(has_words(match["item"]) for match in _BULLET.finditer(without_code(text)))


def _num_highlights(text: str) -> int:
    """Pairs of one to three asterisks around a text in one line, outside of code; ``5 * 3 * 2`` holds none."""
    text = re.sub(r"^[^\S\n]*\*[^\S\n]", "", without_code(text), flags=re.MULTILINE)
    return sum(has_words(match["inside"]) for match in _EMPHASIS.finditer(text))


def _num_placeholders(text: str) -> int:
    """With a letter inside; links (``[text](url)``), check boxes (``[x]`` in a list), ``[ ]`` and ``[1]`` are none."""
    text = re.sub(r"^([^\S\n]*(?:[*+-]|\d+[.)])[^\S\n]+)\[[xX]\]", r"\1", text, flags=re.MULTILINE)
    return sum(any(map(str.isalpha, match["inside"])) for match in _PLACEHOLDER.finditer(text))


def _postscript(text: str, marker: str) -> bool:
    """The marker begins a line or a sentence, a text follows, and no more paragraphs stand after it than before it."""
    signs = {"P.S.": r"p\.[^\S\n]?s\.", "P.P.S": r"p\.[^\S\n]?p\.[^\S\n]?s(?!\w)"}
    pattern = signs.get(marker.strip(), re.escape(marker.strip()))
    breaks = [0, *(found.end() for found in re.finditer(r"\n[^\S\n]*(?=\n)", text)), len(text)]
    filled = list(itertools.accumulate(has_words(text[i:j]) for i, j in itertools.pairwise(breaks)))
    for match in re.finditer(rf"(?<![\w.]){pattern}", text, re.IGNORECASE):
        k = bisect.bisect_right(breaks, match.start()) - 1  # its paragraph
        num_before = (filled[k - 1] if k else 0) + has_words(text[breaks[k] : match.start()])
        num_after = filled[-1] - filled[k]
        says_something = has_words(text[match.end() : breaks[k + 1]])
        if says_something and 1 <= num_before >= num_after and _begins_sentence(text, match.start()):
            return True
    return False


def _begins_sentence(text: str, position: int) -> bool:
    """Or a line; the second P. of ``P. P. S.`` does not."""
    before = text[:position] if position <= 100 else "x" + text[position - 100 : position]
    return _BEGINS.search(before) is not None and not re.search(r"\bp\.\s?\Z", before, re.IGNORECASE)


# --- the whole answer -----------------------------------------------------------------------------------------------

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_TITLE = re.compile(r"<<((?:(?!<<|>>)[^\n])+)>>")
_LABEL = re.compile(r"^\W*(?:response|answer|option|version)\s*#?\s*(?:\d+|[ab]|one|two)\b", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”", "„": "“”", "＂": "＂"}


def _one_option(text: str) -> bool:
    """Exactly one of the phrases as written; an answer that holds two chooses none."""
    return sum(option in text for option in _OPTIONS) == 1


def _is_json(text: str) -> bool:
    """One object or list, bare or in one fence; a bare ``42`` is not wrapped in anything."""
    try:
        return isinstance(read_json(out_of_fence(text)), (dict, list))
    except ValueError:
        return False


def _has_title(text: str) -> bool:
    return any(has_words(title) for title in _TITLE.findall(text))


def _two_responses(text: str) -> bool:
    """Two texts around exactly six asterisks that differ in more than case, signs and a label (``Response 1:``)."""
    found = re.split(r"(?<!\*)\*{6}(?!\*)", text)
    if len(found) > 2:  # a divider may stand before the first and after the last
        found = found[:1] * has_words(found[0]) + found[1:-1] + found[-1:] * has_words(found[-1])
    if len(found) != 2 or not all(map(has_words, found)):
        return False
    first, second = (words(_LABEL.sub("", part)) for part in found)
    return first != second


def _repeats_prompt(text: str, prompt: str) -> bool:
    """First the request as written, but for white space; then something of its own."""
    text, prompt = (" ".join(unicodedata.normalize("NFC", one).split()) for one in (text, prompt))
    rest = text.removeprefix(prompt)
    return text.startswith(prompt) and has_words(rest) and not (prompt[-1].isalnum() and rest[0].isalnum())


def _ends_with(text: str, phrase: str) -> bool:
    """The phrase in any case; closing quotation marks and asterisks may follow, letters may not stand before it."""
    text, phrase = (" ".join(plain(one).casefold().split()) for one in (text, phrase))
    for end in (text, text.rstrip('"”“*_ '), text.rstrip('"”“*_ ') + '"'):
        if end.endswith(phrase):
            start = len(end) - len(phrase)
            return not (phrase[0].isalnum() and start and end[start - 1].isalnum())
    return False


def _is_quoted(text: str) -> bool:
    """One pair of double marks around all of it: ``"a" and "b"`` is two quotations. Curly marks are marks too."""
    text = text.strip()
    if len(text) < 3 or text[-1] not in _QUOTES.get(text[0], "") or not has_words(text):
        return False
    if text[0] != '"':
        return True
    depth = 0
    for position, character in enumerate(text):
        if character == '"':
            before, after = text[position - 1 : position], text[position + 1 : position + 2]
            opens = not before or ((before.isspace() or before in "([{*_—–-=:,/>") and after not in " \n.,;:!?)")
            depth += 1 if opens else -1
            if depth <= 0:
                return position == len(text) - 1
    return False


def _all_cased(text: str, case: Callable[[str], bool]) -> bool:
    """The case is what was asked for: more room for foreign names than where the language is."""
    return case(text) and is_in_language(text, "en", min_share=0.7)


KINDS: dict[str, Kind] = {
    "keywords:existence": Kind({"keywords": TEXTS}, lambda t, a: _existence(t, a["keywords"])),
    "keywords:frequency": Kind(
        {"keyword": TEXT, "frequency": COUNT, "relation": RELATION},
        lambda t, a: related(count_phrase(a["keyword"], t), a["relation"], a["frequency"]),
    ),
    "keywords:forbidden_words": Kind(
        {"forbidden_words": TEXTS}, lambda t, a: not any(count_phrase(word, t) for word in a["forbidden_words"])
    ),
    "keywords:letter_frequency": Kind(
        {"letter": CHARACTER, "let_frequency": COUNT, "let_relation": RELATION},
        lambda t, a: related(_letters(t, a["letter"]), a["let_relation"], a["let_frequency"]),
    ),
    "language:response_language": Kind({"language": LANGUAGE}, lambda t, a: is_in_language(t, a["language"])),
    "length_constraints:number_sentences": Kind(
        {"num_sentences": COUNT, "relation": RELATION},
        lambda t, a: related(len(sentences(t)), a["relation"], a["num_sentences"]),
    ),
    "length_constraints:number_paragraphs": Kind(
        {"num_paragraphs": POSITIVE}, lambda t, a: _divided(t, a["num_paragraphs"])
    ),
    "length_constraints:number_words": Kind(
        {"num_words": COUNT, "relation": RELATION},
        lambda t, a: related(len(words(t)), a["relation"], a["num_words"]),
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        {"num_paragraphs": POSITIVE, "nth_paragraph": POSITIVE, "first_word": TEXT}, lambda t, a: _first_word(t, **a)
    ),
    "detectable_content:number_placeholders": Kind(
        {"num_placeholders": COUNT}, lambda t, a: _num_placeholders(t) >= a["num_placeholders"]
    ),
    "detectable_content:postscript": Kind(
        {"postscript_marker": TEXT}, lambda t, a: _postscript(t, a["postscript_marker"])
    ),
    "detectable_format:number_bullet_lists": Kind(
        {"num_bullets": COUNT}, lambda t, a: _num_bullets(t) == a["num_bullets"]
    ),
    "detectable_format:constrained_response": Kind({}, lambda t, a: _one_option(t)),
    "detectable_format:number_highlighted_sections": Kind(
        {"num_highlights": COUNT}, lambda t, a: _num_highlights(t) >= a["num_highlights"]
    ),
    "detectable_format:multiple_sections": Kind(
        {"section_spliter": TEXT, "num_sections": POSITIVE},
        lambda t, a: _sections(t, a["section_spliter"], a["num_sections"]),
    ),
    "detectable_format:json_format": Kind({}, lambda t, a: _is_json(t)),
    "detectable_format:title": Kind({}, lambda t, a: _has_title(t)),
    "combination:two_responses": Kind({}, lambda t, a: _two_responses(t)),
    "combination:repeat_prompt": Kind(
        {"prompt_to_repeat": TEXT}, lambda t, a: _repeats_prompt(t, a["prompt_to_repeat"])
    ),
    "startend:end_checker": Kind({"end_phrase": TEXT}, lambda t, a: _ends_with(t, a["end_phrase"])),
    "startend:quotation": Kind({}, lambda t, a: _is_quoted(t)),
    "change_case:capital_word_frequency": Kind(
        {"capital_frequency": COUNT, "capital_relation": RELATION},
        lambda t, a: related(_capital_words(t), a["capital_relation"], a["capital_frequency"]),
    ),
    "change_case:english_capital": Kind({}, lambda t, a: _all_cased(t, str.isupper)),
    "change_case:english_lowercase": Kind({}, lambda t, a: _all_cased(t, str.islower)),
    "punctuation:no_comma": Kind({}, lambda t, a: not _has_comma(t)),
}
