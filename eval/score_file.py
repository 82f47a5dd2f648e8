"""Scores on disk: what an evaluation writes, and what an interrupted one goes on from.

While it runs, an evaluation saves what it has beside its output, as ``NAME.unfinished``; the output
itself is written whole, at the end.  An unfinished file says which dataset and which metrics, with
which options and which code, its scores are of; scores of anything else are not taken up.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.stored import KEY, table_digest, with_facts
from cfqa_data.eval.tables import key_columns
from cfqa_data.limits import MOST_ROWS, parse_json
from cfqa_data.manifest import hash_file
from cfqa_data.parquet import read_parquet
from cfqa_data.storage import atomic_path, check_writable, write_table

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ScoreFile"]

SECONDS = 20.0  # between two savings
PREFIX = "score of "  # of a column: a metric may be named like one of the others


class ScoreFile:
    """Where an evaluation's scores go; a context that saves them when it is left early.

    Args:
        path: ``.parquet`` or ``.csv``.
        dataset: What identifies the dataset, such as the hash of its manifest.
        labels: Its rows that are scored.
        metrics: M metrics.
        whole: All its rows: what metrics are trained on, or take statistics of.
        settings: Whatever else decides a score: device, precision.

    Raises:
        MetricError: The suffix is another, or an unfinished file is of another dataset.
        CfqaError: No file can be written there.
    """

    def __init__(
        self,
        path: Path,
        dataset: str,
        labels: pa.Table,
        metrics: Sequence[Metric],
        whole: pa.Table,
        settings: Mapping[str, str],
    ) -> None:
        check_writable(path)
        if path.suffix not in (".parquet", ".csv"):
            raise MetricError(f"{path}: scores are written as .parquet or .csv, by that ending")
        self.path = path
        self.unfinished = path.with_name(f"{path.name}.unfinished")
        self._labels = key_columns(labels)
        self._names = [metric.name for metric in metrics]
        prints = {metric.name: _fingerprint(metric, whole) for metric in metrics}
        self._prints = prints
        self._facts = {"dataset": dataset, "settings": dict(settings), "metrics": prints}
        self._dataset = dataset
        self._saved = time.monotonic()

    def resume(self) -> NDArray[Any]:
        """Return the scores that an interrupted run left, (rows, M) float64, NaN elsewhere.

        Raises:
            MetricError: They are of another dataset.
        """
        import pyarrow as pa

        values = np.full((self._labels.num_rows, len(self._names)), np.nan)
        if not self.unfinished.is_file():
            return values
        remedy = "delete it, or write to another file"
        try:
            table = read_parquet(self.unfinished.read_bytes(), MOST_ROWS)
            facts = parse_json((table.schema.metadata or {})[KEY])
            prints, dataset, settings = facts["metrics"], facts["dataset"], facts["settings"]
            known = [n for n in self._names if self._prints[n] and prints.get(n) == self._prints[n]]
            found = {name: table[PREFIX + name].to_numpy() for name in known}
            rows = table.select(self._labels.column_names).to_pylist()
        except (OSError, KeyError, TypeError, AttributeError, ValueError, pa.ArrowException):
            raise MetricError(
                f"{self.unfinished}: not the scores of an interrupted run; {remedy}"
            ) from None
        if dataset != self._facts["dataset"]:
            raise MetricError(f"{self.unfinished}: an interrupted run on another dataset; {remedy}")
        if settings != self._facts["settings"]:
            return values
        places = {tuple(row.values()): place for place, row in enumerate(rows)}
        order = [places.get(tuple(row.values()), -1) for row in self._labels.to_pylist()]
        here = np.array(order) >= 0
        for name, column in found.items():
            values[here, self._names.index(name)] = column[np.array(order)[here]]
        return values

    def save(self, values: NDArray[Any], *, now: bool = False) -> None:
        """Save what there is, if it is time to, or now; a full disk does not end the run."""
        if not now and time.monotonic() - self._saved < SECONDS:
            return
        import pyarrow as pa

        # Here a score that is not there yet is NaN: metrics give finite numbers only.
        table = self._labels
        for column, name in enumerate(self._names):
            table = table.append_column(PREFIX + name, pa.array(values[:, column]))
        table = table.replace_schema_metadata({KEY: json.dumps(self._facts)})
        with suppress(OSError):
            write_table(self.unfinished, table)
        self._saved = time.monotonic()

    def finish(
        self,
        scores: pa.Table,
        metrics: Sequence[Metric],
        target: str,
        failures: Mapping[str, str],
    ) -> None:
        """Write the output, and remove the unfinished file.

        Args:
            scores: The table to write; a Parquet file also says what `with_facts` adds.
            metrics: Those of the table.
            target: Label that was followed.
            failures: What went wrong with other metrics, by name.

        Raises:
            MetricError: It cannot be written.
        """
        try:
            if self.path.suffix == ".csv":
                from pyarrow import csv

                with atomic_path(self.path) as partial, partial.open("wb") as file:
                    csv.write_csv(scores, file)
            else:
                of = self._dataset
                write_table(self.path, with_facts(scores, of, target, metrics, failures))
        except OSError as error:
            why = error.strerror or error
            raise MetricError(f"{self.path}: the scores could not be written: {why}") from None
        self.unfinished.unlink(missing_ok=True)


def _fingerprint(metric: Metric, whole: pa.Table) -> str | None:
    """Return a text that changes when a metric's code or options do; None if that cannot be told.

    What a module has learned, and what a function that was typed in or made by another one says, no
    file tells. For a metric that depends on other sources, the text changes with these too.
    """
    from importlib.metadata import version

    code = getattr(metric.function, "__wrapped__", metric.function)
    if not inspect.isfunction(code) or code.__closure__:
        return None
    try:
        source = hash_file(Path(inspect.getsourcefile(code) or ""))
    except (TypeError, OSError):
        return None
    options = {name: repr(value) for name, value in sorted(metric.options.items())}
    defaults = repr((code.__defaults__, code.__kwdefaults__))
    facts = [version("cfqa-data"), source, code.__qualname__, defaults, options]
    if metric.fit or any(name not in metric.options for name in metric.needs):
        keys = [
            n for n in ("task", "source_id", "fold", "codec", "level") if n in whole.schema.names
        ]
        facts.append(table_digest(whole.select(keys)))
    return json.dumps(facts)
