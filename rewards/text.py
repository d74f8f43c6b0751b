"""Rewards that compare texts: `exact`, `multiple_choice`, `f1` and `rouge_l`. No model, no data, no download.

All of them grade the answer alone: what stands after the thoughts, and of it what the last ``\\boxed{}`` holds where
there is one. An open think block has no answer and scores 0. Column ``answer`` is the reference, or a list of them, of
which the best counts; one that cannot be read is ``unparseable``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rewards.answer import after_thoughts, last_box, unwrap_text
from rewards.base import UNPARSEABLE, Verdict, rowwise
from rewards.format import prompt_opens_block, text_of

# Scripts without spaces between words: each character is a token, as in the multilingual SQuAD scorers.
_CHARACTER = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_CHARACTER}]|[^\W_{_CHARACTER}]+(?:['’][^\W_{_CHARACTER}]+)*")
_ARTICLES = frozenset({"a", "an", "the"})


def tokens(text: str) -> list[str]:
    """Words in lower case without punctuation; a token a character in Chinese, Japanese, Thai and Lao."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def final_answer(prompt: Any, completion: Any, prompt_text: str | None) -> str | None:
    """What is graded; None while a think block is open."""
    text = after_thoughts(text_of(completion), opened=prompt_opens_block(prompt, prompt_text))
    if text is None:
        return None
    box = last_box(text)
    return (text if box is None else unwrap_text(box)).strip()


def references(value: Any) -> list[str] | None:
    """One reference or several; None where there is none, or one is no text or an empty one."""
    values = [value] if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Sequence) or not values:
        return None
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in values):
        return None
    texts = [str(one).strip() for one in values]
    return texts if all(texts) else None


def unreadable(what: str, value: Any) -> Verdict:
    shown = repr(value)
    return Verdict(
        0.0, UNPARSEABLE, detail=f"{what} {shown if len(shown) <= 100 else shown[:97] + '...'} cannot be read"
    )


def _graded(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None,
    score: Callable[[str, str], float],
) -> list[Verdict]:
    """The best score over a row's references."""
    verdicts = []
    for row, completion in enumerate(completions):
        golds = references(answer[row])
        if golds is None or (score is not _exact and not all(map(tokens, golds))):
            verdicts.append(unreadable("the reference", answer[row]))
            continue
        text = final_answer(prompts[row], completion, prompt_text[row] if prompt_text else None)
        if text is None:
            verdicts.append(Verdict(0.0, detail="the think block is not closed"))
        else:
            verdicts.append(Verdict(max(score(gold, text) for gold in golds), detail=f"answer {text[:200]!r}"))
    return verdicts


@rowwise
def exact_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """1.0 where the whole answer is one of the references, but for white space and Unicode composition (NFC)."""
    return _graded(prompts, completions, answer, prompt_text, _exact)


@rowwise
def f1_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """Overlap of words, each counted as often as it stands in both: 2PR / (P + R).

    SQuAD's measure (Rajpurkar et al. 2016): case, punctuation and English articles do not count.
    """
    return _graded(prompts, completions, answer, prompt_text, f1)


@rowwise
def rouge_l_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    """ROUGE-L: the F-measure (beta 1) of the longest common subsequence of words (Lin 2004)."""
    return _graded(prompts, completions, answer, prompt_text, rouge_l)


def _exact(gold: str, pred: str) -> float:
    gold, pred = (" ".join(unicodedata.normalize("NFC", text).split()) for text in (gold, pred))
    return float(gold == pred)


def f1(gold: str, pred: str) -> float:
    """Of two texts; 0.0 where either has no words. Texts of nothing but articles keep them."""
    golds, preds = (
        [token for token in found if token not in _ARTICLES] or found for found in (tokens(gold), tokens(pred))
    )
    common = sum((Counter(golds) & Counter(preds)).values())
    return 2 * common / (len(golds) + len(preds)) if common else 0.0


def rouge_l(gold: str, pred: str) -> float:
    golds, preds = tokens(gold), tokens(pred)
    common = lcs_length(golds, preds)
    return 2 * common / (len(golds) + len(preds)) if common else 0.0


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table as one integer (Hyyrö 2004).

    Bit k of ``row`` is 0 where the common subsequence with a[:k+1] is one longer than with a[:k].
    """
    positions: dict[str, int] = {}
    for k, token in enumerate(a):
        positions[token] = positions.get(token, 0) | (1 << k)
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matches = row & positions.get(token, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


# --- multiple choice ------------------------------------------------------------------------------------------------

_LETTER = r"(?:\*\*|__)?\(?\s*(?P<{0}>[A-Z])\s*\)?(?:\*\*|__)?"
_SAID = re.compile(
    rf"\b(?i:answer|option|choice)\s*(?i:is|:|=)*\s*(?i:option|choice)?\s*:?\s*{_LETTER.format('said')}"
    r"(?=[).,:;!*_]|\s*$|\s*\n|\s+(?i:because|since|as|which)\b)",
    re.MULTILINE,
)
_ALONE = re.compile(rf"^{_LETTER.format('alone')}(?:$|\s*[.):](?:\s|$))|^(?:\*\*)?\(\s*(?P<bracketed>[A-Z])\s*\)")
_ANOTHER = re.compile(r"^\W*(?:or|and|/|,|&)\s*\(?[A-Z]\)?(?![A-Za-z])")


@rowwise
def multiple_choice_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    choices: Sequence[Sequence[Any]] | None = None,
    prompt_text: Sequence[str] | None = None,
    **columns: Any,
) -> list[Verdict]:
    r"""1.0 where the one letter chosen is column ``answer`` (``"B"`` or ``"(B)"``).

    The choice is what ``\boxed{}`` holds, else the last `answer is B`, else a letter that is or opens the answer
    (``B``, ``(B) seven``, ``B. seven``). Two letters are no choice. Column ``choices`` (optional) holds the options: a
    reference beyond them is ``unparseable``. Prose without one of these forms scores 0: `A` is also an article.
    """
    verdicts = []
    for row, completion in enumerate(completions):
        gold = re.fullmatch(r"\(?([A-Z])\)?\.?", answer[row].strip()) if isinstance(answer[row], str) else None
        num_choices = 26 if choices is None or choices[row] is None else len(choices[row])
        if gold is None or ord(gold[1]) - ord("A") >= num_choices:
            verdicts.append(unreadable("the reference letter", answer[row]))
            continue
        text = after_thoughts(
            text_of(completion), opened=prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        )
        letter = "" if text is None else chosen_letter(text)
        verdicts.append(Verdict(float(letter == gold[1]), detail=f"chosen {letter or 'nothing'}"))
    return verdicts


def chosen_letter(text: str) -> str:
    """The one letter that an answer chooses; "" where it chooses none or several."""
    box = last_box(text)
    if box is not None:
        text = unwrap_text(box)
    else:
        said = list(_SAID.finditer(text))
        if said:
            return "" if _ANOTHER.match(text[said[-1].end("said") :]) else said[-1]["said"]
    text = text.strip()
    match = _ALONE.match(text)
    if match is None:
        return ""
    group = "alone" if match["alone"] else "bracketed"
    rest = text[match.end(group) :]
    listed = re.findall(r"(?:^|\n)\s*\(?([A-Z])[.):]", rest)  # a list of all options
    return "" if _ANOTHER.match(rest) or listed else match[group]
