"""Files of scores: writing them, and resuming an interrupted evaluation from them.

While it runs, an evaluation saves its scores beside the output, as ``NAME.unfinished``; the output
itself is written atomically at the end.  Both record the dataset, the metrics, their options and
their code.  Unfinished scores are reused only if all of these match, and a finished file that does
not match, or that another run has written meanwhile, is replaced only with ``force``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.errors import MetricError
from cfqa_data.eval.features.datasets import table_digest
from cfqa_data.eval.fingerprint import COVERS, fingerprint
from cfqa_data.eval.metrics import Metric
from cfqa_data.eval.provenance import Provenance, provenance_of
from cfqa_data.eval.results import (
    KEY,
    WRONG,
    Evaluation,
    key_columns,
    read_facts,
    row_keys,
    with_facts,
)
from cfqa_data.eval.scoring import Scored
from cfqa_data.format.limits import MOST_ROWS, parse_json
from cfqa_data.format.parquet import read_parquet
from cfqa_data.format.storage import atomic_path, check_writable, write_table

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
        settings: Whatever else decides a score: device, precision, arrays that no manifest tells.
        target: Label that is followed.
        limit: At most so many sources of each fold are trained on.
        force: Replace what is there now, a finished file or an unfinished one of another dataset,
            whatever it holds.

    Raises:
        MetricError: The suffix is another, or a finished file is there that holds something else.
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
        target: str = "distortion",
        limit: int | None = None,
        force: bool = False,
    ) -> None:
        check_writable(path)
        if path.suffix not in (".parquet", ".csv"):
            raise MetricError(f"{path}: scores are written as .parquet or .csv, by that ending")
        self.path = path
        self.unfinished = path.with_name(f"{path.name}.unfinished")
        self._labels = key_columns(labels)
        followed = target if limit is None else f"{target}, {limit} sources of each fold"
        prints = {
            m.name: fingerprint(m, *_together(m, self._labels), *_other_sources(m, whole, followed))
            for m in metrics
        }
        self._digests = {name: found.digest for name, found in prints.items()}
        precision = settings["precision"]
        self._provenance = {
            m.name: replace(provenance_of(m, precision), fingerprint=prints[m.name])
            for m in metrics
        }
        self._own: dict[str, Any] = {
            "dataset": dataset,
            "target": target,
            "settings": dict(settings),
            "keys": table_digest(self._labels),
            "code": {name: asdict(found) for name, found in prints.items()},
            "covers": COVERS,
        }
        self._force = force
        self._saved = time.monotonic()
        self._replaced = self._file_identity() if force else None
        self._check_replaceable()

    def _file_identity(self) -> tuple[int, ...] | None:
        """Return what tells the finished file that is there from any other, or None without one."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _check_replaceable(self) -> None:
        """Check that a finished file is this request's, or the one that was to be replaced."""
        on_disk = self._file_identity()
        if on_disk not in (None, self._replaced) and (why := self._other()):
            remedy = "write to another file, or replace it with --force (force=True)"
            raise MetricError(f"{self.path}: {why}; {remedy}")

    def _other(self) -> str | None:
        """Return in what a finished file differs from what this run would write, if it does."""
        import pyarrow as pa

        expected = {
            "dataset": "holds the scores of another dataset",
            "keys": "holds the scores of other features",
            "settings": "holds scores of other arrays, or made with another device or precision",
            "target": "holds an evaluation of the {target}",
        }
        try:
            _, facts = read_facts(self.path.read_bytes())
            code = {name: entry["digest"] for name, entry in facts["code"].items()}
            found = {name: facts[name] for name in expected}
        except (*WRONG, pa.ArrowException):
            return "is there, and does not say what was scored"
        for name, why in expected.items():
            if found[name] != self._own[name]:
                return why.format(target=found["target"])
        if code.keys() != self._digests.keys():
            return f"holds the scores of {', '.join(map(str, code))}"
        for name, digest in self._digests.items():
            if digest is None:
                reason = self._own["code"][name]["reason"]
                return f"holds scores of a {name!r} that may be another one ({reason})"
            if digest != code[name]:
                return f"holds scores of a {name!r} with other code or options"
        return None

    def resume(self) -> Scored:
        """Return what an interrupted run left of these metrics.

        Raises:
            MetricError: They are of another dataset.
        """
        import pyarrow as pa

        names = list(self._digests)
        scored = Scored.nothing(self._labels.num_rows, self._provenance)
        if not self.unfinished.is_file():
            return scored
        remedy = "delete it, or write to another file"
        try:
            table = read_parquet(self.unfinished.read_bytes(), MOST_ROWS)
            facts = parse_json((table.schema.metadata or {})[KEY])
            digests, dataset, settings = facts["metrics"], facts["dataset"], facts["settings"]
            known = [
                name for name, own in self._digests.items() if own and digests.get(name) == own
            ]
            found = {name: table[PREFIX + name].to_numpy() for name in known}
            notes = {name: str(facts["notes"][name]) for name in known if name in facts["notes"]}
            alone = set(known) & set(facts["alone"])
            records = {name: facts.get("provenance", {}).get(name) for name in known}
            provenance = self._provenance | {
                name: Provenance.from_dict(record) for name, record in records.items() if record
            }
            places = {key: place for place, key in enumerate(row_keys(table))}
        except (OSError, KeyError, TypeError, AttributeError, ValueError, pa.ArrowException):
            raise MetricError(
                f"{self.unfinished}: not the scores of an interrupted run; {remedy}"
            ) from None
        if dataset != self._own["dataset"] and not self._force:
            raise MetricError(f"{self.unfinished}: an interrupted run on another dataset; {remedy}")
        if dataset != self._own["dataset"] or settings != self._own["settings"]:
            return scored
        order = np.array([places.get(key, -1) for key in row_keys(self._labels)])
        here = order >= 0
        for name, column in found.items():
            scored.values[here, names.index(name)] = column[order[here]]
        return Scored(scored.values, notes, alone, provenance)

    def save(self, scored: Scored, *, now: bool = False) -> None:
        """Save what there is, if it is time to, or now; a full disk does not end the run."""
        if not now and time.monotonic() - self._saved < SECONDS:
            return
        import pyarrow as pa

        # Here a score that is not there yet is NaN: metrics give finite numbers only.
        table = self._labels
        for column, name in enumerate(self._digests):
            table = table.append_column(PREFIX + name, pa.array(scored.values[:, column]))
        facts = {name: self._own[name] for name in ("dataset", "settings")}
        facts |= {"metrics": self._digests, "notes": scored.notes, "alone": sorted(scored.alone)}
        records = scored.provenance.items()
        facts["provenance"] = {name: record.to_dict() for name, record in records}
        table = table.replace_schema_metadata({KEY: json.dumps(facts)})
        with suppress(OSError):
            write_table(self.unfinished, table)
        self._saved = time.monotonic()

    def finish(self, found: Evaluation) -> None:
        """Write the output, and remove the unfinished file.

        Args:
            found: Whose scores to write; a Parquet file also says what `with_facts` adds.

        Raises:
            MetricError: It cannot be written, or what another run put there is something else.
        """
        try:
            if self.path.suffix == ".csv":
                from pyarrow import csv

                with atomic_path(self.path) as partial:
                    with partial.open("wb") as file:
                        csv.write_csv(found.scores, file)
                    self._check_replaceable()
            else:
                names = ("failures", "notes", "provenance")
                told = {name: getattr(found, name) for name in names}
                table = with_facts(
                    found.scores, (*found.metrics, *found.without), **self._own, **told
                )
                write_table(self.path, table, self._check_replaceable)
        except OSError as error:
            why = error.strerror or error
            raise MetricError(f"{self.path}: the scores could not be written: {why}") from None
        self.unfinished.unlink(missing_ok=True)


def _together(metric: Metric, scored: pa.Table) -> list[str]:
    """Return which features decide a metric's scores together, where it sees several at once."""
    return [] if metric.scope == "pair" else [metric.scope, table_digest(scored)]


def _other_sources(metric: Metric, whole: pa.Table, target: str) -> list[str]:
    """Return what of other sources decides a metric's scores: those it is trained on or takes."""
    if not metric.fit and all(name in metric.options for name in metric.needs):
        return []
    keys = ("task", "source_id", "fold", "codec", "level")
    on_disk = table_digest(whole.select([name for name in keys if name in whole.schema.names]))
    without = [] if metric.left_out is None else [metric.left_out]
    return [on_disk, target, *without] if metric.fit else [on_disk]
