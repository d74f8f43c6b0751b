"""From rows to prompts and their order: every row checked before any worker starts, nothing cut silently.

A row's prompt column is a string (one user message) or a list of messages. Every other column travels with the prompt
to the reward functions. verl's parquet schema (``prompt`` messages, ``reward_model.ground_truth``) reads as is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.messages import RenderError, render_chat
from rlplatform.config import ConfigError, DataConfig, RLConfig
from rlplatform.datafiles import DataError, parse_json, read_rows
from rlplatform.seeds import request_seed
from rlplatform.stages.query_selection import Curriculum
from rlplatform.stages.texts import rank
from rlplatform.types import GenerationRequest, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# --- rows -----------------------------------------------------------------------------------------------------------


def _column(row: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a column; ``a.b`` looks inside a struct column."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"{where}: column {name!r} is missing; columns there: {sorted(row)}")
        value = value[part]
    return value


def normalise(row: Mapping[str, Any], where: str, config: DataConfig) -> tuple[Any, dict[str, Any]]:
    """(prompt value, columns for the rewards) of one row, renamed and with its answer extracted."""
    columns = {key: value for key, value in row.items() if key != config.prompt}
    for new, old in config.columns.items():
        columns[new] = _column(row, old, where)
    if config.answer:
        columns["answer"] = _column(row, config.answer, where)
    elif "answer" not in columns and isinstance(row.get("reward_model"), Mapping):
        columns["answer"] = _column(row, "reward_model.ground_truth", where)
    if config.answer_regex:
        text = _column(columns, "answer", where)
        match = re.search(config.answer_regex, str(text))
        if match is None:
            raise DataError(f"{where}: answer_regex {config.answer_regex!r} does not match {str(text)[:80]!r}")
        columns["answer"] = (match.group(1) if match.groups() else match.group(0)).strip()
    prompt = _column(row, config.prompt, where)
    if config.template:
        try:
            prompt = config.template.format(**{**row, config.prompt.replace(".", "_"): prompt})
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"{where}: template {config.template[:60]!r} does not fit the row: {error!r}") from error
    return prompt, columns


def _messages(prompt: Any, where: str, config: DataConfig) -> tuple[dict[str, Any], ...]:
    if isinstance(prompt, str):
        system = [{"role": "system", "content": config.system}] if config.system else []
        return (*system, {"role": "user", "content": prompt})
    if isinstance(prompt, Sequence) and prompt and all(isinstance(m, Mapping) and "role" in m for m in prompt):
        return tuple(dict(message) for message in prompt)
    raise DataError(
        f"{where}: column {config.prompt!r}: expected a string or a list of messages with a role, "
        f"got {str(prompt)[:60]!r} ({type(prompt).__name__})"
    )


def _tools(value: Any, where: str) -> list[Any] | None:
    """Column ``tools`` for the head of a prompt: JSON schemas, or their JSON text, which parquet needs."""
    return (
        parse_json(value, f"{where}: column tools: expected JSON schemas") if isinstance(value, str) else value
    ) or None


# --- prompts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one dataset, in file order, and what was left out."""

    prompts: tuple[Prompt, ...]
    too_long: tuple[tuple[str, int], ...]  # (prompt_id, tokens) of the prompts that were dropped


def load_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """Read, check, render and tokenise a dataset.

    Raises:
        DataError: no such dataset, an unreadable row, a missing column, or not one usable prompt.
    """
    prompts: list[Prompt] = []
    too_long: list[tuple[str, int]] = []
    count = 0
    for index, (where, row) in enumerate(read_rows(config)):
        if config.limit and index >= config.limit:
            break
        count += 1
        value, columns = normalise(row, where, config)
        if config.chat:
            messages = _messages(value, where, config)
            try:
                text = render_chat(
                    tokenizer,
                    messages,
                    tools=_tools(columns.get("tools"), where),
                    add_generation_prompt=True,
                    template_kwargs={"enable_thinking": config.enable_thinking},
                )
            except RenderError as error:
                raise DataError(f"{where}: column {config.prompt!r}: {error}") from error
        else:
            if not isinstance(value, str):
                raise DataError(f"{where}: column {config.prompt!r}: chat is off, expected a string, got {value!r:.60}")
            messages, text = (), value
        ids = np.asarray(tokenizer(text, add_special_tokens=not config.chat)["input_ids"], dtype=np.int32)
        prompt_id = f"{config.split}-{index}"
        if len(ids) > config.max_prompt_tokens:
            too_long.append((prompt_id, len(ids)))
            continue
        if len(ids) == 0:
            raise DataError(f"{where}: column {config.prompt!r}: the rendered prompt has no tokens")
        prompts.append(
            Prompt(
                prompt_id=prompt_id,
                messages=messages,
                token_ids=ids,
                text=str(text),
                columns=columns,
                enable_thinking=config.enable_thinking,
            )
        )
    if not count:
        raise DataError(f"{config.path}: expected at least one row of split {config.split!r}, found none")
    if not prompts:
        raise DataError(
            f"{config.path}: all {count} prompts are longer than data.max_prompt_tokens={config.max_prompt_tokens} "
            f"(the shortest has {min(n for _, n in too_long)} tokens); raise it"
        )
    return PromptSet(tuple(prompts), tuple(too_long))


class ShuffledPrompts:
    """An endless, seeded, resumable order of prompts (``roles.PromptStream``).

    Epoch ``e`` is a permutation seeded by (seed, e), so the position alone says what comes next, on any machine.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, group_size: int, shuffle: bool = True) -> None:
        if not prompts:
            raise DataError("expected at least one prompt")
        self._prompts = list(prompts)
        self._seed, self._group_size, self._shuffle = seed, group_size, shuffle
        self._drawn = 0  # prompts handed out since the start of the run
        self._step = -1  # the step of the last call
        self._index = 0  # prompts handed out for that step
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def _prompt(self, position: int) -> Prompt:
        epoch, offset = divmod(position, len(self._prompts))
        if not self._shuffle:
            return self._prompts[offset]
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts)))
        return self._prompts[int(self._order[1][offset])]

    def next_requests(self, num_prompts: int, *, step: int) -> list[GenerationRequest]:
        """The next prompts, as requests whose seeds no other request of the run shares."""
        if step != self._step:
            self._step, self._index = step, 0
        requests = []
        for _ in range(num_prompts):
            seed = request_seed(self._seed, step, self._index, self._group_size)
            prompt = self._prompt(self._drawn)
            requests.append(GenerationRequest(prompt, self._group_size, step, self._index, seed))
            self._drawn += 1
            self._index += 1
        return requests

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "num_prompts": len(self._prompts), "seed": self._seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            ConfigError: the dataset or the seed is not the one of the checkpoint.
        """
        here = {"num_prompts": len(self._prompts), "seed": self._seed}
        there = {key: state[key] for key in here}
        if here != there:
            raise ConfigError(
                f"the checkpoint was written with {there}, this run has {here}: the prompt order would differ; "
                "use the same data and seed, or start a fresh run"
            )
        self._drawn, self._step, self._index = int(state["drawn"]), -1, 0


class CurriculumPrompts:
    """Easy prompts first: what is asked at a step follows from (seed, step) alone (``stages.query_selection``).

    Args:
        column: of each prompt, its pass rate in [0, 1], e.g. as a ``sample`` stage writes it.

    Raises:
        DataError: a prompt without a pass rate, or too few prompts for the buckets.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        column: str,
        num_steps: int,
        prompts_per_step: int,
        num_buckets: int,
        seed: int,
        group_size: int,
    ) -> None:
        rates = {prompt.prompt_id: _pass_rate(prompt, column) for prompt in prompts}
        ordered = tuple(sorted(rates, key=lambda name: (-rates[name], rank(seed, "curriculum", name))))
        try:
            self._curriculum = Curriculum(ordered, num_steps, prompts_per_step, seed, min(num_buckets, num_steps))
        except ValueError as error:
            raise DataError(f"data.curriculum={column}: {error}") from error
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self._seed, self._group_size = seed, group_size
        self._place = (-1, 0)  # the step of the last call, and how many of its prompts were handed out

    def next_requests(self, num_prompts: int, *, step: int) -> list[GenerationRequest]:
        """The next prompts of the step, as requests whose seeds no other request of the run shares.

        A step that asks again, because none of its groups could be trained on, goes on with those of later steps of the
        bucket.
        """
        begin = self._place[1] if self._place[0] == step else 0
        per_step = self._curriculum.prompts_per_step
        requests = []
        for index in range(begin, begin + num_prompts):
            ahead, place = divmod(index, per_step)
            name = self._curriculum.ids(step + ahead)[place]
            seed = request_seed(self._seed, step, index, self._group_size)
            requests.append(GenerationRequest(self._prompts[name], self._group_size, step, index, seed))
        self._place = (step, begin + num_prompts)
        return requests

    def state_dict(self) -> dict[str, Any]:
        return {"curriculum": list(self._curriculum.ordered), "seed": self._seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing but a comparison: the step says what comes next.

        Raises:
            ConfigError: the prompts, their pass rates or the seed are not those of the checkpoint.
        """
        if dict(state) != self.state_dict():
            raise ConfigError(
                "the checkpoint was written with another order of prompts: use the same data, data.curriculum and "
                "seed, or start a fresh run"
            )
        self._place = (-1, 0)


def _pass_rate(prompt: Prompt, column: str) -> float:
    value = prompt.columns.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(
            f"data.curriculum: prompt {prompt.prompt_id}: expected a pass rate in [0, 1] in column {column!r}, got "
            f"{value!r}; a sample stage's queries.jsonl has one, select_queries drops those without"
        )
    return float(value)


def prompt_stream(prompts: Sequence[Prompt], config: RLConfig) -> ShuffledPrompts | CurriculumPrompts:
    """The order in which a run asks its prompts."""
    data = config.data
    if not data.curriculum:
        return ShuffledPrompts(prompts, seed=config.seed, group_size=config.group_size, shuffle=data.shuffle)
    return CurriculumPrompts(
        prompts,
        column=data.curriculum,
        num_steps=config.num_steps,
        prompts_per_step=config.prompts_per_step,
        num_buckets=data.curriculum_buckets,
        seed=config.seed,
        group_size=config.group_size,
    )
