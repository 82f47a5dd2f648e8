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
    """Any model of `timm` that can return the outputs of its blocks or stages.

    Layer i is the output of block or stage i, before the final norm: prefix tokens, then patches
    row by row. A model with a final norm for tokens has one more layer, its output. Inputs are
    images, float32 (N, 3, H, W), normalised by ImageNet's mean and standard deviation, as by all
    built-in sources; they are converted for models that were trained with others.

    Args:
        weights: Safetensors file, PyTorch checkpoint, or a folder in the layout of the Hub.
        model: Name of the architecture, such as "vit_small_patch14_dinov2"; by default, that in the
            `config.json` beside the weights.

    Raises:
        BuildError: If there is no such model, or the weights do not fit it.
    """

    @torch_state(grad=False)
    def __init__(self, weights: Path, model: str = "") -> None:
        self.recreate = partial(Timm, weights, model)
        config = _config(Path(weights))
        architecture = model or str(config.get("architecture", ""))
        if not architecture:
            raise BuildError(f"{weights}: no {CONFIG} next to it names the model; give 'model'")
        self.name = f"timm {architecture}"
        self.model = _load(architecture, weights)
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        trained = {**self.model.pretrained_cfg, **config.get("pretrained_cfg", {})}
        self.mean_std = trained["mean"], trained["std"]
        # In some models, such as CaiT, the blocks for patches have no class token.
        if "return_prefix_tokens" in signature(self.model.forward_intermediates).parameters:
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
        outputs = [_tokens(*each).numpy() for each in self._maps(inputs, layers)]
        return join_layers(self.name, outputs)

    def _maps(self, inputs: Any, layers: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """Return the map (N, D, rows, columns) of each layer, and its prefix tokens."""
        self.check_layers(layers)
        images = torch.from_numpy(self.images(inputs))
        options: dict[str, Any] = {"output_fmt": "NCHW", "intermediates_only": True}
        if self.prefix_tokens:
            options["return_prefix_tokens"] = True
        run = partial(self.model.forward_intermediates, images, **options)
        raw = [layer for layer in layers if layer < self.blocks]
        with library_errors(self.name):
            outputs = list(run(indices=raw)) if raw else []
            if self.blocks in layers:
                outputs += run(indices=[self.blocks - 1], norm=True)
        return [each if isinstance(each, tuple) else (each, None) for each in outputs]


def _tokens(patches: Tensor, prefix: Tensor | None) -> Tensor:
    """Return the tokens (N, T, D) of a map (N, D, rows, columns) and its prefix tokens."""
    tokens = patches.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat([prefix, tokens], dim=1)


def _config(weights: Path) -> dict[str, Any]:
    path = (weights if weights.is_dir() else weights.parent) / CONFIG
    return read_config(path) if path.is_file() else {}


def _load(architecture: str, weights: Path) -> Any:
    """Load a model without its classifier, in float32; every weight must be in the file."""
    with extras():
        from timm import create_model
    make = partial(create_model, architecture, pretrained=False, num_classes=0)
    with library_errors(f"timm: {architecture!r}"):
        try:  # accept images of any size, if the model supports that
            model = make(dynamic_img_size=True)
        except TypeError:
            model = make()
    for attribute in ("forward_intermediates", "feature_info"):
        if not hasattr(model, attribute):
            raise BuildError(f"timm: {architecture} has no {attribute}")
    state, origin = load_tensors(weights, "state dict")
    classifiers = model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    heads, expected = tuple(f"{name.split('.')[0]}." for name in names), model.state_dict()
    state = {n: t for n, t in state.items() if n in expected or not n.startswith(heads)}
    check_tensors(state, expected, origin, f"model {architecture} of timm")
    model.load_state_dict(state)
    return model.float().eval()
