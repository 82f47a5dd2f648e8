"""Fakes of `transformers` and `timm`: modules with the interface that the backbones use.

Small networks of random weights, in the shapes that families of these libraries have: blocks that
return a tensor or a tuple, with a final norm and without, absolute positions, and weights that no
file holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTH, DEPTH, WORDS, PATCH = 8, 3, 50, 4


class Block(nn.Module):
    """Attention over all tokens and a residual; returns a tuple where `tupled`."""

    def __init__(self, tupled: bool, causal: bool) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH + 1))
        self.tupled, self.causal = tupled, causal

    def forward(self, x: Tensor) -> Any:
        weights = self.mix(x) @ x.mT / WIDTH
        if self.causal:
            weights = weights.masked_fill(torch.ones_like(weights[0]).triu(1).bool(), -1e9)
        x = self.norm(x + weights.softmax(-1) @ self.experts[0](x))
        return (x, weights) if self.tupled else x


def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Hide a method's parameters behind `args` and `kwargs`, as the library's decorators do."""

    @wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return wrapper


class Model(nn.Module):
    """A text or vision model in the style of `transformers`."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        told = {"num_hidden_layers": DEPTH, "is_encoder_decoder": False} | config
        self.config, kind = SimpleNamespace(**told), told["model_type"]
        self.main_input_name = "pixel_values" if "image_size" in told else "input_ids"
        self.layer = nn.ModuleList(
            Block(tupled=kind == "gpt", causal=kind == "gpt") for _ in range(DEPTH)
        )
        self.norm = nn.Identity() if kind == "bert" else nn.LayerNorm(WIDTH, bias=False)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(16, WIDTH)  # absolute: padding on the left would move words
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, told.get("prefix", 0), WIDTH))
        self.pooler = nn.Linear(WIDTH, WIDTH)

    @decorated
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[Tensor, ...]:
        if pixel_values is not None:
            if pixel_values.shape[-1] != self.config.image_size and not interpolate_pos_encoding:
                raise ValueError("Input image size doesn't match model\n and a second line")
            x = self.patches(pixel_values).flatten(2).mT
            x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1)
        else:
            assert input_ids is not None
            assert attention_mask is not None
            assert bool(attention_mask.all())
            x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        for block in self.layer:
            x = found if isinstance(found := block(x), Tensor) else found[0]
        if self.config.model_type == "mae":
            x = x + torch.rand(())
        return self.norm(x).reshape(x.shape), self.pooler(x[:, 0])


class Pair(nn.Module):
    """A pair of models that can only be run separately."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config, self.main_input_name = SimpleNamespace(**config), "input_ids"
        self.text_model, self.other = Model(model_type="text"), nn.Linear(2, 2)
        self.vision_model = Model(model_type="vision", image_size=8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Any = None) -> Any:
        return pixel_values.shape


class AutoModel:
    """Reads a folder that `write_model` wrote."""

    @staticmethod
    def from_pretrained(folder: Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        assert options.pop("dtype") == torch.float32
        assert options.pop("output_loading_info")
        assert options == {
            "attn_implementation": "eager",
            "local_files_only": True,
            "use_safetensors": True,
            "trust_remote_code": False,
        }
        config = json.loads((folder / "config.json").read_text())
        model = (Pair if config["model_type"] == "pair" else Model)(**config)
        state = load_file(folder / "model.safetensors")
        missing, _ = model.load_state_dict(state, strict=False)
        return model.train(), {"missing_keys": set(missing)}


class AutoTokenizer:
    """A tokenizer with one token per letter, and one at the start and the end."""

    model_max_length = 12

    @classmethod
    def from_pretrained(cls, folder: Path, local_files_only: bool) -> AutoTokenizer:
        if not (folder / "tokenizer.json").is_file():
            raise OSError("Can't load tokenizer\nsecond line")
        return cls()

    def __call__(
        self, texts: list[str], truncation: bool = False, max_length: int | None = None
    ) -> dict[str, list[list[int]]]:
        ids = [[1, *(2 + ord(c) % 40 for c in text), 2] for text in texts]
        if truncation:
            assert max_length is not None
            ids = [[*each[: max_length - 1], 2] if len(each) > max_length else each for each in ids]
        masks = [[1] * len(each) for each in ids]
        return {"input_ids": ids, "attention_mask": masks, "offsets": ids}


def write_model(folder: Path, without: tuple[str, ...] = (), **config: Any) -> Path:
    """Write a model of random weights as a folder; returns its file of weights."""
    folder.mkdir()
    torch.manual_seed(0)
    model = (Pair if config["model_type"] == "pair" else Model)(**config)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(without or "-")}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder / "model.safetensors"


def fake_transformers() -> ModuleType:
    """Return the fake of `transformers`."""
    module = ModuleType("transformers")
    module.AutoModel, module.AutoTokenizer = AutoModel, AutoTokenizer  # type: ignore[attr-defined]
    return module


def fake_utils() -> ModuleType:
    """Return the fake of `transformers.utils`, with the switch of progress bars."""
    module, shown = ModuleType("transformers.utils"), [True]
    module.logging = SimpleNamespace(  # type: ignore[attr-defined]
        is_progress_bar_enabled=lambda: shown[-1],
        disable_progress_bar=lambda: shown.append(False),
        enable_progress_bar=lambda: shown.append(True),
    )
    return module


class Net(nn.Module):
    """An image model in the style of `timm`: equal blocks ("vit"), or stages ("conv")."""

    def __init__(self, name: str, num_classes: int, dynamic: bool) -> None:
        super().__init__()
        self.dynamic, classes = dynamic, num_classes
        grown = name == "conv"
        chs = [WIDTH * 2**i if grown else WIDTH for i in range(DEPTH)]
        self.feature_info = [
            {"num_chs": c, "reduction": PATCH * 2**i if grown else PATCH} for i, c in enumerate(chs)
        ]
        self.stem = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.stages = nn.ModuleList(
            nn.Conv2d(
                c // 2 if grown and i else c, c, 2 if grown and i else 1, 2 if grown and i else 1
            )
            for i, c in enumerate(chs)
        )
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "classifier": "head"}
        if not grown:
            self.num_prefix_tokens = 2
            self.prefix, self.norm = nn.Parameter(torch.randn(1, 2, WIDTH)), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(chs[-1], classes) if classes else nn.Identity()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: list[int],
        return_prefix_tokens: bool = False,
        norm: bool = False,
        output_fmt: str = "NLC",
        intermediates_only: bool = False,
    ) -> list[Any]:
        assert output_fmt == "NCHW"
        assert intermediates_only
        assert not self.training
        assert self.dynamic or x.shape[-1] == 16, "Input width doesn't match model\nsecond line"
        x, found = self.stem(x), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in indices:
                made = self.norm(x.movedim(1, -1)).movedim(-1, 1) if norm else x
                prefix = getattr(self, "prefix", None)
                found.append(
                    (made, prefix.expand(len(x), -1, -1)) if return_prefix_tokens else made
                )
        return found


def create_model(name: str, pretrained: bool, num_classes: int = 5, **options: Any) -> Net:
    """Return a model of random weights; only "vit" takes images of any size."""
    if name not in ("vit", "conv", "bare"):
        raise RuntimeError(f"Unknown model ({name})")
    if options and name != "vit":
        raise TypeError("unexpected keyword argument 'dynamic_img_size'")
    assert not pretrained
    net: Any = Net(name, num_classes, dynamic=bool(options.get("dynamic_img_size")))
    return nn.Linear(1, 1) if name == "bare" else net  # type: ignore[return-value]


def fake_timm() -> ModuleType:
    """Return the fake of `timm`."""
    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    return module
