"""The gate of step 0: learner and engine must give the same log-probabilities for the same tokens, or the run stops.

Both sides see the tokens that the engine samples for a few prompts. In float32 the mean |difference| may be 1e-4. In
bfloat16 two right implementations differ too, so the gate measures by how much: it runs transformers' eager and SDPA
attention on the same rows and allows twice their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.rollout_fleet import RolloutFleet
from model.long_context import AS_IN_CHECKPOINT, RopeOverride
from rlplatform.roles import RunStopped
from rlplatform.seeds import request_seed
from rlplatform.types import GenerationRequest, Metrics, Prompt, RolloutBatch, RolloutGroup

NUM_PROMPTS = 16
MAX_NEW_TOKENS = 64
FLOAT32_TOLERANCE = 1e-4  # nats
REFERENCE_TIMEOUT_S = 600.0


def parity_gate(
    learner: Any, fleet: RolloutFleet, prompts: Sequence[Prompt], *, dtype: str, tolerance: float, seed: int
) -> Metrics:
    """Compare learner and engine on freshly sampled tokens.

    Args:
        learner: ``logprobs(RolloutBatch) -> float32 [T]``, at the temperature of ``fleet.sampling``.
        prompts: the first few are used.
        dtype: of the engine and of the learner's compute.
        tolerance: of the mean |difference|, in nats; 0 chooses by ``dtype``.

    Raises:
        RunStopped: they differ by more; the message is a report with the worst tokens.
    """
    sampling = replace(  # truncation and penalties change the engine's distribution, and the learner knows none of them
        fleet.sampling,
        max_new_tokens=min(fleet.sampling.max_new_tokens, MAX_NEW_TOKENS),
        temperature=fleet.sampling.temperature or 1.0,
        top_p=1.0,
        top_k=-1,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )
    requests = [
        GenerationRequest(prompt, 1, 0, index, request_seed(seed, 0, index, 1, stream="parity"))
        for index, prompt in enumerate(prompts[:NUM_PROMPTS])
    ]
    batch = rows_of(fleet.generate(requests, sampling))
    own = learner.logprobs(batch)
    difference = np.abs(own - batch.rollout_logprobs)[batch.loss_mask]
    allowed = tolerance or (
        FLOAT32_TOLERANCE
        if dtype == "float32"
        else 2 * reference_difference(fleet.model_path, batch, dtype, fleet.model.rope)
    )
    metrics: Metrics = {
        "parity/abs_logprob_diff_mean": float(difference.mean()),
        "parity/abs_logprob_diff_max": float(difference.max()),
        "parity/tolerance": allowed,
    }
    if not float(difference.mean()) <= allowed:  # NaN stops too
        raise RunStopped(_report(own, batch, metrics, dtype))
    return metrics


def rows_of(groups: Sequence[RolloutGroup]) -> RolloutBatch:
    """Prompts and completions packed end to end, with nothing to learn from.

    Raises:
        RunStopped: no rollout came back whole.
    """
    pairs = [(g.prompt, r, i) for i, g in enumerate(groups) for r in g.rollouts if len(r)]
    if not pairs:
        raise RunStopped("parity gate: every rollout was rejected (a missing logprob, or aborted requests)")
    tokens = [np.concatenate([p.token_ids, r.token_ids]) for p, r, _ in pairs]
    zeros = [np.zeros(len(p.token_ids)) for p, _, _ in pairs]
    mask = [np.concatenate([z, r.loss_mask]) for z, (_, r, _) in zip(zeros, pairs, strict=True)]
    logprobs = [np.concatenate([z, r.rollout_logprobs]) for z, (_, r, _) in zip(zeros, pairs, strict=True)]
    num_tokens = sum(len(row) for row in tokens)
    return RolloutBatch(
        token_ids=np.concatenate(tokens).astype(np.int32),
        cu_seqlens=np.cumsum([0, *(len(row) for row in tokens)]).astype(np.int32),
        loss_mask=np.concatenate(mask).astype(np.bool_),
        rollout_logprobs=np.concatenate(logprobs).astype(np.float32),
        advantages=np.zeros(num_tokens, dtype=np.float32),
        rewards=np.zeros(len(pairs), dtype=np.float32),
        group_ids=np.asarray([i for _, _, i in pairs], dtype=np.int32),
        oldest_version=int(min(r.policy_version.min() for _, r, _ in pairs)),
    )


def reference_difference(
    model_path: str, batch: RolloutBatch, dtype: str, rope: RopeOverride = AS_IN_CHECKPOINT
) -> float:
    """Mean |difference|, nats a token, between transformers' eager and SDPA attention on the rows of ``batch``."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(_reference_difference)
    options = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    return ray.get(task.options(**options).remote(model_path, batch, dtype, rope), timeout=REFERENCE_TIMEOUT_S)


def _reference_difference(model_path: str, batch: RolloutBatch, dtype: str, rope: RopeOverride) -> float:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_path)
    for key, value in rope.changes(config.to_dict()).items():
        setattr(config, key, value)
    sides: list[np.ndarray] = []
    for attention in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(
            model_path, config=config, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
        rows: list[np.ndarray] = []
        with torch.inference_mode():
            for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
                ids = torch.from_numpy(batch.token_ids[start:end].astype(np.int64))
                logprobs = torch.log_softmax(model(ids[None]).logits[0, :-1].float(), dim=-1)
                picked = logprobs.gather(1, ids[1:, None])[:, 0].numpy()
                rows.append(picked[batch.loss_mask[start + 1 : end]])
        sides.append(np.concatenate(rows))
    return float(np.abs(sides[0] - sides[1]).mean())


def _report(own: np.ndarray, batch: RolloutBatch, metrics: Metrics, dtype: str) -> str:
    difference = np.where(batch.loss_mask, np.abs(own - batch.rollout_logprobs), -1.0)
    lines = [
        f"parity gate: learner and engine disagree on the same tokens in {dtype}: mean |difference| "
        f"{metrics['parity/abs_logprob_diff_mean']:.3g}, max {metrics['parity/abs_logprob_diff_max']:.3g} nats, "
        f"allowed mean {metrics['parity/tolerance']:.3g} (publish.parity_tolerance).",
        "worst tokens: row, place in the row, token id, engine, learner",
    ]
    for place in np.argsort(-np.nan_to_num(difference, nan=np.inf))[:10]:
        row = int(np.searchsorted(batch.cu_seqlens, place, side="right")) - 1
        lines.append(
            f"  {row:4d} {place - batch.cu_seqlens[row]:6d} {batch.token_ids[place]:8d} "
            f"{batch.rollout_logprobs[place]:10.5f} {own[place]:10.5f}"
        )
    return "\n".join([*lines, "Likely causes: another temperature, RoPE scaling, or weights that never arrived."])
