"""What vLLM is told: its environment, its engine, how it samples, and where a completion ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Set
from typing import Any

from rlplatform.config import ModelConfig, RolloutConfig
from rlplatform.types import SamplingParams

EXTENSION = "actors.vllm_extension.WeightExtension"


def engine_env(config: RolloutConfig) -> dict[str, str]:
    """Environment of a worker process; vLLM and OpenMP read it when they are imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's own process
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # workers share the machine; Ray decides who runs where
        "VLLM_CPU_KVCACHE_SPACE": "",  # rollout.kv_cache_gib decides
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",  # idle ranks have nothing to finish
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "OMP_NUM_THREADS": str(max(1, int(config.cpus_per_worker))),
        "TOKENIZERS_PARALLELISM": "false",
    }


def engine_arguments(
    model_path: str, model: ModelConfig, config: RolloutConfig, max_model_len: int, seed: int
) -> dict[str, Any]:
    """Arguments of ``vllm.EngineArgs``."""
    from transformers import PreTrainedConfig

    values, _ = PreTrainedConfig.get_config_dict(model_path)
    changes = model.rope.changes(values)
    values = {**values, **changes}
    on_cpu = config.gpus_per_worker == 0
    arguments: dict[str, Any] = {
        "model": model_path,
        "trust_remote_code": model.trust_remote_code,
        "dtype": model.dtype,
        "max_model_len": _engine_length(values, max_model_len),
        "hf_overrides": changes,  # as the learner's positions
        "seed": seed,
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_batched_tokens,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # never the model folder's defaults
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from, temperature included
        "skip_tokenizer_init": True,  # text is decoded here, once a completion is finished
        "disable_log_stats": True,
        "worker_extension_cls": EXTENSION,
    }
    if on_cpu:
        arguments |= {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30), "block_size": 32}
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    if config.tensor_parallel_size > 1:
        arguments["distributed_executor_backend"] = "mp"
    return arguments


def engine_sampling(sampling: SamplingParams, num_samples: int, seed: int, stop_ids: Set[int]) -> Any:
    """``vllm.SamplingParams`` with every field that shapes the distribution set explicitly."""
    from vllm import SamplingParams as EngineParams
    from vllm.sampling_params import RequestOutputKind

    return EngineParams(
        n=num_samples,
        seed=seed if sampling.temperature > 0 else None,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop_token_ids=sorted({*stop_ids, *sampling.stop_token_ids}),
        logprobs=0,  # of the sampled token only
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,  # a group comes back whole
    )


def stop_ids(hf_config: Any, model_path: str, tokenizer: Any) -> frozenset[int]:
    """All ids that end a completion: of config, generation_config, tokenizer, and ``<|im_end|>`` where the template
    ends a turn with it."""
    from transformers import GenerationConfig

    found: list[Any] = [getattr(hf_config, "eos_token_id", None), tokenizer.eos_token_id]
    with contextlib.suppress(OSError):  # a folder without generation_config.json
        found.append(GenerationConfig.from_pretrained(model_path).eos_token_id)
    template = tokenizer.chat_template
    if template and "<|im_end|>" in str(template):
        found.append(tokenizer.get_vocab().get("<|im_end|>"))
    ids: set[int] = set()
    for value in found:
        ids.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return frozenset(ids)


def _engine_length(values: Mapping[str, Any], max_model_len: int) -> int:
    """One token more than asked for where the model has room, so that a full-length row can still be scored."""
    return min(max_model_len + 1, max(values.get("max_position_embeddings") or 0, max_model_len))
