"""What happens between steps: timing, records, evaluation, checkpoints, progress (``roles.Tracker``)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlplatform import checkpoint
from rlplatform.config import CheckpointConfig, ConfigError, TrackerConfig
from rlplatform.metrics import check_names
from rlplatform.roles import Learner
from rlplatform.runs import RunFolder
from rlplatform.types import Metrics, ScoredGroup

LOGGER = logging.getLogger(__name__)


def say(text: str) -> None:
    """A line for whoever started the run."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """One live line on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, total: int, *, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._name, self._total = name, total
        self._live = bool(getattr(self._stream, "isatty", lambda: False)())
        self._step, self._phase, self._text = 0, "", ""
        self._width = 0

    def phase(self, phase: str) -> None:
        self._phase = phase
        if self._live:
            self._draw()

    def step(self, step: int, text: str) -> None:
        self._step, self._text = step, text
        if self._live:
            self._draw()
        else:
            print(f"{self._name} {step}/{self._total}  {text}", file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        print(f"{self._name}  {text}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self) -> None:
        done = 24 * self._step // max(self._total, 1)
        bar = "━" * done + "─" * (24 - done)
        line = f"{self._name} {bar} {self._step}/{self._total}  {self._text}  [{self._phase}]"
        self._stream.write("\r" + line.ljust(self._width)[: max(self._width, len(line))])
        self._width = len(line)
        self._stream.flush()


class Writers:
    """metrics.jsonl always, TensorBoard and W&B by config."""

    def __init__(self, folder: RunFolder, config: TrackerConfig, *, name: str, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.tensorboard:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            (folder.path / "tensorboard").mkdir(parents=True, exist_ok=True)
            self._tensorboard = EventFileWriter(str(folder.path / "tensorboard"))
        if config.wandb_project:
            try:
                import wandb
            except ImportError as error:
                raise ConfigError(
                    "tracker.wandb_project is set but wandb is not installed; install the extra `wandb`, or leave it "
                    "empty"
                ) from error
            self._wandb = wandb.init(project=config.wandb_project, name=name, config=dict(settings), resume="allow")

    def write(self, step: int, metrics: Metrics) -> None:
        check_names(metrics)
        self._folder.append_metrics({"step": step, **metrics})
        if self._tensorboard is not None:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
            self._tensorboard.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class RunTracker:
    """Times phases, records rollouts, evaluates and saves when due, and shows progress.

    ``evaluate(step)`` returns metrics of the registry's ``eval/`` group; ``gate()`` is the step-0 parity gate.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        name: str,
        num_steps: int,
        learner: Learner,
        checkpoints: CheckpointConfig,
        writers: Writers,
        evaluate: Callable[[int], Metrics] | None,
        evaluate_every: int,
        gate: Callable[[], Metrics] | None,
        record_rollouts: bool = True,
    ) -> None:
        self._folder, self._num_steps, self._learner = folder, num_steps, learner
        self._checkpoints, self._writers = checkpoints, writers
        self._evaluate, self._every, self._gate = evaluate, evaluate_every, gate
        self._record_rollouts = record_rollouts
        self._phases: dict[str, float] = {}
        self._began = time.perf_counter()
        self._num_rollouts = 0
        self._last_eval: Metrics = {}
        self.progress = Progress(name, num_steps)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.progress.phase(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - began

    def record(self, groups: Sequence[ScoredGroup], *, step: int) -> None:
        self._num_rollouts = sum(len(group.verdicts) for group in groups)
        if self._record_rollouts:
            self._folder.write_rollouts(groups, step=step)

    def start(self, version: int) -> None:
        """Parity gate and evaluation of the untouched policy; after a resume both have been done."""
        if version:
            self.progress.say(f"continues at step {version}")
            return
        metrics: Metrics = {}
        if self._gate is not None:
            with self.phase("parity"):
                metrics |= self._gate()
        metrics |= self._evaluation(0)
        if metrics:
            self._finish(0, metrics)

    def end_step(self, step: int, metrics: Metrics, prompt_state: Mapping[str, Any]) -> None:
        seconds = sum(self._phases.values())
        metrics = {**metrics, "samples_per_s": self._num_rollouts / max(seconds, 1e-9)}
        last = step == self._num_steps
        if last or (self._every and step % self._every == 0):
            metrics |= self._evaluation(step)
        due = self._checkpoints.every and step % self._checkpoints.every == 0
        if due or last:
            with self.phase("save"):
                checkpoint.save(
                    self._folder.checkpoints,
                    step,
                    lambda path: self._learner.save(str(path)),
                    state={"prompts": dict(prompt_state), "last_eval": self._last_eval},
                    score=metrics.get("eval/accuracy"),
                    keep_last=self._checkpoints.keep_last,
                    keep_best=self._checkpoints.keep_best,
                )
        self._finish(step, metrics)

    def _evaluation(self, step: int) -> Metrics:
        if self._evaluate is None:
            return {}
        with self.phase("evaluate"):
            self._last_eval = self._evaluate(step)
        return self._last_eval

    def _finish(self, step: int, metrics: Metrics) -> None:
        now = time.perf_counter()
        timed = {f"time/{name}": seconds for name, seconds in self._phases.items()}
        self._writers.write(step, {**metrics, **timed, "time/step": now - self._began})
        self._phases, self._began = {}, now
        self.progress.step(step, summary(metrics))

    def close(self) -> None:
        self.progress.close()
        self._writers.close()


SUMMARY = (
    ("reward/mean", "reward {:.3f}"),
    ("eval/accuracy", "held-out {:.1%}"),
    ("policy/entropy", "entropy {:.2f}"),
    ("rollout/length_mean", "length {:.0f}"),
    ("groups/kept", "groups {:.0f}"),
    ("generate/tokens_per_s", "{:,.0f} tok/s sampled"),
    ("learner/tokens_per_s", "{:,.0f} tok/s trained"),
)


def summary(metrics: Metrics) -> str:
    """The few numbers of a step that fit a line."""
    return "  ".join(text.format(metrics[name]) for name, text in SUMMARY if name in metrics)
