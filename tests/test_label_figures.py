"""Figures of labels and their ceiling, against plain counts and SciPy."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mock_dataset import write_mock_dataset
from pipeline_toy import qp, toy_recipe, write_networks
from scipy.stats import spearmanr

from cfqa_data import label, load
from cfqa_data.builders.pipeline import build
from cfqa_data.cli import main
from cfqa_data.eval.label_figures import describe_labels
from cfqa_data.recipe.load import Recipe


def table(codecs: dict[str, np.ndarray], losses: dict[str, np.ndarray] | None = None) -> pa.Table:
    """Return labels of one task, with (S, L) numbers of each codec, in shuffled order."""
    rows: list[dict[str, Any]] = []
    for codec, distortions in codecs.items():
        for source, level in np.ndindex(distortions.shape):
            row = {"task": "cls", "source_id": f"s{source}", "codec": codec, "level": level}
            loss = None if losses is None else float(losses[codec][source, level])
            rows.append(row | {"distortion": float(distortions[source, level]), "loss": loss})
    schema = pa.schema(
        [(n, pa.string()) for n in ("task", "source_id", "codec")]
        + [("level", pa.int16()), ("distortion", pa.float64()), ("loss", pa.float64())]
    )
    order = np.random.default_rng(0).permutation(len(rows))
    return pa.Table.from_pylist([rows[place] for place in order], schema=schema)


RNG = np.random.default_rng(3)
HARMS = {"a": RNG.integers(-2, 5, (6, 10)) * 1.0, "b": RNG.integers(-1, 2, (6, 3)) * 1.0}
HARMS["a"][2] = 1.0
LOSSES = {name: harm + RNG.normal(size=harm.shape) for name, harm in HARMS.items()}


def test_shares_are_those_that_are_counted() -> None:
    rows = {row["codec"]: row for row in describe_labels(table(HARMS))["labels"]}
    for codec, harm in HARMS.items():
        pairs = [a == b for series in harm for a, b in itertools.combinations(series, 2)]
        assert rows[codec] == {
            "task": "cls",
            "codec": codec,
            "negative": pytest.approx(np.mean([v < 0 for v in harm.ravel()])),
            "constant": pytest.approx(np.mean([len(set(series)) == 1 for series in harm])),
            "tied": pytest.approx(np.mean(pairs)),
            "harm_best": None,
            "harm_worst": None,
        }
    (row,) = describe_labels(table({"a": np.ones((2, 1))}))["labels"]
    assert (row["constant"], row["tied"]) == (1.0, None)


def test_the_ceiling_is_the_mean_srocc_of_loss_and_distortion() -> None:
    harms, losses = (np.hstack([of["a"], of["b"]]) for of in (HARMS, LOSSES))
    losses[1] = 0.5  # a constant loss counts 0
    harms[4] = 2.0  # a constant distortion says nothing
    split, loss = (
        dict(zip("ab", np.split(of, [10], axis=1), strict=True)) for of in (harms, losses)
    )
    each = [spearmanr(losses[s], harms[s]).statistic for s in (0, 2, 3, 5)]

    def ceilings(labels: pa.Table) -> dict[str, float | None]:
        return describe_labels(labels)["ceilings"]

    assert ceilings(table(split, loss)) == {"cls": pytest.approx(np.sum(each) / 5)}
    assert ceilings(table(split)) == {"cls": None}
    assert ceilings(table({"a": np.ones((2, 2))}, {"a": np.ones((2, 2))})) == {"cls": None}
    assert ceilings(table(split).slice(0, 0)) == {}


def told(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[Any, str]:
    """The output of `cfqa info`, as JSON and as text."""
    found = []
    for more in (["--json"], []):
        assert main(["info", str(folder), *options, *more]) == 0
        found.append(capsys.readouterr().out)
    return json.loads(found[0]), found[1]


def test_info_tells_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, text = told(write_mock_dataset(tmp_path / "cfqa"), capsys)
    assert "negative  constant" in text
    assert "of uninformative" not in text
    assert len(summary["ceilings"]) == 3
    for task, value in summary["ceilings"].items():
        assert f"{task}: label ceiling {value:.3f}" in text
    rows = [(row["task"], row["codec"]) for row in summary["labels"]]
    assert rows == [(row["task"], row["codec"]) for row in summary["health"]]
    # Its heads are not here: one line, if they are asked for.
    assert main(["info", str(tmp_path / "cfqa"), "--useless"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_useless_feature_is_the_mean_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_networks(tmp_path)
    whole = toy_recipe(tmp_path, {"x265": qp(20, 45)})
    tasks = {"seg": whole.tasks["seg"].to_dict()}
    data = whole.to_dict() | {"tasks": tasks}
    dataset = load(build(Recipe.from_dict(data), tmp_path / "toy", workers=0))
    originals = {name: dataset.original(name).astype(np.float64) for name in dataset.source_ids}
    harms = []
    for name in originals:
        others = [feature for other, feature in originals.items() if other != name]
        mean = (sum(others) / len(others)).astype(np.float32)
        harms.append(label(dataset, name, mean).distortion)
    plugin = "cfqa_data.testing.mock:Rounded"  # not needed here: only taken
    summary, text = told(tmp_path / "toy", capsys, "--useless", "--plugin", plugin)
    (row,), (health,) = summary["labels"], summary["health"]
    assert summary["useless"] == {"seg": pytest.approx(np.mean(harms))}
    assert row["harm_worst"] == pytest.approx(health["distortion_worst"] / np.mean(harms))
    assert row["harm_best"] == pytest.approx(health["distortion_best"] / np.mean(harms))
    assert "worst, of uninformative" in text
