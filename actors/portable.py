"""A checkpoint that any number of ranks and any ZeRO stage continues: whole tensors under the parameters' names.

    portable.safetensors    NAME, and of trained parameters NAME/exp_avg and NAME/exp_avg_sq; float32
    engine.json             place in the schedule, steps that Adam took
    random_states.pt        of every rank; another number of ranks leaves them

DeepSpeed's own checkpoint is cut the way its engine is (``TrainEngine.save``). This one is gathered tensor by tensor
and written by rank 0 alone, so it can be written while training goes on. The same number of ranks and ZeRO stage
continue bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from actors.training_process import random_state, set_random_state
from rlplatform.roles import RunStopped

if TYPE_CHECKING:
    from torch import nn

    from actors.engine import TrainEngine

TENSORS, STATE_FILE, RANDOM_STATES = "portable.safetensors", "engine.json", "random_states.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW
COUNTERS = ("num_steps", "num_skipped", "num_skipped_in_a_row")


def gather(engine: TrainEngine) -> Callable[[Path], None]:
    """All ranks: copy what training goes on from to rank 0's memory; returns what writes it, on rank 0 only.

    The copy is whole when this returns, so the engine may step while the returned function writes.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in engine.policy.hf_named_parameters():
        for key, whole in _whole(engine, parameter).items():
            if engine.rank == 0:
                tensors[f"{name}/{key}" if key else name] = whole.detach().to("cpu", torch.float32, copy=True)
    state = {**{name: getattr(engine, name) for name in COUNTERS}, "adam_steps": _adam_steps(engine)}
    random_states: list[Any] = [None] * engine.world_size
    dist.all_gather_object(random_states, random_state())

    def write(folder: Path) -> None:
        from safetensors.torch import save_file

        if engine.rank == 0:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
            torch.save(random_states, folder / RANDOM_STATES)
            (folder / STATE_FILE).write_text(json.dumps({**state, "portable": True}))

    return write


def is_portable(folder: Path) -> bool:
    return (folder / TENSORS).is_file()


def load(engine: TrainEngine, folder: Path, *, counters: bool = True) -> None:
    """All ranks: weights, Adam moments and, unless ``counters`` is off, the place in the schedule and random states.

    Adam's own steps come either way: they are more than the schedule's where a stage took moments over.

    Raises:
        RunStopped: the checkpoint is of another model; the message names the first parameter that differs.
    """
    from safetensors import safe_open

    state = json.loads((folder / STATE_FILE).read_text())
    with safe_open(folder / TENSORS, framework="pt") as file:
        names = set(file.keys())
        named = list(engine.policy.hf_named_parameters())
        for name, parameter in named:
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            found = tuple(file.get_slice(name).get_shape()) if name in names else None
            if found != shape or (parameter.requires_grad and f"{name}/{MOMENTS[0]}" not in names):
                raise RunStopped(
                    f"the checkpoint in {folder} is of another model: expected {name} {list(shape)} with its moments, "
                    f"found {'no such tensor' if found is None else list(found)}"
                )
        _make_moments(engine)
        for name, parameter in named:
            values = {"": file.get_tensor(name)}
            if parameter.requires_grad:
                values |= {key: file.get_tensor(f"{name}/{key}") for key in MOMENTS}
            _set(engine, parameter, values)
    for master in _flat_masters(engine):
        engine.optimizer.state[master]["step"].fill_(state["adam_steps"])
    if counters:
        for name in COUNTERS:
            setattr(engine, name, state[name])
        random_states = torch.load(folder / RANDOM_STATES, weights_only=False)
        if len(random_states) == engine.world_size:
            set_random_state(random_states[engine.rank])
    dist.barrier()


# --- one parameter --------------------------------------------------------------------------------------------------


def _whole(engine: TrainEngine, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """Key ("" for the weights) -> whole float32 tensor; a collective where ZeRO cut it."""
    if engine.zero_stage == 0:
        moments = engine.optimizer.state.get(parameter, {})
        zero = torch.zeros_like(parameter, dtype=torch.float32)
        trained = {key: moments.get(key, zero) for key in MOMENTS} if parameter.requires_grad else {}
        return {"": parameter.detach(), **trained}
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not parameter.requires_grad:
        with engine.gathered(parameter):
            return {"": parameter.detach().clone()}
    _make_moments(engine)
    return {
        "": safe_get_full_fp32_param(parameter),
        **{key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS},
    }


def _set(engine: TrainEngine, parameter: nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        if engine.zero_stage == 3:
            _set_partitioned(engine, parameter, values)
            return
        parameter.copy_(values[""])
        if not parameter.requires_grad:
            return
        if engine.zero_stage == 0:
            for key in MOMENTS:
                engine.optimizer.state[parameter][key].copy_(values[key])
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        device = parameter.device
        safe_set_full_fp32_param(parameter, values[""].to(device))
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, values[key].to(device), key)


def _set_partitioned(engine: TrainEngine, parameter: nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    """ZeRO-3: the whole parameter for the forward pass, this rank's slice of the float32 master and of the moments."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if engine.rank == 0:
            parameter.copy_(values[""])
    if not parameter.requires_grad:
        return
    each = -(-parameter.ds_numel // engine.world_size)  # type: ignore[attr-defined]
    for key, value in values.items():
        padded = torch.zeros(each * engine.world_size)
        padded[: value.numel()] = value.flatten()
        mine = padded[engine.rank * each : (engine.rank + 1) * each].to(engine.device)
        if key:
            safe_set_local_optimizer_state(parameter, mine, key)
        else:
            safe_set_local_fp32_param(parameter, mine)


# --- Adam's state ---------------------------------------------------------------------------------------------------


def _flat_masters(engine: TrainEngine) -> list[Any]:
    """What AdamW updates: the parameters themselves, or ZeRO's flat float32 slices of them."""
    if engine.zero_stage == 3:
        return list(engine.zero_optimizer.fp32_partitioned_groups_flat)
    return [p for group in engine.optimizer.param_groups for p in group["params"]]


def _make_moments(engine: TrainEngine) -> None:
    """Adam makes its state in the first step; before it there are zeros, as there would be then."""
    for master in _flat_masters(engine):
        if not engine.optimizer.state.get(master):
            engine.optimizer.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                **{key: torch.zeros_like(master, dtype=torch.float32) for key in MOMENTS},
            }
    if engine.zero_stage in (1, 2):  # DeepSpeed links them once, after the first of several parameter groups
        engine.zero_optimizer._hp_optimizer_states_linked = False
        engine.zero_optimizer._lazy_init_hp_params_optimizer_state()


def _adam_steps(engine: TrainEngine) -> int:
    """Those that Adam's bias correction counts; 0 before the first."""
    return int(engine.optimizer.state.get(_flat_masters(engine)[0], {}).get("step", 0))
