"""The heads against the published sequence of operations, implemented in float64."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import each
from safetensors.torch import save_file
from torch.nn import functional as F

from cfqa_data.builders.sources.geometry import DepthGeometry, SegGeometry, window_starts
from cfqa_data.builders.tasks.depth import DepthHead
from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.errors import BuildError

DIM = 16


def _norm_tensors() -> dict[str, torch.Tensor]:
    return {"norm.weight": torch.rand(DIM) + 0.5, "norm.bias": torch.randn(DIM)}


def _cls(classes: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "weight": torch.randn(classes, 2 * DIM),
        "bias": torch.randn(classes),
        **_norm_tensors(),
    }


def _seg(classes: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "decode_head.conv_seg.weight": torch.randn(classes, DIM, 1, 1),
        "decode_head.conv_seg.bias": torch.randn(classes),
        "decode_head.bn.weight": torch.rand(DIM) + 0.5,
        "decode_head.bn.bias": torch.randn(DIM),
        "decode_head.bn.running_mean": torch.randn(DIM),
        "decode_head.bn.running_var": torch.rand(DIM) + 0.5,
        **_norm_tensors(),
    }


def _dpt(layers: int = 4, bins: int = 8, dim: int = DIM) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {
        "decode_head.conv_depth.weight": torch.randn(bins, 2 * dim * layers, 1, 1) * 0.2,
        "decode_head.conv_depth.bias": torch.randn(bins),
    }


def _head_file(path: Path, tensors: dict[str, torch.Tensor], **geometry: object) -> Path:
    save_file(tensors, path, {"geometry": json.dumps(geometry)})
    return path


def _normalised(x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    weight, bias = tensors["norm.weight"].double(), tensors["norm.bias"].double()
    return F.layer_norm(x.double(), (DIM,), weight, bias, eps=1e-6)


def test_cls_rank_and_loss() -> None:
    tensors = _cls()
    head, feature = load_head("cls", tensors), torch.randn(1, 1, 10, DIM)
    tokens = _normalised(feature[0, 0], tensors)
    logits = tensors["weight"].double() @ torch.cat([tokens[0], tokens[1:].mean(0)])
    logits = logits + tensors["bias"].double()
    order = logits.argsort(descending=True).tolist()
    for label in range(9):
        rank, loss = head.score(feature, np.array(label))
        assert rank == order.index(label) + 1
        assert loss == pytest.approx(float(-logits.log_softmax(0)[label]), rel=1e-5)


def test_cls_of_four_layers_in_the_published_order() -> None:
    tensors = {**_cls(), "weight": torch.randn(9, 5 * DIM)}
    head, feature = load_head("cls", tensors, layers=4), torch.randn(1, 4, 10, DIM)
    layers = _normalised(feature[0], tensors)
    pooled = torch.cat([*(tokens[0] for tokens in layers), layers[3, 1:].mean(0)])
    logits = tensors["weight"].double() @ pooled + tensors["bias"].double()
    torch.testing.assert_close(head.predict(feature).double(), logits, rtol=1e-5, atol=1e-4)
    with pytest.raises(BuildError, match=r"must be \(N, 4, T, 16\), not \(1, 1, 10, 16\)"):
        head.predict(feature[:, :1])
    with pytest.raises(
        BuildError, match="32 inputs, not a multiple of 5, for features of 4 layers"
    ):
        load_head("cls", _cls(), layers=4)


def test_the_hubs_classifier_is_a_head_with_its_own_norm() -> None:
    tensors, feature = _cls(), torch.randn(1, 1, 10, DIM)
    hub = {
        "classifier.weight": tensors["weight"],
        "classifier.bias": tensors["bias"],
        "dinov2.layernorm.weight": tensors["norm.weight"],
        "dinov2.layernorm.bias": tensors["norm.bias"],
        "dinov2.embeddings.cls_token": torch.zeros(1, 1, DIM),
    }
    wanted = load_head("cls", tensors).predict(feature)
    for norm in (None, torch.nn.LayerNorm(DIM)):
        assert torch.equal(load_head("cls", hub, norm).predict(feature), wanted)
    for name in ("classifier.weight", "classifier.bias"):
        with pytest.raises(BuildError, match=f"tensor '{name}' is missing"):
            load_head("cls", {k: v for k, v in hub.items() if k != name})
    with pytest.raises(BuildError, match=r"'vit\.layernorm\.bias' does not belong to a cls head"):
        load_head("cls", hub | {"vit.layernorm.bias": torch.zeros(DIM)})


@pytest.mark.parametrize("width", [384, 768, 1024, 1536])  # of ViT-S, -B, -L, -g
def test_published_heads_of_every_size(width: int) -> None:
    norm = torch.nn.LayerNorm(width)
    bn = {f"decode_head.bn.{n}": torch.ones(width) for n in ("bias", "running_mean", "running_var")}
    bn |= {"decode_head.bn.weight": torch.ones(width)}
    for task, layers, name, shape, more in (
        ("cls", 1, "", (1000, 2 * width), {}),  # linear_head
        ("cls", 4, "", (1000, 5 * width), {}),  # linear4_head
        ("seg", 1, "decode_head.conv_seg.", (21, width, 1, 1), bn),  # voc2012_linear_head
        ("seg", 1, "decode_head.conv_seg.", (150, width, 1, 1), bn),  # ade20k_linear_head
        ("dpt", 1, "decode_head.conv_depth.", (256, 2 * width, 1, 1), {}),  # nyu_linear_head
        ("dpt", 4, "decode_head.conv_depth.", (256, 8 * width, 1, 1), {}),  # nyu_linear4_head
    ):
        tensors = {f"{name}weight": torch.zeros(shape), f"{name}bias": torch.zeros(shape[0])} | more
        head = load_head(task, tensors, norm, layers)
        assert (head.dim, head.layers, head.takes(layers, width)) == (width, layers, True)


def test_cls_ties_rank_as_in_a_stable_sort() -> None:
    tensors = {**_cls(4), "weight": torch.zeros(4, 2 * DIM), "bias": torch.zeros(4)}
    head = load_head("cls", tensors)
    feature = torch.randn(1, 1, 5, DIM)
    assert [head.score(feature, np.array(label))[0] for label in range(4)] == [1, 2, 3, 4]


def test_seg_in_the_published_order(tmp_path: Path) -> None:
    tensors = _seg()
    geometry = {"window": 28, "stride": 14, "short_side": 28}
    head = load_head("seg", _head_file(tmp_path / "seg.safetensors", tensors, **geometry))
    feature = torch.randn(2, 1, 5, DIM)
    truth = np.random.default_rng(0).integers(0, 5, (28, 42)).astype(np.uint8)
    truth[:3] = 255
    total, count = torch.zeros(5, 28, 42, dtype=torch.double), torch.zeros(28, 42)
    t = {k.removeprefix("decode_head."): v.double() for k, v in tensors.items()}
    for window, left in zip(feature[:, 0], (0, 14), strict=True):
        grid = _normalised(window, tensors)[1:].T.reshape(1, DIM, 2, 2)
        grid = (grid - t["bn.running_mean"].reshape(1, -1, 1, 1)) / torch.sqrt(
            t["bn.running_var"].reshape(1, -1, 1, 1) + 1e-5
        )
        grid = grid * t["bn.weight"].reshape(1, -1, 1, 1) + t["bn.bias"].reshape(1, -1, 1, 1)
        logits = F.conv2d(grid, t["conv_seg.weight"], t["conv_seg.bias"])
        logits = F.interpolate(logits, (28, 28), mode="bilinear", align_corners=False)
        total[:, :, left : left + 28] += logits[0]
        count[:, left : left + 28] += 1
    mean = total / count
    guess = mean.argmax(0).numpy()
    assert np.array_equal(head.predict(feature, (28, 42)).numpy(), guess)  # type: ignore[call-arg]
    valid = truth != 255
    ious = []
    for k in range(5):
        inter = ((guess == k) & (truth == k) & valid).sum()
        union = (((guess == k) | (truth == k)) & valid).sum()
        if union:
            ious.append(inter / union)
    loss = F.cross_entropy(mean[:, valid].T, torch.from_numpy(truth[valid].astype(np.int64)))
    score = head.score(feature, truth)
    assert score[0] == pytest.approx(np.mean(ious), rel=1e-9)
    assert score[1] == pytest.approx(float(loss), rel=1e-5)


def test_seg_classes_absent_from_both_do_not_count(tmp_path: Path) -> None:
    tensors = _seg()
    tensors["decode_head.conv_seg.weight"] *= 0
    tensors["decode_head.conv_seg.bias"] = torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0])
    geometry = {"window": 28, "stride": 14, "short_side": 28}
    head = load_head("seg", _head_file(tmp_path / "seg.safetensors", tensors, **geometry))
    truth = np.zeros((28, 28), np.uint8)
    assert head.score(torch.randn(1, 1, 5, DIM), truth)[0] == 1.0
    truth[:14] = 2
    assert head.score(torch.randn(1, 1, 5, DIM), truth)[0] == pytest.approx((0.5 + 0.0) / 2)


def test_published_window_counts() -> None:
    # Two windows exactly when the long side is 513..853 after scaling.
    assert len(window_starts(512, 512, 341)) == 1
    assert window_starts(513, 512, 341) == [0, 1]
    assert window_starts(853, 512, 341) == [0, 341]
    assert len(window_starts(854, 512, 341)) == 3
    assert SegGeometry().scaled(375, 500) == (512, 683)
    assert SegGeometry().scaled(100, 1000) == (205, 2048)


def test_depth_convolves_before_it_upsamples_and_gives_the_published_depth() -> None:
    tensors = _dpt()
    geometry = DepthGeometry(28, 42, (2, 26), (3, 40))
    head = DepthHead(2 * DIM * 4, 8, geometry)
    head.load_state_dict({k.removeprefix("decode_head."): v for k, v in tensors.items()})
    feature = torch.randn(2, 4, 7, DIM)
    depths = []
    for view in feature.double():
        layers = []
        for layer in view:
            pair = torch.cat([layer[1:], layer[:1].expand(6, -1)], dim=1)
            grid = pair.T.reshape(1, 2 * DIM, 2, 3)
            layers.append(F.interpolate(grid, (8, 12), mode="bilinear", align_corners=False))
        logits = F.conv2d(
            torch.cat(layers, 1),
            tensors["decode_head.conv_depth.weight"].double(),
            tensors["decode_head.conv_depth.bias"].double(),
        )
        weight = logits.relu() + 0.1
        weight = weight / weight.sum(1, keepdim=True)
        bins = torch.linspace(0.001, 10, 8, dtype=torch.double).reshape(1, -1, 1, 1)
        depth = (weight * bins).sum(1, keepdim=True).clamp(0.001, 10)
        depths.append(F.interpolate(depth, (28, 42), mode="bilinear", align_corners=False)[0, 0])
    wanted = ((depths[0] + depths[1].flip(-1)) / 2).numpy()
    found = head.eval().predict(feature).numpy()
    assert np.abs(found - wanted).max() < 1e-4
    truth = np.random.default_rng(0).integers(0, 12_000, (28, 42)).astype(np.uint16)
    metres = truth[2:26, 3:40] / 1000.0
    error, valid = wanted[2:26, 3:40] - metres, (metres > 0.001) & (metres < 10)
    rmse, absrel = head.score(feature, truth)
    assert rmse == pytest.approx(math.sqrt((error[valid] ** 2).mean()), rel=1e-4)
    assert absrel == pytest.approx((np.abs(error) / metres.clip(1e-9))[valid].mean(), rel=1e-4)


def _scaled_by_torch(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


@pytest.mark.release
def test_the_published_seg_file_at_its_own_size(tmp_path: Path) -> None:
    tensors = {k: v for k, v in _seg(21).items() if not k.startswith("norm")}
    rest = {"backbone.norm.weight": torch.ones(3), "auxiliary_head.conv_seg.bias": torch.ones(2)}
    meta = {"mmseg_version": "0.27.0", "CLASSES": ["aeroplane"], "iter": 40_000}
    path = tmp_path / "dinov2_vitg14_voc2012_linear_head.pth"
    torch.save({"meta": meta, "state_dict": tensors | rest, "optimizer": {"lr": [0.1]}}, path)
    norm = torch.nn.LayerNorm(DIM, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    feature = torch.randn(2, 1, 1370, DIM) * 3
    # 375x500 becomes 512x683: two windows, the second from column 171 on.
    t = {k.removeprefix("decode_head."): v.double().numpy() for k, v in tensors.items()}
    total, count = np.zeros((21, 512, 683)), np.zeros(683)
    for view, left in zip(feature[:, 0].double().numpy(), (0, 171), strict=True):
        centred = view - view.mean(-1, keepdims=True)
        tokens = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        tokens = tokens * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        tokens = (tokens[1:] - t["bn.running_mean"]) / np.sqrt(t["bn.running_var"] + 1e-5)
        tokens = tokens * t["bn.weight"] + t["bn.bias"]
        logits = tokens @ t["conv_seg.weight"][:, :, 0, 0].T + t["conv_seg.bias"]
        grid = torch.from_numpy(logits.T.reshape(21, 37, 37))
        total[:, :, left : left + 512] += _scaled_by_torch(grid, (512, 512)).numpy()
        count[left : left + 512] += 1
    whole = _scaled_by_torch(torch.from_numpy(total / count), (375, 500))
    head = load_head("seg", path, norm)
    found = head.predict(feature, (375, 500))  # type: ignore[call-arg]
    assert (found.dtype, found.shape) == (torch.int64, (375, 500))
    top = whole.topk(2, dim=0)
    sure = top.values[0] - top.values[1] > 1e-4
    assert sure.double().mean() > 0.999
    assert torch.equal(found[sure], top.indices[0][sure])
    truth = found.numpy().astype(np.uint8)
    assert head.score(feature, truth)[0] == 1.0


def test_the_published_dpt_file_at_its_own_size(tmp_path: Path) -> None:
    dim, tensors = 4, _dpt(bins=256, dim=4)
    path = tmp_path / "dinov2_vitg14_nyu_linear4_head.pth"
    meta = {"hook_msgs": {"best_score": np.float32(0.25)}, "iter": np.int64(38_400)}
    torch.save({"meta": meta, "state_dict": tensors}, path)
    feature = torch.randn(2, 4, 1611, dim)
    kernel = tensors["decode_head.conv_depth.weight"].double()
    bias = tensors["decode_head.conv_depth.bias"].double()
    bins = torch.linspace(0.001, 10, 256, dtype=torch.double)
    views = []
    for view in feature.double():
        layers = []
        for layer in view:
            patches = layer[1:].T.reshape(dim, 35, 46)
            token = layer[0].reshape(dim, 1, 1).expand_as(patches)
            layers.append(_scaled_by_torch(torch.cat([patches, token]), (140, 184)))
        logits = F.conv2d(torch.cat(layers)[None], kernel, bias)[0]
        share = logits.clamp(min=0) + 0.1
        share /= share.sum(dim=0)
        depth = (share * bins.reshape(-1, 1, 1)).sum(dim=0).clamp(0.001, 10)
        views.append(_scaled_by_torch(depth[None], (480, 640))[0])
    wanted = (views[0] + views[1].flip(1)) / 2
    head = load_head("dpt", path)
    found = head.predict(feature)
    assert (found.dtype, found.shape) == (torch.float32, (480, 640))
    assert float((found - wanted).abs().max()) < 1e-4
    assert float(wanted.std()) > 0.01
    truth = np.random.default_rng(3).integers(0, 12_000, (480, 640)).astype(np.uint16)
    metres = truth / 1000
    scored = np.zeros((480, 640), bool)
    scored[45:471, 41:601] = True
    scored &= (metres > 0.001) & (metres < 10)
    rmse = math.sqrt(np.mean((wanted.numpy()[scored] - metres[scored]) ** 2))
    assert head.score(feature, truth)[0] == pytest.approx(rmse, rel=1e-5)


def test_the_published_cls_file_at_its_own_size(tmp_path: Path) -> None:
    torch.manual_seed(5)
    weight, bias = torch.randn(1000, 2 * DIM), torch.randn(1000)
    path = tmp_path / "dinov2_vitg14_linear_head.pth"
    torch.save({"weight": weight, "bias": bias}, path)
    norm, feature = torch.nn.LayerNorm(DIM, eps=1e-6), torch.randn(1, 1, 257, DIM)
    found = load_head("cls", path, norm).predict(feature)
    tokens = F.layer_norm(feature[0, 0].double(), (DIM,), eps=1e-6)
    pooled = torch.cat([tokens[0], tokens[1:].mean(dim=0)])
    wanted = weight.double() @ pooled + bias.double()
    assert found.shape == (1000,)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_half_precision_heads_load_as_float32() -> None:
    tensors = {name: tensor.half() for name, tensor in _seg().items()}
    state = load_head("seg", {"state_dict": tensors, "meta": {}}).state_dict()
    assert torch.equal(state["bn.bias"], tensors["decode_head.bn.bias"].float())


def test_evaluate_scores_each_version_alone() -> None:
    head, features = load_head("cls", _cls()), torch.randn(4, 1, 1, 6, DIM)
    scores, losses = head.evaluate(features, np.array(3))
    alone = [head.score(feature, np.array(3)) for feature in features]
    assert scores.tolist() == [row[0] for row in alone]
    assert losses.tolist() == [row[1] for row in alone]
    assert scores.dtype == losses.dtype == np.float64


def test_the_norm_may_come_from_the_backbone() -> None:
    tensors = _cls()
    norm = torch.nn.LayerNorm(DIM, eps=1e-6)
    norm.load_state_dict({"weight": tensors["norm.weight"], "bias": tensors["norm.bias"]})
    bare = {k: v for k, v in tensors.items() if not k.startswith("norm")}
    feature = torch.randn(1, 1, 6, DIM)
    wanted = load_head("cls", tensors).predict(feature)
    torch.testing.assert_close(load_head("cls", bare, norm).predict(feature), wanted)
    with pytest.raises(BuildError, match=r"'norm\.weight' is missing; .* norm=backbone\.norm"):
        load_head("cls", bare)
    seg = {k: v for k, v in _seg().items() if not k.startswith("norm")}
    with pytest.raises(BuildError, match=r"'norm\.weight' is missing; .* norm=backbone\.norm"):
        load_head("seg", seg)
    with pytest.raises(BuildError, match="the norm's width is 8, the head's 16"):
        load_head("cls", bare, torch.nn.LayerNorm(8))


@each("task", ["cls", "seg", "dpt"])
def test_a_head_for_another_task_is_one_line(tmp_path: Path, task: str) -> None:
    norm = torch.nn.LayerNorm(DIM)
    for other, tensors in (("cls", _cls()), ("seg", _seg()), ("dpt", _dpt())):
        torch.save({"state_dict": tensors}, tmp_path / f"{other}.pth")
        if other == task:
            assert load_head(task, tmp_path / f"{other}.pth", norm).dim == DIM
            continue
        with pytest.raises(BuildError, match=f"is missing, so this is not a {task} head") as caught:
            load_head(task, tmp_path / f"{other}.pth", norm)
        assert str(caught.value).startswith(f"{tmp_path / other}.pth: ")


def test_tensors_at_fault_have_the_names_of_the_file() -> None:
    for task, tensors in (("cls", _cls()), ("seg", _seg()), ("dpt", _dpt())):
        for name, tensor in tensors.items():
            without = {k: v for k, v in tensors.items() if k != name}
            with pytest.raises(BuildError, match=f"tensor '{name}' is missing"):
                load_head(task, without)
            shape = re.escape(str(tuple(tensor[..., None].shape)))
            with pytest.raises(
                BuildError, match=f"tensor '{name}' (is |has the wrong shape: ){shape}"
            ):
                load_head(task, {**tensors, name: tensor[..., None]})
    with pytest.raises(BuildError, match=r"'decode_head\.extra' does not belong to a seg head"):
        load_head("seg", {**_seg(), "decode_head.extra": torch.zeros(1)})
    with pytest.raises(BuildError, match=r"'weight' takes 7 inputs, not a multiple of 2"):
        load_head("cls", {**_cls(), "weight": torch.zeros(9, 7)})


@pytest.mark.parametrize(
    ("task", "geometry", "said"),
    [
        ("seg", {"window": 0}, "window must be a whole number of at least 1, got 0"),
        ("seg", {"stride": "3"}, "stride must be a whole number of at least 1, got '3'"),
        ("dpt", {"height": 1.5}, "height must be a whole number of at least 1, got 1.5"),
        ("dpt", {"rows": [45, 481]}, r"rows \(45, 481\) is not a range within 0\.\.480"),
        ("dpt", {"columns": 3}, "columns must be 2 values, got 3"),
        ("dpt", {"rows": [0, 1, 2]}, "rows must be 2 values"),
    ],
)
def test_impossible_geometry_is_refused(
    tmp_path: Path, task: str, geometry: dict[str, object], said: str
) -> None:
    tensors = {"seg": _seg, "dpt": _dpt}[task]()
    path = _head_file(tmp_path / "head.safetensors", tensors, **geometry)
    with pytest.raises(BuildError, match=f"^{path}: geometry\\.{said}"):
        load_head(task, path)
    for text, wrong in (("{", "is not JSON"), ("[]", "geometry is not a table")):
        save_file(tensors, path, {"geometry": text})
        with pytest.raises(BuildError, match=wrong):
            load_head(task, path)


@each("task", ["cls", "seg", "dpt"])
@each("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_get_no_score(task: str, value: float) -> None:
    tensors = {"cls": _cls, "seg": _seg, "dpt": _dpt}[task]()
    shape = {"cls": (1, 1, 257, DIM), "seg": (1, 1, 1370, DIM), "dpt": (2, 4, 1611, DIM)}[task]
    truth = {
        "cls": np.array(1),
        "seg": np.zeros((512, 512), np.uint8),
        "dpt": np.full((480, 640), 999, np.uint16),
    }[task]
    feature = torch.zeros(shape)
    feature[0, 0, 7, 3] = value
    with pytest.raises(BuildError, match=f"{task} head: the feature has NaN or infinite values"):
        load_head(task, tensors).score(feature, truth)
    beyond = torch.zeros(shape, dtype=torch.float64)
    beyond[0, 0, 7, 3] = 1e300  # finite, and infinite in float32
    with pytest.raises(BuildError, match=f"{task} head: the feature has NaN or infinite values"):
        load_head(task, tensors).score(beyond, truth)


def test_foreign_heads_and_truths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match=r"'conv_seg\.weight' is missing, so this is not a seg head"
    ):
        load_head("seg", _cls())
    with pytest.raises(BuildError, match="no head for task 'flow'"):
        load_head("flow", _cls())
    with pytest.raises(BuildError, match="'extra' does not belong"):
        load_head("cls", {**_cls(), "extra": torch.zeros(1)})
    with pytest.raises(BuildError, match="unknown key in geometry 'windows'"):
        load_head("seg", _head_file(tmp_path / "a.safetensors", _seg(), windows=3))
    with pytest.raises(BuildError, match=r"label 9 is not in 0\.\.8"):
        load_head("cls", _cls()).score(torch.randn(1, 1, 6, DIM), np.array(9))
    head = load_head("seg", _seg())
    with pytest.raises(BuildError, match="1 windows, the feature has 2"):
        head.score(torch.randn(2, 1, 5, DIM), np.zeros((512, 512), np.uint8))
    with pytest.raises(BuildError, match="no valid pixel"):
        head.score(torch.randn(1, 1, 5, DIM), np.full((512, 512), 255, np.uint8))
    with pytest.raises(BuildError, match=r"class that is not in 0\.\.4"):
        head.score(torch.randn(1, 1, 5, DIM), np.full((512, 512), 5, np.uint8))
    with pytest.raises(BuildError, match=r"\(B, N, C, T, D\)"):
        head.evaluate(torch.randn(1, 1, 5, DIM), np.zeros((512, 512), np.uint8))
    with pytest.raises(BuildError, match=r"whole numbers \(H, W\), not float64"):
        head.score(torch.randn(1, 1, 5, DIM), np.zeros((512, 512)))
    with pytest.raises(BuildError, match="100x1000 scales to 205x2048, smaller than"):
        head.predict(torch.randn(6, 1, 5, DIM), (100, 1000))  # type: ignore[call-arg]
    with pytest.raises(BuildError, match=r"6 tokens are not 1 \+ a square"):
        head.predict(torch.randn(1, 1, 6, DIM))
    with pytest.raises(BuildError, match=r"a feature has 1 view\(s\), not 2"):
        load_head("cls", _cls()).predict(torch.randn(2, 1, 6, DIM))
    for label in (np.array(1.5), np.array([1]), np.array(math.nan), np.array(True)):
        with pytest.raises(BuildError, match="a label must be one whole number, not"):
            load_head("cls", _cls()).score(torch.randn(1, 1, 6, DIM), label)
    with pytest.raises(
        BuildError, match=r"cls head: a feature must be floating point, not torch\.int16"
    ):
        load_head("cls", _cls()).predict(torch.ones(1, 1, 6, DIM, dtype=torch.int16))
    for mask in (np.full((512, 512), -1), np.full((512, 512), 2**63, np.uint64)):
        with pytest.raises(BuildError, match=r"class that is not in 0\.\.4"):
            head.score(torch.randn(1, 1, 5, DIM), mask)
    for size in ((0, 0), (0, 5), (5, 0), (-3, 4)):
        with pytest.raises(BuildError, match=f"an image of {size[0]}x{size[1]} has no pixel"):
            head.predict(torch.randn(1, 1, 5, DIM), size)  # type: ignore[call-arg]
    with pytest.raises(BuildError, match=r"must be \(N, 1, T, 16\), not \(1, 1, 6, 8\)"):
        load_head("cls", _cls()).predict(torch.randn(1, 1, 6, 8))
    depth = load_head("dpt", _dpt())
    with pytest.raises(BuildError, match="float32, not whole millimetres"):
        depth.score(torch.zeros(2, 4, 1611, DIM), np.ones((480, 640), np.float32))
    for views in (0, 1, 3):
        with pytest.raises(BuildError, match=rf"a feature has 2 view\(s\), not {views}"):
            depth.predict(torch.zeros(views, 4, 1611, DIM))
    with pytest.raises(BuildError, match="7 tokens are not 1"):
        depth.predict(torch.randn(2, 4, 7, DIM))
    with pytest.raises(BuildError, match=r"must be \(N, 4, T, 16\), not \(2, 3, 1611, 16\)"):
        depth.predict(torch.randn(2, 3, 1 + 35 * 46, DIM))


@each("task", ["cls", "seg", "dpt"])
def test_features_may_be_arrays(task: str, tmp_path: Path) -> None:
    mask = np.zeros((56, 56), np.uint8)
    depth: dict[str, object] = {"height": 56, "width": 56, "rows": [0, 56], "columns": [0, 56]}
    tensors, geometry, shape, truth = {
        "cls": (_cls(), {}, (1, 1), np.array(3)),
        "seg": (_seg(), dict.fromkeys(("window", "stride", "short_side"), 56), (1, 1), mask),
        "dpt": (_dpt(), depth, (2, 4), np.full((56, 56), 2000, np.uint16)),
    }[task]
    head = load_head(task, _head_file(tmp_path / "head.safetensors", tensors, **geometry))
    feature = torch.randn(*shape, 17, DIM)
    assert torch.equal(head.predict(feature.numpy()), head.predict(feature))
    assert not head.predict(feature).is_inference()  # it may be learned from
    expected = head.score(feature, truth)
    array = feature.numpy()
    array.flags.writeable = False
    assert head.score(array, torch.from_numpy(truth)) == expected
    assert [float(row[0]) for row in head.evaluate(array[None], truth)] == list(expected)
    with pytest.raises(BuildError, match=f"{task} head: a feature must be floating point, not"):
        head.predict(feature.numpy().astype(np.int16))
    with pytest.raises(BuildError, match=f"{task} head: expected an array or tensor of numbers"):
        head.predict(None)
