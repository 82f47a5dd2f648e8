"""Targets of the fuzzer: inputs of builds, imports and evaluations."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_files import small_dataset
from fuzzing import Target, register
from mock_dataset import toy_recipe_dict
from mutations import in_header, in_json, in_lines, in_toml, in_zip, of_bytes
from safetensors.torch import save

import cfqa_data
from cfqa_data.builders.importing.files import load_feature
from cfqa_data.codecs.hyperprior.checkpoint import read_checkpoint
from cfqa_data.codecs.hyperprior.codec import Hyperprior
from cfqa_data.codecs.hyperprior.module import ScaleHyperprior
from cfqa_data.codecs.hyperprior.weights import (
    MINI_PAD,
    HyperpriorWeights,
    read_ladder,
    write_ladder,
)
from cfqa_data.errors import CfqaError
from cfqa_data.eval.account import Scored
from cfqa_data.eval.features.datasets import dataset_identity
from cfqa_data.eval.metrics import create_metric
from cfqa_data.eval.paper_logs import find_logs, read_log, read_series
from cfqa_data.eval.provenance import provenance_of
from cfqa_data.eval.results import make_evaluation
from cfqa_data.eval.score_file import ScoreFile
from cfqa_data.eval.score_reading import read_evaluation
from cfqa_data.format.checkpoints import check_tensors, read_tensors
from cfqa_data.recipe.load import load_recipe

__all__: list[str] = []

SHAPE = (1, 1, 9, 16)


def _write_all(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def _saved(what: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(what, file, **options)
    return file.getvalue()


# Weights of backbones and heads


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 5), "a.bias": torch.randn(4), "count": torch.tensor(3)}


def _checkpoints(folder: Path) -> dict[str, bytes]:
    state = _state()
    return _write_all(
        folder,
        {
            "plain.pth": _saved(state),
            "nested.pth": _saved({"state_dict": state, "epoch": 3, "meta": {"name": "x"}}),
            "transposed.pth": _saved({**state, "a.weight": torch.randn(5, 4).T}),
        },
    )


def _older(folder: Path) -> dict[str, bytes]:
    return _write_all(folder, {"old.pth": _saved(_state(), _use_new_zipfile_serialization=False)})


def _safetensors(folder: Path) -> dict[str, bytes]:
    return _write_all(folder, {"model.safetensors": save(_state(), {"format": "pt"})})


def _index(folder: Path) -> dict[str, bytes]:
    parts = [{key: value} for key, value in _state().items()]
    places = {}
    for number, part in enumerate(parts):
        name = f"model-{number}.safetensors"
        (folder / name).write_bytes(save(part))
        places |= dict.fromkeys(part, name)
    facts = {"metadata": {"total_size": 1}, "weight_map": places}
    return _write_all(folder, {"model.safetensors.index.json": json.dumps(facts).encode()})


def _read_weights(name: str, data: bytes, folder: Path) -> None:
    state = read_tensors(folder / name)
    check_tensors(state, _state(), name, "toy")
    for tensor in state.values():
        tensor.double().sum().item()


# Hyperpriors


def _compressai(folder: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    state = dict(ScaleHyperprior(2, 3, 2).state_dict())
    return _write_all(folder, {"a.pth": _saved(state), "b.pth": _saved({"state_dict": state})})


def _read_compressai(name: str, data: bytes, folder: Path) -> None:
    Hyperprior(read_checkpoint(folder / name))


def _ladders(folder: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    state = {k: v.numpy() for k, v in ScaleHyperprior(2, 3, 2).state_dict().items()}
    path = folder / "ladder.safetensors"
    write_ladder(path, "toy", [(0.1, HyperpriorWeights.from_state(state, MINI_PAD))])
    return {path.name: path.read_bytes()}


def _read_ladder(name: str, data: bytes, folder: Path) -> None:
    for index, (_, weights) in enumerate(read_ladder(folder / name)[1]):
        Hyperprior(weights, index)


# Releases, recipes, scores


def _features(folder: Path) -> dict[str, bytes]:
    made = {}
    for version in ((1, 0), (2, 0)):
        file = io.BytesIO()
        values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
        np.lib.format.write_array(file, values, version)
        made[f"{version[0]}.npy"] = file.getvalue()
    return _write_all(folder, made)


def _read_feature(name: str, data: bytes, folder: Path) -> None:
    load_feature(folder / name, SHAPE)


def _recipes(folder: Path) -> dict[str, bytes]:
    from mutations import _toml

    facts = toy_recipe_dict(2)
    lines = [f"{json.dumps(key)} = {_toml(value)}" for key, value in facts.items()]
    small = '{extends} = "nano"\nname = "x"\n\n[tasks.cls.source]\nkind = "scenes"\nseed = 3\n'
    small = small.replace("{extends}", "extends")
    return _write_all(folder, {"toy.toml": "\n".join(lines).encode(), "small.toml": small.encode()})


def _read_recipe(name: str, data: bytes, folder: Path) -> None:
    load_recipe(folder / name)


def _scores(folder: Path) -> dict[str, bytes]:
    root = small_dataset(folder / "data")
    dataset = cfqa_data.load(root)
    metrics = [create_metric("mse"), create_metric("cosine")]
    values = np.random.default_rng(0).random((len(dataset), 2))
    facts = {"dataset": dataset_identity(dataset)}
    evaluation = make_evaluation(dataset.labels, metrics, values, "distortion", {}, **facts)
    evaluation.write(folder / "a.parquet")
    begun = {metric.name: provenance_of(metric, "highest", "") for metric in metrics}
    scored = Scored(values, {"mse": "one at a time"}, {"mse"}, begun)
    _score_file(folder, dataset).save(scored, now=True)
    return {name: (folder / name).read_bytes() for name in ("a.parquet", "b.parquet.unfinished")}


def _score_file(folder: Path, dataset: cfqa_data.Dataset) -> ScoreFile:
    metrics = [create_metric("mse"), create_metric("cosine")]
    begun = {metric.name: provenance_of(metric, "highest", "") for metric in metrics}
    rows = np.arange(len(dataset))
    return ScoreFile(folder / "b.parquet", dataset, rows, metrics, begun)


def _read_scores(name: str, data: bytes, folder: Path) -> None:
    dataset = cfqa_data.load(folder / "data")
    if name == "a.parquet":
        read_evaluation(dataset, folder / name)
    else:
        _score_file(folder, dataset).resume()


def _logs(folder: Path) -> dict[str, bytes]:
    lines = ["root_path:  /gdata/decoded"]
    for qp in (2, 4):
        lines.append(f"hm uniform 0 10 {qp}")
        lines += [f"img_{n}.npy {n + 1} 0.0{n}123456 0.90{n}0 0.990{n}" for n in range(4)]
        lines += ["Accuracy: 95.0000", "Feature MSE: 0.12345678", ""]
    return _write_all(folder, {"hm/cls.txt": "\n".join(lines).encode()})


def _read_logs(name: str, data: bytes, folder: Path) -> None:
    try:
        read_log(folder / name)
    finally:
        for paths in find_logs(folder).values():
            try:
                read_series(paths)
            except CfqaError as error:
                told = error
                break
        else:
            told = None
    if told:
        raise told


BOTH = (in_zip, of_bytes)
for target in (
    Target("checkpoints", _checkpoints, _read_weights, BOTH, in_place=True, cost=2),
    Target("checkpoints-old", _older, _read_weights, in_place=True, cost=2),
    Target("weights", _safetensors, _read_weights, (in_header, of_bytes), in_place=True),
    Target("weights-index", _index, _read_weights, (in_json, of_bytes), in_place=True),
    Target("compressai", _compressai, _read_compressai, BOTH, in_place=True, cost=8),
    Target("ladders", _ladders, _read_ladder, (in_header, of_bytes), in_place=True, cost=2),
    Target("release", _features, _read_feature, in_place=True),
    Target("recipe", _recipes, _read_recipe, (in_toml, in_toml, of_bytes), in_place=True, cost=2),
    Target("scores", _scores, _read_scores, in_place=True, writes=True, cost=8),
    Target("logs", _logs, _read_logs, (in_lines, of_bytes), in_place=True),
):
    register(target)
