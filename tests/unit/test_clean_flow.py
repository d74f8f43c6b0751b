"""The flow: numbers worked out by hand, the balance between steps, the files, the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.data.flow import Flow, StepFlow, flow_of, load, sankey, save, table

COUNTS = {
    "language|documents": 10,
    "language|characters": 1000,
    "language|dropped|value": 2,
    "language|dropped|low_score": 1,
    "language|dropped_characters|value": 150,
    "language|dropped_characters|low_score": 50,
    "privacy|documents": 7,
    "privacy|characters": 800,
    "privacy|edited": 2,
    "privacy|edits|email": 3,
    "privacy|shortened": -6,
    "mine|documents": 7,
    "mine|characters": 806,
    "mine|dropped|a|reason|with|bars": 7,
    "mine|dropped_characters|a|reason|with|bars": 806,
}
STEPS = ["language", "privacy", "mine"]


def test_counts_become_a_flow() -> None:
    flow = flow_of(STEPS, COUNTS)
    language, privacy, mine = flow.steps
    assert (language.num_dropped, language.documents_left, language.characters_left) == (3, 7, 800)
    assert (privacy.num_dropped, privacy.documents_left, privacy.characters_left) == (0, 7, 806)
    assert mine.dropped == {"a|reason|with|bars": 7}
    assert (flow.documents, flow.characters, flow.kept, flow.kept_characters) == (10, 1000, 0, 0)


@pytest.mark.parametrize("key", ["language|dropped|value", "privacy|documents", "privacy|shortened", "mine|characters"])
def test_what_one_step_leaves_is_what_the_next_one_gets(key: str) -> None:
    with pytest.raises(ValueError, match=r"flow: \w+ left \d+ documents with \d+ characters, and \w+ got"):
        flow_of(STEPS, {**COUNTS, key: COUNTS[key] + 1})
    with pytest.raises(ValueError, match="at least one step"):
        Flow(())


def test_the_table_by_hand() -> None:
    shown = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(flow_of(STEPS[:2], COUNTS)).split("\n")
    ]
    assert shown[0] == ["step", "documents", "dropped", "share", "characters", "lost", "why"]
    assert shown[2] == ["language", "10", "3", "30.00%", "1,000", "200", "value 2; low_score 1"]
    assert shown[3] == ["privacy", "7", "0", "0.00%", "800", "-6", "2 edited: email 3"]
    assert shown[4] == ["kept", "7", "3", "30.00%", "806", "194", "in all"]
    assert len({len(line) for line in table(flow_of(STEPS[:2], COUNTS)).split("\n")}) == 1


def test_a_step_that_no_document_reached_has_zeros() -> None:
    flow = flow_of(
        ["all", "none"], {"all|documents": 1, "all|characters": 5, "all|dropped|x": 1, "all|dropped_characters|x": 5}
    )
    assert flow.steps[1] == StepFlow("none", 0, 0)
    assert "-" in table(flow)


def many_steps(num: int) -> Flow:
    steps, documents = [], 1000
    for k in range(num):
        dropped = {0: 300, 1: 0, 2: 1}.get(k, 20)
        steps.append(
            StepFlow(f"step {k}", documents, documents * 10, {"why": dropped}, {"why": dropped * 10}, edited=k % 2)
        )
        documents -= dropped
    return Flow(tuple(steps))


def test_files_go_there_and_back(tmp_path: Path) -> None:
    flow = many_steps(9)
    save(flow, tmp_path)
    assert load(tmp_path) == flow
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num", [1, 8, 14])
def test_texts_of_the_picture_do_not_overlap_or_leave_it(
    num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every text's box is inside the figure and shares no area with another's."""
    import matplotlib.pyplot as plt

    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    sankey(many_steps(num), tmp_path / "flow.png")
    (figure,) = figures
    monkeypatch.undo()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 2 + 4 * num
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes if box.width)
    clashes = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.width and b.width and a.overlaps(b)]
    assert clashes == []
    plt.close(figure)


def test_bands_have_the_width_of_their_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    sankey(many_steps(4), tmp_path / "flow.png")
    monkeypatch.undo()
    bands = [patch for patch in figures[0].axes[0].patches if isinstance(patch, Rectangle)]
    assert [round(band.get_width(), 6) for band in bands] == [4 * n / 1000 for n in (700, 700, 699, 679)]
    plt.close(figures[0])
