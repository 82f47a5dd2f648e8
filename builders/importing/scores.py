"""Scores of an imported release from the published logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from cfqa_data.builders.importing.files import Release
from cfqa_data.errors import BuildError
from cfqa_data.eval.paper_logs import LogLine, find_logs, read_series
from cfqa_data.format.manifest import hash_file

__all__ = ["LogScores"]

ORIGINAL = "original"
"""Name in place of a codec's for a log on the originals."""

UNIT = {"cls": 1.0, "seg": 0.01, "dpt": 1.0}
"""Factor from a logged score to a dataset's; the logs have mIoU in percent."""

RIGHT = 1.0
"""Rank of the true class on an original, since only correctly classified images were used."""


class LogScores:
    """Scores in published logs; there are no losses.

    A log ``original/{task}.txt`` has the scores of originals. Without it, the score of an original
    is 1 for cls, where only images with rank 1 were used, and that of its least distorted version
    for seg and dpt.

    Args:
        root: Folder of the logs.

    Raises:
        MetricError: If there is no log, or a line of one is invalid.
    """

    def __init__(self, root: Path) -> None:
        self.paths = find_logs(root)
        self._series: dict[tuple[str, str], Mapping[str, list[LogLine]]] = {
            (task, codec): read_series(paths) for (codec, task), paths in self.paths.items()
        }
        self._best: dict[tuple[str, str], LogLine] = {}

    def match(self, release: Release) -> None:
        """Leave codecs whose scores are incomplete out of a release."""
        for task, codec in list(release.codec_files):
            if reason := self._missing(release, task, codec):
                release.leave_out_codec(task, codec, reason)
                continue
            for name in release.originals[task]:
                for line in filter(_finite, self._series[task, codec][name]):
                    best = self._best.setdefault((task, name), line)
                    if line.mse < best.mse:
                        self._best[task, name] = line
        release.drop_tasks_without_codecs()

    def versions(self, release: Release) -> dict[str, str]:
        """Return the logs with a release's scores and their hashes, for a manifest's versions."""
        used = [*release.codec_files, *((task, ORIGINAL) for task in release.originals)]
        return {
            f"scores of {codec} on {task}": ", ".join(
                f"{path.name} sha256 {hash_file(path)}" for path in self.paths[codec, task]
            )
            for task, codec in used
            if (codec, task) in self.paths
        }

    def borrowed(self, release: Release) -> list[str]:
        """Return the tasks whose originals have the score of their least distorted version."""
        return [
            task
            for task in release.originals
            if task != "cls" and (task, ORIGINAL) not in self._series
        ]

    def mse(self, task: str, codec: str, source_id: str, level: float) -> float:
        """Return the logged MSE of a feature."""
        return self._line(task, codec, source_id, level).mse

    def score(self, task: str, codec: str, source_id: str, level: float) -> float:
        """Return the score of a feature, or of the original if `codec` is empty."""
        if codec:
            return self._line(task, codec, source_id, level).score * UNIT[task]
        if (task, ORIGINAL) in self._series:
            lines = self._series[task, ORIGINAL].get(source_id)
            if lines is None or not _finite(lines[0]):
                raise BuildError(f"the log on the originals of {task} lacks {source_id}")
            return lines[0].score * UNIT[task]
        return RIGHT if task == "cls" else self._best[task, source_id].score * UNIT[task]

    def _line(self, task: str, codec: str, source_id: str, level: float) -> LogLine:
        lines = self._series[task, codec][source_id]
        return next(line for line in lines if line.level == level)

    def _missing(self, release: Release, task: str, codec: str) -> str:
        """Return which score a codec's logs lack; "" if none."""
        if (task, codec) not in self._series:
            return f"no log on {codec} and {task}"
        series = self._series[task, codec]
        for name in release.originals[task]:
            logged = {line.level for line in series.get(name, ()) if _finite(line)}
            for level in release.codec_files[task, codec].levels:
                if level not in logged:
                    return f"the log on {codec} and {task} lacks {name} at level {level:g}"
        return ""


def _finite(line: LogLine) -> bool:
    return math.isfinite(line.score) and math.isfinite(line.mse)
