"""Compute the published table's statistic from score logs as the published code prints them.

A log holds a block per level: a line that names the codec's settings, one line per source,
``name score mse cosine cka``, and totals such as ``Accuracy: 95.0``. Scores are the raw ones: a
rank, an mIoU in percent, an RMSE in metres.

Per source, PLCC and SROCC over its levels between the raw score and a metric; then the mean over
the sources that give a number (NumPy's nanmean), per codec and task. Faults included: a source
whose score, or whose metric as printed, is the same at every level, or NaN at one, gives none and
vanishes, and the score is not a distortion, so the signs of a task where higher is better are
turned round.
`cfqa_data.eval.evaluate` does neither.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfqa_data.console.text import table_text
from cfqa_data.errors import MetricError
from cfqa_data.eval.statistics import pearson, spearman
from cfqa_data.eval.text import figure_text, paper_heads
from cfqa_data.format.format_1 import TASKS
from cfqa_data.format.layout import is_tool_path
from cfqa_data.format.limits import LARGEST_TEXT, read_limited
from cfqa_data.paths import absolute_path

__all__ = [
    "LogLine",
    "PaperFigure",
    "find_logs",
    "level_of",
    "paper_figures",
    "paper_logs_text",
    "read_series",
]

PAPER_ORDER = ("hm", "vtm", "hyperprior_multi_task", "hyperprior_task_specific")
"""Codecs in the order of the published table."""

METRICS = ("mse", "cosine", "cka")

PLACES = "{codec}/{task}.txt, {codec}/{task}/*.txt or {arch}_trained_{data}_eval_{task}_all.txt"
"""Where a log may lie below the folder; the last is the published name, in any subfolder."""

_PUBLISHED = re.compile(r"(.+?)_trained_([a-z]+)_eval_([a-z]+?)(?:_all)?\.txt")
_LEVEL = re.compile(r"(?:qp|lambda)[_=-]?(\d*\.?\d+(?:e-?\d+)?)", re.I)
_TRANSFORMS = ("uniform", "kmeans")


class LogLine(NamedTuple):
    """What a log says of one source at one level; any of its numbers may be NaN or infinite.

    Attributes:
        name: The source, without the extension that some logs print.
        score: The raw score of the task.
        mse: Mean squared error, printed with eight decimals.
        cosine: Token cosine, printed with four decimals.
        cka: The published CKA, printed with four decimals.
        level: QP or lambda that the log, or its file's name, gives; None where neither does.
        where: File and line, for messages.
    """

    name: str
    score: float
    mse: float
    cosine: float
    cka: float
    level: float | None
    where: str


def find_logs(root: Path) -> dict[tuple[str, str], list[Path]]:
    """Return the logs below a folder by codec and task, in the order of their levels.

    Raises:
        MetricError: If there is no such folder, or no log in it.
    """
    if not root.is_dir():
        raise MetricError(f"{root}: no such folder")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise MetricError(f"{root}: cannot be read: {error.strerror or error}") from None
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(root.rglob("*.txt")):
        name = path.relative_to(root)
        if not is_tool_path(name.as_posix()) and (place := _place(name)) is not None:
            found.setdefault(place, []).append(path)
    if not found:
        raise MetricError(f"{root}: no logs found; a log is {PLACES}")
    for paths in found.values():
        paths.sort(key=lambda path: (level_of(path.stem) or 0.0, path.name))
    return found


def level_of(name: str) -> float | None:
    """Return the QP or lambda that a file's or folder's name has, as QP12 or lambda0.01_bs180."""
    match = _LEVEL.search(name)
    return float(match[1]) if match else None


def read_log(path: Path) -> list[LogLine]:
    """Return the sources' lines of a log, in order; whatever else it prints is passed over.

    Raises:
        MetricError: If the file cannot be read, contains no such line, or contains a malformed
            one. The message names the file and the line.
    """
    try:
        text = read_limited(path, LARGEST_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise MetricError(f"{path}: not a readable log: {error}") from None
    level, lines, odd = level_of(path.stem), list[LogLine](), []
    for number, line in enumerate(text.splitlines(), start=1):
        words, where = line.split(), f"{path}, line {number}"
        if not words:
            continue
        opened = _settings(words)
        level = level if opened is None else opened
        name = os.path.splitext(words[0])[0]
        numbers = [_number(word) for word in words[1:]]
        known = [value for value in numbers if value is not None]
        if len(numbers) == len(known) == 4:
            score, mse, cosine, cka = known
            lines.append(LogLine(name, score, mse, cosine, cka, level, where))
        elif opened is None and not any(word.endswith(":") for word in words):  # no total
            # A number behind the name, or four behind several words, which may all be the name.
            numbered = any(part and None not in part for part in (numbers[:1], numbers[-4:]))
            odd.append((name, numbered, line, where))
    names = {line.name for line in lines}
    for name, numbered, line, where in odd:
        if numbered or name in names:
            raise MetricError(
                f"{where}: not `name score mse cosine cka`, a name without blanks and four "
                f"numbers: {line[:60]!r}"
            )
    if not names:
        raise MetricError(f"{path}: no line `name score mse cosine cka` in it")
    return lines


def _settings(words: list[str]) -> float | None:
    """Return the level of a line that opens a block.

    For HM and VTM that is ``arch transform samples bits QP``, for a hyperprior
    ``arch data transform samples bits lambda ...``.
    """
    for place, index in ((1, 4), (2, 5)):
        if len(words) > index and words[place] in _TRANSFORMS:
            return _number(words[index])
    return None


def _number(word: str) -> float | None:
    with suppress(ValueError):
        return float(word)
    return None


def _place(path: Path) -> tuple[str, str] | None:
    """Return the codec and task of a log, by its path below the folder."""
    if match := _PUBLISHED.fullmatch(path.name):
        arch, data, task = match.groups()
        if "hyperprior" in arch:
            if data not in ("hybrid", task):
                return None  # trained for another task: not in the benchmark
            arch = f"hyperprior_{'multi_task' if data == 'hybrid' else 'task_specific'}"
        return (arch, task) if task in TASKS else None
    parts = path.parts
    if len(parts) >= 2 and path.stem in TASKS:
        return parts[-2], path.stem
    if len(parts) >= 3 and parts[-2] in TASKS:
        return parts[-3], parts[-2]
    return None


class PaperFigure(NamedTuple):
    """One metric on one codec and task.

    Attributes:
        codec: The codec.
        task: The task.
        metric: Mse, cosine or cka, as the log prints it.
        plcc: Mean Pearson correlation over the sources that give one; None if none does.
        srocc: Mean Spearman correlation, likewise.
        sources: Sources in the log.
        n_valid: Sources in the mean.
        constant: Sources that vanish because their score is the same at every level, or NaN or
            infinite at one.
        flat: Further ones that vanish because the printed metric is.
        fewest: Levels of the source that has fewest.
        most: Levels of the source that has most.
    """

    codec: str
    task: str
    metric: str
    plcc: float | None
    srocc: float | None
    sources: int
    n_valid: int
    constant: int
    flat: int
    fewest: int
    most: int


def read_series(paths: Sequence[Path]) -> dict[str, list[LogLine]]:
    """Return the lines of each source from the logs of one codec and task, in their order.

    Raises:
        MetricError: If a line is bad, or says the same source and level once more.
    """
    series: dict[str, list[LogLine]] = {}
    seen: dict[tuple[str, float], str] = {}
    for path in paths:
        for line in read_log(path):
            if line.level is not None:
                before = seen.setdefault((line.name, line.level), line.where)
                if before != line.where:
                    raise MetricError(
                        f"{line.where}: {line.name} at level {line.level:g} occurs twice; first "
                        f"in {before}"
                    )
            series.setdefault(line.name, []).append(line)
    return series


def paper_figures(root: Path | str) -> list[PaperFigure]:
    """Return the published statistic of every codec, task and metric in a folder of logs.

    Raises:
        MetricError: If there is no log, a line of one is bad, or a source has a single level.
    """
    figures = []
    logs = find_logs(absolute_path(root))
    order = {codec: place for place, codec in enumerate(PAPER_ORDER)}
    tasks = list(TASKS)
    for codec, task in sorted(
        logs, key=lambda log: (order.get(log[0], len(order)), log[0], tasks.index(log[1]))
    ):
        series = read_series(logs[codec, task])
        for name, lines in series.items():
            if len(lines) < 2:
                raise MetricError(
                    f"{lines[0].where}: {name} has a single level, so there is no correlation"
                )
        figures += _figures(codec, task, list(series.values()))
    return figures


def paper_logs_text(figures: Sequence[PaperFigure]) -> str:
    """Lay figures out as the published table, and say what vanished from it."""
    each = "/".join(METRICS)
    rows = paper_heads(METRICS)
    rows[0] += ["sources", "levels", "constant", "flat", "used"]
    rows[1] += ["", "", "score", each, each]
    for codec, task in dict.fromkeys((figure.codec, figure.task) for figure in figures):
        of = [figure for figure in figures if (figure.codec, figure.task) == (codec, task)]
        first = of[0]
        levels = f"{first.fewest}" if first.fewest == first.most else f"{first.fewest}-{first.most}"
        rows.append(
            [
                *(codec, task),
                *(figure_text(value) for figure in of for value in (figure.plcc, figure.srocc)),
                *(str(first.sources), levels, str(first.constant)),
                *("/".join(str(getattr(f, name)) for f in of) for name in ("flat", "n_valid")),
            ]
        )
    return "\n".join(
        [
            "Correlation with the raw score, per source over its levels, averaged: as published.",
            "",
            table_text(rows, left=2, heads=2),
            "",
            "Faults of the published statistic, reproduced here: sources whose score is constant, "
            "or",
            "whose metric as printed is flat over the levels, or that have NaN at one of them,",
            "are missing from the mean; the score is raw, so for seg, where higher is better, the "
            "signs",
            "are reversed.",
        ]
    )


def _figures(codec: str, task: str, series: list[list[LogLine]]) -> list[PaperFigure]:
    """Return the figures of the three metrics; `series` has the lines of a source each."""
    found = np.full((2, len(METRICS), len(series)), np.nan)
    constant = np.zeros(len(series), bool)
    for column, lines in enumerate(series):
        # Columns of a LogLine: score, then `METRICS`.
        score, *values = np.array([line[1:5] for line in lines]).T
        constant[column] = (score == score[0]).all() or not np.isfinite(score).all()
        for row, printed in enumerate(values):
            if np.isfinite(printed).all() and np.isfinite(score).all():
                pair = printed[None], score[None]
                found[:, row, column] = pearson(*pair)[0], spearman(*pair)[0]
    counts = [len(lines) for lines in series]
    return [
        PaperFigure(
            codec=codec,
            task=task,
            metric=name,
            plcc=_nanmean(plcc),
            srocc=_nanmean(srocc),
            sources=len(series),
            n_valid=int((~np.isnan(plcc)).sum()),
            constant=int(constant.sum()),
            flat=int((np.isnan(plcc) & ~constant).sum()),
            fewest=min(counts),
            most=max(counts),
        )
        for name, plcc, srocc in zip(METRICS, *found, strict=True)
    ]


def _nanmean(values: NDArray[Any]) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))
