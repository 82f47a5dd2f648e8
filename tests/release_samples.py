"""A small release of the benchmark: its layout, real HM and VTM streams, and its logs.

The streams are in `release_streams.safetensors`: of HM 18.0 and VTM 23.13, with the SHA-256 of the
samples that their own decoders gave. Whoever has the four programs makes them again by
`python tests/release_samples.py`, with CFQA_HM_ENCODER, CFQA_HM_DECODER, CFQA_VTM_ENCODER and
CFQA_VTM_DECODER set.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

from cfqa_data.codecs import get_codec
from cfqa_data.format.format_1 import LAYERS, TASKS, VIEWS
from cfqa_data.format.packing import pack, plane_shape
from cfqa_data.format.quantizers import quantizer_from_dict
from cfqa_data.format.storage import write_tensors
from cfqa_data.recipe.load import load_recipe

__all__ = ["IDS", "LAMBDAS", "QPS", "SHAPES", "feature", "stream_hashes", "write_release"]

STREAMS = Path(__file__).parent / "release_streams.safetensors"
SHAPES = {name: (len(VIEWS[name]), LAYERS[name], 9, 16) for name in TASKS}
IDS = {
    "cls": ["ILSVRC2012_val_00000293", "ILSVRC2012_val_00002138"],
    "seg": ["2007_000033", "2007_000042"],
    "dpt": ["kitchen_0019a_rgb_00411", "office_0008_rgb_00012"],
}
QPS = list(range(2, 22, 2))
LAMBDAS = [0.015, 0.01, 0.007, 0.006, 0.005, 0.004, 0.003, 0.0025, 0.001, 0.0005]


@functools.cache
def ranges(task: str) -> tuple[list[float], list[float]]:
    """Return lo and hi per layer, as published."""
    ladder = load_recipe("paper", fitted=False).tasks[task].codecs["hm"]
    data = ladder.quantizer.to_dict()
    return data["lo"], data["hi"]


@functools.cache
def feature(task: str, index: int) -> np.ndarray:
    """Return an original, float32 (N, C, T, D), most of it in the middle of the published range."""
    rng = np.random.default_rng([index, *task.encode()])
    lo, hi = (np.array(side)[:, None, None] for side in ranges(task))
    spread = rng.normal(0.7, 0.05, SHAPES[task]) + 0.1 * rng.standard_normal((*SHAPES[task][:3], 1))
    return (lo + (hi - lo) * np.clip(spread, 0, 1)).astype(np.float32)


def table(task: str) -> np.ndarray:
    """Return a k-means table, float32 (C, 200): not all centres are used."""
    lo, hi = (np.array(side)[:, None] for side in ranges(task))
    return (lo + (hi - lo) * np.linspace(0, 1, 200) ** 1.5).astype(np.float32)


@functools.cache
def learned(task: str, index: int, level: int) -> np.ndarray:
    """Return a fake output of a hyperprior: centres, with an error that grows by level."""
    rng = np.random.default_rng([index, level, *task.encode()])
    original = feature(task, index)
    result = np.empty_like(original)
    for layer, centers in enumerate(table(task)):
        noise = (
            (level + 1) * 0.004 * np.ptp(centers) * rng.standard_normal(original[:, layer].shape)
        )
        nearest = np.abs((original[:, layer] + noise)[..., None] - centers).argmin(-1)
        result[:, layer] = centers[nearest]
    return result


def score(task: str, index: int, level: int) -> float:
    """Return the score that the logs print."""
    harm = (level + 1) * (index + 1) / 37
    return {"cls": 1.0 + level, "seg": round(88 - 9 * harm, 4), "dpt": round(0.31 + harm, 8)}[task]


@functools.cache
def streams() -> dict[str, bytes]:
    """Return the real streams by "codec/task/qp/source"."""
    with safe_open(STREAMS, framework="numpy") as file:
        return {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118


def stream_hashes() -> dict[str, str]:
    """Return the SHA-256 of the uint16 samples that the reference decoders returned."""
    with safe_open(STREAMS, framework="numpy") as file:
        hashes: dict[str, str] = json.loads(file.metadata()["cfqa"])
    return hashes


def write_release(root: Path, *, tasks: tuple[str, ...] = tuple(TASKS)) -> Path:
    """Write a whole release into `root`/cfqa_dataset and its logs into `root`/logs."""
    data = root / "cfqa_dataset"
    for task in tasks:
        for index, name in enumerate(IDS[task]):
            _save(data / "org_feat" / task / f"{name}.npy", feature(task, index))
            for codec in ("hyperprior_multi_task", "hyperprior_task_specific"):
                for level, value in enumerate(LAMBDAS):
                    folder = data / "compressed_feat" / codec / task / f"lambda{value}"
                    _save(folder / f"{name}.npy", learned(task, index, level))
    for key, stream in streams().items():
        codec, task, qp, name = key.split("/")
        if task in tasks:
            path = data / "compressed_feat" / codec / task / f"QP{qp}" / f"{name}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream)
    return data


def write_logs(root: Path, mse: dict[tuple[str, str, str, float], float]) -> Path:
    """Write logs of the codecs in `mse`: (codec, task, source, parameter) -> the MSE to print."""
    for codec, task in sorted({(codec, task) for codec, task, _, _ in mse}):
        lines = []
        for level, parameter in enumerate(QPS if codec in ("hm", "vtm") else LAMBDAS):
            lines.append(f"{codec} uniform 0 10 {parameter}")
            for index, name in enumerate(IDS[task]):
                told = mse[codec, task, name, parameter]
                lines.append(f"{name}.npy {score(task, index, level)} {told:.8f} 0.9000 0.9000")
            lines.append("Feature MSE: 0.1")
        path = root / codec / f"{task}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    return root


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _make_streams() -> None:
    """Encode every original with the reference encoders, and hash the planes of their decoders."""
    made, hashes = {}, {}
    for codec in ("hm", "vtm"):
        decoder = os.environ[f"CFQA_{codec.upper()}_DECODER"]
        for task in TASKS:
            lo, hi = ranges(task)
            quantizer = quantizer_from_dict(
                {"kind": "paper_uniform", "bits": 10, "lo": lo, "hi": hi}
            )
            for index, name in enumerate(IDS[task]):
                plane = pack(quantizer.quantize(feature(task, index)))
                for qp in QPS:
                    key = f"{codec}/{task}/{qp}/{name}"
                    stream = get_codec(codec).encode(plane, qp)
                    made[key] = np.frombuffer(stream, np.uint8)
                    hashes[key] = hashlib.sha256(_decoded(decoder, stream)).hexdigest()
                    assert plane.shape == plane_shape(SHAPES[task])
    write_tensors(STREAMS, made, hashes)


def _decoded(decoder: str, stream: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "x.bin"), Path(folder, "x.yuv")
        source.write_bytes(stream)
        command = [decoder, "-b", str(source), "-o", str(target), "--OutputBitDepth=10"]
        subprocess.run(command, check=True, capture_output=True)
        return target.read_bytes()


if __name__ == "__main__":
    _make_streams()
