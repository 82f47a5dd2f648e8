"""`cfqa build` of a recipe on the published data's layouts, weights and heads, all made small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pipeline_toy import LAMBDAS, write_models
from safetensors.numpy import load_file
from safetensors.torch import save_file

from cfqa_data.builders.backbones.dinov2 import VisionTransformer, load_backbone
from cfqa_data.builders.pipeline import context
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.label import score
from cfqa_data.builders.pipeline.select import accepted_samples
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.builders.sources import get_source
from cfqa_data.cli import main
from cfqa_data.errors import BuildError
from cfqa_data.eval import metrics
from cfqa_data.recipe.load import load_recipe

DIM, BLOCKS, HEADS = 16, 4, 2
LAYERS = {"cls": 1, "seg": 1, "dpt": 4}
SHAPES = {"cls": [1, 1, 257, DIM], "seg": [2, 1, 1370, DIM], "dpt": [2, 4, 1611, DIM]}
SYNSETS = [f"n{1_440_764 + 1357 * index:08d}" for index in range(1000)]
#: What the list of cls images names, in its order: label, and what the head says of it.
CLS = {5: (31, "right"), 2: (400, "wrong"), 9: (31, "right"), 4: (999, "right"), 7: (8, "right")}
#: Height and width; the second gives one window and the third three.
VOC = {"2007_000033": (37, 50), "2007_000042": (40, 40), "2007_000061": (25, 50)}
VOC |= {"2007_000123": (50, 33), "2007_000129": (36, 49)}
NYU = ["kitchen_rgb_00003", "office_rgb_00001", "office_rgb_00002"]
EMPTY = "office_rgb_00001"


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def val(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def nyu_files(root: Path, name: str) -> tuple[Path, Path]:
    scene, number = name.split("_rgb_")
    folder = root / "nyu" / scene
    return folder / f"rgb_{number}.jpg", folder / f"sync_depth_{number}.png"


def write_images(root: Path) -> None:
    """One folder of ImageNet with its development kit, VOC's kit, and NYUv2 in scenes."""
    folder = root / "imagenet" / "val"
    data = root / "imagenet" / "ILSVRC2012_devkit_t12" / "data"
    for path in (folder, data):
        path.mkdir(parents=True)
    modes = dict.fromkeys(CLS, "RGB") | {5: "CMYK", 4: "L"}
    for number, mode in modes.items():
        Image.fromarray(noise(number, 80, 90, 3)).convert(mode).save(
            folder / f"{val(number)}.JPEG", "JPEG"
        )
    ids = {synset: (label * 7 + 118) % 1000 + 1 for label, synset in enumerate(SYNSETS)}
    truths = [CLS.get(number, (0, ""))[0] for number in range(1, 11)]
    kit = "".join(f"{ids[SYNSETS[label]]}\n" for label in truths)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(kit)
    (data / "map_clsloc.txt").write_text("".join(f"{s} {i} x\n" for s, i in ids.items()))
    (root / "imagenet" / "list.txt").write_text("".join(f"{val(n)}.JPEG\r\n" for n in CLS))
    voc = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for seed, (name, size) in enumerate(VOC.items()):
        Image.fromarray(noise(seed, *size, 3)).save(voc / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(noise(seed, *size) % 21)
        mask.putpalette(list(range(256)) * 3)
        mask.save(voc / "SegmentationClass" / f"{name}.png")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(VOC))
    lines = []
    for seed, name in enumerate(NYU):
        image, depth = nyu_files(root, name)
        image.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(noise(seed, 12, 16, 3))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(image)
        metres = np.linspace(500 + seed, 9000, 480 * 640).reshape(480, 640).astype(np.uint16)
        Image.fromarray(metres * np.uint16(name != EMPTY)).save(depth)
        lines.append(f"/{image.parent.name}/{image.name} {depth.parent.name}/{depth.name} 518.8\n")
    (root / "nyu" / "nyu_test.txt").write_text("".join(lines))


def write_weights(root: Path) -> None:
    """A backbone and heads as their authors publish them, and learned codecs as this project's."""
    folder = root / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    backbone = VisionTransformer(DIM, BLOCKS, HEADS, 24, grid=37, swiglu=True)
    for name, parameter in backbone.named_parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + float(name.endswith("gamma"))
    backbone.norm.weight.data.fill_(1.0)
    torch.save(backbone.state_dict(), folder / "dinov2_pretrain.pth")
    torch.save(prototypes(root), folder / "linear_head.pth")
    seg = {f"bn.{name}": torch.ones(DIM) for name in ("weight", "running_var")}
    seg |= {f"bn.{name}": torch.zeros(DIM) for name in ("bias", "running_mean")}
    seg |= {"conv_seg.weight": torch.randn(21, DIM, 1, 1), "conv_seg.bias": torch.randn(21)}
    dpt = {"conv_depth.weight": torch.randn(16, 8 * DIM, 1, 1), "conv_depth.bias": torch.randn(16)}
    for name, tensors in (("voc2012", seg), ("nyu", dpt)):
        state = {f"decode_head.{key}": tensor for key, tensor in tensors.items()}
        meta = {"best": np.float32(0.25), "iter": np.int64(38_400)}
        torch.save({"meta": meta, "state_dict": state}, folder / f"{name}_head.pth")
    write_models(folder)
    centres = torch.linspace(-3, 3, 256)
    tables = {task: centres.repeat(layers, 1) for task, layers in LAYERS.items()}
    save_file(tables, folder / "kmeans.safetensors")


@torch.inference_mode()
def prototypes(root: Path) -> dict[str, torch.Tensor]:
    """The published classification head's tensors, right about what `CLS` says is right."""
    backbone = load_backbone(root / "weights" / "dinov2_pretrain.pth", HEADS)
    weight, bias = torch.zeros(1000, 2 * DIM), torch.full((1000,), -1000.0)
    folder = root / "imagenet"
    source = get_source("imagenet")(
        "cls", 0, root=str(folder / "val"), list=str(folder / "list.txt")
    )
    for sample, (label, said) in zip(source.samples(), CLS.values(), strict=True):
        assert int(sample.truth) == label
        tokens = backbone.norm(backbone.extract(torch.from_numpy(sample.inputs), [3])[0, 0])
        pooled = torch.cat([tokens[0], tokens[1:].mean(dim=0)])
        if said == "right":
            weight[label], bias[label] = pooled, -(pooled @ pooled) / 2
    return {"weight": weight, "bias": bias}


CODECS = {
    "cls": ("x265", "hyperprior_task_specific"),
    "seg": ("x265",),  # as its head takes most of the time
    "dpt": ("x265",),
}


def write_recipe(path: Path) -> Path:
    qps = list(range(2, 22, 2))
    text = f"""
        name = "small-paper"
        summary = "the published benchmark's sources, small"
        sources_per_task = 2
        group_size = 1
        [backbone]
        weights = "root://weights/dinov2_pretrain.pth"
        num_heads = {HEADS}
    """
    sources = {
        "cls": ("imagenet", 0, 'root = "root://imagenet/val", list = "root://imagenet/list.txt"'),
        "seg": ("voc2012", 3, 'root = "root://VOCdevkit"'),
        "dpt": ("nyuv2", 1, 'root = "root://nyu"'),
    }
    heads = {"cls": "linear", "seg": "voc2012", "dpt": "nyu"}
    for task, (kind, seed, options) in sources.items():
        layers = LAYERS[task]
        text += f"""
        [tasks.{task}]
        blocks = {[3] if layers == 1 else [0, 1, 2, 3]}
        head = "root://weights/{heads[task]}_head.pth"
        source = {{ kind = "{kind}", seed = {seed}, options = {{ {options} }} }}
        [tasks.{task}.codecs.x265]
        parameter_name = "qp"
        levels = {qps}
        options = {{ preset = "ultrafast" }}
        quantizer = {{ kind = "uniform", bits = 10, lo = {[-5.0] * layers}, hi = {[5.0] * layers} }}
        """
        if "hyperprior_task_specific" not in CODECS[task]:
            continue
        text += f"""
        [tasks.{task}.codecs.hyperprior_task_specific]
        parameter_name = "lambda"
        levels = {list(LAMBDAS)}
        quantizer = {{ kind = "kmeans", bits = 8, centers = "root://weights/kmeans.safetensors" }}
        models = "root://weights/models.safetensors"
        """
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images and weights, which tests copy."""
    folder = tmp_path_factory.mktemp("paper")
    write_images(folder)
    write_weights(folder)
    return folder


@pytest.fixture
def root(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # CKA of 1611 tokens would take most of the time; what metrics say is tested elsewhere.
    quick, create = {"cka": "mse"}, metrics.create_metric
    monkeypatch.setattr(metrics, "create_metric", lambda name: create(quick.get(name, name)))
    folder = tmp_path / "root"
    monkeypatch.setenv("CFQA_ROOT", str(folder))
    shutil.copytree(written, folder)
    write_recipe(tmp_path / "small.toml")
    yield folder
    context._context.cache_clear()


def by_seed(names: list[str], seed: int) -> list[str]:
    names = sorted(names)
    return [names[index] for index in np.random.default_rng(seed).permutation(len(names))]


def expected_sources() -> dict[str, list[str]]:
    two = [name for name in by_seed(list(VOC), 3) if name not in ("2007_000042", "2007_000061")]
    deep = [name for name in by_seed(NYU, 1) if name != EMPTY]
    return {"cls": [val(5), val(4)], "seg": two[:2], "dpt": deep}


def test_bad_images_stop_a_build_and_their_repair_ends_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, expected = tmp_path / "out", expected_sources()
    command = ["build", str(tmp_path / "small.toml"), "-o", str(out), "--root", str(root)]
    command += ["-j", "1"]

    def refused() -> str:
        capsys.readouterr()
        assert main(command) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("cfqa: ")
        return line

    def kept() -> dict[str, int]:
        return {
            path.relative_to(out).as_posix(): path.stat().st_mtime_ns
            for path in out.rglob("*")
            if path.is_file() and path.name not in ("plan.json", "lock")
        }

    image = root / "VOCdevkit/VOC2012/JPEGImages" / f"{expected['seg'][0]}.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    assert f"{image}: cannot be read as an image" in refused()
    selected = kept()
    assert {f".build/sources/{task}.json" for task in ("cls", "dpt")} <= selected.keys()
    image.write_bytes(whole)

    depth_image = nyu_files(root, expected["dpt"][1])[0]
    intact = depth_image.read_bytes()
    depth_image.write_text("version https://git-lfs.github.com/spec/v1\n")
    told = refused()
    assert told.startswith("cfqa: extract dpt shard 1: ")
    assert f"{depth_image}: a Git LFS pointer; 'git lfs pull' gets the file itself" in told
    extracted = kept()
    assert selected.items() <= extracted.items()
    assert len([name for name in extracted if name.startswith(".build/references/")]) == 5
    depth_image.write_bytes(intact)

    assert main(command) == 0
    final = kept()
    lasting = {name: at for name, at in extracted.items() if not name.startswith(".build/")}
    assert len([name for name in lasting if name.startswith("originals/")]) == 5
    assert lasting.items() <= final.items()

    manifest = json.loads((out / "manifest.json").read_text())
    for task, sources in expected.items():
        assert manifest["tasks"][task] == {"shape": SHAPES[task], "sources": sources}
        assert set(load_file(out / f"truth/{task}.safetensors")) == set(sources)
        labels = pq.read_table(out / f"labels/{task}.parquet").to_pylist()
        assert len(labels) == 2 * len(CODECS[task]) * 10
        rows = {(row["source_id"], row["codec"], row["level"]) for row in labels}
        assert rows == {(s, c, k) for s in sources for c in CODECS[task] for k in range(10)}
        assert all(np.isfinite(row["score"]) and row["bits"] > 0 for row in labels)
    originals = pq.read_table(out / "labels/originals.parquet").to_pylist()
    assert [row["reference_score"] for row in originals if row["task"] == "cls"] == [1, 1]


def test_images_of_two_tasks_with_one_name_are_refused_before_anything_is_extracted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, voc, shared = tmp_path / "out", root / "VOCdevkit/VOC2012", val(5)
    taken = expected_sources()["seg"][0]
    (voc / "JPEGImages" / f"{taken}.jpg").rename(voc / "JPEGImages" / f"{shared}.jpg")
    (voc / "SegmentationClass" / f"{taken}.png").rename(voc / "SegmentationClass" / f"{shared}.png")
    lists = voc / "ImageSets" / "Segmentation" / "val.txt"
    lists.write_text(shared)
    recipe = tmp_path / "small.toml"
    recipe.write_text(recipe.read_text().replace("sources_per_task = 2", "sources_per_task = 1"))
    assert main(["build", str(recipe), "-o", str(out), "--root", str(root), "-j", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"cfqa: {out}: '{shared}' is the id of a source of cls and of one of seg: ids are unique "
        "over all tasks; rename one of the two and build the dataset again"
    )
    assert status(load_recipe(recipe), out) == "new"  # with other names, it selects anew


def test_a_selection_reads_no_image_beyond_the_last_and_names_what_it_passed_over(
    root: Path, tmp_path: Path
) -> None:
    models = Models(load_recipe(tmp_path / "small.toml"))
    with pytest.raises(BuildError) as caught:
        list(accepted_samples(models, "cls", 4))
    assert str(caught.value) == (
        f"cls: only 3 samples of the source are accepted, 4 are needed; rejected: {val(2)} "
        f"(classified wrongly), {val(9)} (of class 31, which is already taken)"
    )
    damaged = root / "imagenet" / "val" / f"{val(7)}.JPEG"
    damaged.write_bytes(b"")
    chosen = [sample.source_id for sample in accepted_samples(models, "cls", 2)]
    assert chosen == expected_sources()["cls"]
    with pytest.raises(BuildError, match=f"{damaged}: not a JPEG or PNG image"):
        list(accepted_samples(models, "cls", 3))


def test_a_feature_that_is_not_finite_is_told_with_its_source(root: Path, tmp_path: Path) -> None:
    models = Models(load_recipe(tmp_path / "small.toml"))
    with torch.no_grad():
        models.backbone.network.blocks[2].ls1.gamma.fill_(np.nan)  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match=rf"^{val(5)}: .* has values that are not finite"):
        next(accepted_samples(models, "cls", 1))
    feature = np.full((1, *SHAPES["cls"]), np.nan, np.float32)
    with pytest.raises(BuildError, match=r"^the original x: cls head: the feature has NaN"):
        score(models.task("cls"), feature, np.array(3), "the original x")
