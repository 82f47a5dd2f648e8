"""Compute the statistics of the published table from score logs of the published code.

A log has a block per level: a line with the codec's settings, a line ``name score mse cosine cka``
per source, and totals such as ``Accuracy: 95.0``. Scores are raw: a rank, an mIoU in percent, an
RMSE in metres.

PLCC and SROCC between the raw score and a metric are computed per source over its levels, and
averaged over the sources for which they are defined (NumPy's nanmean), per codec and task. The
faults of the published statistic are reproduced, which `cfqa_data.eval.evaluate` does not have: a
source whose score, or whose metric as printed, is the same at every level, or NaN at one, is
dropped; and the score is not a distortion, so the signs are reversed for a task where higher is
better.
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

LOG_PATHS = "{codec}/{task}.txt, {codec}/{task}/*.txt or {arch}_trained_{data}_eval_{task}_all.txt"
"""Paths of logs below the folder; the last is the published name, in any subfolder."""

_PUBLISHED = re.compile(r"(.+?)_trained_([a-z]+)_eval_([a-z]+?)(?:_all)?\.txt")
_LEVEL = re.compile(r"(?:qp|lambda)[_=-]?(\d*\.?\d+(?:e-?\d+)?)", re.I)
_TRANSFORMS = ("uniform", "kmeans")


class LogLine(NamedTuple):
    """The line of a log for one source at one level; its numbers may be NaN or infinite.

    Attributes:
        name: Name of the source, without the extension that some logs print.
        score: The raw score of the task.
        mse: Mean squared error, printed with eight decimals.
        cosine: Token cosine, printed with four decimals.
        cka: The published CKA, printed with four decimals.
        level: QP or lambda from the log or its file name; None if neither has it.
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
    """Return the logs below a folder by codec and task, sorted by level.

    Raises:
        MetricError: If the folder does not exist or contains no log.
    """
    if not root.is_dir():
        raise MetricError(f"{root}: no such folder")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise MetricError(f"{root}: cannot be read: {error.strerror or error}") from None
    logs: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(root.rglob("*.txt")):
        name = path.relative_to(root)
        if not is_tool_path(name.as_posix()) and (key := _codec_and_task(name)) is not None:
            logs.setdefault(key, []).append(path)
    if not logs:
        raise MetricError(f"{root}: no logs found; a log is {LOG_PATHS}")
    for paths in logs.values():
        paths.sort(key=lambda path: (level_of(path.stem) or 0.0, path.name))
    return logs


def level_of(name: str) -> float | None:
    """Return the QP or lambda in a file or folder name such as QP12 or lambda0.01_bs180, if any."""
    match = _LEVEL.search(name)
    return float(match[1]) if match else None


def read_log(path: Path) -> list[LogLine]:
    """Return the lines of the sources in a log, in order, without its other lines.

    Raises:
        MetricError: If the file cannot be read, contains no such line, or contains a malformed
            one. The message names the file and the line.
    """
    try:
        text = read_limited(path, LARGEST_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise MetricError(f"{path}: not a readable log: {error}") from None
    level, lines, unparsed = level_of(path.stem), list[LogLine](), []
    for number, line in enumerate(text.splitlines(), start=1):
        words, where = line.split(), f"{path}, line {number}"
        if not words:
            continue
        block_level = _level_of_block(words)
        level = level if block_level is None else block_level
        name = os.path.splitext(words[0])[0]
        numbers = [_number(word) for word in words[1:]]
        known = [value for value in numbers if value is not None]
        if len(numbers) == len(known) == 4:
            score, mse, cosine, cka = known
            lines.append(LogLine(name, score, mse, cosine, cka, level, where))
        elif block_level is None and not any(word.endswith(":") for word in words):  # no total
            # The line of a source has a number after its name, or four after a name of many words.
            numbered = any(part and None not in part for part in (numbers[:1], numbers[-4:]))
            unparsed.append((name, numbered, line, where))
    names = {line.name for line in lines}
    for name, numbered, line, where in unparsed:
        if numbered or name in names:
            raise MetricError(
                f"{where}: not `name score mse cosine cka`, a name without blanks and four "
                f"numbers: {line[:60]!r}"
            )
    if not names:
        raise MetricError(f"{path}: no line `name score mse cosine cka` in it")
    return lines


def _level_of_block(words: list[str]) -> float | None:
    """Return the level in the line that begins a block; None for any other line.

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


def _codec_and_task(path: Path) -> tuple[str, str] | None:
    """Return the codec and task of a log, from its path below the folder."""
    if match := _PUBLISHED.fullmatch(path.name):
        arch, data, task = match.groups()
        if "hyperprior" in arch:
            if data not in ("hybrid", task):
                return None  # trained for another task, which the benchmark does not use
            arch = f"hyperprior_{'multi_task' if data == 'hybrid' else 'task_specific'}"
        return (arch, task) if task in TASKS else None
    parts = path.parts
    if len(parts) >= 2 and path.stem in TASKS:
        return parts[-2], path.stem
    if len(parts) >= 3 and parts[-2] in TASKS:
        return parts[-3], parts[-2]
    return None


class PaperFigure(NamedTuple):
    """The published statistics of one metric on one codec and task.

    Attributes:
        codec: Name of the codec.
        task: Name of the task.
        metric: ``mse``, ``cosine`` or ``cka``.
        plcc: Mean Pearson correlation over the sources for which it is defined; None if there are
            none.
        srocc: Mean Spearman correlation, over the same sources.
        sources: Number of sources in the log.
        n_valid: Number of sources in the mean.
        constant: Number of sources dropped because their score is the same at every level, or NaN
            or infinite at one.
        flat: Number of further sources dropped because the printed metric is.
        fewest: Smallest number of levels of a source.
        most: Largest number of levels of a source.
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
    """Return the lines of each source in the logs of one codec and task, in order.

    Raises:
        MetricError: If a line is malformed, or a source and level occurs twice.
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
    """Compute the published statistics of every codec, task and metric in a folder of logs.

    Raises:
        MetricError: If there is no log, a line is malformed, or a source has a single level.
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
    """Format figures as the published table, with the numbers of dropped sources."""
    each = "/".join(METRICS)
    rows = paper_heads(METRICS)
    rows[0] += ["sources", "levels", "constant", "flat", "used"]
    rows[1] += ["", "", "score", each, each]
    for codec, task in dict.fromkeys((figure.codec, figure.task) for figure in figures):
        row = [figure for figure in figures if (figure.codec, figure.task) == (codec, task)]
        first = row[0]
        levels = f"{first.fewest}" if first.fewest == first.most else f"{first.fewest}-{first.most}"
        rows.append(
            [
                *(codec, task),
                *(figure_text(value) for figure in row for value in (figure.plcc, figure.srocc)),
                *(str(first.sources), levels, str(first.constant)),
                *("/".join(str(getattr(f, name)) for f in row) for name in ("flat", "n_valid")),
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
    """Return the figures of the three metrics; each item of ``series`` is the lines of a source."""
    correlations = np.full((2, len(METRICS), len(series)), np.nan)
    constant = np.zeros(len(series), bool)
    for column, lines in enumerate(series):
        # Fields 1 to 4 of a LogLine are the score and `METRICS`.
        score, *values = np.array([line[1:5] for line in lines]).T
        constant[column] = (score == score[0]).all() or not np.isfinite(score).all()
        for row, printed in enumerate(values):
            if np.isfinite(printed).all() and np.isfinite(score).all():
                pair = printed[None], score[None]
                correlations[:, row, column] = pearson(*pair)[0], spearman(*pair)[0]
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
        for name, plcc, srocc in zip(METRICS, *correlations, strict=True)
    ]


def _nanmean(values: NDArray[Any]) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))
