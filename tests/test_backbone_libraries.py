"""Backbones for models of `transformers` and `timm`, with fakes of these libraries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_libraries import (
    DEPTH,
    PATCH,
    WIDTH,
    create_model,
    fake_timm,
    fake_transformers,
    fake_utils,
    write_model,
)
from safetensors.torch import save_file

from cfqa_data.builders.backbones.base import BACKBONES
from cfqa_data.builders.backbones.timm import Timm
from cfqa_data.builders.backbones.transformers import Transformers
from cfqa_data.builders.sources.geometry import renormalise
from cfqa_data.errors import BuildError, MissingDependencyError
from cfqa_data.format.facts import Layer
from cfqa_data.pixels import MEAN, STD, normalise
from cfqa_data.testing.backbones import BackboneSuite

RNG = np.random.default_rng(0)
ALL = tuple(range(DEPTH + 1))


def images(*shape: int) -> np.ndarray:
    return RNG.standard_normal((1, 3, *shape)).astype(np.float32)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", fake_transformers())
    monkeypatch.setitem(sys.modules, "transformers.utils", fake_utils())
    monkeypatch.setitem(sys.modules, "timm", fake_timm())


class TestDecoder(BackboneSuite):
    """Inputs are texts, tokens, or the output of a tokenizer."""

    backbone, layers = Transformers, ALL

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        self.weights = write_model(tmp_path / "gpt", model_type="gpt")
        batch = {"input_ids": [[1, 5, 2, 0]], "attention_mask": [[1, 1, 1, 0]]}
        self.inputs = ["a text", "other", np.array([4, 5, 6]), batch]


class TestEncoder(TestDecoder):
    """Without a final norm."""

    layers = ALL[:-1]

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        self.weights = write_model(tmp_path / "bert", model_type="bert")
        self.inputs = ["a text", "other"]


class TestVision(BackboneSuite):
    """With class and register tokens, at sizes other than the pretrained one."""

    backbone, layers = Transformers, ALL

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        config = {"image_size": 8, "patch_size": PATCH, "num_register_tokens": 2, "prefix": 3}
        self.weights = write_model(tmp_path / "vit", model_type="vit", **config)
        self.inputs = [images(8, 8), images(12, 20)]


class TestPart(BackboneSuite):
    backbone, layers, options = Transformers, ALL, {"part": "text_model"}

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        self.weights = write_model(tmp_path / "pair", model_type="pair", is_encoder_decoder=False)
        self.inputs = ["a text", "other"]


def write_timm(folder: Path, name: str, **more: Any) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    save_file(create_model(name, False).state_dict() | more, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": name}))
    return folder / "model.safetensors"


class TestTimm(BackboneSuite):
    backbone, layers = Timm, ALL

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        self.weights = write_timm(tmp_path / "vit", "vit")
        self.inputs = [images(8, 8), images(12, 20)]


class TestTimmStages(BackboneSuite):
    """Stages of different sizes; a task uses one of them."""

    backbone, layers = Timm, (DEPTH - 1,)

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        self.weights = write_timm(tmp_path / "conv", "conv")
        self.inputs = [images(16, 16), images(16, 16)]


def test_layers_say_whether_they_are_before_or_after_the_final_norm(tmp_path: Path) -> None:
    """By what the model computes: some families give the last block raw, others normalised."""
    blocks = [Layer(f"block {i}", "before") for i in range(DEPTH)]
    gpt = Transformers(write_model(tmp_path / "gpt", model_type="gpt"))
    assert [gpt.layer(i) for i in ALL] == [*blocks, Layer("final norm", "after")]
    feature = gpt.extract("a text", ALL)
    with torch.no_grad():
        normed = gpt.norm(torch.from_numpy(feature[:, DEPTH - 1])).numpy()
    assert np.array_equal(normed, feature[:, DEPTH])
    bert = Transformers(write_model(tmp_path / "bert", model_type="bert"))
    assert (bert.norm, bert.layers, bert.layer(2)) == (None, DEPTH, Layer("block 2"))
    vit = Timm(write_timm(tmp_path / "vit", "vit"))
    assert [vit.layer(i) for i in ALL] == [*blocks, Layer("final norm", "after")]
    conv = Timm(write_timm(tmp_path / "conv", "conv"))
    assert (conv.norm, conv.width, conv.layer(0)) == (None, None, Layer("stage 0"))


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_padding_on_either_side_changes_no_byte(kind: str, tmp_path: Path) -> None:
    backbone = Transformers(write_model(tmp_path / kind, model_type=kind))
    plain = backbone.extract(np.array([3, 4, 5]), (0, 2))
    assert plain.shape == (1, 2, 3, WIDTH)
    for ids, mask in (([3, 4, 5, 0, 0], [1, 1, 1, 0, 0]), ([0, 3, 4, 5], [0, 1, 1, 1])):
        places = np.arange(len(ids))[None]
        padded = {
            "input_ids": [ids],
            "token_type_ids": torch.zeros(1, len(ids), dtype=torch.int64),
            "attention_mask": np.array([mask]),
            "position_ids": places,
        }
        assert backbone.extract(padded, (0, 2)).tobytes() == plain.tobytes()
    one = backbone.extract({"input_ids": [7, 3, 4], "attention_mask": [0, 1, 1]}, (0,))
    assert one.shape == (1, 1, 2, WIDTH)


def test_a_block_that_returns_a_tensor_is_not_indexed(tmp_path: Path) -> None:
    """`output[0]` of a tensor would be the first view."""
    for kind in ("bert", "gpt"):
        backbone = Transformers(write_model(tmp_path / kind, model_type=kind))
        two = backbone.extract(["one", "two"], (0, 2))
        assert two.shape == (2, 2, 5, WIDTH)
        np.testing.assert_allclose(two[1:], backbone.extract("two", (0, 2)), atol=1e-6)


def test_places_lie_behind_class_and_register_tokens(tmp_path: Path) -> None:
    config = {"image_size": 8, "patch_size": PATCH, "prefix": 3}
    vit = Transformers(
        write_model(tmp_path / "vit", model_type="vit", num_register_tokens=2, **config)
    )
    assert (vit.prefix_tokens, vit.grid(images(12, 20))) == (3, (3, 5))
    assert vit.grid({"pixel_values": images(8, 8)}) == (2, 2)
    # More tokens than class and registers: they may lie anywhere.
    yolos = Transformers(write_model(tmp_path / "yolos", model_type="vit", **config))
    assert (yolos.prefix_tokens, yolos.grid(images(8, 8))) == (0, None)
    net = Timm(write_timm(tmp_path / "net", "vit"))
    assert (net.prefix_tokens, net.grid(images(12, 20))) == (2, (3, 5))


def test_images_get_the_normalisation_that_the_model_was_trained_with(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    raw, given = np.moveaxis(pixels / 255, -1, 1), normalise(pixels)
    assert renormalise(given, MEAN.tolist(), STD.tolist()) is given
    np.testing.assert_allclose(renormalise(given, [0.5] * 3, [0.5] * 3), 2 * raw - 1, atol=1e-6)
    weights = write_model(tmp_path / "vit", model_type="vit", image_size=8)
    as_it_is = Transformers(weights).extract(2 * raw - 1, (0,))
    told = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(told))
    np.testing.assert_allclose(Transformers(weights).extract(given, (0,)), as_it_is, atol=1e-5)
    net = Timm(write_timm(tmp_path / "net", "vit"))
    with torch.no_grad():
        stem = net.model.stages[0](net.model.stem(torch.from_numpy(2 * raw - 1).float()))
    expected = stem.flatten(2).mT.numpy()
    np.testing.assert_allclose(net.extract(given, (0,))[:, 0, 2:], expected, atol=1e-5)


def test_weights_that_no_file_has_are_named_where_a_feature_needs_them(tmp_path: Path) -> None:
    whole = Transformers(write_model(tmp_path / "whole", model_type="gpt"))
    assert sys.modules["transformers.utils"].logging.is_progress_bar_enabled()
    headless = write_model(tmp_path / "headless", ("pooler",), model_type="gpt")
    feature = Transformers(headless).extract("a text", ALL)
    assert feature.tobytes() == whole.extract("a text", ALL).tobytes()
    lacks = write_model(tmp_path / "lacks", ("layer.1.mix",), model_type="gpt")
    with pytest.raises(BuildError, match=r"lacks weights: layer\.1\.mix\.bias, layer\.1\.mix\.we"):
        Transformers(lacks)


def test_a_classifier_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    weights = write_timm(tmp_path / "more", "vit", left=torch.ones(1))
    with pytest.raises(BuildError, match="'left'"):
        Timm(weights)
    less = create_model("vit", False).state_dict()
    del less["stages.1.weight"]
    save_file(less, weights)
    with pytest.raises(BuildError, match=r"'stages\.1\.weight' is missing"):
        Timm(weights)


CASES: list[tuple[dict[str, Any], Any, str]] = [
    ({"model_type": "gpt"}, np.zeros(0, int), "inputs must be texts, or tokens"),
    ({"model_type": "gpt"}, np.zeros(3), "inputs must be texts, or tokens"),
    ({"model_type": "gpt"}, np.array([99]), "IndexError"),
    ({"model_type": "gpt"}, "a text that is long", "of 21 tokens, of 12 at most; `max_tokens`"),
    ({"model_type": "gpt"}, ["one", "three"], "have 5 to 7 tokens; they need the same"),
    (
        {"model_type": "gpt"},
        {"input_ids": [[1, 2], [1, 2]], "attention_mask": [[1, 1], [1, 0]]},
        "views of one sample have 1 to 2 tokens",
    ),
    ({"model_type": "v", "image_size": 8}, "a text", "inputs must be normalised images, float32"),
    (
        {"model_type": "v", "image_size": 8},
        np.zeros((8, 8, 3), np.uint8),
        "inputs must be normalised",
    ),
    ({"model_type": "v", "image_size": 8}, np.zeros((1, 3, 2, 2), np.float32), "RuntimeError"),
]


@pytest.mark.parametrize(("config", "inputs", "told"), CASES)
def test_inputs_that_do_not_fit_are_one_line(
    config: dict[str, Any], inputs: Any, told: str, tmp_path: Path
) -> None:
    backbone = Transformers(write_model(tmp_path / "model", **config))
    with pytest.raises(BuildError, match=told) as error:
        backbone.extract(inputs, (0,))
    assert "\n" not in str(error.value)


def test_long_texts_are_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "gpt", model_type="gpt")
    feature = Transformers(weights, max_tokens=6).extract("a text that is long", (0,))
    assert feature.shape[2] == 6


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        ({"model_type": "pair", "is_encoder_decoder": True}, {}, "name one: encoder, decoder"),
        ({"model_type": "pair", "is_encoder_decoder": False}, {}, "part: text_model, vision_model"),
        ({"model_type": "gpt"}, {"part": "vision"}, "no part 'vision'; it has none"),
        ({"model_type": "pair"}, {"part": "other"}, "no part 'other'; it has text_model, vision_"),
        ({"model_type": "mae"}, {}, "gives different features for the same input"),
    ],
)
def test_models_that_cannot_be_run_are_one_line(
    config: dict[str, Any], options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    weights = write_model(tmp_path / "model", **config)
    with pytest.raises(BuildError, match=told) as error:
        Transformers(weights, **options)
    assert "\n" not in str(error.value)


def test_what_lies_beside_the_weights_is_checked(tmp_path: Path) -> None:
    weights = write_model(tmp_path / "gpt", model_type="gpt")
    (tmp_path / "gpt" / "tokenizer.json").unlink()
    with pytest.raises(BuildError, match=r"gpt: has no tokenizer: Can't load tokenizer$"):
        Transformers(weights).extract("a text", (0,))
    weights.write_bytes(b"damaged")
    with pytest.raises(BuildError, match=r"gpt: \w+") as error:
        Transformers(weights)
    assert "\n" not in str(error.value)
    (tmp_path / "gpt" / "config.json").unlink()
    with pytest.raises(BuildError, match=r"gpt: has no config.json; `weights` must be a folder"):
        Transformers(weights)
    net = write_timm(tmp_path / "net", "vit")
    for model, told in (
        ("vot", r"RuntimeError: Unknown model \(vot\)"),
        ("bare", "has no forward"),
    ):
        with pytest.raises(BuildError, match=told):
            Timm(net, model)
    (tmp_path / "net" / "config.json").write_text("[")
    with pytest.raises(BuildError, match=r"config\.json: not a JSON object"):
        Timm(net)
    (tmp_path / "net" / "config.json").unlink()
    with pytest.raises(BuildError, match=r"no config\.json next to it names the model"):
        Timm(net)
    assert Timm(net, "vit").layers == DEPTH + 1


def test_timm_refuses_what_does_not_fit_in_one_line(tmp_path: Path) -> None:
    conv = Timm(write_timm(tmp_path / "conv", "conv"))
    for inputs, layers, told in (
        (images(16, 16), (0, 1), r"one \(T, D\), not \[\(16, 8\), \(4, 16\)\]"),
        (images(16, 16), (DEPTH,), "layers are 0 to 2"),
        (images(16, 8), (0,), "AssertionError: Input width doesn't match model$"),
        ("a text", (0,), "inputs must be normalised images"),
    ):
        with pytest.raises(BuildError, match=told):
            conv.extract(inputs, layers)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = {"timm": write_timm, "transformers": lambda f, n: write_model(f, model_type=n)}[name]
    weights = write(tmp_path / "vit", "vit")
    monkeypatch.setitem(sys.modules, name, None)
    told = rf"{name} is not installed: pip install 'cfqa-data\[{name}\]'"
    with pytest.raises(MissingDependencyError, match=told):
        BACKBONES.find(name).target(weights)
