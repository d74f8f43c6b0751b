"""The `judge` reward: a model scores the answer, against a reference or without. See docs/judge.md.

``judge`` asks any OpenAI-compatible endpoint; ``judge_model`` has a vLLM engine of its own in a reward actor. Both show
the same prompts (``judge_prompts``), read replies by the same rules (``judge_reading``) and take the same columns:

- ``reference``, or else ``answer``: a text, or a list of texts of which any counts. Where the rows have neither, the
  judge scores without. A reference that is there and empty is ``unparseable``.
- ``baseline``, for ``pairwise``: an answer to compare with; where there is none, the reference.

What is judged is the text after ``</think>``. No answer, an open think block or an answer that is too long score 0
without asking. The Qwen3 report names both kinds: scored by an instruct model against a reference, and without one
(arXiv:2505.09388, section 4.4). Its judge prompt is not given; ours are the project's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from rewards.base import RewardLoadError, Verdict, rowwise, served_by, signature_of
from rewards.judge_client import Endpoint, ask
from rewards.judge_prompts import JudgeSettingsError
from rewards.judge_reading import settle
from rewards.judge_rules import Rules, Usage, case_of, plan, rules_of


@rowwise
async def judge_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    reference: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    baseline: Sequence[Any] | None = None,
    prompt_text: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    *,
    base_url: str = Endpoint.base_url,
    model: str = Endpoint.model,
    api_key_env: str = Endpoint.api_key_env,
    timeout_s: float = Endpoint.timeout_s,
    max_retries: int = Endpoint.max_retries,
    cache: str = Endpoint.cache,
    extra_body: Mapping[str, Any] | None = None,
    prompt: str = Rules.prompt,
    system: str = Rules.system,
    scale: Sequence[float] = Rules.scale,
    reply_pattern: str = Rules.reply_pattern,
    pairwise: bool = Rules.pairwise,
    use_reference: bool | None = Rules.use_reference,
    votes: int = Rules.votes,
    aggregate: str = Rules.aggregate,
    temperature: float = Rules.temperature,
    max_tokens: int = Rules.max_tokens,
    seed: int = Rules.seed,
    max_answer_chars: int = Rules.max_answer_chars,
    **columns: Any,
) -> list[Verdict]:
    """A model behind an OpenAI-compatible endpoint scores the answer; ``scale`` is mapped to 0 to 1.

    The keywords after ``log_metric`` are settings, see ``Endpoint`` and ``Rules``. A reply without exactly one score in
    the agreed form is ``unparseable``, a request that ran out of time ``timeout``, any other failure ``error``.
    Parts are those of ``rewards.judge_reading.settle``.
    """
    endpoint = Endpoint(base_url, model, api_key_env, timeout_s, max_retries, cache, extra_body or {})
    rules = Rules(
        prompt, system, scale, reply_pattern, pairwise, use_reference, votes, aggregate, temperature, max_tokens, seed,
        max_answer_chars,
    )  # fmt: skip
    usage = Usage()
    rows = rows_of(len(completions), reference=reference, answer=answer, baseline=baseline)

    async def judged(row: int) -> Verdict:
        started = time.perf_counter()
        text = prompt_text[row] if prompt_text else None
        case = case_of(prompts[row], completions[row], text, rows[row], rules)
        if isinstance(case, Verdict):
            return case
        asks = plan(case, rules)
        replies = await asyncio.gather(*(ask(endpoint, rules, request) for request in asks))
        usage.add(replies)
        return replace(settle(asks, replies, rules), seconds=time.perf_counter() - started)

    verdicts = await asyncio.gather(*(judged(row) for row in range(len(completions))))
    if log_metric is not None:
        for name, value in usage.metrics().items():
            log_metric(name, value)
    return list(verdicts)


def _check_endpoint(**args: Any) -> None:
    """What is wrong with the settings of ``judge``, before any process starts: raises JudgeSettingsError."""
    rules, endpoint = rules_of(args, others=[f.name for f in fields(Endpoint)])
    Endpoint(**endpoint)
    rules.template(with_reference=bool(rules.use_reference))


judge_reward.check_settings = _check_endpoint  # type: ignore[attr-defined]
judge_reward.file_settings = ("prompt",)  # type: ignore[attr-defined]


def rows_of(num_rows: int, **columns: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Each row's columns; a column that the rows do not have is absent."""
    return [{name: values[row] for name, values in columns.items() if values is not None} for row in range(num_rows)]


@served_by("actors.judge_worker:JudgeWorker")
@rowwise
def judge_model_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    reference: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    baseline: Sequence[Any] | None = None,
    prompt_text: Sequence[str] | None = None,
    *,
    model_path: str = "",
    dtype: str = "bfloat16",
    max_model_len: int = 8192,
    kv_cache_gib: float = 1.0,
    gpu_memory_utilization: float = 0.85,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    prompt: str = Rules.prompt,
    system: str = Rules.system,
    scale: Sequence[float] = Rules.scale,
    reply_pattern: str = Rules.reply_pattern,
    pairwise: bool = Rules.pairwise,
    use_reference: bool | None = Rules.use_reference,
    votes: int = Rules.votes,
    aggregate: str = Rules.aggregate,
    temperature: float = Rules.temperature,
    max_tokens: int = Rules.max_tokens,
    seed: int = Rules.seed,
    max_answer_chars: int = Rules.max_answer_chars,
    **columns: Any,
) -> list[Verdict]:
    """``judge`` with the model in folder ``model_path``, in a vLLM engine of the reward service (actors/judge_worker).

    ``dtype``, ``max_model_len`` (tokens of prompt and reply), ``kv_cache_gib`` (on CPU) and ``gpu_memory_utilization``
    are the engine's; ``chat_template_kwargs`` go to the model's chat template, e.g. ``{enable_thinking: false}``.
    """
    raise RewardLoadError(
        "reward 'judge_model' runs in a reward service, which loads the model into an actor; without one, serve the "
        "model (`vllm serve FOLDER`) and use 'judge' with its base_url"
    )


def _check_model(**args: Any) -> None:
    """The same for ``judge_model``."""
    names = [name for name in signature_of(judge_model_reward).settings if name in args]
    rules, engine = rules_of({name: args[name] for name in names}, others=names)
    if not isinstance(engine.get("model_path"), str) or not engine["model_path"]:
        raise JudgeSettingsError("judge_model: model_path: expected the folder of an instruct model, got none")
    rules.template(with_reference=bool(rules.use_reference))


judge_model_reward.check_settings = _check_model  # type: ignore[attr-defined]
judge_model_reward.file_settings = ("prompt",)  # type: ignore[attr-defined]


def warm_up() -> None:
    """Import the client once for all workers."""
    import openai  # noqa: F401
