"""A labeller of your own: a function of texts. See docs/annotation.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pretrain.data.labels import Value


def questions(texts: Sequence[str], *, mark: str = "?") -> list[Mapping[str, Value]]:
    """How many questions a text asks, and whether its title is one."""
    return [{"questions": text.count(mark), "asks": text.partition("\n")[0].rstrip().endswith(mark)} for text in texts]
