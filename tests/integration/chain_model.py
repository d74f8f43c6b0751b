"""A model whose every answer is known beforehand: the next token follows from the last one alone.

At temperature 0 it says ``<think>abc...z</think>\\n\\nABC...Z<|im_end|>``; where ``/no_think`` stands in the prompt,
``<think></think>\\n\\nABC...Z<|im_end|>``; behind the closed block of ``enable_thinking=false`` the answer alone. At
temperature 1 each letter of the answer is drawn from all 26, and Z ends it; the thought stays as it is.

Embeddings are one-hot. One attention head with equal weights everywhere adds up the underscores of the context in a
dimension of its own: that is how ``/no_think`` is seen.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase as THOUGHT
from string import ascii_uppercase as ANSWER

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from model.tokenizer import MIN_VOCAB_SIZE, train_bpe

POSITIONS = 4096
HIDDEN = 512  # one dimension a token, and one for the flag
FLAG = HIDDEN - 1
SHARP = 20.0  # weight of the one next token; the norm makes an embedding's entry sqrt(HIDDEN)


def save_chain_model(folder: Path) -> PreTrainedTokenizerBase:
    """A folder as users have them; returns its tokenizer, in which a letter and an empty line are one token each."""
    tokenizer = train_bpe(["\n\n"] * 9, MIN_VOCAB_SIZE + 1, folder, max_length=POSITIONS)
    tokenizer.eos_token = "<|endoftext|>"  # as in Qwen3's base models: only the template says what ends a turn
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, : len(tokenizer)] = torch.eye(len(tokenizer))
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, _one(tokenizer, "_")] = 1.0
        attention.o_proj.weight[FLAG, 0] = 4.0
        _follow(tokenizer, model.lm_head.weight)
    model.save_pretrained(folder)
    return tokenizer


def _follow(tokenizer: PreTrainedTokenizerBase, head: torch.Tensor) -> None:
    """``head`` float [V, H]: what follows what."""
    path = ["\n", "<think>", *THOUGHT, "</think>", "\n\n"]
    for last, following in pairwise(path):
        head[_one(tokenizer, following), _one(tokenizer, last)] = SHARP
    head[_one(tokenizer, "</think>"), _one(tokenizer, "<think>")] = 0.9 * SHARP
    head[_one(tokenizer, "</think>"), FLAG] = 0.2 * SHARP
    for last, likeliest in zip(["\n\n", *ANSWER[:-1]], ANSWER, strict=True):
        for letter in ANSWER:
            head[_one(tokenizer, letter), _one(tokenizer, last)] = SHARP + 0.05 * (letter == likeliest)
    head[_one(tokenizer, "<|im_end|>"), _one(tokenizer, ANSWER[-1])] = SHARP


def _one(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(token)
