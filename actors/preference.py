"""The `preference` reward: the score that a trained reward model gives a conversation (docs/preference.md).

    reward:
      functions:
        preference: {weight: 1.0, args: {model: runs/preference/reward_model/model}}

``preference_reward`` loads the model in the process that grades and runs anywhere. A reward service starts a fleet of
``actors.preference_worker.PreferenceWorker`` instead. Both are ``PreferenceScorer``, which renders as training did.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from model.messages import RenderError
from rewards.base import ERROR, TIMEOUT, Verdict, served_by
from rewards.format import prompt_opens_block
from rlplatform.preference_text import RewardText
from rlplatform.sharding import micro_batches


def check_settings(
    model: str = "",
    thoughts: str = "",
    max_tokens: int = 0,
    max_tokens_per_batch: int = 8192,
    dtype: str = "float32",
) -> RewardText:
    """How conversations will be written with these settings of ``PreferenceScorer``; no weights are read.

    Raises:
        ValueError: no reward model there, or a setting that does not fit it.
    """
    from model.hf import DTYPES
    from model.reward_head import SETTINGS, read_config

    if not model:
        raise ValueError("preference: expected args: {model: FOLDER}, the folder of a trained reward model, got none")
    try:
        values = read_config(model)
    except OSError as error:  # no such folder, or a hub that cannot be asked
        raise ValueError(f"preference: model: {error}") from error
    if SETTINGS not in values:
        raise ValueError(
            f"preference: expected a reward model in {model!r}, got a model without a scalar head; train one with "
            "kind: preference (docs/preference.md)"
        )
    if max_tokens_per_batch < 1:
        raise ValueError(f"preference: max_tokens_per_batch: expected >= 1, got {max_tokens_per_batch}")
    if dtype not in DTYPES:
        raise ValueError(f"preference: dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    changes: dict[str, Any] = {k: v for k, v in (("thoughts", thoughts), ("max_tokens", max_tokens)) if v}
    text = replace(RewardText.of(values[SETTINGS]), **changes)
    longest = values.get("max_position_embeddings")
    if longest and text.max_tokens > longest:
        raise ValueError(f"preference: max_tokens={text.max_tokens}: expected at most {longest}, the model's positions")
    return text


class PreferenceScorer:
    """A reward model in this process.

    Args:
        model: the folder of a trained reward model, or its hub id.
        thoughts, max_tokens: instead of what the model was trained with; "" and 0 keep that.
        max_tokens_per_batch: packed tokens of one forward pass.
        dtype: ``float32`` or ``bfloat16``.
        device: where it runs.

    Raises:
        ValueError: as ``check_settings``.
    """

    def __init__(
        self,
        model: str,
        *,
        thoughts: str = "",
        max_tokens: int = 0,
        max_tokens_per_batch: int = 8192,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        from model.reward_head import load_reward_model, weights_hash
        from model.tokenizer import load_tokenizer

        self.text = check_settings(model, thoughts, max_tokens, max_tokens_per_batch, dtype)
        self.version = f"{model} {weights_hash(model)}"
        self._model = load_reward_model(model, dtype=dtype).eval().to(device)
        self._tokenizer = load_tokenizer(model)
        self._device, self._max_tokens_per_batch = device, max_tokens_per_batch

    def verdicts(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        tools: Sequence[Any] | None = None,
        prompt_text: Sequence[str] | None = None,
        *,
        timeout_s: float = 0.0,
    ) -> list[Verdict]:
        """One verdict a row, in order. A score depends on its own row alone.

        A conversation that is too long or cannot be rendered is an ``error``, never cut. Rows that are not reached
        within ``timeout_s`` seconds a row (0 = no limit) are a ``timeout``.
        """
        began = time.perf_counter()
        found: dict[int, Verdict] = {}
        rows: dict[int, np.ndarray] = {}
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                rows[index] = self._write(
                    prompt,
                    completion,
                    tools=None if tools is None else tools[index],
                    opened=prompt_text is not None and prompt_opens_block(prompt_text[index]),
                )
            except RenderError as error:
                found[index] = Verdict(0.0, ERROR, detail=f"preference: {error}")
        places = list(rows)
        for batch in micro_batches([len(rows[place]) for place in places], self._max_tokens_per_batch):
            mine = [places[entry] for entry in batch]
            if timeout_s and time.perf_counter() - began > timeout_s * len(prompts):
                late = Verdict(
                    0.0, TIMEOUT, detail=f"preference: {len(prompts)} rows took more than {timeout_s:g} s each"
                )
                found |= dict.fromkeys(mine, late)
                continue
            started = time.perf_counter()
            scores = self._scores([rows[place] for place in mine])
            seconds = (time.perf_counter() - started) / len(mine)
            found |= {place: _verdict(score, seconds) for place, score in zip(mine, scores, strict=True)}
        return [found[index] for index in range(len(prompts))]

    def _write(self, prompt: Any, completion: Any, *, tools: Any, opened: bool) -> np.ndarray:
        written = self.text.write(self._tokenizer, prompt, completion, tools=tools, opened=opened)
        if len(written.token_ids) > self.text.max_tokens:
            raise RenderError(
                f"the conversation has {len(written.token_ids)} tokens, more than max_tokens={self.text.max_tokens}, "
                "the longest the model was trained on; shorten sampling.max_new_tokens, or raise the setting max_tokens"
            )
        return written.token_ids

    def _scores(self, rows: Sequence[np.ndarray]) -> list[float]:
        import torch

        from model.reward_head import pack_rows

        with torch.inference_mode():
            scores: list[float] = self._model(*pack_rows(rows, self._device)).tolist()
        return scores


def _verdict(score: float, seconds: float) -> Verdict:
    if not np.isfinite(score):
        return Verdict(0.0, ERROR, detail=f"preference: the model's score is {score}", seconds=seconds)
    return Verdict(score, seconds=seconds)


_scorer = functools.lru_cache(maxsize=2)(PreferenceScorer)  # of this process


@served_by("actors.preference_worker:PreferenceWorker")
def preference_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tools: Sequence[Any] | None = None,
    prompt_text: Sequence[str] | None = None,
    *,
    model: str = "",
    thoughts: str = "",
    max_tokens: int = 0,
    max_tokens_per_batch: int = 8192,
    dtype: str = "float32",
) -> list[Verdict]:
    """The reward model's score of prompt and completion: a real number; only differences within a prompt mean anything.

    Settings: ``model``, the folder of a trained reward model; ``thoughts`` (strip, keep) and ``max_tokens``, instead of
    what it was trained with; ``max_tokens_per_batch``, packed tokens of one forward pass; ``dtype``, float32 or
    bfloat16. Column ``tools`` is optional. A conversation longer than ``max_tokens`` is an ``error``, never cut.
    """
    scorer = _scorer(
        model, thoughts=thoughts, max_tokens=max_tokens, max_tokens_per_batch=max_tokens_per_batch, dtype=dtype
    )
    return scorer.verdicts(prompts, completions, tools, prompt_text)


preference_reward.check_settings = check_settings  # type: ignore[attr-defined]


def warm_up() -> None:
    """Imports that take seconds; called once, before processes are forked.

    Not the model's own modules: they load triton, which complains at the end of a process that was not a fork.
    """
    import torch  # noqa: F401
    import transformers.models.auto.tokenization_auto  # noqa: F401
