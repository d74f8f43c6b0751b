"""What synthetic data are asked for: domains, readers and the wording of four forms. Defaults; a config replaces any.

The Qwen3 report names the forms (textbooks, question-answer, instructions, code snippets) and "dozens of domains"
(arXiv:2505.09388, section 3.1), and neither prompts nor list; these are the project's own.
"""

from __future__ import annotations

FORMS = ("textbook", "question_answer", "instruction", "code")

DOMAINS: tuple[str, ...] = (
    "arithmetic", "algebra", "geometry", "trigonometry", "calculus", "linear algebra", "probability", "statistics",
    "number theory", "combinatorics", "logic", "graph theory", "optimisation",
    "classical mechanics", "thermodynamics", "electromagnetism", "optics", "quantum physics", "astronomy",
    "general chemistry", "organic chemistry", "biochemistry", "genetics", "ecology", "physiology", "neuroscience",
    "medicine", "public health", "nutrition", "geology", "meteorology", "oceanography", "agriculture",
    "algorithms", "data structures", "operating systems", "databases", "computer networks", "computer security",
    "machine learning", "programming languages", "web development",
    "mechanical engineering", "electrical engineering", "civil engineering", "materials science", "robotics",
    "economics", "finance", "accounting", "management", "law", "politics", "history", "geography", "archaeology",
    "anthropology", "sociology", "psychology", "education", "philosophy", "ethics", "linguistics", "literature",
    "music", "visual art", "architecture", "religion", "sport", "cooking", "crafts", "travel", "everyday life",
)  # fmt: skip
NUMERIC: frozenset[str] = frozenset(
    (
        "arithmetic", "algebra", "geometry", "trigonometry", "calculus", "linear algebra", "probability", "statistics",
        "number theory", "combinatorics", "optimisation", "classical mechanics", "thermodynamics", "electromagnetism",
        "optics", "general chemistry", "finance", "accounting",
    )
)  # fmt: skip
"""Domains whose questions end in a number or formula, which the `math` reward compares."""
PROGRAMMING: frozenset[str] = frozenset(
    (
        "arithmetic", "algebra", "geometry", "statistics", "number theory", "combinatorics", "graph theory",
        "optimisation", "algorithms", "data structures", "databases", "programming languages", "finance", "accounting",
    )
)  # fmt: skip
"""Domains in which code snippets are asked for: what a program without network and files can show."""

READERS: tuple[str, ...] = (
    "a child of ten", "a pupil of secondary school", "a first-year student", "an advanced student", "a professional",
    "a curious adult without training",
)  # fmt: skip
LANGUAGES: tuple[str, ...] = ("English",)

TEMPLATES: dict[str, str] = {
    "textbook": """Write a section of a textbook on {domain}, in {language}, for {reader}.

Choose a narrow topic of {domain} that is not the first one that comes to mind. Explain it from the ground up, with
definitions, reasons, at least one worked example and a short summary. Write continuous prose under Markdown headings.
Do not speak of yourself or of this task.""",
    "question_answer": """Write one question on {domain}, in {language}, for {reader}, with its answer.

The question must be answerable without anything else and have one answer only.{numeric} Use exactly these three
headings, and nothing before the first:

## Question
## Solution
(the reasoning, step by step)
## Answer
(the final answer alone)""",
    "instruction": """Invent a task in {domain} that {reader} could give to an assistant, in {language}, and fulfil it.

The task may ask to explain, plan, compare, rewrite, classify, advise or create, and states all that is needed. Use
exactly these two headings, and nothing before the first:

## Instruction
## Response""",
    "code": """Write a small Python program in the field of {domain}, explained in {language} for {reader}.

It must run with the standard library alone, without files, network or input. Use exactly these three headings, and
nothing before the first; programs stand in fenced blocks:

## Task
(what the program does, and why one wants it)
## Program
(one fenced block: functions only)
## Tests
(one fenced block: at least three assert statements that call those functions, also at the edges)""",
}
NUMERIC_CLAUSE = " The answer is one number or one formula, without a unit."
FIELDS = ("domain", "reader", "language", "number", "numeric")
