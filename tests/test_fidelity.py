"""Weights and heads in model repos on the Hub, image folders, and truths inferred by a task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_layout import hub_layout, sharded
from loopback_hub import LoopbackHub, loopback_hub, point_clients_at
from PIL import Image
from pipeline_toy import tree
from safetensors.torch import save_file
from torch.nn import functional as F

import cfqa_data
from cfqa_data.access.hub_weights import hub_weights
from cfqa_data.access.weights import find_weights, hash_weights, resolve_weights
from cfqa_data.builders.backbones.dinov2 import VisionTransformer, load_backbone
from cfqa_data.builders.maintenance.repair import repair
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.check import make_plan
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.fit import check_fit
from cfqa_data.builders.sources.folders import ImageFolder
from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.errors import BuildError, CfqaError, HubError, RecipeError
from cfqa_data.recipe.load import Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("quick_statistics")

DIM, CLASSES = 128, 7
BACKBONE, CLASSIFIER, SHARDED = "tiny/dinov2", "tiny/dinov2-imagenet1k-1-layer", "tiny/sharded"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, in one file and in shards, and a classifier with it, in the Hub's layout."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    network = VisionTransformer(DIM, 2, 2, 64, 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = network.state_dict()
    head = {"weight": torch.randn(CLASSES, 2 * DIM), "bias": torch.randn(CLASSES)}
    classifier = {f"classifier.{name}": tensor for name, tensor in head.items()}
    for name, tensors in (
        (BACKBONE, hub_layout(state)),
        (CLASSIFIER, hub_layout(state, "dinov2.") | classifier),
    ):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")
    sharded(folder / SHARDED, hub_layout(state))
    save_file(head, folder / SHARDED / "head.safetensors")
    return folder


@pytest.fixture
def hub(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LoopbackHub, dict[str, str]]]:
    """Start a Hub with these models; yield the commit of each."""
    with loopback_hub() as server:
        point_clients_at(server, monkeypatch, tmp_path / "cache", token=None)
        monkeypatch.setattr("cfqa_data.access.hub_client.PAUSE", 0.0)
        names = (BACKBONE, CLASSIFIER, SHARDED)
        yield server, {name: server.put(name, models / name) for name in names}


def recipe(root: Path, weights: str, head: str) -> Recipe:
    source = {"kind": "image_folder", "seed": 0, "options": {"root": str(root)}}
    quantizer = {"kind": "uniform", "bits": 10, "lo": [-6.0], "hi": [6.0]}
    return Recipe.from_dict(
        {
            "name": "own",
            "summary": "own images",
            "sources_per_task": 3,
            "group_size": 2,
            "backbone": {"weights": weights},
            "tasks": {
                "fidelity": {
                    "blocks": [1],
                    "head": head,
                    "source": source,
                    "codecs": {"x265": {"levels": [10, 51], "quantizer": quantizer}},
                }
            },
        }
    )


def images(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = rng.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_plain_images_and_models_on_the_hub_make_a_dataset_of_fidelity(
    hub: Any, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, commits = hub
    root = images(tmp_path / "images")
    wanted = recipe(root, f"hf://{BACKBONE}", f"hf://{CLASSIFIER}")
    out = build(wanted, tmp_path / "out", workers=1)
    addresses = {name: f"hf://{name}@{commits[name]}" for name in (BACKBONE, CLASSIFIER)}
    dataset = cfqa_data.load(out)
    manifest = dataset.manifest
    for name, address in addresses.items():
        assert manifest.weights[address] == hash_weights(models / name)
    assert manifest.recipe["backbone"]["weights"] == addresses[BACKBONE]
    assert "predicted from the uncompressed feature" in (out / "README.md").read_text()

    # The truth is the class of the published order of steps, in float64.
    norm = [p.double() for p in load_backbone(models / BACKBONE).norm.parameters()]
    head = load_head("cls", models / CLASSIFIER).double().linear  # type: ignore[union-attr]
    for source in manifest.tasks["fidelity"].sources:
        tokens = torch.from_numpy(dataset.original(source)[0, 0]).double()
        tokens = F.layer_norm(tokens, (DIM,), *norm, 1e-6)
        logits = head(torch.cat([tokens[0], tokens[1:].mean(0)]))
        assert int(dataset.truth(source)) == int(logits.argmax())
    assert set(dataset.labels["reference_score"].to_pylist()) == {1.0}

    # Whatever the branch is then: the same bytes without the Hub, and nothing is asked of it.
    server.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert tree(build(wanted, tmp_path / "again", workers=1)) == tree(out)
    assert build(wanted, out, workers=1) == out
    assert server.count() == 0

    # Truths are made again from the originals.
    before, truth = tree(out), out / "truth" / "fidelity.safetensors"
    truth.write_bytes(b"")
    repair(out, workers=1)
    assert tree(out) == before


def test_an_address_is_a_file_at_a_commit(hub: Any, models: Path, tmp_path: Path) -> None:
    server, commits = hub
    at = f"{SHARDED}@{commits[SHARDED]}"
    assert hub_weights(f"hf://{SHARDED}").cached() is None
    for address, file in (
        (f"hf://{SHARDED}", "model.safetensors.index.json"),
        (f"hf://{SHARDED}@main/head.safetensors", "head.safetensors"),
    ):
        path = resolve_weights(address)
        assert (path.name, path.parent.name) == (file, commits[SHARDED])
        assert hash_weights(path) == hash_weights(models / SHARDED / file)
        pinned = hub_weights(address).pinned()
        assert pinned == f"hf://{at}" + ("/head.safetensors" if "/head" in address else "")
        server.reset()
        assert hub_weights(pinned).pinned() == pinned
        assert resolve_weights(pinned) == path
        assert server.count("*.safetensors") == 0
        # A manifest is read by what is in the cache, and downloads nothing.
        assert find_weights(pinned, hash_weights(path), own=False) == path
    with pytest.raises(RecipeError, match=f"get it: hf download {BACKBONE} model.safetensors"):
        find_weights(f"hf://{BACKBONE}", "0" * 64, own=False)
    assert server.count(f"/{BACKBONE}/*") == 0


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://model.safetensors", r"weights on the Hub are hf://org/name\[@revision\]\[/file\]"),
        ("hf://datasets/tiny/dinov2", "weights on the Hub are"),
        ("hf://tiny/dinov2/../x", "weights on the Hub are"),
        ("hf://tiny/none", "no model repo on the Hub that you can read"),
        ("hf://tiny/dinov2@v9", "hf://tiny/dinov2@v9: no such branch, tag or commit"),
        ("hf://tiny/dinov2/x.pth", r"hf://tiny/dinov2: has no x\.pth$"),
        (
            "hf://tiny/empty",
            "has no model.safetensors or .*; name the file, as in hf://tiny/empty/",
        ),
    ],
)
def test_an_address_without_weights_is_one_line_and_nothing_is_written(
    hub: Any, tmp_path: Path, address: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("no weights")
    hub[0].put("tiny/empty", tmp_path / "empty")
    wanted = recipe(images(tmp_path / "images"), address, f"hf://{CLASSIFIER}")
    with pytest.raises(CfqaError, match=said) as caught:
        build(wanted, tmp_path / "out", workers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_offline_says_what_is_not_in_the_cache(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=f"hf://{BACKBONE}/model.safetensors: not in the cache"):
        resolve_weights(f"hf://{BACKBONE}")


@pytest.mark.parametrize(
    ("size", "name", "block"),
    [("s", "small", 11), ("b", "base", 11), ("l", "large", 23), ("g", "giant", 39)],
)
def test_a_recipe_for_every_size(size: str, name: str, block: int) -> None:
    found = load_recipe(f"dinov2-{size}")
    repo, commit, _ = hub_weights(str(found.backbone.weights))
    assert repo == f"facebook/dinov2-{name}"
    assert hub_weights(f"hf://{repo}@{commit}").pinned() == f"hf://{repo}@{commit}"
    task = found.tasks["fidelity"]
    assert task.head == f"hf://facebook/dinov2-{name}-imagenet1k-1-layer"
    assert (found.name, task.blocks) == (f"dinov2-{size}", (block,))


def test_the_recipe_of_the_smallest_takes_images_of_the_root(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "images", 53)
    (tmp_path / "own.toml").write_text(
        f"""extends = "dinov2-s"
        backbone.weights = "{models / BACKBONE}"
        tasks.fidelity.head = "{models / CLASSIFIER}"
        tasks.fidelity.blocks = [1]"""
    )
    (tmp_path / "auto.toml").write_text(
        'extends = "own.toml"\ntasks.fidelity.codecs.x265.levels = "auto"'
    )
    monkeypatch.setenv("CFQA_ROOT", str(tmp_path))
    plan = make_plan(load_recipe(tmp_path / "own.toml"), "full")
    source = Models(plan.recipe).source("fidelity")
    samples = [sample.source_id for sample in source.samples()]
    assert [sample.truth for sample in source.samples()] == [None] * 3
    assert len(samples) == 3
    assert len(list(source.training_inputs(50, 0))) == 50
    check_fit(Models(load_recipe(tmp_path / "auto.toml")), "fidelity")  # truths are inferred there
    with pytest.raises(BuildError, match="51 training images are requested and there are only 50"):
        source.training_inputs(51, 0)
    options = {"task": "fidelity", "root": str(tmp_path / "images")}
    assert [
        s.source_id for s in ImageFolder(**options, seed=0, held_out=50, truths=False).samples()
    ] == samples
    other = ImageFolder(**options, seed=1, held_out=50, truths=False)
    assert {sample.source_id for sample in other.samples()} == {*samples}
    with pytest.raises(BuildError, match=r"held_out is 53, of 53 image\(s\)"):
        ImageFolder(**options, seed=0, held_out=53, truths=False)
