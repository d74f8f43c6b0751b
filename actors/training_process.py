"""A training process around its engine: environment, process group, DeepSpeed's chatter, random state."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rlplatform.paths import prepare_deepspeed, torch_extensions_dir

log = logging.getLogger(__name__)


def process_environment(*, use_gpu: bool, num_threads: int = 1) -> dict[str, str]:
    """What a training process needs in its environment before it imports torch or DeepSpeed."""
    env = {
        "TORCH_EXTENSIONS_DIR": str(torch_extensions_dir()),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not use_gpu:
        env["DS_ACCELERATOR"] = "cpu"
        # More threads than cores of its own spin against the other processes: 17 to 24 times slower.
        env["OMP_NUM_THREADS"] = str(num_threads)
    return env


def init_process_group(rank: int, world_size: int, addr: str, port: int, *, timeout_s: float, use_gpu: bool) -> None:
    """Join the training process group of a plain actor: NCCL on GPU, gloo on CPU. No launcher, no MPI."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",  # Ray shows a process only the GPU it was given
        WORLD_SIZE=str(world_size),
        MASTER_ADDR=addr,
        MASTER_PORT=str(port),
    )
    with quiet_deepspeed():
        import deepspeed

        deepspeed.init_distributed(
            dist_backend="nccl" if use_gpu else "gloo",
            auto_mpi_discovery=False,
            init_method=f"tcp://{addr}:{port}",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )


@contextlib.contextmanager
def quiet_deepspeed() -> Iterator[None]:
    """DeepSpeed's prints and its own stdout handler become records of this module's logger."""
    prepare_deepspeed()
    chatter = io.StringIO()
    with contextlib.redirect_stdout(chatter):
        from deepspeed.utils import logger

        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # ZeRO-3's collectives
        yield
    for line in chatter.getvalue().splitlines():
        log.debug("deepspeed: %s", line)


def random_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
