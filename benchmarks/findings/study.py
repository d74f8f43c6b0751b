"""What a study is, and its runs: each a config file with overrides, as ``rlplatform run``, in a process of its own."""

from __future__ import annotations

import ctypes
import fcntl
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from benchmarks.common import ROOT, machine

Numbers = dict[str, Any]
HARNESS = ".venv/bin/python -m benchmarks.findings"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Unfinished(RuntimeError):
    """A run that a study needs is missing or stopped half-way; the message says which command goes on."""


@dataclass(frozen=True)
class Settings:
    """What ``python -m benchmarks.findings`` was asked for."""

    root: Path = ROOT / "runs" / "findings"  # of all runs
    seeds: tuple[int, ...] = (0, 1, 2)  # of the studies over seeds
    smoke: bool = False
    gsm8k: str = "openai/gsm8k:main"  # a hub id, or a folder with train.jsonl and test.jsonl
    smollm2: str = ".cache/models/smollm2-135m-instruct"  # what `make smollm2` writes
    small: Mapping[str, int] | None = None  # sizes of the smollm2 study that differ from its config: KEY=NUMBER

    def folder(self, run: str) -> Path:
        """Of a run, e.g. ``stages/seed0``; --smoke has folders of its own."""
        return self.root / f"{run}-smoke" if self.smoke else self.root / run


@dataclass(frozen=True)
class Run:
    """One run. ``name`` is its folder below the root, so studies that share a run name it alike."""

    name: str
    config: str  # below configs/
    overrides: tuple[str, ...] = ()
    seed: int = 0

    def arguments(self, settings: Settings) -> list[str]:
        """Of ``rlplatform``."""
        where = shown(settings.root / self.name)
        found = ["run", f"configs/{self.config}", *self.overrides, f"seed={self.seed}", f"run_dir={where}"]
        return [*found, "--smoke"] if settings.smoke else found

    def command(self, settings: Settings) -> str:
        return shlex.join(["rlplatform", *self.arguments(settings)])


Collect = Callable[[Settings], Numbers]


@dataclass(frozen=True)
class Study:
    """``runs`` yields one run after another; what comes later may be chosen by what earlier ones left."""

    name: str
    title: str
    target: str  # what it should show
    reported: str  # what the Qwen3 report says, with its place in arXiv 2505.09388
    chosen: str  # what was chosen while looking at held-out data
    runs: Callable[[Settings], Iterator[Run]]
    collect: Collect
    section: Callable[[Numbers], list[str]]  # Markdown lines: table, reading
    draw: Callable[[Numbers, Path], None]

    @property
    def command(self) -> str:
        return f"{HARNESS} --only {self.name}"

    @property
    def image(self) -> str:
        return f"findings_{self.name}.png"


def shown(path: Path) -> str:
    """Relative to the repository where it lies inside."""
    absolute = path.absolute()
    return str(absolute.relative_to(ROOT)) if absolute.is_relative_to(ROOT) else str(path)


# --- running --------------------------------------------------------------------------------------------------------


def run_study(study: Study, settings: Settings, *, been: set[str] | None = None) -> None:
    """All runs in order; those that are finished say so and end at once. Runs named in ``been`` are passed over.

    Raises:
        Unfinished: a run stopped, or one of another study that this one needs is not there.
    """
    settings.root.mkdir(parents=True, exist_ok=True)
    been = set() if been is None else been
    for run in study.runs(settings):
        if run.name in been:
            continue
        with _locked(settings.root, run, settings):
            code = _execute(run, settings)
        if code:
            raise Unfinished(
                f"{study.name}: {run.name} ended with exit code {code}; its output stands above and in "
                f"{shown(settings.folder(run.name))}/logs; `{study.command}` goes on from there"
            )
        been.add(run.name)


def _execute(run: Run, settings: Settings) -> int:
    print(f"{run.name}: {run.command(settings)}", file=sys.stderr, flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "rlplatform", *run.arguments(settings)], cwd=ROOT, preexec_fn=_end_with_parent
    )
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait(timeout=60)
        raise


def _end_with_parent() -> None:
    """A run whose harness was killed ends too: two processes in one run folder would spoil it (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _locked(root: Path, run: Run, settings: Settings) -> Iterator[None]:
    path = root / f".{settings.folder(run.name).relative_to(root)}".replace("/", "-")
    with open(path, "w", encoding="utf-8") as file:
        _lock(file, run)
        yield


def _lock(file: TextIO, run: Run) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Unfinished(f"{run.name}: another process is running it; wait for its end") from error


# --- what lies on disk ----------------------------------------------------------------------------------------------


def recipe_of(folder: Path, study: str) -> dict[str, Any]:
    """The recipe that a run folder holds, as it was run.

    Raises:
        Unfinished: there is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise Unfinished(f"{study}: {shown(folder)} is not there yet; run `{HARNESS} --only {study}`")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def done_of(folder: Path, stage: str, study: str) -> dict[str, Any]:
    """``done.json`` of a stage.

    Raises:
        Unfinished: the stage did not run, or stopped half-way.
    """
    path = folder / stage / "done.json"
    if not path.is_file():
        half = "stopped half-way" if (folder / stage / "started.json").is_file() else "has not run"
        raise Unfinished(f"{study}: stage {stage} of {shown(folder)} {half}; run `{HARNESS} --only {study}`")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def finished_run(folder: Path, study: str) -> dict[str, dict[str, Any]]:
    """``done.json`` of every stage of a recipe's run, in order.

    Raises:
        Unfinished: one of them is not finished.
    """
    return {stage: done_of(folder, stage, study) for stage in recipe_of(folder, study)["stages"]}


def without_places(value: Any, settings: Settings) -> Any:
    """``value`` with the names of folders on this machine replaced by what the documentation calls them."""
    places = {
        shown(settings.root): shown(Settings().root),
        **({} if settings.gsm8k == Settings().gsm8k else {settings.gsm8k: "FOLDER"}),
        **({} if settings.smollm2 == Settings().smollm2 else {settings.smollm2: Settings().smollm2}),
    }
    if isinstance(value, str):
        for place, name in places.items():
            value = value.replace(place, name)
        return value
    if isinstance(value, Mapping):
        return {key: without_places(one, settings) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(one, settings) for one in value]
    return value


def provenance(study: Study, settings: Settings) -> Numbers:
    """Commands, seconds, seeds, machine and versions of a study's runs."""
    runs: list[Numbers] = []
    versions: dict[str, str] = {}
    for run in study.runs(settings):
        folder = settings.folder(run.name)
        done = finished_run(folder, study.name)
        runs.append(
            {
                "run": run.name,
                "command": run.command(settings),
                "seed": run.seed,
                "seconds": round(sum(one["seconds"] for one in done.values())),
                "keys": {stage: one["key"] for stage, one in done.items()},
            }
        )
        path = folder / "versions.json"
        versions = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else versions
    return {
        "study": study.name,
        "command": study.command,
        "seeds": sorted({run["seed"] for run in runs}),
        "seconds": sum(run["seconds"] for run in runs),
        "runs": runs,
        "machine": machine(),
        "versions": versions,
        "smoke": settings.smoke,
    }
