"""The labels that every corpus may have: names, kinds, values. Other labels are free; these mean what stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VERSION = 1  # of names, kinds and values of MEANINGS, and of how failures are written
UNKNOWN = "unknown"  # a class: the labeller ran, and cannot tell


@dataclass(frozen=True)
class Meaning:
    """What a label of the schema says."""

    kind: Literal["class", "number", "flag"]
    text: str
    unit: str = ""
    values: tuple[str, ...] = ()  # of a class; () = open


FIELDS = (
    "mathematics", "physics", "chemistry", "biology", "medicine", "computing", "engineering", "earth_science",
    "economics", "law", "politics", "history", "philosophy", "religion", "psychology", "language", "literature", "arts",
    "sports", "everyday",
)  # fmt: skip
DOMAINS = (
    "web", "encyclopedia", "book", "news", "academic", "textbook", "exam", "code", "forum", "conversation", "legal",
    "advertisement",
)  # fmt: skip
HARMS = ("safe", "sexual", "violence", "hate", "self_harm", "crime", "deception")

MEANINGS: dict[str, Meaning] = {
    "language": Meaning("class", "ISO 639-3 code and script, e.g. deu_Latn; `unknown`; score: of the classifier"),
    "length.characters": Meaning("number", "Unicode code points", "characters"),
    "length.words": Meaning("number", "runs without white space; characters in scripts without spaces", "words"),
    "length.tokens": Meaning("number", "tokens of the tokenizer that the labeller names", "tokens"),
    "educational_value": Meaning("number", "how useful for teaching, 0 to 5 (FineWeb-Edu, arXiv:2406.17557)", "points"),
    "field": Meaning("class", "which field of knowledge it is about", values=(*FIELDS, "none")),
    "domain": Meaning("class", "what kind of text it is", values=(*DOMAINS, "other")),
    "safety": Meaning("class", "`safe`, or the harm that it does", values=HARMS),
    "safety.terms": Meaning("number", "explicit terms from a list, per thousand words", "‰"),
    "perplexity": Meaning("number", "exp of the mean negative log-likelihood a token, by the labeller's model"),
    "bits_per_byte": Meaning("number", "negative log-likelihood in bits per byte of UTF-8", "bits/byte"),
    "quality.mean_word_length": Meaning("number", "characters a word (Gopher)", "characters"),
    "quality.symbol_ratio": Meaning("number", "`#` and ellipses per word (Gopher)"),
    "quality.bullet_lines": Meaning("number", "share of lines that begin with a bullet (Gopher)"),
    "quality.ellipsis_lines": Meaning("number", "share of lines that end with an ellipsis (Gopher)"),
    "quality.alphabetic_words": Meaning("number", "share of words with a letter (Gopher)"),
    "quality.stop_words": Meaning("number", "different stop words of the text's language that occur (Gopher)"),
    "quality.duplicate_lines": Meaning("number", "share of lines that stood before (Gopher)"),
    "quality.duplicate_paragraphs": Meaning("number", "share of paragraphs that stood before (Gopher)"),
    "quality.duplicate_line_characters": Meaning("number", "share of characters in such lines (Gopher)"),
    "quality.duplicate_paragraph_characters": Meaning("number", "share of characters in such paragraphs (Gopher)"),
    **{
        f"quality.top_{n}_gram": Meaning("number", f"share of characters in the most frequent word {n}-gram (Gopher)")
        for n in (2, 3, 4)
    },
    **{
        f"quality.duplicate_{n}_grams": Meaning("number", f"share of characters in repeated word {n}-grams (Gopher)")
        for n in range(5, 11)
    },
    "quality.punctuated_lines": Meaning("number", "share of lines that end with a sentence's punctuation (C4)"),
    "quality.short_lines": Meaning("number", "share of lines under 30 characters (FineWeb)"),
    "quality.sentences": Meaning("number", "ends of sentences (C4)", "sentences"),
    "quality.unreadable": Meaning("number", "share of characters that are U+FFFD, unassigned or control characters"),
    "quality.gopher": Meaning("class", "`pass`, or the first of Gopher's rules that it breaks"),
    "quality.c4": Meaning("class", "`pass`, or the first of C4's rules that it breaks"),
}


def schema_table() -> list[str]:
    """The labels of the schema as a table in Markdown."""
    rows = ["| label | kind | says |", "|---|---|---|"]
    for name, meaning in MEANINGS.items():
        said = meaning.text + (f": {', '.join(f'`{value}`' for value in meaning.values)}" if meaning.values else "")
        rows.append(f"| `{name}` | {meaning.kind}{f', {meaning.unit}' if meaning.unit else ''} | {said} |")
    return rows
