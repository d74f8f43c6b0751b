"""Which function graded: its source, its settings, the package it comes from, the model it is served by."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rlplatform
from rewards.base import RewardFn
from rewards.composition import Part
from rlplatform.guard import TOP_LEVEL_NAMES

_LIBRARIES = ("math-verify", "latex2sympy2-extended", "sympy", "if-verifiable", "jsonschema", "py3langid", "openai")


def versions(parts: Mapping[str, Part], resolved: Mapping[str, RewardFn], served: Mapping[str, str]) -> dict[str, Any]:
    """``packages``: what built-in graders stand on. ``functions``: of each part, by name

    - ``function``: what the config names;
    - ``source``: hash of the file that holds it (not of what that imports);
    - ``settings``: hash of its args, absent where there are none, and of the files that settings name, where the
      function says which settings do, in an attribute ``file_settings``;
    - ``package``: the distribution that it comes from, where that is called like its package;
    - ``served``: what a serving actor says of itself, e.g. a model's path and the hash of its weights.
    """
    return {
        "packages": {name: version for name in _LIBRARIES if (version := _version(name))},
        "functions": {name: _function(part, resolved[name], served.get(name, "")) for name, part in parts.items()},
    }


def _function(part: Part, fn: RewardFn, served: str) -> dict[str, str]:
    source = source_file(fn)
    files = {name: _content(part.args.get(name)) for name in getattr(fn, "file_settings", ())}
    values = {**part.args, **{f"{name} (file)": content for name, content in files.items() if content}}
    settings = json.dumps(values, sort_keys=True, default=str) if part.args else ""
    known = {
        "function": part.function,
        "source": _hash(Path(source).read_bytes()) if source else "",
        "settings": _hash(settings.encode()) if settings else "",
        "package": _package(getattr(fn, "__module__", "") or ""),
        "served": served,
    }
    return {key: value for key, value in known.items() if value}


def source_file(fn: RewardFn) -> str:
    """The file that holds a function, or the class of a callable object; "" where there is none."""
    try:
        fn = inspect.unwrap(fn)
        return inspect.getsourcefile(fn if inspect.isroutine(fn) else type(fn)) or ""
    except TypeError:
        return ""


def _content(value: Any) -> str:
    """The hash of a file's content, "" where ``value`` names none."""
    try:
        return _hash(Path(value).expanduser().read_bytes())
    except (OSError, TypeError, ValueError):
        return ""


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _package(module: str) -> str:
    """``name version`` of the distribution called like the top-level package: finding others takes a second."""
    top = module.partition(".")[0]
    if top in TOP_LEVEL_NAMES:
        return f"rlplatform {rlplatform.__version__}"
    version = _version(top)
    return f"{top} {version}" if version else ""
