"""The table of previews: its content, its readers, and images that may not be published."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cases import each
from datasets import load_dataset
from mock_dataset import write_mock_dataset
from PIL import Image

from cfqa_data.access.folder import Folder
from cfqa_data.builders.pipeline.preview import draw_hero
from cfqa_data.builders.sharing.upload import prepare_upload
from cfqa_data.builders.tasks.drawing import webp
from cfqa_data.card.write import card_text, write_card
from cfqa_data.errors import BuildError, FormatError
from cfqa_data.format import parquet
from cfqa_data.format.facts import Terms
from cfqa_data.format.layout import NAMES
from cfqa_data.format.manifest import read_manifest, write_manifest
from cfqa_data.format.previews import previews_table, sort_previews
from cfqa_data.format.storage import write_table
from cfqa_data.integrity.consistency import inconsistencies

RED = np.full((5, 7, 3), (200, 10, 10), np.uint8)


def written(root: Path, originals: pa.Table, found: pa.Table) -> list[str]:
    """Write the table and the files that depend on it; return the inconsistencies."""
    table = previews_table(originals, sort_previews(originals, found))
    assert table is not None
    write_table(root / NAMES.previews, table)
    write_card(root, read_manifest(root))
    write_manifest(root, read_manifest(root))
    return [str(fault) for fault in inconsistencies(root, read_manifest(root), set())]


@pytest.fixture(scope="module")
def drawn() -> pa.Table:
    """Return drawings of the mock's sources: inputs of cls and seg, answers of cls."""
    return pa.table(
        {
            "source_id": ["dpt-000", "cls-000", "seg-000"],  # in any order
            "answers": [None, "original: cube 90%", None],
            "truth": pa.array([None] * 3, pa.binary()),
            "image": [None, webp(RED), webp(RED)],
        }
    )


@pytest.fixture(scope="module")
def folder(drawn: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_mock_dataset(tmp_path_factory.mktemp("previews") / "cfqa", sources=1)
    assert written(root, Folder(root).originals_table(), drawn) == []
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_have_pictures(streaming: bool, folder: Path, tmp_path: Path) -> None:
    how = {"split": "test", "streaming": streaming, "cache_dir": str(tmp_path)}
    rows = list(load_dataset(str(folder), "originals", **how))
    plain = Folder(folder).originals_table().to_pylist()
    assert [name for name in rows[0] if name not in plain[0]] == ["image", "answers"]
    assert [{name: row[name] for name in plain[0]} for row in rows] == plain
    assert [row["source_id"] for row in rows if row["answers"]] == ["cls-000"]
    assert [row["image"] and row["image"].size for row in rows] == [(7, 5), (7, 5), None]
    assert np.array_equal(np.asarray(rows[0]["image"]), RED)  # few colours: without loss
    alone = load_dataset(
        "parquet", data_files=str(folder / NAMES.previews), cache_dir=str(tmp_path)
    )
    assert isinstance(alone["train"][0]["image"], Image.Image)  # by the file itself


def test_what_was_drawn_comes_out_again(folder: Path, drawn: pa.Table) -> None:
    again = Folder(folder).read_pictures()
    assert again.sort_by("source_id").to_pylist() == [
        {name: row[name] for name in again.column_names}
        for row in drawn.sort_by("source_id").to_pylist()
    ]
    nothing = drawn.select(["source_id", "truth"])
    originals = Folder(folder).originals_table()
    assert previews_table(originals, sort_previews(originals, nothing)) is None


def test_another_table_than_that_of_originals_is_a_fault(
    folder: Path, drawn: pa.Table, tmp_path: Path
) -> None:
    root = shutil.copytree(folder, tmp_path / "cfqa")
    originals = Folder(root).originals_table()
    other = originals.set_column(2, "fold", pa.array([1, 0, 0], pa.int8()))
    (fault,) = written(root, other, drawn)
    assert fault.startswith("previews/originals.parquet: its columns beside pictures are not")
    (root / NAMES.previews).write_bytes(b"no table")
    with pytest.raises(FormatError, match="not a Parquet table"):
        Folder(root).previews()


@pytest.fixture(scope="module")
def copy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder, in which each test writes its own previews."""
    return shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "cfqa")


@each(
    ("name", "column"),
    [
        ("x` |\n\n## Heading <img src=x>", [b"x"] * 3),
        ("input", [b"x"] * 3),
        ("output_x265_99", [b"x"] * 3),
        ("output_x265", [b"x"] * 3),
        ("answers", [1, 2, 3]),
        ("truth", ["x"] * 3),
        ("words", ["x"] * 3),
    ],
)
def test_columns_are_those_of_the_format(name: str, column: list[object], copy: Path) -> None:
    originals = Folder(copy).originals_table()
    if isinstance(column[0], bytes):
        table = previews_table(originals, pa.table({name: column}))
        assert table is not None
    else:
        table = originals.append_column(name, pa.array(column))
    write_table(copy / NAMES.previews, table)
    manifest = read_manifest(copy)
    faults = [str(fault) for fault in inconsistencies(copy, manifest, set())]
    assert [f for f in faults if f.startswith("previews/originals.parquet: column ")] == faults
    assert len(faults) == 1
    assert "\n" not in faults[0]
    for read in (
        Folder(copy).previews,
        Folder(copy).read_pictures,
        lambda: write_card(copy, manifest),
        lambda: prepare_upload(copy, manifest, "org/cfqa", terms=Terms("mit")),
    ):
        with pytest.raises(FormatError, match="is not of the format: pictures are image, truth"):
            read()


def test_pictures_are_read_within_limits(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = Folder(copy).originals_table()
    lossy = webp(np.random.default_rng(0).integers(0, 255, (240, 3, 3), np.uint8))

    def read(pictures: list[bytes | None], rows: pa.Table = originals) -> list[bytes | None]:
        table = previews_table(rows, pa.table({"output_original": pa.array(pictures)}))
        assert table is not None
        write_table(copy / NAMES.previews, table)
        found: list[bytes | None] = Folder(copy).read_pictures()["output_original"].to_pylist()
        return found

    assert read([lossy, None, webp(RED)]) == [lossy, None, webp(RED)]
    large = io.BytesIO()
    Image.new("RGB", (7, 241)).save(large, "WEBP")
    for data in (b"no picture", large.getvalue(), b"RIFF    WEBPVP8X" + bytes(20)):
        with pytest.raises(FormatError, match="'output_original' of row 1 is not a WebP file"):
            read([None, data, None])
    with pytest.raises(FormatError, match="has 6 rows; at most 3"):
        read([lossy] * 6, pa.concat_tables([originals] * 2))
    with monkeypatch.context() as limits:
        limits.setattr(parquet, "LARGEST_PICTURE", len(lossy) - 1)
        with pytest.raises(FormatError, match="a picture of 1,436 bytes in column"):
            read([None, lossy, None])
    pages = 3000 + len(lossy)  # once, and beside it what the few other columns take
    monkeypatch.setattr(parquet, "LARGEST_PAGES", pages)
    assert read([lossy, None, None])[0] == lossy
    long = lossy + bytes(1200)  # in the file once, by its dictionary
    with pytest.raises(FormatError, match=f"pictures of more than {pages:,} bytes"):
        read([long] * 3)


def test_a_damaged_picture_is_named(folder: Path) -> None:
    found = pa.table({"image": [webp(RED)] * 3, "truth": [webp(RED)[:30]] * 3})
    with pytest.raises(BuildError, match="a picture of the column 'truth' cannot be read"):
        draw_hero(Folder(folder).originals_table(), found)


def test_the_card_tells_of_all_labels_unless_a_task_is_called_so(folder: Path) -> None:
    manifest, reader = read_manifest(folder), Folder(folder)
    sizes = {name: entry["size"] for name, entry in manifest.files.items()}
    for renamed in ("dpt", "all"):
        names = {task: renamed if task == "dpt" else task for task in manifest.tasks}
        tasks = {names[task]: entry for task, entry in manifest.tasks.items()}
        labels = {names[task]: reader.label_rows(task).table for task in manifest.tasks}
        sizes[f"labels/{renamed}.parquet"] = sizes["labels/dpt.parquet"]
        card = card_text(replace(manifest, tasks=tasks), labels, reader.originals_table(), sizes)
        assert ("`all`, the labels of all tasks" in card) == (renamed == "dpt")


def test_pictures_that_may_not_be_given_away_stay_here(folder: Path) -> None:
    manifest = read_manifest(folder)
    for given in (True, False):
        terms = Terms("mit", inputs=given, truths=True)
        tasks = {name: replace(entry, terms=terms) for name, entry in manifest.tasks.items()}
        upload = prepare_upload(folder, replace(manifest, tasks=tasks), "org/cfqa")
        assert (NAMES.previews.as_posix() in upload.files) == given
        assert upload.withheld == (() if given else ("previews/originals.parquet",))
        path = "previews" if given else "labels"
        assert f'- "{path}/originals.parquet"' in upload.card
        assert f'"contentUrl": "{path}/originals.parquet"' in upload.croissant


def test_a_large_picture_is_made_smaller() -> None:
    values = np.random.default_rng(0).integers(0, 255, (300, 600, 3), np.uint8)
    assert Image.open(io.BytesIO(webp(values))).size == (240, 120)
