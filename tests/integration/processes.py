"""Processes of a test's own cluster."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil


def kill_a_rank() -> None:
    """kill -9 one of this test's own Ray Train workers."""
    ranks = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # others of the cluster come and go meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline()):
                ranks.append(process.pid)
    assert ranks, "no Ray Train worker among this process's children"
    os.kill(ranks[-1], signal.SIGKILL)
