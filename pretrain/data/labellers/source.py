"""Labels by construction: where a document comes from says what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pretrain.data.document import Row
from pretrain.data.labels import Value, labeller
from rlplatform.config import ConfigError
from rlplatform.datafiles import DataError


@labeller(version="1")
def from_source(
    texts: Sequence[str], documents: Sequence[Row], *, label: str = "domain", values: Mapping[str, str]
) -> list[Mapping[str, Value]]:
    """``label`` by the document's ``source``.

    Args:
        values: source -> value, e.g. ``{c4: web, wiki: encyclopedia}``.

    Raises:
        DataError: a document's source is not in ``values``.
    """
    for row in documents:
        if row["source"] not in values:
            raise DataError(f"from_source: values has no entry for source {row['source']!r}; there are {[*values]}")
    return [{label: values[row["source"]]} for row in documents]


def check_settings(**settings: object) -> None:
    """Raises ConfigError."""
    values = settings.get("values")
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, str) and v for v in values.values()):
        raise ConfigError(f"values: expected a mapping source -> value, e.g. {{wiki: encyclopedia}}, got {values!r}")


from_source.check_settings = check_settings  # type: ignore[attr-defined]
