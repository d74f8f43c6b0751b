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

from pretrain.data.labels import UNKNOWN, Value, labeller
from pretrain.data.languages import LANGUAGES, PY3LANGID, written_in
from pretrain.data.ngrams import NgramModel, load
from pretrain.data.scripts import script
from rewards.language import identifier
from rlplatform.config import ConfigError

_NO_LANGUAGE = re.compile(r"https?://\S+|www\.\S+|[\w.+-]{1,64}@[\w-]+\.[\w.]+|\d+")
LACKED = frozenset(one.iso for one in LANGUAGES) - frozenset(PY3LANGID.values())  # by py3langid, of the 119


@labeller(version="1", files=("model",))
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
        min_letters: a text with fewer is ``unknown``.
        min_margin: nats per character by which py3langid must prefer its answer over the next one; below, the answer
            counts only where the classifier gives it too.
        min_probability: of the classifier, for a language of the 119 that py3langid lacks.
        max_characters: of the text's beginning that are looked at.

    Raises:
        DataError: ``model`` cannot be read.
    """
    shown = [" ".join(_NO_LANGUAGE.sub(" ", text[:max_characters]).split()) for text in texts]
    own: Sequence[tuple[str, float]] = ask_model(load_cached(model), shown) if model else [(UNKNOWN, 0.0)] * len(shown)
    found: list[Mapping[str, Value]] = []
    for text, (said, probability) in zip(shown, own, strict=True):
        code, score = UNKNOWN, 0.0
        if sum(map(str.isalpha, text)) >= min_letters:
            code, score = decide(ask_py3langid(text), (said, probability), script(text), min_margin, min_probability)
        found.append({"language": (code, score)})
    return found


def check_settings(**settings: object) -> None:
    """Raises ConfigError for numbers that make no sense."""
    for name in ("min_letters", "min_margin", "min_probability", "max_characters"):
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ConfigError(f"{name}: expected a number >= 0, got {value!r}")


language.check_settings = check_settings  # type: ignore[attr-defined]


def decide(
    library: tuple[str, float, float],
    own: tuple[str, float],
    written: str,
    min_margin: float,
    min_probability: float,
) -> tuple[str, float]:
    """(label, score) from both answers and the script.

    Args:
        library: py3langid's language, its probability, and its lead over the next in nats per character.
        own: the classifier's language and probability; (UNKNOWN, 0) without one.
    """
    said, probability = own
    if said in LACKED and probability >= min_probability and written in written_in(said):
        return f"{said}_{written}", probability
    known, library_probability, margin = library
    if known == UNKNOWN or written not in written_in(known):
        return UNKNOWN, 0.0
    if margin < min_margin and known != said:
        return UNKNOWN, 0.0
    return f"{known}_{written}", library_probability


def ask_py3langid(text: str) -> tuple[str, float, float]:
    """(ISO 639-3 code or `unknown`, probability, lead over the next language in nats per character)."""
    ranked = identifier().rank(text)
    (first, best), (_, second) = ranked[0], ranked[1]
    rest = sum(math.exp(float(other) - float(best)) for _, other in ranked)
    return PY3LANGID.get(first, UNKNOWN), 1 / rest, (float(best) - float(second)) / max(1, len(text))


def ask_model(model: NgramModel, texts: Sequence[str]) -> list[tuple[str, float]]:
    """(language, probability) of the likeliest class of each text."""
    probabilities = model.probabilities(texts)
    return [(model.classes[row.argmax()], float(row.max())) for row in probabilities]


load_cached = functools.lru_cache(maxsize=4)(load)
