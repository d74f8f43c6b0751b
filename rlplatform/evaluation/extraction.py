"""Reward functions for two answer formats that no general reward reads: the ``answer`` field and BBH's last sentence.

Both grade what stands after the thoughts; an open think block has no answer and scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.answer import after_thoughts, last_box, unwrap_text
from rewards.base import Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.text import chosen_letter, unreadable

_FIELD = re.compile(r"[\"'`]?answer[\"'`]?\s*:\s*[\"'`]\s*\(?([^\"'`\n()]{1,20}?)\)?\s*[\"'`]", re.IGNORECASE)
_SAID = re.compile(r"\banswer\s+is\s*:?\s*(?=\S)", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([A-Z])\)")


def _answer_text(prompts: Sequence[Any], completion: Any, prompt_text: Sequence[str] | None, row: int) -> str | None:
    opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
    return after_thoughts(text_of(completion), opened=opened)


@rowwise
def choice_field_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """1.0 where the letter in the last ``"answer": "C"`` is column ``answer``.

    An answer without the field is read as `multiple_choice` reads it; a field with several letters, or with none, is
    wrong. A reference that is no letter from A to Z is ``unparseable``.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        gold = answer[row]
        if not isinstance(gold, str) or not re.fullmatch("[A-Z]", gold):
            verdicts.append(unreadable("the reference letter", gold))
            continue
        text = _answer_text(prompts, completion, prompt_text, row)
        letter = "" if text is None else field_letter(text)
        verdicts.append(Verdict(float(letter == gold), detail=f"chosen {letter or 'nothing'}"))
    return verdicts


def field_letter(text: str) -> str:
    """The letter chosen; "" where there is none.

    >>> field_letter('Because of B. "answer": "C"')
    'C'
    """
    fields = _FIELD.findall(text)
    if not fields:
        return chosen_letter(text)
    found = fields[-1].strip().rstrip(".")
    return found.upper() if re.fullmatch("[A-Za-z]", found) else ""


@rowwise
def stated_answer_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """1.0 where what the last ``answer is ...`` says, up to the end of its sentence, is column ``answer``.

    Without such a sentence, what the last ``\\boxed{}`` holds, else the whole answer. Compared without case, outer
    emphasis and a full stop at the end; white space counts as one space, and a choice's letter is enough: ``(B)``,
    ``(B) seven`` and ``B`` are one answer.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        gold = answer[row]
        if not isinstance(gold, str) or not gold.strip():
            verdicts.append(unreadable("the reference", gold))
            continue
        text = _answer_text(prompts, completion, prompt_text, row)
        said = "" if text is None else stated(text)
        verdicts.append(Verdict(float(_same(said, gold)), detail=f"answer {said[:200]!r}"))
    return verdicts


def stated(text: str) -> str:
    """What an answer says its answer is.

    >>> stated("So we add. So the answer is (B).")
    '(B)'
    """
    found = list(_SAID.finditer(text))
    said = re.split(r"\n|\.\s", text[found[-1].end() :], maxsplit=1)[0] if found else text
    box = last_box(text)
    if box is not None and (not found or "boxed" in said):
        said = unwrap_text(box)
    return said.strip().strip("*$`\"' ").removesuffix(".").strip("*$`\"' ")


def _same(said: str, gold: str) -> bool:
    said, gold = (" ".join(text.split()) for text in (said, gold))
    if letter := _BRACKETED.fullmatch(gold):
        chosen = _BRACKETED.match(said)
        return (chosen[1] if chosen else said.upper()) == letter[1]
    return said.casefold() == gold.casefold()
