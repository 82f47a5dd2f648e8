"""One full-size item of each task through the whole pipeline: seconds per stage, and memory.

    python benchmarks/paper_item.py [--task cls] [--levels 2] [--depth 40]

Made for it, in a folder that is removed afterwards: a ViT-g/14 and the three heads with random
weights in the official layouts (4.5 GB), and one image of each data set in its own layout. The
codecs are those that need no binary, at some of their levels, the learned ones with the models of
`mini`. Everything runs in this process on one thread, as a worker does. Exits with 1 when the
memory limit is not met. Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from backbone import DIM, write_official
from measuring import peak, seconds
from PIL import Image
from results import Result, figure
from results import run as run_benchmark

from cfqa_data.builders.pipeline.build import STAGES
from cfqa_data.builders.pipeline.context import BuildContext, Models
from cfqa_data.builders.pipeline.pack import pack
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.format.format_1 import LAYERS, TASKS
from cfqa_data.format.layout import Layout
from cfqa_data.format.resources import ROOT_VARIABLE
from cfqa_data.recipe.load import Recipe, load_recipe

RANGE = 4.0  # of the random backbone's features


def write_heads(folder: Path) -> None:
    """Write random heads as they are published."""
    torch.manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape) * 0.02

    torch.save(
        {"weight": normal(1000, 2 * DIM), "bias": torch.zeros(1000)},
        folder / "dinov2_vitg14_linear_head.pth",
    )
    seg = {
        "conv_seg.weight": normal(21, DIM, 1, 1),
        "conv_seg.bias": torch.zeros(21),
        "bn.weight": torch.ones(DIM),
        "bn.bias": torch.zeros(DIM),
        "bn.running_mean": torch.zeros(DIM),
        "bn.running_var": torch.ones(DIM),
    }
    dpt = {"conv_depth.weight": normal(256, 8 * DIM, 1, 1), "conv_depth.bias": torch.zeros(256)}
    for name, tensors in (("voc2012_linear", seg), ("nyu_linear4", dpt)):
        state = {f"decode_head.{key}": tensor for key, tensor in tensors.items()}
        torch.save({"state_dict": state}, folder / f"dinov2_vitg14_{name}_head.pth")


def picture(height: int, width: int, seed: int) -> Image.Image:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_images(root: Path) -> None:
    """Write one image of each data set in its layout; the cls label is filled in later."""
    val = root / "imagenet" / "val"
    voc, nyu = root / "VOCdevkit" / "VOC2012", root / "nyu" / "office"
    for folder in (val, voc / "JPEGImages", voc / "SegmentationClass", nyu):
        folder.mkdir(parents=True)
    picture(375, 500, 0).save(val / "ILSVRC2012_val_00000001.JPEG", quality=95)
    picture(375, 500, 1).save(voc / "JPEGImages" / "2007_000001.jpg", quality=95)
    mask = Image.fromarray(
        np.repeat(np.arange(25, dtype=np.uint8) % 21, 375 * 20).reshape(-1, 375).T
    )
    mask.putpalette([value for value in range(256) for _ in range(3)])
    mask.save(voc / "SegmentationClass" / "2007_000001.png")
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000001\n")
    picture(480, 640, 2).save(nyu / "rgb_00001.jpg", quality=95)
    depth = np.linspace(700, 9000, 480 * 640).reshape(480, 640).astype(np.uint16)
    Image.fromarray(depth).save(nyu / "sync_depth_00001.png")
    line = "office/rgb_00001.jpg office/sync_depth_00001.png 518.8579\n"
    (root / "nyu" / "nyu_test.txt").write_text(line)


def item_recipe(root: Path, depth: int) -> Recipe:
    """The paper's recipe with one source per task and the open codecs."""
    mini, paper = load_recipe("mini"), load_recipe("paper", fitted=False)
    tasks = {}
    for name, task in paper.tasks.items():
        ladders = {}
        for codec, ladder in mini.tasks[name].codecs.items():
            layers = LAYERS[name]
            bits = 8 if ladder.models else 10
            quantizer = paper.tasks[name].codecs["hm"].quantizer
            quantizer = replace(quantizer, bits=bits, lo=(-RANGE,) * layers, hi=(RANGE,) * layers)
            ladders[codec] = replace(ladder, quantizer=quantizer)
        source = task.source
        if name == "cls":
            source = replace(
                source,
                options={
                    **source.options,
                    "labels": str(root / "labels.txt"),
                    "list": str(root / "labels.txt"),
                },
            )
        blocks = tuple((block + 1) * depth // 40 - 1 for block in task.blocks)
        tasks[name] = replace(task, codecs=ladders, source=source, blocks=blocks)
    return replace(paper, name="paper-item", sources_per_task=1, tasks=tasks)


def label_the_image(recipe: Recipe, root: Path) -> None:
    """Give the cls image the label that the random networks see in it: else it is not selected."""
    labels = root / "labels.txt"
    labels.write_text("ILSVRC2012_val_00000001.JPEG 0\n")
    models = Models(recipe)
    sample = next(iter(models.source("cls").samples()))
    feature = torch.from_numpy(models.features("cls", sample.inputs))
    label = int(models.task("cls").predict(feature).argmax())
    labels.write_text(f"ILSVRC2012_val_00000001.JPEG {label}\n")


def trimmed(recipe: Recipe, levels: int) -> Recipe:
    """Keep some levels of each ladder, evenly from first to last; for this measurement only."""
    for task in recipe.tasks.values():
        for ladder in task.codecs.values():
            places = np.linspace(0, len(ladder.levels) - 1, levels).round().astype(int)
            kept = tuple(ladder.levels[place] for place in places)
            object.__setattr__(ladder, "levels", kept)
    return recipe


def run(recipe: Recipe, out: Path) -> Iterator[Result]:
    """Run every item, in the pipeline's order, and yield what each took."""
    plan = Plan(recipe)
    context = BuildContext(plan, Layout(out))
    for stage in (stage(context) for stage in STAGES):
        for item in stage.items():
            yield Result(f"full size, {item}", seconds(partial(stage.run, item)), "s")
    yield Result("full size, pack", seconds(lambda: pack(context, lambda n=1: None)), "s")
    yield figure("an item of full size: memory", peak() / 1e9)


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Make weights and images, and yield what the items took."""
    torch.set_num_threads(1)
    depth, wanted = (4, ["cls"]) if given.quick else (given.depth, given.task or list(TASKS))
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root = Path(name)
        (root / "weights").mkdir()
        write_official(root / "weights" / "dinov2_vitg14_pretrain.pth", depth)
        write_heads(root / "weights")
        write_images(root)
        os.environ[ROOT_VARIABLE] = name
        recipe = item_recipe(root, depth)
        label_the_image(recipe, root)
        recipe = replace(recipe, tasks={task: recipe.tasks[task] for task in wanted})
        yield from run(trimmed(recipe, given.levels), root / "out")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", action="append", choices=list(TASKS), help="default: all three")
    parser.add_argument("--levels", type=int, default=2, help="of each ladder")
    parser.add_argument("--depth", type=int, default=40, help="blocks; a multiple of 4")
    parser.add_argument("--folder", type=Path, help="where to put the weights; default: temporary")


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure, options))
