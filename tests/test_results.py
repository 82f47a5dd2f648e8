"""Results that live: where scores come from, files that grow, results that are put together."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_dataset import MemoryDataset
from test_evaluator_runs import FoldedDataset, Stops

from cfqa_data.eval import evaluate, read_evaluation, scoring
from cfqa_data.eval.metrics import trained

pytestmark = pytest.mark.usefixtures("quick_statistics")


def own(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (y - x).abs().mean((1, 2, 3, 4))


def test_a_result_tells_where_its_scores_come_from(tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    before = datetime.now(UTC).replace(microsecond=0)
    found = evaluate(FoldedDataset(), [own, "gap_mean"], precision="high", out=out)
    mine, fitted = found.provenance["own"], found.provenance["gap_mean"]
    assert (mine.package, mine.version, mine.trained_on) == (__name__, None, None)
    assert mine.source_sha256 == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert (fitted.package, fitted.options) == ("cfqa-data", {"exponents": None})
    source = Path(str(trained.__file__)).read_bytes()
    assert fitted.source_sha256 == hashlib.sha256(source).hexdigest()
    seen: Any = fitted.trained_on
    assert (seen.folds, seen.codecs, seen.target) == ((0, 1), ("vvenc", "x265"), "distortion")
    assert seen.originals == 8
    for record in found.provenance.values():
        assert (record.device, record.precision) == ("cpu", "high")
        assert before <= datetime.fromisoformat(record.date or "") <= datetime.now(UTC)
        assert record.seconds
        assert record.memory_bytes
        assert record.memory_bytes > 2**20
    assert read_evaluation(FoldedDataset(), out).provenance == found.provenance


def test_what_goes_on_keeps_the_record_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, dates = tmp_path / "scores.parquet", (f"day {n}" for n in range(100, 1000))
    monkeypatch.setattr(scoring, "now", lambda: next(dates))
    with pytest.raises(KeyboardInterrupt):
        evaluate(MemoryDataset(), ["mse"], out=out, batch=5, progress=Stops(119))
    first = evaluate(MemoryDataset(), ["mse"], out=out, batch=5).provenance["mse"]
    assert first.date == "day 123"  # of the last of 24 batches: all were done
