"""The project's other four packages have everyday names. This refuses to run with somebody else's.

``actors``, ``rewards``, ``model`` and ``pretrain`` are top-level packages, and other distributions (or a ``model.py``
beside a script) can own the same names. Python takes whichever comes first on ``sys.path``, which would surface as a
puzzling ``AttributeError`` deep inside a worker. So each name must resolve to the folder that holds ``rlplatform``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

TOP_LEVEL_NAMES = ("actors", "rewards", "model", "pretrain")
_HOME = Path(__file__).resolve().parents[1]  # the folder that holds rlplatform/: a checkout or site-packages


class ForeignPackageError(ImportError):
    """A top-level name of the project resolves to code that is not the project's."""


def check_top_level_names(names: tuple[str, ...] = TOP_LEVEL_NAMES) -> None:
    """Raise ``ForeignPackageError`` unless every name resolves next to ``rlplatform``. Imports nothing (about 1 ms)."""
    for name in names:
        found = list(_locations(name))
        if not found:
            raise ForeignPackageError(
                f"rlplatform expects the package `{name}` at {_HOME / name}, and there is none. The installation is "
                f"incomplete: reinstall rlplatform (`make setup` in a checkout, `pip install --force-reinstall "
                f"rlplatform` elsewhere)."
            )
        foreign = [path for path in found if path.parent != _HOME]
        if foreign:
            raise ForeignPackageError(_message(name, foreign[0]))


def _locations(name: str) -> Iterator[Path]:
    """Where ``import name`` would take it from: package folders, or the file of a single module."""
    module = sys.modules.get(name)
    if module is not None:  # imported already; find_spec would trust its __spec__, which may be None
        paths: list[str | None] = list(getattr(module, "__path__", [])) or [getattr(module, "__file__", None)]
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return
        paths = [*spec.submodule_search_locations] if spec.submodule_search_locations else [spec.origin]
    for path in paths:
        if path:
            yield Path(path).resolve()


def _message(name: str, path: Path) -> str:
    owner = _distribution_of(name, path)
    if owner:
        belongs = f"which belongs to the distribution `{owner}`"
        remedy = f"uninstall it (`pip uninstall {owner}`) or install rlplatform into an environment of its own"
    else:
        belongs = "which no installed distribution owns (a file of that name beside your script?)"
        remedy = "rename it, or run from another folder"
    return (
        f"`import {name}` finds {path}, {belongs}; rlplatform needs its own package at {_HOME / name}. "
        f"What to do: {remedy}."
    )


def _distribution_of(name: str, path: Path) -> str | None:
    """The distribution installed beside ``path`` that ships ``name``; read only when something is wrong already."""
    from importlib.metadata import distributions

    for distribution in distributions(path=[str(path.parent)]):
        files = [file.parts[0] for file in distribution.files or () if file.parts]
        top_level = (distribution.read_text("top_level.txt") or "").split()
        if name in files or f"{name}.py" in files or name in top_level:
            return str(distribution.metadata["Name"])
    return None
