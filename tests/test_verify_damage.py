"""`cfqa verify` finds every kind of damage, and inconsistent folders with correct hashes."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged import DAMAGES, KINDS, build_toy, edit_labels, edit_manifest, flip, rehash
from hub_cache import move_into_cache
from pickling_pool import replace_workers
from safetensors.numpy import load_file

import cfqa_data
from cfqa_data.access.folder import Folder
from cfqa_data.builders.maintenance.deep_verify import verify_deep
from cfqa_data.cli import main
from cfqa_data.errors import FormatError
from cfqa_data.format.codes import write_codes
from cfqa_data.format.manifest import read_manifest
from cfqa_data.format.storage import write_tensors
from cfqa_data.integrity.consistency import inconsistencies
from cfqa_data.integrity.verify import verify

WHAT = {
    "flip": "from the manifest",
    "cut": "bytes, the manifest says",
    "missing": "missing",
    "folder": "is a folder, not a file",
    "link": "leads out of the folder",
    "pipe": "is no plain file, not a file",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "cfqa")


def found(folder: Path) -> list[str]:
    """Return the faults that the consistency check finds in a folder with correct hashes."""
    checked = verify(folder)
    assert checked.damage == ()
    return [str(fault) for fault in inconsistencies(folder, checked.manifest, set())]


def looked(folder: Path, **options: Any) -> list[str]:
    options = {"sample": 40, "workers": 1} | options
    return [str(f) for f in verify_deep(folder, read_manifest(folder), set(), **options).faults]


EACH = [
    pytest.param(
        kind,
        damage,
        marks=() if kind == "codes" or damage == "flip" else pytest.mark.release,
    )
    for kind in KINDS
    for damage in DAMAGES
]
"""Tested in the suite: every damage of one kind of file, and one damage of every kind."""


@pytest.mark.parametrize(("kind", "damage"), EACH)
def test_each_damage_of_each_kind_of_file_is_named(kind: str, damage: str, folder: Path) -> None:
    DAMAGES[damage](folder / KINDS[kind])
    checked = verify(folder)
    assert [fault.path for fault in checked.faults] == [KINDS[kind]]
    assert WHAT[damage] in checked.faults[0].what
    extra = [f"{KINDS[kind]}/inside"] if damage == "folder" else []
    assert [fault.path for fault in checked.damage] == [KINDS[kind], *extra]
    manifest = checked.manifest
    assert inconsistencies(folder, manifest, {fault.path for fault in checked.faults}) == []


FOREIGN = (
    *(".DS_Store", "labels/._cls.parquet", ".gitattributes", ".cache/huggingface/x"),
    *(".dvc/config", "compressed.dvc", "labels/.gitignore", ".datalad/config"),
    *("labels/.ipynb_checkpoints/x", "@eaDir/Thumbs.db", "labels/cls.parquet~", ".directory"),
)


def test_what_tools_leave_is_no_damage(folder: Path) -> None:
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "originals" / "cls-00000-of-00009.safetensors").write_text("x")
    (folder / "link").symlink_to(folder / "labels")
    checked = verify(folder)
    assert checked.foreign == tuple(sorted(FOREIGN))
    assert [fault.path for fault in checked.damage] == [
        "link",
        "originals/cls-00000-of-00009.safetensors",
    ]


def test_a_snapshot_in_the_cache_of_the_hub_is_sound(folder: Path, tmp_path: Path) -> None:
    """In such a cache, every file is a link to a link."""
    snapshot = move_into_cache(folder, tmp_path / "hub", local=[KINDS["labels"]])
    assert main(["verify", str(snapshot), "--deep", "--sample", "10", "--workers", "1"]) == 0


def test_what_was_built_agrees(built: Path) -> None:
    assert found(built) == []


def change(column: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[13][column] = value

    return edit


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("fold", 3),
        ("index", 2),
        ("array", "compressed/cls/x265.zarr"),
        ("parameter_name", "qp"),
        ("parameter", 99.0),
        ("bits", 8),
        ("bpfp", 0.5),
        ("distortion", 0.25),
        ("score", math.inf),
        ("mse", math.nan),
        ("mse", -0.5),
        ("cosine", 1.5),
        ("cka", -0.5),
        ("loss", math.nan),
        ("reference_loss", 0.125),
    ],
)
def test_an_edited_label_is_found_though_the_hashes_are_right(
    column: str, value: Any, folder: Path
) -> None:
    edit_labels(folder, "dpt", change(column, value))
    assert any(text.split(": ")[1].startswith(column) for text in found(folder))


def test_rows_that_changed_places_are_found(folder: Path) -> None:
    edit_labels(folder, "dpt", list.reverse)
    assert "labels/dpt.parquet: rows are not in the format's order, first row 1" in found(folder)


@pytest.mark.parametrize(
    ("name", "edit", "what"),
    [
        ("README.md", lambda p: p.write_text(p.read_text().replace("40", "41")), "states "),
        ("truth/seg.safetensors", lambda p: _rename_key(p), "contains 'other'"),
        ("bitstreams/cls-x265-00001-of-00002.safetensors", lambda p: _rename_key(p), "contains"),
        ("originals/cls-00001-of-00002.safetensors", lambda p: _rename_key(p), "lacks"),
        ("compressed/cls/x265.zarr/zarr.json", lambda p: _other_range(p), "from the manifest's"),
        ("originals/cls-00001-of-00002.safetensors", lambda p: p.write_text("x"), "safetensors"),
        ("originals/seg-00001-of-00002.safetensors", lambda p: _swap_shards(p), "not belong there"),
        (
            "bitstreams/dpt-x265-00001-of-00002.safetensors",
            lambda p: _swap_shards(p),
            "not belong there",
        ),
        ("originals/dpt-00001-of-00002.safetensors", lambda p: _retype(p, "f2"), "is ('float16',"),
        (
            "bitstreams/cls-x265-00001-of-00002.safetensors",
            lambda p: _retype(p, "u4"),
            "is uint32 of 1 axes, not a one-dimensional array of bytes",
        ),
        (
            "truth/seg.safetensors",
            lambda p: _retype(p, "i8"),
            "is int64 of 2 axes; a truth of seg is uint8 of 2",
        ),
        (
            "compressed/cls/x265.zarr/zarr.json",
            lambda p: p.write_text(p.read_text().replace('"source"', '"image"')),
            "do not conform to the format",
        ),
        ("labels/seg.parquet", lambda p: p.write_text("x"), "not a readable Parquet table"),
    ],
)
def test_edited_files_are_found_though_the_hashes_are_right(
    name: str, edit: Callable[[Path], None], what: str, folder: Path
) -> None:
    edit(folder / name)
    rehash(folder)
    assert any(what in text for text in found(folder))


def _retype(path: Path, dtype: str) -> None:
    write_tensors(path, {key: tensor.astype(dtype) for key, tensor in load_file(path).items()})


def _swap_shards(path: Path) -> None:
    """Exchange two shards of a task."""
    other = path.with_name(path.name.replace("-00001-of", "-00000-of"))
    tensors = load_file(path), load_file(other)
    write_tensors(other, tensors[0])
    write_tensors(path, tensors[1])


def _rename_key(path: Path) -> None:
    tensors = load_file(path)
    write_tensors(path, {"other": tensors.pop(next(iter(tensors))), **tensors})


def _other_range(path: Path) -> None:
    metadata = json.loads(path.read_text())
    metadata["attributes"]["quantizer"]["hi"] = [7.0]
    path.write_text(json.dumps(metadata))


def test_a_manifest_of_other_files_or_figures_is_found(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    files = dict(manifest["files"])
    del files["labels/cls.parquet"]
    (folder / "new").write_text("x")
    edit_manifest(folder, files=files | {"new": {"size": 1, "sha256": "0" * 64}})
    checked = verify(folder)
    told = [str(f) for f in inconsistencies(folder, checked.manifest, {"new"})]
    assert "manifest.json: does not list labels/cls.parquet" in told
    assert "manifest.json: lists new, which is not part of the format" in told
    manifest["health"][0]["changing"] = 0.125
    edit_manifest(folder, files=manifest["files"], health=manifest["health"], name="other")
    (folder / "new").unlink()
    assert found(folder) == [
        "manifest.json: its name is 'other', its recipe's 'toy'",
        "manifest.json: its label sanity checks differ from the labels",
    ]


def test_an_id_of_two_tasks_is_named_by_all_who_open_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = json.loads((folder / "manifest.json").read_text())["tasks"]
    shared = tasks["seg"]["sources"][1] = tasks["cls"]["sources"][0]
    edit_manifest(folder, tasks=tasks)
    told = f"manifest.json: '{shared}' is the id of a source of cls and of one of seg: "
    with pytest.raises(FormatError, match=re.escape(told)):
        cfqa_data.load(folder, "cls")
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.startswith(told)
    assert main(["publish", str(folder), "org/cfqa", "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_what_does_not_agree_is_not_published(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_labels(folder, "dpt", change("distortion", 0.25))
    assert main(["publish", str(folder), "org/cfqa", "--dry-run"]) == 2
    assert f"{folder / 'labels/dpt.parquet'}: distortion of " in capsys.readouterr().err


def test_what_was_built_decodes_and_is_labelled_alike(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by workers; what is looked for without them in tests below is found and nothing else."""
    pool = replace_workers(monkeypatch)
    told = verify_deep(built, read_manifest(built), set(), sample=5, workers=2)
    assert (told.faults, told.notes) == ((), ())
    assert (told.decoded, told.compared, told.labelled) == (80, 80, 5)
    assert pool.calls > 6


def test_edited_codes_are_found_by_looking_deep_only(folder: Path) -> None:
    codes = np.stack(
        [Folder(folder).decoded(_source(folder), "x265", n).indices for n in range(10)]
    )
    codes[4, 0, 0, 3, 5] ^= 1
    write_codes(folder / "compressed/seg/x265.zarr", 1, codes)
    rehash(folder)
    assert found(folder) == []
    assert looked(folder, sample=0) == [
        f"compressed/seg/x265.zarr/c/1/0/0/0/0/0: level 4 of {_source(folder)} differs from "
        "its decoded bitstream"
    ]


def _source(folder: Path) -> str:
    return read_manifest(folder).tasks["seg"].sources[1]


def test_edited_labels_are_found_by_looking_deep_only(folder: Path) -> None:
    columns = ("mse", "cosine", "cka", "score", "loss")
    edited: list[str] = []

    def edit(rows: list[dict[str, Any]]) -> None:
        for row, column in zip(rows[17:], columns, strict=False):
            row[column] += 0.25
            row["distortion"] = row["reference_score"] - row["score"]
            edited.append(f"labels/seg.parquet: {column} of {row['source_id']}")

    edit_labels(folder, "seg", edit)
    told = looked(folder, sample=1000)
    assert sorted(text.split(" by ")[0] for text in told) == sorted(edited)


def test_bitstreams_that_do_not_decode_are_found(folder: Path) -> None:
    name = "bitstreams/cls-x265-00000-of-00002.safetensors"
    tensors = load_file(folder / name)
    key = next(key for key in tensors if key.endswith("/3"))
    tensors[key] = np.zeros_like(tensors[key])
    write_tensors(folder / name, tensors)
    rehash(folder)
    assert found(folder) == []
    told = looked(folder)
    assert len(told) == 1
    assert told[0].startswith(f"{name}: bitstream of {key[:-2]!r} by x265 at level 3 cannot be")


def test_the_sample_follows_the_seed(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfqa_data.builders.maintenance import deep_verify

    rows: list[Any] = []
    monkeypatch.setattr(
        deep_verify._DeepVerification,
        "_label_faults",
        lambda *args: rows.append(tuple(args[2].values())) or [],
    )
    samples = []
    for seed in (0, 0, 1):
        rows.clear()
        assert verify_deep(built, read_manifest(built), set(), sample=5, seed=seed).labelled == 5
        samples.append(sorted(map(str, rows)))
    assert samples[0] == samples[1] != samples[2]


def test_scores_are_left_out_where_the_head_is_not_here(folder: Path) -> None:
    weights = dict(read_manifest(folder).weights)
    head = next(uri for uri in weights if uri.endswith("seg.safetensors"))
    edit_manifest(folder, weights=weights | {head: "0" * 64})
    told = verify_deep(folder, read_manifest(folder), set(), sample=10, workers=1)
    assert told.faults == ()
    (note,) = told.notes
    why = f"{head}: no file of SHA-256 {'0' * 64} is in {folder}, "
    assert note.startswith(f"seg: scores were not recomputed: {why}")


def test_the_command_says_what_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert "no damage" in capsys.readouterr().out
    (folder / "labels/a\nb").write_text("x")
    flip(folder / KINDS["codes"])
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{KINDS['codes']}: its SHA-256 differs from the manifest's",
        "labels/a\\nb: is not in the manifest",
        f"{folder}: 2 files are damaged",
    ]
    assert main(["verify", str(folder), "--json"]) == 1
    assert [entry["path"] for entry in json.loads(capsys.readouterr().out)["damage"]] == [
        KINDS["codes"],
        "labels/a\nb",
    ]
    assert main(["repair", str(folder), "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{KINDS['codes']}: was rebuilt",
        "labels/a\\nb: was moved to .repair/aside",
    ]
    assert main(["verify", str(folder), "--deep", "--workers", "1", "--sample", "3"]) == 0
    assert "80 bitstreams decoded, 80 compared" in capsys.readouterr().out


def test_looking_deep_tells_of_what_stands_in_its_way(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_labels(folder, "dpt", lambda rows: rows.pop())
    assert main(["verify", str(folder), "--deep", "--workers", "1", "--sample", "3"]) == 1
    assert "labels/dpt.parquet: lacks 1 of " in capsys.readouterr().out


def test_no_dataset_is_status_2_and_a_damaged_manifest_is_damage(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["verify", str(empty)]) == 2
    (empty / ".build").mkdir()
    assert main(["verify", str(empty)]) == 2
    assert "not built yet" in capsys.readouterr().err
    (folder / "manifest.json").write_text("{")
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.startswith("manifest.json: cannot be read: ")
    assert main(["repair", str(folder)]) == 2


def test_a_light_folder(folder: Path) -> None:
    shutil.rmtree(folder / "compressed")
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {k: v for k, v in manifest["files"].items() if not k.startswith("compressed/")}
    edit_manifest(folder, tier="light", files=files)
    assert found(folder) == []
    told = verify_deep(folder, read_manifest(folder), set(), sample=10, workers=1)
    assert (told.faults, told.decoded, told.compared, told.labelled) == ((), 80, 0, 10)
