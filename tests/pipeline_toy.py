"""A small recipe for tests: rendered scenes, random networks, and matching heads."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from cfqa_data.builders.backbones.dinov2 import VisionTransformer, load_backbone
from cfqa_data.builders.sources import get_source
from cfqa_data.codecs.hyperprior.module import ScaleHyperprior
from cfqa_data.codecs.hyperprior.weights import MINI_PAD, HyperpriorWeights, write_ladder
from cfqa_data.recipe.load import Recipe

DIM, DEPTH, HEADS, CLASSES = 48, 4, 3, 960


def write_networks(folder: Path) -> None:
    """Write a random backbone and three heads; the cls head classifies the first scenes right."""
    for name, data in _networks().items():
        (folder / name).write_bytes(data)


@functools.cache
def _networks() -> dict[str, bytes]:
    """Return the files by name, created once per process."""
    with TemporaryDirectory() as folder:
        _write_networks(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _write_networks(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = VisionTransformer(DIM, DEPTH, HEADS, 2 * DIM, grid=8)
    for parameter in backbone.parameters():
        parameter.data = torch.randn_like(parameter) * 0.08
    backbone.norm.weight.data.fill_(1.0)
    for block in backbone.blocks:
        block.ls1.gamma.data.fill_(1.0)
        block.ls2.gamma.data.fill_(1.0)
    save_file(backbone.state_dict(), folder / "backbone.safetensors")
    _save(folder / "cls.safetensors", _prototypes(load_backbone(backbone.state_dict(), HEADS)))
    _save(
        folder / "seg.safetensors",
        {
            "conv_seg.weight": torch.randn(13, DIM, 1, 1),
            "conv_seg.bias": torch.randn(13),
            "bn.weight": torch.ones(DIM),
            "bn.bias": torch.zeros(DIM),
            "bn.running_mean": torch.zeros(DIM),
            "bn.running_var": torch.ones(DIM),
        },
        {"window": 112, "stride": 56, "short_side": 112},
    )
    _save(
        folder / "dpt.safetensors",
        {
            "conv_depth.weight": torch.randn(16, 2 * DIM * 4, 1, 1),
            "conv_depth.bias": torch.randn(16),
        },
        {"height": 112, "width": 112, "rows": [0, 112], "columns": [0, 112]},
    )


def _save(path: Path, tensors: dict[str, torch.Tensor], geometry: Any = None) -> None:
    save_file(tensors, path, {"geometry": json.dumps(geometry)} if geometry else None)


@torch.inference_mode()
def _prototypes(backbone: VisionTransformer) -> dict[str, torch.Tensor]:
    """Return a nearest-prototype classifier of the first scenes' features."""
    weight, bias = torch.randn(CLASSES, 2 * DIM) * 0.01, torch.full((CLASSES,), -100.0)
    candidates = get_source("scenes")("cls", 1).samples()
    for sample in (next(candidates) for _ in range(8)):
        tokens = backbone.norm(
            backbone.extract(torch.from_numpy(sample.inputs), (DEPTH - 1,))[0, 0]
        )
        pooled = torch.cat([tokens[0], tokens[1:].mean(dim=0)])
        weight[int(sample.truth)] = pooled
        bias[int(sample.truth)] = -(pooled @ pooled) / 2
    return {"weight": weight, "bias": bias}


def toy_recipe(folder: Path, codecs: dict[str, Any], **changes: Any) -> Recipe:
    """The recipe over the networks in `folder`; `codecs` is {name: (parameter_name, levels, ...)}.

    Every codec's entry is as in a recipe, but for its quantiser, which fits the toy's features.
    """
    tasks = {}
    for seed, (task, layers) in enumerate((("cls", 1), ("seg", 1), ("dpt", 4)), start=1):
        tasks[task] = {
            "source": {"kind": "scenes", "seed": seed, "options": {}},
            "blocks": list(range(layers)) if layers > 1 else [DEPTH - 1],
            "head": str(folder / f"{task}.safetensors"),
            "codecs": {
                name: {
                    "quantizer": {
                        "kind": "uniform",
                        "bits": 8 if "hyperprior" in name else 10,
                        "lo": [-6.0] * layers,
                        "hi": [6.0] * layers,
                    },
                    **entry,
                }
                for name, entry in codecs.items()
            },
        }
    return Recipe.from_dict(
        {
            "name": "toy",
            "summary": "three scenes and a random backbone",
            "sources_per_task": 3,
            "group_size": 2,
            "backbone": {"weights": str(folder / "backbone.safetensors"), "num_heads": HEADS},
            "tasks": tasks,
        }
        | changes
    )


def tree(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def qp(*levels: float) -> dict[str, Any]:
    """Return the recipe entry of a codec with QPs."""
    return {"parameter_name": "qp", "levels": list(levels)}


QPS = qp(14, 26, 38, 50)
TEN_QPS = qp(*range(14, 51, 4))


def write_toml(recipe: Recipe, path: Path) -> Path:
    """Write a recipe as a TOML file for `load_recipe`."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            known = {key: entry for key, entry in value.items() if entry is not None}
            return "{" + ", ".join(f"{key} = {text(entry)}" for key, entry in known.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(text, value)) + "]"
        return json.dumps(value)

    path.write_text("\n".join(f"{key} = {text(entry)}" for key, entry in recipe.to_dict().items()))
    return path


LAMBDAS = tuple(0.1 / 2**level for level in range(10))


def write_models(folder: Path) -> None:
    """Write a ladder of ten small random hyperpriors."""
    torch.manual_seed(1)
    models = []
    for lmbda in LAMBDAS:
        module = ScaleHyperprior(n=4, m=6, stages=2)
        state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
        models.append((lmbda, HyperpriorWeights.from_state(state, MINI_PAD)))
    write_ladder(folder / "models.safetensors", "toy", models)
