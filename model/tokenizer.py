"""A byte-level BPE tokenizer with Qwen3's pre-tokeniser, normaliser and 26 added tokens.

Ids: the BPE vocabulary first (256 bytes, then one id a merge), the added tokens after it, in Qwen3's order. Digits are
split one by one by the pre-tokeniser. Text is NFC-normalised: text in another form does not come back unchanged.
A trained folder is an ordinary Hugging Face tokenizer folder; AutoTokenizer and vLLM load it. ``load_tokenizer`` loads
it too, and Qwen3's own, and any other model's.
"""

from __future__ import annotations

import json
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


# --- loading --------------------------------------------------------------------------------------------------------


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded or is not what it looks like; the message says what was expected and found."""


def load_tokenizer(path_or_id: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub id, checked.

    A folder may be a model's, one that ``train_bpe`` wrote, or hold ``tokenizer.json`` alone. A tokenizer that looks
    like Qwen3's (``looks_like_qwen3``) must have its 26 added tokens, with their order, flags and ids right behind the
    vocabulary; where its files name no eos, pad or chat template it gets Qwen3's. Every other tokenizer is returned as
    it is.

    Raises:
        TokenizerError: no such folder, no tokenizer in it, files that do not load, or added tokens that are not
            Qwen3's where the rest is.
    """
    from transformers import AutoTokenizer

    folder = Path(path_or_id)
    name = str(path_or_id)
    if folder.is_dir():
        if not trust_remote_code:  # code of the folder's own may keep its vocabulary in any file
            _check_folder(folder)
    elif folder.exists():
        raise TokenizerError(f"tokenizer {name!r}: expected a folder with tokenizer.json or a hub id, got a file")
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise TokenizerError(f"tokenizer {name!r}: no such folder, and not a hub id (owner/name)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        what = "its files do not load" if folder.is_dir() else "no such folder here, and from the hub it did not load"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(f"tokenizer {name!r}: {what}: {reason}") from error
    if looks_like_qwen3(tokenizer):
        wrong = added_token_differences(tokenizer)
        if wrong:
            shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise TokenizerError(
                f"tokenizer {name!r}: it has Qwen3's pre-tokeniser and thinking or tool tokens, but not Qwen3's "
                f"{len(ADDED_TOKENS)} added tokens: {shown}"
            )
        if tokenizer.eos_token is None:
            tokenizer.eos_token = IM_END
        if tokenizer.pad_token is None:
            tokenizer.pad_token = END_OF_TEXT
        if not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def looks_like_qwen3(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Qwen's pre-tokeniser and chat tokens, and any of the tokens that came with Qwen3's thinking and tools.

    Qwen2.5's tokenizer has the same vocabulary and none of the latter; other families have another pre-tokeniser.
    """
    added = set(tokenizer.get_added_vocab())
    new = {THINK, END_THINK, "<tool_response>", "</tool_response>"}
    if IM_START not in added or not new & added or not tokenizer.is_fast:
        return False
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    return pre_tokenizer is not None and PRETOKENIZER_PATTERN in _patterns(json.loads(pre_tokenizer.__getstate__()))


def _patterns(node: Any) -> set[str]:
    """Every regular expression in a pre-tokeniser's JSON."""
    if isinstance(node, Mapping):
        own = {str(node["Regex"])} if "Regex" in node else set()
        return own.union(*(_patterns(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_patterns(value) for value in node))
    return set()


def added_token_differences(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """How a tokenizer's added tokens differ from Qwen3's: one sentence each, empty where they are the same.

    Compared are the ids, counted from the end of the BPE vocabulary, and the flags: ``special`` decides what
    ``decode(skip_special_tokens=True)`` drops, the others how a token is found in a text. Further tokens may follow.
    """
    first = int(tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False))
    ids = tokenizer.get_added_vocab()
    flags = tokenizer.added_tokens_decoder
    wrong = []
    for expected_id, token in enumerate(ADDED_TOKENS, first):
        if token not in ids:
            wrong.append(f"{token} is missing")
            continue
        if ids[token] != expected_id:
            wrong.append(f"{token}: expected id {expected_id}, got {ids[token]}")
        expected = {"special": token in CONTROL_TOKENS, "normalized": False, "lstrip": False, "rstrip": False}
        for flag, value in (expected | {"single_word": False}).items():
            if getattr(flags[ids[token]], flag) != value:
                wrong.append(f"{token}: expected {flag}={value}, got {not value}")
    return wrong


def _check_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    known = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"}
    if names & known:
        return
    packed = "; tokenizer.json.gz is packed: gunzip it" if "tokenizer.json.gz" in names else ""
    raise TokenizerError(
        f"tokenizer {str(folder)!r}: expected tokenizer.json in the folder; files there: {sorted(names)[:10]}{packed}"
    )
