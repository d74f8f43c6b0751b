"""What is checked of the rewards before a worker starts: names, settings, columns, and one call of each function."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from actors.reward_records import headline
from actors.reward_versions import source_file
from rewards.base import ERROR, NOT_APPLICABLE, SUPPLIED, RewardLoadError, is_async, resolve, signature_of
from rewards.composition import Part, check_part
from rewards.runner import RewardPool
from rlplatform.config import ConfigError, RewardConfig
from rlplatform.types import Prompt

LOGGER = logging.getLogger(__name__)
PROBE_TIMEOUT_S = 5.0
MADE_UP = "This completion was made up to try the reward function."


def accuracy_metric(reward: RewardConfig, wanted: str) -> str:
    """The reward part that counts as accuracy; every function is resolved, and its settings checked, on the way.

    Raises:
        RewardLoadError: a function cannot be loaded, or does not take its settings.
        ConfigError: ``wanted`` is not among them.
    """
    parts = reward.parts
    for part in parts.values():
        check_part(part, resolve(part.function))
    if wanted and wanted not in parts:
        raise ConfigError(f"evaluation metric {wanted!r}: expected one of the reward functions, {sorted(parts)}")
    return wanted or next(iter(parts))


def check_columns(reward: RewardConfig, prompts: Sequence[Prompt]) -> None:
    """Stop before any worker starts when a reward function needs a column that a prompt does not have.

    Raises:
        ConfigError: names function, column and prompt.
    """
    parts = reward.parts
    signatures = {name: signature_of(resolve(part.function), part.function) for name, part in parts.items()}
    for prompt in {frozenset(prompt.columns): prompt for prompt in prompts}.values():  # one of each kind of row
        taken = sorted(set(prompt.columns) & {*SUPPLIED, "prompt_text"})
        if taken:
            raise ConfigError(
                f"prompt {prompt.prompt_id}: the columns {taken} have names of what the platform gives to reward "
                "functions; rename them in the data, or with data.columns.NAME=COLUMN"
            )
        for part in parts.values():
            try:
                part.check_columns([*prompt.columns, "prompt_text"], signatures[part.name].reserved)
            except RewardLoadError as error:
                raise ConfigError(f"prompt {prompt.prompt_id}: {error}") from error
    _warn_of_rows_without_grader(parts, prompts)
    asked: set[tuple[str, frozenset[str]]] = set()
    for prompt in prompts:
        for part in parts.values():
            kind = (part.name, frozenset(prompt.columns))
            if kind in asked or not part.applies(_row(prompt)):
                continue
            asked.add(kind)
            missing = signatures[part.name].missing([*_row(prompt), *part.args])
            if missing:
                raise ConfigError(
                    f"reward {part.name!r} needs the columns {missing}, and prompt {prompt.prompt_id} has "
                    f"{sorted(prompt.columns)}; set data.answer=COLUMN or data.columns.NAME=COLUMN"
                )


def _warn_of_rows_without_grader(parts: Mapping[str, Part], prompts: Sequence[Prompt]) -> None:
    """A `when` that matches nothing is allowed, and most often a slip: "1" is not 1."""
    for part in parts.values():
        if part.when and not any(part.applies(_row(prompt)) for prompt in prompts):
            seen = {column: sorted({repr(_row(p)[column]) for p in prompts})[:5] for column in part.when}
            LOGGER.warning("reward.functions.%s.when matches no row; the rows have %s", part.name, seen)
    num_without = sum(not any(part.applies(_row(prompt)) for part in parts.values()) for prompt in prompts)
    if num_without:
        LOGGER.warning("%d of %d rows are graded by no reward function and will be left out", num_without, len(prompts))


def _row(prompt: Prompt) -> dict[str, Any]:
    return {**prompt.columns, "prompt_text": prompt.text}


class Probe:
    """Calls every function once, in a child process, on a prompt of the dataset with a completion that is made up.

    Async and served functions are left out: they cost money or a model. A function that raises, dies or answers with
    something else than one score a row stops the run; one that takes too long or cannot read the reference is warned
    of, for the next row may be another matter.
    """

    def __init__(self, pool: Future[RewardPool] | None) -> None:
        self._pool = pool

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises RewardLoadError with the line that failed."""
        if self._pool is None:
            return
        pool = self._pool.result()
        for part in pool.parts.values():
            prompt = next((prompt for prompt in prompts if part.applies(_row(prompt))), None)
            if prompt is not None:
                _call_once(pool, part, prompt)


def _call_once(pool: RewardPool, part: Part, prompt: Prompt) -> None:
    messages: Any = [dict(message) for message in prompt.messages] or prompt.text
    graded = pool.grade(
        [messages] * 2,
        [MADE_UP] * 2,
        {name: [value] * 2 for name, value in _row(prompt).items()},
        completion_ids=[[0]] * 2,
        trainer_state={"global_step": 0},
        groups=[0, 0],
        names=[part.name],
    )
    verdict = graded.verdicts[part.name][0]
    if verdict is None or verdict.ok or verdict.status == NOT_APPLICABLE:
        return
    text = graded.tracebacks.get(part.name, verdict.detail)
    told = (
        f"reward {part.name!r}, tried on prompt {prompt.prompt_id} with a made-up completion: {verdict.status}: "
        f"{headline(text, source_file(resolve(part.function)))}"
    )
    if verdict.status == ERROR:
        raise RewardLoadError(f"{told}\n{text.rstrip()}\nNothing was started. reward.probe=false skips this check.")
    LOGGER.warning("%s", told)


@contextmanager
def probe(reward: RewardConfig) -> Iterator[Probe]:
    """A probe whose child process is importing the functions while the caller reads its data."""
    parts = {
        name: replace(part, needs={})
        for name, part in reward.parts.items()
        if not (is_async(fn := resolve(part.function)) or hasattr(fn, "served_by") or hasattr(fn, "comes_with_rollout"))
    }
    if not parts or not reward.probe:
        yield Probe(None)
        return
    with ThreadPoolExecutor(1) as thread:
        pool = thread.submit(RewardPool, parts, 1, PROBE_TIMEOUT_S)
        try:
            yield Probe(pool)
        finally:
            if pool.exception() is None:
                pool.result().close()
