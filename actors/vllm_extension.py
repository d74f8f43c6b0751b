"""What runs inside vLLM's own worker process: receive weights, reload them, and say what the engine computes with.

vLLM's CPU backend multiplies with packed copies of the weights, and a reload leaves some of them stale without a word:
the head that is tied to the embedding, and the experts of a mixture. The cures are below; ``verify`` would see a copy
that they missed, because it reads the packed copies themselves, through the very calls that the forward pass makes.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from actors import transports
from actors.payload import PublishReport, WeightManifest, corrupted, unflatten
from actors.vllm_generators import keep_generators

# Warns on every reload of modules that have no weights of their own; ``verify`` says which tensor is wrong.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
keep_generators()  # vLLM imports this module in every process that holds a part of an engine

PROBE_COLUMNS = 7  # columns of each matrix that a cheap verification compares exactly; they rotate
CHUNK_COLUMNS = 256  # columns that a full verification unpacks at a time
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


class WeightExtension:
    """Mixed into vLLM's worker by ``worker_extension_cls``; called through ``collective_rpc`` on every rank."""

    model_runner: Any
    rank: int

    def rendezvous_name(self) -> str:
        """What this engine's temporary files are called; "" where it has none."""
        name = os.environ.get("VLLM_DIST_IDENT", "")
        return name if name.startswith("vllm_dist_") else ""

    def join_group(self, host: str, port: int, first_rank: int, size: int, backend: str, timeout_s: float) -> None:
        transports.join(host, port, first_rank + self.rank, size, backend, timeout_s)

    def receive_broadcast(self, manifest: WeightManifest, full: bool, round_: int) -> PublishReport:
        """``receive_weights``, with the bytes from the process group."""
        return self.receive_weights(manifest, transports.receive(manifest), full, round_)

    def receive_weights(self, manifest: WeightManifest, flat: np.ndarray, full: bool, round_: int) -> PublishReport:
        """Take a payload, and compare first what arrived, then what the engine computes with.

        Args:
            full: compare every value; otherwise rotating columns and a random direction of every matrix.
            round_: number of this publish, which picks the columns.
        """
        damaged = corrupted(manifest, flat)
        if damaged:
            return PublishReport(tuple(f"{name} (damaged on the way)" for name in damaged))
        weights = dict(unflatten(manifest, flat))
        model = self.model_runner.get_model()
        plan = plan_verification(model, weights)
        if plan.misfits:
            return PublishReport(plan.misfits)  # before the reload, which would leave a half-loaded engine
        forget_packed_experts(model)
        self.model_runner.reload_weights(weights_iterator=iter(weights.items()), is_checkpoint_format=True)
        repack_tied_head(model)
        return verify(plan, full=full, round_=round_)


# --- cures ----------------------------------------------------------------------------------------------------------


def forget_packed_experts(model: nn.Module) -> None:
    """Before a reload on CPU: with its kernel still there, vLLM skips packing the new experts."""
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod) and _on_cpu(model):
            method.moe_kernel = None


def repack_tied_head(model: nn.Module) -> None:
    """After a reload on CPU: the embedding was packed anew, the head that shares its weight was not."""
    head = tied_head(model)
    for embedding in model.modules():
        if head is not None and hasattr(head, "cpu_linear") and _embeds(embedding, head):
            head.cpu_linear = embedding.cpu_linear


def _on_cpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cpu"


# --- where a checkpoint tensor lives in the engine --------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """One checkpoint tensor's part of one engine parameter, of this rank."""

    name: str  # in the checkpoint
    module: nn.Module
    parameter: str
    rows: slice  # of the engine's parameter
    expected: torch.Tensor  # this rank's part of the checkpoint tensor


@dataclass(frozen=True)
class _Experts:
    """The experts of one layer."""

    module: Any  # holds w13_weight and w2_weight
    names: Mapping[int, Mapping[str, str]]  # expert -> gate | up | down -> name in the checkpoint


@dataclass(frozen=True)
class Plan:
    """Every tensor of a payload with its place in the engine, and every parameter of the engine with its tensors."""

    weights: Mapping[str, torch.Tensor]
    places: list[list[_Place]]  # by engine parameter
    experts: list[_Experts]  # by layer
    misfits: tuple[str, ...]  # sent without a place, or missing


def plan_verification(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Plan:
    """Find the place of every tensor; nothing is loaded or compared yet."""
    modules = dict(model.named_modules())
    packed = getattr(model, "packed_modules_mapping", {})
    parent = {child: (fused, index) for fused, children in packed.items() for index, child in enumerate(children)}
    tied = tied_head(model)
    by_parameter: dict[tuple[int, str], list[_Place]] = defaultdict(list)
    by_layer: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    misfits: dict[str, None] = {}  # an ordered set
    for name, tensor in weights.items():
        if expert := EXPERT.fullmatch(name):
            by_layer[expert[1]][int(expert[2])][expert[3]] = name
            continue
        path, _, parameter = name.rpartition(".")
        before, _, leaf = path.rpartition(".")
        index = 0
        if path not in modules and leaf in parent:
            fused, index = parent[leaf]
            path = f"{before}.{fused}"
            siblings = [f"{before}.{child}.{parameter}" for child in packed[fused]]
            misfits |= {f"{sibling} (never sent)": None for sibling in siblings if sibling not in weights}
        module = modules.get(path)
        if module is None or not hasattr(module, parameter):
            misfits[f"{name} (the engine has no place for it)"] = None
            continue
        if module is tied:
            continue  # a tied head takes the embedding, whatever else the checkpoint holds
        rows, expected = _part(module, index, tensor)
        by_parameter[id(module), parameter].append(_Place(name, module, parameter, rows, expected))
        if tied is not None and _embeds(module, tied):
            head = _Place(f"lm_head.weight (tied to {name})", tied, "weight", rows, expected)
            by_parameter[id(tied), "weight"].append(head)
    experts = list(_plan_experts(model, by_layer, misfits))
    for path, module in modules.items():
        for parameter, _ in module.named_parameters(recurse=False):
            if (id(module), parameter) not in by_parameter and parameter not in ("w13_weight", "w2_weight"):
                misfits.setdefault(f"{path}.{parameter} (never sent)")
    return Plan(weights, list(by_parameter.values()), experts, tuple(misfits))


def _plan_experts(
    model: nn.Module, by_layer: dict[str, dict[int, dict[str, str]]], misfits: dict[str, None]
) -> Iterator[_Experts]:
    for path, module in model.named_modules():
        if hasattr(module, "w13_weight"):
            prefix = path[: path.index(".experts") + len(".experts")]
            names = by_layer.pop(prefix, {})
            wanted = [(n, kind) for n in range(module.moe_config.num_experts) for kind in ("gate", "up", "down")]
            for number, kind in wanted:
                if kind not in names.get(number, {}):
                    misfits[f"{prefix}.{number}.{kind}_proj.weight (never sent)"] = None
            yield _Experts(module, names)
    for left in by_layer.values():
        misfits |= {f"{n} (the engine has no place for it)": None for kinds in left.values() for n in kinds.values()}


def tied_head(model: nn.Module) -> ParallelLMHead | None:
    """The head that multiplies with the embedding's weight, if there is one."""
    heads = [m for m in model.modules() if isinstance(m, ParallelLMHead)]
    return next((head for head in heads if any(_embeds(m, head) for m in model.modules())), None)


def _embeds(module: nn.Module, head: ParallelLMHead) -> bool:
    return type(module) is VocabParallelEmbedding and module.weight is head.weight


def _part(module: nn.Module, index: int, tensor: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """Rows of the module's parameter that ``tensor`` fills on this rank, and the part of ``tensor`` that fills them."""
    rank, size = getattr(module, "tp_rank", 0), getattr(module, "tp_size", 1)
    if isinstance(module, VocabParallelEmbedding):
        own = module.shard_indices
        part = tensor[own.org_vocab_start_index : own.org_vocab_end_index]
        return slice(0, len(part)), part
    if isinstance(module, QKVParallelLinear):
        head, v_head = module.head_size, module.v_head_size
        sizes = [module.num_heads * head, module.num_kv_heads * head, module.num_kv_heads * v_head]
        source = rank if index == 0 else rank // module.num_kv_head_replicas
    elif isinstance(module, MergedColumnParallelLinear):
        sizes = [n // size for n in module.output_sizes]
        source = rank
    elif isinstance(module, ColumnParallelLinear):
        sizes, source = [tensor.shape[0] // size], rank
    elif isinstance(module, RowParallelLinear) and tensor.ndim == 2:
        width = tensor.shape[1] // size
        return slice(0, tensor.shape[0]), tensor[:, rank * width : (rank + 1) * width]
    else:
        return slice(0, tensor.shape[0]), tensor
    start = sum(sizes[:index])
    return slice(start, start + sizes[index]), tensor[source * sizes[index] : (source + 1) * sizes[index]]


# --- verification ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def verify(plan: Plan, *, full: bool, round_: int) -> PublishReport:
    """Compare what the engine computes with and what was sent, tensor by tensor."""
    wrong: list[str] = []
    num_exact = num_probed = 0
    for places in plan.places:
        bad, exact = _compare(places, full=full, round_=round_)
        wrong += bad
        num_exact += len(places) if exact else 0
        num_probed += 0 if exact else len(places)
    for layer in plan.experts:
        numbers = sorted(layer.names) if full else [round_ % len(layer.names)]  # without `full` one expert, in turn
        for number in numbers:
            names = layer.names[number]
            up_ok, down_ok = _expert_equal(layer.module, number, {k: plan.weights[name] for k, name in names.items()})
            wrong += [names[kind] for kind, ok in (("gate", up_ok), ("up", up_ok), ("down", down_ok)) if not ok]
            num_exact += 3 if full else 0
            num_probed += 0 if full else 3
    return PublishReport(tuple(wrong), num_exact, num_probed)


def _compare(places: list[_Place], *, full: bool, round_: int) -> tuple[list[str], bool]:
    """Names of the tensors of one engine parameter that differ, and whether every value was compared."""
    module, parameter = places[0].module, places[0].parameter
    packed = parameter == "weight" and hasattr(module, "cpu_linear") and type(module) is not VocabParallelEmbedding
    if not packed:
        value = getattr(module, parameter)
        return [p.name for p in places if not _equal(value[p.rows], p.expected)], True
    num_columns = places[0].expected.shape[1]
    wrong: set[str] = set()
    if not full:
        wrong = _probe(places, num_columns, round_)
    else:
        for first in range(0, num_columns, CHUNK_COLUMNS):
            columns = torch.arange(first, min(first + CHUNK_COLUMNS, num_columns))
            unpacked = _product(module, nn.functional.one_hot(columns, num_columns))  # [chunk, rows]: exact columns
            wrong |= {p.name for p in places if not _equal(unpacked[:, p.rows].T, p.expected[:, columns])}
    return [p.name for p in places if p.name in wrong], full


def _probe(places: list[_Place], num_columns: int, round_: int) -> set[str]:
    """A few columns exactly, and all columns at once in a random direction up to rounding: one product."""
    module = places[0].module
    dtype = _dtype(module)
    columns = (round_ * PROBE_COLUMNS + torch.arange(min(PROBE_COLUMNS, num_columns))) % num_columns
    direction = torch.randn(1, num_columns, generator=torch.Generator().manual_seed(round_)).to(dtype)
    product = _product(module, torch.cat([nn.functional.one_hot(columns, num_columns).to(dtype), direction]))
    wrong: set[str] = set()
    for place in places:
        expected = place.expected.to(dtype)
        along = (expected @ direction[0]).to(torch.float32)
        # Rows of a weight matrix are of one size, so the typical product stands for the rounding of each.
        tolerance = (3e-5 if dtype == torch.float32 else 3e-2) * along.square().mean().sqrt()
        close = (product[-1, place.rows].to(torch.float32) - along).abs() <= tolerance  # False for NaN too
        if not (close.all() and _equal(product[:-1, place.rows].T, expected[:, columns])):
            wrong.add(place.name)
    return wrong


def _product(module: Any, x: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` by the call that the forward pass makes, without the bias."""
    return module.cpu_linear(x.to(_dtype(module)), module.weight, None)


def _dtype(module: Any) -> torch.dtype:
    return getattr(module, "params_dtype", None) or module.weight.dtype


def _equal(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return value.shape == expected.shape and torch.equal(value, expected.to(device=value.device, dtype=value.dtype))


def _expert_equal(module: Any, number: int, matrices: Mapping[str, torch.Tensor]) -> tuple[bool, bool]:
    """Is the packed (gate, up) matrix of one expert what packing the sent ones gives, and the down matrix?"""
    parallel = module.moe_config.moe_parallel_config
    rank, size = parallel.tp_rank, parallel.tp_size
    num_local = module.w13_weight.shape[0]
    local = number if module.expert_map is None else int(module.expert_map[number])
    if not 0 <= local < num_local:
        return True, True  # another rank holds it
    gate, up = (m.chunk(size, dim=0)[rank] for m in (matrices["gate"], matrices["up"]))
    down = matrices["down"].chunk(size, dim=1)[rank]
    padded = module.w13_weight.shape[1] // 2
    w13 = torch.zeros(1, 2 * padded, gate.shape[1], dtype=module.w13_weight.dtype)
    w13[0, : len(gate)], w13[0, padded : padded + len(up)] = gate, up
    w2 = torch.zeros(1, down.shape[0], padded, dtype=module.w2_weight.dtype)
    w2[0, :, : down.shape[1]] = down
    if module.w13_weight.device.type == "cpu":
        from vllm._custom_ops import cpu_prepack_moe_weight

        isa = module.quant_method.moe_kernel.fused_experts.isa
        w13, w2 = cpu_prepack_moe_weight(w13, isa), cpu_prepack_moe_weight(w2, isa)
    return _equal(module.w13_weight[local], w13[0]), _equal(module.w2_weight[local], w2[0])
