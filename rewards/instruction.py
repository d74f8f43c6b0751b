"""The `instruction` reward: does an answer follow instructions that a program can check?

IFEval's 25 kinds (Zhou et al. 2023, arXiv 2311.07911) by their definitions (``rewards/instruction_kinds.py``), and
IFBench's 58 (Pyatkin et al. 2025, arXiv 2507.02833) by its code, corrected (``rewards/instruction_library.py``).
Rows of both benchmarks work as they are. Offline, and the same verdict for the same text in every process.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answer import after_thoughts
from rewards.base import NOT_APPLICABLE, UNPARSEABLE, Verdict, rowwise
from rewards.format import prompt_opens_block, text_of
from rewards.instruction_kinds import CHARACTER, COUNT, KINDS, LANGUAGE, POSITIVE, RELATION, TEXT, TEXTS, Kind
from rewards.instruction_library import IFBENCH, checkers, library_languages, library_says
from rewards.instruction_text import detected, has_words, is_in_language, sentences
from rewards.language import canonical_code
from rewards.structured import without_special_tokens

SCORINGS = ("share", "all")
STRICTNESS = ("strict", "loose")
CHECKERS = ("definitions", "library")
ALL_KINDS: Mapping[str, Kind] = KINDS | IFBENCH


@dataclass(frozen=True)
class Settings:
    """How rows are scored."""

    scoring: str = "share"  # of the row's instructions that are followed; "all": 1 or 0
    strictness: str = "strict"  # "loose": IFEval's eight variants of the answer, of which one must follow
    checker: str = "definitions"  # "library": IFEval's own code, for figures to compare with published ones

    def __post_init__(self) -> None:
        for name, allowed in (("scoring", SCORINGS), ("strictness", STRICTNESS), ("checker", CHECKERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"instruction reward: {name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )


class BadInstruction(ValueError):
    """Columns that cannot be read; the message says why."""


class NotCheckable(ValueError):
    """An instruction that cannot be checked here; the message says why."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a row, read."""

    instruction_id: str
    part: str  # its name among the verdict's parts
    arguments: Mapping[str, Any]


@rowwise
def instruction_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    instruction_id_list: Sequence[Any],
    kwargs: Sequence[Any] | None = None,
    prompt_text: Sequence[str] | None = None,
    *,
    scoring: str = Settings.scoring,
    strictness: str = Settings.strictness,
    checker: str = Settings.checker,
    **columns: Any,
) -> list[Verdict]:
    """The share of a row's instructions that the answer follows; with ``scoring="all"`` 1.0 for all, else 0.0.

    Column ``instruction_id_list``: ids such as ``punctuation:no_comma``; a row with none is ``not_applicable``.
    Column ``kwargs``: one dict of arguments an id, in the same order (or JSON text of that); nulls count as absent.
    Settings: see ``Settings``. With ``strictness="loose"`` an instruction is followed where one of IFEval's variants
    follows it: without the first line, the last line, both, each also without asterisks.

    Only what stands after the thoughts is graded; an answer without a letter or digit scores 0 whatever was asked.
    Parts: 1 or 0 for each id (a second one of the same id ends in ``#2``).
    ``unparseable``: an unknown id (the nearest is named), an argument that is absent, unknown or no such thing.
    ``not_applicable``: a kind that needs data which no package brings; the detail says which.
    """
    settings = Settings(scoring, strictness, checker)
    verdicts = []
    for row, completion in enumerate(completions):
        try:
            instructions = read_instructions(instruction_id_list[row], kwargs[row] if kwargs is not None else None)
        except BadInstruction as error:
            verdicts.append(Verdict(0.0, UNPARSEABLE, detail=str(error)))
            continue
        except NotCheckable as error:
            verdicts.append(Verdict(0.0, NOT_APPLICABLE, detail=str(error)))
            continue
        opened = prompt_opens_block(prompts[row], prompt_text[row] if prompt_text else None)
        text = after_thoughts(text_of(completion), opened=opened)
        verdicts.append(grade(text, instructions, settings))
    return verdicts


def grade(text: str | None, instructions: Sequence[Instruction], settings: Settings) -> Verdict:
    """The verdict on an answer; None: the think block is not closed."""
    text = None if text is None else without_special_tokens(text)
    if text is None or not has_words(text):
        reason = "the think block is not closed" if text is None else "an empty answer"
        return Verdict(0.0, parts={one.part: 0.0 for one in instructions}, detail=reason)
    variants = [text] if settings.strictness == "strict" else loose_variants(text)
    parts = {}
    for one in instructions:
        parts[one.part] = float(any(follows(one, variant, settings.checker) for variant in variants))
    failed = [part for part, score in parts.items() if not score]
    share = sum(parts.values()) / len(parts)
    return Verdict(
        share if settings.scoring == "share" else float(not failed),
        parts=parts,
        detail=f"not followed: {', '.join(failed)}" if failed else "",
    )


def follows(instruction: Instruction, text: str, checker: str = Settings.checker) -> bool:
    """Does this answer follow this instruction?"""
    kind = ALL_KINDS[instruction.instruction_id]
    if kind.check is not None and (checker == "definitions" or _draws(instruction)):
        return kind.check(text, instruction.arguments)
    guarded = checker == "library" or kind.guard is None or kind.guard(text, instruction.arguments)
    return guarded and library_says(instruction.instruction_id, text, instruction.arguments)


def _draws(instruction: Instruction) -> bool:
    """Would the library draw an argument at random, or know no such language?"""
    arguments = instruction.arguments
    if instruction.instruction_id == "keywords:letter_frequency":
        return re.fullmatch("[A-Za-z]", arguments["letter"]) is None
    if instruction.instruction_id == "length_constraints:nth_paragraph_first_word":
        return bool(arguments["nth_paragraph"] > arguments["num_paragraphs"])
    if instruction.instruction_id == "language:response_language":
        return arguments["language"] not in library_languages()
    return instruction.instruction_id == "repeat:repeat_span"


def loose_variants(text: str) -> list[str]:
    """IFEval's eight readings of an answer, those without a word left out (section 2.2 of its paper)."""
    lines = text.split("\n")
    found = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    found += [variant.replace("*", "") for variant in found]
    return [variant for variant in dict.fromkeys(found) if has_words(variant)]


# --- columns --------------------------------------------------------------------------------------------------------


def read_instructions(ids: Any, kwargs: Any) -> list[Instruction]:
    """A row's instructions. Raises BadInstruction, or NotCheckable where there are none or one cannot be checked."""
    ids, kwargs = _plain_list(ids, "instruction_id_list"), _plain_list(kwargs, "kwargs")
    if not ids:
        raise NotCheckable("the row has no instructions")
    kwargs = kwargs or [{}] * len(ids)
    if len(kwargs) != len(ids):
        raise BadInstruction(f"column kwargs: expected {len(ids)} dicts, one an instruction, got {len(kwargs)}")
    found: list[Instruction] = []
    for instruction_id, given in zip(ids, kwargs, strict=True):
        if instruction_id not in ALL_KINDS:
            close = difflib.get_close_matches(str(instruction_id), ALL_KINDS, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BadInstruction(f"column instruction_id_list: no instruction is called {instruction_id!r}{hint}")
        arguments = _read_arguments(instruction_id, given)
        number = 1 + sum(one.instruction_id == instruction_id for one in found)
        part = instruction_id if number == 1 else f"{instruction_id}#{number}"
        found.append(Instruction(instruction_id, part, arguments))
    for one in found:
        if ALL_KINDS[one.instruction_id].reason:
            raise NotCheckable(f"{one.instruction_id} {ALL_KINDS[one.instruction_id].reason}")
    return found


def _plain_list(value: Any, column: str) -> list[Any]:
    """A list, an array, JSON text of one; nothing is an empty one."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadInstruction(f"column {column}: expected a list, got the text {value[:60]!r}") from None
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise BadInstruction(f"column {column}: expected a list, got {type(value).__name__}")
    return list(value)


def _read_arguments(instruction_id: str, given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise BadInstruction(f"column kwargs: {instruction_id}: expected a dict, got {given[:60]!r}") from None
    if given is not None and not isinstance(given, Mapping):
        raise BadInstruction(f"column kwargs: {instruction_id}: expected a dict, got {type(given).__name__}")
    given = {name: value for name, value in (given or {}).items() if value is not None}
    wanted = ALL_KINDS[instruction_id].arguments
    if set(given) != set(wanted):
        raise BadInstruction(
            f"column kwargs: {instruction_id}: expected {', '.join(wanted) or 'no arguments'}, "
            f"got {', '.join(map(str, given)) or 'none'}"
        )
    return {name: read_argument(f"{instruction_id}: {name}", given[name], what) for name, what in wanted.items()}


def read_argument(label: str, value: Any, what: str) -> Any:
    """An argument, checked; 5.0 is 5, as tables of mixed rows write it. Raises BadInstruction."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if what in (COUNT, POSITIVE):
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
        if whole and value >= (1 if what == POSITIVE else 0):
            return int(value)
    elif what == TEXT:
        if isinstance(value, str) and value.strip():
            return value
    elif what == TEXTS:
        values = list(value) if isinstance(value, (list, tuple)) else []
        if values and all(isinstance(one, str) and one.strip() for one in values):
            return values
    elif what == CHARACTER:
        if isinstance(value, str) and len(value.strip()) == 1:
            return value.strip()
    elif what == RELATION:
        if value in ("less than", "at least"):
            return value
    elif what == LANGUAGE:
        code = canonical_code(value)
        if code is not None:
            return code
    raise BadInstruction(f"column kwargs: {label}: expected {what}, got {str(value)[:60]!r}")


def warm_up() -> None:
    """Load the identifiers, Punkt and the library once; forks inherit them."""
    is_in_language("This is warm enough.", "en")
    detected("This is warm enough.")
    sentences("This is warm enough.")
    checkers()
