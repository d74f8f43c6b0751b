"""One replica of a served reward: HTTP requests in, verdicts out (``rewards/protocol.py``). No Ray here.

    request ─► token? ─► body, at most max_body ─► read and checked ─► room for its rows? ─► RewardPool, in a thread
               401       413                       422                 429, Retry-After      200

Every request needs the token, GET /health and GET /version too. Rows that are being graded or wait are counted; a
request is turned away when they would be more than ``max_rows``, but for one that comes to an idle replica.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import math
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from actors.reward_versions import versions
from rewards.base import RewardLoadError, resolve
from rewards.composition import Part
from rewards.protocol import ScoreRequest, WireError, groups_of, read_request, write_error, write_reply
from rewards.runner import RewardPool, Scored

LOGGER = logging.getLogger(__name__)
_MAX_CALLS = 64  # requests that are graded side by side; more wait for one to end
_MAX_RETRY_AFTER_S = 60
_DRAINED = 8  # times max_body are read of a request that is too large; beyond, the connection breaks


@dataclass(frozen=True)
class Served:
    """What a replica needs to know; it travels to the replica's process."""

    parts: Mapping[str, Part]  # files by their absolute path
    num_processes: int
    timeout_s: float
    token_digest: bytes  # SHA-256 of the token: the token itself stays with those who show it
    max_rows: int
    max_body: int  # bytes
    sys_path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An HTTP response with a JSON body."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class RewardServer:
    """Raises RewardLoadError when a function cannot be loaded."""

    def __init__(self, served: Served) -> None:
        sys.path.extend(entry for entry in served.sys_path if entry not in sys.path)
        self._served = served
        self._version = version_of(served)
        self._pool = RewardPool(served.parts, served.num_processes, served.timeout_s)
        self._threads = ThreadPoolExecutor(_MAX_CALLS, thread_name_prefix="score")
        self._pending = 0  # rows
        self._num_graded = 0
        self._row_seconds = 0.0

    def close(self) -> None:
        """End the pool's processes."""
        self._pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def handle(self, method: str, path: str, headers: Mapping[str, str], body: AsyncIterator[bytes]) -> Answer:
        """``headers`` has lower-case names. Never raises."""
        try:
            if not self._knows(headers.get("authorization", "")):
                return _error(401, "Authorization", "expected: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
            if path == "/score" and method == "POST":
                return await self._score(body)
            if path == "/health" and method == "GET":
                return self._health()
            if path == "/version" and method == "GET":
                return _answer(200, self._version)
            known = {"/score": "POST", "/health": "GET", "/version": "GET"}
            if path in known:
                return _error(405, "method", f"expected {known[path]}, got {method}", {"Allow": known[path]})
            return _error(404, "path", f"expected one of {', '.join(known)}, got {path!r}")
        except Exception:
            reference = uuid.uuid4().hex[:12]
            LOGGER.exception("reward server: error %s", reference)
            return _error(500, "server", f"an error of the server; its log has the traceback under {reference}")

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        shown = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        return scheme.lower() == "bearer" and hmac.compare_digest(shown, self._served.token_digest)

    def _health(self) -> Answer:
        state = {
            "status": "ok",
            "functions": list(self._served.parts),
            "pending_rows": self._pending,
            "graded_rows": self._num_graded,
            "processes": self._served.num_processes,
            "restarts": self._pool.num_restarts,
        }
        return _answer(200, state)

    async def _score(self, body: AsyncIterator[bytes]) -> Answer:
        content = await self._read(body)
        if content is None:
            limit = self._served.max_body
            return _error(413, "body", f"expected at most {limit} bytes; send fewer rows a request")
        try:
            request = await asyncio.to_thread(read_request, content)
        except WireError as error:
            return Answer(422, write_error(error), {})
        num_rows = len(request.completions)
        if self._pending and self._pending + num_rows > self._served.max_rows:
            wait = {"Retry-After": str(self._retry_after())}
            return _error(429, "server", f"{self._pending} rows are waiting, {self._served.max_rows} may", wait)
        self._pending += num_rows
        # A client that goes away cancels this coroutine, not the thread: rows count until they are graded.
        graded = asyncio.get_running_loop().run_in_executor(self._threads, self._grade, request)
        graded.add_done_callback(lambda done: self._done(done, num_rows))
        try:
            scored = await asyncio.shield(graded)
        except RewardLoadError as error:  # the rows lack what the reward needs to be asked at all
            return Answer(422, write_error(WireError("columns", str(error))), {})
        return Answer(200, write_reply(scored, self._version["version"]), {})

    async def _read(self, body: AsyncIterator[bytes]) -> bytes | None:
        """The body; None when it is too large. Some of the excess is read, so that the sender gets to the answer."""
        content, size, limit = bytearray(), 0, self._served.max_body
        async for piece in body:
            size += len(piece)
            if size <= limit:
                content += piece
            elif size > _DRAINED * limit:
                break
            else:
                content.clear()
        return bytes(content) if size <= limit else None

    def _grade(self, request: ScoreRequest) -> Scored:
        return self._pool.score_detailed(
            request.prompts,
            request.completions,
            request.columns,
            request.completion_ids,
            {"global_step": request.step},
            groups_of(request),
        )

    def _done(self, graded: asyncio.Future[Scored], num_rows: int) -> None:
        self._pending -= num_rows
        if not graded.cancelled() and graded.exception() is None:
            self._num_graded += num_rows
            self._row_seconds += sum(verdict.seconds for verdict in graded.result().verdicts)

    def _retry_after(self) -> int:
        """Whole seconds until about half of what waits is graded."""
        seconds = self._row_seconds / max(1, self._num_graded) * self._pending / self._served.num_processes
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(seconds / 2)))


def version_of(served: Served) -> dict[str, Any]:
    """What grades, as a run's record has it (``actors.reward_versions``), and a digest of it all.

    Of each function also ``part``, the hash of how it takes part: weight, gates, routing, clip, deadline. Raises
    RewardLoadError when a function cannot be loaded.
    """
    resolved = {name: resolve(part.function) for name, part in served.parts.items()}
    found = versions(served.parts, resolved, {})
    for name, part in served.parts.items():
        about = found["functions"][name]
        about["function"] = part.function.rpartition("/")[2]  # of a file its name: the folder is nobody's business
        about["part"] = _digest({**vars(part), "function": "", "timeout_s": part.timeout_s or served.timeout_s})
    return {"version": _digest(found), **found}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _answer(status: int, value: Any) -> Answer:
    return Answer(status, json.dumps(value, allow_nan=False).encode(), {})


def _error(status: int, field: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, write_error(WireError(field, message)), headers or {})
