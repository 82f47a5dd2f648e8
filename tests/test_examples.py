"""The examples run as shown, on a small mock dataset."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import loopback_hub, point_clients_at
from mock_dataset import write_mock_dataset
from safetensors.numpy import save_file

import cfqa_data
from cfqa_data.cli import main as cfqa

pytestmark = pytest.mark.usefixtures("quick_statistics")

EXAMPLES = Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("examples") / "cfqa", sources=2)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_first_look(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    run(monkeypatch, "first_look.py", "cfqa")
    lines = capsys.readouterr().out.splitlines()
    assert "  dpt: 2 originals (2, 4, 9, 16), 80 compressed features" in lines
    assert "The last pair: dpt-001 by hyperprior_task_specific" in lines
    assert "  compressed  float32 (2, 4, 9, 16)" in lines
    assert "Health: 12 of 12 ladders ok" in lines
    assert 'load_dataset("cfqa", "cls"), first row:' in lines
    assert [line.split()[:2] for line in lines if line.startswith("vvenc")] == [
        ["vvenc", task] for task in ("cls", "seg", "dpt")
    ]


def test_own_metric(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "own_metric.py", folder, "--task", "seg")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        ["seg", name] for name in ("mse", "cosine", "cka", "worst_token")
    ]
    assert float(rows[3][3].rstrip(",")) > 0.5  # follows the noise, lower is better


def test_own_metric_by_the_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    chosen = ["--task", "cls", "--codec", "x265"]
    assert cfqa(["eval", str(folder), "--metric", "own_metric:worst_token", *chosen]) == 0
    assert "worst_token" in capsys.readouterr().out


def test_train_metric(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "train_metric.py", folder, "--task", "cls")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["cls", "mse"], ["cls", "bands"]]
    assert float(rows[1][3]) > 0.5  # on sources that training did not see


def test_metric_week(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    run(monkeypatch, "metric_week.py")
    said = capsys.readouterr().out
    assert "each metric is better than cosine" in said
    assert "blend __main__" in said
    assert "folds (" in said
    table = said[said.index("\\midrule") :].splitlines()
    assert [line.split(" & ")[0] for line in table[1:6]] == [
        *("cosine", "mse", "worst\\_token", "blend", "bits")
    ]
    assert (folder.parent / "week.html").read_text().startswith("<!DOCTYPE html>")


def test_load_and_plot(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "load_and_plot.py", folder, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(PNG)


def test_stream_from_hub(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = cfqa_data.load(folder, "dpt")[:2]
    shown = [
        f"{pair.label['source_id']} {pair.label['codec']} level {pair.label['level']}: "
        f"MSE {((pair.compressed - pair.original) ** 2).mean():.4g}"
        for pair in pairs
    ]
    with loopback_hub() as hub:
        point_clients_at(hub, monkeypatch, tmp_path)
        hub.put("org/cfqa", folder, private=True, tag="v1")
        run(
            monkeypatch,
            "stream_from_hub.py",
            *("org/cfqa", "--task", "dpt", "--rows", 2, "--revision", "v1"),
        )
    assert capsys.readouterr().out.splitlines() == shown


def test_plot_ladder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "plot_ladder.py", folder, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(PNG)


def test_hero(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "hero.py", folder, tmp_path / "hero.webp", "--source", "seg-001", "dpt-000")
    assert (tmp_path / "hero.webp").read_bytes().startswith(b"RIFF")


def test_contact_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "contact_sheet.py", tmp_path / "scenes.png", "--columns", 1)
    assert (tmp_path / "scenes.png").read_bytes().startswith(PNG)


@pytest.mark.release
def test_reid_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, arrays = np.random.default_rng(0), {}
    for part, first in (("gallery", 0), ("training", 4), ("queries", 0)):
        truths = np.array([(first + n, camera) for n in range(4) for camera in range(4)])
        arrays[f"{part}_truths"] = truths
        arrays[part] = (truths[:, :1] + rng.standard_normal((16, 24))).astype(np.float32)
    save_file(arrays, tmp_path / "pooled.safetensors")
    few = ("--steps", 3, "--seeds", 1, "--workers", 1)
    files = (tmp_path / "pooled.safetensors", tmp_path / "reid.png")
    run(monkeypatch, "reid_study.py", *files, "--csv", tmp_path / "reid.csv", *few)
    assert (tmp_path / "reid.png").read_bytes().startswith(PNG)
    rows = list(csv.DictReader((tmp_path / "reid.csv").read_text().splitlines()))
    assert len(rows) == len(capsys.readouterr().out.splitlines()) - 2 == 3 * 2 * 6 * 2
    full = [r["map"] for r in rows if (r["ratio"], r["how"]) == ("1.0", "trained")]
    assert len(full) == 3
    assert len(set(full)) == 1


@pytest.mark.release
def test_jpeg_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "jpeg_classes.py", tmp_path / "out", "--train", 120, "--test", 24)
    with (tmp_path / "out" / "accuracy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["quality"] for row in rows[::2]] == [
        *("uncompressed", "50", "20", "10", "5", "3", "1")
    ]
    assert float(rows[0]["accuracy"]) > 0.6 > float(rows[-1]["accuracy"])
    assert "with 5 features of each new class: new " in capsys.readouterr().out
    for name in ("accuracy.png", "classes.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(PNG)


def test_pictures_of_the_pages_are_small() -> None:
    for picture in (EXAMPLES.parent / "docs" / "images").iterdir():
        assert picture.stat().st_size < 300_000, picture
