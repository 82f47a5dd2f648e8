#!/usr/bin/env bash
# duckdb 2.0.1 and pyarrow 26.0.1: Parquet tables with NaN in a float column, as labels have them where
# a score is not defined.
# Guess: which rows a filter finds depends on the values, not on how the rows were cut into row groups.
# Seen: writers leave NaN out of a row group's largest value, and both readers skip row groups by it.
# DuckDB counts NaN as above every number, so that `x > 100` finds a NaN only where another value of its
# row group is above 100; and max(x) is NaN in memory, 300 from the file. pyarrow's `~(x <= 6)` likewise,
# and `is_null(nan_is_null=True)` finds no NaN at all in a file where it finds all in memory. No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W error - <<'PYTHON'
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

low, high = np.linspace(0, 5, 50), np.linspace(0, 300, 50)
low[3] = high[10] = np.nan
table = pa.table({"x": np.concatenate([low, high])})
for name, rows in (("one", 100), ("two", 50)):
    pq.write_table(table, f"{name}.parquet", row_group_size=rows)
duckdb.sql("CREATE TABLE memory AS SELECT * FROM 'one.parquet'")
sources = ("memory", "'one.parquet'", "'two.parquet'")


def sql(query: str) -> list[float]:
    return [duckdb.sql(query.format(source)).fetchall()[0][0] for source in sources]


def arrow(condition: pa.compute.Expression) -> list[int]:
    files = [pyarrow.dataset.dataset(f"{name}.parquet").to_table(filter=condition) for name in ("one", "two")]
    return [found.num_rows for found in (table.filter(condition), *files)]


x = pa.compute.field("x")
print("in memory, from a file of one row group, from a file of two:")
above, largest = sql("SELECT count(*) FROM {} WHERE x > 100"), sql("SELECT max(x) FROM {}")
print(f"DuckDB, rows with x > 100: {above}; max(x): {largest}")
negated, missing = arrow(~(x <= 6)), arrow(x.is_null(nan_is_null=True))
print(f"pyarrow, rows with ~(x <= 6): {negated}; null or NaN: {missing}; NaN: {arrow(x.is_nan())}")
assert above[0] == above[1] == above[2] + 1, "changed"
assert np.isnan(largest[0]) and largest[1] == largest[2] == 300, "changed"
assert negated[0] == negated[1] == negated[2] + 1, "changed"
assert missing == [2, 0, 0] and arrow(x.is_nan()) == [2, 2, 2], "changed"
PYTHON
