r"""Cold-start queries: which are worth a teacher's time (Qwen3 Technical Report, arXiv 2505.09388, section 4.1).

The report drops queries that cannot be verified easily, such as several sub-questions or general text generation, and
those that a reference model answers correctly without thinking; it balances the domains, and holds a validation set out
first. How it tells them apart is not published: the rules and bounds here are this project's own.

    hold_out -> not_verifiable -> solved_without_thinking -> balance_domains

Each is ``rows, ... -> decisions``; bind the settings with ``functools.partial`` for ``records.apply_filters``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlplatform.stages.pass_rates import PassRate
from rlplatform.stages.records import KEEP, Decision, Row, text_column
from rlplatform.stages.texts import prompt_text, rank, same_question

Labeller = Callable[[Sequence[Row]], Sequence[str | None]]

# --- held-out validation --------------------------------------------------------------------------------------------

HELD_OUT, TWIN = "held_out", "asks_a_held_out_question"


def hold_out(rows: Sequence[Row], *, num: int, seed: int, domain_column: str | None = None) -> list[Decision]:
    """Take ``num`` validation queries away before anything else looks at the rows.

    Dropped as ``held_out`` are the validation set; as ``asks_a_held_out_question`` further rows whose prompt is that of
    one of them. Which rows depends on (seed, id) alone, so a larger ``num`` keeps the smaller set. With
    ``domain_column`` the domains get equal numbers, as far as they reach.

    Raises:
        ValueError: fewer different questions than ``num``, or none left to train on.
    """
    if num < 0:
        raise ValueError(f"hold_out: expected num >= 0, got {num}")
    first: dict[tuple[str, ...], int] = {}
    for place in sorted(range(len(rows)), key=lambda place: rank(seed, "hold_out", rows[place]["id"])):
        first.setdefault(same_question(rows[place]), place)
    if num and num >= len(first):
        raise ValueError(
            f"hold_out: expected num below the {len(first)} different questions among {len(rows)} rows, got {num}: "
            "nothing would be left to train on"
        )
    domain_of = {place: text_column(rows[place], domain_column) if domain_column else "" for place in first.values()}
    caps = even_caps(Counter(domain_of.values()), num)
    taken: Counter[str] = Counter()
    held: dict[tuple[str, ...], int] = {}
    for question, place in first.items():
        if taken[domain_of[place]] < caps.get(domain_of[place], 0):
            taken[domain_of[place]] += 1
            held[question] = place
    decisions = []
    for place, row in enumerate(rows):
        chosen = held.get(same_question(row))
        if chosen is None:
            decisions.append(KEEP)
        else:
            decisions.append(Decision(HELD_OUT) if chosen == place else Decision(TWIN, f"that of {rows[chosen]['id']}"))
    return decisions


# --- (a) easily verifiable ------------------------------------------------------------------------------------------

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n+")
_ASK = (
    r"(?:find|compute|calculate|determine|evaluate|solve|show|prove|explain|describe|state|list|give|name|write|draw|"
    r"what|which|how|why|when|where|who|is|are|does|do|can)\b"
)
_PART = re.compile(
    rf"(?:^|(?<=\s))(?:\(?([a-h]|[1-9]|i{{1,3}}|iv|v)[).]|(?:part|question)\s+([a-h1-9])\b[:.)]?)\s*(?={_ASK})", re.I
)
_PROOF = re.compile(
    r"\b(?:dis)?prove (?:that|the|why|by)\b|(?:^|[.;:,]|\band|\bthen|\bplease)\s*show that\b|证明", re.I
)
_POLITE = (
    r"(?:please |kindly |now |then |(?:can|could|would) you (?:please )?|i (?:want|need) you to |help me (?:to )?)*"
)
_TEXT_NOUN = (
    r"(?:essay|poem|haiku|song|lyrics|story|stories|tale|letter|e-?mail|blog|article|paragraphs?|speech|review|report|"
    r"dialogue|script|summary|tweet|slogan|description|biography|advertisement|joke|caption|cover letter|outline)"
)
_WRITING = re.compile(
    rf"^{_POLITE}(?:write|compose|draft|create|generate|make up|tell(?: me)?)\s+(?:\S+\s+){{0,5}}?{_TEXT_NOUN}\b", re.I
)
_PROSE = re.compile(
    rf"^{_POLITE}(?:summari[sz]e|paraphrase|rewrite|rephrase|translate|brainstorm|discuss|describe|elaborate|"
    r"explain(?! your\b| how you\b)|what do you think|what is your opinion|give (?:me )?(?:some )?advice)\b",
    re.I,
)
_PROSE_ZH = re.compile(r"^(?:请|请你|帮我)?(?:写一[篇首封个段]|翻译|总结|概括|谈谈|描述)")


def not_verifiable(
    rows: Sequence[Row],
    *,
    reference_columns: Sequence[str] = ("answer", "tests"),
    max_questions: int = 1,
    labeller: Labeller | None = None,
) -> list[Decision]:
    r"""Drop what a rule-based grader could not judge.

    Rules, in this order: ``no_reference``: none of ``reference_columns`` holds anything. ``several_questions``: two or
    more marked parts that each ask something, e.g. ``(a) Find ... (b) Find ...`` (options ``(A) 5 (B) 6`` ask nothing),
    or more than ``max_questions`` sentences that end in a question mark. ``proof``. ``text_generation``: a sentence
    that orders a text (write a poem, summarise, translate, explain; not ``explain your answer``). A row with tests is
    a program: proofs and texts are not looked for.

    Args:
        labeller: asked about the rows that the rules keep, e.g. a language model: a reason a row, or None to keep it.

    Raises:
        ValueError: the labeller does not answer once a row.
    """
    decisions = [_rule(row, reference_columns, max_questions) for row in rows]
    if labeller is None:
        return decisions
    asked = [place for place, decision in enumerate(decisions) if decision.kept]
    labels = list(labeller([rows[place] for place in asked]))
    if len(labels) != len(asked) or not all(label is None or isinstance(label, str) for label in labels):
        raise ValueError(
            f"labeller: expected a reason or None for each of {len(asked)} rows, got {len(labels)} answers"
        )
    for place, label in zip(asked, labels, strict=True):
        if label:
            decisions[place] = Decision(label, "the labeller's word")
    return decisions


def _rule(row: Row, reference_columns: Sequence[str], max_questions: int) -> Decision:
    if not any(_holds(row.get(name)) for name in reference_columns):
        return Decision("no_reference", f"nothing in {', '.join(reference_columns)}")
    text = prompt_text(row)
    parts = {(match[1] or match[2]).lower() for match in _PART.finditer(text)}
    if len(parts) > 1:
        return Decision("several_questions", f"parts {', '.join(sorted(parts))}")
    sentences = [sentence.strip() for sentence in _SENTENCE.split(text) if sentence.strip()]
    questions = [sentence for sentence in sentences if sentence.rstrip("\"'”’) ").endswith(("?", "？"))]
    if len(questions) > max_questions:
        return Decision("several_questions", f"{len(questions)} question marks")
    if _holds(row.get("tests")):
        return KEEP
    proof = _PROOF.search(text)
    if proof:
        return Decision("proof", proof[0])
    for sentence in sentences:
        order = _WRITING.search(sentence) or _PROSE.search(sentence) or _PROSE_ZH.search(sentence)
        if order:
            return Decision("text_generation", order[0])
    return KEEP


def _holds(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != []


# --- (b) needs thinking ---------------------------------------------------------------------------------------------


def solved_without_thinking(
    rows: Sequence[Row], rates: Mapping[str, PassRate], *, min_pass_rate: float = 0.5
) -> list[Decision]:
    """Drop queries that a reference model solves in non-thinking mode: pass rate >= ``min_pass_rate``.

    ``rates`` come from ``pass_rates.measure(verdicts, thinking=False)``, which refuses samples with a thought. With one
    sample a query it is the report's rule: answered correctly, dropped. A query whose verdicts all say nothing
    (timeouts, unreadable references) is kept, with a note.

    Raises:
        ValueError: a query without any verdict, or a bound outside (0, 1].
    """
    if not 0 < min_pass_rate <= 1:
        raise ValueError(f"solved_without_thinking: expected min_pass_rate in (0, 1], got {min_pass_rate}")
    missing = [row["id"] for row in rows if row["id"] not in rates]
    if missing:
        raise ValueError(
            f"solved_without_thinking: no verdict on {len(missing)} of {len(rows)} queries, e.g. {missing[:3]}; sample "
            "the reference model on every query first"
        )
    decisions = []
    for row in rows:
        rate = rates[row["id"]]
        if not rate.num_samples:
            decisions.append(Decision(detail=f"unknown: none of {rate.num_not_ok} verdicts is ok"))
        elif rate.rate >= min_pass_rate:
            decisions.append(Decision("solved_without_thinking", f"{rate.num_correct} of {rate.num_samples} correct"))
        else:
            decisions.append(KEEP)
    return decisions


# --- (c) domains ----------------------------------------------------------------------------------------------------


def even_caps(available: Mapping[str, int], num: int) -> dict[str, int]:
    """``num`` places over the domains, as evenly as their rows allow; remainders go in order of name.

    >>> even_caps({"algebra": 100, "logic": 5, "code": 40}, 45)
    {'algebra': 20, 'code': 20, 'logic': 5}
    """
    caps = dict.fromkeys(sorted(available), 0)
    left = min(num, sum(available.values()))
    while left:
        open_ = [name for name in caps if caps[name] < available[name]]
        share = max(left // len(open_), 1)
        for name in open_:
            given = min(share, available[name] - caps[name], left)
            caps[name], left = caps[name] + given, left - given
    return caps


def balance_domains(
    rows: Sequence[Row],
    *,
    seed: int,
    caps: Mapping[str, int] | int,
    domain_column: str = "domain",
    labeller: Labeller | None = None,
) -> list[Decision]:
    """Keep at most ``caps`` rows a domain, drawn by (seed, id) alone: adding rows reshuffles none of the others.

    Args:
        caps: one number for every domain, or one for each, e.g. from ``even_caps``; 0 leaves a domain out.
        labeller: names the domain of rows whose column is empty.

    Raises:
        ValueError: a row without a domain, a domain without a cap, or a negative cap.
    """
    domains = [row.get(domain_column) for row in rows]
    unnamed = [place for place, domain in enumerate(domains) if not domain]
    if unnamed and labeller is not None:
        for place, label in zip(unnamed, labeller([rows[place] for place in unnamed]), strict=True):
            domains[place] = label
    for row, domain in zip(rows, domains, strict=True):
        if not isinstance(domain, str) or not domain:
            raise ValueError(
                f"balance_domains: row {row['id']!r}: expected a name in column {domain_column}, got {domain!r}; fill "
                "the column or give a labeller"
            )
    members: dict[str, list[int]] = defaultdict(list)
    for place, domain in enumerate(domains):
        members[str(domain)].append(place)
    allowed = dict.fromkeys(members, caps) if isinstance(caps, int) else dict(caps)
    lacking = sorted(set(members) - set(allowed))
    if lacking or any(cap < 0 for cap in allowed.values()):
        raise ValueError(f"balance_domains: expected a cap >= 0 for every domain, none for {lacking}, got {allowed}")
    decisions = [KEEP] * len(rows)
    for domain, places in members.items():
        ordered = sorted(places, key=lambda place: rank(seed, "domain", rows[place]["id"]))
        for place in ordered[allowed[domain] :]:
            decisions[place] = Decision("domain_full", f"{domain}: {len(places)} rows for {allowed[domain]} places")
    return decisions
