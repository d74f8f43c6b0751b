"""A synthetic response taken apart: the sections that its form asks for, or the reason why it is none."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rewards.code import last_block
from rewards.response import parse

SECTIONS: dict[str, tuple[str, ...]] = {
    "textbook": (),
    "question_answer": ("question", "solution", "answer"),
    "instruction": ("instruction", "response"),
    "code": ("task", "program", "tests"),
}
_HEADING = re.compile(r"^##[ \t]+(\w+)[ \t]*:?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Parsed:
    """A response that has its form, or ``reason`` why it has not."""

    text: str = ""  # the document
    sections: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""


def take_apart(form: str, response: str, *, opened: bool = False, cut: bool = False) -> Parsed:
    """The document that a response of ``form`` is, without its thoughts.

    ``opened``: the prompt ends inside a think block; ``cut``: the model did not end by itself.

    Raises:
        ValueError: no such form.
    """
    if form not in SECTIONS:
        raise ValueError(f"form: expected one of {', '.join(SECTIONS)}, got {form!r}")
    if cut:
        return Parsed(reason="cut", detail="the response was not ended by the model")
    read = parse(response.removesuffix("<|im_end|>"), opened=opened)
    answer = read.answer.strip()
    if not read.finished or not answer:
        return Parsed(reason="no answer", detail="nothing after the thoughts")
    names = SECTIONS[form]
    if not names:
        return Parsed(answer)
    sections = _sections(answer, names)
    missing = [name for name in names if not sections.get(name)]
    if missing:
        return Parsed(reason="form", detail=f"expected the sections {', '.join(names)} in this order; no {missing[0]}")
    return _of_code(sections) if form == "code" else Parsed(_joined(form, sections), sections)


def _sections(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """The text under each heading; only what begins with the first and has all, once and in order, counts."""
    found = [match for match in _HEADING.finditer(text) if match[1].lower() in names]
    if [match[1].lower() for match in found] != list(names) or text[: found[0].start()].strip():
        return {}
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {m[1].lower(): text[m.end() : end].strip() for m, end in zip(found, ends, strict=True)}


def _joined(form: str, sections: Mapping[str, str]) -> str:
    if form == "question_answer":
        return f"{sections['question']}\n\n{sections['solution']}\n\nAnswer: {sections['answer']}"
    return f"{sections['instruction']}\n\n{sections['response']}"


def _of_code(sections: Mapping[str, str]) -> Parsed:
    blocks = {name: last_block(sections[name]) for name in ("program", "tests")}
    for name, block in blocks.items():
        if block is None or not block.strip():
            return Parsed(reason="form", detail=f"section {name}: expected a fenced block")
    program, tests = str(blocks["program"]), str(blocks["tests"])
    try:
        asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(tests)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Parsed(reason="tests", detail=f"they are no Python: {error}")
    if not asserts:
        return Parsed(reason="tests", detail="no assert in them")
    text = f"{sections['task']}\n\n```python\n{program}```\n\n```python\n{tests}```"
    return Parsed(text, {**sections, "program": program, "tests": tests})
