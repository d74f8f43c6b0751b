"""Atomic checkpoints: written beside, fsynced, manifest last, renamed. A crash leaves the older ones whole.

checkpoints/step-000012/
  learner/        what Learner.save wrote: model, optimiser, scheduler, RNG
  state.json      step, prompt stream, score, whatever the caller adds
  manifest.json   size and hash of every other file; a folder without it, or that disagrees with it, is not complete
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger(__name__)
MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names file and reason."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    state: Mapping[str, Any]

    @property
    def learner(self) -> Path:
        return self.path / "learner"

    @property
    def score(self) -> float | None:
        return self.state.get("score")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    state: Mapping[str, Any],
    score: float | None,
    keep_last: int,
    keep_best: int,
) -> Checkpoint:
    """Write the checkpoint of ``step``; ``write`` fills a folder with the learner's own files.

    ``score`` (higher is better; None = not evaluated) decides what ``keep_best`` keeps. Older checkpoints are removed
    only after the new one is complete.
    """
    root.mkdir(parents=True, exist_ok=True)
    target, temporary = root / f"step-{step:06d}", root / f".writing-{step:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "learner").mkdir(parents=True)
    write(temporary / "learner")
    full_state = {**state, "step": step, "score": score}
    (temporary / "state.json").write_text(json.dumps(full_state, indent=1), encoding="utf-8")
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "blake2b": _digest(p)} for p in files}
    for path in files:
        _sync(path)
    (temporary / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}, indent=1), encoding="utf-8")
    _sync(temporary / MANIFEST)
    _sync(temporary)
    if target.exists():  # the step was saved before a resume and is saved again
        shutil.rmtree(target)
    os.replace(temporary, target)
    _sync(root)
    retain(root, keep_last=keep_last, keep_best=keep_best)
    return Checkpoint(target, step, full_state)


def read(path: Path, *, verify: bool = False) -> Checkpoint:
    """The checkpoint in ``path``; ``verify`` also compares every hash.

    Raises:
        CheckpointError: no manifest, or a file is missing or not what the manifest says.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: no readable {MANIFEST}, so the checkpoint is not complete: {error}") from error
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            found = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
            raise CheckpointError(f"{file}: expected {expected['bytes']} bytes as in the manifest, found {found}")
        if verify and _digest(file) != expected["blake2b"]:
            raise CheckpointError(f"{file}: its content is not what the manifest says; the file was changed or damaged")
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(path, int(manifest["step"]), state)


def complete(root: Path) -> list[Checkpoint]:
    """Every complete checkpoint, oldest first. Incomplete ones are named in the log and passed over."""
    found = []
    for path in root.glob("step-*"):
        try:
            found.append(read(path))
        except CheckpointError as error:
            LOGGER.warning("passed over: %s", error)
    return sorted(found, key=lambda checkpoint: checkpoint.step)  # by name the millionth step comes before the others


def latest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint whose hashes agree, or None."""
    for candidate in reversed(complete(root)):
        try:
            return read(candidate.path, verify=True)
        except CheckpointError as error:
            LOGGER.warning("passed over: %s", error)
    return None


def best(root: Path) -> Checkpoint | None:
    """The complete checkpoint with the highest score; the newest of equals."""
    scored = [checkpoint for checkpoint in complete(root) if checkpoint.score is not None]
    return max(scored, key=lambda checkpoint: (checkpoint.score, checkpoint.step), default=None)


def retain(root: Path, *, keep_last: int, keep_best: int) -> None:
    """Remove what is neither among the newest ``keep_last`` nor the best ``keep_best``, and half-written folders."""
    every = complete(root)
    keep = {checkpoint.path for checkpoint in every[-keep_last:]}
    scored = sorted((c for c in every if c.score is not None), key=lambda c: (c.score, c.step), reverse=True)
    keep |= {checkpoint.path for checkpoint in scored[:keep_best]}
    for checkpoint in every:
        if checkpoint.path not in keep:
            shutil.rmtree(checkpoint.path)
    for path in root.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
