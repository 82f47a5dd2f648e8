"""The table of originals with pictures: what is in it, who reads it, and what is not given away."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset
from mock_dataset import write_mock_dataset
from PIL import Image

from cfqa_data.access.folder import Folder
from cfqa_data.builders.sharing.upload import prepare_upload
from cfqa_data.builders.tasks.drawing import webp
from cfqa_data.card.write import write_card
from cfqa_data.errors import FormatError
from cfqa_data.format.facts import Terms
from cfqa_data.format.layout import NAMES
from cfqa_data.format.manifest import read_manifest, write_manifest
from cfqa_data.format.previews import drawn_columns, in_order, previews_table
from cfqa_data.format.storage import write_table
from cfqa_data.integrity.consistency import inconsistencies

RED = np.full((5, 7, 3), (200, 10, 10), np.uint8)


def written(root: Path, originals: pa.Table, found: pa.Table) -> list[str]:
    """Write the table, and what follows from it; return what does not agree."""
    table = previews_table(originals, in_order(originals, found))
    assert table is not None
    write_table(root / NAMES.previews, table)
    write_card(root, read_manifest(root))
    write_manifest(root, read_manifest(root))
    return [str(fault) for fault in inconsistencies(root, read_manifest(root), set())]


@pytest.fixture(scope="module")
def drawn() -> pa.Table:
    """What was drawn of the mock's sources: inputs of cls and seg, answers of cls."""
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
    again = drawn_columns((folder / NAMES.previews).read_bytes())
    assert again.sort_by("source_id").to_pylist() == [
        {name: row[name] for name in again.column_names}
        for row in drawn.sort_by("source_id").to_pylist()
    ]
    nothing = drawn.select(["source_id", "truth"])
    originals = Folder(folder).originals_table()
    assert previews_table(originals, in_order(originals, nothing)) is None


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
