"""Score logs as the published code prints them: which files there are, and what their lines say.

A log holds a block per level: a line that names the codec's settings, one line per source,
``name score mse cosine cka``, and totals such as ``Accuracy: 95.0``. Scores are the raw ones: a
rank, an mIoU in percent, an RMSE in metres.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cfqa_data.errors import MetricError
from cfqa_data.format.layout import of_tools
from cfqa_data.format.limits import LARGEST_TEXT, read_limited
from cfqa_data.format.tasks import TASKS

__all__ = ["LogLine", "find_logs", "level_of", "read_log"]

PLACES = "{codec}/{task}.txt, {codec}/{task}/*.txt or {arch}_trained_{data}_eval_{task}_all.txt"
"""Where a log may lie below the folder; the last is the published name, in any subfolder."""

_PUBLISHED = re.compile(r"(.+?)_trained_([a-z]+)_eval_([a-z]+?)(?:_all)?\.txt")
_LEVEL = re.compile(r"(?:qp|lambda)[_=-]?(\d*\.?\d+(?:e-?\d+)?)", re.I)
_TRANSFORMS = ("uniform", "kmeans")


@dataclass(frozen=True)
class LogLine:
    """What a log says of one source at one level; any of its numbers may be NaN or infinite.

    Attributes:
        name: the source, without the extension that some logs print.
        score: the raw score of the task.
        mse: mean squared error, printed with eight decimals.
        cosine: token cosine, printed with four decimals.
        cka: the published CKA, printed with four decimals.
        level: QP or lambda that the log, or its file's name, gives; None where neither does.
        where: file and line, for messages.
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
        MetricError: there is no such folder, or no log in it.
    """
    if not root.is_dir():
        raise MetricError(f"{root}: no such folder of logs")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise MetricError(f"{root}: cannot be read: {error.strerror or error}") from None
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(root.rglob("*.txt")):
        name = path.relative_to(root)
        if not of_tools(name.as_posix()) and (place := _place(name)) is not None:
            found.setdefault(place, []).append(path)
    if not found:
        raise MetricError(f"{root}: no log in it; a log is {PLACES}")
    return {place: sorted(paths, key=_by_level) for place, paths in found.items()}


def level_of(name: str) -> float | None:
    """Return the QP or lambda that a file's or folder's name has, as QP12 or lambda0.01_bs180."""
    match = _LEVEL.search(name)
    return float(match[1]) if match else None


def read_log(path: Path) -> list[LogLine]:
    """Return the sources' lines of a log, in order; whatever else it prints is passed over.

    Raises:
        MetricError: the file cannot be read or has no such line, or a line begins like one and is
            not; file and line are named.
    """
    try:
        text = read_limited(path, LARGEST_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise MetricError(f"{path}: not a log that can be read: {error}") from None
    lines = list(_lines(path, text))
    names = {line.name for line in lines if isinstance(line, LogLine)}
    for line in lines:
        if isinstance(line, _Odd) and (line.numbered or line.name in names):
            raise MetricError(
                f"{line.where}: not `name score mse cosine cka`, a name without blanks and four "
                f"numbers: {line.text[:60]!r}"
            )
    if not names:
        raise MetricError(f"{path}: no line `name score mse cosine cka` in it")
    return [line for line in lines if isinstance(line, LogLine)]


@dataclass(frozen=True)
class _Odd:
    """A line that is no source's, or a damaged one."""

    name: str
    numbered: bool
    text: str
    where: str


def _lines(path: Path, text: str) -> Iterator[LogLine | _Odd]:
    level = level_of(path.stem)
    for number, line in enumerate(text.splitlines(), start=1):
        words, where = line.split(), f"{path}, line {number}"
        if not words:
            continue
        if (opened := _settings(words)) is not None:
            level = opened
        name = os.path.splitext(words[0])[0]
        numbers = [_number(word) for word in words[1:]]
        known = [value for value in numbers if value is not None]
        if len(numbers) == len(known) == 4:
            score, mse, cosine, cka = known
            yield LogLine(name, score, mse, cosine, cka, level, where)
        elif opened is None:
            total = any(word.endswith(":") for word in words)
            # A number behind the name, or four behind several words, which may all be the name.
            numbered = any(part and None not in part for part in (numbers[:1], numbers[-4:]))
            yield _Odd("" if total else name, numbered and not total, line, where)


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
    try:
        return float(word)
    except ValueError:
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


def _by_level(path: Path) -> tuple[float, str]:
    return level_of(path.stem) or 0.0, path.name
