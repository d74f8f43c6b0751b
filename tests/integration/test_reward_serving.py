"""`rlplatform reward serve` on real Ray Serve: one server for all tests, started and stopped as a user does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rewards.base import OK, TIMEOUT
from rewards.runner import RewardPool
from rlplatform.config import ConfigError
from rlplatform.reward_choice import choose
from rlplatform.serving import Options, serving

FUNCTIONS = """
import time
from rewards.base import rowwise
from beside import WORTH

@rowwise
def naps(completions, seconds, **columns):
    for s in seconds:
        time.sleep(s)
    return [WORTH] * len(completions)
"""


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    token: str
    folder: Path
    output: list[str]

    def ask(self, path: str, body: Any = None, token: str | None = None) -> tuple[int, dict[str, str], Any]:
        headers = {} if token == "" else {"Authorization": f"Bearer {token or self.token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, dict(response.headers), json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.loads(error.read())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "mine.py").write_text(FUNCTIONS)
    (folder / "beside.py").write_text("WORTH = 0.25\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rlplatform", "reward", "serve", "math", "mine.py:naps", "--port", str(port)]
    command += ["--timeout", "1", "--max-body-mib", "0.01", "--processes", "2"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output: list[str] = []
    for line in process.stdout:  # ends with the process, should it not start
        output.append(line)
        if line.startswith("stop it with"):
            break
    told = "".join(output)
    token = re.search(r"^token: (\S+)", told, flags=re.M)
    assert token, told
    yield Running(process, f"http://127.0.0.1:{port}", token[1], folder, output)
    if process.poll() is None:
        process.terminate()
        process.wait(60)


def test_it_says_what_it_serves_and_where(running: Running) -> None:
    told = "".join(running.output)
    assert f"serving math, mine.py:naps at {running.url} (version " in told
    assert told.count(running.token) == 1
    assert "warning" not in told  # loopback


def test_only_loopback_is_bound(running: Running) -> None:
    port = int(running.url.rpartition(":")[2])
    tree = [running.process.pid, *(child.pid for child in psutil.Process(running.process.pid).children(recursive=True))]
    bound = {
        connection.laddr.ip
        for pid in tree
        for connection in psutil.Process(pid).net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert bound == {"127.0.0.1"}


def test_without_the_token_nothing_is_answered(running: Running) -> None:
    for token in ("", "wrong", running.token + "x"):
        for path, body in (("/health", None), ("/version", None), ("/score", {"prompts": ["p"], "completions": ["c"]})):
            status, headers, _ = running.ask(path, body, token=token)
            assert status == 401
            assert headers["www-authenticate"] == "Bearer"


def test_health_and_version(running: Running) -> None:
    status, _, health = running.ask("/health")
    assert (status, health["status"], health["functions"]) == (200, "ok", ["math", "naps"])
    status, _, version = running.ask("/version")
    assert version["functions"]["naps"]["function"] == "mine.py:naps"
    assert f"(version {version['version']})" in "".join(running.output)


def test_wrong_input_and_large_bodies(running: Running) -> None:
    status, _, answer = running.ask("/score", {"prompts": ["p", "p"], "completions": ["a", 3]})
    assert (status, answer["error"]["field"], answer["error"]["row"]) == (422, "completions", 1)
    status, _, answer = running.ask("/score", {"prompts": ["p"], "completions": ["x" * 20_000]})
    assert (status, answer["error"]["field"]) == (413, "body")


def test_a_run_that_uses_it_gets_what_a_direct_call_says(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLPLATFORM_REWARD_TOKEN", running.token)
    columns = {"answer": ["7", "7", "7", "7"], "seconds": [0.0, 0.0, 600.0, 0.0]}
    completions = [r"\boxed{7}", r"\boxed{8}", r"\boxed{7}", r"\boxed{9^{9^{9^{9}}}}"]
    functions = {"math": 1.0, f"{running.folder}/mine.py:naps": 1.0}
    arguments = (["p"] * 4, completions, columns)
    with RewardPool(functions, timeout_s=1.0) as pool:
        direct = pool.score(*arguments)
    with RewardPool({"remote": {"args": {"url": running.url}, "timeout_s": 60.0}}) as pool:
        remote = pool.score(*arguments, groups=[0] * 4)
    assert [v.status for v in direct][:3] == [OK, OK, TIMEOUT]
    assert [(v.score, v.status) for v in remote] == [(v.score, v.status) for v in direct]
    assert [v.parts.get("remote/naps") for v in remote[:2]] == [0.25, 0.25]
    assert "past its deadline" in remote[2].detail


def test_a_second_server_on_the_same_port_is_refused_before_anything_starts(running: Running) -> None:
    port = int(running.url.rpartition(":")[2])
    with (
        pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1, port {port}"),
        serving(choose(["math"]), Options(port=port), "a-token-of-some-length"),
    ):
        pass
    assert not ray.is_initialized()


def test_ctrl_c_ends_it_and_leaves_no_process(running: Running) -> None:
    """Last in this file: a row is being graded when the signal comes."""
    body = {"prompts": ["p"], "completions": ["c"], "columns": {"answer": ["7"], "seconds": [0.9]}}
    asking = threading.Thread(target=lambda: _quietly(running, body))
    asking.start()
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert len(children) >= 5
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    asking.join(60)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert [process.cmdline() for process in alive] == []


def _quietly(running: Running, body: Any) -> None:
    with contextlib.suppress(OSError):  # the server may be gone before it answers
        running.ask("/score", body)
