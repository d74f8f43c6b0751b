"""Training functions on Ray Train: placement, restarts, checkpoints, quiet screens. Pretraining and SFT share it.

    driver                         Ray Train controller            worker rank 0 .. n-1 (one process each)
    run_on_ray_train ──fit()──►    starts the group,               function(settings)
      tails metrics.jsonl ◄─────── restarts it when a rank dies      metrics.jsonl (rank 0), logs/, checkpoints/

A checkpoint is the same atomic folder as everywhere in this project (rlplatform/checkpoint.py), written by all ranks
into the run's folder; a restarted group, or the same command on another day, continues from the newest complete one.
On several nodes the run's folder must be on storage that all of them see.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlplatform import checkpoint
from rlplatform.config import CheckpointConfig, ConfigError, LearnerConfig
from rlplatform.roles import RunStopped
from rlplatform.runs import RunFolder, write_atomically

if TYPE_CHECKING:
    from actors.engine import TrainEngine

LOGGER = logging.getLogger(__name__)

# Read by Ray Train in the driver and handed on to its controller and workers.
RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # the default lets every report block for 2 s
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",  # without a dashboard it only logs failures
    "RAY_TRAIN_METRICS_ENABLED": "0",  # Prometheus counters of the controller
}
STOPPED = "stopped"  # key of a result that ends the run on purpose


class TrainingError(RuntimeError):
    """Ray Train gave up; the message holds the first worker's error."""


def run_on_ray_train(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    settings: dict[str, Any],
    *,
    folder: RunFolder,
    learner: LearnerConfig,
    max_failures: int,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run ``function(settings)`` on ``learner.num_workers`` ranks of one process group; returns rank 0's result.

    A rank that dies restarts the group up to ``max_failures`` times; ``function`` continues from its own checkpoint.
    ``progress`` is called with every new row of metrics.jsonl, from a thread of the driver.

    Raises:
        ConfigError: Ray is not running here, or the cluster has fewer CPUs or GPUs than the ranks need.
        RunStopped: the function stopped on purpose.
        TrainingError: more than ``max_failures`` failures.
    """
    import ray

    if not ray.is_initialized():
        raise ConfigError("Ray is not running in this process: call ray.init() before training starts")
    _check_resources(ray.cluster_resources(), learner)
    for name, value in RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(learner.start_timeout_s)

    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    use_gpu = learner.gpus_per_worker > 0
    resources = {"CPU": learner.cpus_per_worker, **({"GPU": learner.gpus_per_worker} if use_gpu else {})}
    trainer = TorchTrainer(
        worker_main,  # type: ignore[arg-type]  # stubs know functions without a result only
        train_loop_config={
            "function": function,
            "settings": settings,
            "folder": str(folder.path.resolve()),
            "use_gpu": use_gpu,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(learner.call_timeout_s)),
        scaling_config=ScalingConfig(num_workers=learner.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            storage_path=str(folder.path.resolve()),
            name="ray_train",
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
        ),
    )
    with _tail(folder, progress), _quiet("ray.train", logging.CRITICAL):
        try:
            result = trainer.fit()
        except WorkerGroupError as error:
            rank, failure = min(error.worker_failures.items())
            raise TrainingError(
                f"training failed {max_failures + 1} times, the last time on rank {rank}: {failure}\n"
                f"The ranks' logs are in {folder.logs}"
            ) from error
        except ControllerError as error:
            raise TrainingError(f"Ray Train's controller failed: {error}") from error
    returned: dict[str, Any] = result.return_value or {}  # type: ignore[attr-defined]
    if STOPPED in returned:
        raise RunStopped(returned[STOPPED])
    return returned


def _check_resources(available: Mapping[str, float], learner: LearnerConfig) -> None:
    for name, each in (("CPU", learner.cpus_per_worker), ("GPU", learner.gpus_per_worker)):
        needed = each * learner.num_workers
        if needed > available.get(name, 0.0):
            raise ConfigError(
                f"training needs {learner.num_workers} ranks x {each:g} {name} = {needed:g}, the Ray cluster has "
                f"{available.get(name, 0.0):g}; lower learner.num_workers or learner.{name.lower()}s_per_worker"
            )


# --- in the workers -------------------------------------------------------------------------------------------------


def worker_main(config: dict[str, Any]) -> dict[str, Any]:
    """Runs on every rank: environment, logs, then the function. What stops a run on purpose is not a failure."""
    from actors.training_process import process_environment

    os.environ.update(process_environment(use_gpu=config["use_gpu"]))
    import ray.train
    import torch

    if not config["use_gpu"]:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rank = ray.train.get_context().get_world_rank()
    redirect_output(RunFolder(config["folder"]).logs / f"train-rank{rank}.log")
    try:
        returned: dict[str, Any] = config["function"](config["settings"])
    except (RunStopped, ConfigError) as error:
        LOGGER.error("stopped: %s", error)
        returned = {STOPPED: str(error)}
    return returned


def redirect_output(path: Path) -> None:
    """Everything this process prints or logs from now on goes to ``path``, native libraries' output included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "ab", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[logging.FileHandler(path)],
        force=True,
    )


class Checkpoints:
    """One run's checkpoints in ``root``. Every method is called by all ranks, in the same order."""

    def __init__(self, root: Path, engine: TrainEngine, config: CheckpointConfig) -> None:
        self._root, self._engine, self._config = root, engine, config
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Any] | None = None

    def save(self, state: Mapping[str, Any]) -> None:
        """An atomic checkpoint of the engine's current step, with ``state`` beside it.

        A portable one is copied here and written behind; what fails there is raised by the next call.
        """
        from actors import portable

        self.wait()
        if self._config.portable:
            write = portable.gather(self._engine)
            if self._engine.rank == 0:
                self._pending = self._writer.submit(self._write, self._engine.num_steps, write, dict(state))
            return
        if self._engine.rank == 0:
            self._write(self._engine.num_steps, self._write_all_ranks, state)
        else:
            self._engine.save(broadcast(None))

    def _write(self, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> None:
        kept = self._config.keep_last
        checkpoint.save(self._root, step, write, state=state, score=None, keep_last=kept, keep_best=0)

    def _write_all_ranks(self, folder: Path) -> None:
        broadcast(str(folder))
        self._engine.save(folder)

    def wait(self) -> None:
        """Until what is being written is complete."""
        import torch.distributed as dist

        if self._pending is not None:
            self._pending.result()
            self._pending = None
        dist.barrier()

    def load(self) -> dict[str, Any] | None:
        """Restore the newest complete checkpoint and return its state, or None where there is none."""
        import torch.distributed as dist

        from actors import portable

        found = checkpoint.latest(self._root) if dist.get_rank() == 0 else None
        choice = broadcast(None if found is None else (str(found.learner), dict(found.state)))
        if choice is None:
            return None
        learner, state = choice
        if portable.is_portable(Path(learner)):
            portable.load(self._engine, Path(learner))
        else:
            self._engine.load(learner)
        return dict(state)


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def drop_lines_after(path: Path, step: int) -> None:
    """Forget the lines of a JSONL file that later steps than ``step`` wrote, and one cut by a kill: they run again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        with suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_atomically(path, "".join(kept))


# --- in the driver --------------------------------------------------------------------------------------------------


@contextmanager
def _tail(folder: RunFolder, progress: Callable[[dict[str, Any]], None] | None) -> Iterator[None]:
    """Call ``progress`` with each step's metrics as rank 0 writes them, each step once."""
    if progress is None:
        yield
        return
    done = threading.Event()
    seen = max((row["step"] for row in folder.read_metrics()), default=0)
    new_lines = LinesAsWritten(folder.metrics_file)

    def report_new() -> None:
        nonlocal seen
        for line in new_lines():
            with suppress(json.JSONDecodeError):  # a line cut by a kill; its step is written again
                row = json.loads(line)
                if row["step"] > seen:
                    seen = row["step"]
                    progress(row)

    def follow() -> None:
        while not done.wait(0.2):
            report_new()

    thread = threading.Thread(target=follow, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10.0)
        report_new()


class LinesAsWritten:
    """Each call returns the complete lines that a file has gained; a file that was replaced is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = 0
        self.inode = -1

    def __call__(self) -> list[str]:
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self.inode or status.st_size < self.place:
                self.inode, self.place = status.st_ino, 0
            file.seek(self.place)
            complete, newline, _ = file.read().rpartition(b"\n")
        self.place += len(complete) + len(newline)
        return complete.decode().split("\n") if newline else []


@contextmanager
def _quiet(name: str, level: int) -> Iterator[None]:
    """Ray Train's own log stays in Ray's session folder; errors reach the caller as exceptions."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
