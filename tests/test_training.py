"""The trainings, small enough for seconds: what they see, and what they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cfqa_data.builders.backbones.dinov2 import load_backbone
from cfqa_data.builders.calibration import calibrate
from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.builders.training import planes
from cfqa_data.builders.training.backbone import (
    HELD_OUT_SEED,
    Config,
    MultiTask,
    batches,
    held_out,
    losses,
    rate,
    train,
)
from cfqa_data.builders.training.hyperprior_plan import read_planes
from cfqa_data.builders.training.hyperprior_train import sample_batch
from cfqa_data.builders.training.scenes import SHARES, render_scenes

SMALL = Config(
    dim=32,
    depth=2,
    num_heads=2,
    layers=(0, 1),
    bins=8,
    batch=8,
    minutes=0.01,
    scenes=16,
    held_out=8,
    compile=False,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def scenes(folder: Path) -> np.recarray:
    render_scenes(folder / "val", HELD_OUT_SEED, SMALL.held_out, workers=1)  # found by `train`
    return render_scenes(folder / "train", 10_000_000, 16, workers=1)


def test_rendered_truths_agree_with_each_other(scenes: np.recarray) -> None:
    shape = scenes.shares[..., : SHARES[0]].astype(int)
    assert (shape.sum(-1) == 14 * 14).all()
    for start, size in zip(np.cumsum((0, *SHARES[:-1])), SHARES, strict=True):
        assert (scenes.shares[..., start : start + size].sum(-1, dtype=int) == 196).all()
    # The mask, every second pixel, holds no shape that the patches do not.
    for mask, row in zip(scenes.mask, shape, strict=True):
        seen = set(np.unique(mask).tolist()) - {255}
        assert seen <= set(np.flatnonzero(row.sum(0)).tolist())
    assert (scenes.depth > 0.3).all()
    assert (scenes.depth < 10).all()


def test_scenes_are_rendered_once(scenes: np.recarray, folder: Path) -> None:
    before = (folder / "train" / "scenes.npy").stat().st_mtime_ns
    again = render_scenes(folder / "train", 10_000_000, 16, workers=1)
    assert (folder / "train" / "scenes.npy").stat().st_mtime_ns == before
    assert np.array_equal(again.image[3], scenes.image[3])


def test_other_scenes_in_a_folder_replace_the_earlier_ones(tmp_path: Path) -> None:
    first = render_scenes(tmp_path, 0, 1, workers=1).image.copy()
    render_scenes(tmp_path, 1, 1, workers=1)
    assert np.array_equal(render_scenes(tmp_path, 0, 1, workers=1).image, first)


def test_a_mirrored_batch_mirrors_image_and_truth_alike(scenes: np.recarray) -> None:
    seen = set()
    data = batches(scenes, 16, seed=0)
    for _ in range(8):
        images, label, mask, depth, shares = next(data)
        mirrored = not np.array_equal(mask[0].numpy(), scenes.mask[0])
        seen.add(mirrored)
        step = -1 if mirrored else 1
        assert np.array_equal(mask.numpy(), scenes.mask[:, :, ::step])
        assert np.allclose(depth.numpy(), scenes.depth[:, :, ::step])
        grid = shares.numpy().reshape(16, 8, 8, -1)
        assert np.array_equal(grid, scenes.shares.reshape(16, 8, 8, -1)[:, :, ::step])
        red = images[:, 0].numpy() * 0.229 + 0.485
        assert np.allclose(red, scenes.image[..., 0][:, :, ::step] / 255, atol=1e-5)
        assert np.array_equal(label.numpy(), scenes.label)
    assert seen == {True, False}


def test_losses_fall_when_predictions_approach_the_truth(scenes: np.recarray) -> None:
    _, *truth = next(batches(scenes, 16, seed=1))
    label, mask, depth, shares = truth
    seg = torch.nn.functional.one_hot(mask.clamp(max=12), 13).permute(0, 3, 1, 2).float()
    cls = torch.zeros(16, 960)
    cls[torch.arange(16), label.clamp(min=0)] = 1.0
    good = {
        "cls": 20 * cls,
        "pooled": torch.zeros(16, 30),
        "dense": (shares + 1e-6).log(),
        "seg": 20 * seg,
        "depth": depth,
    }
    bad = {name: torch.zeros_like(value) for name, value in good.items()}
    close, far = losses(good, *truth), losses(bad, *truth)
    for name in ("cls", "dense", "seg", "depth"):
        assert close[name] < 0.5 * far[name], name


def test_the_learning_rate_rises_and_then_falls_to_zero() -> None:
    assert rate(0.0, 0.02) == 0.0
    assert rate(0.01, 0.02) == 0.5
    assert rate(0.02, 0.02) == 1.0
    assert rate(1.0, 0.02) == 0.0


def test_training_writes_weights_that_load_and_say_how_they_were_made(
    scenes: np.recarray, folder: Path, tmp_path: Path
) -> None:
    model = train(SMALL, folder, tmp_path)
    report = json.loads((tmp_path / "backbone.json").read_text())
    assert report["steps"] >= 1
    assert report["images_seen"] == report["steps"] * SMALL.batch
    assert set(report["held_out_figures"]) == {
        "top1",
        "top1_windows",
        "miou",
        "depth_rmse",
    }
    backbone = load_backbone(tmp_path / "backbone.safetensors", num_heads=2)
    images = torch.randn(2, 3, 112, 112)
    features = backbone.extract(images, [0, 1])
    with torch.inference_mode():
        wanted = model.eval()(images)
        cls = load_head("cls", tmp_path / "head_cls.safetensors")
        torch.testing.assert_close(cls.predict(features[:1, 1:]), wanted["cls"][0])
        seg = load_head("seg", tmp_path / "head_seg.safetensors")
        torch.testing.assert_close(seg.logits(features[:, 1]), wanted["seg"])  # type: ignore[operator]
        dpt = load_head("dpt", tmp_path / "head_dpt.safetensors")
        torch.testing.assert_close(dpt.depth(features, (8, 8)), wanted["depth"])  # type: ignore[operator]
    truth = np.full((112, 112), 2000, np.uint16)
    assert np.isfinite(dpt.score(features, truth)).all()


def test_held_out_figures_of_a_perfect_model(scenes: np.recarray) -> None:
    class Perfect(MultiTask):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            rows = len(images)
            mask = torch.from_numpy(scenes.mask[:rows].astype(np.int64)).clamp(max=12)
            seg = torch.nn.functional.one_hot(mask, 13).permute(0, 3, 1, 2).float()
            cls = torch.zeros(rows, 960)
            labels = torch.from_numpy(scenes.label[:rows].astype(np.int64))
            cls[torch.arange(rows), labels.clamp(min=0)] = 1.0
            depth = torch.from_numpy(scenes.depth[:rows].astype(np.float32))
            return {"cls": cls, "seg": seg, "depth": depth}

    found = held_out(Perfect(SMALL), scenes)
    assert found == {"top1": 1.0, "top1_windows": 1.0, "miou": 1.0, "depth_rmse": 0.0}


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (14, 1), (20, 2), (57, 6)])
def test_every_plane_is_trained_on_or_held_out(tmp_path: Path, count: int, held_out: int) -> None:
    stacks = {
        task: np.full((count, 2, 3), np.arange(first, first + count)[:, None, None], np.uint8)
        for first, task in enumerate(("cls", "seg", "dpt"))
    }
    save_file(stacks, tmp_path / "planes")
    split = read_planes(str(tmp_path / "planes"), None)
    assert set(split) == set(stacks)
    for task, (training, kept) in split.items():
        assert len(kept) == held_out
        assert np.array_equal(np.concatenate([training, kept]), stacks[task])
        assert not set(training.ravel().tolist()) & set(kept.ravel().tolist())
    assert list(read_planes(str(tmp_path / "planes"), "seg")) == ["seg"]


def test_the_mask_leaves_out_the_padding_and_nothing_else() -> None:
    # Every sample of these planes says where it lies: a patch shows by itself what is padding.
    wide, low = np.arange(130, dtype=np.uint8), np.arange(130, 250, dtype=np.uint8)
    stacks = [wide.reshape(1, 13, 10), low.reshape(1, 5, 24)]
    generator = np.random.default_rng(0)
    rows, cols = np.indices((8, 8))
    tasks, corners, shares = [], set(), []
    for _ in range(40):
        patches, mask = sample_batch(stacks, 3, (8, 8), 4, generator)
        assert patches.shape == mask.shape == (3, 1, 8, 8)
        for patch, real in zip(patches[:, 0] * 256, mask[:, 0], strict=True):
            task = int(patch[0, 0] >= 130)
            row, col = np.divmod(patch.astype(int) - 130 * task, (10, 24)[task])
            corner = int(row[0, 0]), int(col[0, 0])
            wanted = (row == corner[0] + rows) & (col == corner[1] + cols)
            assert np.array_equal(real, wanted.astype(np.float32))
            tasks.append(task)
            corners.add((task, *corner))
            shares.append(float(real.mean()))
        assert tasks[-3:] in ([0, 1, 0], [1, 0, 1])
    assert corners == {(0, r, c) for r in (0, 4, 8) for c in (0, 4)} | {
        (1, 0, c) for c in (0, 4, 8, 12, 16)
    }
    assert min(shares) < 0.5
    assert max(shares) == 1.0


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        (planes.main, "--recipe bogus", "unknown recipe 'bogus'"),
        (calibrate.main, "--recipe bogus", "unknown recipe 'bogus'"),
        (calibrate.main, "--task foo", "unknown task 'foo': known: cls, seg, dpt"),
        (calibrate.main, "--codec x256", "unknown codec 'x256': did you mean 'x265'?"),
    ],
)
def test_unknown_names_are_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[list[str]], int],
    arguments: str,
    told: str,
) -> None:
    assert command(["--out", str(tmp_path / "out"), *arguments.split()]) == 2
    out, error = capsys.readouterr()
    assert told in error
    assert (out, error.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()
