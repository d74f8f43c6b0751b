"""Reward functions of the general tasks that no built-in one covers: what an answer says, and what it lists.

They are stand-ins: a checklist of phrases knows nothing of quality, and whoever trains on one long enough learns the
phrases. A reward model or a judge goes beside it (``reward_functions``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.instruction_text import count_phrase, plain, words
from rewards.structured import without_special_tokens
from rewards.text import unreadable

SCORINGS = ("share", "all")
CHECKS = ("says", "avoids", "order", "starts", "ends", "max_words", "min_words")


@rowwise
def checklist_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    checklist: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    *,
    scoring: str = "share",
    **columns: Any,
) -> list[Verdict]:
    """The share of column ``checklist``'s points that the answer meets; 0 for an answer without words.

    With ``scoring="all"`` 1.0 for all of them, else 0.0.

    A point is a mapping of one entry (nulls count as absent). Phrases are found as whole words in any case, see
    ``rewards.instruction_text``:

    - ``says``: at least one of these phrases, ``avoids``: none of them, ``order``: all of them, first uses in order.
    - ``starts``, ``ends``: with one of these phrases.
    - ``max_words``, ``min_words``: how many words, both inclusive.

    The answer is what stands after the thoughts. Parts: the share met of each sort of point.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"checklist reward: scoring: expected one of {', '.join(SCORINGS)}, got {scoring!r}")
    verdicts = []
    for row, completion in enumerate(completions):
        points = _points(checklist[row])
        if points is None:
            verdicts.append(unreadable("column checklist:", checklist[row]))
            continue
        text = _answer(prompts[row], completion, prompt_text[row] if prompt_text else None)
        met = [bool(words(text)) and _meets(text, name, value) for name, value in points]
        failed = [f"{name} {value}" for (name, value), good in zip(points, met, strict=True) if not good]
        parts = {
            name: sum(good for (other, _), good in zip(points, met, strict=True) if other == name)
            / sum(other == name for other, _ in points)
            for name in {name for name, _ in points}
        }
        detail = f"not met: {'; '.join(failed)}"[:300] if failed else ""
        score = sum(met) / len(met) if scoring == "share" else float(all(met))
        verdicts.append(Verdict(score, parts=dict(sorted(parts.items())), detail=detail))
    return verdicts


@rowwise
def items_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    item_options: Sequence[Any],
    num_items: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """Different items of column ``item_options`` that the answer lists, over ``num_items`` or the items it lists if
    those are more.

    Items are bullet points (``-``, ``*``, ``+``); where there are none, what commas, lines and ``and`` separate. Case
    and a full stop at the end do not count.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        options, wanted = item_options[row], num_items[row]
        if not isinstance(options, (list, tuple)) or not all(isinstance(one, str) and one for one in options):
            verdicts.append(unreadable("column item_options:", options))
            continue
        if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
            verdicts.append(unreadable("column num_items:", wanted))
            continue
        listed = list_items(_answer(prompts[row], completion, prompt_text[row] if prompt_text else None))
        right = len({plain(one).casefold() for one in options} & set(listed))
        score = min(right, wanted) / max(wanted, len(listed))
        verdicts.append(Verdict(score, detail=f"{right} right of {len(listed)} listed, {wanted} asked for"))
    return verdicts


def list_items(text: str) -> list[str]:
    """In lower case, without the marks around them."""
    bullets = re.findall(r"^[^\S\n]*[-*+][^\S\n]+(\S.*)$", text, re.MULTILINE)
    pieces = bullets or re.split(r"[,\n]|\band\b", text)
    return [item for piece in pieces if (item := plain(piece).casefold().strip(" .;:*_"))]


def _answer(prompt: Any, completion: Any, prompt_text: str | None) -> str:
    """What stands after the thoughts; "" while a block is open."""
    text = after_thoughts(text_of(completion), opened=prompt_opens_block(prompt, prompt_text))
    return "" if text is None else without_special_tokens(text).strip()


def _points(value: Any) -> list[tuple[str, Any]] | None:
    if not isinstance(value, (list, tuple)) or not value:
        return None
    points: list[tuple[str, Any]] = []
    for point in value:
        given = {n: w for n, w in point.items() if w is not None} if isinstance(point, Mapping) else {}
        if len(given) != 1:
            return None
        ((name, what),) = given.items()
        if name not in CHECKS:
            return None
        if name.endswith("_words"):
            if not isinstance(what, int) or isinstance(what, bool) or what < 1:
                return None
        elif not isinstance(what, (list, tuple)) or not what or not all(isinstance(p, str) and p for p in what):
            return None
        points.append((name, what))
    return points


def _meets(text: str, name: str, what: Any) -> bool:
    if name == "max_words":
        return len(words(text)) <= what
    if name == "min_words":
        return len(words(text)) >= what
    if name == "says":
        return any(count_phrase(phrase, text) for phrase in what)
    if name == "avoids":
        return not any(count_phrase(phrase, text) for phrase in what)
    lowered = plain(text).casefold()
    if name == "starts":
        return any(lowered.startswith(plain(phrase).casefold()) for phrase in what)
    if name == "ends":
        return any(lowered.endswith(plain(phrase).casefold()) for phrase in what)
    places = [lowered.find(plain(phrase).casefold()) for phrase in what]
    return -1 not in places and places == sorted(places) and all(count_phrase(phrase, text) for phrase in what)
