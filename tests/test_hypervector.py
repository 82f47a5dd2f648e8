"""Hypervector heads: keys, fitting, classes added without training, out-of-distribution inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.builders.tasks.hypervector import HypervectorHead, random_keys
from cfqa_data.builders.training.head import fit_hypervector
from cfqa_data.errors import BuildError
from cfqa_data.format.storage import write_tensors
from cfqa_data.torch_state import torch_state

WIDTH, CLASSES, DIMS = 12, 5, 300
CENTRES = np.random.default_rng(1).standard_normal((CLASSES + 2, 2 * WIDTH))


def pooled(label: int, count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng([label, seed]).standard_normal((count, 2 * WIDTH))
    return 4 + 3 * (CENTRES[label] + 0.3 * noise)


def feature(label: int, seed: int) -> np.ndarray:
    """Return a feature (1, 1, 2, D) of a class: its class token, and the mean of one patch."""
    return pooled(label, 1, seed).reshape(1, 1, 2, WIDTH).astype(np.float32)


class Head(HypervectorHead):
    """A backbone without a norm, so that its outputs are known."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.norm = torch.nn.Identity()


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    labels = np.repeat(np.arange(CLASSES), 12)
    inputs = np.concatenate([pooled(label, 12, 0) for label in range(CLASSES)])
    keys = random_keys(CLASSES, DIMS)
    found = fit_hypervector(inputs, labels, keys)
    with torch_state(grad=True), torch.random.fork_rng():
        torch.manual_seed(3)
        again = fit_hypervector(inputs, labels, keys)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    return found


@pytest.fixture(scope="module")
def head(tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Head:
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    write_tensors(path, tensors)
    return Head.load(path)


def test_keys_are_signs_nearly_orthogonal_and_those_of_their_class() -> None:
    keys = random_keys(40, 1000)
    assert np.array_equal(np.unique(keys), [-1, 1])
    assert np.abs(keys @ keys.T / 1000 - np.eye(40)).max() < 0.15
    assert np.array_equal(random_keys(7, 1000), keys[:7])
    assert not np.array_equal(random_keys(7, 1000, seed=1), keys[:7])


def test_the_nearest_key_is_that_of_the_class(head: Head) -> None:
    for label in range(CLASSES):
        output = head.output(feature(label, 1)).numpy().astype(np.float64)
        keys = head.keys.numpy().astype(np.float64)
        assert np.linalg.norm(keys - output, axis=1).argmin() == label
        similarity = keys @ output / np.linalg.norm(output) / np.sqrt(DIMS)
        score, loss = head.score(feature(label, 1), np.array(label))
        assert score == 1
        assert loss == pytest.approx(1 - similarity[label], abs=1e-5)
        assert head.novelty(feature(label, 1)) == pytest.approx(1 - similarity.max(), abs=1e-5)
        last = int(similarity.argmin())
        assert head.score(feature(label, 1), np.array(last))[0] == CLASSES


def test_a_class_is_added_without_training(head: Head) -> None:
    more = head
    for label in (CLASSES, CLASSES + 1):
        known = max(head.novelty(feature(old, seed)) for old in range(CLASSES) for seed in (1, 2))
        assert min(more.novelty(feature(label, seed)) for seed in (1, 2)) > known
        more = more.with_class([feature(label, seed) for seed in range(10, 14)])
    assert (len(head.keys), len(more.keys)) == (CLASSES, CLASSES + 2)
    for label in range(CLASSES + 2):
        assert more.score(feature(label, 1), np.array(label))[0] == 1


def test_what_is_no_such_head_is_said(
    tensors: dict[str, np.ndarray], head: Head, tmp_path: Path
) -> None:
    norm = {f"norm.{name}": np.ones(WIDTH, np.float32) for name in ("weight", "bias")}
    wrong = tensors | {"weight": tensors["weight"][:, 1:]}
    for given, why in (
        ({"weight": tensors["weight"], "bias": tensors["bias"]}, "'hidden.weight' is missing"),
        ({k: v for k, v in tensors.items() if k != "keys"}, "'keys' is missing"),
        (wrong | norm, "'weight' is "),
        (tensors, "'norm.weight' is missing"),
    ):
        with pytest.raises(BuildError, match=why):
            load_head("hypervector", {name: torch.tensor(x) for name, x in given.items()})
    with pytest.raises(BuildError, match=r"hypervector head: label 9 is not in 0\.\.4"):
        head.score(feature(0, 0), np.array(9))
    with pytest.raises(BuildError, match="at least one feature"):
        head.with_class([])
