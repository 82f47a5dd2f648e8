"""A backbone for image models of the `timm` library: transformers and convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.backbones.base import Backbone, join_layers
from cfqa_data.builders.sources.geometry import renormalise
from cfqa_data.errors import BuildError
from cfqa_data.extras import extras
from cfqa_data.format.checkpoints import check_tensors, tensors_at
from cfqa_data.format.facts import Layer
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.torch_state import torch_state

with extras():
    import torch
    from torch import Tensor, nn

__all__ = ["Timm"]

CONFIG = "config.json"


class Timm(Backbone):
    """Any model of `timm` that can give what its blocks or stages compute.

    Layer i is the output of block or stage i, before the final norm, with its prefix tokens first
    and then its places row by row; one more layer is that of the final norm, where the model has
    one for tokens. Inputs are images, float32 (N, 3, H, W), normalised as all sources here do, by
    ImageNet's mean and deviation; a model that was trained with other ones gets these.

    Args:
        weights: safetensors file, PyTorch checkpoint, or a folder as the Hub has it.
        model: name of the architecture, such as "vit_small_patch14_dinov2"; by default as the
            `config.json` beside the weights says.

    Raises:
        BuildError: there is no such model, or the weights do not fit it.
    """

    @torch_state(grad=False)
    def __init__(self, weights: Path, model: str = "") -> None:
        self._made_of = partial(Timm, weights, model)
        config = _config(Path(weights))
        architecture = model or str(config.get("architecture", ""))
        if not architecture:
            raise BuildError(f"{weights}: no {CONFIG} beside it says which model; give 'model'")
        self.name = f"timm {architecture}"
        self.model = _load(architecture, weights)
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        trained = {**self.model.pretrained_cfg, **config.get("pretrained_cfg", {})}
        self._mean_std = trained["mean"], trained["std"]
        # Some, such as CaiT, have class tokens that their blocks for places do not see.
        known = signature(self.model.forward_intermediates).parameters
        if "return_prefix_tokens" in known:
            self.prefix_tokens = getattr(self.model, "num_prefix_tokens", 0)
        self.stages = len(self.model.feature_info)
        widths = {stage["num_chs"] for stage in self.model.feature_info}
        self.width = widths.pop() if len(widths) == 1 else None
        strides = {stage["reduction"] for stage in self.model.feature_info}
        self.patch = strides.pop() if len(strides) == 1 else None
        norm = getattr(self.model, "norm", None)
        has_norm = isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity)
        self.norm = norm if has_norm and self.patch else None
        self.layers = self.stages + (self.norm is not None)

    def __reduce__(self) -> Any:
        return self._made_of, ()

    @torch_state(grad=False)
    def extract(self, inputs: Any, layers: Sequence[int]) -> np.ndarray:
        """Return the feature of one sample's images."""
        found = [_tokens(*each).numpy() for each in self._maps(inputs, layers)]
        return join_layers(self.name, found)

    def grid(self, inputs: Any) -> tuple[int, int] | None:
        """Return the rows and columns of patches, where all layers have the same."""
        if not self.patch:
            return None
        height, width = np.shape(inputs)[-2:]
        return height // self.patch, width // self.patch

    def layer(self, index: int) -> Layer:
        """Return a block's or stage's name, and whether it is from before the final norm."""
        if index == self.stages:
            return Layer("final norm", "after")
        kind = "stage" if self.width is None else "block"
        return Layer(f"{kind} {index}", "before" if self.norm is not None else None)

    def _maps(self, inputs: Any, layers: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """Return (N, D, rows, columns) of each layer, and its prefix tokens."""
        assert self.layers is not None
        if not layers or not all(0 <= layer < self.layers for layer in layers):
            raise BuildError(f"{self.name}: layers are 0 to {self.layers - 1}, not {list(layers)}")
        images = np.asarray(inputs)
        if images.dtype.kind != "f" or images.ndim != 4:
            raise BuildError(f"{self.name}: takes normalised images, float32 (N, 3, H, W)")
        given = torch.from_numpy(renormalise(np.asarray(images, np.float32), *self._mean_std))
        of: dict[str, Any] = {"output_fmt": "NCHW", "intermediates_only": True}
        if self.prefix_tokens:
            of["return_prefix_tokens"] = True
        raw = [layer for layer in layers if layer < self.stages]
        try:
            found = self.model.forward_intermediates(given, raw, **of) if raw else []
            if self.stages in layers:
                last = [self.stages - 1]
                found = [*found, *self.model.forward_intermediates(given, last, norm=True, **of)]
        except Exception as error:  # models raise all kinds where inputs do not fit
            why = str(error).partition("\n")[0]
            raise BuildError(f"{self.name}: {type(error).__name__}: {why}") from error
        return [each if isinstance(each, tuple) else (each, None) for each in found]


def _tokens(places: Tensor, prefix: Tensor | None) -> Tensor:
    """Return (N, T, D) of a map (N, D, rows, columns)."""
    tokens = places.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat([prefix, tokens], dim=1)


def _config(weights: Path) -> dict[str, Any]:
    path = (weights if weights.is_dir() else weights.parent) / CONFIG
    if not path.is_file():
        return {}
    try:
        return dict(parse_json(read_limited(path, LARGEST_JSON)))
    except Exception as error:
        raise BuildError(f"{path}: not a JSON object") from error


def _load(architecture: str, weights: Path) -> Any:
    """Return a model without its classifier, in float32, with every weight from the file."""
    with extras():
        from timm import create_model
    make = partial(create_model, architecture, pretrained=False, num_classes=0)
    try:
        try:  # images of any size, where the model knows how
            model = make(dynamic_img_size=True)
        except TypeError:
            model = make()
    except Exception as error:  # the library raises all kinds
        why = str(error).strip().partition("\n")[0]
        raise BuildError(f"timm: {architecture!r}: {type(error).__name__}: {why}") from error
    for need in ("forward_intermediates", "feature_info"):
        if not hasattr(model, need):
            raise BuildError(f"timm: {architecture} has no {need}")
    state, origin = tensors_at(weights, "state dict")
    classifiers = model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    heads, expected = tuple(f"{name.split('.')[0]}." for name in names), model.state_dict()
    state = {n: t for n, t in state.items() if n in expected or not n.startswith(heads)}
    check_tensors(state, expected, origin, f"model {architecture} of timm")
    model.load_state_dict(state)
    return model.float().eval()
