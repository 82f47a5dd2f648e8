"""The built-in tasks, backbones and general sources pass the public conformance suites."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cfqa_data.builders.backbones.base import BACKBONES, Backbone
from cfqa_data.builders.backbones.dinov2 import DinoV2
from cfqa_data.builders.backbones.stored import Stored
from cfqa_data.builders.sources import SOURCES, Sample, get_source
from cfqa_data.builders.sources.folders import Features, ImageFolder
from cfqa_data.builders.sources.scenes import Scenes
from cfqa_data.builders.tasks.base import TASKS, Task
from cfqa_data.builders.tasks.classification import Classification, Fidelity
from cfqa_data.builders.tasks.depth import Depth
from cfqa_data.builders.tasks.segmentation import Segmentation
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Score, TaskFacts
from cfqa_data.testing.backbones import BackboneSuite
from cfqa_data.testing.codecs import FeatureCodecSuite, InputCodecSuite
from cfqa_data.testing.metrics import MetricSuite
from cfqa_data.testing.sources import SourceSuite
from cfqa_data.testing.tasks import TaskSuite

WEIGHTS = Path(__file__).parents[1] / "builders" / "weights"


class TestDinoV2(BackboneSuite):
    backbone, layers, options = DinoV2, (1, 3), {"num_heads": 3}

    @pytest.fixture(autouse=True)
    def data(self) -> None:
        rng = np.random.default_rng(0)
        self.weights = WEIGHTS / "backbone.safetensors"
        self.inputs = [
            rng.standard_normal((2, 3, *size)).astype(np.float32) for size in ((28, 42), (56, 28))
        ]


class TestStored(BackboneSuite):
    backbone, layers, options = Stored, (0, 2), {"prefix_tokens": 1, "rows": 2}
    inputs = tuple(np.random.default_rng(t).random((1, 3, t, 4)) for t in (5, 9))


@cache
def small_backbone() -> DinoV2:
    return DinoV2(WEIGHTS / "backbone.safetensors", 3)


@cache
def two_scenes(task: type[Task]) -> tuple[list[Any], list[Any]]:
    """Return features with their truths, and inputs, of the first scenes that a task accepts."""
    made = task(small_backbone(), WEIGHTS / f"head_{task.facts.name}.safetensors")
    cases: list[Any] = []
    accepted: list[Sample] = []
    for sample in get_source("scenes")(task.facts.name, 1).samples():
        blocks = (1, 3, 5, 7) if task.layers == 4 else (7,)
        feature = small_backbone().extract(sample.inputs, blocks)
        if made.accepts(lambda feature=feature: feature, sample, accepted) is None:
            cases.append((feature, sample.truth))
            accepted.append(sample)
        if len(cases) == 2:
            return cases, [sample.inputs for sample in accepted]
    raise AssertionError


class LinearSuite(TaskSuite):
    @pytest.fixture(autouse=True)
    def data(self) -> None:
        self.backbone = small_backbone()
        self.weights = WEIGHTS / f"head_{self.task.facts.name}.safetensors"
        self.cases, self.inputs = two_scenes(self.task)
        self.blocks = (1, 3, 5, 7) if self.task.layers == 4 else (7,)


class TestClassification(LinearSuite):
    task = Classification

    def test_a_class_is_taken_once_and_only_where_it_is_seen(self) -> None:
        task, (feature, truth) = self.make(), self.cases[0]
        sample = Sample("a", self.inputs[0], truth)
        assert task.accepts(lambda: feature, sample, []) is None
        assert "which is already" in task.accepts(lambda: feature, sample, [sample])
        other = Sample("b", self.inputs[0], truth + 1)
        assert task.accepts(lambda: feature, other, [sample]) == "classified wrongly"
        many = Sample("c", np.concatenate([self.inputs[0]] * 2), truth)
        assert task.accepts(lambda: feature, many, []) == "of 2 views"


class TestFidelity(LinearSuite):
    task = Fidelity

    @pytest.fixture(autouse=True)
    def data(self) -> None:
        self.backbone, self.weights = small_backbone(), WEIGHTS / "head_cls.safetensors"
        self.cases, self.inputs = two_scenes(Classification)

    def test_the_truth_is_the_class_of_rank_1(self) -> None:
        task, (feature, label) = self.make(), self.cases[0]
        truth = task.infer_truth(feature)
        assert (truth.dtype, truth.shape, truth) == (np.int64, (), label)
        assert task.score(feature, truth)[0] == 1
        harmed = feature[:, :, ::-1]  # another token comes first
        assert task.score(harmed, task.infer_truth(harmed))[0] == 1


class TestSegmentation(LinearSuite):
    task = Segmentation


class TestDepth(LinearSuite):
    task = Depth


class Length(Task):
    """A task without a head or a loss, whose score is the error of the number of tokens."""

    facts = TaskFacts("length", "length of a text", Score("error", lower_better=True))

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def score(self, feature: np.ndarray, truth: Any) -> tuple[float, None]:
        if not np.isfinite(feature).all():
            raise BuildError("the feature has NaN or infinite values")
        return abs(float(feature.mean()) - feature.shape[2]) * self.scale, None


class TestATaskOfOnesOwn(TaskSuite):
    task, options = Length, {"scale": 2}
    cases = tuple((np.full((1, 1, t, 3), t, np.float32), None) for t in (2, 5))


def test_a_suite_says_which_attribute_it_lacks() -> None:
    backbone = type("Mine", (BackboneSuite,), {"backbone": Stored})()
    task = type("Mine", (TaskSuite,), {"task": Length})()
    lacking: dict[str, Callable[[], Any]] = {
        "inputs": backbone.test_layers_are_the_same_alone_and_together,
        "cases": task.test_the_same_feature_has_the_same_score,
        "source": type("Mine", (SourceSuite,), {})().samples,
        "items": type("Mine", (InputCodecSuite,), {}).items,
        "codec": type("Mine", (FeatureCodecSuite,), {}).make,
        "metric": type("Mine", (MetricSuite,), {})().make,
    }
    for name, test in lacking.items():
        with pytest.raises(pytest.fail.Exception, match=f"^Mine lacks `{name}`: .*$"):
            test()


class TestSceneClasses(SourceSuite):
    source, task, options = Scenes, "cls", {"side": 28}


class TestScenePairs(SourceSuite):
    source, task, options = Scenes, "dpt", {"side": 28}


class TestImageFolder(SourceSuite):
    source = ImageFolder

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for place, name in enumerate(("root/cat/1", "root/dog/1", "root/dog/2", *"789")):
            path = tmp_path / (name if place < 3 else f"train/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (30 + place, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path.with_suffix(".png"))
        self.options = {"root": str(tmp_path / "root"), "train": str(tmp_path / "train")}

    def test_folders_are_classes(self) -> None:
        found = {s.source_id: int(s.truth) for s in self.samples()}
        assert found == {"cat_1": 0, "dog_1": 1, "dog_2": 1}

    def test_training_samples_have_the_truths_that_are_known(self, tmp_path: Path) -> None:
        train = tmp_path / "more"
        for name in ("dog/7", "cow/8"):
            (train / name).parent.mkdir(parents=True)
            (tmp_path / f"train/{name[-1]}.png").rename(train / f"{name}.png")
        source = self.make(train=str(train))
        found = {s.source_id: s.truth for s in source.training_samples(0)}
        assert found == {"train_dog_7": 1, "train_cow_8": None}
        table = tmp_path / "truths.csv"
        table.write_text("source_id,truth\ncow_8,0\n")
        source = self.make(train=str(train), train_labels=str(table))
        assert {s.source_id: int(s.truth) for s in source.training_samples(1)} == {"train_cow_8": 0}
        assert table in source.decides()[0]

    def test_names_of_training_images_may_be_those_of_others(self, tmp_path: Path) -> None:
        shutil.copytree(tmp_path / "root", tmp_path / "further")
        assert len(list(self.make(train=str(tmp_path / "further")).training_inputs(3, 0))) == 3
        with pytest.raises(BuildError, match=r"'cat_1' is for training and for the dataset \(3"):
            self.make(train=str(tmp_path / "root")).training_inputs(1, 0)

    def test_a_table_gives_truths_and_groups(self, tmp_path: Path) -> None:
        root = tmp_path / "train"
        with pytest.raises(BuildError, match="that are not in a class folder; give 'labels'"):
            self.make(root=str(root))
        table = tmp_path / "labels.csv"
        table.write_text("source_id,truth,group\n7,0.5,a\n9,1.5,a\n")
        source = self.make(root=str(root), labels=str(table), train=str(tmp_path / "root"))
        found = [(s.source_id, float(s.truth), s.group) for s in source.samples()]
        assert sorted(found) == [("7", 0.5, "a"), ("9", 1.5, "a")]


class TestFeatures(SourceSuite):
    source, training = Features, 2

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        features = {f"text-{t}": np.full((t, 4), t, np.float16) for t in range(2, 6)}
        save_file(features, tmp_path / "features.safetensors")
        (tmp_path / "train").mkdir()
        for name in "ab":
            np.save(tmp_path / "train" / name, np.full((2, 3, 4), ord(name), np.float32))
        rows = [f"{name},{place},{place % 2}" for place, name in enumerate(features)]
        (tmp_path / "truths.csv").write_text("\n".join(["source_id,truth,place", *rows]))
        self.options = {
            "root": str(tmp_path / "features.safetensors"),
            "labels": str(tmp_path / "truths.csv"),
            "train": str(tmp_path / "train"),
        }

    def test_they_are_features_of_any_length(self) -> None:
        backbone, samples = Stored(), self.samples()
        shapes = {s.source_id: backbone.extract(s.inputs, (0,)).shape for s in samples}
        assert shapes == {f"text-{t}": (1, 1, t, 4) for t in range(2, 6)}
        assert {s.truth.dtype for s in samples} == {np.dtype(np.int64)}

    def test_training_samples_have_truths_of_a_table(self, tmp_path: Path) -> None:
        table = tmp_path / "of_training.csv"
        table.write_text("source_id,truth\nb,7\n")
        (sample,) = self.make(train_labels=str(table)).training_samples(0)
        assert (sample.source_id, int(sample.truth), sample.inputs.shape) == ("b", 7, (1, 2, 3, 4))
        table.write_text("source_id,truth\nz,7\n")
        with pytest.raises(BuildError, match="'z' is not in the training folder"):
            next(self.make(train_labels=str(table)).training_samples(0))

    def test_truths_may_be_arrays_or_none(self, tmp_path: Path) -> None:
        truths = {f"text-{t}": np.zeros((t, 2), bool) for t in range(2, 6)}
        save_file(truths, tmp_path / "truths.safetensors")
        labelled = self.make(labels=str(tmp_path / "truths.safetensors"))
        assert labelled.sample("text-3").truth.shape == (3, 2)
        bare = {**self.options}
        del bare["labels"]
        assert Features(self.task, 0, **bare).sample("text-3").truth is None

    @pytest.mark.parametrize(
        ("name", "text", "told"),
        [
            ("x.csv", "id,truth\na,1\n", "columns source_id and truth"),
            ("x.csv", "source_id,truth\ntext-2,long\n", "truth of text-2 is 'long', not a number"),
            ("x.csv", "source_id,truth\ntext-2,1\ntext-2,2\n", "'text-2' occurs twice"),
            ("x.csv", "source_id,truth\ntext-7,1\n", "'text-7' is not in the root"),
            ("x.parquet", "no table", "not a CSV or Parquet table"),
            ("x.safetensors", "no arrays", "not a file of arrays"),
        ],
    )
    def test_other_truths_are_told(self, tmp_path: Path, name: str, text: str, told: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(BuildError, match=told) as caught:
            self.make(labels=str(tmp_path / name)).sample("text-2")
        assert "\n" not in str(caught.value)

    def test_truths_of_several_lengths_are_no_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"source_id": ["text-2"], "truth": [[[1, 2], [3]]]}), path)
        with pytest.raises(BuildError, match=r"truth of text-2 is .*3\]\], not a number"):
            self.make(labels=str(path))

    def test_other_arrays_are_told(self, tmp_path: Path) -> None:
        train = tmp_path / "train"
        np.save(train / "c", np.arange(3))
        (train / "d.npy").write_text("no array")
        source = Features(self.task, 0, str(train))
        with pytest.raises(BuildError, match=r"c is int64 \(3,\), not floating point"):
            source.sample("c")
        with pytest.raises(BuildError, match=r"d\.npy: not an array"):
            source.sample("d")


@pytest.mark.parametrize(
    ("registry", "kind", "count"), [(TASKS, Task, 6), (BACKBONES, Backbone, 4), (SOURCES, None, 7)]
)
def test_the_registries_find_every_built_in_class(registry: Any, kind: Any, count: int) -> None:
    found = [registry.find(name) for name in registry.builtin]
    assert len(found) == count
    assert all(entry.builtin and (not kind or issubclass(entry.target, kind)) for entry in found)


def test_views_of_a_sample_are_its_inputs_for_one_release() -> None:
    with pytest.warns(DeprecationWarning, match=r"Sample\.inputs"):
        assert Sample("a", "text").views == "text"


def test_a_head_for_another_width_is_told() -> None:
    backbone = DinoV2(WEIGHTS / "backbone.safetensors", 3)
    assert (backbone.width, backbone.layers) == (192, 8)
    backbone.width = 7
    with pytest.raises(BuildError, match="not a head for features of width 7"):
        Classification(backbone, WEIGHTS / "head_cls.safetensors")
