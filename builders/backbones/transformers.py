"""A backbone for models of the `transformers` library: text and images, encoders and decoders.

Layers are the outputs of the model's blocks, which are collected by hooks. The library's
`hidden_states` cannot be used: in some families its last entry is before the final norm, in others
after it. Padding is removed before the model runs, since in several families padded positions
change the other tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.backbones.base import LibraryModel, join_layers, library_errors, read_config
from cfqa_data.errors import BuildError
from cfqa_data.extras import extras
from cfqa_data.torch_state import torch_state

with extras():
    import torch
    from torch import Tensor, nn

__all__ = ["Transformers"]

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

UNBOUNDED = 1_000_000
"""Number of tokens from which a tokenizer's limit means that there is no limit."""


class Transformers(LibraryModel):
    """Any model that `transformers.AutoModel` loads, or a part of one.

    Layer i is the output of block i, before the final norm. A model with a final norm has one more
    layer, its output. Inputs are one of:

    - a text, or a list of texts with the same number of tokens, for the model's own tokenizer;
    - tokens, integers (T,) or (N, T);
    - images, float32 (N, 3, H, W), normalised by ImageNet's mean and standard deviation, as by all
      built-in sources; they are converted if `preprocessor_config.json` states others;
    - the arrays of a tokenizer or processor; tokens excluded by `attention_mask` are removed.

    Args:
        weights: Folder that `save_pretrained` or `hf download` wrote, or its `model.safetensors`.
        part: Part to run, such as "encoder" or "vision_model"; required for several inputs.
        max_tokens: Number of tokens to which longer texts are truncated; if None, texts that are
            too long for the model are an error.

    Raises:
        BuildError: If there is no such model, or its weights are incomplete.
    """

    name = "transformers"

    @torch_state(grad=False)
    def __init__(self, weights: Path, part: str = "", max_tokens: int | None = None) -> None:
        self.recreate = partial(Transformers, weights, part, max_tokens)
        self.folder, self.max_tokens = Path(weights).parent, max_tokens
        if Path(weights).is_dir():
            self.folder = Path(weights)
        self.model, missing = _load(self.folder, part)
        self.name = f"transformers {self.model.config.model_type}"
        self.parameters = sum(weight.numel() for weight in self.model.parameters())
        self.visual = self.model.main_input_name == "pixel_values"
        self.mean_std = _mean_std(self.folder) if self.visual else None
        self._tokenizer: Any = None
        self._probe(missing)

    def _probe(self, missing: Sequence[str]) -> None:
        """Run the model to determine its layers, final norm and prefix tokens.

        Raises:
            BuildError: If it cannot be run, lacks the weights `missing`, or is not deterministic.
        """
        inputs = self._example()
        arguments = self._arguments(inputs)
        try:
            last, blocks, self.norm = self._run(arguments)
        except BuildError as error:
            if not (parts := _parts(self.model)):
                raise
            raise BuildError(f"{error}; name a part: {', '.join(parts)}") from error
        if not blocks or not all(block.ndim == 3 for block in blocks):
            shapes = [tuple(block.shape) for block in blocks]
            raise BuildError(f"{self.folder}: its blocks do not output tokens (N, T, D): {shapes}")
        if not all(block.isfinite().all() for block in (*blocks, last)):
            raise BuildError(f"{self.folder}: lacks weights: {', '.join(missing) or 'unknown'}")
        if not torch.equal(last, self._run(arguments)[0]):  # ViTMAE masks patches at random
            raise BuildError(
                f"{self.name}: is not deterministic: it gives different features for the same input"
            )
        self.blocks = len(blocks)
        self.layers = self.blocks + (self.norm is not None)
        widths = {block.shape[-1] for block in blocks}
        self.width = widths.pop() if len(widths) == 1 else None
        self.patch = _pair(getattr(self.model.config, "patch_size", None)) if self.visual else None
        if self.patch:
            # More additional tokens are not prefix tokens: those of YOLOS come last.
            rows, columns = inputs.shape[2] // self.patch[0], inputs.shape[3] // self.patch[1]
            prefix = blocks[0].shape[1] - rows * columns
            if 0 <= prefix <= 2 + getattr(self.model.config, "num_register_tokens", 0):
                self.prefix_tokens = prefix
            else:
                self.patch = None

    def _example(self) -> np.ndarray:
        if not self.visual:
            return np.arange(4)
        config = self.model.config
        size = _pair(getattr(config, "image_size", None)) or (224, 224)
        rng, channels = np.random.default_rng(0), getattr(config, "num_channels", 3)
        return rng.standard_normal((1, channels, *size)).astype(np.float32)

    @torch_state(grad=False)
    def extract(self, inputs: Any, layers: Sequence[int]) -> np.ndarray:
        """Return the feature of one sample."""
        self.check_layers(layers)
        last, blocks, _ = self._run(self._arguments(inputs))
        return join_layers(self.name, [(*blocks, last)[layer].numpy() for layer in layers])

    def _run(self, arguments: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor], Any]:
        """Return the model's last hidden state, the outputs of its blocks, and its final norm."""
        with library_errors(self.name), _outputs(self.model) as (blocks, norms):
            output = self.model(**arguments)
        last = output[0]
        final = (
            norm
            for norm, result in norms
            if result.numel() == last.numel() and torch.equal(result.reshape(last.shape), last)
        )
        return last, blocks, next(final, None)

    def _arguments(self, inputs: Any) -> dict[str, Tensor]:
        """Return the model's arguments for inputs, without padding."""
        if isinstance(inputs, str) or (
            isinstance(inputs, list | tuple) and all(isinstance(each, str) for each in inputs)
        ):
            inputs = self._tokens([inputs] if isinstance(inputs, str) else list(inputs))
        if not isinstance(inputs, Mapping):
            inputs = {self.model.main_input_name: inputs}
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        if (mask := arrays.pop("attention_mask", None)) is not None:
            arrays = _without_padding(arrays, mask)
        values = arrays.get(self.model.main_input_name)
        if self.visual:
            return {"pixel_values": torch.from_numpy(self.images(values)), **self._sizes(values)}
        if values is None or values.dtype.kind not in "iu" or values.ndim > 2 or not values.size:
            raise BuildError(f"{self.name}: inputs must be texts, or tokens (N, T)")
        tokens = {name: torch.from_numpy(np.array(a, np.int64)) for name, a in arrays.items()}
        tokens = {name: each[None] if each.ndim == 1 else each for name, each in tokens.items()}
        return tokens | {"attention_mask": torch.ones_like(tokens[self.model.main_input_name])}

    def _sizes(self, values: Any) -> dict[str, Any]:
        """Return the argument that makes a model accept images of another size than its own."""
        own = _pair(getattr(self.model.config, "image_size", None))
        differs = own is not None and tuple(values.shape[-2:]) != own
        name = "interpolate_pos_encoding"
        return {name: True} if differs and name in signature(self.model.forward).parameters else {}

    def _tokens(self, texts: list[str]) -> dict[str, np.ndarray]:
        if self._tokenizer is None:
            with extras():
                from transformers import AutoTokenizer
            with library_errors(f"{self.folder}: has no tokenizer", kind=False):
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        limit = self.max_tokens or self._tokenizer.model_max_length
        options = {} if self.max_tokens is None else {"truncation": True, "max_length": limit}
        tokens = self._tokenizer(texts, **options)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        longest, shortest = max(lengths), min(lengths)
        if longest > limit and limit < UNBOUNDED:
            raise BuildError(
                f"{self.name}: a text of {longest} tokens, of {limit} at most; `max_tokens` cuts it"
            )
        if longest != shortest:
            raise BuildError(
                f"{self.name}: texts of one sample have {shortest} to {longest} tokens; they need "
                "the same number"
            )
        accepted = signature(self.model.forward).parameters  # follows decorators
        return {name: np.array(value) for name, value in tokens.items() if name in accepted}


def _pair(size: Any) -> tuple[int, int] | None:
    """Return height and width; a configuration may state one number for both."""
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return (size, size) if isinstance(size, int) else None


def _without_padding(arrays: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Remove the tokens that a mask (N, T) excludes from arrays."""
    mask = np.atleast_2d(mask) != 0
    counts = set(mask.sum(axis=1).tolist())
    if len(counts) > 1:
        raise BuildError(
            f"views of one sample have {min(counts)} to {max(counts)} tokens; they need the same "
            "number"
        )

    def cut(array: np.ndarray) -> np.ndarray:
        array = np.atleast_2d(array)
        return array[mask].reshape(len(mask), -1) if array.shape == mask.shape else array

    # The model counts positions from the first remaining token.
    return {name: cut(array) for name, array in arrays.items() if name != "position_ids"}


def _mean_std(folder: Path) -> tuple[Any, Any] | None:
    """Return mean and standard deviation of a model's images; None if it states none."""
    if not (path := folder / PREPROCESSOR).is_file():
        return None
    config = read_config(path)
    if not config.get("do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    mean, std = config.get("image_mean"), config.get("image_std")
    return (mean, std) if mean and std else None


def _load(folder: Path, part: str) -> tuple[Any, list[str]]:
    """Load a model, or a part of it, in float32; also return the names of missing weights.

    Missing weights are set to NaN, which spreads to the features that need them.
    """
    with extras():
        from transformers import AutoModel
    if not (folder / CONFIG).is_file():
        raise BuildError(
            f"{folder}: has no {CONFIG}; `weights` must be a folder made by `save_pretrained` or "
            "`hf download`"
        )
    with library_errors(str(folder)), _no_progress_bar():
        model, info = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    for name, weight in model.named_parameters():
        if name in missing:
            weight.data.fill_(math.nan)
    try:
        chosen = attrgetter(part)(model) if part else model
    except AttributeError:
        chosen = None
    if not isinstance(chosen, nn.Module) or not hasattr(chosen, "main_input_name"):
        parts = ", ".join(_parts(model))
        raise BuildError(f"{folder}: no part {part!r}; it has {parts or 'none'}")
    if model.config.is_encoder_decoder and chosen is model:
        raise BuildError(f"{folder}: has several parts; name one: encoder, decoder")
    return chosen.eval(), missing


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Disable the library's progress bar for loading models."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _parts(model: Any) -> list[str]:
    """Return the parts of a model that are models themselves."""
    return [name for name, each in model.named_children() if hasattr(each, "main_input_name")]


@contextmanager
def _outputs(model: Any) -> Iterator[tuple[list[Tensor], list[tuple[nn.Module, Tensor]]]]:
    """Collect the outputs of a model's blocks, in order, and of the norms outside of blocks."""
    blocks: list[Tensor] = []
    norms: list[tuple[nn.Module, Tensor]] = []

    def block(module: nn.Module, _: Any, output: Any) -> None:
        while not isinstance(output, Tensor):  # a tuple starts with the hidden states
            output = output[0]
        blocks.append(output)

    def norm(module: nn.Module, _: Any, output: Any) -> None:
        norms.append((module, output))

    modules = _block_list(model)
    inside = {module for each in modules for module in each.modules()}
    handles = [each.register_forward_hook(block) for each in modules]
    for module in model.modules():
        if module not in inside and "norm" in type(module).__name__.lower():
            handles.append(module.register_forward_hook(norm))
    try:
        yield blocks, norms
    finally:
        for handle in handles:
            handle.remove()


def _block_list(model: Any) -> Sequence[nn.Module]:
    """Return the model's blocks: its outermost module list of the configured depth, or longest."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    inner = {name for name in lists if any(name.startswith(f"{each}.") for each in lists)}
    depth = getattr(model.config, "num_hidden_layers", None)
    outer = [list(m) for name, m in lists.items() if name not in inner]
    return max(outer, key=lambda modules: (len(modules) == depth, len(modules)), default=[])
