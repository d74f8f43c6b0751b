"""The Python blocks of the stages' pages run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["cold_start.md", "fusion.md"])
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(block, {})
    shown = capsys.readouterr().out
    expected = {
        "cold_start.md": "queries: 21 rows, 10 kept",
        "fusion.md": "<think>\n\n</think>\n\nRed.",
    }[page]
    assert expected in shown


def test_every_reason_is_documented() -> None:
    """Each reason that a filter of the cold start can give stands on its page."""
    text = (DOCS / "cold_start.md").read_text(encoding="utf-8")
    for name in ("query_filters", "response_filters", "query_selection"):
        source = (DOCS.parent / "rlplatform" / "stages" / f"{name}.py").read_text(encoding="utf-8")
        reasons = re.findall(r'Decision\(\s*"([a-z_]+)"', source)
        assert reasons
        assert [reason for reason in reasons if f"`{reason}`" not in text] == []
