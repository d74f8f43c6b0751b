"""Decisions on rows: nothing lost, nothing doubled, everything read back as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlplatform.stages.records import (
    COLUMNS,
    KEEP,
    Decision,
    Row,
    apply_filters,
    read_parquet,
    row_key,
    write_parquet,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
columns = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name not in ("id", "sample")
    ),
    json_values,
    max_size=3,
)
tables = st.lists(columns, max_size=12).map(
    lambda drawn: [{**row, "id": f"q{place}"} for place, row in enumerate(drawn)]
)
reasons = st.lists(st.sampled_from(["", "", "a", "b"]), min_size=12, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, st.lists(reasons, max_size=3))
def test_what_goes_in_comes_out_kept_or_dropped(tmp_path: Path, rows: list[Row], drawn: list[list[str]]) -> None:
    def filter_of(answers: list[str]):
        by_id = {row["id"]: Decision(reason, "why") for row, reason in zip(rows, answers, strict=False)}
        return lambda left: [by_id[row["id"]] for row in left]

    filters = {f"f{number}": filter_of(answers) for number, answers in enumerate(drawn)}
    records = apply_filters("stage", rows, filters)
    assert [record.row for record in records.records] == rows
    merged = records.kept + records.dropped()
    assert sorted(map(row_key, merged)) == sorted(map(row_key, rows))
    assert sum(records.counts.values()) == len(rows)
    for place, record in enumerate(records.records):
        first = next((number for number, answers in enumerate(drawn) if answers[place]), None)
        assert record.kept == (first is None)
        if first is not None:
            assert (record.filter, record.reason, record.detail) == (f"f{first}", drawn[first][place], "why")
        assert set(record.notes) == {f"f{number}" for number in range(len(drawn) if first is None else first)}
    path = tmp_path / "records.parquet"
    write_parquet(records, path)
    assert read_parquet(path) == records
    table = pq.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    assert table.num_rows == len(rows)


def test_each_filter_sees_what_is_left() -> None:
    seen: list[list[str]] = []

    def drop_first(rows: list[Row]) -> list[Decision]:
        seen.append([row["id"] for row in rows])
        return [Decision("first") if place == 0 else KEEP for place in range(len(rows))]

    rows = [{"id": name} for name in "abc"]
    records = apply_filters("s", rows, {"one": drop_first, "two": drop_first})
    assert seen == [["a", "b", "c"], ["b", "c"]]
    assert [row["id"] for row in records.kept] == ["c"]
    assert records.dropped("first") == rows[:2]
    assert records.table() == "s: 3 rows, 1 kept\n  one: first 1\n  two: first 1"


def test_a_row_and_a_response() -> None:
    assert row_key({"id": "q1"}) == "q1"
    assert row_key({"id": "q1", "sample": 3}) == "q1#3"
    for row in (
        {},
        {"id": 3},
        {"id": ""},
        {"id": "a", "sample": -1},
        {"id": "a", "sample": "0"},
        {"id": "a", "sample": True},
    ):
        with pytest.raises(ValueError, match="expected"):
            row_key(row)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\['a'\] came more than once"):
        apply_filters("s", [{"id": "a"}, {"id": "a"}], {})
    with pytest.raises(ValueError, match="was given 1 rows"):
        apply_filters("s", [{"id": "a"}], {"f": lambda rows: []})
    with pytest.raises(ValueError, match="was given 1 rows"):
        apply_filters("s", [{"id": "a"}], {"f": lambda rows: [True]})  # type: ignore[list-item]


@pytest.mark.parametrize("value", [float("nan"), (1, 2), {1: 2}, {1, 2}, b"x", "\ud800"])
def test_what_json_would_change_is_refused(value: object, tmp_path: Path) -> None:
    records = apply_filters("s", [{"id": "a", "x": value}], {})
    with pytest.raises(ValueError, match="row 'a'"):
        write_parquet(records, tmp_path / "r.parquet")
    assert not list(tmp_path.iterdir())


def test_files_that_are_none_of_these(tmp_path: Path) -> None:
    import pyarrow as pa

    with pytest.raises(ValueError, match="expected a parquet file"):
        read_parquet(tmp_path / "absent.parquet")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    with pytest.raises(ValueError, match="expected the columns stage, key"):
        read_parquet(other)


def test_no_torch_at_import() -> None:
    """The stages and the entropy controller run in the driver."""
    names = "records query_filters response_filters sample_selection query_selection annotation checklists fusion"
    code = "import sys\n" + "".join(f"import rlplatform.stages.{name}\n" for name in names.split())
    code += "import rlplatform.entropy, rlplatform.flops, rlplatform.vocabulary\n"
    code += "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'sympy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
