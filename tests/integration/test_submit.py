"""Jobs on a real local head that asks for a token: its own ports, its own temporary folder, its own token."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlplatform.config import ConfigError
from rlplatform.roles import RunStopped
from rlplatform.shipping import package_files
from rlplatform.submit import connect, submit

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
BIN = Path(sys.executable).parent


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass(frozen=True)
class LocalHead:
    address: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[LocalHead]:
    # Not pytest's own folder: Ray puts unix sockets inside, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rlp-", dir="/tmp"))
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_USAGE_STATS_ENABLED": "0"}
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += ("dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port")
    names += ("node-manager-port", "object-manager-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command += ["--object-store-memory=100000000", f"--temp-dir={folder / 'ray'}", "--dashboard-host=127.0.0.1"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = open(folder / "log", "w")  # noqa: SIM115
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        _wait_for_job_server(address, process, folder / "log")
        yield LocalHead(address, env)
    finally:
        process.send_signal(signal.SIGTERM)  # `ray start --block` then stops what it started
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()
        _end_leftovers(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_job_server(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the head did not start:\n{log.read_text()[-2000:]}")


def _end_leftovers(marker: str) -> None:
    """Processes whose command line names this test's own folder; there are none when the head stopped cleanly."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if any(marker in part for part in process.info["cmdline"] or ()):
            process.kill()


@pytest.fixture
def signed_in(head: LocalHead, monkeypatch: pytest.MonkeyPatch) -> str:
    """The head's address, with its token where Ray looks for one; the mode itself is not set for us."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", head.env["RAY_AUTH_TOKEN_PATH"])
    return head.address


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: a config whose dataset function lies beside it, and things that must stay at home."""
    folder = tmp_path / "project"
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "runs" / "old" / "weights.bin").write_bytes(b"0" * 3_000_000)
    (folder / "config.yaml").write_text("kind: dataset\nname: rows\nfunction: rows.py:make\n")
    (folder / "rows.py").write_text(
        textwrap.dedent(
            """
            import os, pathlib, sys
            import rlplatform

            def make(seed, lines=3):
                for i in range(lines):
                    print(f"line {i:04d}", flush=True)
                files = sorted(str(path) for path in pathlib.Path.cwd().rglob("*") if path.is_file())
                code = str(pathlib.Path(rlplatform.__file__).parents[1])
                row = {"code": code, "cwd": os.getcwd(), "files": files, "python": sys.executable}
                return {"train": [row | {"seed": seed, "greeting": os.environ.get("GREETING", "")}]}
            """
        )
    )
    return folder


def rows_of(project: Path) -> dict[str, object]:
    return json.loads((project / "runs" / "rows" / "train.jsonl").read_text())


def test_a_job_runs_with_what_was_shipped_and_its_results_outlive_it(
    signed_in: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = submit(
        Path("config.yaml"),
        ["seed=7", "args.lines=500"],
        signed_in,
        working_dir=project,
        env={"GREETING": "hello you"},
        max_mib=1,  # runs/ would be too much
    )
    captured = capfd.readouterr()
    assert code == 0, captured.out + captured.err
    row = rows_of(project)  # run_dir was relative, and the head shares the folder
    assert row["seed"] == 7
    assert row["greeting"] == "hello you"
    assert row["python"] == sys.executable  # the environment's interpreter, not whatever PATH says
    shipped = {str(Path(name).relative_to(row["cwd"])) for name in row["files"]}
    assert {name for name in shipped if "__pycache__" not in name} == {"config.yaml", "rows.py"}
    assert row["code"] == str(ROOT)  # the head has this very code: it was not shipped
    printed = [line for line in captured.out.splitlines() if line.startswith("line ")]
    assert printed == [f"line {i:04d}" for i in range(500)]  # streamed once, in order


def test_our_packages_go_along_where_the_head_lacks_them(
    signed_in: str, project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An interpreter with every dependency but without rlplatform, and a config that lies outside the folder."""
    import sysconfig

    wrapper = tmp_path / "python-without-us"
    site_packages = sysconfig.get_path("purelib")
    # -S skips the .pth file by which a checkout is installed; dependencies are found by PYTHONPATH.
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={site_packages} exec {sys.executable} -S "$@"\n')
    wrapper.chmod(0o755)
    outside = tmp_path / "elsewhere.yaml"
    shutil.move(project / "config.yaml", outside)
    code = submit(outside, [], signed_in, working_dir=project, python=str(wrapper))
    captured = capfd.readouterr()
    assert code == 0, captured.out + captured.err
    row = rows_of(project)
    assert row["code"] == row["cwd"]
    shipped = {str(Path(name).relative_to(row["cwd"])) for name in row["files"] if "__pycache__" not in name}
    assert shipped == {"rows.py", "_submitted/elsewhere.yaml", *package_files()}


def test_the_exit_code_of_the_job_is_returned_and_its_error_is_in_the_log(
    signed_in: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong command line inside the job is 2 there, so 2 here; 1 would also be the guess for any failure."""
    arguments = ["--no-such-option"]
    assert submit(Path("config.yaml"), [], signed_in, working_dir=project, entrypoint_args=arguments) == 2
    assert "--no-such-option" in capfd.readouterr().out


GRADE = """
import numpy as np

def make(seed, functions, max_error_rate=0.0):
    from actors.reward_service import RewardService
    from rlplatform.config import RewardConfig
    from rlplatform.launch import ray_session
    from rlplatform.types import Prompt, Rollout, RolloutGroup

    ids, ones = np.arange(2, dtype=np.int32), np.ones(2, dtype=bool)
    prompt = Prompt("p0", (), ids, "2 + 2 =", {"answer": "4"})
    rollout = Rollout(ids, ones, np.zeros(2, np.float32), np.zeros(2, np.int32), "stop", "4")
    with ray_session():
        service = RewardService(RewardConfig(functions=functions, max_error_rate=max_error_rate))
        [scored] = service.score([RolloutGroup(prompt, (rollout,) * 2, step=0, index=0)], step=0)
        service.metrics()
        service.close()
    verdict = scored.verdicts[0]
    return {"train": [{"score": verdict.score, "parts": dict(verdict.parts), "detail": verdict.detail}]}
"""
REWARD = """
from beside import WORTH
from rewards.base import Verdict, rowwise

def by_file(completions, answer, **columns):
    return [Verdict(WORTH * (a in c), detail=__file__) for a, c in zip(answer, completions)]

@rowwise
async def by_file_async(completions, **columns):
    import asyncio
    await asyncio.sleep(0.01)
    return [Verdict(2 * WORTH, detail=__file__) for _ in completions]

def broken(completions, answer, **columns):
    return [answer[row]["no such key"] for row in range(len(completions))]
"""
PACKAGE = """
from rewards.base import Verdict
from plug_submitted.inside import WORTH

def by_package(completions, **columns):
    return [Verdict(WORTH, detail=__file__) for _ in completions]

async def by_entry_point(completions, **columns):
    return [Verdict(2 * WORTH, detail=__file__) for _ in completions]
"""


@pytest.fixture
def grading(project: Path) -> Path:
    """Rewards in every form that a user has, and a dataset function that grades with them in the job's cluster."""
    (project / "grade.py").write_text(GRADE)
    (project / "my_reward.py").write_text(REWARD)
    (project / "beside.py").write_text("WORTH = 1.0\n")
    (project / "plug_submitted").mkdir()
    (project / "plug_submitted" / "__init__.py").write_text("")
    (project / "plug_submitted" / "inside.py").write_text("WORTH = 10.0\n")
    (project / "plug_submitted" / "rewards.py").write_text(PACKAGE)
    info = project / "plug_submitted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: plug-submitted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rlplatform.rewards]\ndeclared_submitted = plug_submitted.rewards:by_entry_point\n"
    )
    (project / "config.yaml").write_text("kind: dataset\nname: rows\nfunction: grade.py:make\n")
    return project


def test_rewards_by_file_package_and_entry_point_grade_on_the_workers(
    signed_in: str, grading: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("my_reward.py:by_file", "my_reward.py:by_file_async", "plug_submitted.rewards:by_package")
    functions = ", ".join(f"'{name}': 1.0" for name in (*names, "declared_submitted"))
    code = submit(Path("config.yaml"), [f"args.functions={{{functions}}}"], signed_in, working_dir=grading)
    captured = capfd.readouterr()
    assert code == 0, captured.out + captured.err
    row = rows_of(grading)
    assert row["parts"] == {"by_file": 1.0, "by_file_async": 2.0, "by_package": 10.0, "declared_submitted": 20.0}
    assert row["score"] == 33.0
    files = re.findall(r"(/\S+\.py)", str(row["detail"]))
    assert len(files) == 4
    assert all(str(grading) not in name and "working_dir_files" in name for name in files)  # what was shipped


def test_an_error_on_a_worker_shows_the_users_line_at_the_top(
    signed_in: str, grading: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["args.functions={'my_reward.py:broken': 1.0}"]
    assert submit(Path("config.yaml"), arguments, signed_in, working_dir=grading) == 1
    printed = [line for line in capfd.readouterr().out.splitlines() if line.strip()]
    line = REWARD.splitlines().index('    return [answer[row]["no such key"] for row in range(len(completions))]') + 1
    top = "\n".join(printed[:10])
    assert re.search(rf"my_reward\.py\"?(:|, line ){line}\b", top), "\n".join(printed)
    assert "string indices must be integers" in "\n".join(printed)


def test_a_reward_that_would_not_be_shipped_is_refused_here(project: Path) -> None:
    (project.parent / "outside.py").write_text("def fn(completions): return [1.0]\n")
    (project.parent / "elsewhere.yaml").write_text("kind: eval\nreward: {functions: {'outside.py:fn': 1.0}}\n")
    with pytest.raises(ConfigError, match=r"reward\.functions\.fn: outside\.py would not reach the cluster"):
        submit(project.parent / "elsewhere.yaml", [], "http://127.0.0.1:9", working_dir=project)


def test_what_is_wrong_here_never_reaches_the_head(project: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # reaching for it would be a RunStopped
    with pytest.raises(ConfigError, match="seed"):
        submit(Path("config.yaml"), ["sede=1"], nowhere, working_dir=project)
    (project / ".rlplatformignore").write_text("!runs/\n")
    with pytest.raises(ConfigError, match=r"weights\.bin"):
        submit(Path("config.yaml"), [], nowhere, working_dir=project, max_mib=1)
    with pytest.raises(ConfigError, match="no such file"):
        submit(Path("none.yaml"), [], nowhere, working_dir=project)


def test_an_interpreter_that_is_not_there_is_named(signed_in: str, project: Path) -> None:
    with pytest.raises(ConfigError, match="tried /no/such/python"):
        submit(Path("config.yaml"), [], signed_in, working_dir=project, python="/no/such/python")


def test_plain_ray_job_submit_works(head: LocalHead, tmp_path: Path) -> None:
    command = [str(BIN / "ray"), "job", "submit", "--address", head.address, "--working-dir", str(tmp_path), "--"]
    result = subprocess.run(
        [*command, sys.executable, "-m", "rlplatform", "version"],
        env=head.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    import rlplatform

    assert rlplatform.__version__ in result.stdout.split()


class TestToken:
    def test_none_here_says_where_it_is_looked_for(
        self, head: LocalHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        with pytest.raises(RunStopped, match=r"asks for a token and there is none in .*/none"):
            connect(head.address)

    def test_a_wrong_one_is_refused_and_its_source_named(
        self, head: LocalHead, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
        with pytest.raises(RunStopped, match="refuses the token of RAY_AUTH_TOKEN"):
            connect(head.address)

    def test_the_right_one_lets_in_whatever_the_mode(self, signed_in: str) -> None:
        assert connect(signed_in).ray_version


class TestUnreachable:
    def test_nothing_listens(self) -> None:
        port = free_ports(1)[0]
        with pytest.raises(
            RunStopped, match=rf"no Ray job server answers at http://127\.0\.0\.1:{port} .*ray start --head"
        ):
            connect(f"127.0.0.1:{port}")

    def test_something_listens_and_never_answers(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            with pytest.raises(RunStopped, match=r"within 0\.5 s"):
                connect(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)

    def test_the_ray_client_port_is_not_the_dashboard(self) -> None:
        with pytest.raises(ConfigError, match="expected the dashboard"):
            connect("ray://127.0.0.1:10001")
