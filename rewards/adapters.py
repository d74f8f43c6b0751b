"""Reward functions written for other trainers, unchanged: ``verl:path/file.py:compute_score`` and the like.

The prefix says whose convention the function follows; nothing is guessed from its signature. TRL's convention is ours
(``rewards.base``) and needs no prefix. Parameters that the other trainer doesn't supply are settings: they must have
defaults, and ``reward.functions.NAME.args`` changes them, as for any function.

verl (``custom_reward_function``, its ``naive`` reward manager)::

    compute_score(data_source, solution_str, ground_truth, extra_info) -> float | {"score": float, ...}

called row by row, by keyword; it may be async. ``solution_str`` is the completion; the others come from the columns of
verl's schema: ``data_source``, ``reward_model["ground_truth"]``, ``extra_info``. A row's ``ground_truth`` goes before
its ``reward_model``, and ``answer`` is taken where it has neither. Of a dict, the numbers beside ``score`` are the
verdict's parts, and the rest is in its detail.

OpenRLHF (``--reward.remote_url path/file.py``)::

    reward_func(queries, prompts, labels) -> tensor [n] | {"rewards": tensor [n], "scores": ..., "extra_logs": {...}}

called with batches. ``scores`` and the lists among ``extra_logs`` are parts, single numbers there are metrics.
``prompts`` are the rendered prompts (column ``prompt_text``), ``queries`` prompts and completions
joined, ``labels`` column ``label``, or ``answer`` where there is none.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

from rewards.base import RewardContractError, RewardLoadError, Verdict, rowwise
from rewards.format import text_of

_VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
_OPENRLHF = ("queries", "prompts", "labels")
Function = Callable[..., Any]


def from_verl(fn: Function, name: str) -> Function:
    """verl's ``compute_score`` as a rowwise reward function. Raises RewardLoadError when it can't be called so."""
    settings = _settings(fn, _VERL, name)

    def arguments(row: int, completion: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "data_source": _of_row(columns["data_source"], row),
            "solution_str": text_of(completion),
            "ground_truth": _ground_truth(name, row, columns),
            "extra_info": {**_no_turns(), **(_of_row(columns["extra_info"], row) or {})},
        }

    columns = ("data_source", "ground_truth", "reward_model", "extra_info", "answer")
    signature = _signature(("completions",), columns, settings)

    def sync_reward(completions: Sequence[Any], **given: Any) -> list[Verdict]:
        found, chosen = _split(given, columns)
        return [
            _verl_verdict(name, row, fn(**arguments(row, completion, found), **chosen))
            for row, completion in enumerate(completions)
        ]

    async def async_reward(completions: Sequence[Any], **given: Any) -> list[Verdict]:
        found, chosen = _split(given, columns)
        calls = [fn(**arguments(row, completion, found), **chosen) for row, completion in enumerate(completions)]
        return [_verl_verdict(name, row, value) for row, value in enumerate(await asyncio.gather(*calls))]

    return rowwise(_like(fn, async_reward if _is_async(fn) else sync_reward, signature))


def from_openrlhf(fn: Function, name: str) -> Function:
    """OpenRLHF's ``reward_func`` as a batch reward function. Raises RewardLoadError when it can't be called so."""
    settings = _settings(fn, _OPENRLHF, name)
    columns = ("prompt_text", "label", "answer")

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **given: Any,
    ) -> Any:
        found, chosen = _split(given, columns)
        rendered = found["prompt_text"] or [_prompt_text(prompt) for prompt in prompts]
        texts = [text_of(completion) for completion in completions]
        queries = [prompt + text for prompt, text in zip(rendered, texts, strict=True)]
        own, other = ([_of_row(found[name], row) for row in range(len(texts))] for name in ("label", "answer"))
        labels = [answer if label is None else label for label, answer in zip(own, other, strict=True)]
        result = fn(queries=queries, prompts=list(rendered), labels=labels, **chosen)
        return _openrlhf_scores(name, result, len(texts), log_metric) if isinstance(result, Mapping) else result

    return _like(fn, reward, _signature(("prompts", "completions"), ("log_metric", *columns), settings))


ADAPTERS: dict[str, Callable[[Function, str], Function]] = {"verl": from_verl, "openrlhf": from_openrlhf}


def adapt(prefix: str, fn: Function, name: str) -> Function:
    """``fn``, which follows the convention ``prefix`` of ``ADAPTERS``, as a function of ours."""
    return ADAPTERS[prefix](fn, name)


# --- signatures -------------------------------------------------------------------------------------------------------


def _settings(fn: Function, supplied: Sequence[str], name: str) -> list[Parameter]:
    """Its parameters beyond ``supplied``, keyword-only. Raises RewardLoadError."""
    parameters = inspect.signature(fn).parameters
    takes_all = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    absent = [] if takes_all else [word for word in supplied if word not in parameters]
    hidden = [word for word in supplied if word in parameters and parameters[word].kind is Parameter.POSITIONAL_ONLY]
    extra = [p for p in parameters.values() if p.name not in supplied and p.kind not in (2, 4)]  # *args, **kwargs
    open_ends = [p.name for p in extra if p.default is Parameter.empty]
    if absent or hidden or open_ends:
        reason = (
            f"without {', '.join(absent)}"
            if absent
            else f"where {', '.join(hidden)} can't be passed by keyword"
            if hidden
            else f"where {', '.join(open_ends)} has no default, and nothing supplies it"
        )
        raise RewardLoadError(
            f"reward {name!r}: expected def {getattr(fn, '__name__', 'fn')}({', '.join(supplied)}), got a signature "
            f"{reason}: {inspect.signature(fn)}"
        )
    return [p.replace(kind=Parameter.KEYWORD_ONLY) for p in extra]


def _signature(required: Sequence[str], columns: Sequence[str], settings: Sequence[Parameter]) -> Signature:
    plain = [Parameter(word, Parameter.POSITIONAL_OR_KEYWORD) for word in required]
    plain += [Parameter(word, Parameter.POSITIONAL_OR_KEYWORD, default=None) for word in columns]
    return Signature([*plain, *settings])


def _like(fn: Function, wrapper: Function, signature: Signature) -> Function:
    """``wrapper`` with the name, the docstring and the source of ``fn``, called as ``signature`` says."""
    wrapper = functools.update_wrapper(wrapper, fn)
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    return wrapper


def _split(given: Mapping[str, Any], columns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns, None where absent; settings) of what the platform handed over."""
    chosen = {word: value for word, value in given.items() if word not in columns}
    return {word: given.get(word) for word in columns}, chosen


def _is_async(fn: Function) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


# --- values -----------------------------------------------------------------------------------------------------------


def _of_row(column: Sequence[Any] | None, row: int) -> Any:
    return None if column is None else column[row]


def _no_turns() -> dict[str, Any]:
    """What verl's reward manager adds to ``extra_info`` of an answer in one turn."""
    return {"num_turns": None, "rollout_reward_scores": {}}


def _ground_truth(name: str, row: int, columns: Mapping[str, Any]) -> Any:
    if (truth := _of_row(columns["ground_truth"], row)) is not None:
        return truth
    struct = _of_row(columns["reward_model"], row)
    if isinstance(struct, Mapping) and "ground_truth" in struct:
        return struct["ground_truth"]
    if (truth := _of_row(columns["answer"], row)) is not None:
        return truth
    raise RewardContractError(
        f"reward {name!r}: verl's functions need a column reward_model with a `ground_truth`, or a column ground_truth "
        f"or answer; got reward_model={struct!r}"
    )


def _verl_verdict(name: str, row: int, value: Any) -> Verdict:
    """verl writes what it gets into a tensor, so a bool is 0 or 1 there; of a dict it takes ``score``."""
    rest: dict[str, Any] = {}
    if isinstance(value, Mapping):
        if "score" not in value:
            raise RewardContractError(f"reward {name!r}: expected a dict with 'score', got {sorted(value)}")
        rest = {str(key): item for key, item in value.items() if key != "score"}
        value = value["score"]
    score = _number(value)
    if score is None:
        raise RewardContractError(
            f"reward {name!r}: expected a number or a dict with a number 'score', got {value!r} "
            f"({type(value).__name__})"
        )
    numbers = {k: number for k, v in rest.items() if (number := _number(v)) is not None and math.isfinite(number)}
    texts = [f"{key}: {item}" for key, item in rest.items() if key not in numbers and item is not None]
    return Verdict(score, parts=numbers, detail="\n".join(texts))


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch; None for anything else."""
    if isinstance(value, (str, bytes)) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _prompt_text(prompt: Any) -> str:
    """Without a rendered prompt: a string as it is, of messages their contents."""
    if isinstance(prompt, str) or prompt is None:
        return prompt or ""
    return "\n".join(str(message["content"]) for message in prompt)


def _openrlhf_scores(
    name: str, result: Mapping[str, Any], num_rows: int, log_metric: Callable[[str, float], None] | None
) -> list[Verdict]:
    if "rewards" not in result:
        raise RewardContractError(f"reward {name!r}: expected a dict with 'rewards', got {sorted(result)}")
    given = {"rewards": result["rewards"], "scores": result.get("scores"), **(result.get("extra_logs") or {})}
    columns = {key: values.tolist() if hasattr(values, "tolist") else values for key, values in given.items()}
    for key, values in list(columns.items()):
        if key != "rewards" and (values is None or _number(values) is not None):
            del columns[key]
            if values is not None and log_metric is not None:
                log_metric(key, float(values))
        elif not isinstance(values, Sequence) or len(values) != num_rows:
            raise RewardContractError(f"reward {name!r}: {key}: expected {num_rows} values, one a row, got {values!r}")
    parts = {key: values for key, values in columns.items() if key != "rewards"}
    return [
        Verdict(float(score), parts={key: float(values[row]) for key, values in parts.items()})
        for row, score in enumerate(columns["rewards"])
    ]
