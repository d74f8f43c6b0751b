"""Run a config as a job on a Ray cluster: ship the folder, stream the logs, return the job's exit code.

    this machine                                     the head
    ------------                                     --------
    check the config                 -- probe -->    which interpreter, which Ray, whose rlplatform?
    select, measure, stage files     -- upload -->   working directory of the driver and of every worker
    stream logs                      <-- job -->     PYTHON -m rlplatform run CONFIG key=value ...

The probe is a job that takes seconds. It answers what a client cannot know of a head (behind a forwarded port even
``localhost`` may be elsewhere), so that a wrong interpreter is an error message here and not a stack trace there.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from rlplatform.config import ConfigError
from rlplatform.configfile import load
from rlplatform.roles import RunStopped
from rlplatform.shipped_functions import check_absolute, check_function_files
from rlplatform.shipping import check_size, holds_packages, package_files, select_files, source_digest, stage

NEEDED = ("ray", "torch", "vllm", "deepspeed", "transformers")
SHIPPED_CONFIG = "_submitted"  # folder for a config that lies outside the working directory
START_TIMEOUT_S = 180.0  # a job that is still pending then has found no node


@dataclass(frozen=True)
class Head:
    """What the probe found on the cluster's head."""

    executable: str
    ray_version: str
    digest: str  # source_digest() of the rlplatform installed there; "" = none
    missing: tuple[str, ...]  # of NEEDED
    home: str
    shares_folder: bool  # the user's working directory exists there too, with the same inode


def submit(
    config: Path,
    overrides: Sequence[str],
    address: str,
    *,
    working_dir: Path,
    entrypoint_args: Sequence[str] = (),
    excludes: Sequence[str] = (),
    max_mib: float = 100.0,
    no_wait: bool = False,
    env: Mapping[str, str] | None = None,
    python: str = "",
    timeout_s: float = 30.0,
) -> int:
    """Submit ``rlplatform run CONFIG OVERRIDES ENTRYPOINT_ARGS`` and return its exit code (0 with ``no_wait``).

    A relative ``run_dir`` is made absolute: under ``working_dir`` where the head shares it, else under
    ``~/rlplatform`` on the head, because Ray deletes a job's own working directory some time after the job.
    ``python`` names the interpreter on the cluster; by default this one's path if the head has it, else its
    ``python3``. ``timeout_s`` is the deadline of each request to the head.

    Raises:
        ConfigError: the config, the folder or its size are wrong, a function's file is not shipped, or the interpreter
            on the head lacks something.
        RunStopped: the head cannot be reached, refuses the token, or the job never started.
    """
    working_dir = working_dir.resolve()
    config = _find_config(config, working_dir)
    loaded = load(config, overrides)  # a typo is cheaper here
    files = select_files(working_dir, excludes)
    absolute = check_function_files(loaded, files, working_dir)
    relative_config = _include_config(files, config, working_dir)
    brings_packages = holds_packages(files, working_dir)
    size_mib = check_size(files, max_mib)

    client = connect(address, timeout_s=timeout_s)
    head = _probe(client, python, working_dir)
    _check_head(head, client, python)
    check_absolute(absolute, shares_folder=head.shares_folder, working_dir=working_dir)
    if not brings_packages and head.digest != source_digest():
        files |= package_files()
    run_dir = Path(loaded.run_dir)
    if not run_dir.is_absolute():
        run_dir = (working_dir if head.shares_folder else Path(head.home) / "rlplatform") / run_dir
    command = [head.executable, "-m", "rlplatform", "run", relative_config, *overrides, f"run_dir={run_dir}"]
    with tempfile.TemporaryDirectory(prefix="rlplatform-submit-") as temporary:
        stage(files, Path(temporary))
        _say(f"shipping {len(files)} files, {size_mib:.1f} MiB from {working_dir}")
        job = client.submit_job(
            entrypoint=f"exec {shlex.join([*command, *entrypoint_args])}",
            runtime_env={"working_dir": temporary, "env_vars": dict(env or {})},
            metadata={"name": f"rlplatform {loaded.name}"},
        )
    _say(f"job {job} on {address}; results in {run_dir} on the head")
    if no_wait:
        _say(f"follow it with: ray job logs --address {address} --follow {job}")
        return 0
    try:
        return _follow(client, job)
    except KeyboardInterrupt:
        _say(f"the job goes on; stop it with: ray job stop --address {address} {job}")
        return 130


# --- the head ---------------------------------------------------------------------------------------------------------


class _Client(JobSubmissionClient):
    """Ray's client sends requests without a deadline."""

    timeout_s = 30.0

    @property
    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self._server_ray_version or "")

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", self.timeout_s)
        return super()._do_request(method, endpoint, **kwargs)


def connect(address: str, *, timeout_s: float = 30.0) -> _Client:
    """A client for the dashboard at ``address``, with this user's token where the head asks for one.

    Raises:
        ConfigError: ``address`` is not the dashboard's.
        RunStopped: nothing answers within ``timeout_s``, or the head refuses the token.
    """
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"address {address}: expected the dashboard, e.g. http://HEAD:8265 (jobs do not go over ray://)"
        )
    address = address.rstrip("/")
    headers: dict[str, str] = {}
    status = _status_of(address, headers, timeout_s)
    if status == 401:  # only now: a token is not shown to a head that does not ask
        token, where = find_token()
        if not token:
            raise RunStopped(
                f"{address} asks for a token and there is none in {where}. Copy the head's token there (on the head: "
                f"`ray get-auth-token`), or set RAY_AUTH_TOKEN."
            )
        headers["Authorization"] = f"Bearer {token}"
        status = _status_of(address, headers, timeout_s)
        if status in (401, 403):
            raise RunStopped(
                f"{address} refuses the token of {where}: expected the one `ray get-auth-token` shows there"
            )
    if status != 200:
        raise RunStopped(f"{address} answered HTTP {status} where Ray's job server answers 200: is it the dashboard?")
    client = _Client(address, headers=headers)
    client.timeout_s = timeout_s
    return client


def find_token() -> tuple[str, str]:
    """Ray's authentication token and where it is kept: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return (path.read_text().strip() if path.is_file() else ""), str(path)


def _status_of(address: str, headers: Mapping[str, str], timeout_s: float) -> int:
    request = urllib.request.Request(f"{address}/api/jobs/", headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise RunStopped(
            f"no Ray job server answers at {address} within {timeout_s:g} s ({reason}). Expected the head's dashboard "
            f"address; `ray start --head` prints it, by default http://127.0.0.1:8265 on the head itself."
        ) from error


# Runs on the head. {nonce} keeps its answer apart from whatever else is printed.
PROBE = """
import importlib.util, json, os, pathlib, sys
import ray
try:
    from rlplatform.shipping import source_digest
    digest = source_digest()
except Exception:
    digest = ""
found = dict(
    executable=sys.executable,
    ray_version=ray.__version__,
    digest=digest,
    missing=[name for name in {needed!r} if importlib.util.find_spec(name) is None],
    home=str(pathlib.Path.home()),
    shares_folder=os.path.isdir({folder!r}) and os.stat({folder!r}).st_ino == {inode!r},
)
print("{nonce}" + json.dumps(found), flush=True)
"""


def _probe(client: _Client, python: str, working_dir: Path) -> Head:
    candidates = [python] if python else [sys.executable, "python3", "python"]
    nonce = f"probe-{os.getpid()}-{time.time_ns()} "
    code = PROBE.format(needed=NEEDED, folder=str(working_dir), inode=working_dir.stat().st_ino, nonce=nonce)
    attempts = " || ".join(f"{shlex.quote(candidate)} -c {shlex.quote(code)}" for candidate in candidates)
    job = client.submit_job(entrypoint=f"cd / && {{ {attempts}; }}", metadata={"name": "rlplatform probe"})
    _wait(client, job, START_TIMEOUT_S, until_finished=True)
    logs = client.get_job_logs(job)
    client.delete_job(job)
    for line in logs.splitlines():
        if line.startswith(nonce):
            found = json.loads(line.removeprefix(nonce))
            # A named interpreter may be a wrapper that sets things up: it is called by the name it was given.
            executable = python or found["executable"]
            return Head(**{**found, "missing": tuple(found["missing"]), "executable": executable})
    tried = ", ".join(candidates)
    last = [line for line in logs.splitlines() if line.strip()][-3:]
    raise ConfigError(
        f"no interpreter on the head can import ray; tried {tried}. Name the cluster's environment with --python "
        f"/path/to/python. The head said:\n  " + "\n  ".join(last)
    )


def _check_head(head: Head, client: _Client, python: str) -> None:
    hint = "" if python else " Name another interpreter with --python /path/to/python."
    if head.missing:
        raise ConfigError(
            f"{head.executable} on the head lacks {', '.join(head.missing)}: install rlplatform's dependencies there "
            f"(extra `cpu` or `gpu`).{hint}"
        )
    if client.ray_version and client.ray_version != head.ray_version:
        raise ConfigError(
            f"{head.executable} on the head has Ray {head.ray_version}, the cluster runs {client.ray_version}: a job "
            f"needs the same one.{hint}"
        )


# --- the job ----------------------------------------------------------------------------------------------------------


def _find_config(config: Path, working_dir: Path) -> Path:
    """As given, else inside the working directory (the error of ``load`` is about the path as given)."""
    inside = working_dir / config
    return inside.resolve() if not config.exists() and inside.is_file() else config.resolve()


def _include_config(files: dict[str, Path], config: Path, working_dir: Path) -> str:
    """Make sure that the config is shipped, wherever it lies; returns its path on the cluster."""
    try:
        relative = config.relative_to(working_dir).as_posix()
    except ValueError:
        relative = f"{SHIPPED_CONFIG}/{config.name}"
    files[relative] = config
    return relative


def _wait(client: _Client, job: str, timeout_s: float, *, until_finished: bool) -> JobStatus:
    """Poll until the job runs (or has finished).

    Raises:
        RunStopped: it has not by then; the job is stopped.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        info = client.get_job_info(job)
        if info.status.is_terminal() or (info.status == JobStatus.RUNNING and not until_finished):
            return info.status
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise RunStopped(
                f"job {job} is still {info.status} after {timeout_s:.0f} s: {info.message or 'no reason given'}. "
                f"Expected a node with a free slot for the driver; `ray status` on the head shows what is taken."
            )
        time.sleep(0.2)


def _follow(client: _Client, job: str) -> int:
    _wait(client, job, START_TIMEOUT_S, until_finished=False)
    printed = 0
    while True:
        printed = asyncio.run(_print_logs(client, job, printed))
        info = client.get_job_info(job)
        if info.status.is_terminal():
            break
        time.sleep(1.0)  # the connection was lost, the job was not: read on
    printed = _print_rest(client.get_job_logs(job), printed)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    _say(f"job {job} {str(info.status).lower()}: {info.message or 'no reason given'}")
    return int(info.driver_exit_code or 1)


async def _print_logs(client: _Client, job: str, printed: int) -> int:
    """Print the log as it grows, past the first ``printed`` characters; returns how many are printed by now.

    Silence is normal (a long step), so it ends only with the job: every half minute of it the head is asked.
    """
    seen = 0
    stream = client.tail_job_logs(job)
    try:
        while True:
            chunk = asyncio.ensure_future(anext(stream))
            while not (await asyncio.wait({chunk}, timeout=30.0))[0]:
                if (await asyncio.to_thread(client.get_job_info, job)).status.is_terminal():
                    chunk.cancel()
                    return printed
            text = chunk.result()
            seen += len(text)
            if seen > printed:
                sys.stdout.write(text[-(seen - printed) :])
                sys.stdout.flush()
                printed = seen
    except StopAsyncIteration:
        return printed
    except (RuntimeError, OSError) as error:  # how the client reports a lost connection
        _say(f"lost the log stream ({error}); reading on")
        return printed


def _print_rest(log: str, printed: int) -> int:
    if len(log) > printed:
        sys.stdout.write(log[printed:])
        sys.stdout.flush()
    return len(log)


def _say(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr, flush=True)
