from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from cfqa_data.integrity.health import health, health_cells


def table(distortions: list[list[float]], **columns: list[list[float]]) -> pa.Table:
    """Return the labels of one codec: a row of numbers per source."""
    levels = range(len(distortions[0]))
    rows: list[dict[str, Any]] = []
    for source, series in enumerate(distortions):
        for level in levels:
            row = {"distortion": series[level], "bits": 100 - level, "mse": 1.0 + level}
            row |= {name: values[source][level] for name, values in columns.items()}
            rows.append({"task": "cls", "codec": "x265", "source_id": f"{source}"} | row)
            rows[-1]["level"] = level
    return pa.Table.from_pylist(rows)


def test_a_healthy_ladder() -> None:
    (row,) = health(table([[0.1, 1.0, 2.0], [0.1, 0.1, 3.0]]).take([5, 0, 3, 1, 4, 2]))
    assert row == {
        "task": "cls",
        "codec": "x265",
        "sources": 2,
        "changing": 1.0,
        "distortion_best": pytest.approx(0.1),
        "distortion_worst": 2.5,
        "rate_falls": 1.0,
        "mse_rises": 1.0,
        "ok": True,
    }


@pytest.mark.parametrize(
    ("labels", "figure", "value"),
    [
        (table([[0, 0, 1], [0, 0, 1], [0, 0, 0]]), "changing", 2 / 3),
        (table([[0.2, 0.5, 1.9]]), "distortion_worst", 1.9),
        (table([[0, -1, 0]]), "distortion_worst", 0),
        (table([[0, 0, 1]], bits=[[3, 3, 1]]), "rate_falls", 0.5),
        (table([[0, 0, 1]], mse=[[1, 3, 2]]), "mse_rises", 0.5),
    ],
)
def test_each_figure_can_fail_alone(labels: pa.Table, figure: str, value: float) -> None:
    (row,) = health(labels)
    assert row[figure] == pytest.approx(value)
    assert not row["ok"]


def test_an_unknown_rate_is_no_fault_of_a_ladder() -> None:
    (row,) = health(table([[0.1, 1.0, 2.0]], bits=[[None] * 3]))  # type: ignore[list-item]
    assert (row["rate_falls"], row["mse_rises"], row["ok"]) == (None, 1.0, True)
    (row,) = health(table([[0.1, 1.0, 0.5]], bits=[[None] * 3]))  # type: ignore[list-item]
    assert not row["ok"]
    (row,) = health(table([[0.1, 1.0, 2.0]] * 2, bits=[[None] * 3, [5, 6, 4]]))  # type: ignore[list-item]
    assert (row["rate_falls"], row["ok"]) == (0.5, False)


def test_of_one_level_nothing_falls_or_rises() -> None:
    (row,) = health(table([[1.0]], bits=[[None]]))  # type: ignore[list-item]
    assert health_cells(row)[2:] == ["-", "1", "1", "-", "-"]


def test_no_labels_no_rows() -> None:
    assert health(table([[0.0, 1.0]]).slice(0, 0)) == []
