"""What supervised fine-tuning and reward models do alike before their loop: in the driver, and on every rank.

driver: prepare -> rows of a kind -> fit: Ray's object store, run_on_ray_train
rank:   received -> a model, loaded with model_options -> engine_for -> pretrain/loop.py
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.train import run_on_ray_train
from rlplatform.config import ConfigError, DPOConfig, PreferenceConfig, PretrainConfig, SFTConfig
from rlplatform.runs import RunFolder, write_atomically
from rlplatform.servable import check_positions, tokenizer_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from actors.engine import HFModule, TrainEngine

LOGGER = logging.getLogger(__name__)
DROPPED_ROWS = "dropped_rows.jsonl"
GET_TIMEOUT_S = 300.0  # rows, from Ray's object store
StepConfig = SFTConfig | PreferenceConfig | DPOConfig | PretrainConfig


@dataclass(frozen=True)
class TrainingResult:
    model: Path  # the exported Hugging Face folder
    metrics_file: Path
    summary: Mapping[str, Any] = field(default_factory=dict)  # rows, dropped_rows, steps, loss, seconds, held-out ...


# --- in the driver --------------------------------------------------------------------------------------------------


def prepare(config: StepConfig) -> tuple[RunFolder, PreTrainedTokenizerBase]:
    """The run's folder, made, and the model's tokenizer.

    Raises:
        ConfigError: no model is named, its positions cannot be changed as asked, or it has no tokenizer.
    """
    model = config.model
    if not model.path:
        raise ConfigError("model.path: expected a Hugging Face folder or hub id to train, got nothing")
    check_positions(model.path, model)
    folder = RunFolder(config.run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder, tokenizer_of(model.path, trust_remote_code=model.trust_remote_code)


def write_dropped(folder: RunFolder, dropped: Sequence[Mapping[str, Any]], *, num_kept: int, why: str) -> None:
    """``dropped_rows.jsonl``, and one line in the log where there are any."""
    path = folder.path / DROPPED_ROWS
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in dropped))
    if dropped:
        LOGGER.warning("%d of %d rows %s and are left out; see %s", len(dropped), num_kept + len(dropped), why, path)


def fit(
    worker: Callable[[dict[str, Any]], dict[str, Any]],
    config: StepConfig,
    folder: RunFolder,
    *,
    rows: Any,
    heldout: Any | None,
    progress: Callable[[dict[str, Any]], None] | None,
    **settings: Any,
) -> dict[str, Any]:
    """``worker`` on every rank with what ``received`` takes apart there, and ``settings``; returns rank 0's result.

    ``rows`` and ``heldout`` travel through Ray's object store. Errors as in ``run_on_ray_train``.
    """
    import ray

    return run_on_ray_train(
        worker,
        {
            "config": config,
            "folder": str(folder.path.resolve()),
            "model_path": _absolute(config.model.path),
            "rows": ray.put(rows),
            "heldout": None if heldout is None else ray.put(heldout),
            **settings,
        },
        folder=folder,
        learner=config.learner,
        max_failures=config.max_failures,
        progress=progress,
    )


def _absolute(path: str) -> str:
    """A worker's working directory is not the driver's; a hub id stays what it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


# --- on every rank --------------------------------------------------------------------------------------------------


def received(settings: Mapping[str, Any]) -> tuple[RunFolder, Any, Any | None]:
    """The run's folder, the rows, and the held-out rows or None, of the settings that ``fit`` sent."""
    import ray

    rows, heldout = settings["rows"], settings["heldout"]
    return (
        RunFolder(settings["folder"]),
        ray.get(rows, timeout=GET_TIMEOUT_S),
        None if heldout is None else ray.get(heldout, timeout=GET_TIMEOUT_S),
    )


def model_options(config: StepConfig) -> dict[str, Any]:
    """How the model is loaded: keyword arguments of ``load_policy`` and ``load_reward_model``."""
    return {
        "dtype": config.model.dtype,
        "activation_checkpointing": config.learner.activation_checkpointing,
        "trust_remote_code": config.model.trust_remote_code,
        "rope": config.model.rope,
    }


def engine_for(module: nn.Module, config: StepConfig, *, policy: HFModule | None = None) -> TrainEngine:
    """The engine of the run's optimiser; ``policy`` as in ``TrainEngine``."""
    from actors.engine import TrainEngine

    return TrainEngine(
        module,
        config.optimizer,
        config.learner,
        dtype=config.model.dtype,
        num_optimizer_steps=config.num_steps,
        policy=policy,
        seed=config.seed,
    )
