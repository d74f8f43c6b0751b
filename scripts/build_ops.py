"""Compiles DeepSpeed's CPU operators ahead, into the folder every process of the project loads them from.

Otherwise the first learner builds them (30 to 100 s each, inside a Ray actor's start-up deadline), and a build that is
killed leaves a lock on which every later process waits for ever.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from rlplatform.paths import prepare_deepspeed

# Shared-memory collectives, which every process group on CPU loads, and the optimiser for offloaded states.
OPERATORS = ("ShareMemCommBuilder", "CPUAdamBuilder")


def build(name: str) -> str | None:
    """Compile and load one operator; returns what went wrong, with the compiler's words, or None."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    output = io.StringIO()
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            from deepspeed.ops import op_builder

            getattr(op_builder, name)().load(verbose=False)
    except Exception:
        return f"{name}\n{output.getvalue()}{traceback.format_exc()}"
    print(f"set-up:   {name.removesuffix('Builder')}: {time.monotonic() - started:.0f} s", flush=True)
    return None


def main() -> int:
    for lock in prepare_deepspeed():
        print(f"set-up:   removed the lock of a build that was killed: {lock}", flush=True)
    # An operator is mostly one translation unit, so the cores are used by building several at once.
    os.environ.setdefault("MAX_JOBS", "1")
    with ProcessPoolExecutor(max_workers=min(len(OPERATORS), os.cpu_count() or 1)) as pool:
        failures = [failure for failure in pool.map(build, OPERATORS) if failure]
    for failure in failures:
        print(f"set-up: DeepSpeed operator not built: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
