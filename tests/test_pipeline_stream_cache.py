"""Levels that a killed worker had encoded are not encoded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline_toy import QPS, toy_recipe, tree, write_networks

from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.coding import StreamCache
from cfqa_data.codecs.h26x.hevc import X265
from cfqa_data.errors import BuildError
from cfqa_data.recipe.load import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    whole = toy_recipe(folder, {"x265": QPS}, sources_per_task=2)
    return Recipe.from_dict(whole.to_dict() | {"tasks": {"seg": whole.tasks["seg"].to_dict()}})


def test_kept_streams_come_back_in_order_and_go(tmp_path: Path) -> None:
    names = [f"source-{index}" for index in range(12)]
    kept = StreamCache(tmp_path / "item", tmp_path / "whole.safetensors", names)
    streams = [bytes([index]) * index for index in range(1, 13)]
    assert kept.read(0) is None
    kept.write(0, streams)
    assert kept.read(0) == streams
    assert kept.read(1) is None
    (tmp_path / "item" / "1.safetensors").write_bytes(b"half")
    assert kept.read(1) is None
    kept.remove()
    assert list(tmp_path.iterdir()) == []
    kept.remove()


def test_a_slow_codec_goes_on_at_the_level_where_it_stopped(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build(recipe, tmp_path / "plain", workers=0)
    encoded: list[float] = []
    encode, limit = X265.encode, 5

    def counted(self: X265, plane: np.ndarray, parameter: float) -> bytes:
        if plane.shape != (64, 64):  # the rehearsal's
            if len(encoded) == limit:
                raise BuildError("the worker is lost")
            encoded.append(parameter)
        return encode(self, plane, parameter)

    monkeypatch.setattr(X265, "encode", counted)
    monkeypatch.setattr(X265, "slow", True)
    out = tmp_path / "slow"
    with pytest.raises(BuildError, match="the worker is lost"):
        build(recipe, out, workers=0)
    kept = out / ".build" / "streams" / "seg-x265-00000"
    assert sorted(path.name for path in kept.iterdir()) == [f"{n}.safetensors" for n in range(2)]
    limit = 100
    build(recipe, out, workers=0)
    levels = QPS["levels"]
    assert encoded == [qp for qp in levels[:2] for _ in (0, 1)] + [levels[2]] + [
        qp for qp in levels[2:] for _ in (0, 1)
    ]
    assert tree(out) == tree(plain)


def test_what_does_not_decode_is_not_kept_and_is_encoded_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build(recipe, tmp_path / "plain", workers=0)
    encode, spoilt = X265.encode, QPS["levels"][2]

    def spoiling(self: X265, plane: np.ndarray, parameter: float) -> bytes:
        good = encode(self, plane, parameter)
        return good[:-9] if plane.shape != (64, 64) and parameter == spoilt else good

    monkeypatch.setattr(X265, "encode", spoiling)
    monkeypatch.setattr(X265, "slow", True)
    out = tmp_path / "slow"
    told = rf"^compress seg x265 shard 0: level 2 at {spoilt}: x265: the end of the bitstream"
    with pytest.raises(BuildError, match=told):
        build(recipe, out, workers=0)
    kept = out / ".build" / "streams" / "seg-x265-00000"
    assert sorted(path.name for path in kept.iterdir()) == ["0.safetensors", "1.safetensors"]
    monkeypatch.setattr(X265, "encode", encode)
    build(recipe, out, workers=0)
    assert tree(out) == tree(plain)
