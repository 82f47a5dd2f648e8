"""Retrieval: average precision by Market-1501's rules, instances, the head and its training."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cfqa_data.builders.backbones.dinov2 import DinoV2
from cfqa_data.builders.sources.instances import CAMERAS, JUNK, Instances
from cfqa_data.builders.tasks.retrieval import Retrieval, average_precision, ranked
from cfqa_data.builders.training.embedding import embeddings, pooled_features, train
from cfqa_data.errors import BuildError
from cfqa_data.recipe.load import load_recipe
from cfqa_data.testing.sources import SourceSuite
from cfqa_data.testing.tasks import TaskSuite

WEIGHTS = Path(__file__).parents[1] / "builders" / "weights"
HEAD = WEIGHTS / "head_ret.safetensors"


def textbook(found: np.ndarray) -> float:
    """Average precision of a ranking without ties."""
    return float(np.mean([found[: k + 1].mean() for k in np.flatnonzero(found)]))


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_the_mean_over_all_orders_of_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 3 + seed, 7).astype(float)
    found = rng.permutation(7) < 1 + seed % 4
    orders = [
        np.array(o) for o in permutations(range(7)) if (np.diff(distances[list(o)]) >= 0).all()
    ]
    expected = np.mean([textbook(found[order]) for order in orders])
    assert average_precision(distances, found) == pytest.approx(expected, rel=1e-12)
    shuffled = rng.permutation(7)
    assert average_precision(distances[shuffled], found[shuffled]) == pytest.approx(expected)


def test_junk_and_the_query_s_own_camera_are_left_out() -> None:
    gallery = {
        "embeddings": np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]),
        "identities": np.array([7, 7, JUNK, 8, 8]),
        "cameras": np.array([0, 1, 1, 0, 1]),
    }
    distances, found = ranked(np.array([0.5]), np.array([7, 0]), gallery)
    assert distances.tolist() == [1.5, 3.5, 4.5]
    assert found.tolist() == [True, False, False]


class TestInstances(SourceSuite):
    source, options, count = Instances, {"side": 28}, 3

    def test_the_names_of_gallery_and_training_share_no_identity(self) -> None:
        source = self.make()
        names = source.gallery_names(), source.embedding_names()
        gallery, training = ({name.split("-")[1] for name in part} for part in names)
        assert not gallery & training
        assert len(names[0]) == CAMERAS * len(gallery)
        assert {sample.source_id.split("-")[1] for sample in self.samples()} <= gallery

    def test_neighbouring_queries_are_of_one_identity_by_two_cameras(self) -> None:
        first, second, third = self.samples()
        assert first.group == second.group != third.group
        assert first.truth[0] == second.truth[0] != third.truth[0]
        assert first.truth[1] != second.truth[1]

    @pytest.mark.parametrize(
        "name", ["instance-1-6-0", "instance-1-0", "scene-1-0-0", f"instance-{10**20}-0-0"]
    )
    def test_names_of_no_image_are_told(self, name: str) -> None:
        with pytest.raises(BuildError, match=name):
            self.make().sample(name)


@cache
def queries() -> tuple[DinoV2, list[Any], list[Any]]:
    backbone = DinoV2(WEIGHTS / "backbone.safetensors", 3)
    task, samples = Retrieval(backbone, HEAD), []
    for sample in Instances(0).samples():
        feature = task.embed(backbone.extract(sample.inputs, (7,)))
        if task.score(feature, sample.truth)[0] > 0.5:
            samples.append((feature, sample))
        if len(samples) == 2:
            return backbone, [(f, s.truth) for f, s in samples], [s.inputs for _, s in samples]
    raise AssertionError


class TestRetrieval(TaskSuite):
    task, weights, blocks = Retrieval, HEAD, (7,)

    @pytest.fixture(autouse=True)
    def data(self) -> None:
        self.backbone, self.cases, self.inputs = queries()

    def test_a_query_that_cannot_be_scored_is_told(self) -> None:
        task, (feature, truth) = self.make(), self.cases[0]
        for other, of, told in (
            (feature, [9999, 0], "no image of identity 9999 by another camera than 0"),
            (
                feature[..., :-1],
                truth,
                r"an embedding must be finite and of shape \(1, 1, 1, 384\), not",
            ),
            (feature, truth[:1], r"the ground truth must be identity and camera, not int64 \(1,\)"),
        ):
            with pytest.raises(BuildError, match=f"retrieval head: .*{told}"):
                task.score(other, np.asarray(of))

    def test_a_head_without_its_gallery_is_told(self, tmp_path: Path) -> None:
        tensors = load_file(HEAD)
        short = tensors | {"gallery": tensors["gallery"][:-1]}
        del tensors["gallery"]
        for damaged, told in ((tensors, "'gallery' is missing"), (short, "not .images, D. and")):
            save_file(damaged, tmp_path / "head.safetensors")
            with pytest.raises(BuildError, match=rf"head\.safetensors: .*{told}"):
                Retrieval(self.backbone, tmp_path / "head.safetensors")


def test_an_embedding_learns_what_an_identity_is_and_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 6)
    inputs = 3 * rng.standard_normal((48, 6)).astype(np.float32)
    inputs[:, 0] = labels
    truths = np.stack([labels, np.tile(np.arange(6), 8)], axis=1)
    truths[:2, 0] = JUNK

    def precision(steps: int) -> float:
        module = train(lambda: torch.nn.Linear(6, 3), inputs, truths, steps=steps, rate=0.1)
        found = embeddings(module, inputs)
        gallery = {"embeddings": found, "identities": truths[:, 0], "cameras": truths[:, 1]}
        pairs = zip(found[2:], truths[2:], strict=True)
        return float(np.mean([average_precision(*ranked(*pair, gallery)) for pair in pairs]))

    trained = precision(25)
    assert trained == precision(25)
    assert trained > precision(3) + 0.3


def test_identities_of_the_gallery_are_none_of_training(tmp_path: Path) -> None:
    arrays = {}
    for part, identity in (("gallery", 3), ("training", 3), ("queries", 4)):
        arrays[part] = np.zeros((2, 4), np.float32)
        arrays[f"{part}_truths"] = np.array([[identity, 0], [JUNK, 1]])
    save_file(arrays, tmp_path / "pooled.safetensors")
    with pytest.raises(BuildError, match="identity 3 is both in the gallery and in training"):
        pooled_features(load_recipe("ret"), "ret", tmp_path / "pooled.safetensors")
