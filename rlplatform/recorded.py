"""Groups that are written down as they come, so that an interrupted stage goes on where it was killed.

    FOLDER/KEY.jsonl    a line a finished group: {"index": 7, "group": pickled, base64}

``KEY`` hashes what the groups follow from: prompts, seeds, sampling, environment, graders' settings and the model's
weights. A request's seed depends on its place alone, so what is sampled after a restart is what would have been
sampled before it. A line that a kill cut short is taken away, and its group is sampled again. The files are pickles of
the run's own folder: they are read by the run that wrote them, and removed when it is finished.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlplatform.types import GenerationRequest, RolloutGroup, SamplingParams, ScoredGroup

POLL_S = 0.5
FOLDER = "groups"  # of a run folder
Change = Callable[[RolloutGroup], RolloutGroup]


class Fleet(Protocol):
    """``actors.rollout_fleet.RolloutFleet`` is one."""

    def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingParams | None = None) -> None: ...
    def poll(self, timeout_s: float) -> list[RolloutGroup]: ...
    @property
    def num_pending(self) -> int: ...


class Service(Protocol):
    """``actors.reward_service.RewardService`` is one."""

    def submit(self, groups: Sequence[RolloutGroup], *, step: int) -> None: ...
    def poll(self, timeout_s: float) -> list[ScoredGroup]: ...
    @property
    def num_pending(self) -> int: ...
    @property
    def graders(self) -> Any: ...


class Recorded:
    """Generation and grading in one stream, recorded; stands where a fleet and a reward service are asked for.

    Args:
        folder: where the files lie.
        service: grades each group the moment it is finished; None: groups are recorded as sampled.
        about: what else the groups follow from, as JSON takes it.
        change: of a group, before it is graded.
    """

    def __init__(
        self,
        folder: Path,
        fleet: Fleet,
        service: Service | None = None,
        *,
        about: Mapping[str, Any],
        change: Change | None = None,
    ) -> None:
        self._folder, self._fleet, self._service = folder, fleet, service
        self._about, self._change = about, change
        self._scored: dict[int, ScoredGroup] = {}  # by id of the group

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> list[RolloutGroup]:
        """The groups of these requests, in their order; those on record are not asked for again.

        Raises:
            ValueError: two requests of one place.
        """
        if len({request.index for request in requests}) < len(requests):
            raise ValueError("recorded groups: expected requests of different places")
        file = self._folder / f"{self._key(requests, sampling)}.jsonl"
        found = read(file)
        missing = [request for request in requests if request.index not in found]
        if missing:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "ab") as out:
                for item in self._stream(missing, sampling):
                    group = item.group if isinstance(item, ScoredGroup) else item
                    found[group.index] = item
                    out.write(_line(group.index, item))
                    out.flush()
        groups = []
        for request in requests:
            item = found[request.index]
            if isinstance(item, ScoredGroup):
                self._scored[id(item.group)] = item
                groups.append(item.group)
            else:
                groups.append(item)
        return groups

    def score(self, groups: Sequence[RolloutGroup], *, step: int = 0) -> list[ScoredGroup]:
        """Verdicts of groups that ``generate`` returned."""
        return [self._scored.pop(id(group)) for group in groups]

    @property
    def graders(self) -> Any:
        return self._service.graders if self._service is not None else None

    def _stream(
        self, requests: Sequence[GenerationRequest], sampling: SamplingParams
    ) -> Iterator[RolloutGroup | ScoredGroup]:
        fleet, service = self._fleet, self._service
        fleet.submit(requests, sampling)
        left = len(requests)
        while left:
            grading = service is not None and service.num_pending > 0
            groups = fleet.poll(0.02 if grading else POLL_S) if fleet.num_pending else []
            finished: Sequence[RolloutGroup | ScoredGroup] = groups
            if service is not None:
                if groups:
                    service.submit([self._change(g) if self._change else g for g in groups], step=0)
                finished = service.poll(0.0 if fleet.num_pending else POLL_S)
            left -= len(finished)
            if left and not finished and not fleet.num_pending and not (service is not None and service.num_pending):
                raise RuntimeError(f"recorded groups: {left} of {len(requests)} never came back")
            yield from finished

    def _key(self, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> str:
        digest = hashlib.sha256(json.dumps([self._about, vars(sampling)], sort_keys=True, default=str).encode())
        for request in requests:
            prompt = request.prompt
            columns = json.dumps(prompt.columns, sort_keys=True, default=str)
            digest.update(f"{request.index} {request.step} {request.seed} {request.num_samples} {columns}\n".encode())
            digest.update(prompt.token_ids.tobytes())
        return digest.hexdigest()[:16]


def read(file: Path) -> dict[int, Any]:
    """Place -> group of a record; a last line that a kill cut short is removed from the file."""
    if not file.is_file():
        return {}
    found: dict[int, Any] = {}
    good = 0
    with open(file, "rb") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
                item = pickle.loads(base64.b64decode(entry["group"], validate=True))
            except (ValueError, KeyError, pickle.UnpicklingError, EOFError):
                break
            if not line.endswith(b"\n"):
                break
            found[int(entry["index"])] = item
            good += len(line)
    if good < file.stat().st_size:
        os.truncate(file, good)
    return found


def _line(index: int, item: RolloutGroup | ScoredGroup) -> bytes:
    packed = base64.b64encode(pickle.dumps(item, protocol=5)).decode()
    return json.dumps({"index": index, "group": packed}).encode() + b"\n"


def weights_mark(model: str) -> list[Any]:
    """What changes when a model's folder gets other weights: names, sizes and times; [] for a hub id."""
    folder = Path(model)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
