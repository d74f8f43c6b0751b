"""`rlplatform reward serve`: replicas of ``rlplatform/reward_server.py`` behind Ray Serve's HTTP proxy.

    client ─► proxy (host:port, on the head node) ─► replica 0 ─► RewardPool
                                                 └─► replica 1 ─► RewardPool

A cluster of its own listens on loopback alone; with RAY_ADDRESS the replicas run on that cluster. The proxy itself
answers ``/-/healthz`` and ``/-/routes`` without a token: they tell that something is served, and nothing else.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.base import absolute, resolve
from rewards.composition import check_part
from rlplatform.config import ConfigError
from rlplatform.environment import prepare
from rlplatform.reward_choice import Choice
from rlplatform.reward_server import RewardServer, Served, version_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

APP = "reward"
MIN_TOKEN = 16  # characters
_MAX_REQUESTS = 1024  # at a replica, which counts rows itself, and again as many in the proxy's queue


@dataclass(frozen=True)
class Options:
    """How a reward is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None  # None: a token is made, and printed once
    replicas: int = 1
    processes: int = 1  # of each replica
    max_rows: int = 4096  # that may wait at a replica
    max_body_mib: float = 32.0


class Replica:
    """What Ray Serve calls: a request of Starlette's in, a response out."""

    def __init__(self, served: Served) -> None:
        self._server = RewardServer(served)

    async def __call__(self, request: Request) -> Response:
        from starlette.responses import Response

        answer = await self._server.handle(request.method, request.url.path, request.headers, request.stream())
        return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")

    def __del__(self) -> None:
        self._server.close()


def serve_rewards(choice: Choice, options: Options) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        RewardLoadError: a function cannot be loaded, here or in a replica.
        ConfigError: the token file, the port or the host is wrong.
    """
    stop = threading.Event()
    token, is_new = read_token(options.token_file)
    with serving(choice, options, token) as (url, version):
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which has handlers of its own
            signal.signal(number, lambda *_: stop.set())
        if not is_loopback(options.host):
            print(
                f"warning: {options.host} can be reached from other machines, and HTTP is not encrypted: whoever "
                "listens in sees the texts and the token. Put a proxy with TLS in front, or use a tunnel.",
                file=sys.stderr,
            )
        print(f"serving {choice.title} at {url} (version {version})")
        if is_new:
            print(f"token: {token}  (shown this once; --token-file keeps one of your own)")
        print("stop it with Ctrl-C", flush=True)
        stop.wait()
        print("stopping", flush=True)


@contextmanager
def serving(choice: Choice, options: Options, token: str) -> Iterator[tuple[str, str]]:
    """The URL of the running server and the version that it serves. Raises as ``serve_rewards``."""
    for part in choice.parts.values():  # a typing error costs no cluster
        check_part(part, resolve(part.function))
    _check_free(options.host, options.port)
    served = Served(
        parts={name: replace(part, function=absolute(part.function)) for name, part in choice.parts.items()},
        num_processes=options.processes,
        timeout_s=choice.timeout_s,
        token_digest=hashlib.sha256(token.encode()).digest(),
        max_rows=options.max_rows,
        max_body=int(options.max_body_mib * 2**20),
        sys_path=tuple(str(Path(entry or os.curdir).resolve()) for entry in sys.path),
    )
    version = version_of(served)["version"]
    prepare()
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS") or "local"
        local: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **(local if address == "local" else {}),
        )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    _check_no_other_serve()
    try:
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=options.host, port=options.port))
        deployment = serve.deployment(
            name="score",
            num_replicas=options.replicas,
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=_MAX_REQUESTS,
            max_queued_requests=_MAX_REQUESTS,
            graceful_shutdown_timeout_s=5.0,
            logging_config={"enable_access_log": False},
        )(Replica)
        serve.run(deployment.bind(served), name=APP, route_prefix="/")
        yield _url(options), version
    finally:
        if own:
            with suppress(Exception):  # replicas end their pools; whatever is left dies with the cluster
                serve.delete(APP)
            ray.shutdown()
        else:
            serve.shutdown()


def _check_no_other_serve() -> None:
    """An instance that runs already would keep its own address, and ours would be nobody's."""
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise ConfigError("Ray Serve already runs on this cluster, at its own address; serve from a cluster of its own")


# --- the token, the address -------------------------------------------------------------------------------------------


def read_token(path: Path | None) -> tuple[str, bool]:
    """(token, it was made just now). Raises ConfigError when the file has none that could protect anything."""
    if path is None:
        return secrets.token_urlsafe(32), True
    try:
        token = path.expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {error}") from error
    if len(token) < MIN_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise ConfigError(
            f"--token-file {path}: expected one line of at least {MIN_TOKEN} ASCII characters without spaces, got "
            f"{len(token)} characters; make one with: openssl rand -hex 32"
        )
    return token, False


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _url(options: Options) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{options.port}"


def _check_free(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"--port: expected 1 to 65535, got {port}")
    if os.environ.get("RAY_ADDRESS"):
        return  # the proxy runs on the cluster's head, which may be elsewhere
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error}; choose another --host or --port") from error
