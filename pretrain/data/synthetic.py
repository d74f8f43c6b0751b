"""Synthetic data by the stages that are there: prompts, a ``sample`` stage on the vLLM fleet, documents.

    prompts() ─ kind: dataset ─► sample (reward: form) ─► responses.jsonl ─┬──────────────────────► kind: documents
                                                                           └ claims() ─ dataset ─► sample (reward: math)
                                                                             question-answer pairs   solved again

``prompts`` draws domain, reader and language for each form; ``claims`` turns the question-answer pairs whose answer can
be compared into questions for independent solutions. The ``responses`` format of a documents stage reads what came
back (``synthetic_documents.py``): where it comes from and what was verified, by whom, stands on every document.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.data.synthetic_forms import take_apart
from pretrain.data.synthetic_prompts import (
    DOMAINS,
    FIELDS,
    FORMS,
    LANGUAGES,
    NUMERIC,
    NUMERIC_CLAUSE,
    PROGRAMMING,
    READERS,
    TEMPLATES,
)
from rlplatform.config import ConfigError
from rlplatform.datafiles import jsonl_lines
from rlplatform.types import FINISH_STOP

Row = dict[str, Any]
QUESTION = "{question}\n\nReason step by step, then give the final answer in \\boxed{}."


def prompts(
    seed: int,
    *,
    num: Mapping[str, int],
    domains: Sequence[str] = DOMAINS,
    numeric: Sequence[str] = tuple(NUMERIC),
    programming: Sequence[str] = tuple(PROGRAMMING),
    readers: Sequence[str] = READERS,
    languages: Sequence[str] = LANGUAGES,
    templates: Mapping[str, str] | None = None,
) -> dict[str, list[Row]]:
    """Split ``train``: ``num[form]`` prompts of each form, for ``kind: dataset``.

    Combinations of domain, reader and language are drawn without repetition until all have been used, so domains are
    balanced to within one round. Columns: ``id``, ``prompt``, ``form``, ``domain``, ``reader``, ``language``,
    ``checkable`` (can its answer be verified?) and ``template`` (digest of the wording).

    Args:
        num: prompts of each form, e.g. ``{textbook: 1000, code: 500}``.
        numeric: domains whose questions have a number or formula as their answer.
        programming: domains in which programs are asked for; those of ``domains`` among them are used.
        templates: wording by form, in place of the built-in one; may use ``{domain}``, ``{reader}``, ``{language}``,
            ``{number}`` and ``{numeric}``.

    Raises:
        ConfigError: an unknown form or placeholder, or nothing to draw from.
    """
    wording = {**TEMPLATES, **(templates or {})}
    for form, template in wording.items():
        _check_template(form, template)
    rows = []
    for form, wanted in num.items():
        if form not in FORMS or not isinstance(wanted, int) or wanted < 0:
            raise ConfigError(f"num: expected numbers >= 0 of {', '.join(FORMS)}, got {form}: {wanted!r}")
        usable = [domain for domain in domains if form != "code" or domain in programming]
        if wanted and not (usable and readers and languages):
            raise ConfigError(f"{form}: expected domains, readers and languages to draw from, got none of one of them")
        drawn = _draws(random.Random(f"synthetic/{seed}/{form}"), usable, readers, languages)
        for number, (domain, reader, language) in zip(range(1, wanted + 1), drawn, strict=False):
            rows.append(_row(form, number, domain, reader, language, wording[form], domain in numeric))
    return {"train": rows}


def _check_template(form: str, template: str) -> None:
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigError(f"templates.{form}: {error}; write {{{{ and }}}} for braces") from error
    if form not in FORMS or not used <= set(FIELDS):
        wrong = sorted(used - set(FIELDS)) or form
        raise ConfigError(f"templates.{form}: expected placeholders {', '.join(FIELDS)} in a known form, got {wrong}")


def _draws(
    rng: random.Random, domains: Sequence[str], readers: Sequence[str], languages: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Endless rounds over the domains, each in a new order; a domain's readers and languages go round as well."""
    pairs = [(reader, language) for reader in readers for language in languages]
    waiting: dict[str, list[tuple[str, str]]] = {domain: [] for domain in domains}
    while True:
        for domain in rng.sample(list(waiting), len(waiting)):
            if not waiting[domain]:
                waiting[domain] = rng.sample(pairs, len(pairs))
            yield domain, *waiting[domain].pop()


def _row(form: str, number: int, domain: str, reader: str, language: str, template: str, numeric: bool) -> Row:
    checkable = form == "code" or (form == "question_answer" and numeric)
    clause = NUMERIC_CLAUSE if numeric else ""
    text = template.format(domain=domain, reader=reader, language=language, number=number, numeric=clause)
    return {
        "id": f"{form}-{number}",
        "prompt": text,
        "form": form,
        "domain": domain,
        "reader": reader,
        "language": language,
        "checkable": checkable,
        "template": hashlib.blake2b(template.encode(), digest_size=8).hexdigest(),
    }


def claims(seed: int, *, responses: str, template: str = QUESTION) -> dict[str, list[Row]]:
    """Split ``train``: the checkable question-answer pairs of ``responses`` (``responses.jsonl`` of a sample stage) as
    questions with the claimed answer in column ``answer``; ids are those of the responses, ``ID#SAMPLE``.

    A ``sample`` stage with the `math` reward on them says how many independent solutions agree. ``seed`` is the
    stage's; nothing is drawn.

    Raises:
        ConfigError: ``template`` has no ``{question}``.
        DataError: the file cannot be read.
    """
    if "{question}" not in template:
        raise ConfigError(f"template: expected {{question}} in it, got {template!r}")
    rows = []
    for _, row in jsonl_lines(Path(responses)):
        if row.get("form") != "question_answer" or not row.get("checkable"):
            continue
        cut = row.get("finish") != FINISH_STOP
        parsed = take_apart("question_answer", row["response"], opened=row.get("opened") is True, cut=cut)
        if not parsed.reason:
            question = template.replace("{question}", parsed.sections["question"])
            rows.append({"id": f"{row['id']}#{row['sample']}", "prompt": question, "answer": parsed.sections["answer"]})
    return {"train": rows}
