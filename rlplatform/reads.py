"""Which config keys were read? Off by default; a test switches it on and fails on a key that nobody reads.

With ``RLPLATFORM_TRACK_READS=FOLDER`` in the environment every process appends ``Class.field`` to a file of its own in
that folder the first time it reads the field. Validation, printing and saving do not count as reading.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENV = "RLPLATFORM_TRACK_READS"
_FOLDER = os.environ.get(ENV, "")
_seen: set[str] = set()
_paused = 0


@contextmanager
def reads_do_not_count() -> Iterator[None]:
    global _paused
    _paused += 1
    try:
        yield
    finally:
        _paused -= 1


class TrackedReads:
    """Base of every config dataclass; without the environment variable it adds nothing."""

    if _FOLDER:

        def __init_subclass__(cls) -> None:
            check = cls.__dict__.get("__post_init__")
            if check is not None:

                def __post_init__(self: Any) -> None:
                    with reads_do_not_count():
                        check(self)

                cls.__post_init__ = __post_init__  # type: ignore[attr-defined]

        def __getattribute__(self, name: str) -> Any:
            if not _paused and not name.startswith("_"):
                cls = type(self)
                if name in cls.__dataclass_fields__:  # type: ignore[attr-defined]
                    key = f"{cls.__name__}.{name}"
                    if key not in _seen:
                        _seen.add(key)
                        with open(Path(_FOLDER) / f"{os.getpid()}.txt", "a") as file:
                            file.write(key + "\n")
            return object.__getattribute__(self, name)


def reads(folder: str | Path) -> set[str]:
    """All ``Class.field`` names read by any process that tracked into ``folder``."""
    return {line for path in Path(folder).glob("*.txt") for line in path.read_text().split("\n") if line}
