"""A backbone for image models of the `timm` library: transformers and convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.backbones.base import LibraryModel, join_layers, library_errors, read_config
from cfqa_data.errors import BuildError
from cfqa_data.extras import extras
from cfqa_data.format.checkpoints import check_tensors, load_tensors
from cfqa_data.torch_state import torch_state

with extras():
    import torch
    from torch import Tensor, nn

__all__ = ["Timm"]

CONFIG = "config.json"


class Timm(LibraryModel):
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
        self.made_of = partial(Timm, weights, model)
        config = _config(Path(weights))
        architecture = model or str(config.get("architecture", ""))
        if not architecture:
            raise BuildError(f"{weights}: no {CONFIG} next to it names the model; give 'model'")
        self.name = f"timm {architecture}"
        self.model = _load(architecture, weights)
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        trained = {**self.model.pretrained_cfg, **config.get("pretrained_cfg", {})}
        self.mean_std = trained["mean"], trained["std"]
        # Some, such as CaiT, have class tokens that their blocks for places do not see.
        known = signature(self.model.forward_intermediates).parameters
        if "return_prefix_tokens" in known:
            self.prefix_tokens = getattr(self.model, "num_prefix_tokens", 0)
        self.blocks = len(self.model.feature_info)
        widths = {stage["num_chs"] for stage in self.model.feature_info}
        self.width = widths.pop() if len(widths) == 1 else None
        self.block = "stage" if self.width is None else "block"
        strides = {stage["reduction"] for stage in self.model.feature_info}
        self.patch = (min(strides), min(strides)) if len(strides) == 1 else None
        norm = getattr(self.model, "norm", None)
        has_norm = isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity)
        self.norm = norm if has_norm and self.patch else None
        self.layers = self.blocks + (self.norm is not None)

    @torch_state(grad=False)
    def extract(self, inputs: Any, layers: Sequence[int]) -> np.ndarray:
        """Return the feature of one sample's images."""
        found = [_tokens(*each).numpy() for each in self._maps(inputs, layers)]
        return join_layers(self.name, found)

    def _maps(self, inputs: Any, layers: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """Return (N, D, rows, columns) of each layer, and its prefix tokens."""
        self.check_layers(layers)
        given = torch.from_numpy(self.images(inputs))
        of: dict[str, Any] = {"output_fmt": "NCHW", "intermediates_only": True}
        if self.prefix_tokens:
            of["return_prefix_tokens"] = True
        raw = [layer for layer in layers if layer < self.blocks]
        with library_errors(self.name):
            found = self.model.forward_intermediates(given, raw, **of) if raw else []
            if self.blocks in layers:
                last = [self.blocks - 1]
                found = [*found, *self.model.forward_intermediates(given, last, norm=True, **of)]
        return [each if isinstance(each, tuple) else (each, None) for each in found]


def _tokens(places: Tensor, prefix: Tensor | None) -> Tensor:
    """Return (N, T, D) of a map (N, D, rows, columns)."""
    tokens = places.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat([prefix, tokens], dim=1)


def _config(weights: Path) -> dict[str, Any]:
    path = (weights if weights.is_dir() else weights.parent) / CONFIG
    return read_config(path) if path.is_file() else {}


def _load(architecture: str, weights: Path) -> Any:
    """Return a model without its classifier, in float32, with every weight from the file."""
    with extras():
        from timm import create_model
    make = partial(create_model, architecture, pretrained=False, num_classes=0)
    with library_errors(f"timm: {architecture!r}"):
        try:  # images of any size, where the model knows how
            model = make(dynamic_img_size=True)
        except TypeError:
            model = make()
    for need in ("forward_intermediates", "feature_info"):
        if not hasattr(model, need):
            raise BuildError(f"timm: {architecture} has no {need}")
    state, origin = load_tensors(weights, "state dict")
    classifiers = model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    heads, expected = tuple(f"{name.split('.')[0]}." for name in names), model.state_dict()
    state = {n: t for n, t in state.items() if n in expected or not n.startswith(heads)}
    check_tensors(state, expected, origin, f"model {architecture} of timm")
    model.load_state_dict(state)
    return model.float().eval()
