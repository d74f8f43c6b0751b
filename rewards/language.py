"""The `language` reward: how much of a response is in the language that was asked for, thoughts and answer alike.

Letters of another script are foreign by themselves; sentences in the right script are shown to py3langid, an identifier
of about 140 languages whose model comes with the package. Code, formulas and addresses belong to no language.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.response import parse
from rewards.text import unreadable

_MIN_LETTERS = 40  # shorter sentences are joined before they are identified; half as many where there are no more
_EVIDENCE = 10.0  # nats by which another language must explain a sentence better than the wanted one
_NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\\\[.*?\\\]|\\\(.*?\\\)|\\boxed\{[^{}]*\}|\\[A-Za-z]+|"
    r"\b[A-Za-z]\b|https?://\S+|[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]+\.[A-Za-z]{2,}|<\|[^<>|]*\|>|<[^<>\n]{1,80}>",
    re.DOTALL,
)
_SENTENCE = re.compile(r"(?<=[.!?;:])(?:\s+|(?=[\u3040-\u30ff\u4e00-\u9fff]))|(?<=[。！？；])|\n+")
_SCRIPTS = {
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hy": ("ARMENIAN",),
    "ka": ("GEORGIAN",),
    "am": ("ETHIOPIC",),
    "th": ("THAI",),
    "lo": ("LAO",),
    "km": ("KHMER",),
    "my": ("MYANMAR",),
    "si": ("SINHALA",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "kn": ("KANNADA",),
    "ml": ("MALAYALAM",),
    "gu": ("GUJARATI",),
    "or": ("ORIYA",),
    "pa": ("GURMUKHI",),
    "sr": ("CYRILLIC", "LATIN"),
    "kk": ("CYRILLIC", "LATIN"),
    "az": ("LATIN", "CYRILLIC"),
    "uz": ("LATIN", "CYRILLIC"),
    "ku": ("LATIN", "ARABIC"),
    **dict.fromkeys(("yue", "wuu"), ("CJK",)),
    **dict.fromkeys(("bn", "as"), ("BENGALI",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa", "gom"), ("DEVANAGARI",)),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ug", "arz", "ary", "sdh"), ("ARABIC",)),
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "ky", "mn", "ba", "tg", "tt"), ("CYRILLIC",)),
}
# Too close to tell apart in a sentence or two.
_CLOSE = [
    {"no", "nn", "da"},
    {"hr", "sr", "bs", "sl"},
    {"id", "ms", "jv"},
    {"gl", "pt"},
    {"cs", "sk"},
    {"zh", "yue", "wuu"},
    {"ar", "arz", "ary"},
    {"uz", "uzs"},
    {"zu", "xh"},
    {"af", "nl"},
    {"hi", "mr", "ne", "sa", "gom"},
    {"fa", "ps", "ur", "ug", "sdh", "ku"},
]
_ALIASES = {"nb": "no", "iw": "he", "in": "id", "fil": "tl", "zh-cn": "zh", "zh-tw": "zh", "zh-hans": "zh"}


@rowwise
def language_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    language: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """The share of letters that are in column ``language`` (ISO 639-1: ``de``, ``zh``); 0 for an empty response.

    Parts: ``answer`` and ``thought``, the same share of each, and ``switches``, the number of changes between sentences
    of the wanted and of another language. A response of numbers and formulas alone is in every language. A language
    that the identifier does not know is ``unparseable``.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        code = canonical_code(language[row])
        if code is None:
            verdicts.append(
                unreadable("column language: expected an ISO 639-1 code of a known language;", language[row])
            )
            continue
        text = text_of(completion)
        response = parse(text, opened=prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None))
        thought, answer = measure(response.thinking, code), measure(response.answer, code)
        if not response.finished and not response.thinking:  # opened by the prompt, or a second block
            thought = measure(text, code)
        verdicts.append(_verdict(text, thought, answer))
    return verdicts


def _verdict(text: str, thought: Measure, answer: Measure) -> Verdict:
    letters = thought.num_letters + answer.num_letters
    if not text.strip():
        return Verdict(0.0, detail="an empty response")
    score = (thought.num_wanted + answer.num_wanted) / letters if letters else 1.0
    parts = {"switches": float(thought.num_switches + answer.num_switches)}
    parts |= {name: m.share for name, m in (("thought", thought), ("answer", answer)) if m.num_letters}
    foreign = thought.foreign or answer.foreign
    return Verdict(score, parts=parts, detail=f"foreign: {foreign[:200]!r}" if foreign else "")


@dataclass(frozen=True)
class Measure:
    """Letters of one text, and which of them are in the wanted language."""

    num_letters: int
    num_wanted: int
    num_switches: int  # changes between sentences of the wanted and of another language
    foreign: str  # the first sentence that is not wholly wanted

    @property
    def share(self) -> float:
        return self.num_wanted / self.num_letters if self.num_letters else 1.0


def measure(text: str, code: str) -> Measure:
    """Sentence by sentence; one is foreign when another language explains it far better."""
    num_letters = num_wanted = num_switches = 0
    foreign, was_foreign = "", False
    for sentence in _sentences(_NO_LANGUAGE.sub(" ", text)):
        scripts = [_script(character) for character in sentence if character.isalpha()]
        wanted = sum(script in _SCRIPTS.get(code, ("LATIN",)) for script in scripts)
        # Where foreign letters are the minority, the sentence is judged by the others: `the word 猫`.
        is_foreign = wanted * 2 < len(scripts) or (wanted >= _MIN_LETTERS // 2 and _is_other(sentence, code))
        num_letters += len(scripts)
        num_wanted += 0 if is_foreign else wanted
        if is_foreign or wanted < len(scripts):
            foreign = foreign or sentence.strip()
        num_switches += is_foreign != was_foreign and num_letters > len(scripts)
        was_foreign = is_foreign
    return Measure(num_letters, num_wanted, num_switches, foreign)


def _sentences(text: str) -> list[str]:
    """Sentences with letters; short ones are joined with the next of the same script."""
    found: list[str] = []
    for piece in _SENTENCE.split(text):
        if not any(map(str.isalpha, piece)):
            continue
        script = _main_script(piece)
        if found and _num_letters(found[-1]) < _MIN_LETTERS and _main_script(found[-1]) == script:
            found[-1] += " " + piece
        else:
            found.append(piece)
    return found


def _num_letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _main_script(text: str) -> str:
    scripts = [_script(character) for character in text if character.isalpha()]
    return max(set(scripts), key=scripts.count)


@functools.lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """The first word of a letter's Unicode name, which is its script."""
    name = unicodedata.name(character, "UNKNOWN").split()[0].removeprefix("FULLWIDTH").removeprefix("HALFWIDTH")
    return "LATIN" if name in ("", "FEMININE", "MASCULINE", "MODIFIER") else name


def _is_other(sentence: str, code: str) -> bool:
    ranked = dict(identifier().rank(sentence))
    family = {code} | next((close for close in _CLOSE if code in close), set())
    wanted = max((float(ranked[c]) for c in family if c in ranked), default=0.0)
    best = max(ranked, key=lambda c: float(ranked[c]))
    return best not in family and float(ranked[best]) - wanted > _EVIDENCE


def foreign_share(text: str, code: str) -> float:
    """The share of letters in sentences of 20 letters and more, each judged alone, that are in another language."""
    sentences = [(sentence, _num_letters(sentence)) for sentence in _SENTENCE.split(_NO_LANGUAGE.sub(" ", text))]
    foreign = sum(n for sentence, n in sentences if n >= _MIN_LETTERS // 2 and _is_other(sentence, code))
    return foreign / max(1, sum(n for _, n in sentences))


def is_latin(code: str) -> bool:
    """Is the language written in Latin letters?"""
    return "LATIN" in _SCRIPTS.get(code, ("LATIN",))


def canonical_code(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    tag = value.strip().lower().replace("_", "-")
    code = _ALIASES.get(tag, tag.partition("-")[0])
    return code if code in identifier().labels and code != "zxx" else None


@functools.lru_cache(maxsize=1)
def identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def warm_up() -> None:
    """Load the model once; forks inherit it."""
    identifier().rank("warm")
