"""What DINOv2's ViT-g costs on a CPU: memory to load it and to run one image, and seconds.

    python benchmarks/backbone.py [--folder DIR] [--precision bfloat16] [--depth 40] [--json]

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
from collections.abc import Callable
from pathlib import Path

DIM, HIDDEN, GRID, PATCH, HEADS = 1536, 4096, 37, 14, 24
SIZES = {"cls": (224, 224), "seg": (518, 518), "dpt": (490, 644)}
LOAD_LIMIT = 1.3
"""Greatest memory while loading, over the size of the weights."""
RUN_LIMIT = 9e9
"""Greatest memory in bytes with one image run."""
SHARD_BLOCKS = 10


def peak() -> int:
    """Return this program's greatest resident memory so far, in bytes, mapped files included."""
    # Not getrusage: its figure survives exec, so a child starts with its parent's.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def write_official(path: Path, depth: int) -> None:
    """Write random weights in the official layout."""
    import torch

    from cfqa_data.builders.backbone import Backbone

    torch.manual_seed(0)
    with torch.device("meta"):
        empty = Backbone(DIM, depth, HEADS, HIDDEN, GRID, PATCH, swiglu=True).state_dict()
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

    from cfqa_data.builders.naming import Naming

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


def least(call: Callable[[], object], repeats: int) -> float:
    """Return the least wall time of a call, in seconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def bare(tokens: int, depth: int, precision: str) -> float:
    """Return the seconds of all blocks' matrix products and attention alone."""
    import torch
    from torch.nn import functional as F

    from cfqa_data.builders.backbone import PRECISIONS

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

    from cfqa_data.builders.backbone import load_backbone

    before, began = peak(), time.perf_counter()
    backbone = load_backbone(path)
    loaded, seconds = peak(), time.perf_counter() - began
    depth = len(backbone.blocks)
    blocks = [depth * k // 4 - 1 for k in (1, 2, 3, 4)] if task == "dpt" else [depth - 1]
    images = torch.randn(1, 3, *SIZES[task])
    first = least(lambda: backbone.extract(images, blocks, precision), 1)
    again = least(lambda: backbone.extract(images, blocks, precision), 1)
    run = peak()  # before the yardstick takes memory of its own
    tokens = 1 + images.shape[2] * images.shape[3] // PATCH**2
    return {
        "weights": sum(4 * tensor.numel() for tensor in backbone.state_dict().values()),
        "before": before,
        "loaded": loaded,
        "load_s": seconds,
        "run": run,
        "first_s": first,
        "again_s": again,
        "bare_s": bare(tokens, depth, precision),
    }


def measure(path: Path, task: str, precision: str) -> dict[str, float]:
    """Run `child` in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path), task, "--precision", precision]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def main() -> int:
    """Print a table; return 1 if a limit is not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where 10 GB are free (default: temporary)")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--depth", type=int, default=40, help="blocks (default 40, ViT-g)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("WEIGHTS", "TASK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(Path(given.child[0]), given.child[1], given.precision)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        official, hub = Path(scratch) / "vitg14.pth", Path(scratch) / "hub"
        hub.mkdir()
        write_official(official, given.depth)
        layouts = {"official": official, "hub": hub}
        for layout, path in layouts.items():
            if layout == "hub":
                write_hub(hub, official)
                official.unlink()
            for task in SIZES:
                row = measure(path, task, given.precision)
                rows.append({"layout": layout, "task": task, **row})
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"weights {rows[0]['weights'] / 1e9:.2f} GB, {given.precision}, {given.depth} blocks")
        print(
            f"{'layout':10}{'task':6}{'load':>8}{'peak':>10}{'/ weights':>10}"
            f"{'run, peak':>11}{'first':>9}{'again':>9}{'bare':>9}{'x':>6}"
        )
        for row in rows:
            print(
                f"{row['layout']:10}{row['task']:6}{row['load_s']:6.2f} s"
                f"{row['loaded'] / 1e9:7.2f} GB{row['loaded'] / row['weights']:10.2f}"
                f"{row['run'] / 1e9:8.2f} GB"
                f"{row['first_s']:7.1f} s{row['again_s']:7.1f} s{row['bare_s']:7.1f} s"
                f"{row['again_s'] / row['bare_s']:6.2f}"
            )
    missed = [
        row
        for row in rows
        if row["loaded"] >= LOAD_LIMIT * row["weights"] or row["run"] >= RUN_LIMIT
    ]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
