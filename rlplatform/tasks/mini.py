"""Data of the whole recipe in miniature: sums for a model of a million parameters (``configs/recipe/qwen3_mini.yaml``).

    base      what a base model knows: sums said at once, sums worked out in the answer where the prompt asks for it,
              and the answers of a few general tasks; no thought anywhere
    teacher   sums with the columns worked out in the thought
    queries   for the cold start, some of which its filters must drop; with the worked answer as a demonstration
    rl        for reinforcement
    student   the same prompts, every second one with /no_think: for distillation in both modes
    plain     non-thinking answers by task, for the fusion
    thoughts  the general tasks answered with a thought, for the fusion: no model of this size could be asked for them
    test      held out

No sum is in two of them, but for ``plain``, whose sums are those that ``base`` says at once, and ``student``, whose
sums are those of ``rl``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from rlplatform.tasks import arithmetic
from rlplatform.tasks.general import suite

Row = dict[str, Any]

# Tasks of one turn that a rule can check; none with sums, which could be those of ``test``.
GENERAL = ("letter_case", "marks", "mode_single", "concise")
GRADERS = {"letter_case": "exact", "marks": "exact", "mode_single": "exact"}  # the others: by their checklists
DIGITS = {2: 0.15, 3: 0.85}
EMPTY = "<think>\n\n</think>\n\n"


def problems(
    seed: int,
    *,
    num_direct: int = 4000,
    num_worked: int = 8000,
    num_teacher: int = 4000,
    num_queries: int = 4000,
    num_rl: int = 1500,
    num_test: int = 256,
    num_general: int = 4400,
    digits: Mapping[Any, float] | None = None,
    general: Sequence[str] = GENERAL,
) -> dict[str, list[Row]]:
    """The splits above; equal arguments give equal rows. A row has ``id``, ``prompt``, ``domain`` and what its use
    needs: ``answer``, ``messages``, ``worked`` and ``said`` (good responses with and without a thought), ``task``.

    Raises:
        ValueError: sizes or digits that ``arithmetic.problems`` refuses.
    """
    sums = arithmetic.problems(
        seed,
        num_sft=num_direct + num_worked + num_teacher,
        num_train=num_queries + num_rl,
        num_test=num_test,
        digits=digits or DIGITS,
    )
    rows = {split: [_sum(row) for row in made] for split, made in sums.items()}
    direct = rows["sft"][:num_direct]
    worked = rows["sft"][num_direct : num_direct + num_worked]
    answers, thoughts = general_answers(seed, general, num_general)
    said = [{**_plain(row), "task": "sums", "grader": "math", "response": row["said"]} for row in direct]
    base = [_spoken(row["prompt"], row["response"]) for row in [*said, *answers]]
    base += [_spoken(f"Work out: {row['prompt']}", _without_thought(row["worked"])) for row in worked]
    random.Random(f"mini/{seed}/base").shuffle(base)
    queries = [_plain(row, "worked", "said") for row in rows["train"][:num_queries]]
    rl = [_plain(row, "worked", "said") for row in rows["train"][num_queries:]]
    return {
        "base": [{"id": f"base-{k:06d}", **row} for k, row in enumerate(base)],
        "teacher": rows["sft"][num_direct + num_worked :],
        "queries": [*queries, *unverifiable(queries)],
        "rl": rl,
        "student": [
            {**row, "prompt": row["prompt"] + " /no_think" * (k % 2), "thinking": k % 2 == 0}
            for k, row in enumerate(rl)
        ],
        "plain": [*said, *answers],
        "thoughts": thoughts,
        "test": [_plain(row) for row in rows["test"]],
    }


def _sum(row: Row) -> Row:
    return {
        **row,
        "worked": row["messages"][-1]["content"],
        "said": f"\\boxed{{{row['answer']}}}",
        "domain": f"{row['digits']} digits",
    }


def _plain(row: Row, *more: str) -> Row:
    return {key: row[key] for key in ("id", "prompt", "answer", "domain", *more)}


def _spoken(prompt: str, answer: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": EMPTY + answer}]
    return {"messages": messages}


def _without_thought(worked: str) -> str:
    """The lines of the thought as part of the answer."""
    return worked.replace("<think>\n", "").replace("\n</think>\n", "")


def general_answers(seed: int, tasks: Sequence[str], num: int) -> tuple[list[Row], list[Row]]:
    """Unflagged rows of general tasks, with the answer alone and with a thought; ``num`` of both together.

    The task's own columns stay, for checklists. A row is in one of the two lists alone.
    """
    if not num:
        return [], []
    flags = {"think": 0.0, "no_think": 0.0, "none": 1.0}
    made = suite(seed, tasks=list(tasks), num_sft=num, num_train=0, num_test=0, flag_shares=flags, system_share=0.0)
    rows = [row for row in made["sft"] if len(row["prompt"]) == 1]
    answers, thoughts = [], []
    for place, row in enumerate(rows):
        own = {
            **{key: value for key, value in row.items() if key not in ("messages", "rejected", "prompt")},
            "prompt": row["prompt"][0]["content"],
            "domain": row["ability"],
        }
        said = row["messages"][-1]["content"]
        if place % 2:
            thoughts.append({**own, "response": said, "status": "ok", "score": 1.0})
        else:
            grader = {"grader": GRADERS[row["task"]]} if row["task"] in GRADERS else {}
            answers.append({**own, **grader, "response": said.partition("</think>\n\n")[2]})
    return answers, thoughts


def general_tasks(seed: int, *, num_sums: int = 900, **settings: Any) -> dict[str, list[Row]]:
    """The splits of ``rlplatform.tasks.general.suite``, and in ``train`` also ``num_sums`` sums as task ``sums``.

    Without them general RL forgets what reasoning RL has learned. The sums are the first of ``problems(seed)["rl"]``.

    Raises:
        ValueError: more sums than there are; settings that ``suite`` refuses.
    """
    made = suite(seed, **settings)
    sums = problems(seed)["rl"]
    if num_sums > len(sums):
        raise ValueError(f"general_tasks: expected num_sums <= {len(sums)}, got {num_sums}")
    for row in sums[:num_sums]:
        prompt = [{"role": "user", "content": row["prompt"]}]
        made["train"].append({**row, "prompt": prompt, "task": "sums", "thinking": True})
    random.Random(f"mini/{seed}/general").shuffle(made["train"])
    return made


def unverifiable(queries: Sequence[Row]) -> list[Row]:
    """One of each kind that the query filters drop, for every fifty queries."""
    made: list[Row] = []
    for k in range(max(len(queries) // 50, 1)):
        question = queries[k % len(queries)]["prompt"].removeprefix("What is ").removesuffix("?")
        made += [
            {"prompt": f"Prove that {question} is a number.", "answer": "proof", "domain": "proofs"},
            {"prompt": f"Write a poem about {question}.", "answer": "poem", "domain": "texts"},
            {"prompt": f"(a) What is {question}? (b) Is it even?", "answer": "both", "domain": "parts"},
            {"prompt": f"What comes after {question}?", "answer": "", "domain": "open"},
        ]
    return [{"id": f"unverifiable-{k:03d}", **row, "worked": "", "said": ""} for k, row in enumerate(made)]
