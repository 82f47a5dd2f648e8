"""The backbone against the official code and a float64 implementation, and errors of loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import official_backbone as official
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import erf

from cfqa_data.builders.backbones import dinov2 as module
from cfqa_data.builders.backbones.dinov2 import VisionTransformer, load_backbone
from cfqa_data.errors import BuildError

DIM, DEPTH, HEADS, GRID, PATCH = 32, 3, 2, 4, 14


def _random(swiglu: bool = False, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    backbone = VisionTransformer(DIM, DEPTH, HEADS, 40, GRID, PATCH, swiglu)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone.eval()


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * weight + bias


def _cubic(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _resize(source: int, target: int) -> np.ndarray:
    """Return weights (target, source) of bicubic interpolation at (target + 0.1) / source."""
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * source / (target + 0.1) - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[row, min(max(tap, 0), source - 1)] += _cubic(centre - tap)
    return weights


def _twin(state: dict[str, np.ndarray], image: np.ndarray, swiglu: bool) -> list[np.ndarray]:
    """Return all block outputs (T, D) of an image (3, H, W), per token and head."""
    rows, columns = image.shape[1] // PATCH, image.shape[2] // PATCH
    tokens = [state["cls_token"][0, 0]]
    kernel, shift = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    for r in range(rows):
        for c in range(columns):
            patch = image[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
            tokens.append((kernel * patch).sum((1, 2, 3)) + shift)
    x = np.stack(tokens)
    position = state["pos_embed"][0]
    square = position[1:].reshape(GRID, GRID, DIM)
    if (rows, columns) != (GRID, GRID):
        square = np.einsum("rs,ct,std->rcd", _resize(GRID, rows), _resize(GRID, columns), square)
    x = x + np.concatenate([position[:1], square.reshape(-1, DIM)])
    outputs = []
    for index in range(DEPTH):
        block = {
            name.removeprefix(f"blocks.{index}."): value
            for name, value in state.items()
            if name.startswith(f"blocks.{index}.")
        }
        y = _norm(x, block["norm1.weight"], block["norm1.bias"])
        qkv = y @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]
        query, key, value = qkv[:, :DIM], qkv[:, DIM : 2 * DIM], qkv[:, 2 * DIM :]
        mixed = np.zeros_like(x)
        for head in range(HEADS):
            part = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
            score = query[:, part] @ key[:, part].T / np.sqrt(DIM // HEADS)
            weight = np.exp(score - score.max(1, keepdims=True))
            mixed[:, part] = weight / weight.sum(1, keepdims=True) @ value[:, part]
        y = mixed @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        x = x + block["ls1.gamma"] * y
        y = _norm(x, block["norm2.weight"], block["norm2.bias"])
        if swiglu:
            gate, linear = np.split(y @ block["mlp.w12.weight"].T + block["mlp.w12.bias"], 2, 1)
            hidden = gate / (1 + np.exp(-gate)) * linear
            y = hidden @ block["mlp.w3.weight"].T + block["mlp.w3.bias"]
        else:
            hidden = y @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
            hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
            y = hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
        x = x + block["ls2.gamma"] * y
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5), (6, 2)])
def test_block_outputs_equal_the_float64_twin(swiglu: bool, rows: int, columns: int) -> None:
    backbone = _random(swiglu)
    images = torch.randn(2, 3, rows * PATCH, columns * PATCH)
    found = backbone.extract(images, [0, 2])
    assert found.shape == (2, 2, 1 + rows * columns, DIM)
    assert found.dtype == torch.float32
    state = {k: v.double().numpy() for k, v in backbone.state_dict().items()}
    for image, outputs in zip(images.double().numpy(), found.numpy(), strict=True):
        twin = _twin(state, image, swiglu)
        for output, wanted in zip(outputs, (twin[0], twin[2]), strict=True):
            scale = np.abs(wanted).max()
            assert np.abs(output - wanted).max() < 1e-5 * scale


def test_training_mode_computes_the_same() -> None:
    backbone, images = _random(), torch.randn(2, 3, 56, 56)
    plain = backbone.run(backbone.embed(images), [2])[0]
    trained = backbone.train().run(backbone.embed(images), [2])[0]
    torch.testing.assert_close(trained, plain, rtol=1e-4, atol=1e-4)


def test_patch_embedding_in_training_equals_the_strided_convolution() -> None:
    embed, images = _random().patch_embed, torch.randn(2, 3, 42, 70)
    wanted = embed.proj(images).flatten(2).transpose(1, 2)
    assert torch.equal(embed(images), wanted)
    torch.testing.assert_close(embed.train()(images), wanted, rtol=1e-4, atol=1e-4)


def _by_rule(kind: str) -> VisionTransformer:
    shapes = json.loads(official.FIGURES.read_text())[kind]["shapes"]
    return load_backbone(official.weights(shapes), num_heads=official.HEADS)


@pytest.mark.parametrize("kind", official.KINDS)
@pytest.mark.parametrize(("rows", "columns"), official.GRIDS)
def test_block_outputs_equal_the_official_code(kind: str, rows: int, columns: int) -> None:
    wanted = json.loads(official.FIGURES.read_text())[kind]["grids"][f"{rows}x{columns}"]
    backbone, images = _by_rule(kind), official.image(rows, columns)
    single = backbone.extract(images, range(official.DEPTH))
    np.testing.assert_allclose(official.figures(single), wanted, rtol=0, atol=1e-4)
    backbone = backbone.double()
    with torch.inference_mode():
        double = backbone.run(backbone.embed(images.double()), range(official.DEPTH))
    # The position embedding is resized in float32, here as there.
    found = official.figures(torch.stack(double, dim=1))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_the_official_figures_notice_the_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = json.loads(official.FIGURES.read_text())["mlp"]["grids"]
    monkeypatch.setattr(module, "POSITION_OFFSET", 1e-6)  # samples by the ratio of the sizes
    backbone = _by_rule("mlp")
    for grid, changes in (((37, 37), False), ((16, 16), True), ((35, 46), True)):
        found = official.figures(backbone.extract(official.image(*grid), range(official.DEPTH)))
        apart = np.abs(np.array(found) - wanted[f"{grid[0]}x{grid[1]}"]).max()
        assert (apart > 0.02) == changes


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(("precision", "apart"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_lower_precision_is_close_and_float32(swiglu: bool, precision: str, apart: float) -> None:
    backbone, images = _random(swiglu), torch.randn(2, 3, 42, 70)
    plain = backbone.extract(images, [0, 2])
    assert torch.equal(backbone.extract(images, [0, 2], "float32"), plain)
    found = backbone.extract(images, [0, 2], precision)
    assert found.dtype == torch.float32
    error = float((found - plain).abs().max() / plain.abs().max())
    assert 1e-5 < error < apart
    assert all(parameter.dtype == torch.float32 for parameter in backbone.parameters())


def test_float32_holds_inside_another_autocast() -> None:
    backbone, images = _random(), torch.randn(1, 3, 56, 56)
    plain = backbone.extract(images, [2])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(backbone.extract(images, [2]), plain)


def test_float32_weights_are_not_copied(tmp_path: Path) -> None:
    state = _random().state_dict()
    loaded = dict(load_backbone(state, HEADS).named_parameters())
    assert all(loaded[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("mapped files are listed on Linux only")
    torch.save(state, tmp_path / "mapped.pth")
    save_file(state, tmp_path / "mapped.safetensors")
    for name in ("mapped.pth", "mapped.safetensors"):
        assert str(tmp_path / name) not in maps.read_text()
        kept = load_backbone(tmp_path / name, HEADS)
        assert str(tmp_path / name) in maps.read_text()
        assert kept.blocks[0].mlp.fc1.weight.dtype == torch.float32  # type: ignore[union-attr]


def test_half_precision_weights_load_as_float32() -> None:
    state = {name: tensor.half() for name, tensor in _random().state_dict().items()}
    loaded = load_backbone(state, HEADS)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, state[name].float())


@pytest.mark.parametrize("swiglu", [False, True])
def test_a_checkpoint_loads_by_its_tensors_alone(tmp_path: Path, swiglu: bool) -> None:
    backbone = _random(swiglu)
    state = backbone.state_dict()
    torch.save(state, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    images = torch.randn(1, 3, 56, 56)
    wanted = backbone.extract(images, [1])
    for given in (state, tmp_path / "weights.pth", tmp_path / "weights.safetensors"):
        loaded = load_backbone(given, num_heads=HEADS)
        torch.testing.assert_close(loaded.extract(images, [1]), wanted, rtol=0, atol=0)


def test_heads_default_to_64_channels_each() -> None:
    state = VisionTransformer(128, 1, 2, 16, 2).state_dict()
    assert load_backbone(state).blocks[0].attn.num_heads == 2  # type: ignore[union-attr]


def test_foreign_checkpoints_are_refused_by_the_tensor_at_fault(tmp_path: Path) -> None:
    state = _random().state_dict()
    missing = {k: v for k, v in state.items() if k != "blocks.1.ls1.gamma"}
    with pytest.raises(BuildError, match=r"'blocks\.1\.ls1\.gamma' is missing"):
        load_backbone(missing, HEADS)
    with pytest.raises(BuildError, match=r"'extra' does not belong"):
        load_backbone({**state, "extra": torch.zeros(1)}, HEADS)
    with pytest.raises(BuildError, match=r"'norm\.bias' is \(3,\), not \(32,\)"):
        load_backbone({**state, "norm.bias": torch.zeros(3)}, HEADS)
    with pytest.raises(BuildError, match="not a DINOv2 backbone"):
        load_backbone({"weight": torch.zeros(1)})
    with pytest.raises(BuildError, match="the width 32 is not a multiple of 3 heads"):
        load_backbone(state, 3)
    with pytest.raises(BuildError, match="no such weights file"):
        load_backbone(tmp_path / "none.pth")
    with pytest.raises(BuildError, match="not a multiple of 0 heads"):
        load_backbone(state, 0)
    with pytest.raises(BuildError, match=r"'blocks\.1\.norm1\.weight' is missing"):
        load_backbone({k: v for k, v in state.items() if not k.startswith("blocks.1.")}, HEADS)
    with pytest.raises(BuildError, match=r"'blocks\.2000\.norm1\.weight' does not belong"):
        load_backbone({**state, "blocks.2000.norm1.weight": torch.zeros(DIM)}, HEADS)
    with pytest.raises(BuildError, match=r"'pos_embed' has 16 rows, not 1 \+ a square"):
        load_backbone({**state, "pos_embed": torch.zeros(1, 16, DIM)}, HEADS)
    with pytest.raises(BuildError, match=r"'pos_embed' has the wrong shape: \(17, 32\)"):
        load_backbone({**state, "pos_embed": torch.zeros(17, DIM)}, HEADS)
    with pytest.raises(BuildError, match=r"'blocks\.0\.mlp\.fc2\.weight' has the wrong shape"):
        load_backbone({**state, "blocks.0.mlp.fc2.weight": torch.zeros(())}, HEADS)
    with pytest.raises(BuildError, match=r"'norm\.bias' is int8, not dense floating point"):
        load_backbone({**state, "norm.bias": torch.zeros(DIM, dtype=torch.int8)}, HEADS)
    with pytest.raises(
        BuildError, match=r"contains no state dict of tensors, .*: has epoch, best$"
    ):
        load_backbone({"epoch": 3, "best": "x"})
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(BuildError, match="not a readable weights file"):
        load_backbone(tmp_path / "text.pth")


def test_impossible_requests_are_named() -> None:
    backbone = _random()
    with pytest.raises(BuildError, match="image size 50x56"):
        backbone.extract(torch.zeros(1, 3, 50, 56), [0])
    with pytest.raises(BuildError, match="image size 0x56 is not a multiple"):
        backbone.extract(torch.zeros(1, 3, 0, 56), [0])
    with pytest.raises(BuildError, match=r"be in 0\.\.2"):
        backbone.extract(torch.zeros(1, 3, 56, 56), [3])
    with pytest.raises(BuildError, match="must be increasing"):
        backbone.extract(torch.zeros(1, 3, 56, 56), [1, 0])
    with pytest.raises(BuildError, match=r"must be \(B, 3, H, W\)"):
        backbone.extract(torch.zeros(3, 56, 56), [0])
    with pytest.raises(BuildError, match="no precision 'int8'; known are float32, bfloat16"):
        backbone.extract(torch.zeros(1, 3, 56, 56), [0], precision="int8")
    with pytest.raises(BuildError, match=r"floating point, not torch\.uint8"):
        backbone.extract(torch.zeros(1, 3, 56, 56, dtype=torch.uint8), [0])
    assert backbone.extract(torch.zeros(0, 3, 56, 56), [0, 2]).shape == (0, 2, 17, DIM)
