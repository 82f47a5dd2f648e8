"""All readers on the test folder of format 2, with user-defined tasks and codecs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zarr
from loopback_hub import LoopbackHub, loopback_hub, point_clients_at
from safetensors.numpy import load_file

import cfqa_data
from cfqa_data.builders.sharing.export import export
from cfqa_data.builders.sharing.publish import plan_publishing, publish
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError
from cfqa_data.format.facts import Terms
from cfqa_data.format.manifest import read_manifest, write_manifest
from cfqa_data.format.storage import write_table
from cfqa_data.integrity.consistency import inconsistencies
from cfqa_data.integrity.health import health
from cfqa_data.integrity.summary import summarise
from cfqa_data.loaders import attach
from cfqa_data.loaders.torch import Pairs, data_loader
from cfqa_data.testing.mock import PLUGINS, write_format_2_folder

TIERS = ("full", "light")
tiers = pytest.mark.parametrize("tier", TIERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("format-2")
    return {tier: write_format_2_folder(base / tier / "cfqa", tier) for tier in TIERS}


@pytest.fixture(scope="module")
def full(folders: dict[str, Path]) -> cfqa_data.Dataset:
    return cfqa_data.load(folders["full"])


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["full"], tmp_path / "copy"))


@tiers
def test_info_tells_of_tasks_and_codecs_by_the_manifest(
    folders: dict[str, Path], tier: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(folders[tier])]) == 0
    said = capsys.readouterr().out
    about = "marking words in a sentence; accuracy (higher is better, %); rounded (3 levels)"
    assert about in " ".join(said.split())
    assert max(len(line) for line in said.splitlines() if line.startswith("words: ")) <= 80
    assert "(2, 1, 1 to 9, 6)" in said
    assert "weak: a figure does not meet the threshold in its heading" in said
    row, *_ = (line.split() for line in said.splitlines() if "restored  " in line)
    assert row[5] == "-"  # its rate is unknown
    assert main(["info", str(folders[tier]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tasks"]["words"]["codecs"] == {"rounded": 3, "stepped": 10}
    assert told["tasks"]["one"]["loss"] is None
    assert (told["format"], told["sizes"]["full"] is None) == (2, tier == "light")
    assert told["sizes"]["float32"] == sum(
        4 * int(np.prod(shape)) for shape in all_shapes(folders["full"])
    )


def all_shapes(root: Path) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of all originals and compressed features."""
    made: dict[str, int] = {}
    for task in ("one", "words", "pictures", "cls"):
        for source in pq.read_table(root / f"labels/{task}.parquet")["source_id"].to_pylist():
            made[source] = made.get(source, 0) + 1
    for path in (root / "originals").iterdir():
        for source, feature in load_file(path).items():
            yield from [feature.shape] * (1 + made[source])


@tiers
def test_verify_finds_no_damage(folders: dict[str, Path], tier: str) -> None:
    assert main(["verify", str(folders[tier])]) == 0


def change(table: str, column: str, value: Any) -> Callable[[Path], None]:
    """Put a value into the first row of a column."""

    def do(root: Path) -> None:
        path = root / f"labels/{table}.parquet"
        rows = pq.read_table(path, partitioning=None)
        place = rows.schema.get_field_index(column)
        values = pa.array([value, *rows[column].to_pylist()[1:]], rows.schema.field(place).type)
        write_table(path, rows.set_column(place, rows.schema.field(place), values))

    return do


def shorten(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:20])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "tokens": (change("words", "tokens", 8), "labels/originals.parquet: tokens of sentence 0 is"),
    "too many tokens": (change("words", "tokens", 10), "tokens of sentence 0 by rounded"),
    "group": (change("one", "group", "a"), "group of one-0 by stepped at level 0 is a"),
    "group of an original": (change("originals", "group", "a"), "group of one-0 is 'a', not 'b'"),
    "a rate of none": (change("pictures", "bits", 0), "labels/pictures.parquet: bits of"),
    "gallery": (shorten("truth/one-gallery.safetensors"), "truth/one-gallery.safetensors: not a"),
    "no gallery": (
        lambda root: (root / "truth/one-gallery.safetensors").unlink(),
        "does not list truth/one-gallery.safetensors",
    ),
    "tables": (shorten("tables/pictures-picture.safetensors"), "tables/pictures-picture."),
    "another file": (
        lambda root: shutil.copy(root / "README.md", root / "tables/x.safetensors"),  # type: ignore[arg-type,return-value]
        "lists tables/x.safetensors, which is not part of the format",
    ),
    "an array too few": (
        lambda root: shutil.rmtree(root / "compressed/words/rounded.zarr"),
        "does not list compressed/words/rounded.zarr/zarr.json",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_parts_that_do_not_agree_are_told_of(kind: str, copy: Path) -> None:
    do, told = DAMAGE[kind]
    do(copy)
    write_manifest(copy, read_manifest(copy))
    found = [str(fault) for fault in inconsistencies(copy, read_manifest(copy), set())]
    assert any(told in line for line in found), found


def test_health_of_few_levels_and_of_what_is_not_known(full: cfqa_data.Dataset) -> None:
    rows = {(row["task"], row["codec"]): row for row in health(full.labels)}
    assert list(rows) == [
        *[("one", "stepped"), ("words", "rounded"), ("words", "stepped")],
        *[("pictures", "picture"), ("pictures", "restored"), ("cls", "x265")],
    ]
    assert rows["pictures", "restored"]["rate_falls"] is None
    (alone,) = health(cfqa_data.load(full.path or "", "cls", level=0).labels)
    assert (alone["changing"], alone["ok"]) == (None, True)
    for value in summarise(full.path or "")["health"]:
        json.dumps(value, allow_nan=False)


@tiers
def test_load_dataset_opens_what_the_card_says_and_attach_gives_true_lengths(
    folders: dict[str, Path], tier: str, full: cfqa_data.Dataset, tmp_path: Path
) -> None:
    root = folders[tier]
    head = yaml.safe_load((root / "README.md").read_text().split("---\n")[1])
    names = ["one", "words", "pictures", "cls", "originals", "all"]
    assert [config["config_name"] for config in head["configs"]] == names
    assert head["license"] == "other"  # the tasks have several, or none
    how = {"split": "test", "cache_dir": str(tmp_path)}
    loaded = datasets.load_dataset(str(root), "words", **how)
    assert (len(loaded), loaded[0]["tokens"]) == (
        52,
        full.labels.filter(pa.compute.equal(full.labels["task"], "words"))["tokens"][0].as_py(),
    )
    stream = datasets.load_dataset(str(root), "words", streaming=True, **how)
    for rows in (loaded, stream):
        for row in attach(rows, root, plugins=PLUGINS):
            wanted = full.compressed(row["source_id"], row["codec"], row["level"])
            assert np.asarray(row["compressed"]).tobytes() == wanted.tobytes()
            assert np.shape(row["original"]) == np.shape(row["compressed"]) == wanted.shape
            assert wanted.shape[2] == row["tokens"]
    originals = datasets.load_dataset(str(root), "originals", **how)
    assert [row["original"].shape[2] for row in attach(originals, root)] == originals["tokens"][:]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_different_lengths_are_lists(
    folders: dict[str, Path], workers: int, full: cfqa_data.Dataset
) -> None:
    pairs = Pairs(folders["light"], "words", plugins=PLUGINS, label=["source_id", "level", "codec"])
    seen = 0
    for batch in data_loader(pairs, 16, workers=workers):
        assert isinstance(batch.original, list)
        for row, feature in enumerate(batch.compressed):
            source, codec = batch.label["source_id"][row], batch.label["codec"][row]
            wanted = full.compressed(source, codec, int(batch.label["level"][row]))
            assert feature.numpy().tobytes() == wanted.tobytes()
            assert batch.original[row].shape == wanted.shape
            seen += 1
    assert seen == len(pairs)
    (batch, *_) = data_loader(Pairs(folders["full"], "one"), 16)
    assert batch.original.shape == (16, 1, 3, 1, 8)


def test_a_label_that_is_not_known_is_told_of(folders: dict[str, Path]) -> None:
    for task, codec, column in (("one", "stepped", "loss"), ("pictures", "restored", "bits")):
        pairs = Pairs(folders["full"], task, codec=codec, label=column)
        with pytest.raises(CfqaError, match=f"{column} of .* by {codec} is not known"):
            pairs[0]


def test_codes_are_batched_and_values_have_none(folders: dict[str, Path]) -> None:
    pairs = Pairs(folders["full"], "words", codec="stepped", codes=True)
    (batch, *_) = data_loader(pairs, 40)
    assert [codes.dequantize().shape for codes in batch.compressed] == [
        feature.shape for feature in batch.original
    ]
    with pytest.raises(
        CfqaError, match=r"^codes=True: rounded has values .*; leave codes=True out$"
    ):
        Pairs(folders["full"], "words", codec="rounded", codes=True)
    with pytest.raises(CfqaError, match=r"choose others, codec=\[.*'stepped'.*\], or leave"):
        Pairs(folders["full"], "words", codes=True)


@lru_cache(maxsize=64)
def opened(path: Path, kind: str) -> Any:
    """Return the content of a file of an export, cached."""
    if kind == "safetensors":
        return load_file(path)
    if kind == "parquet":
        return pq.read_table(path, partitioning=None).to_pylist()
    return zarr.open_array(str(path), mode="r")


def read_export(out: Path, kind: str, row: dict[str, Any], stem: str) -> np.ndarray:
    """Return a feature of an export by a row of its index, read with the library of the format."""
    path = out / row[f"{stem}file"]
    if kind == "npy":
        return np.asarray(np.load(path))
    if kind == "safetensors":
        return np.asarray(opened(path, kind)[row[f"{stem}key"]])
    if kind == "parquet":
        found = opened(path, kind)[row[f"{stem}row"]]
        return np.array(found["feature"], np.float32).reshape(found["shape"])
    array = opened(path, kind)
    place = [row[f"{stem}source_index"], *([] if stem else [row["level_index"]])]
    tokens = array.attrs["tokens"][place[0]]
    feature = np.asarray(array[tuple(place)])
    assert not feature[:, :, tokens:].any()
    return feature[:, :, :tokens]


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet", "zarr"])
def test_exports_have_the_true_lengths(kind: str, full: cfqa_data.Dataset, tmp_path: Path) -> None:
    assert full.path is not None
    done = export(full.path, tmp_path / "out", kind)
    assert done.features == 118 + 16
    assert done.size == summarise(full.path)["sizes"]["float32"]
    for row in pq.read_table(tmp_path / "out/index.parquet").to_pylist():
        wanted = full.compressed(row["source_id"], row["codec"], row["level"])
        found = read_export(tmp_path / "out", kind, row, "")
        assert (found.shape, found.tobytes()) == (wanted.shape, wanted.tobytes())
        original = read_export(tmp_path / "out", kind, row, "original_")
        assert original.tobytes() == full.original(row["source_id"]).tobytes()


def test_a_light_folder_is_exported_with_the_codecs_that_the_command_names(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(folders["light"]), "--out", str(tmp_path / "x"), "--format", "npy"]
    words += ["--task", "words"]
    assert main(words) == 2
    assert "not installed: codec" in capsys.readouterr().err
    plugins = [word for name in PLUGINS for word in ("--plugin", name)]
    assert main([*words, *plugins]) == 0
    out = tmp_path / "pictures"
    words = ["export", str(folders["light"]), "--out", str(out), "--format", "npy"]
    assert main([*words, "--task", "pictures", *plugins]) == 0
    assert "codec 'restored' of pictures: its features are not stored" in capsys.readouterr().err
    assert set(pq.read_table(out / "index.parquet")["codec"].to_pylist()) == {"picture"}
    with pytest.raises(CfqaError, match="those features are not stored"):
        export(folders["light"], tmp_path / "none", "npy", task="pictures", codec="restored")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        point_clients_at(hub, monkeypatch, tmp_path / "cache")
        yield hub


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@tiers
def test_what_is_published_is_read_back(
    hub: LoopbackHub, folders: dict[str, Path], tier: str, full: cfqa_data.Dataset
) -> None:
    with pytest.raises(CfqaError, match="states no licence of task 'words': give --licence"):
        plan_publishing(folders[tier], "org/cfqa")
    terms = Terms("odbl", attribution="The Words project", truths=True)
    done = publish(plan_publishing(folders[tier], "org/cfqa", terms=terms))
    there = cfqa_data.load("org/cfqa", revision=done.tag, plugins=PLUGINS)
    columns = ["array", "bpfp"]  # null in the light tier, and NaN, which is not equal to itself
    assert there.labels.drop_columns(columns) == full.labels.drop_columns(columns)
    for source, codec, level in (("sentence 3", "rounded", 1), ("picture-0", "picture", 3)):
        wanted = full.compressed(source, codec, level)
        assert there.compressed(source, codec, level).tobytes() == wanted.tobytes()
    assert there.gallery("one").keys() == full.gallery("one").keys()
    sha = hub.repos["org/cfqa"].find(done.tag)
    assert sha is not None
    files = hub.repos["org/cfqa"].commits[sha].files
    assert "tables/pictures-picture.safetensors" in files
    card = hub.blobs[files["README.md"]].decode()
    assert f'load_dataset("org/cfqa", "one", revision="{done.tag}")["test"]  # the' in card
    assert "contains the complete recipe" in card
    assert "- `words`: odbl; The Words project; inputs may not be redistributed; truths may" in card
    stated = [there.manifest.tasks[task].terms for task in ("one", "words")]
    assert stated == [full.manifest.tasks["one"].terms, terms]


def test_a_folder_that_lacks_bitstreams_is_not_published_as_light(folders: dict[str, Path]) -> None:
    with pytest.raises(CfqaError, match="no light tier"):
        plan_publishing(folders["full"], "org/cfqa", tier="light")


def test_the_card_tells_what_axes_terms_and_codecs_there_are(folders: dict[str, Path]) -> None:
    text = (folders["full"] / "README.md").read_text()
    for line in (
        "**Contents:** Every case of format 2, in little. Its results",
        "118 compressed ones\n(5 codecs, 2 to 10 levels each)",
        "`words`, `pictures`, `cls`: inputs of its author.",
        "| words | forwards, backwards | last hidden state (after the norm) | up to 9 | 0 | - |",
        "| words | marking words in a sentence | 4 | 2 x 1 x 9 x 6 | accuracy (higher is better",
        "| pictures | restored | ",
        "| `group` | string | ",
        "Level 0 has the best quality, the last the worst.",
        "- `one`: cc-by-4.0; https://example.org/one; The One project; inputs may not be ",
    ):
        assert line in text, line
    assert "$" not in text
    assert "dpt" not in text


def test_rows_of_a_folder_with_and_without_plugins_are_apart(folders: dict[str, Path]) -> None:
    rows = datasets.Dataset.from_list(
        cfqa_data.load(folders["light"], "words", codec="rounded", level=0).labels.to_pylist()
    )
    decoding = attach(rows, folders["light"], plugins=PLUGINS)
    bare = attach(rows, folders["light"])
    assert np.shape(pickle.loads(pickle.dumps(decoding))[0]["compressed"])[:2] == (2, 1)
    with pytest.raises(CfqaError, match="not installed: codec"):
        bare[0]
