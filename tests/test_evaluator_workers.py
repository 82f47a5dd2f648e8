"""Evaluations by several processes give the scores of one process, even if workers are killed."""

from __future__ import annotations

import os
import re
import signal
import warnings
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from memory_dataset import InterruptAfter, MemoryDataset
from mock_dataset import write_mock_dataset
from pickling_pool import Killed, PicklingPool, replace_workers

from cfqa_data import load
from cfqa_data.cli import main
from cfqa_data.errors import MetricError, MetricWarning, MissingDependencyError
from cfqa_data.eval import Evaluation, evaluate, evaluator, list_metrics, read_evaluation
from cfqa_data.eval.workers import Pickled
from cfqa_data.processes import executor

pytestmark = pytest.mark.usefixtures("quick_statistics")


def error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (y - x).square().mean((1, 2, 3, 4))


def among_others(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared error relative to the largest of the batch, on one task."""
    errors = error(x, y)
    return errors / (errors.max() + 0.5) if x.shape[1] == 2 else errors


def one_by_one(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared error, one feature at a time for large features."""
    errors = error(x, y)
    return errors if errors.max() < 0.5 else errors.mean().reshape(1)


def fails_late(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if float((x - y).abs().mean()) > 0.2:
        raise ValueError("too far")
    return y.sum((1, 2, 3, 4))


@dataclass
class Of:
    """Returns scores for some sources only."""

    sums: list[float]
    name: str = "of_some"

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if float(x[0].sum()) not in self.sums:
            raise ValueError("no good")
        return error(x, y)


def kills_a_worker(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if (mark := Path(os.environ["CFQA_TEST_MARK"])).exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return error(x, y)


def kills_on_two_layers(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.shape[1] == 2:
        raise Killed
    return error(x, y)


class KillsWhenLoaded:
    """Unpickling this metric kills the worker."""

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return error(x, y)

    def __reduce__(self) -> Any:
        return _kill, ()


def _kill() -> Any:
    raise Killed


class Deadly(MemoryDataset):
    """Reading the original of one source kills the worker."""

    deadly = "cls-1"

    def original(self, source_id: str) -> Any:
        if source_id == self.deadly:
            raise Killed
        return super().original(source_id)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> PicklingPool:
    return replace_workers(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("workers") / "mock", sources=5)


def check_equal(one: Evaluation, several: Evaluation) -> None:
    assert several.scores.equals(one.scores)
    assert several.correlations.equals(one.correlations)
    assert (several.failures, several.notes) == (one.failures, one.notes)
    for name, known in one.provenance.items():
        found = several.provenance[name]
        for fact in ("features", "alone", "trained_on", "device", "source_sha256"):
            assert getattr(found, fact) == getattr(known, fact), (name, fact)
        assert (found.seconds or 0) >= (found.training_seconds or 0) > -1
        assert (found.memory_bytes or 0) > 0


@pytest.mark.parametrize(
    ("names", "leave_out"),
    [
        (["psnr", "mahalanobis", "gap_mean", "mutual_knn:k=2"], None),
        pytest.param([], "codec", marks=pytest.mark.release),
    ],
)
def test_scores_and_what_is_said_of_them_are_those_of_one_process(
    names: list[str], leave_out: Any, folder: Path, pool: PicklingPool
) -> None:
    metrics = [*(names or list_metrics()), fails_late]
    dataset = load(folder, codec=["x265", "vvenc"])
    found = []
    for workers in (1, 3):
        with pytest.warns(MetricWarning, match="'fails_late' failed: ValueError: too far"):
            found.append(evaluate(dataset, metrics, leave_out=leave_out, workers=workers))
    one, several = found
    check_equal(one, several)
    cause = several.errors["fails_late"].__cause__
    assert isinstance(cause, ValueError)
    assert "fails_late" in cause.__notes__[0]


@pytest.mark.parametrize(
    ("metric", "batch"), [(among_others, 7), (one_by_one, 7), ("some", 7), ("last", None)]
)
def test_what_depends_on_other_features_is_found_by_any_number_of_processes(
    metric: Any, batch: int | None, pool: PicklingPool
) -> None:
    dataset = MemoryDataset(6)
    sums = {name: float(torch.from_numpy(x).sum()) for name, x in dataset.originals.items()}
    if metric == "some":
        metric = Of([value for name, value in sums.items() if name not in ("cls-0", "cls-2")])
    elif metric == "last":  # of the first three none, so that it is given up
        metric = Of([value for name, value in sums.items() if name[-1] in "345"])
    found = []
    for workers in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetricWarning)
            found.append(evaluate(dataset, ["mse", metric], batch=batch, workers=workers))
    one, several = found
    assert several.scores.equals(one.scores)
    assert set(several.failures) == set(one.failures)
    assert [name for name, r in several.provenance.items() if r.alone] == [
        name for name, r in one.provenance.items() if r.alone
    ]
    if metric is among_others:
        (note,) = several.notes.values()
        assert re.search(r"depend on the batch: .* \(compressed feature seg-0", note)


def test_an_interrupted_run_is_gone_on_from_by_workers(
    folder: Path, tmp_path: Path, pool: PicklingPool
) -> None:
    out = tmp_path / "scores.parquet"
    whole = evaluate(folder, ["mse", "cka"], workers=2)
    submitted = pool.calls
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, ["mse", "cka"], workers=2, out=out, progress=InterruptAfter(300))
    pool.calls = 0
    check_equal(whole, evaluate(folder, ["mse", "cka"], workers=2, out=out))
    assert 0 < pool.calls < submitted
    assert read_evaluation(load(folder), out).scores.equals(whole.scores)


def test_a_metric_that_kills_workers_costs_its_own_scores_alone(
    tmp_path: Path, pool: PicklingPool
) -> None:
    dataset, out = MemoryDataset(), tmp_path / "scores.parquet"
    with pytest.warns(MetricWarning, match="kills_on_two_layers' is given up: the processes that"):
        found = evaluate(dataset, ["mse", kills_on_two_layers, "cka"], workers=2, out=out)
    whole = evaluate(dataset, ["mse", error, "cka"])
    by_metric = found.scores.group_by("metric").aggregate([("value", "count")])
    assert sorted(by_metric["value_count"].to_pylist()) == [60, 120, 120]
    for name in ("mse", "cka"):
        one, other = (r.scores.filter(pc.field("metric") == name) for r in (found, whole))
        assert one.equals(other)
    (message,) = found.failures.values()
    assert message.endswith("(out of memory?); 60 of 120 features have no score")
    # Two sources together, the first again, its parts, and five other sources.
    assert pool.calls == 2 + (executor.ATTEMPTS - 1) + 4 + 5


def test_a_metric_that_kills_workers_when_it_is_loaded_costs_its_own_scores_alone(
    pool: PicklingPool,
) -> None:
    with pytest.warns(MetricWarning, match="KillsWhenLoaded' is given up: the processes that"):
        found = evaluate(MemoryDataset(), ["mse", KillsWhenLoaded()], workers=2)
    assert [metric.name for metric in found.metrics] == ["mse"]
    assert found.scores["value"].null_count == 0


def test_a_source_that_kills_workers_when_it_is_read_costs_no_metric(pool: PicklingPool) -> None:
    with pytest.warns(MetricWarning, match="the processes that read its features were killed"):
        found = evaluate(Deadly(), ["mse", "cka"], workers=2)
    lacking = found.scores.filter(pc.field("value").is_null())
    assert set(lacking["source_id"].to_pylist()) == {Deadly.deadly}
    (message,) = set(found.failures.values())
    assert message.startswith("source cls-1 of cls: the processes that read its features were kil")
    assert found.correlations.num_rows


def test_a_feature_that_is_none_is_named_and_the_other_scores_are_kept(
    tmp_path: Path, pool: PicklingPool
) -> None:
    dataset, out = MemoryDataset(), tmp_path / "scores.parquet"
    good = dataset.versions["cls-1", "x265", 3].copy()
    dataset.versions["cls-1", "x265", 3][0, 0, 0, 0] = np.nan
    with pytest.raises(
        MetricError, match=r"^source cls-1 of cls: compressed feature cls-1, x265, l"
    ):
        evaluate(dataset, ["mse"], workers=2, out=out)
    pool.calls = 0
    dataset.versions["cls-1", "x265", 3] = good
    assert evaluate(dataset, ["mse"], workers=2, out=out).scores["value"].null_count == 0
    assert pool.calls == 1


def test_what_cannot_be_sent_or_loaded_is_one_line_before_any_work(pool: PicklingPool) -> None:
    dataset = MemoryDataset()
    with pytest.raises(
        MetricError, match=r"^metric '<lambda>' cannot be sent to workers: .*(pickle|local object)"
    ):
        evaluate(dataset, ["mse", lambda x, y: error(x, y)], workers=2)
    dataset.more = lambda: 0  # type: ignore[attr-defined]
    with pytest.raises(MetricError, match=r"^the dataset cannot be sent to workers: "):
        evaluate(dataset, ["mse"], workers=2)
    assert not pool.calls
    sent = Pickled("metric 'x'", b"cnowhere\nx\n.")
    with pytest.raises(
        MissingDependencyError, match=r"^metric 'x' cannot be loaded by a worker: Mo"
    ):
        sent.load()
    with pytest.raises(MetricError, match="no Dask scheduler responds at 'nonsense://x'"):
        evaluate(MemoryDataset(), ["mse"], client="nonsense://x")
    with pytest.raises(MetricError, match="give one of them, not both"):
        evaluate(MemoryDataset(), ["mse"], workers=2, client="nonsense://x")


def test_processes_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    with evaluator._executor(3, None, "cuda") as three:
        assert three is not None
        assert three._gpus == ["4", "GPU-7"]
    begun = get_context("spawn").Value("i", 0)
    seen = []
    for _ in range(3):
        executor._select_gpu(begun, ["4", "GPU-7"])
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["4", "GPU-7", "4"]


@pytest.mark.release
def test_two_processes_of_which_one_is_killed_give_the_scores_of_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("CFQA_TEST_MARK", str(mark))
    metrics = ["mse", "cka", kills_a_worker, "gap_mean"]
    one = evaluate(folder, metrics)
    mark.touch()
    several = evaluate(folder, metrics, workers=2, out=tmp_path / "scores.parquet")
    assert not mark.exists()
    check_equal(one, several)


@pytest.mark.release
def test_a_cluster_gives_the_scores_of_one_process(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from distributed import Client, LocalCluster

    one = evaluate(folder, ["mse", "cka", "mahalanobis"])
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        out, address = tmp_path / "scores.parquet", str(cluster.scheduler_address)
        command = ["eval", str(folder), "--metric", "mse,cka,mahalanobis", "--scheduler", address]
        assert main([*command, "--out", str(out)]) == 0
        with Client(cluster) as client:
            check_equal(one, evaluate(folder, ["mse", "cka", "mahalanobis"], client=client))
            assert client.status == "running"
    assert read_evaluation(load(folder), out).scores.equals(one.scores)
