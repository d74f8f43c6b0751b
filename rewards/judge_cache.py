"""Replies of a judge in a file, so that the same question is asked once: an SQLite database that processes share.

Only replies that were read are kept: a garbled one is asked for again the next time. The first reply kept under a key
stays, and whoever was second takes it too, so that the same inputs give the same verdict everywhere. The file must be
on a local disk: SQLite's locks do not hold on network file systems.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.judge_prompts import JudgeSettingsError
from rewards.judge_rules import Reply

_BUSY_S = 30.0  # how long one process waits for another's write
_TABLE = """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, created REAL
) WITHOUT ROWID"""


def key_of(decisive: Mapping[str, Any]) -> str:
    """The hash of everything that decides a reply and its reading."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=repr).encode()).hexdigest()


class ReplyCache:
    """The replies in file ``path``; made where there is none. A connection per process and thread.

    Raises JudgeSettingsError, here and in its methods, when the file cannot be used.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser().absolute()
        self._local = threading.local()

    def get(self, key: str) -> Reply | None:
        rows = self._run("SELECT text, prompt_tokens, completion_tokens FROM replies WHERE key = ?", (key,))
        if not rows:
            return None
        text, prompt_tokens, completion_tokens = rows[0]
        return Reply(text, cached=True, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def put(self, key: str, reply: Reply) -> str:
        """Keep a reply; returns the text that is kept, which is another one's where that was first."""
        values = (key, reply.text, reply.prompt_tokens, reply.completion_tokens, time.time())
        self._run("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", values)
        kept = self.get(key)
        return reply.text if kept is None else kept.text

    def __len__(self) -> int:
        return int(self._run("SELECT COUNT(*) FROM replies", ())[0][0])

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._connection().execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise JudgeSettingsError(
                f"judge: cache: {self.path}: {error}; expected a writable SQLite file on a local disk: move the file "
                'away, name another one, or set cache: ""'
            ) from error

    def _connection(self) -> sqlite3.Connection:
        if getattr(self._local, "pid", None) != os.getpid():  # SQLite's connections do not survive a fork
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._local.connection = self._opened()
            self._local.pid = os.getpid()
        return self._local.connection

    def _opened(self) -> sqlite3.Connection:
        """Several processes may do this at once; the change to WAL does not wait for a busy file by itself."""
        end = time.monotonic() + _BUSY_S
        while True:
            connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)  # every statement commits
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(_TABLE)
                return connection
            except sqlite3.OperationalError as error:
                connection.close()
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)
