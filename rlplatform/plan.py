"""What a recipe would run, and why: decided from what lies on disk, before anything starts.

A stage's *key* hashes its config, the keys of the stages it takes inputs from, the content of its data files and of the
``FILE.py:function`` it names, and which weights lie in a model folder it takes from elsewhere: what changed runs again,
and so does everything that stands on it. The folder it leaves is kept as ``STAGE.previous``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rlplatform.config import (
    ConfigError,
    EvalConfig,
    RecipeConfig,
    RLConfig,
    RunConfig,
    SampleConfig,
)
from rlplatform.configfile import flat, inputs, stages, to_dict
from rlplatform.data_marks import DONE, STARTED, content_hash, data_hashes
from rlplatform.reads import reads_do_not_count
from rlplatform.recorded import weights_mark

WORK = (
    DONE,
    "metrics.jsonl",
    "checkpoints",
    "groups",
    ".finished",
    "work",
)  # an attempt that left none of these left nothing to lose
MAY_CHANGE = ("num_steps", "run_dir", "name", "tracker.", "checkpoint.", "evaluation.every")  # a run goes on with these
NOT_HASHED = ("run_dir", "name", "tracker", "checkpoint")

_CODE = re.compile(r"(?:\w+:)?(?P<file>[^:]+\.py):\w+")

FINISHED, RUNS, RESUMES, STARTS_OVER, LEFT_OUT = "finished", "runs", "resumes", "starts over", "left out"


@dataclass(frozen=True)
class Choice:
    """``run --from`` and ``run --only``: names of stages, or empty."""

    start: str = ""
    only: str = ""


EVERYTHING = Choice()


@dataclass(frozen=True)
class Planned:
    """What will become of one stage."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    state: str  # finished | runs | resumes | starts over | left out
    reason: str
    forced: bool = False  # by --from: what it left is set aside first

    @property
    def included(self) -> bool:
        return self.state != LEFT_OUT


def check_choice(config: RunConfig, choice: Choice) -> None:
    """Raises ConfigError when ``choice`` names no stage of this config."""
    for option, name in (("--from", choice.start), ("--only", choice.only)):
        if not name:
            continue
        if not isinstance(config, RecipeConfig):
            raise ConfigError(f"{option} {name}: expected a recipe, this config is of kind {config.kind}")
        if name not in config.stages:
            raise ConfigError(f"{option} {name}: expected one of the stages {', '.join(config.stages)}")
    if choice.start and choice.only and choice.start != choice.only:
        raise ConfigError(
            f"--from {choice.start} --only {choice.only}: expected one stage; with both, that stage starts over alone"
        )


def plan_recipe(recipe: RecipeConfig, choice: Choice = EVERYTHING) -> dict[str, Planned]:
    """The stages in order with what will become of them.

    Raises:
        ConfigError: ``choice.only`` needs a stage that is not finished.
    """
    built = stages(recipe)
    planned: dict[str, Planned] = {}
    finished: dict[str, dict[str, Any]] = {}
    behind = False
    for name, config in built.items():
        behind = behind or bool(choice.start and name == choice.start)
        needed = tuple(sorted(set(inputs(config))))
        state, reason = _state(config, needed, planned, finished)
        forced = behind and is_started(Path(config.run_dir))  # else nothing would replace what was set aside before
        if forced:
            state, reason = STARTS_OVER, f"--from {choice.start}"
        if choice.only and name != choice.only:
            state, reason, forced = LEFT_OUT, f"--only {choice.only}", False
        if state in (FINISHED, LEFT_OUT) and (done := finished_mark(config, finished)):
            finished[name] = done
        planned[name] = Planned(name, config.kind, needed, state, reason, forced)
    if choice.only:
        missing = [needed for needed in planned[choice.only].inputs if needed not in finished]
        if missing:
            raise ConfigError(
                f"--only {choice.only}: it needs {', '.join(missing)}, not finished yet, or finished "
                "before something changed; run that first"
            )
    return planned


def _state(
    config: RunConfig,
    needed: tuple[str, ...],
    planned: Mapping[str, Planned],
    finished: Mapping[str, dict[str, Any]],
) -> tuple[str, str]:
    folder = Path(config.run_dir)
    started = read_mark(folder / STARTED)
    if started is None or not is_started(folder):
        return RUNS, "never ran"
    waits_for = [name for name in needed if name not in finished]
    changed = changes(started["config"], config)
    if waits_for:
        return STARTS_OVER, f"{', '.join(waits_for)} {planned[waits_for[0]].state}"
    resolved = resolve_inputs(config, finished)
    key = stage_key(config, resolved, finished)
    done = finished_mark(config, finished)
    if done:
        return FINISHED, f"{done['seconds']:.0f} s"
    if changed or started["key"] != key:
        return STARTS_OVER, "; ".join(changed[:3]) or "its data changed"
    if not stands_on(started, finished):
        return STARTS_OVER, f"{', '.join(needed)} ran again"
    return RESUMES, "was interrupted"


# --- what lies on disk ----------------------------------------------------------------------------------------------


def read_mark(path: Path) -> dict[str, Any] | None:
    """The JSON object in a mark of a stage's folder, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def finished_mark(config: RunConfig, finished: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """``done.json`` of a stage that is finished as it is configured now, on the inputs that are there now; else None.

    Args:
        finished: stage -> ``done.json`` of the stages before it for which this holds.
    """
    done = read_mark(Path(config.run_dir) / DONE)
    if not done or any(needed not in finished for needed in inputs(config)):
        return None
    key = stage_key(config, resolve_inputs(config, finished), finished)
    return done if done["key"] == key and stands_on(done, finished) else None


def attempts(config: RunConfig, finished: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Which attempt of each stage it takes inputs from: one that ran again has the same key, not the same weights."""
    return {needed: finished[needed].get("attempt") for needed in sorted(set(inputs(config)))}


def stands_on(mark: Mapping[str, Any], finished: Mapping[str, dict[str, Any]]) -> bool:
    """Did the stage that left ``mark`` take its inputs from these attempts? Marks that do not say so are believed."""
    known = mark.get("attempts", {})
    return all(finished[name].get("attempt") == attempt for name, attempt in known.items() if name in finished)


def is_started(folder: Path) -> bool:
    """Did an attempt leave work that can be lost?"""
    return any((folder / work).exists() for work in WORK)


def changes(before: Mapping[str, Any], config: RunConfig) -> list[str]:
    """``key: old -> new`` of every setting that decides the result and is not what the attempt had."""
    old, new = flat(before), flat(to_dict(config))
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(MAY_CHANGE)
    ]


# --- inputs and keys ------------------------------------------------------------------------------------------------


def resolve_inputs(config: Any, finished: Mapping[str, dict[str, Any]]) -> Any:
    """The config with every ``stage:NAME[/part]``, wherever it stands, replaced by the path that stage left.

    In the settings of reward functions the path is absolute, for processes elsewhere.
    """

    def resolve(value: Any, *, absolute: bool = False) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            found = {f.name: getattr(value, f.name) for f in fields(value)}
            changed = {k: new for k, v in found.items() if (new := resolve(v, absolute=absolute)) is not v}
            return replace(value, **changed) if changed else value
        if isinstance(value, Mapping):
            items = {k: resolve(v, absolute=absolute) for k, v in value.items()}
            return items if any(items[k] is not value[k] for k in items) else value
        if isinstance(value, (list, tuple)):
            entries = [resolve(v, absolute=absolute) for v in value]
            return type(value)(entries) if any(a is not b for a, b in zip(entries, value, strict=True)) else value
        if isinstance(value, str) and value.startswith("stage:"):
            name, _, part = value.removeprefix("stage:").partition("/")
            output = Path(finished[name]["output"])
            path = output / part if part else output
            return str(path.resolve() if absolute else path)
        return value

    with reads_do_not_count():
        if isinstance(config, RLConfig | EvalConfig | SampleConfig):
            functions = resolve(config.reward.functions, absolute=True)
            config = replace(config, reward=replace(config.reward, functions=functions))
        return resolve(config)


def stage_key(config: Any, resolved: Any, finished: Mapping[str, dict[str, Any]]) -> str:
    """Hash of what the stage's result depends on."""
    values = {k: v for k, v in to_dict(config).items() if k not in NOT_HASHED}
    parents = {needed: finished[needed]["key"] for needed in sorted(set(inputs(config)))}
    outside = [_code_files(values), _models(values)]
    parts = [values, parents, sorted(data_hashes(resolved).values()), *(part for part in outside if part)]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    """Every string of a config as plain values, keys of mappings too."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(key)
            yield from _texts(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


def _code_files(values: Mapping[str, Any]) -> dict[str, str]:
    """File -> SHA-256 of the source behind every ``[adapter:]FILE.py:function``; what it imports is not looked at."""
    found = (_CODE.fullmatch(text) for text in _texts(values))
    paths = {match["file"] for match in found if match}
    return {path: content_hash(Path(path)) for path in sorted(paths) if Path(path).is_file()}


def _models(values: Mapping[str, Any]) -> dict[str, Any]:
    """Folder -> names, sizes and times of the weights in it, of models that no stage of the recipe makes."""
    sections = [values.get(name) for name in ("model", "teacher")]
    paths = [section.get("path", "") for section in sections if isinstance(section, Mapping)]
    return {path: mark for path in paths if path and (mark := weights_mark(path))}
