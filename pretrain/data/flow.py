"""What became of the documents of a ``clean`` stage, step by step: as a table, as ``flow.json``, as a Sankey diagram.

Counts come from the shards' tasks under names ``STEP|measure[|reason]`` and are added up. What leaves one step enters
the next, which is checked when a ``Flow`` is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlplatform.runs import write_atomically

SEPARATOR = "|"


@dataclass(frozen=True)
class StepFlow:
    """One step's counts."""

    name: str
    documents: int  # that came
    characters: int  # of their texts as they came
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> documents
    dropped_characters: Mapping[str, int] = field(default_factory=dict)  # reason -> characters of those
    edited: int = 0  # documents that stay with another text
    edits: Mapping[str, int] = field(default_factory=dict)  # reason -> edits in those
    shortened: int = 0  # characters that they lost by it (below 0: gained)

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    @property
    def documents_left(self) -> int:
        return self.documents - self.num_dropped

    @property
    def characters_left(self) -> int:
        return self.characters - sum(self.dropped_characters.values()) - self.shortened


@dataclass(frozen=True)
class Flow:
    """All steps of a stage, in order.

    Raises:
        ValueError: no step, or a step got other documents or characters than the one before it left.
    """

    steps: tuple[StepFlow, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a flow: expected at least one step")
        for before, after in pairwise(self.steps):
            left, came = (before.documents_left, before.characters_left), (after.documents, after.characters)
            if left != came:
                raise ValueError(
                    f"flow: {before.name} left {left[0]} documents with {left[1]} characters, and {after.name} got "
                    f"{came[0]} with {came[1]}"
                )

    @property
    def documents(self) -> int:
        return self.steps[0].documents

    @property
    def characters(self) -> int:
        return self.steps[0].characters

    @property
    def kept(self) -> int:
        return self.steps[-1].documents_left

    @property
    def kept_characters(self) -> int:
        return self.steps[-1].characters_left


def flow_of(names: Sequence[str], counts: Mapping[str, int]) -> Flow:
    """The flow of these steps from summed counts ``STEP|measure[|reason]``."""
    by_step: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, number in sorted(counts.items()):
        name, measure, *reason = key.split(SEPARATOR, 2)
        if name not in by_step:
            continue
        if reason:
            by_step[name].setdefault(measure, {})[reason[0]] = number
        else:
            by_step[name][measure] = number
    return Flow(tuple(StepFlow(name, **{"documents": 0, "characters": 0, **found}) for name, found in by_step.items()))


def table(flow: Flow) -> str:
    """One line a step and one a reason, in columns, for terminals and Markdown alike."""
    lines = [("step", "documents", "dropped", "share", "characters", "lost", "why")]
    for step in flow.steps:
        lost = step.characters - step.characters_left
        why = [f"{reason} {number:,}" for reason, number in _largest(step.dropped)]
        if step.edited:
            why.append(f"{step.edited:,} edited: {', '.join(f'{r} {n:,}' for r, n in _largest(step.edits))}")
        lines.append(
            (
                step.name,
                f"{step.documents:,}",
                f"{step.num_dropped:,}",
                _share(step.num_dropped, step.documents),
                f"{step.characters:,}",
                f"{lost:,}",
                "; ".join(why),
            )
        )
    lost = flow.characters - flow.kept_characters
    dropped = flow.documents - flow.kept
    share = _share(dropped, flow.documents)
    lines.append(("kept", f"{flow.kept:,}", f"{dropped:,}", share, f"{flow.kept_characters:,}", f"{lost:,}", "in all"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def shown(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1], strict=True))]
        return f"| {' | '.join([*cells, line[-1].ljust(widths[-1])])} |"

    left, right = (lambda width: f":{'-' * (width + 1)}"), (lambda width: f"{'-' * (width + 1)}:")
    rule = [left(widths[0]), *map(right, widths[1:-1]), left(widths[-1])]
    return "\n".join([shown(lines[0]), f"|{'|'.join(rule)}|", *map(shown, lines[1:])])


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def save(flow: Flow, folder: Path) -> None:
    """``flow.json`` and ``flow.png``."""
    values = {
        "documents": flow.documents,
        "characters": flow.characters,
        "kept": flow.kept,
        "kept_characters": flow.kept_characters,
        "steps": [asdict(step) for step in flow.steps],
    }
    write_atomically(folder / "flow.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    sankey(flow, folder / "flow.png")


def load(folder: Path) -> Flow:
    """What ``save`` wrote."""
    values = json.loads((folder / "flow.json").read_text(encoding="utf-8"))
    return Flow(tuple(StepFlow(**step) for step in values["steps"]))


# --- the picture ----------------------------------------------------------------------------------------------------

_WIDTH = 4.0  # inches of the whole input
_RADIUS, _ROW, _LEFT, _RIGHT = 0.14, 0.62, 2.6, 5.0  # inches: of a turn, a row at least, the margins
_KEPT, _LOST = "#4c78a8", "#e0885a"


def sankey(flow: Flow, path: Path) -> None:
    """Documents from top to bottom, widths in proportion; what a step drops turns off to the right.

    Rows grow with what they drop, so that every band keeps its width around the turn.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    whole = max(flow.documents, 1)
    heights = [_ROW + _WIDTH * step.num_dropped / whole for step in flow.steps]
    height = sum(heights) + 1.5
    figure = plt.figure(figsize=(_LEFT + _WIDTH + _RIGHT, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-_LEFT, _WIDTH + _RIGHT)
    axes.set_ylim(-height + 0.8, 0.8)
    axes.axis("off")
    axes.text(0, 0.3, f"{flow.documents:,} documents, {flow.characters:,} characters", fontsize=12, weight="bold")
    top = 0.0
    for step, row in zip(flow.steps, heights, strict=True):
        _draw_step(axes, step, top, row, whole)
        top -= row
    _draw_end(axes, flow, top, whole)
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.15)  # names and reasons may be long
    plt.close(figure)


def _draw_step(axes: Any, step: StepFlow, top: float, row: float, whole: int) -> None:
    from matplotlib.patches import PathPatch, Rectangle

    stays, drops = _WIDTH * step.documents_left / whole, _WIDTH * step.num_dropped / whole
    axes.add_patch(Rectangle((0, top - row), stays, row, color=_KEPT, linewidth=0))
    axes.text(-0.15, top - 0.2, step.name, ha="right", va="center", fontsize=11)
    axes.text(-0.15, top - 0.42, f"{step.documents:,} came", ha="right", va="center", fontsize=8, color="#555555")
    if step.num_dropped:
        axes.add_patch(PathPatch(_turn(stays, max(drops, 0.012), top), color=_LOST, linewidth=0))
    y = top - _RADIUS - drops / 2
    first, second = _labels(step)
    axes.text(
        _WIDTH + 0.45, y + 0.02, first, va="bottom", fontsize=10, color="black" if step.num_dropped else "#888888"
    )
    axes.text(_WIDTH + 0.45, y - 0.02, second, va="top", fontsize=8, color="#555555")


def _turn(left: float, width: float, top: float) -> Any:
    """A band of ``width`` that comes down at ``left`` and goes off to the right: two quarter circles."""
    from matplotlib.path import Path as Outline

    bend, right = 0.5523, left + width  # of a Bézier curve that is nearly a quarter circle
    inner, outer, end = _RADIUS, _RADIUS + width, _WIDTH + 0.35
    turned = right + inner  # where the band is level
    points = [
        ((left, top), Outline.MOVETO),
        ((left, top - outer * bend), Outline.CURVE4),
        ((turned - outer * bend, top - outer), Outline.CURVE4),
        ((turned, top - outer), Outline.CURVE4),
        ((end, top - outer), Outline.LINETO),
        ((end, top - inner), Outline.LINETO),
        ((turned, top - inner), Outline.LINETO),
        ((turned - inner * bend, top - inner), Outline.CURVE4),
        ((right, top - inner * bend), Outline.CURVE4),
        ((right, top), Outline.CURVE4),
        ((left, top), Outline.CLOSEPOLY),
    ]
    return Outline([point for point, _ in points], [code for _, code in points])


def _labels(step: StepFlow) -> tuple[str, str]:
    """What was dropped or edited in one line, and why in another."""
    reasons = _largest(step.dropped)
    first = f"−{step.num_dropped:,} documents ({_share(step.num_dropped, step.documents)})" if reasons else ""
    why = [f"{reason} {number:,}" for reason, number in reasons]
    if step.edited:
        first += f"{', ' if first else ''}{step.edited:,} edited"
        why += [f"{reason} {number:,}" for reason, number in _largest(step.edits)]
    shown = ", ".join(why[:4]) + (f", {len(why) - 4} more" if len(why) > 4 else "")
    return first or "nothing dropped", shown + (f"; {-step.shortened:+,} characters" if step.edited else "")


def _draw_end(axes: Any, flow: Flow, top: float, whole: int) -> None:
    from matplotlib.patches import Polygon

    width = _WIDTH * flow.kept / whole
    axes.add_patch(Polygon([(0, top), (width, top), (width / 2, top - min(0.3, width))], color=_KEPT, linewidth=0))
    share, characters = _share(flow.kept, flow.documents), _share(flow.kept_characters, flow.characters)
    text = f"{flow.kept:,} documents kept ({share}), {flow.kept_characters:,} characters ({characters})"
    axes.text(0, top - 0.48, text, fontsize=12, weight="bold", va="center")
