"""The language of a text: py3langid for what it knows, our n-gram classifier for what it lacks, else `unknown`.

py3langid (a model of 140 languages in its wheel, after Lui & Baldwin 2012, ACL P12-3005) knows 88 of the report's 119;
a classifier trained on the Declaration of Human Rights (``kind: train_labeller``) adds 18. The other 13 nobody here
can tell: docs/languages.md lists them with what each labeller scores.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata

from pretrain.data.label_schema import UNKNOWN
from pretrain.data.labels import Value, labeller
from pretrain.data.languages import LANGUAGES, PY3LANGID, close_to, written_in
from pretrain.data.ngrams import NgramModel, load
from pretrain.data.scripts import script, scripts
from rewards.language import identifier
from rlplatform.config import ConfigError

_NO_LANGUAGE = re.compile(r"https?://\S+|www\.\S+|[\w.+-]{1,64}@[\w-]+\.[\w.]+|\d+")
LACKED = frozenset(one.iso for one in LANGUAGES) - frozenset(PY3LANGID.values())  # by py3langid, of the 119


@labeller(version=f"2.py3langid-{metadata.version('py3langid')}", files=("model",))
def language(
    texts: Sequence[str],
    *,
    model: str = "",
    min_letters: int = 20,
    min_margin: float = 0.2,
    min_probability: float = 0.5,
    max_characters: int = 2000,
) -> list[Mapping[str, Value]]:
    """``language``: ISO 639-3 and script, ``deu_Latn``; the score is the probability by whoever decided.

    Args:
        model: a classifier of ``language`` by ``train_labeller``; "" = py3langid alone.
        min_letters: a text with fewer is ``unknown``; a Chinese, Japanese or Korean character counts as three.
        min_margin: nats per character by which py3langid must prefer its answer over the next one that is not close to
            it (``languages.close_to``); below, the answer counts only where the classifier gives it too.
        min_probability: of the classifier, for a language of the 119 that py3langid lacks.
        max_characters: of the text's beginning that are looked at.

    Raises:
        DataError: ``model`` cannot be read.
    """
    shown = [" ".join(_NO_LANGUAGE.sub(" ", text[:max_characters]).split()) for text in texts]
    loaded = load_cached(model) if model else None
    own = ask_model(loaded, shown) if loaded else [(UNKNOWN, 0.0)] * len(shown)
    taught = frozenset(loaded.classes) if loaded else frozenset()
    found: list[Mapping[str, Value]] = []
    for text, answer in zip(shown, own, strict=True):
        code, score = UNKNOWN, 0.0
        if num_letters(text) >= min_letters:
            code, score = decide(ask_py3langid(text), answer, taught, script(text), min_margin, min_probability)
        found.append({"language": (code, score)})
    return found


def check_settings(**settings: object) -> None:
    """Raises ConfigError for numbers that make no sense."""
    for name in ("min_letters", "min_margin", "min_probability", "max_characters"):
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ConfigError(f"{name}: expected a number >= 0, got {value!r}")


language.check_settings = check_settings  # type: ignore[attr-defined]


def num_letters(text: str) -> int:
    """Letters, a Chinese, Japanese or Korean one as three."""
    counts = scripts(text)
    return counts.total() + 2 * sum(counts[code] for code in ("Hani", "Hira", "Kana", "Hang"))


def decide(
    library: tuple[str, float, float],
    own: tuple[str, float],
    taught: frozenset[str],
    written: str,
    min_margin: float,
    min_probability: float,
) -> tuple[str, float]:
    """(label, score) from both answers and the script.

    The classifier decides for a language that py3langid lacks, and only where it has compared it with py3langid's
    answer (or one close to it) or py3langid hesitates: a classifier of few languages takes every other one for one of
    them.

    Args:
        library: py3langid's language, its probability, and its lead, as ``ask_py3langid`` gives them.
        own: the classifier's language and probability; (UNKNOWN, 0) without one.
        taught: the classifier's languages.
    """
    said, probability = own
    known, library_probability, margin = library
    hesitates = margin < min_margin
    may_decide = said in LACKED and (hesitates or bool(close_to(known) & taught))
    if may_decide and probability >= min_probability and written in written_in(said):
        return f"{said}_{written}", probability
    if known == UNKNOWN or written not in written_in(known) or (hesitates and known != said):
        return UNKNOWN, 0.0
    return f"{known}_{written}", library_probability


def ask_py3langid(text: str) -> tuple[str, float, float]:
    """(ISO 639-3 code or `unknown`, probability, lead over the next language that is not close, in nats per character).

    The probability is among all languages of its model; the lead is of the whole group of close languages.
    """
    ranked = [(PY3LANGID.get(name, UNKNOWN), float(nats)) for name, nats in identifier().rank(text)]
    first, best = ranked[0]
    rest = sum(math.exp(other - best) for _, other in ranked)
    group = close_to(first)
    rival = next(nats for name, nats in ranked if name not in group)
    return first, 1 / rest, (best - rival) / max(1, len(text))


def ask_model(model: NgramModel, texts: Sequence[str]) -> list[tuple[str, float]]:
    """(language, probability) of the likeliest class of each text."""
    probabilities = model.probabilities(texts)
    return [(model.classes[row.argmax()], float(row.max())) for row in probabilities]


load_cached = functools.lru_cache(maxsize=4)(load)
