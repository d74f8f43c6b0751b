"""The `remote` reward: another machine's reward, served by ``rlplatform reward serve``.

    reward:
      functions:
        remote: {args: {url: "http://grader:8000"}, timeout_s: 60}

The token is in an environment variable or a file, never in the config. Whole groups travel in one request, so a served
function of groups gets them whole. ``timeout_s`` here must be longer than the server's: a row that times out there
comes back as that row's ``timeout``, a reply that does not come back at all makes its group a ``timeout`` here.
"""

from __future__ import annotations

import http.client
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rewards.base import ERROR, Verdict, groupwise
from rewards.protocol import ScoreRequest, WireError, read_reply, write_request

TOKEN_ENV = "RLPLATFORM_REWARD_TOKEN"
BUSY = (429, 502, 503)
_MAX_WAIT_S = 30.0
_RANDOM = random.SystemRandom()  # forked processes would share any other one's state


class RemoteError(ValueError):
    """The server cannot be reached, or refuses; the message says what to change."""


@groupwise
def remote_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    trainer_state: Any = None,
    log_extra: Callable[[str, Sequence[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    *,
    url: str = "",
    token_env: str = TOKEN_ENV,
    token_file: str = "",
    version: str = "",
    attempts: int = 6,
    request_timeout_s: float = 600.0,
    **columns: Any,
) -> list[Verdict]:
    """The verdicts of a served reward, statuses, parts, details and seconds as they are there.

    All columns go along. A server that is busy (429, 503) or not there is asked again, ``attempts`` times in all, with
    a back-off of 0.5 s, 1 s, 2 s, ... or what its Retry-After says; then every row is an ``error`` that tells why.

    Settings: ``url``, e.g. http://grader:8000; ``token_env``, the variable that holds the token, or ``token_file``;
    ``version``, what GET /version says: with it, rows that another version graded are an ``error``;
    ``request_timeout_s`` of silence end a request (a deadline of the whole is the function's ``timeout_s``).
    """
    step = getattr(trainer_state, "global_step", 0) or 0
    try:
        request = ScoreRequest(prompts, completions, columns, completion_ids, [0] * len(completions), int(step))
        token = _token(token_env, token_file)
        reply = read_reply(_post(url, token, write_request(request), attempts, request_timeout_s), len(completions))
        if version and reply.version != version:
            raise RemoteError(f"expected version {version}, and the server grades with version {reply.version} now")
    except (RemoteError, WireError) as error:
        return [Verdict(0.0, ERROR, detail=f"remote reward {url}: {error}")] * len(completions)
    for column, values in reply.extras.items():
        if log_extra is not None:
            log_extra(column, values)
    for name, value in reply.metrics.items():
        if log_metric is not None:
            log_metric(name, value)
    return reply.verdicts


def _check_settings(url: str = "", attempts: int = 1, request_timeout_s: float = 1.0, **_: Any) -> None:
    """What is wrong before anything starts. The token is looked for where it is used."""
    _address(url)
    if attempts < 1 or request_timeout_s <= 0:
        raise RemoteError(f"expected attempts >= 1 and request_timeout_s > 0, got {attempts} and {request_timeout_s}")


remote_reward.check_settings = _check_settings  # type: ignore[attr-defined]


def _address(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RemoteError(f"url: expected http://HOST:PORT of a server, got {url!r}")
    return parts


def _token(token_env: str, token_file: str) -> str:
    if token_file:
        try:
            return Path(token_file).expanduser().read_text().strip()
        except OSError as error:
            raise RemoteError(f"token_file: {error}") from error
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise RemoteError(f"expected the server's token in ${token_env}, or args.token_file; there is none")
    return token


def _post(url: str, token: str, body: bytes, attempts: int, timeout_s: float) -> bytes:
    """The body of the answer 200. Raises RemoteError. No proxy and no redirect: the token goes where ``url`` says."""
    problem = ""
    for attempt in range(attempts):
        wait_s = 0.5 * 2**attempt * _RANDOM.uniform(0.75, 1.25)
        try:
            status, headers, answer = _request(url, token, body, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            problem = f"no answer to {len(body) / 2**20:.1f} MiB: {type(error).__name__}: {error}"
        else:
            if status == 200:
                return answer
            problem = f"HTTP {status}: {answer.decode(errors='replace')[:500]}"
            if status == 401:
                raise RemoteError("the server refuses the token")
            if status not in BUSY:
                raise RemoteError(problem)
            wait_s = max(wait_s, _retry_after(headers))
        if attempt + 1 < attempts:
            time.sleep(min(wait_s, _MAX_WAIT_S))
    raise RemoteError(f"asked {attempts} times; the last time {problem}")


def _request(url: str, token: str, body: bytes, timeout_s: float) -> tuple[int, Mapping[str, str], bytes]:
    parts = _address(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, parts.port, timeout=timeout_s, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", parts.path.rstrip("/") + "/score", body, headers)
        response = connection.getresponse()
        return response.status, dict(response.headers.items()), response.read()
    finally:
        connection.close()


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After") or 0.0))
    except ValueError:
        return 0.0  # a date: the back-off will do
