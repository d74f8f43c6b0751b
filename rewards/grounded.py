"""The `grounded_qa` reward: an answer out of the context, and an abstention where the context holds none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.base import Verdict, rowwise
from rewards.text import f1, final_answer, references, tokens, unreadable

_MAX_ABSTENTION = 40  # words; more than that is an essay around the phrase
_ABSTAINS = re.compile(
    r"\b(?:i (?:do not|don['’]t|cannot|can['’]t) (?:know|answer|tell|find)|unanswerable|no answer|"
    r"(?:can ?not|can['’]t|could not) be (?:answered|determined|found)|"
    r"not (?:enough|sufficient) information|insufficient information|"
    r"(?:is|are|was|were|does|do) ?(?:not|n['’]t) (?:mention|state|give|provide|specif|say|contain)\w*|"
    r"not (?:mentioned|stated|given|provided|specified|in the (?:context|text|passage)))|"
    r"不知道|无法(?:回答|确定|得知)|没有(?:提到|提及|说明|答案)|未(?:提到|提及|说明)|信息不足",
    re.IGNORECASE,
)
_BUT = re.compile(
    r"\b(?:but|however|although|though|probably|maybe|perhaps|i (?:think|guess|believe))\b|但|可能|也许", re.I
)


@rowwise
def grounded_qa_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    context: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """Word F1 with the best reference, times the share of the answer that comes from column ``context``.

    Column ``answer``: a reference or a list of them; the empty list says that the context holds no answer, and then
    saying so (``I don't know``, ``not mentioned in the text``; at most 40 words, no guess behind it) scores 1 and all
    else 0. Where there is an answer, an abstention scores 0. An answer that stands in the context word for word is
    grounded; of any other the share of words that do. A reference absent from the context is ``unparseable``: no
    grounded answer could match it. Parts: ``f1``, ``grounded``, ``abstained``.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        where, gold = context[row], answer[row]
        golds = [] if isinstance(gold, (list, tuple)) and not gold else references(gold)
        if not isinstance(where, str) or not tokens(where):
            verdicts.append(unreadable("column context", where))
        elif golds is None or not all(map(tokens, golds)):
            verdicts.append(unreadable("the reference", gold))
        elif golds and not any(_contains(where, one) for one in golds):
            verdicts.append(unreadable("no reference stands in the context;", gold))
        else:
            text = final_answer(prompts[row], completion, prompt_text[row] if prompt_text else None)
            verdicts.append(_grade(where, golds, text or ""))
    return verdicts


def _grade(context: str, golds: list[str], text: str) -> Verdict:
    gave_up = abstains(text) and not any(_contains(text, gold) for gold in golds)
    if not golds:
        return Verdict(float(gave_up), parts={"abstained": float(gave_up)}, detail=f"no answer to find; {text[:200]!r}")
    overlap = 0.0 if gave_up else max(f1(gold, text) for gold in golds)
    share = grounded_share(context, text)
    parts = {"f1": overlap, "grounded": share, "abstained": float(gave_up)}
    return Verdict(overlap * share, parts=parts, detail=f"answer {text[:200]!r}")


def abstains(text: str) -> bool:
    """It says that there is no answer, and gives none after all."""
    words = tokens(text)
    return bool(words) and len(words) <= _MAX_ABSTENTION and bool(_ABSTAINS.search(text)) and not _BUT.search(text)


def grounded_share(context: str, text: str) -> float:
    """1 where the text stands in the context word for word, else the share of its words that do; 0 for no words."""
    words = tokens(text)
    if not words:
        return 0.0
    if _contains(context, text):
        return 1.0
    known = set(tokens(context))
    return sum(word in known for word in words) / len(words)


def _contains(context: str, text: str) -> bool:
    """As a sequence of whole words."""
    return f" {' '.join(tokens(text))} " in f" {' '.join(tokens(context))} "
