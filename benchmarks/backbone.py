"""What DINOv2's ViT-g costs on a CPU: memory to load it and to run one image, and seconds.

    python benchmarks/backbone.py [--folder DIR] [--precision bfloat16] [--depth 40]

Random weights are written to a folder (4.5 GB at a time, removed afterwards), first as the
official ``.pth``, then as the Hub's sharded safetensors; each is loaded and run in a process of its
own, whose greatest resident memory is what is reported. Memory is compared with the size of the
weights, time with that of the bare matrix products and attention of the same shapes. Exits with 1
when a limit is not met. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measuring import least, peak
from results import Result, figure, run

DIM, HIDDEN, GRID, PATCH, HEADS = 1536, 4096, 37, 14, 24
SIZES = {"cls": (224, 224), "seg": (518, 518), "dpt": (490, 644)}
SHARD_BLOCKS = 10


def write_official(path: Path, depth: int) -> None:
    """Write random weights in the official layout."""
    import torch

    from cfqa_data.builders.backbones.dinov2 import VisionTransformer

    torch.manual_seed(0)
    with torch.device("meta"):
        empty = VisionTransformer(DIM, depth, HEADS, HIDDEN, GRID, PATCH, swiglu=True).state_dict()
    state = {}
    for name, tensor in empty.items():
        state[name] = torch.empty(tensor.shape).normal_(std=0.02)
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    torch.save(state, path)


def write_hub(folder: Path, official: Path) -> None:
    """Write the same weights in the Hub's layout, a few blocks per shard."""
    import torch
    from safetensors.torch import save_file

    from cfqa_data.builders.backbones.naming import Naming

    state, naming = torch.load(official, mmap=True, weights_only=True), Naming(hub=True)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        block = int(name.split(".")[1]) if name.startswith("blocks.") else 0
        shard = shards.setdefault(f"model-{block // SHARD_BLOCKS:05}.safetensors", {})
        parts = naming(name)
        shard.update(zip(parts, tensor.chunk(len(parts)), strict=True))
    for file, tensors in shards.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    places = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def bare(tokens: int, depth: int, precision: str) -> float:
    """Return the seconds of all blocks' matrix products and attention alone."""
    import torch
    from torch.nn import functional as F

    from cfqa_data.builders.backbones.dinov2 import PRECISIONS

    dtype = PRECISIONS[precision]
    x, hidden = torch.randn(tokens, DIM, dtype=dtype), torch.randn(tokens, HIDDEN, dtype=dtype)
    shapes = [(3 * DIM, DIM), (DIM, DIM), (2 * HIDDEN, DIM), (DIM, HIDDEN)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    heads = torch.randn(3, 1, HEADS, tokens, DIM // HEADS).to(dtype)

    def block() -> None:
        for weight in weights:
            F.linear(x if weight.shape[1] == DIM else hidden, weight)
        F.scaled_dot_product_attention(*heads)

    with torch.inference_mode():
        block()
        return depth * least(block, 5)


def child(path: Path, task: str, precision: str) -> dict[str, float]:
    """Load the weights, run one image, and return seconds and bytes of memory."""
    import torch

    from cfqa_data.builders.backbones.dinov2 import load_backbone

    began = time.perf_counter()
    backbone = load_backbone(path)
    loaded, loading = peak(), time.perf_counter() - began
    depth = len(backbone.blocks)
    blocks = [depth * k // 4 - 1 for k in (1, 2, 3, 4)] if task == "dpt" else [depth - 1]
    images = torch.randn(1, 3, *SIZES[task])
    first = least(lambda: backbone.extract(images, blocks, precision), 1)
    again = least(lambda: backbone.extract(images, blocks, precision), 1)
    run_peak = peak()  # before the yardstick takes memory of its own
    tokens = 1 + images.shape[2] * images.shape[3] // PATCH**2
    return {
        "weights": sum(4 * tensor.numel() for tensor in backbone.state_dict().values()),
        "loaded": loaded,
        "load_s": loading,
        "run": run_peak,
        "first_s": first,
        "again_s": again,
        "bare_s": bare(tokens, depth, precision),
    }


def in_child(path: Path, task: str, precision: str) -> dict[str, float]:
    """Run `child` in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path), task, precision]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def of_layout(layout: str, path: Path, tasks: list[str], precision: str) -> Iterator[Result]:
    """Yield the figures of the weights in one layout."""
    rows = {task: in_child(path, task, precision) for task in tasks}
    for task, row in rows.items():
        name = f"ViT-g, {layout}, {task}"
        yield Result(f"{name}: load", row["load_s"], "s")
        yield Result(f"{name}: first image", row["first_s"], "s", "bare products", row["bare_s"])
        yield Result(f"{name}: an image", row["again_s"], "s", "bare products", row["bare_s"])
    loaded = max(row["loaded"] for row in rows.values()) / 1e9
    weights = next(iter(rows.values()))["weights"] / 1e9
    yield figure(f"ViT-g, {layout}: memory to load", loaded, weights)
    run_peak = max(row["run"] for row in rows.values()) / 1e9
    yield figure(f"ViT-g, {layout}: memory with an image", run_peak, weights)
    ours, bare = (sum(row[key] for row in rows.values()) for key in ("again_s", "bare_s"))
    yield figure(f"ViT-g, {layout}: images of {len(SIZES)} sizes", ours, bare)


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield the figures of both layouts."""
    depth, tasks = (2, ["cls"]) if given.quick else (given.depth, list(SIZES))
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        official, hub = Path(scratch) / "vitg14.pth", Path(scratch) / "hub"
        hub.mkdir()
        write_official(official, depth)
        if given.layout != "hub":
            yield from of_layout("official layout", official, tasks, given.precision)
        if given.layout != "official":
            write_hub(hub, official)
            official.unlink()
            yield from of_layout("Hub layout", hub, tasks, given.precision)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="where 10 GB are free (default: temporary)")
    parser.add_argument("--layout", choices=("official", "hub"), help="default: both")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--depth", type=int, default=40, help="blocks (default 40, ViT-g)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(Path(sys.argv[2]), *sys.argv[3:])))
    else:
        sys.exit(run(__doc__, measure, options))
