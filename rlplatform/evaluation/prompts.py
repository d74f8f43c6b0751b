"""From a benchmark's rows, as published, to messages and the columns its reward reads.

The sentences for mathematics and multiple choice are those of Qwen3's model cards ("Best Practices"); those for
programs are this project's own, since neither the report (arXiv 2505.09388, section 4.6) nor the cards give any. A
preparer takes a row and returns the new one: ``prompt`` (messages), ``category`` ("" for none) and the columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlplatform.data import DataError

Row = dict[str, Any]
Prepare = Callable[[Mapping[str, Any], "Exemplars"], Row | None]  # None: the row is left out
Exemplars = Mapping[str, Sequence[Mapping[str, Any]]]  # by category; "" where there are none

STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."
CHOICE_FIELD = 'Please show your choice in the `answer` field with only the choice letter, e.g., `"answer": "C"`.'
WHOLE_FUNCTION = (
    "Complete this Python function. Answer with one ```python block that holds the whole function and its imports."
)
WHOLE_PROGRAM = "Answer with one ```python block that holds the whole program."
_LETTERS = "ABCDEFGHIJ"


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these columns that the row has: copies of one set differ in their names."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"benchmark row: expected a column {' or '.join(names)}; columns there: {sorted(row)}")


def _math(question: str, answer: str, category: str = "") -> Row:
    return {"prompt": _user(f"{question}\n\n{STEP_BY_STEP}"), "category": category, "answer": answer}


def own(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    """A user's own row: its prompt as it stands."""
    prompt = _field(row, "prompt")
    messages = _user(prompt) if isinstance(prompt, str) else [dict(message) for message in prompt]
    return {"prompt": messages, "category": str(row.get("domain") or ""), "answer": str(_field(row, "answer"))}


# --- mathematics ----------------------------------------------------------------------------------------------------


def gsm8k(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    solution = str(_field(row, "answer"))
    if "####" not in solution:
        raise DataError(f"gsm8k: expected '#### ' before the final answer, got {solution[-60:]!r}")
    return _math(_field(row, "question"), solution.rpartition("####")[2].strip().replace(",", ""))


def math500(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    return _math(_field(row, "problem"), str(_field(row, "answer")), str(_field(row, "subject", "type")))


def aime(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    """Answers are whole numbers from 0 to 999, some printed with leading zeros."""
    answer = str(_field(row, "answer")).strip()
    if not re.fullmatch(r"\d{1,3}", answer):
        raise DataError(f"aime: expected an answer from 0 to 999, got {answer!r}")
    return _math(_field(row, "problem", "question"), str(int(answer)))


def mgsm(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    """``answer`` in the hub's copy is a worked solution or null; ``answer_number`` is the number there."""
    answer = str(_field(row, "answer_number", "answer")).replace(",", "").strip()
    return _math(_field(row, "question"), answer, str(_field(row, "lang")))


# --- multiple choice ------------------------------------------------------------------------------------------------


def _letter(value: Any) -> str:
    text = str(value).strip()
    return _LETTERS[int(text)] if re.fullmatch(r"\d", text) else text


def _choice_question(row: Mapping[str, Any]) -> str:
    choices = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, _field(row, "choices"), strict=False)]
    return "\n".join([str(_field(row, "question")).strip(), *choices])


def mmlu(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    """Exemplars of the same subject come first, each an exchange of its own."""
    subject = str(_field(row, "subject"))
    messages: list[dict[str, str]] = []
    for example in exemplars.get(subject, ()):
        messages += _user(f"{_choice_question(example)}\n\n{CHOICE_FIELD}")
        messages.append({"role": "assistant", "content": f'"answer": "{_letter(_field(example, "answer"))}"'})
    messages += _user(f"{_choice_question(row)}\n\n{CHOICE_FIELD}")
    return {"prompt": messages, "category": subject, "answer": _letter(_field(row, "answer"))}


def mmlu_redux(row: Mapping[str, Any], exemplars: Exemplars) -> Row | None:
    """Questions that the re-annotation found broken, in whatever way, are left out."""
    if _field(row, "error_type_norm", "error_type") != "ok":
        return None
    return mmlu(row, {})


# --- programs -------------------------------------------------------------------------------------------------------


def humaneval(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    code = str(_field(row, "prompt"))
    return {
        "prompt": _user(f"{WHOLE_FUNCTION}\n\n```python\n{code.rstrip()}\n```"),
        "category": "",
        "tests": [{"code": f"{_field(row, 'test')}\ncheck(candidate)"}],
        "entry_point": str(_field(row, "entry_point")),
    }


def _mbpp_question(row: Mapping[str, Any]) -> str:
    tests = "\n".join(_field(row, "test_list"))
    return f"{_field(row, 'text', 'prompt')}\nIt must pass these tests:\n\n{tests}\n\n{WHOLE_PROGRAM}"


def mbpp(row: Mapping[str, Any], exemplars: Exemplars) -> Row | None:
    """Tasks 11 to 510 are the test split, 2 to 4 the exemplars (Austin et al. 2021, arXiv 2108.07732)."""
    if not 11 <= int(_field(row, "task_id")) <= 510:
        return None
    messages: list[dict[str, str]] = []
    for example in exemplars.get("", ()):
        messages += _user(_mbpp_question(example))
        messages.append({"role": "assistant", "content": f"```python\n{_plain(_field(example, 'code'))}\n```"})
    setup = row.get("test_setup_code") or ""
    return {
        "prompt": [*messages, *_user(_mbpp_question(row))],
        "category": "",
        "tests": [{"code": f"{setup}\n{test}" if setup else test} for test in _field(row, "test_list")],
        "entry_point": _called(row),
    }


def _plain(code: str) -> str:
    return code.replace("\r\n", "\n").strip()


def _called(row: Mapping[str, Any]) -> str:
    """The function that the tests call: of those that the solution defines the last one."""
    tests = "\n".join(_field(row, "test_list"))
    defined = re.findall(r"^(?:def|class)\s+(\w+)", _plain(_field(row, "code")), re.MULTILINE)
    return next((name for name in reversed(defined) if re.search(rf"\b{name}\s*\(", tests)), "")


# --- instructions and reasoning -------------------------------------------------------------------------------------


def ifeval(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    kwargs = _field(row, "kwargs")
    return {
        "prompt": _user(str(_field(row, "prompt"))),
        "category": "",
        "instruction_id_list": list(_field(row, "instruction_id_list")),
        "kwargs": json.loads(kwargs) if isinstance(kwargs, str) else list(kwargs),
    }


def bbh(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    """The task's own prompt file (Suzgun et al. 2022, arXiv 2210.09261): a description and three worked examples."""
    task = str(_field(row, "task"))
    if task not in exemplars:
        raise DataError(f"bbh: expected exemplars for the task {task!r}, got those of {sorted(exemplars)}")
    head = str(exemplars[task][0]["prompt"]).partition("-----\n")[2] or str(exemplars[task][0]["prompt"])
    question = f"{head.strip()}\n\nQ: {_field(row, 'input')}\nA: Let's think step by step."
    return {"prompt": _user(question), "category": task, "answer": str(_field(row, "target"))}


# --- the in-house sets, whose generators already write messages -----------------------------------------------------


def as_made(row: Mapping[str, Any], exemplars: Exemplars) -> Row:
    """Keeps the columns that rewards read; the worked answers and the mode of the generator stay out."""
    left_out = ("messages", "rejected", "thinking", "task", "ability", "id")
    kept = {name: value for name, value in row.items() if name not in left_out}
    return {**kept, "category": str(row.get("sort") or row.get("demand") or "")}
