"""The example plugin, found by its entry points: built, opened, verified, scored, shown, shared."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import loopback_hub, point_clients_at
from pipeline_toy import tree

import cfqa_data
from cfqa_data.builders.pipeline import build
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError
from cfqa_data.format.manifest import read_manifest
from cfqa_data.loaders.torch import Pairs

# The client sends files by a parameter that its HTTP library has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("quick_statistics"),
]

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
PACKAGE = "cfqa_example_text"


def install(site: Path) -> None:
    """Install the plugin in a folder, with metadata that names its entry points."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    shutil.copytree(PLUGIN / PACKAGE, site / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{PACKAGE}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {where}" for name, where in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin on the import path of this process and its children."""
    site = tmp_path_factory.mktemp("site")
    install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site))
        yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def recipe(site: Path) -> Path:
    return site / PACKAGE / "text.toml"


@pytest.fixture(scope="module")
def folder(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plugin") / "text"
    build(recipe, out, workers=0)
    return out


@pytest.mark.release
def test_two_workers_make_the_same_bytes(recipe: Path, folder: Path, tmp_path: Path) -> None:
    build(recipe, tmp_path / "text", workers=2)
    assert tree(tmp_path / "text") == tree(folder)


@pytest.mark.release
def test_a_cluster_makes_the_same_bytes(recipe: Path, folder: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        out = tmp_path / "text"
        assert (
            main(
                [
                    "build",
                    str(recipe),
                    "--out",
                    str(out),
                    "--scheduler",
                    str(cluster.scheduler_address),
                ]
            )
            == 0
        )
    assert tree(out) == tree(folder)


def test_the_manifest_says_who_made_what(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.format == 2
    assert manifest.packages["cfqa-example-text"]["version"] == "0.1.0"
    topic = manifest.tasks["topic"]
    assert topic.varying_tokens
    assert [len(codec.levels) for codec in topic.codecs.values()] == [10, 4, 3]
    assert {codec.facts.on for codec in topic.codecs.values()} == {"planes", "features", "inputs"}
    origin = topic.codecs["keep"].origin
    assert origin is not None
    assert (origin.name, origin.package) == ("keep", "cfqa-example-text")
    assert len(manifest.tasks["retrieval"].sources) == 5


@pytest.fixture(scope="module")
def light_folder(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe, tmp_path_factory.mktemp("light") / "text", tier="light", workers=0)


def test_features_have_their_own_tokens_and_decode_to_what_is_stored(
    folder: Path, light_folder: Path
) -> None:
    full, light = cfqa_data.load(folder, "topic"), cfqa_data.load(light_folder, "topic")
    assert len({pair.original.shape for pair in full}) > 1
    for a, b in zip(full, light, strict=True):
        assert a.original.shape == a.compressed.shape == (1, 2, a.label["tokens"], 32)
        assert np.array_equal(a.compressed, b.compressed)
        assert a.label == b.label
    assert len(Pairs(folder, "topic")) == len(full)


def test_the_gallery_scores_features_without_the_class(folder: Path, tmp_path: Path) -> None:
    dataset = cfqa_data.load(folder, "retrieval")
    embeddings = dataset.gallery("retrieval")["embeddings"]
    assert embeddings.shape == (40, 32)
    for pair in dataset:
        mean = pair.compressed[0, 0].astype(float).mean(axis=0)
        cosines = embeddings @ (mean / np.linalg.norm(mean))
        true = cosines[dataset.truth(pair.label["source_id"])]
        assert 1 - true == pytest.approx(pair.label["loss"], abs=1e-9)
        assert pair.label["reference_score"] == 1
    copy = shutil.copytree(folder, tmp_path / "copy")
    gallery = copy / "truth" / "retrieval-gallery.safetensors"
    gallery.write_bytes(b"damaged")
    assert main(["repair", str(copy), "--workers", "1"]) == 0
    assert tree(copy) == tree(folder)


def test_where_the_plugin_is_not_installed_a_line_names_it(
    light_folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])
    dataset = cfqa_data.load(light_folder, "topic", codec="keep")
    assert dataset.original(dataset.source_ids[0]).dtype == np.float32
    with pytest.raises(CfqaError, match=r"'keep'.*cfqa-example-text"):
        dataset[0]


@pytest.mark.release
def test_its_classes_pass_the_suites(site: Path) -> None:
    tests = str(PLUGIN / "tests")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", tests], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def test_the_command_line_takes_it_from_end_to_end(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["info", str(folder)]) == 0
    assert main(["verify", str(folder), "--deep", "--workers", "1"]) == 0
    scores = ["eval", str(folder), "--metric", "cosine", "--metric", "mean_token"]
    assert main([*scores, "--report", "report.html"]) == 0
    told = capsys.readouterr().out
    for words in ("stems (3 levels)", "no damage", "mean_token", "topic", "retrieval"):
        assert words in told
    assert "mean_token" in (tmp_path / "report.html").read_text()
    assert main(["gallery", str(folder), "--out", "gallery.html", "--sources", "2"]) == 0
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("<blockquote>") == 2  # the inputs are texts
    stems = json.loads(re.findall(r"json.>(.*)</script>", page)[0])[0]["codecs"]["stems"]
    text = re.findall(r"<blockquote>(.*?)<", page)[0]
    assert [stem["text"] for stem in stems] == [
        " ".join(word[:letters] for word in text.split()) for letters in (8, 4, 2)
    ]
    assert all(text in page for text in ("weather", "sailing", "From the compressed feature"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with loopback_hub() as hub:
        point_clients_at(hub, monkeypatch, tmp_path / "cache")
        assert main(["publish", str(folder), "lab/text"]) == 0
        there = cfqa_data.load("lab/text", "retrieval")
        here = cfqa_data.load(folder, "retrieval")
        assert there.labels.equals(here.labels)
        assert np.array_equal(there[0].compressed, here[0].compressed)
