"""Datasets in memory are read, evaluated, plotted and saved like those of a folder."""

from __future__ import annotations

import fcntl
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cases import each

import cfqa_data
from cfqa_data import CfqaError, FormatError, create_metric, evaluate, from_arrays, load, save
from cfqa_data.eval.curves import curves
from cfqa_data.eval.report import write_report
from cfqa_data.format.facts import Loss, Score, TaskFacts
from cfqa_data.integrity.summary import info_text, summarise
from cfqa_data.integrity.verify import verify
from cfqa_data.loaders.torch import Pairs, data_loader

pytestmark = pytest.mark.usefixtures("quick_statistics")

SOURCES = ("a", "b", "c", "d")
CODECS = {"fine": (8, 4, 2), "coarse": (0.5, 1.5)}  # one falls, one rises: the best is first


def made(change: dict[str, Any] | None = None, **features: Any) -> dict[str, Any]:
    """Arguments of `from_arrays`: four features of 3 to 5 tokens, two codecs."""
    rng = np.random.default_rng(0)
    originals = {s: rng.normal(size=(2, 1, 3 + n % 3, 6)) for n, s in enumerate(SOURCES)}
    compressed = {
        codec: {
            level: {s: x + (n + 1) / 10 * rng.normal(size=x.shape) for s, x in originals.items()}
            for n, level in enumerate(levels)
        }
        for codec, levels in CODECS.items()
    }
    distortion = {
        codec: {
            level: {s: float(np.abs(y - originals[s]).mean()) for s, y in versions.items()}
            for level, versions in of.items()
        }
        for codec, of in compressed.items()
    }
    return {
        "originals": originals,
        "compressed": compressed,
        "distortion": distortion,
        **features,
        **(change or {}),
    }


def test_pairs_and_labels_are_what_was_given() -> None:
    given = made(
        groups=["x", "x", "y", "z"],
        bits={c: {p: [8, 16, 24, 0] for p in ps} for c, ps in CODECS.items()},
    )
    dataset = from_arrays(**given)
    assert len(dataset) == 4 * 5
    for pair in dataset:
        label = pair.label
        source, codec, parameter = (label[k] for k in ("source_id", "codec", "parameter"))
        original = given["originals"][source]
        assert np.array_equal(pair.original, original.astype(np.float32))
        assert np.array_equal(
            pair.compressed, given["compressed"][codec][parameter][source].astype(np.float32)
        )
        assert (
            label["distortion"] == label["score"] == given["distortion"][codec][parameter][source]
        )
        assert label["level"] == CODECS[codec].index(parameter)
        assert label["bits"] == {"a": 8, "b": 16, "c": 24, "d": 0}[source]
        assert label["bpfp"] == label["bits"] / original.size
        assert (label["tokens"], label["group"]) == (
            original.shape[2],
            "xxyz"[SOURCES.index(source)],
        )
        assert label["fold"] == {"x": 0, "y": 1, "z": 2}[label["group"]]
    entry = dataset.manifest.tasks["features"]
    better = {name: codec.facts.parameter.better for name, codec in entry.codecs.items()}
    assert better == {"fine": "higher", "coarse": "lower"}
    part = dataset.original("b", views=1, tokens=slice(0, 2))
    assert np.array_equal(part, dataset.original("b")[1:, :, :2])


def test_score_gives_distortion_by_the_direction_of_the_facts() -> None:
    accuracy = TaskFacts("words", "marking words", Score("accuracy", False), Loss("nats"))
    numbers = {c: {p: [0.5, 0.25, 1, 0] for p in ps} for c, ps in CODECS.items()}
    given = made(distortion=None, score=numbers, reference_score=[1] * 4, loss=numbers)
    (row, *_) = from_arrays(**given, task=accuracy, reference_loss=[0.1] * 4).labels.to_pylist()
    assert row["distortion"] == 0.5
    assert [row[k] for k in ("score", "reference_score", "loss", "reference_loss")] == [
        0.5,
        1,
        0.5,
        0.1,
    ]


@pytest.mark.parametrize("shape", [(7,), (5, 6), (1, 2, 5, 6)])
def test_leading_axes_may_be_left_out(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float16)
    dataset = from_arrays(x, {"noise": {1: x + 1}}, distortion={"noise": {1: [0, 1, 2]}})
    assert dataset.source_ids == ["0", "1", "2"]
    full = (1,) * (4 - len(shape)) + shape
    assert np.array_equal(dataset.original("2"), x[2].astype(np.float32).reshape(full))


class Unread:
    """A large array on disk, like those of HDF5 and Zarr: rows are read on access."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, place: int | slice) -> np.ndarray:
        self.reads += isinstance(place, int)
        return self.array[place]


def test_arrays_on_disk_are_not_read_before_they_are_used() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 6))
    disk = Unread(x)
    dataset = from_arrays(disk, {"noise": {1: disk}}, distortion={"noise": {1: [0, 1, 2]}})
    assert disk.reads == 0
    assert np.array_equal(dataset.compressed("2", "noise", 0)[0, 0], x[2].astype(np.float32))
    assert disk.reads == 1


def test_tensors_and_columns_of_tables_are_taken() -> None:
    x = torch.randn(3, 5, 6, dtype=torch.bfloat16).requires_grad_()
    harm = {"noise": {1: pa.chunked_array([[0.5], [1.5, 2.5]])}}
    dataset = from_arrays(
        x,
        {"noise": {1: list(x * 2)}},
        distortion=harm,
        loss={"noise": {1: torch.tensor([3.0, 4, 5], requires_grad=True)}},
        groups=pa.array(["x", "x", "y"]),
    )
    assert np.array_equal(dataset.original("1")[0, 0], x[1].detach().float().numpy())
    assert [row["distortion"] for row in dataset.labels.to_pylist()] == [0.5, 1.5, 2.5]
    assert [row["loss"] for row in dataset.labels.to_pylist()] == [3, 4, 5]

    class Column:
        """Like a pandas series: indexed by label and not by position."""

        def __init__(self, values: dict[str, float]) -> None:
            self.keys, self.to_dict = values.keys, values.copy

    harm = {"noise": {np.int64(1): Column({"2": 3.0, "0": 1.0, "1": 2.0})}}
    negative = {"noise": {np.float32(1): torch._neg_view(x)}}
    dataset = from_arrays(x, negative, distortion=harm)
    assert [row["distortion"] for row in dataset.labels.to_pylist()] == [1, 2, 3]
    assert np.array_equal(dataset.compressed("0", "noise", 0), -dataset.original("0"))


def test_saved_it_is_a_folder_with_the_same_pairs_and_figures(tmp_path: Path) -> None:
    dataset = from_arrays(**made(groups=["x", "x", "y", "z"]))
    root = save(dataset, tmp_path / "saved", licence="cc-by-4.0", attribution="Those Who Measured")
    assert not verify(root).faults
    assert 'license: "cc-by-4.0"' in (root / "README.md").read_text()
    stored = load(root)
    baselines = [create_metric(name) for name in ("mse", "cosine", "cka")]
    for pair, other in zip(dataset, stored, strict=True):
        assert np.array_equal(pair.original, other.original)
        assert np.array_equal(pair.compressed, other.compressed)
        values = {
            m.name: float(m(pair.original[None], pair.compressed[None])[0]) for m in baselines
        }
        assert other.label == pair.label | {
            k: pytest.approx(v, rel=1e-6) for k, v in values.items()
        } | {"bpfp": pytest.approx(float("nan"), nan_ok=True)}
    figures = [evaluate(d, ["mse", "cosine"]).correlations for d in (dataset, stored)]
    assert figures[0].equals(figures[1])
    with pytest.raises(CfqaError, match="is not empty"):
        save(dataset, root, licence="cc0-1.0")
    with pytest.raises(CfqaError, match="licence's link must be an http address"):
        save(dataset, tmp_path / "again", licence="other")
    with pytest.raises(CfqaError, match="is already a folder"):
        save(stored, tmp_path / "again", licence="cc0-1.0")
    with pytest.raises(CfqaError, match="3 of 20 rows"):
        save(dataset[:3], tmp_path / "again", licence="cc0-1.0")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_what_was_put_there_meanwhile_is_kept(tmp_path: Path) -> None:
    dataset, root = from_arrays(**made()), tmp_path / "saved"
    root.mkdir()
    (root / ".DS_Store").touch()

    class Meanwhile:
        def start(self, stage: str, total: int, unit: str) -> None: ...
        def advance(self, n: int = 1) -> None: ...
        def finish(self) -> None:
            (root / "mine").touch()

    with pytest.raises(CfqaError, match="is no longer empty"):
        save(dataset, root, licence="cc0-1.0", progress=Meanwhile())
    assert (root / "mine").exists()
    (root / "mine").unlink()
    assert not verify(save(dataset, root, licence="cc0-1.0")).faults
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = from_arrays(
        np.ones((2, 3)), {"a": {1: np.ones((2, 3))}}, distortion={"a": {1: [0, 1]}}
    )
    left, held = (tmp_path / f"it.{pid}-0123abcd.partial" for pid in (7, 8))
    for folder in (left, held):
        folder.mkdir()
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    save(dataset, tmp_path / "it", licence="mit")
    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", held.name]
    assert "2/2" in capsys.readouterr().err  # bars, since that is a terminal
    assert "a (1 level)" in info_text(summarise(str(tmp_path / "it")))


def test_rates_may_be_known_of_some_codecs_only() -> None:
    dataset = from_arrays(**made(bits={"fine": {p: [9] * 4 for p in CODECS["fine"]}}))
    known = {(row["codec"], row["bits"]) for row in dataset.labels.to_pylist()}
    assert known == {("fine", 9), ("coarse", None)}
    facts = {n: c.facts.bits for n, c in dataset.manifest.tasks["features"].codecs.items()}
    assert facts == {"fine": "stated", "coarse": "unknown"}


def test_everything_else_takes_it(tmp_path: Path) -> None:
    dataset = from_arrays(**made(bits={c: {p: [9] * 4 for p in ps} for c, ps in CODECS.items()}))
    evaluation = evaluate(dataset, ["mse"], out=tmp_path / "scores.parquet")
    page = write_report(evaluation, tmp_path / "report.html", dataset)
    assert "arrays" in page.read_text()
    assert {row["codec"] for row in curves(dataset, ["distortion"]).points.to_pylist()} == set(
        CODECS
    )
    assert len(Pairs(dataset)) == 20
    (batch, *_) = data_loader(Pairs(dataset), batch_size=20)
    assert len(batch.label) == 20
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again[7].compressed, dataset[7].compressed)
    with pytest.raises(CfqaError, match="another dataset"):
        write_report(evaluation, tmp_path / "other.html", from_arrays(**made(parameter="step")))


def test_reports_say_what_figures_of_uneven_ladders_and_of_groups_are_over(tmp_path: Path) -> None:
    def page(dataset: cfqa_data.Dataset) -> str:
        return write_report(evaluate(dataset, ["mse"]), tmp_path / "r.html", dataset).read_text()

    uneven = page(from_arrays(**made(groups=["x", "x", "y", "z"])))
    assert "different numbers of levels: 2 of coarse (features); 3 of fine (features)." in uneven
    assert "bootstrap samples of groups of sources" in uneven
    assert "Software versions of the build" not in uneven
    given = made()
    for name in ("compressed", "distortion"):
        given[name] = {"fine": given[name]["fine"]}
    even = page(from_arrays(**given))
    assert "bootstrap samples of sources" in even
    assert "numbers of levels" not in even
    assert "A dash" not in even
    for name in ("compressed", "distortion"):
        given[name] = {"fine": given[name]["fine"], "one": {1: given[name]["fine"][2]}}
    assert "A dash: undefined, as for a codec of one level." in page(from_arrays(**given))


def test_values_that_are_not_finite_are_named_and_nothing_is_saved(tmp_path: Path) -> None:
    given = made()
    given["compressed"]["coarse"][1.5]["c"][0, 0, 0, 0] = np.nan
    dataset = from_arrays(**given)
    with pytest.raises(
        FormatError, match="'c' by coarse at level 1 has values that are not finite"
    ):
        save(dataset, tmp_path / "saved", licence="cc0-1.0")
    assert not list(tmp_path.iterdir())
    x = np.ones((2, 3, 4))
    masked = np.ma.masked_less([x[0] / 2, x[0]], 1)
    for wrong, why in (
        (x * 1e300, "not finite"),
        (masked, "not finite"),
        (x.astype(complex).tolist(), "not an array of"),
    ):
        dataset = from_arrays(x, {"up": {1: wrong}}, distortion={"up": {1: [0, 0]}})
        with pytest.raises(FormatError, match=why):
            dataset.compressed("0", "up", 0)


NUMBERS = {c: {p: [0.0] * 4 for p in ps} for c, ps in CODECS.items()}


@each(
    ("change", "why"),
    [
        ({"originals": []}, "originals must not be empty"),
        ({"originals": 3}, "originals must be a mapping of ids or a sequence"),
        ({"originals": np.zeros((2, 3, 4, 5))}, r"original '0' is \(3, 4, 5\)"),
        ({"originals": np.array([["a"]])}, "original '0' is <U1, not of real numbers"),
        ({"compressed": {}}, "compressed must be"),
        ({"compressed": {"fine": [1]}}, "compressed must be"),
        ({"compressed": {"fine": {1: [np.zeros((2, 3))]}}}, "fine at 1: 1 values, and 4 originals"),
        ({"compressed": {"fine": {1: {"a": 0}}}}, "fine at 1 lacks 'b'"),
        ({"distortion": {"fine": NUMBERS["fine"]}}, "have codec 'coarse'"),
        ({"distortion": NUMBERS | {"other": {}}}, "no features of codec 'other'"),
        ({"distortion": NUMBERS | {"coarse": {1: [0] * 4}}}, "the parameters of coarse are"),
        (
            {"distortion": NUMBERS | {"coarse": {p: [0, 0, 0, np.nan] for p in (0.5, 1.5)}}},
            "nan of 'd'",
        ),
        ({"distortion": None}, "give either distortion, or score"),
        ({"reference_score": [0] * 4}, "must be given together"),
        ({"reference_loss": [0] * 4}, "needs a loss"),
        ({"score": NUMBERS, "distortion": None, "reference_score": [0] * 4}, "task=TaskFacts"),
        (
            {"bits": {c: {p: [-1] * 4 for p in ps} for c, ps in CODECS.items()}},
            "bits, fine at 8: -1 of 'a' must be a whole number",
        ),
        ({"bits": 8}, "bits must be"),
        ({"groups": ["x"]}, "groups: 1 values, and 4 originals"),
        ({"groups": ["x", None, "y", "y"]}, "groups: that of 'b' must be a string, not None"),
        ({"originals": [[[1.0], [2, 3]]]}, "original '0' is not an array"),
        ({"originals": {1, 2}}, "originals must be a mapping of ids or a sequence"),
        ({"task": "Two Words"}, "is not a valid name of a task"),
        ({"prefix_tokens": 6}, "prefix_tokens is more than the 5 tokens"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(CfqaError, match=why):
        from_arrays(**made(change))


def test_shapes_must_fit() -> None:
    given = made()
    given["compressed"]["fine"][4]["b"] = np.zeros((2, 1, 3, 6))
    with pytest.raises(
        CfqaError, match=r"fine at 4: source 'b' is \(2, 1, 3, 6\), its original \(2, 1, 4, 6\)"
    ):
        from_arrays(**given)
    given = made()
    given["originals"]["c"] = np.zeros((2, 1, 5, 7))
    with pytest.raises(CfqaError, match="only the number of tokens may differ"):
        from_arrays(**given)
    assert "from_arrays" in cfqa_data.__all__
