"""What the pictures and tables of the studies share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canvas(*, width: float = 7.5, height: float = 4.4, columns: int = 1) -> tuple[Any, Any]:
    """Figure and axis, or an array of ``columns`` axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width * (1 if columns == 1 else 0.8 * columns), height))
    for axis in [axes] if columns == 1 else axes:
        axis.grid(alpha=0.3)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def percent(entry: Mapping[str, Any]) -> str:
    """``value`` and ``ci95``, shares, as a cell of a table."""
    return f"{100 * entry['value']:.1f} % ± {100 * entry['ci95']:.1f}"


def points(entry: Mapping[str, Any]) -> str:
    """A difference of shares."""
    return f"{100 * entry['value']:+.1f} ± {100 * entry['ci95']:.1f}"
