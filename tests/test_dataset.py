from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cases import each
from mock_dataset import TOY_SHAPES, MockCodec, toy_recipe_dict, write_mock_dataset

import cfqa_data
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.manifest import hash_files
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.load import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("data") / "cfqa")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A folder that tests may damage."""
    return Path(shutil.copytree(folder, tmp_path / "cfqa"))


@pytest.fixture
def mock_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_codec(name: str, **_: Any) -> MockCodec:
        return MockCodec(np.dtype(np.uint8 if "hyperprior" in name else np.uint16))

    monkeypatch.setattr("cfqa_data.codecs.get_codec", get_codec, raising=False)


def test_length_is_the_number_of_rows_asked_for(folder: Path) -> None:
    assert len(cfqa_data.load(folder)) == 3 * 3 * 4 * 10
    assert len(cfqa_data.load(folder, "cls")) == 3 * 4 * 10
    assert len(cfqa_data.load(folder, "cls", codec="x265")) == 3 * 10
    assert len(cfqa_data.load(folder, "cls", codec=["x265", "vvenc"], level=range(2))) == 12
    assert len(cfqa_data.load(folder, level=9)) == 3 * 3 * 4
    assert cfqa_data.load(folder, "seg", fold=np.int8(2)).source_ids == ["seg-002"]
    assert cfqa_data.load(folder, "cls", fold=range(2)).source_ids == ["cls-000", "cls-001"]
    assert len(cfqa_data.load(folder, codec=[])) == 0
    column = cfqa_data.load(folder, "cls").labels["source_id"]
    assert len(cfqa_data.load(folder, source=column)) == 3 * 4 * 10


def test_of_the_sources_that_are_asked_for_alone_rows_are_read(folder: Path, copy: Path) -> None:
    whole, codecs = cfqa_data.load(folder).labels, ["vvenc", "x265"]
    for path in (copy / "labels").glob("???.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=30)
    for task, several in (
        (None, ["seg-002", "cls-000", "cls-000"]),
        ("cls", ["cls-001"]),
        ("cls", []),
    ):
        found = cfqa_data.load(copy, task, source=iter(several), codec=codecs)
        of_sources = pc.is_in(whole["source_id"], value_set=pa.array(several, pa.string()))
        of_codecs = pc.is_in(whole["codec"], value_set=pa.array(codecs))
        assert found.labels.equals(whole.filter(pc.and_(of_sources, of_codecs)))
    labels = copy / "labels" / "cls.parquet"
    table = pq.read_table(labels)
    there = table["source_id"].to_pylist()
    row = len(there) - 1 - there[::-1].index("cls-002")
    rows = [n for n in range(len(there)) if n != row]
    pq.write_table(table.take(rows), labels, row_group_size=30)
    assert len(cfqa_data.load(copy, source="cls-001")) == 4 * 10
    with pytest.raises(FormatError, match=r"lacks 1 of 40 rows, first .*cls-002"):
        cfqa_data.load(copy, source="cls-002")
    with pytest.raises(FormatError, match=r"lacks 1 of 120 rows"):
        cfqa_data.load(copy)


def test_a_pair_is_what_its_label_says(folder: Path) -> None:
    dataset = cfqa_data.load(folder)
    assert isinstance(dataset, Sequence)
    for index in (0, 45, 200, len(dataset) - 1):
        pair = dataset[index]
        label = pair.label
        assert type(label) is dict
        assert pair.original.shape == pair.compressed.shape == TOY_SHAPES[label["task"]]
        assert pair.original.dtype == pair.compressed.dtype == np.float32
        error = np.square(pair.original.astype(np.float64) - pair.compressed).mean()
        assert error == pytest.approx(label["mse"], rel=1e-12)
        source = label["source_id"]
        np.testing.assert_array_equal(pair.original, dataset.original(source))
        np.testing.assert_array_equal(
            pair.compressed, dataset.compressed(source, label["codec"], label["level"])
        )


def test_indices_and_slices_follow_the_rules_of_sequences(folder: Path) -> None:
    dataset = cfqa_data.load(folder, "seg")
    assert dataset[-1].label == dataset[len(dataset) - 1].label
    assert dataset[np.int64(3)].label == dataset[3].label
    part = dataset[5:25:10]
    assert [pair.label for pair in part] == [dataset[5].label, dataset[15].label]
    assert dataset[::-1][0].label == dataset[-1].label
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("fold", [3, -1, True, "1", 1.0, [0, None]])
def test_a_fold_that_no_source_is_in_is_told(folder: Path, fold: Any) -> None:
    wrong = repr(fold[1] if isinstance(fold, list) else fold)
    with pytest.raises(CfqaError, match=rf"no source is in fold {wrong}: folds are 0, 1, 2$"):
        cfqa_data.load(folder, fold=fold)


def test_sources_and_truth(folder: Path) -> None:
    dataset = cfqa_data.load(folder, "dpt")
    assert dataset.source_ids == ["dpt-000", "dpt-001", "dpt-002"]
    assert dataset.truth("dpt-002") == 2
    assert dataset.manifest.tier == "full"
    assert "toy" in repr(dataset)


@pytest.mark.usefixtures("mock_codecs")
def test_the_light_tier_reads_alike(folder: Path, tmp_path: Path) -> None:
    full = cfqa_data.load(folder)
    light = cfqa_data.load(write_mock_dataset(tmp_path / "light", tier="light"))
    assert not (tmp_path / "light/compressed").exists()
    assert light.labels.equals(full.labels)
    for index in range(0, len(full), 7):
        np.testing.assert_array_equal(light[index].compressed, full[index].compressed)
        np.testing.assert_array_equal(light[index].original, full[index].original)


def test_the_same_input_gives_the_same_folder(folder: Path, tmp_path: Path) -> None:
    again = write_mock_dataset(tmp_path / "again")
    assert hash_files(again) == hash_files(folder)
    assert (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_a_pickled_dataset_opens_its_files_anew(folder: Path) -> None:
    dataset = cfqa_data.load(folder, "cls", codec="x265")
    before = dataset[3]
    data = pickle.dumps(dataset)
    assert len(data) < 150_000  # its rows and manifest, but no features
    after = pickle.loads(data)[3]
    assert after.label == before.label
    np.testing.assert_array_equal(after.compressed, before.compressed)


@each(
    ("arguments", "message"),
    [
        (("clss",), "did you mean 'cls'"),
        (("cls", "x256"), "did you mean 'x265'"),
        (("cls", "x265", 10), "there is no level 10: levels are 0 to 9"),
        (("cls", "x265", [0, -1]), "there is no level -1"),
        (("cls", "x265", 2.0), "a level must be a whole number from 0 to 9, not 2.0"),
        (("cls", "x265", True), "a level must be a whole number from 0 to 9, not True"),
        (("cls", "x265", "3"), "a level must be a whole number from 0 to 9, not '3'"),
        (("cls", "x265", [[1]]), r"a level must be a whole number from 0 to 9, not \[1\]"),
        (("cls", 2.0), "unknown codec '2.0'"),
        (("cls", "hm"), "unknown codec 'hm': known: x265, vvenc"),  # no codec of this folder
        (("cls", b"x265"), "unknown codec .*x265"),
    ],
)
def test_unknown_names_are_refused(folder: Path, arguments: tuple[Any, ...], message: str) -> None:
    task, codec, level = (*arguments, None, None)[:3]
    with pytest.raises(CfqaError, match=message):
        cfqa_data.load(folder, task, codec=codec, level=level)


def test_levels_of_any_whole_type_are_known(folder: Path) -> None:
    for level in (3, np.int64(3), np.uint8(3), np.array(3)):
        dataset = cfqa_data.load(folder, "cls", codec="x265", level=level)
        assert set(dataset.labels["level"].to_pylist()) == {3}
    assert len(cfqa_data.load(folder, "cls", codec="x265", level=np.array([0, 9]))) == 2 * 3
    stored, plain = (dataset.compressed("cls-000", "x265", n) for n in (np.int8(3), 3))
    np.testing.assert_array_equal(stored, plain)
    assert dataset.bitstream("cls-000", "x265", np.int8(3))


@each(
    ("read", "message"),
    [
        (lambda d: d.original("cls-0001"), "unknown source 'cls-0001': did you mean 'cls-00"),
        (lambda d: d.truth("nothing"), "unknown source"),
        (lambda d: d.compressed("cls-000", "x256", 0), "unknown codec"),
        (lambda d: d.compressed("cls-000", "x265", 10), "no level 10"),
        (lambda d: d.compressed("cls-000", "x265", -1), "no level -1"),
        (lambda d: d.compressed("cls-000", "x265", 2.0), "a whole number from 0 to 9, not 2.0"),
        (lambda d: d.bitstream("cls-000", "x265", True), "a whole number from 0 to 9, not True"),
        (lambda d: d.compressed("cls-000", ["x265"], 0), "unknown codec"),
        (lambda d: d.bitstream("cls-9", "x265", 0), "unknown source"),
    ],
)
def test_unknown_features_are_refused(
    folder: Path, read: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        read(cfqa_data.load(folder))


def _remove(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _spoil(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).write_bytes(b"\xff" * 64)

    return change


def _nest(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).write_text("[" * 100_000 + "]" * 100_000)

    return change


def _retype(name: str, dtype: str) -> Callable[[Path], None]:
    """Change the dtype of the first tensor of a safetensors file to a smaller one."""
    size = {"BF16": 2, "F16": 2, "F8_E4M3": 1}[dtype]
    bytes_ = size * 9 * 16
    entry = {"dtype": dtype, "shape": [1, 1, 9, 16], "data_offsets": [0, bytes_]}

    def change(root: Path) -> None:
        header = json.dumps({"cls-000": entry}).encode()
        (root / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(bytes_))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove("manifest.json"), "not a CFQA dataset folder"),
        (_remove("labels/cls.parquet"), "cls.parquet: missing"),
        (_spoil("labels/cls.parquet"), "cls.parquet: not a readable Parquet"),
        (_remove("originals/cls-00000-of-00002.safetensors"), "cls-00000-of-00002.*: missing; is"),
        (_spoil("originals/cls-00000-of-00002.safetensors"), "cls-00000.* not a safetensors file"),
        (_remove("originals"), "cls-00000-of-00002.safetensors: missing"),
        (_remove("compressed/cls/x265.zarr/c/0"), "missing shard"),
        (_remove("compressed/cls/x265.zarr/zarr.json"), "missing"),
        (_spoil("compressed/cls/x265.zarr/zarr.json"), "cannot be read"),
        (
            _nest("compressed/cls/x265.zarr/zarr.json"),
            "zarr.json: cannot be read: nested too deeply",
        ),
        (
            _retype("originals/cls-00000-of-00002.safetensors", "BF16"),
            "'cls-000' is BF16, not used",
        ),
        (_retype("originals/cls-00000-of-00002.safetensors", "F8_E4M3"), "'cls-000' is F8_E4M3,"),
        (_retype("originals/cls-00000-of-00002.safetensors", "F16"), "'cls-000' is float16 "),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    copy: Path, change: Callable[[Path], None], message: str
) -> None:
    change(copy)
    with pytest.raises(FormatError, match=message):
        cfqa_data.load(copy, "cls")[0]


def _convert(name: str, dtype: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        from safetensors.numpy import load_file, save_file

        save_file({k: t.astype(dtype) for k, t in load_file(root / name).items()}, root / name)

    return change


def _other_range(root: Path) -> None:
    path = root / "compressed/cls/x265.zarr/zarr.json"
    path.write_text(path.read_text().replace("8.0", "7.0"))


@pytest.mark.parametrize(
    ("change", "read", "message"),
    [
        (
            _convert("truth/cls.safetensors", "i4"),
            lambda d: d.truth("cls-001"),
            "truth/cls.safetensors: 'cls-001' is int32 of 0 axes; a truth of cls is int64 of 0",
        ),
        (
            _convert("bitstreams/cls-x265-00000-of-00002.safetensors", "i2"),
            lambda d: d.bitstream("cls-001", "x265", 3),
            "'cls-001/3' is int16 of 1 axes, not a one-dimensional array",
        ),
        (
            _other_range,
            lambda d: d[0],
            "x265.zarr/zarr.json: its quantiser differs from the manifest's",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused(
    copy: Path, change: Callable[[Path], None], read: Callable[[Any], object], message: str
) -> None:
    change(copy)
    with pytest.raises(FormatError, match=message):
        read(cfqa_data.load(copy, "cls"))


def test_an_array_of_other_sources_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "compressed/cls/x265.zarr")
    other = write_mock_dataset(copy.parent / "other", sources=2)
    shutil.copytree(other / "compressed/cls/x265.zarr", copy / "compressed/cls/x265.zarr")
    with pytest.raises(FormatError, match="the manifest says"):
        cfqa_data.load(copy, "cls")[0]


@pytest.mark.usefixtures("mock_codecs")
def test_a_bitstream_that_does_not_decode_is_named(copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.rmtree(copy / "compressed")
    path = copy / "bitstreams/cls-x265-00000-of-00002.safetensors"
    save_file(load_file(path) | {"cls-000/0": np.zeros(5, np.uint8)}, path)
    with pytest.raises(FormatError, match="'cls-000' by x265 at level 0 cannot be decoded: bad"):
        cfqa_data.load(copy, "cls")[0]


@pytest.mark.usefixtures("mock_codecs")
def test_only_the_weights_that_made_the_bitstreams_decode_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models.safetensors"
    models.write_bytes(b"weights")
    recipe = toy_recipe_dict()
    recipe["tasks"] = {"cls": recipe["tasks"]["cls"]}
    codecs = recipe["tasks"]["cls"]["codecs"]
    ladder = codecs["hyperprior_multi_task"] | {"models": str(models)}
    recipe["tasks"]["cls"]["codecs"] = {"hyperprior_multi_task": ladder}
    folder = write_mock_dataset(tmp_path / "x", tier="light", recipe=Recipe.from_dict(recipe))
    assert cfqa_data.load(folder)[0].compressed.shape == TOY_SHAPES["cls"]
    models.write_bytes(b"other weights")
    with pytest.raises(
        FormatError, match=r"models\.safetensors is a different file, and no file of"
    ):
        cfqa_data.load(folder)[0]
    # The same weights under another name: in the moved folder, or below the root.
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    monkeypatch.setenv("CFQA_ROOT", str(tmp_path / "data"))
    for place in (moved, moved / "weights", tmp_path / "data" / "mine"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "renamed.safetensors").write_bytes(b"weights")
        assert cfqa_data.load(moved)[0].compressed.shape == TOY_SHAPES["cls"]
        assert verify(moved).damage == ()
        (place / "renamed.safetensors").unlink()
        with pytest.raises(
            FormatError, match=r"models\.safetensors is a different file, and no file of"
        ):
            cfqa_data.load(moved)[0]
    (moved / "renamed.safetensors").write_bytes(b"of another hash")
    assert [fault.path for fault in verify(moved).damage] == ["renamed.safetensors"]


def test_labels_keep_the_order_of_severity(folder: Path) -> None:
    labels = cfqa_data.load(folder, "cls", codec="x265", level=[0, 9]).labels
    mse = labels["mse"]
    best = mse.filter(pc.equal(labels["level"], 0))
    worst = mse.filter(pc.equal(labels["level"], 9))
    assert pc.max(best).as_py() < pc.min(worst).as_py()


def test_a_bad_codec_option_in_a_manifest_is_named(tmp_path: Path) -> None:
    folder = write_mock_dataset(tmp_path / "x", tier="light")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for option, message in (
        ({"name": "x"}, "unknown option 'name': known: preset"),
        ({"prest": "slow"}, "unknown option 'prest': did you mean 'preset'"),
        ({"preset": 3}, "option preset cannot be 3"),
    ):
        manifest["recipe"]["tasks"]["cls"]["codecs"]["vvenc"]["options"] = option
        path.write_text(json.dumps(manifest))
        where = "manifest.json: tasks.cls.codecs.vvenc: vvenc: "
        with pytest.raises(FormatError, match=where + message):
            cfqa_data.load(folder, "cls", codec="vvenc")[0]


# Labels without exactly one row per source, codec and level.


def _put(column: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        field = table.schema.field(column)
        changed = pa.array(values(table[column].to_pylist()), field.type)
        return table.set_column(place, field, changed)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(0, 17), "lacks 103 of 120 rows, first .*cls-000, codec vvenc, level 7;"),
        (lambda t: t.slice(0, 0), "lacks 120 of 120 rows, first .*cls-000, codec x265, level 0;"),
        (
            lambda t: t.filter(pc.not_equal(t["codec"], "vvenc")),
            "lacks 30 of 120 rows, .*codec vvenc, level 0",
        ),
        (
            lambda t: pa.concat_tables([t, t.slice(5, 2)]),
            "duplicate row 120: task cls, source_id cls-000, codec x265, level 5;",
        ),
        (
            lambda t: pa.concat_tables([t.slice(1, 1), t.slice(1)]),
            "lacks 1 of 120 rows, .*codec x265, level 0",
        ),
        (_put("level", lambda v: [99] * len(v)), "row 0: unknown level '99'"),
        (_put("codec", lambda v: [*v[:30], "x266", *v[31:]]), "row 30: unknown codec 'x266'"),
        (_put("task", lambda v: [*v[:-1], "seg"]), "row 119: unknown task 'seg'.* known: cls;"),
        (_put("source_id", lambda v: ["cls-9", *v[1:]]), "row 0: unknown source_id 'cls-9'"),
        (_put("source_id", lambda v: [None] * len(v)), "source_id is null in row 0;"),
        (
            _put("fold", lambda v: [*v[:50], 3, *v[51:]]),
            "fold of cls-001 by vvenc at level 0 is 3, not its source's position modulo 5;",
        ),
        (_put("index", lambda v: [2, *v[1:]]), "index of cls-000 by x265 at level 0 is 2, not its"),
        (_put("array", lambda v: v[::-1]), "array of cls-000 by x265 at level 0 is .* not the arr"),
        (_put("codec", lambda v: [*v[:7], None, *v[8:]]), "codec is null in row 7;"),
        (_put("distortion", lambda v: [*v[:-1], None]), "distortion is null in row 119;"),
    ],
)
def test_labels_that_are_not_whole_are_refused(
    copy: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    path = copy / "labels/cls.parquet"
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)
    with pytest.raises(FormatError, match=f"cls.parquet: {message}"):
        cfqa_data.load(copy)
    assert len(cfqa_data.load(copy, "seg")) == 120


def test_labels_may_come_in_any_order(copy: Path, folder: Path) -> None:
    path = copy / "labels/cls.parquet"
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.sort_by([("source_id", "ascending"), ("level", "descending")]), path)
    dataset = cfqa_data.load(copy, "cls")
    assert dataset[0].label["level"] == 9
    assert dataset.labels.num_rows == cfqa_data.load(folder, "cls").labels.num_rows
