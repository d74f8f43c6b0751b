"""Each actor's output goes to a file of the run, not to the screen: ``RUN/logs/NAME.log``.

The folder travels in the environment (``RLPLATFORM_LOG_DIR``), set where actors are created. Output of C++ libraries
goes there too, so the file descriptors are replaced and not only Python's streams. On a node that does not share the
run's folder the output stays in Ray's own logs.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

ENV = "RLPLATFORM_LOG_DIR"


def environment() -> dict[str, str]:
    """What an actor's environment needs so that ``redirect_output`` finds the run's log folder."""
    folder = os.environ.get(ENV, "")
    return {ENV: folder} if folder else {}


def redirect_output(name: str) -> Path | None:
    """Send stdout, stderr and logging of this process to ``NAME.log``; returns the file, or None without a folder."""
    folder = os.environ.get(ENV, "")
    if not folder or not Path(folder).is_dir():
        return None
    path = Path(folder) / f"{name}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    return path
