"""Where a model comes from: ``lineage.json`` for programs and the model card ``README.md``, in every exported folder.

The lineage lists every stage that the model stands on, oldest first: kind, key, parents, settings that differ from the
defaults, hashes of the data it read, seconds and results. A model that starts from a folder with a lineage of its own
continues it; one that starts from a hub id names the id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlplatform.configfile import difference_to_defaults
from rlplatform.reads import reads_do_not_count
from rlplatform.runs import versions, write_atomically

LINEAGE, CARD = "lineage.json", "README.md"
_HEAD = {"library_name": "transformers", "tags": ["rlplatform"]}


def write_card(config: Any, done: Mapping[str, Any], finished: Mapping[str, Mapping[str, Any]]) -> None:
    """Write both files into the model folder that a stage left; nothing where it left no model.

    Args:
        config: the stage's, with its inputs filled in.
        done: what its ``done.json`` will say.
        finished: stage -> ``done.json`` of the stages before it.
    """
    folder = Path(done["output"])
    if not (folder / "config.json").is_file():
        return
    entries = lineage(config, done, finished)
    write_atomically(folder / LINEAGE, json.dumps({"stages": entries}, indent=1) + "\n")
    write_atomically(folder / CARD, card(entries))


def lineage(config: Any, done: Mapping[str, Any], finished: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry a stage, oldest first, the model's own last."""
    with reads_do_not_count():
        name, base = config.name, getattr(getattr(config, "model", None), "path", "")
    entries: dict[str, dict[str, Any]] = {}  # by key: a stage that two others stand on is listed once
    for parent in _needed(done, finished):
        known = _known(Path(finished[parent]["output"])) or [_entry(parent, finished[parent])]
        entries |= {entry["key"]: entry for entry in known}
    own = _entry(name, done) | {"settings": difference_to_defaults(config), "versions": versions()}
    if base and not any(base.startswith(str(stage["output"])) for stage in finished.values()):
        own["base_model"] = base
        entries = {entry["key"]: entry for entry in _known(Path(base))} | entries
    return [*entries.values(), own]


def _entry(name: str, done: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: done.get(key, {}) for key in ("kind", "key", "inputs", "data", "seconds")}
    return {"stage": name, **kept, "results": dict(done["summary"])}


def _known(folder: Path) -> list[dict[str, Any]]:
    file = folder / LINEAGE
    return json.loads(file.read_text(encoding="utf-8"))["stages"] if file.is_file() else []


def _needed(done: Mapping[str, Any], finished: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The stages that one stands on, directly or through others, in their order."""
    needed: set[str] = set()
    waiting = list(done["inputs"])
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += finished[name]["inputs"]
    return [name for name in finished if name in needed]


def card(entries: Sequence[Mapping[str, Any]]) -> str:
    """The model card: what it is, how it was made, how it did, and everything needed to make it again."""
    own = entries[-1]
    base = next((entry["base_model"] for entry in reversed(entries) if entry.get("base_model")), "")
    head = {**_HEAD, **({"base_model": base} if base else {})}
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {own['stage']}", ""]
    lines += [f"Made by the stage `{own['stage']}` ({own['kind']}) of rlplatform. Its key: `{own['key']}`.", ""]
    lines += ["## How it was made", "", "| stage | kind | from | seconds | key |", "|---|---|---|---|---|"]
    for entry in entries:
        parents = ", ".join([*entry["inputs"], *([entry["base_model"]] if entry.get("base_model") else [])]) or "-"
        lines.append(f"| {entry['stage']} | {entry['kind']} | {parents} | {entry['seconds']:g} | `{entry['key']}` |")
    lines += ["", "## Results of the last stage", ""]
    numbers = _numbers(own["results"])
    lines += ["| | |", "|---|---|", *(f"| {name} | {value:.6g} |" for name, value in numbers)] if numbers else ["none"]
    data = {path: value for entry in entries for path, value in entry["data"].items()}
    lines += ["", "## Data", ""]
    lines += [f"- `{Path(path).name}`: sha256 `{value}`" for path, value in sorted(data.items())] or ["none"]
    lines += ["", "## Settings that differ from the defaults", "", "```yaml"]
    lines += [yaml.safe_dump(dict(own["settings"]), sort_keys=False).strip(), "```", ""]
    lines += ["## Versions", "", "```yaml", yaml.safe_dump(own["versions"], sort_keys=False).strip(), "```", ""]
    return "\n".join(lines)


def _numbers(results: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in results.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name} ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", float(value)))
    return found
