"""A reward model: the backbone of any policy under a linear head that scores chosen positions.

    model = load_reward_model("path/to/model")                    # a policy's folder: the head is new; ours: as saved
    scores = model(token_ids, positions, cu_seqlens, scored)      # float32 [N], packed rows, no padding
    scores = model(*pack_rows([ids, ids]))                        # each row at its last token

Rows are packed end to end and attention stays within a row, so a score depends on nothing but its own conversation.
A saved folder holds the backbone under transformers' names and ``score.weight``: ``AutoModelForSequenceClassification``
loads it and gives the same numbers, as long as the pad token is none of the conversation's last one. That is why the
folder's pad token is another one where the policy pads with the token that ends a turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from model.checkpointing import CHECKPOINTING
from model.config import DENSE, MOE, Qwen3Config, unsupported_reason
from model.folder import WeightFiles, local_folder, read_config, some, write_folder
from model.hf import DTYPES, fill, load_policy
from model.long_context import AS_IN_CHECKPOINT, RopeOverride
from model.moe import RouterRecord
from model.qwen3 import Qwen3

if TYPE_CHECKING:
    from model.transformers_lm import PackedCausalLM

SETTINGS = "reward_model"  # key of config.json: how a conversation was written for this model
HEAD = "score."  # prefix of the head's tensors, as in transformers


class ScoreHead(nn.Linear):
    """float32 [N] from hidden states [N, H]; computed in float32 whatever the parameters are kept in."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(hidden.float(), self.weight.float(), bias)[:, 0]


class RewardModel(nn.Module):
    """``forward(token_ids[T], positions[T], cu_seqlens[B + 1], scored[N]) -> float32 [N]``.

    Args:
        backbone: a policy; its output matrix is taken off.
        bias: give the head one. It cancels in every difference of two scores; transformers' heads have none.
        seed: of the new head: normal with standard deviation 1 / sqrt(H + 1) (Stiennon et al. 2020, arXiv 2009.01325).
        settings: kept in the saved folder (``read_settings``).
    """

    def __init__(
        self, backbone: Qwen3 | PackedCausalLM, *, bias: bool = False, seed: int = 0, settings: Mapping[str, Any] = {}
    ) -> None:
        super().__init__()
        _drop_output_matrix(backbone)
        self.backbone = backbone
        self.source = backbone.source
        self.settings = dict(settings)
        hidden = int(backbone.config.hidden_size)
        like = next(backbone.parameters())
        self.score = ScoreHead(hidden, 1, bias=bias, device=like.device, dtype=like.dtype)
        if not like.is_meta:
            with torch.no_grad():
                drawn = torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed)) / (hidden + 1) ** 0.5
                self.score.weight.copy_(drawn)
                if self.score.bias is not None:
                    self.score.bias.zero_()

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cu_seqlens: torch.Tensor,
        scored: torch.Tensor,
        *,
        router: RouterRecord | None = None,
    ) -> torch.Tensor:
        """Scores of the positions ``scored`` (int64 [N]); the rest as in ``Qwen3.forward``."""
        routing = {} if router is None else {"router": router}
        hidden = self.backbone(token_ids, positions, cu_seqlens, **routing)
        scores: torch.Tensor = self.score(hidden.index_select(0, scored))
        return scores

    def compile_layers(self) -> None:
        if not isinstance(self.backbone, Qwen3):
            raise ValueError(f"compile: expected a native backbone (qwen3, qwen3_moe), got {type(self.backbone)}")
        self.backbone.compile_layers()

    # --- the engine's view (actors/engine.py) ---------------------------------------------------------------------

    @property
    def config(self) -> Any:
        return self.backbone.config

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under transformers' names, each once."""
        yield from self.backbone.hf_named_parameters()
        for name, parameter in self.score.named_parameters():
            yield f"{HEAD}{name}", parameter

    def to_checkpoint(self, state: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """``state`` under the names of the checkpoint file."""
        given = dict(state)
        head = {name: tensor for name, tensor in given.items() if name.startswith(HEAD)}
        rest = [(name, tensor) for name, tensor in given.items() if name not in head]
        return {**self.backbone.to_checkpoint(rest), **head}

    def save_pretrained(self, folder: str | Path, state: Mapping[str, torch.Tensor]) -> None:
        """A Hugging Face folder: ``state`` (checkpoint names), config, tokenizer with a pad token of its own."""
        if isinstance(self.backbone, Qwen3):
            values = self.backbone.config.to_hf()
        else:
            values = json.loads(self.backbone.config.to_json_string())
        values |= {
            "architectures": _classifier(str(values["model_type"])) if self.score.bias is None else [],
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "problem_type": "regression",
            "tie_word_embeddings": True,  # there is no output matrix
            SETTINGS: {**self.settings, "bias": self.score.bias is not None},
        }
        tokenizer, changed = _tokenizer_with_pad(self.source)
        if tokenizer is not None:
            values["pad_token_id"] = tokenizer.pad_token_id
        write_folder(values, state, folder, source=self.source)
        if changed:
            tokenizer.save_pretrained(str(folder))


def _drop_output_matrix(policy: Qwen3 | PackedCausalLM) -> None:
    if isinstance(policy, Qwen3):
        if hasattr(policy, "lm_head"):
            del policy.lm_head
        return
    head = policy.hf.get_output_embeddings()
    for name, module in policy.hf.named_modules():
        if module is head:
            policy.hf.set_submodule(name, nn.Identity())
            return


def _classifier(model_type: str) -> list[str]:
    """transformers' class of this architecture with a head of one score, if it has one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    return [CLASSES[model_type]] if model_type in CLASSES else []


def _tokenizer_with_pad(source: str) -> tuple[Any, bool]:
    """The tokenizer of ``source``, padding with a token that ends no turn, and whether its pad token had to change.

    (None, False) where ``source`` has no tokenizer.

    transformers scores the last token that is not the pad token: were that the token that ends a turn, it would score
    the one before.
    """
    from model.tokenizer import TokenizerError, load_tokenizer
    from model.turns import Conversation

    try:
        tokenizer = load_tokenizer(source)
    except TokenizerError:
        return None, False
    ends = {tokenizer.eos_token}
    if tokenizer.chat_template:
        ends.add(Conversation(tokenizer, [{"role": "user", "content": "x"}]).end)
    changed = tokenizer.pad_token is None or tokenizer.pad_token in ends
    if changed:
        special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
        others = [token for token in special if token not in ends]
        tokenizer.pad_token = others[0] if others else None  # without one transformers refuses batches: never wrong
    return tokenizer, changed


# --- loading --------------------------------------------------------------------------------------------------------


def read_settings(path: str) -> dict[str, Any]:
    """What a saved reward model says about itself; empty for a policy's folder. Errors as in ``read_config``."""
    return dict(read_config(path).get(SETTINGS) or {})


def is_reward_model(path: str) -> bool:
    return SETTINGS in read_config(path)


def load_reward_model(
    path: str,
    *,
    dtype: str = "float32",
    activation_checkpointing: CHECKPOINTING = "none",
    trust_remote_code: bool = False,
    rope: RopeOverride = AS_IN_CHECKPOINT,
    bias: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> RewardModel:
    """The reward model of a saved folder, or a new head (``bias``, ``seed``) on the policy of a folder or hub id.

    ``settings`` replace those of the folder. Other arguments and errors as in ``model.hf.load_policy``.

    Raises:
        ValueError: tensors are missing, in surplus or of another shape.
    """
    values = read_config(path)
    common: dict[str, Any] = {"activation_checkpointing": activation_checkpointing, "rope": rope}
    if SETTINGS not in values:
        policy = load_policy(path, dtype=dtype, trust_remote_code=trust_remote_code, **common)
        return RewardModel(policy, bias=bias, seed=seed, settings=settings or {})
    native = values.get("model_type") in (DENSE, MOE) and not (unsupported_reason(values) or "auto_map" in values)
    files = _BackboneFiles(path)
    if native:
        config = Qwen3Config.from_hf(rope.apply(values))
        with torch.device("meta"):
            policy = Qwen3(config, source=str(path), activation_checkpointing=activation_checkpointing)
        policy = policy.to(DTYPES[dtype])
        fill(policy, files)
    else:
        policy = load_policy(path, dtype=dtype, trust_remote_code=trust_remote_code, **common)
    model = RewardModel(policy, bias="bias" in files.head, settings=values[SETTINGS] if settings is None else settings)
    if not native:
        _check_names(model, files)
    model.score.load_state_dict(files.head)
    return model


class _BackboneFiles(WeightFiles):
    """The weight files of a reward model without the head's tensors, which are in ``head``."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.head: dict[str, torch.Tensor] = {}
        for file, names in self._files.items():
            with safe_open(file, framework="pt") as tensors:
                for name in [name for name in names if name.startswith(HEAD)]:
                    self.head[name.removeprefix(HEAD)] = tensors.get_tensor(name).clone()
                    names.remove(name)
                    del self.shapes[name]
        if "weight" not in self.head:
            raise ValueError(f"{path}: config.json says that it is a reward model, the weights have no {HEAD}weight")


def _check_names(model: RewardModel, files: _BackboneFiles) -> None:
    """transformers leaves a tensor that it does not find at random values, with a line in a log."""
    wanted = model.backbone.to_checkpoint((name, p.detach()) for name, p in model.backbone.hf_named_parameters())
    missing, surplus = sorted(wanted.keys() - files.shapes.keys()), sorted(files.shapes.keys() - wanted.keys())
    if missing or surplus:
        raise ValueError(
            f"{files.path}: the weights do not fit config.json (missing: {some(missing) or 'none'}; not in the model: "
            f"{some(surplus) or 'none'})"
        )


def weights_hash(path: str) -> str:
    """12 hexadecimal digits that change with any byte of the folder's weights or config.json: a grader's version."""
    folder = local_folder(path, ["*.safetensors", "config.json"])
    digest = hashlib.blake2b(digest_size=6)
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        digest.update(file.name.encode())
        with open(file, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# --- scoring --------------------------------------------------------------------------------------------------------


def pack_rows(
    rows: Sequence[np.ndarray], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token_ids, positions, cu_seqlens, scored) of rows end to end; ``scored`` is the last token of each."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if not len(lengths) or not lengths.all():
        raise ValueError(f"expected at least one row and none empty, got lengths {lengths.tolist()}")
    ends = np.cumsum(lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return (
        torch.as_tensor(np.concatenate(rows), dtype=torch.int64, device=device),
        torch.as_tensor(positions, dtype=torch.int64, device=device),
        torch.as_tensor(np.concatenate(([0], ends)), dtype=torch.int32, device=device),
        torch.as_tensor(ends - 1, dtype=torch.int64, device=device),
    )


@torch.no_grad()
def score_padded(model: RewardModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """float32 [B] for callers that pad: int64 [B, L] and the mask of real tokens (1), on either side.

    The rows are packed by the mask alone: what stands under a 0 is never read, so no pad id means anything.

    Raises:
        ValueError: a row whose real tokens have a hole, or that has none.
    """
    mask = attention_mask.bool()
    for row, real in enumerate(mask.cpu().numpy()):
        places = np.flatnonzero(real)
        if not len(places) or places[-1] - places[0] + 1 != len(places):
            raise ValueError(f"row {row}: expected its real tokens side by side, got the mask {real.astype(int)}")
    rows = [ids[real].cpu().numpy() for ids, real in zip(input_ids, mask, strict=True)]
    scores: torch.Tensor = model(*pack_rows(rows, input_ids.device))
    return scores
