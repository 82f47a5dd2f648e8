"""The hyperprior against CompressAI's coding of the same planes with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import official_compressai as official
import pytest
import torch

from cfqa_data.codecs.hyperprior.codec import Hyperprior, load_hyperprior
from cfqa_data.codecs.hyperprior.entropy_tables import COMPRESSAI_TAIL, Density, Tables

FIGURES: dict[str, Any] = json.loads(official.FIGURES.read_text())
CASES = [(kind, shape) for kind in official.KINDS for shape in official.SHAPES]


def whole(kind: str) -> dict[str, torch.Tensor]:
    quantiles = torch.tensor(FIGURES[kind]["quantiles"])[:, None]
    return official.weights(kind) | {"entropy_bottleneck.quantiles": quantiles}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hyperprior]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind in official.KINDS:
        state = {f"module.{name}": value for name, value in whole(kind).items()}
        torch.save({"state_dict": state}, folder / f"{kind}.pth.tar")
    return {kind: load_hyperprior(folder / f"{kind}.pth.tar") for kind in official.KINDS}


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_size_and_reconstruction_are_compressais(
    models: dict[str, Hyperprior], kind: str, shape: tuple[int, int]
) -> None:
    wanted, plane = FIGURES[kind]["x".join(map(str, shape))], official.plane(shape)
    stream = models[kind].encode(plane)
    # No more apart than a header, a checksum and words of four bytes explain.
    assert abs(len(stream) - wanted["bytes"]) <= 8
    assert len(stream) == pytest.approx(wanted["bytes"], rel=0.05)
    decoded = models[kind].decode(stream, shape)
    assert decoded.shape == shape
    assert np.abs(decoded[official.places(shape)] - wanted["samples"]).max() < 1e-4
    assert official.wave(decoded) == pytest.approx(wanted["wave"], abs=1e-6)
    assert int(((decoded == 0) | (decoded == 1)).sum()) == wanted["clipped"]
    # The figures are of planes that are not flat.
    assert float(decoded.std()) == pytest.approx(wanted["deviation"], abs=1e-4)
    assert wanted["deviation"] > 0.05


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_latents_are_compressais(
    models: dict[str, Hyperprior], kind: str, shape: tuple[int, int]
) -> None:
    wanted = FIGURES[kind]["x".join(map(str, shape))]
    y, z = models[kind].latents(official.plane(shape))
    assert [int(np.abs(part).max()) for part in (y, z)] == wanted["largest"]
    # Float32 may round one y in some thousands the other way.
    assert official.wave(y) == pytest.approx(wanted["latents"][0], abs=2 / y.size)
    assert official.wave(z) == pytest.approx(wanted["latents"][1], abs=1e-12)


@pytest.mark.parametrize("kind", official.KINDS)
def test_tables_are_compressais(models: dict[str, Hyperprior], kind: str) -> None:
    def told(tables: Tables) -> np.ndarray:
        """Like official_compressai.tables, with the escape as first entry, and 24 bits."""
        found = []
        for index in range(len(tables)):
            counts, first = tables.table(index)
            entries = (counts.astype(np.int64) + 1) / 256
            found.append([first, len(counts), entries.max(), entries[0]])
        return np.array(found)

    weights = models[kind].weights
    for name, tables in (("y", weights.y_tables), ("z", weights.z_tables)):
        found, wanted = told(tables), np.array(FIGURES[kind][name])
        assert np.array_equal(found[:, :2], wanted[:, :2])
        # CompressAI computes the probabilities in float32.
        assert np.abs(found - wanted).max() <= 2
        assert (np.abs(found - wanted).max(axis=1) == 0).mean() > 0.9


def test_latents_far_beyond_their_tables_survive(
    models: dict[str, Hyperprior],
) -> None:
    model, plane = models["far"], official.plane((128, 192))
    y, z = model.latents(plane)
    ends = model.weights.y_tables.firsts[model._y_table_indexes(z, y.shape)].reshape(y.shape)
    assert (np.abs(y) > -ends).mean() > 0.5
    lowest = model.weights.z_tables.firsts[:, None, None]
    highest = lowest + model.weights.z_tables.sizes[:, None, None] - 2
    assert ((z < lowest) | (z > highest)).mean() > 0.1
    # What is decoded is the synthesis of these latents: escapes lose nothing.
    twin = y.astype(np.float64)
    for layer in model.synthesis.layers:
        twin = layer(twin)
    decoded = model.decode(model.encode(plane), plane.shape)
    assert np.array_equal(decoded, np.clip(twin[0, : plane.shape[0]], 0, 1))


def test_quantiles_of_a_trained_density_are_where_compressai_solves_for_them(
    models: dict[str, Hyperprior],
) -> None:
    for kind, model in models.items():
        found = Density(model.weights.state).quantiles(COMPRESSAI_TAIL)
        np.testing.assert_allclose(found, FIGURES[kind]["quantiles"], rtol=1e-4, atol=1e-3)


def test_both_namings_of_the_density_are_one(tmp_path: Path, models: dict[str, Hyperprior]) -> None:
    older = {
        name.replace("matrices.", "_matrix")
        .replace("biases.", "_bias")
        .replace("factors.", "_factor"): value
        for name, value in whole("near").items()
    }
    torch.save(older, tmp_path / "older.pth")
    plane = official.plane((97, 259))
    stream = load_hyperprior(tmp_path / "older.pth").encode(plane)
    assert stream == models["near"].encode(plane)
    assert "entropy_bottleneck._matrix0" in older
