"""Ranges and levels that a recipe leaves to the build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_toy import tree
from plugin_words import Bag, Lines
from test_plugin_build import recipe

from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.check import make_plan
from cfqa_data.builders.pipeline.estimate import estimate
from cfqa_data.builders.pipeline.fit import fit_range
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.errors import BuildError, RecipeError
from cfqa_data.format.manifest import read_manifest
from cfqa_data.recipe.fitted import FittedRange
from cfqa_data.recipe.load import Recipe

FIT = {"kind": "uniform", "bits": 8, "range": "fit"}


def words(codec: str = "shift", **changes: Any) -> Recipe:
    """A recipe of one task of words with one codec on planes, whose range is fitted."""
    data = recipe().to_dict()
    task = data["tasks"]["words"]
    entry = {**task["codecs"]["shift"], "quantizer": FIT, **changes}
    if entry["quantizer"] is None:
        del entry["quantizer"]
    task["codecs"] = {codec: entry}
    return Recipe.from_dict(data | {"tasks": {"words": task}})


def numbers(path: Path, codec: str = "shift") -> dict[str, Any]:
    """What the manifest's recipe says of a codec."""
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
    with pytest.raises(BuildError, match=r"that is not this one .*quantizer.bits: 8 there, 7 here"):
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


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


class NoTraining(Lines):
    """Has nothing to train on."""

    training_inputs = Lines.__mro__[1].training_inputs  # type: ignore[attr-defined]


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
