"""Low-rank adapters (Hu et al., arXiv 2106.09685, section 4.1) on any policy, through peft.

    add_adapters(policy, rank=8, alpha=16.0)             # W x becomes W x + alpha / rank * B (A x); only A and B train
    merged = dict(merge_adapters(state, scale=2.0))      # W + scale * B A under the names from before
    save_adapters("folder/adapter", state, policy, ...)  # for peft.PeftModel.from_pretrained(base, "folder/adapter")

Layers are wrapped in place, so the policy stays what it was to everybody else. The base is never modified: merging
makes new tensors. B starts at zero, so a fresh adapter changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

ADAPTER = "default"  # peft's name of the only adapter
BASE, LORA_A, LORA_B = "base_layer", f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight"


def linear_layers(policy: nn.Module) -> list[str]:
    """Last names of the linear layers inside the decoder's layers, e.g. ``q_proj``, in order.

    Not among them: experts, which are one tensor a layer, and the head, which is read as a matrix and never called.
    """
    names = (name for name, module in policy.named_modules() if isinstance(module, nn.Linear) and ".layers." in name)
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def check_targets(policy: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """The layers that ``add_adapters`` would wrap; a policy on the meta device will do. Errors as there."""
    if any(f".{BASE}." in name for name, _ in policy.named_parameters()):
        raise ValueError("lora: expected a policy without adapters, got one that has them")
    there = linear_layers(policy)
    wrong = [target for target in targets if target not in there]
    if wrong:
        experts = any(".experts." in name for name, _ in policy.named_parameters())
        why = " (experts are one tensor a layer, which cannot be adapted)" if experts else ""
        raise ValueError(f"lora.targets: expected some of {', '.join(there)}{why}, got {', '.join(wrong)}")
    if not there:
        raise ValueError(f"lora.rank: expected linear layers to adapt, {type(policy).__name__} has none in `layers`")
    return list(targets) or there


def add_adapters(
    policy: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """Wrap the layers named ``targets`` (default: all of ``linear_layers``) and freeze everything else.

    Equal seeds give equal adapters, on every rank. Returns the names that were wrapped.

    Raises:
        ValueError: a target that the model does not have as a linear layer, or a policy that has adapters already.
    """
    from peft import inject_adapter_in_model

    chosen = check_targets(policy, targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(rank, alpha, dropout, chosen), policy, adapter_name=ADAPTER)
    return chosen


def merge_adapters(state: Iterable[tuple[str, torch.Tensor]], scale: float) -> Iterator[tuple[str, torch.Tensor]]:
    """``state`` of a policy with adapters as that of the same policy without: W + scale * B A, rounded once.

    Tensors that no adapter touches pass as they are; the others are new. Without adapters everything passes.
    """
    tensors = dict(state)
    for name, tensor in tensors.items():
        layer, found, last = name.partition(f".{BASE}.")
        if not found:
            if not _is_adapter(name):
                yield name, tensor
        elif last == "weight":
            a, b = (tensors[f"{layer}.{part}"].float() for part in (LORA_A, LORA_B))
            yield f"{layer}.weight", (tensor.float() + (b @ a) * scale).to(tensor.dtype)
        else:
            yield f"{layer}.{last}", tensor


def save_adapters(
    folder: str | Path,
    state: Mapping[str, torch.Tensor],
    policy: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
) -> None:
    """A and B of ``state`` in peft's format: adapter_config.json and adapter_model.safetensors."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    adapters = {
        "base_model.model." + name.replace(f".{ADAPTER}.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if _is_adapter(name)
    }
    targets = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapters})
    config = _peft_config(rank, alpha, dropout, targets)
    config.base_model_name_or_path = getattr(policy, "source", "") or None
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(adapters, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _is_adapter(name: str) -> bool:
    return name.endswith((f".{LORA_A}", f".{LORA_B}"))


def _peft_config(rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> Any:
    from peft import LoraConfig

    # peft says int, and multiplies whatever it is given.
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
