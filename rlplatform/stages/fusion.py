r"""Thinking-mode fusion: one SFT set of both modes (arXiv 2505.09388, section 4.3).

    response rows with verdicts ─ thinking_samples ─► thinking pool ─┐
                                                                     ├─ assemble ─► conversations ─ model.chat ─► masks
    response rows, checklists ─ non_thinking_samples ─► other pool ──┘

What the report says: thinking samples by rejection sampling, non-thinking ones by task, an **empty** think block where
the model does not think, ``/think`` and ``/no_think`` in user or system messages, several at random turns of a dialogue
where the last one wins, thinking where there is none, and more translation for low-resource languages. All shares are
arguments: it publishes none.

The flags are drawn first; each turn then takes a sample of the mode that the last flag asks for. Everything is drawn
from (seed, arguments, ids of the samples): the order of the rows does not matter.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.response import parse
from rlplatform.stages.pass_rates import is_correct
from rlplatform.stages.records import KEEP, Decision, Row, row_key, text_column
from rlplatform.stages.texts import prompt_text, rank

THINK, NO_THINK = "/think", "/no_think"
_FLAG = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")

# --- flags ----------------------------------------------------------------------------------------------------------


def last_flag(text: str) -> str | None:
    """The last ``/think`` or ``/no_think`` that stands as a word of its own; None without one."""
    found = _FLAG.findall(text)
    return found[-1] if found else None


def wants_thinking(messages: Sequence[Mapping[str, Any]]) -> bool:
    """What the next assistant turn should do: as the last flag of the system and user messages says, else think.

    Assistant and tool messages are not obeyed.
    """
    wanted = True
    for message in messages:
        flag = last_flag(message["content"]) if message["role"] in ("system", "user") else None
        wanted = flag == THINK if flag else wanted
    return wanted


def with_flag(text: str, flag: str | None) -> str:
    """``text`` with the flag behind it, as in the report's sample text: ``{query} /no_think``."""
    return text if flag is None else f"{text} {flag}" if text else flag


# --- samples --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One question and one answer, in one mode."""

    key: str  # id#sample of the row it comes from
    prompt: str
    thought: str  # "" = non-thinking
    answer: str
    task: str = ""
    language: str = ""

    @property
    def thinking(self) -> bool:
        return bool(self.thought)

    @property
    def content(self) -> str:
        """The assistant turn as the model should write it; Qwen3's empty block is what an empty thought gives."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.answer}"


def usable(rows: Sequence[Row], *, thinking: bool) -> list[Decision]:
    """The rule of rejection sampling, as a filter: what may become a sample of that mode.

    ``malformed``: think tags out of place, or no answer. ``wrong_mode``: a thought where none is asked for, or none.
    ``holds_a_flag``: the prompt itself holds one, which would decide the mode. ``not_correct``: a thinking sample whose
    verdict is not ok and 1; non-thinking ones are judged by their checklists (``checklists.check_responses``).
    """
    decisions = []
    for row in rows:
        response = parse(text_column(row, "response"), opened=row.get("opened") is True)
        if not response.well_formed:
            decisions.append(Decision("malformed", "think tags out of place, or no answer"))
        elif response.has_thought != thinking:
            decisions.append(Decision("wrong_mode", f"expected {'a' if thinking else 'no'} thought"))
        elif last_flag(prompt_text(row)):
            decisions.append(Decision("holds_a_flag", f"{last_flag(prompt_text(row))} in the prompt"))
        elif thinking and not is_correct(row):
            decisions.append(Decision("not_correct", f"status {row.get('status')}, score {row.get('score')}"))
        else:
            decisions.append(KEEP)
    return decisions


def samples(rows: Sequence[Row], *, thinking: bool, task_column: str = "task") -> list[Sample]:
    """Rows that passed ``usable``, as samples.

    Raises:
        ValueError: one that did not, a prompt of several turns, or a non-thinking row without a task.
    """
    found = []
    for row, decision in zip(rows, usable(rows, thinking=thinking), strict=True):
        if not decision.kept:
            raise ValueError(
                f"row {row_key(row)!r} is no sample: {decision.reason} ({decision.detail}); filter it first"
            )
        prompt = row["prompt"]
        if not isinstance(prompt, str) and [message["role"] for message in prompt] != ["user"]:
            raise ValueError(f"row {row_key(row)!r}: expected one user message, got {prompt!r:.80}")
        response = parse(row["response"].removesuffix("<|im_end|>"), opened=row.get("opened") is True)
        found.append(
            Sample(
                key=row_key(row),
                prompt=prompt_text(row),
                thought=response.thinking if thinking else "",
                answer=response.answer,
                task=str(row.get(task_column) or "") if thinking else text_column(row, task_column),
                language=str(row.get("language") or ""),
            )
        )
    return found


class Pool:
    """Samples in a seeded order that does not depend on theirs, each handed out once before any is again."""

    def __init__(self, name: str, samples: Sequence[Sample], *, seed: int, repeat: bool) -> None:
        self.name, self._repeat = name, repeat
        self._samples = sorted(samples, key=lambda sample: rank(seed, name, sample.key))
        self._drawn = 0

    def draw(self) -> Sample:
        """The next sample.

        Raises:
            ValueError: none, or none left and they may not be used twice.
        """
        if not self._samples or (self._drawn >= len(self._samples) and not self._repeat):
            raise ValueError(
                f"fusion: the pool of {self.name} has {len(self._samples)} samples, all used after {self._drawn} "
                "turns; make more, ask for fewer conversations or less of it, or set repeat=True"
            )
        sample = self._samples[self._drawn % len(self._samples)]
        self._drawn += 1
        return sample


# --- assembling -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusionShares:
    """How the set is mixed. None of it is Qwen3's: the report gives no shares."""

    thinking: float = 0.5  # of conversations: the first turn thinks
    unflagged: float = 0.5  # of those: no flag at all before the first turn
    system: float = 0.25  # of first flags: in the system message instead of the first user message
    turns: Mapping[int, float] = field(default_factory=lambda: {1: 0.6, 2: 0.2, 4: 0.2})  # turns -> share
    flag_later: float = 0.5  # chance that a later user turn carries a flag, either one equally often
    doubled: float = 0.1  # chance that a flagged user message holds the other flag too, before the one that counts
    translation: float = 0.1  # of non-thinking turns: translation from or to a low-resource language

    def __post_init__(self) -> None:
        for name in ("thinking", "unflagged", "system", "flag_later", "doubled", "translation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"FusionShares.{name}: expected a share in [0, 1], got {getattr(self, name)}")
        if not self.turns or min(self.turns) < 1 or min(self.turns.values()) < 0 or not sum(self.turns.values()) > 0:
            raise ValueError(f"FusionShares.turns: expected {{turns >= 1: share >= 0}}, got {dict(self.turns)}")


def counts_of(shares: Mapping[Any, float], num: int) -> dict[Any, int]:
    """``num`` split by shares that need not add up to 1: largest remainders first, ties in the shares' order.

    >>> counts_of({1: 0.6, 2: 0.2, 4: 0.2}, 8)
    {1: 5, 2: 2, 4: 1}
    """
    total = sum(shares.values())
    exact = {name: num * share / total for name, share in shares.items()}
    counts = {name: int(value + 1e-9) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in rest[: num - sum(counts.values())]:
        counts[name] += 1
    return counts


def _spread(share: float, num: int, rng: random.Random) -> list[bool]:
    """``num`` booleans, of which exactly round(share * num) are true, in random places."""
    flags = [k < round(share * num) for k in range(num)]
    rng.shuffle(flags)
    return flags


@dataclass(frozen=True)
class _Plan:
    """The flags of one conversation, before any sample is chosen."""

    system: str | None  # flag in the system message
    users: tuple[tuple[str, ...], ...]  # flags of each user message, the last one counts


def plan_conversations(num: int, *, shares: FusionShares, seed: int) -> list[_Plan]:
    """Turns and flags of ``num`` conversations: exact shares for first turns and lengths, chances for later ones."""
    rng = random.Random(f"fusion/{seed}/plan")
    lengths = [turns for turns, count in counts_of(shares.turns, num).items() for _ in range(count)]
    rng.shuffle(lengths)
    thinks = _spread(shares.thinking, num, rng)
    silent = iter(_spread(shares.unflagged, sum(thinks), rng))
    first = [None if think and next(silent) else (THINK if think else NO_THINK) for think in thinks]
    in_system = iter(_spread(shares.system, sum(flag is not None for flag in first), rng))
    plans = []
    for flag, turns in zip(first, lengths, strict=True):
        system = flag if flag is not None and next(in_system) else None
        users = [() if flag is None or system else _doubled(flag, shares.doubled, rng)]
        for _ in range(turns - 1):
            later = rng.random() < shares.flag_later
            users.append(_doubled(rng.choice((THINK, NO_THINK)), shares.doubled, rng) if later else ())
        plans.append(_Plan(system, tuple(users)))
    return plans


def _doubled(flag: str, share: float, rng: random.Random) -> tuple[str, ...]:
    return (NO_THINK if flag == THINK else THINK, flag) if rng.random() < share else (flag,)


def assemble(
    thinking: Sequence[Sample],
    non_thinking: Sequence[Sample],
    *,
    num: int,
    seed: int,
    shares: FusionShares | None = None,
    low_resource: frozenset[str] = frozenset(),
    translation_task: str = "translation",
    systems: Sequence[str] = (),
    system_share: float = 0.0,
    repeat: bool = False,
) -> list[dict[str, Any]]:
    """``num`` conversations for supervised training, multi-turn ones put together from single-turn samples.

    Args:
        low_resource: languages (column ``language`` of translation samples) whose translations get
            ``shares.translation`` of the non-thinking turns, exactly; all other turns draw from the other samples.
        systems: system messages, dealt in turn to ``system_share`` of the conversations; a flag stands behind one, or
            alone where there is none.
        repeat: may a sample be used again once all of its pool have been?

    Returns:
        Rows with ``id``, ``messages``, ``thinking`` (a boolean a turn) and ``sources`` (the samples' keys), for an SFT
        stage as they are: ``model.chat.render_example(tokenizer, row["messages"])`` trains exactly the answers, think
        blocks included.

    Raises:
        ValueError: a pool that runs out, a sample in the wrong pool, a system message that holds a flag, or a share of
            translation without low-resource translations.
    """
    shares = shares or FusionShares()
    _check_samples(thinking, non_thinking, systems)
    plans = plan_conversations(num, shares=shares, seed=seed)
    modes = [_modes(plan) for plan in plans]
    rng = random.Random(f"fusion/{seed}/assemble")
    rare = [s for s in non_thinking if s.task == translation_task and s.language in low_resource]
    rare_keys = {sample.key for sample in rare}
    pools = {
        name: Pool(name, members, seed=seed, repeat=repeat)
        for name, members in (
            ("thinking samples", thinking),
            ("non-thinking samples", [sample for sample in non_thinking if sample.key not in rare_keys]),
            ("low-resource translations", rare),
        )
    }
    translated = iter(_spread(shares.translation, sum(not mode for turns in modes for mode in turns), rng))
    has_system = _spread(system_share if systems else 0.0, num, rng)
    dealt = itertools.cycle(systems)
    rows = []
    for index, (plan, turns) in enumerate(zip(plans, modes, strict=True)):
        system = with_flag(next(dealt) if has_system[index] else "", plan.system)
        messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        sources = []
        for mode, flags in zip(turns, plan.users, strict=True):
            name = "thinking samples"
            if not mode:
                name = "low-resource translations" if next(translated) else "non-thinking samples"
            sample = pools[name].draw()
            user = sample.prompt
            for flag in flags:
                user = with_flag(user, flag)
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": sample.content}]
            sources.append(sample.key)
        rows.append({"id": f"fusion-{index:06d}", "messages": messages, "thinking": list(turns), "sources": sources})
    return rows


def _modes(plan: _Plan) -> tuple[bool, ...]:
    """Does each turn think? The last flag so far decides; without one it does."""
    modes, wanted = [], plan.system != NO_THINK
    for flags in plan.users:
        wanted = flags[-1] == THINK if flags else wanted
        modes.append(wanted)
    return tuple(modes)


def _check_samples(thinking: Sequence[Sample], non_thinking: Sequence[Sample], systems: Sequence[str]) -> None:
    for sample in [*thinking, *non_thinking]:
        if last_flag(sample.prompt):
            raise ValueError(f"fusion: sample {sample.key!r} holds {last_flag(sample.prompt)} in its prompt")
    for expected, group in ((True, thinking), (False, non_thinking)):
        wrong = [sample.key for sample in group if sample.thinking != expected]
        if wrong:
            raise ValueError(f"fusion: expected samples {'with' if expected else 'without'} a thought, got {wrong[:3]}")
    flagged = [text for text in systems if last_flag(text)]
    if flagged:
        raise ValueError(f"fusion: expected system messages without a flag, got {flagged[0]!r:.80}")
