"""Tiny random models, saved with a tokenizer, and the independent reference that engines are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from model.config import Qwen3Config as NativeConfig
from model.qwen3 import Qwen3
from rlplatform.seeds import request_seed
from rlplatform.types import GenerationRequest, Prompt

VOCAB = 2048
CONFIG_EOS, GENERATION_EOS = 5, 7
SPECIAL = ["<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IM_END = SPECIAL.index("<|im_end|>")
ENDOFTEXT = SPECIAL.index("<|endoftext|>")
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "eos_token_id": CONFIG_EOS,
    "pad_token_id": 0,
}


def make_model(*, tied: bool = True, experts: int = 0, seed: int = 0) -> PreTrainedModel:
    """Random weights, three times the usual scale, so that logits are far from flat.

    ``experts`` is their width, 0 for a dense model. One that is not a multiple of 32 is padded inside the engine.
    """
    torch.manual_seed(seed)
    if experts:
        config: Any = Qwen3MoeConfig(
            **_SHAPE,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=experts,
            mlp_only_layers=[1],
            tie_word_embeddings=tied,
        )
        model: PreTrainedModel = Qwen3MoeForCausalLM(config)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**_SHAPE, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


def add_noise(model: nn.Module, seed: int, scale: float = 0.02) -> None:
    """Known noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def checkpoint_tensors(model: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Tensors under the names of a saved checkpoint, tied ones once: what a learner gathers."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def save(model: PreTrainedModel, folder: Path) -> str:
    """A folder as users have them, with a generation_config that would spoil neutral sampling."""
    model.generation_config = GenerationConfig(
        repetition_penalty=1.5, top_k=20, temperature=0.3, do_sample=True, eos_token_id=[CONFIG_EOS, GENERATION_EOS]
    )
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def make_native(*, tied: bool = True, experts: int = 0, seed: int = 0) -> Qwen3:
    """As ``make_model``, in the native implementation, experts in every layer."""
    config = NativeConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=VOCAB,
        tie_word_embeddings=tied,
        max_position_embeddings=1024,
        initializer_range=0.06,
        num_experts=8 if experts else 0,
        num_experts_per_tok=2,
        moe_intermediate_size=experts,
        extra={"eos_token_id": CONFIG_EOS, "pad_token_id": 0},
    )
    return Qwen3(config).init_weights(seed)


def save_native(policy: Qwen3, folder: Path) -> str:
    """The policy's own folder, with the tokenizer that ``save`` gives."""
    policy.save_pretrained(folder, policy.to_checkpoint(policy.hf_named_parameters()))
    save_tokenizer(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["one two three four five"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    fast.save_pretrained(folder)


def prompt(index: int, length: int = 40, seed: int = 0) -> Prompt:
    ids = np.random.default_rng([seed, index]).integers(10, 260, length).astype(np.int32)
    return Prompt(f"p{index}", ({"role": "user", "content": "?"},), ids, "?")


def requests(
    num: int, num_samples: int, *, run_seed: int = 0, length: int = 40, same_prompt: bool = False
) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt(0 if same_prompt else i, length), num_samples, 0, i, request_seed(run_seed, 0, i, num_samples)
        )
        for i in range(num)
    ]


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, row: Sequence[int] | np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """transformers' log p(row[t] | row[:t]), float32 [L], NaN at 0."""
    ids = torch.as_tensor(np.asarray(row), dtype=torch.long)
    logprobs = torch.log_softmax(model(ids[None]).logits[0, :-1].float() / temperature, dim=-1)
    picked = logprobs.gather(1, ids[1:, None])[:, 0].numpy()
    return np.concatenate([[np.nan], picked]).astype(np.float32)
