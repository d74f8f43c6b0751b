"""A byte-level BPE tokenizer with Qwen3's pre-tokeniser, normaliser and 26 added tokens.

Ids: the BPE vocabulary first (256 bytes, then one id a merge), the added tokens after it, in Qwen3's order. Digits are
split one by one by the pre-tokeniser. Text is NFC-normalised: text in another form does not come back unchanged.
A trained folder is an ordinary Hugging Face tokenizer folder; AutoTokenizer and vLLM load it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.chat import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRETOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

END_OF_TEXT = "<|endoftext|>"  # joins documents; padding
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"  # ends a turn; eos
THINK, END_THINK = "<think>", "</think>"

# Dropped by decode(skip_special_tokens=True).
CONTROL_TOKENS = (
    END_OF_TEXT,
    IM_START,
    IM_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# One id each, but part of the text: decode(skip_special_tokens=True) keeps them.
TEXT_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    THINK,
    END_THINK,
)
ADDED_TOKENS = CONTROL_TOKENS + TEXT_TOKENS
NUM_BYTES = 256
MIN_VOCAB_SIZE = NUM_BYTES + len(ADDED_TOKENS)


def train_bpe(
    texts: Iterable[str], vocab_size: int, folder: str | Path, *, max_length: int = 32768
) -> PreTrainedTokenizerBase:
    """Train on ``texts`` and save to ``folder``; returns the tokenizer as loaded from there.

    ``vocab_size`` counts the bytes, the merges and the added tokens. Poor text may hold fewer pairs to merge: the
    vocabulary is then smaller, and a model may keep its embedding at ``vocab_size`` rows, as Qwen3 does. Added tokens
    inside the texts are boundaries and are not learned from. ``max_length`` is the ``model_max_length`` saved with it.
    Raises ``ValueError`` where ``vocab_size`` holds not even the bytes and the added tokens.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import AutoTokenizer, Qwen2Tokenizer

    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"train_bpe: expected vocab_size >= {MIN_VOCAB_SIZE} ({NUM_BYTES} bytes + {len(ADDED_TOKENS)} added "
            f"tokens), got {vocab_size}"
        )
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        continuing_subword_prefix="",
        end_of_word_suffix="",
    )
    bpe.train_from_iterator(_between_added_tokens(texts), trainer)
    # After the training, so that their ids follow the vocabulary as in Qwen3.
    bpe.add_tokens([AddedToken(t, normalized=False, special=t in CONTROL_TOKENS) for t in ADDED_TOKENS])

    tokenizer = Qwen2Tokenizer(
        tokenizer_object=bpe,
        unk_token=None,  # type: ignore[arg-type]
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    return AutoTokenizer.from_pretrained(str(folder))


def chat_texts(conversations: Iterable[Iterable[Mapping[str, Any]]]) -> Iterator[str]:
    """Each message as it stands in a rendered chat, role word included, for ``train_bpe``."""
    for messages in conversations:
        for message in messages:
            yield f"{IM_START}{message['role']}\n{message.get('content') or ''}{IM_END}\n"


def _between_added_tokens(texts: Iterable[str]) -> Iterator[str]:
    boundary = re.compile("|".join(re.escape(token) for token in ADDED_TOKENS))
    for text in texts:
        yield from (piece for piece in boundary.split(text) if piece)
