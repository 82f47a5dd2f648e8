"""Ranges of quantisers and levels of codecs that a build fits."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_toy import tree
from plugin_words import Bag, Length, Lines, Round, Vowels
from test_plugin_build import HERE, UNIFORM, recipe

from cfqa_data.builders.extending import extend
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.check import make_plan
from cfqa_data.builders.pipeline.estimate import estimate
from cfqa_data.builders.pipeline.fit import fit_range
from cfqa_data.builders.pipeline.ladders import measure
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.builders.sources.base import Sample, Source
from cfqa_data.errors import BuildError, CfqaError, RecipeError
from cfqa_data.format.facts import Parameter, Score, TaskFacts, Truth
from cfqa_data.format.manifest import read_manifest
from cfqa_data.recipe.fitted import AutoLevels, FittedRange
from cfqa_data.recipe.load import Recipe


class Sums(Lines):
    """Lines whose ground truth is the sum of the hashes of their words."""

    def sample(self, source_id: str) -> Sample:
        found = super().sample(source_id)
        values = Bag(0.5).extract(found.inputs, (0,))
        return replace(found, truth=np.array(values.sum(dtype=np.float64)))


class Total(Length):
    """A task whose score is the error of the sum of a feature."""

    facts = TaskFacts("total", "sum", Score("error", True), truth=Truth("float64", 0))

    def score(self, feature: np.ndarray, truth: np.ndarray) -> tuple[float, None]:
        return abs(float(feature[0, 0].sum(dtype=np.float64)) - float(truth)), None


FIT = {"kind": "uniform", "bits": 8, "range": "fit"}


def words(codec: str = "shift", **changes: Any) -> Recipe:
    """Return a recipe of one task with one codec on planes, whose range is fitted."""
    data = recipe().to_dict()
    task = data["tasks"]["words"]
    entry = {**task["codecs"]["shift"], "quantizer": FIT, **changes}
    if entry["quantizer"] is None:
        del entry["quantizer"]
    if entry["class"] != f"{HERE}:Shift":
        del entry["parameter_name"]
    task["codecs"] = {codec: entry}
    task["source"]["kind"], task["class"] = f"{__name__}:Sums", f"{__name__}:Total"
    return Recipe.from_dict(data | {"tasks": {"words": task}})


def numbers(path: Path, codec: str = "shift") -> dict[str, Any]:
    """Return the entry of a codec in the manifest's recipe."""
    found: dict[str, Any] = read_manifest(path).recipe["tasks"]["words"]["codecs"][codec]
    return found


# Ranges.


@pytest.mark.parametrize("percentile", [100, 99, 80.5])
def test_a_range_holds_so_much_of_every_feature(percentile: float) -> None:
    rng = np.random.default_rng(1)
    features = [rng.standard_t(3, (2, 3, t, 5)).astype(np.float32) * 7 for t in (4, 9, 30)]
    found = fit_range(features, 10, percentile)
    for layer, (lo, hi) in enumerate(zip(found.lo, found.hi, strict=True)):
        lows, highs = [], []
        for feature in features:  # sorted values, and how many may lie beyond an end
            values = sorted(feature[:, layer].ravel().tolist())
            most = int(len(values) * (100 - percentile) / 100 + 1e-9)
            assert sum(v < lo for v in values) <= most
            assert sum(v > hi for v in values) <= most
            lows.append(values[most])
            highs.append(values[-1 - most])
        # It is rounded outwards, to four digits.
        assert min(lows) * 1.0011 <= lo <= min(lows)
        assert max(highs) <= hi <= max(highs) * 1.0011
        assert all(float(f"{end:.4g}") == end for end in (lo, hi))


def test_an_outlier_channel_sets_the_range_unless_the_percentile_leaves_it_out() -> None:
    feature = np.random.default_rng(0).uniform(-1, 1, (1, 1, 50, 200)).astype(np.float32)
    feature[..., 7] = 100  # 0.5% of all values
    assert fit_range([feature], 10, 100).hi == (100,)
    assert fit_range([feature], 10, 99).hi[0] <= 1
    assert fit_range([feature], 10, 99.8).hi == (100,)


def test_a_layer_of_one_value_has_no_range() -> None:
    feature = np.zeros((1, 2, 3, 4), np.float32)
    feature[0, 0, 0] = 1
    with pytest.raises(BuildError, match="layer 1 of the training features has no range: it is 0"):
        fit_range([feature, feature], 8, 100)


def test_a_build_fits_ranges_and_goes_on_with_the_numbers(tmp_path: Path) -> None:
    asked = words(quantizer=FIT | {"percentile": 90})
    made = build(asked, tmp_path / "a", workers=1)
    inputs = Lines("words", 3).training_inputs(50, 3)
    expected = fit_range([Bag(0.5).extract(line, (0, 4)) for line in inputs], 8, 90)
    assert numbers(made)["quantizer"] == expected.to_dict()
    assert read_manifest(made).tasks["words"].codecs["shift"].quantizer == expected
    # A finished folder is left as it is, and one of the recipe with numbers has the same bytes.
    before = tree(made)
    build(asked, made, workers=1)
    again = build(words(quantizer=expected.to_dict()), tmp_path / "b", workers=1)
    assert before == tree(made) == tree(again)
    with pytest.raises(BuildError, match=r"that differs .*quantizer.bits: 8 there, 7 here"):
        build(words(quantizer=FIT | {"bits": 7}), made, workers=1)


def test_a_build_that_was_stopped_after_the_fit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(words(), tmp_path / "whole", workers=1)
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("cfqa_data.builders.pipeline.compress.Compress.run", _stop)
        with pytest.raises(KeyboardInterrupt):
            build(words(), out, workers=1)
    assert status(words(), out) == "begun"
    plan = json.loads((out / ".build/plan.json").read_text())
    assert "lo" in plan["recipe"]["tasks"]["words"]["codecs"]["shift"]["quantizer"]
    monkeypatch.setattr("cfqa_data.builders.pipeline.fit.Fit.run", _stop)  # it is done
    build(words(), out, workers=1)
    assert tree(out) == tree(whole)


def test_an_extension_finds_what_a_build_finds(tmp_path: Path) -> None:
    """Levels of a codec on features, and the range of one on planes."""
    found = {"levels": {"auto": 3}, "class": f"{__name__}:Spread", "quantizer": None}
    whole = build(words("spread", **found), tmp_path / "whole", workers=1)
    shift = f"{HERE}:Shift"
    fitted = build(words(), tmp_path / "fitted", workers=1)
    classes = [shift, f"{HERE}:Bag", *(f"{__name__}:{n}" for n in ("Sums", "Total", "Spread"))]
    how: dict[str, Any] = {"workers": 0, "plugins": classes}
    levels = extend(fitted, found["class"], found["levels"], out=tmp_path / "levels", **how)
    assert numbers(levels, "spread") == numbers(whole, "spread")
    ranged = extend(whole, shift, (0, 3), quantizer=FIT, out=tmp_path / "range", **how)
    assert numbers(ranged)["quantizer"] == numbers(fitted)["quantizer"]
    with pytest.raises(CfqaError, match=r'several numbers, or "auto", not \'8,4\''):
        extend(fitted, found["class"], "8,4", out=tmp_path / "none", **how)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


class NoSamples(Sums):
    """A source with training inputs and without training samples."""

    training_samples = Source.training_samples


class NoTruth(Sums):
    """A source with training samples without truths."""

    def training_samples(self, seed: int) -> Iterator[Sample]:
        return (replace(sample, truth=None) for sample in super().training_samples(seed))


class Blind(Total):
    """A task with a constant score."""

    def score(self, feature: np.ndarray, truth: np.ndarray) -> tuple[float, None]:
        return 1.0, None


class Spread(Round):
    """A codec that defines the grid of its levels."""

    name, title = "spread", "rounds"

    @classmethod
    def grid(cls) -> tuple[float, ...]:
        return (2.0, 1.0, 0.5, 0.0, -0.5, -1.0)

    parameter = Parameter("digits", "higher")

    def stated_bits(self, bitstream: bytes, what: Any) -> int:
        return 8 * len(zlib.compress(bitstream))


class Letters(Vowels):
    """A codec on inputs with at most ten letters per word."""

    title = "keeps the first letters"
    parameter = Parameter("letters", "higher", whole=True, lowest=1, highest=8)


class NoTraining(Sums):
    """A source without training data."""

    training_inputs = Source.training_inputs


@pytest.mark.parametrize(
    ("quantizer", "why"),
    [
        (FIT | {"range": "guess"}, "got 'uniform' and 'guess'"),
        (FIT | {"kind": "kmeans"}, "got 'kmeans' and 'fit'"),
        (FIT | {"bits": 0}, "bits must be a whole number from 1 to 16"),
        (FIT | {"percentile": 50}, "percentile must be a number above 50, to 100, got 50"),
        (FIT | {"percentile": "99"}, "percentile must be a number"),
        (FIT | {"lo": [0.0]}, "'lo'"),
        ({"kind": "uniform", "range": "fit"}, "lacks bits"),
    ],
)
def test_ranges_that_no_recipe_may_have(quantizer: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        words(quantizer=quantizer)
    assert str(caught.value).startswith("tasks.words: codecs.shift")
    assert "\n" not in str(caught.value)


def test_a_source_without_training_material_is_told_before_anything_is_made(
    tmp_path: Path,
) -> None:
    data = words().to_dict()
    data["tasks"]["words"]["source"]["kind"] = f"{__name__}:NoTraining"
    with pytest.raises(BuildError, match=r"tasks.words.codecs.shift: source NoTraining has no tr"):
        build(Recipe.from_dict(data), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_what_is_left_to_a_build_is_kept_in_recipes_and_plans() -> None:
    asked = words()
    assert asked.tasks["words"].codecs["shift"].quantizer == FittedRange(8)
    assert Recipe.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    estimated = estimate(make_plan(asked, "full"))
    assert {row["stage"]: row["items"] for row in estimated["stages"]}["fit"] == 1
    with pytest.raises(RecipeError, match=r"codecs.shift: .* give numbers"):
        asked.check_numbers()


# Levels.


def test_levels_are_found_and_written_as_numbers(tmp_path: Path) -> None:
    asked = words(levels={"auto": 4}, quantizer=UNIFORM)
    made = build(asked, tmp_path / "a", workers=1)
    levels = numbers(made)["levels"]
    assert len(levels) == 4
    assert all(type(level) is int for level in levels)
    assert numbers(made)["quantizer"] == UNIFORM
    (row,) = read_manifest(made).health
    assert row["distortion_worst"] > 5 * abs(row["distortion_best"])
    before = tree(made)
    build(asked, made, workers=1)
    again = build(words(levels=levels, quantizer=UNIFORM), tmp_path / "b", workers=1)
    assert before == tree(made) == tree(again)
    with pytest.raises(BuildError, match="that differs"):
        build(words(levels={"auto": 5}, quantizer=UNIFORM), made, workers=1)


def test_of_a_fitted_range_wider_ones_are_tried_too(tmp_path: Path) -> None:
    made = build(words(levels={"auto": 3}), tmp_path / "a", workers=1)
    fitted = fit_range(
        (Bag(0.5).extract(i, (0, 4)) for i in Lines("w", 3).training_inputs(50, 0)), 8, 100
    )
    found = numbers(made)["quantizer"]
    wide = [hi - lo for lo, hi in zip(found["lo"], found["hi"], strict=True)]
    one = [hi - lo for lo, hi in zip(fitted.lo, fitted.hi, strict=True)]
    scale = wide[0] / one[0]
    assert scale == pytest.approx(wide[1] / one[1], rel=1e-2)
    assert round(scale) in (1, 4, 8, 16)


def test_a_calibration_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(levels={"auto": 4}, quantizer=UNIFORM)
    whole = build(asked, tmp_path / "whole", workers=1)
    measured: list[tuple[float, ...]] = []

    def stopping(*args: Any) -> Any:
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(tuple(args[-1]))
        return measure(*args)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("cfqa_data.builders.pipeline.ladders.measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(asked, out, workers=1)
        assert len(list((out / ".build/fits/words-shift").iterdir())) == 5
        first, measured[:] = measured[:], []
        with pytest.raises(KeyboardInterrupt):
            build(asked, out, workers=1)
    assert first == [(0,), (1,), (2,), (3,), (4,)]
    assert measured[0] == (5,)  # and none of those again
    build(asked, out, workers=1)
    assert tree(out) == tree(whole)


def test_levels_of_other_kinds_of_codecs(tmp_path: Path) -> None:
    data = words().to_dict()
    codecs = {
        "spread": {"class": f"{__name__}:Spread", "levels": "auto"},
        "letters": {"class": f"{__name__}:Letters", "levels": {"auto": 3}},
    }
    task = data["tasks"]["words"] | {"codecs": codecs}
    made = build(Recipe.from_dict(data | {"tasks": {"words": task}}), tmp_path / "a", workers=1)
    digits = numbers(made, "spread")["levels"]
    assert len(digits) == 10
    assert digits == sorted(digits, reverse=True)
    letters = numbers(made, "letters")["levels"]
    assert letters == sorted(set(letters) & set(range(1, 9)), reverse=True)
    assert len(letters) == 3
    build(Recipe.from_dict(data | {"tasks": {"words": task}}), made, workers=1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"levels": {"auto": 9}},
            r"9 levels are requested, and bits has only 8 values; ask for fewer",
        ),
        ({"class": f"{HERE}:Round"}, r"digits needs two limits, or the class a grid\(\)"),
        ({"class": f"{HERE}:Drop"}, r"its rate is unknown, so levels cannot be chosen"),
        ({"levels": {"auto": 1}}, r"auto must be 2 to 128, got 1"),
        ({"levels": {"auto": "many"}}, r"auto must be a whole number"),
        ({"levels": {"count": 3}}, r"count"),
        ({"levels": "some"}, r"levels must be 1 to 128 numbers, got 'some'"),
    ],
)
def test_codecs_whose_levels_cannot_be_found(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    quantizer = None if "class" in changes else UNIFORM
    with pytest.raises(CfqaError, match=why) as caught:
        build(words(**{"levels": "auto", "quantizer": quantizer} | changes), tmp_path / "out")
    assert "shift: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "task", "why"),
    [
        ("NoSamples", "Total", "source NoSamples has no training samples with ground truth"),
        ("NoTruth", "Total", "the truth of words-2000 is None"),
        ("Sums", "Blind", "the mean of the training features scores as well as they do"),
    ],
)
def test_tasks_whose_levels_cannot_be_found(
    source: str, task: str, why: str, tmp_path: Path
) -> None:
    data = words(levels={"auto": 4}, quantizer=UNIFORM).to_dict()
    data["tasks"]["words"]["source"]["kind"] = f"{__name__}:{source}"
    data["tasks"]["words"]["class"] = f"{__name__}:{task}"
    with pytest.raises(BuildError, match=why) as caught:
        build(Recipe.from_dict(data), tmp_path / "out", workers=1)
    assert "tasks.words.codecs.shift: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_calibration_looks_at_training_samples_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sample = Lines.sample
    monkeypatch.setattr(
        Lines, "sample", lambda self, name: (seen.append(name), sample(self, name))[1]
    )
    monkeypatch.setattr("cfqa_data.builders.pipeline.select.Select.run", _stop)
    with pytest.raises(KeyboardInterrupt):
        build(words(levels={"auto": 4}), tmp_path / "out", workers=1)
    assert seen
    assert all(int(name.rpartition("-")[2]) >= 2000 for name in seen)


def test_an_estimate_counts_what_a_calibration_measures() -> None:
    few, many = (
        estimate(make_plan(words(levels={"auto": n}), "full"))["stages"][0] for n in (2, 8)
    )
    assert few["stage"] == many["stage"] == "fit"
    assert few["features"] < many["features"]
    assert AutoLevels.from_dict("auto") == AutoLevels(10)
