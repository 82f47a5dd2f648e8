"""Format 2 is read and written: all cases of the test folder, both tiers, local and on a Hub."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from loopback_hub import LoopbackHub, loopback_hub, point_clients_at

import cfqa_data
from cfqa_data.access.folder import Folder
from cfqa_data.builders.maintenance.deep_verify import verify_deep
from cfqa_data.builders.maintenance.repair import repair
from cfqa_data.codecs import find_codec
from cfqa_data.codecs.base import Bitstream, FeatureCodec
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format import facts, format_1
from cfqa_data.format.facts import Parameter
from cfqa_data.format.manifest import Manifest, hash_files, manifest_text, read_manifest
from cfqa_data.registry import RegistryEntry
from cfqa_data.testing.mock import PLUGINS, Picture, write_format_2_folder

TIERS = ("full", "light")
KINDS = {
    ("one", "stepped"): (7, 4),
    ("words", "rounded"): (4, 3),
    ("words", "stepped"): (4, 10),
    ("pictures", "picture"): (3, 4),
    ("pictures", "restored"): (3, 2),
    ("cls", "x265"): (2, 10),
}
"""Return the sources and levels of each codec."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("format-2")
    return {tier: write_format_2_folder(base / tier, tier) for tier in TIERS}


@pytest.fixture(scope="module")
def full(folders: dict[str, Path]) -> cfqa_data.Dataset:
    return cfqa_data.load(folders["full"])


def rows(dataset: cfqa_data.Dataset, task: str, codec: str) -> list[int]:
    pairs = zip(*(dataset.labels[name].to_pylist() for name in ("task", "codec")), strict=True)
    return [place for place, pair in enumerate(pairs) if pair == (task, codec)]


def read_all(dataset: cfqa_data.Dataset) -> dict[tuple[str, str, int], np.ndarray]:
    """Return all compressed features."""
    found = {}
    for row in dataset.labels.select(["source_id", "codec", "level", "array"]).to_pylist():
        if row["array"] is not None:
            key = row["source_id"], row["codec"], row["level"]
            found[key] = dataset.compressed(*key)
    return found


def test_the_folder_is_the_same_every_time(folders: dict[str, Path], tmp_path: Path) -> None:
    again = write_format_2_folder(tmp_path / "again")
    assert hash_files(again) == hash_files(folders["full"])


@pytest.mark.parametrize("tier", TIERS)
def test_every_pair_is_read(folders: dict[str, Path], tier: str, full: cfqa_data.Dataset) -> None:
    dataset = cfqa_data.load(folders[tier], plugins=PLUGINS)
    assert (dataset.manifest.format, list(dataset.manifest.tasks)) == (
        2,
        ["one", "words", "pictures", "cls"],
    )
    expected = read_all(full)
    assert len(expected) == len(full) == sum(s * levels for s, levels in KINDS.values()) == 118
    for (task, codec), (sources, levels) in KINDS.items():
        places = rows(dataset, task, codec)
        assert len(places) == sources * levels
        for place in places:
            label = dataset.labels.slice(place, 1).to_pylist()[0]
            if label["array"] is None:
                assert (tier, codec) == ("light", "restored")
                with pytest.raises(FormatError, match="contains no bitstreams of restored on pict"):
                    dataset[place]
                continue
            pair = dataset[place]
            n, c, _, d = dataset.manifest.tasks[task].shape
            assert pair.original.shape == pair.compressed.shape == (n, c, label["tokens"], d)
            assert pair.original.dtype == pair.compressed.dtype == np.float32
            key = label["source_id"], codec, label["level"]
            np.testing.assert_array_equal(pair.compressed, expected[key])
            mse = np.square(pair.original.astype(float) - pair.compressed).mean()
            assert pair.label["mse"] == pytest.approx(mse)


def test_tokens_that_are_not_there_are_not_given(full: cfqa_data.Dataset) -> None:
    tokens = dict(zip(*(full.labels[n].to_pylist() for n in ("source_id", "tokens")), strict=True))
    assert [tokens[f"sentence {n}"] for n in range(4)] == [1, 9, 4, 6]
    assert full.codes("sentence 2", "stepped", 3).indices.shape == (2, 1, 4, 6)
    assert full.truth("sentence 2").shape == (4,)
    part = full.compressed("sentence 2", "rounded", 1, views=1, tokens=slice(-1, None))
    whole = full.compressed("sentence 2", "rounded", 1)
    np.testing.assert_array_equal(part, whole[1:, :, -1:])
    np.testing.assert_array_equal(
        full.codes("sentence 2", "stepped", 1, tokens=slice(None, None, -1)).dequantize(),
        full.compressed("sentence 2", "stepped", 1)[:, :, ::-1],
    )
    for read in (full.original, lambda source, **p: full.compressed(source, "rounded", 0, **p)):
        with pytest.raises(CfqaError, match="no token 4: tokens are 0 to 3"):
            read("sentence 2", tokens=4)
    with pytest.raises(FormatError, match="rounded on words has values and no codes"):
        full.codes("sentence 2", "rounded", 1)


def test_labels_say_what_is_not_known(full: cfqa_data.Dataset, folders: dict[str, Path]) -> None:
    one = cfqa_data.load(folders["full"], "one").labels
    assert one["cka"].null_count == one["loss"].null_count == one.num_rows == 28
    assert [one["fold"][4 * n].as_py() for n in range(7)] == [0, 1, 1, 0, 2, 2, 1]
    assert one["group"].to_pylist()[::4] == list("baabcca")
    words = cfqa_data.load(folders["full"], "words", codec="rounded").labels
    single = pc.equal(words["tokens"], 1)
    assert words["cka"].is_null().to_pylist() == single.to_pylist()
    pictures = cfqa_data.load(folders["full"], "pictures").labels
    unknown = pc.equal(pictures["codec"], "restored").to_pylist()
    assert pictures["bits"].is_null().to_pylist() == unknown
    assert np.isnan(pictures["bpfp"].to_numpy()).tolist() == unknown
    assert full.labels["array"].null_count == 0
    light = cfqa_data.load(folders["light"], "pictures").labels
    assert light["array"].is_null().to_pylist() == unknown


def test_levels_are_those_of_each_codec(folders: dict[str, Path], full: cfqa_data.Dataset) -> None:
    path = folders["full"]
    assert cfqa_data.load(path, "words", level=9).labels["codec"].unique().to_pylist() == [
        "stepped"
    ]
    with pytest.raises(FormatError, match="there is no level 3: levels are 0 to 2"):
        full.compressed("sentence 0", "rounded", 3)
    with pytest.raises(FormatError, match="there is no level 3: levels are 0 to 2"):
        cfqa_data.load(path, "words", codec="rounded", level=3)
    with pytest.raises(CfqaError, match="unknown task 'seg'"):
        cfqa_data.load(path, "seg")


def test_galleries_and_truths(full: cfqa_data.Dataset) -> None:
    assert {name: array.shape for name, array in full.gallery("one").items()} == {
        "features": (7, 8)
    }
    with pytest.raises(FormatError, match="task words has no gallery"):
        full.gallery("words")
    with pytest.raises(CfqaError, match="unknown task 'two'"):
        full.gallery("two")
    with pytest.raises(FormatError, match="contains no ground truth of pictures"):
        full.truth("picture-0")


def test_a_codec_that_is_not_here_is_named_with_its_package(folders: dict[str, Path]) -> None:
    dataset = cfqa_data.load(folders["light"])
    stored = {source for source in dataset.source_ids if source.startswith("picture")}
    assert {key[0] for key in read_some(dataset, "picture")} == stored
    with pytest.raises(FormatError) as caught:
        dataset.compressed("one-0", "stepped", 0)
    told = str(caught.value)
    assert "\n" not in told
    assert "not installed: codec 'stepped' of 'mock-codecs 1.0'" in told


def read_some(dataset: cfqa_data.Dataset, codec: str) -> list[tuple[str, str, int]]:
    labels = dataset.labels.filter(pc.equal(dataset.labels["codec"], codec)).to_pylist()
    keys = [(row["source_id"], row["codec"], row["level"]) for row in labels]
    return [key for key in keys if dataset.compressed(*key).size]


def test_a_codec_gets_its_tables(folders: dict[str, Path]) -> None:
    folder = Folder(folders["light"], plugins=[Picture])
    stream = folder.bitstream("picture-1", "picture", 0)
    inputs = folder.decoder("pictures", "picture").decode(stream)
    means = inputs.mean(0, keepdims=True)
    feature = folder.compressed("picture-1", "picture", 0)
    np.testing.assert_allclose(feature[0, 0], np.concatenate([means, inputs]) / 64 - 2, rtol=1e-6)
    with pytest.raises(FormatError, match="encode inputs, and the backbone extracts the features"):
        folder.decoded("picture-1", "picture", 0)


def test_strangers_plugins_are_not_run(folders: dict[str, Path]) -> None:
    dataset = cfqa_data.load(folders["light"], untrusted=True, plugins=PLUGINS)
    assert dataset.compressed("cls-0", "x265", 9).shape == (1, 1, 16, 16)
    with pytest.raises(FormatError, match="untrusted=True runs built-in codecs only") as told:
        dataset.compressed("one-0", "stepped", 0)
    assert "\n" not in str(told.value)


def test_a_pickled_dataset_has_its_plugins(folders: dict[str, Path]) -> None:
    dataset = cfqa_data.load(folders["light"], "words", plugins=PLUGINS)
    again = pickle.loads(pickle.dumps(dataset))
    for place in (0, len(dataset) - 1):
        np.testing.assert_array_equal(again[place].compressed, dataset[place].compressed)


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        for tier, folder in folders.items():
            hub.put(f"org/{tier}", folder)
        yield hub


@pytest.mark.parametrize("tier", TIERS)
def test_a_repo_on_the_hub_reads_the_same(
    server: LoopbackHub,
    folders: dict[str, Path],
    tier: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    point_clients_at(server, monkeypatch, tmp_path / "cache", token=None)
    monkeypatch.chdir(tmp_path)
    local, remote = (
        cfqa_data.load(place, plugins=PLUGINS) for place in (folders[tier], f"org/{tier}")
    )
    assert repr(remote.labels.to_pylist()) == repr(local.labels.to_pylist())  # NaN is as NaN
    for codec in ("rounded", "picture", "x265"):
        place = rows(local, *next(pair for pair in KINDS if pair[1] == codec))[-1]
        one, other = local[place], remote[place]
        np.testing.assert_array_equal(one.original, other.original)
        np.testing.assert_array_equal(one.compressed, other.compressed)
    np.testing.assert_array_equal(
        local.gallery("one")["features"], remote.gallery("one")["features"]
    )


# The manifest.


def test_a_manifest_comes_back_with_its_orders(folders: dict[str, Path]) -> None:
    text = (folders["full"] / "manifest.json").read_text()
    manifest = read_manifest(folders["full"])
    assert manifest_text(manifest) == text
    assert list(manifest.tasks["words"].codecs) == ["rounded", "stepped"]
    assert manifest.packages == {"mock-codecs": {"version": "1.0", "sha256": "5" * 64}}


def test_what_format_1_can_say_is_said_in_it() -> None:
    recipe = cfqa_data.recipe.load_recipe("nano").to_dict()
    told = {
        name: {"shape": [1, layers, 5, 8], "sources": [f"{name}-0", f"{name}-1"]}
        for name, layers in (("cls", 1), ("seg", 1), ("dpt", 4))
    }
    tasks = format_1.read_tasks(recipe, told)
    assert Manifest("x", "full", recipe, tasks).format == 1
    other = tasks["cls"]
    for change in (
        replace(other, groups=("a", "a")),
        replace(other, gallery="cls.safetensors"),
        replace(other, shard=99),
        replace(other, facts=replace(other.facts, title="telling dogs from cats")),
        replace(other, tokens="varying"),
    ):
        assert Manifest("x", "full", recipe, {**tasks, "cls": change}).format == 2
    zero = json.loads(json.dumps(recipe))
    zero["tasks"]["cls"]["codecs"]["hyperprior_multi_task"]["levels"][-1] = 0
    with pytest.raises(FormatError, match="a lambda is a number above 0"):
        format_1.read_tasks(zero, told)
    assert Manifest("x", "full", {**recipe, "more": 1}, tasks).format == 2
    assert Manifest("x", "full", recipe, {"cls": other}).format == 2
    packages = {"mine": {"version": "", "sha256": ""}}
    assert Manifest("x", "full", recipe, tasks, packages=packages).format == 2


def test_the_text_of_format_1_stays_byte_for_byte() -> None:
    recipe = cfqa_data.recipe.load_recipe("nano").to_dict()
    told = {"shape": [1, 1, 65, 192], "sources": ["b", "a"]}
    recipe["tasks"] = {"cls": recipe["tasks"]["cls"]}
    recipe["summary"] = "mini with 3 sources per task, for tests and first looks"  # any text
    manifest = Manifest(
        name="nano",
        tier="light",
        recipe=recipe,
        tasks=format_1.read_tasks(recipe, {"cls": told}),
        versions={"python": "3.11", "numpy": "2"},
        weights={"b": "1" * 64, "a": "0" * 64},
        health=({"task": "cls", "ok": True},),
        files={"labels/cls.parquet": {"size": 1, "sha256": "0" * 64}},
    )
    digest = hashlib.sha256(manifest_text(manifest).encode()).hexdigest()
    assert digest == "dd977bd8286a9b8cfea116865637e09b19beebdd5777b25a6f7e5aa3f316be3b"


@pytest.mark.parametrize("name", format_1.CODECS)
def test_built_in_codecs_are_those_of_format_1(name: str) -> None:
    assert find_codec(name).target.facts() == format_1.CODECS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["tasks"]["one"].update(tokens="some"),
            "one.tokens must be one of varying",
        ),
        (lambda m: m["tasks"]["one"].pop("score"), "tasks.one lacks score"),
        (lambda m: m["tasks"]["one"].update(more=1), "unknown key in tasks.one 'more'"),
        (
            lambda m: m["tasks"].update({"../x": m["tasks"]["one"]}),
            r"'\.\./x' is not a valid name of a tas",
        ),
        (lambda m: m.update(tasks={}), "tasks is not a table of 1 to 64"),
        (lambda m: m["tasks"]["one"].update(grid=[2, 2]), "tasks.one.grid"),
        (lambda m: m["tasks"]["one"].update(groups=["a"]), "tasks.one.groups must be one per"),
        (
            lambda m: m["tasks"]["one"].update(gallery="../x"),
            "tasks.one.gallery '../x' is not a file",
        ),
        (
            lambda m: m["tasks"]["one"]["shape"].__setitem__(1, 2),
            "one.layers are 3, the shape has 2",
        ),
        (lambda m: codec(m).update(stored="values"), "stored must be codes, got 'values'"),
        (lambda m: codec(m).update(levels=[5, 4]), "codecs.stepped: step must rise from level 0"),
        (
            lambda m: codec(m).update(levels=list(range(1, 131))),
            "levels must be 1 to 128 numbers, got 130 of",
        ),
        (
            lambda m: codec(m)["codec"].update(name="os:system"),
            "'os:system' is not a valid name of a codec",
        ),
        (lambda m: codec(m)["quantizer"].update(bits=40), "one: .*bits must be a whole number"),
        (lambda m: codec(m).update(tables=["/etc/x"]), "'/etc/x' is not a file in tables/"),
        (lambda m: m.update(packages={"x": 1}), "packages: x must be a table, got 1"),
        (lambda m: m["tasks"]["cls"].update(sources=["one-0"] * 2), "'one-0' is the id of a sour"),
    ],
)
def test_a_manifest_of_a_stranger_is_checked(
    folders: dict[str, Path], tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    data = json.loads((folders["full"] / "manifest.json").read_text())
    change(data)
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match=message) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def codec(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["tasks"]["one"]["codecs"]["stepped"]
    return found


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("fold", 4, "fold of one-0 by stepped at level 0 is 4, not"),
        ("level", 3, "lacks 1 of 28 rows, first task one, source_id one-0, codec stepped, level 0"),
        ("level", 7, "row 0: unknown level '7'"),
        ("score", None, "score is null in row 0"),
    ],
)
def test_labels_of_a_stranger_are_checked(
    folders: dict[str, Path], tmp_path: Path, column: str, value: Any, message: str
) -> None:
    copy = shutil.copytree(folders["light"], tmp_path / "copy")
    path = copy / "labels" / "one.parquet"
    table = pq.read_table(path, partitioning=None)
    values = table[column].to_pylist()
    values[0] = value
    place = table.column_names.index(column)
    table = table.set_column(
        place, table.schema.field(column), pa.array(values, table.schema.types[place])
    )
    pq.write_table(table, path)
    with pytest.raises(FormatError, match=message):
        cfqa_data.load(copy, "one")


def test_more_rows_than_are_read_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MAX_ROWS", 27)
    with pytest.raises(FormatError, match=r"tasks.one has 28 rows of labels; 27 are read"):
        read_manifest(folders["full"])


def test_a_feature_of_more_tokens_than_the_manifest_says_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["light"], tmp_path / "copy")
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace("\n    9,\n", "\n    5,\n"))
    with pytest.raises(FormatError, match=r"'sentence 1' is \(2, 1, 9, 6\), not at most"):
        cfqa_data.load(copy).original("sentence 1")


class Elsewhere(FeatureCodec):
    """A codec with the name of one in the folder, and with a path as option."""

    name = "rounded"
    title = "of another package"
    parameter = Parameter("digits", "higher", whole=True, lowest=0, highest=8)
    bits = "stated"

    def __init__(self, checkpoint: Path | None = None, script: str = "") -> None:
        assert checkpoint is None

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        return b""

    def decode(self, bitstream: Bitstream, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def version(self) -> dict[str, str]:
        return {}


def rounded(folders: dict[str, Path], tmp_path: Path, **changes: Any) -> Path:
    """Return a light folder with a modified manifest entry of the codec `rounded`."""
    folder = shutil.copytree(folders["light"], tmp_path / "copy")
    data = json.loads((folder / "manifest.json").read_text())
    data["tasks"]["words"]["codecs"]["rounded"]["codec"] |= changes
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


def decode(folder: Path, **more: Any) -> np.ndarray:
    return cfqa_data.load(folder, "words", codec="rounded", **more)[0].compressed


@pytest.mark.parametrize(
    ("package", "sha256", "told"),
    [
        ("mock-codecs", "5" * 64, None),
        (
            "other",
            "5" * 64,
            "package 'other' is not installed, only that of 'mock-codecs'; .*--plug",
        ),
        (
            "mock-codecs",
            "6" * 64,
            "had a different source than the installed one, 1.0; install version 1.0",
        ),
    ],
)
def test_a_codec_that_is_installed_is_that_of_the_manifest(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    sha256: str,
    told: str | None,
) -> None:
    folder = rounded(folders, tmp_path, package=package, sha256=sha256)
    entry = RegistryEntry("rounded", Elsewhere, "mock-codecs", "1.0", "5" * 64)
    monkeypatch.setattr("cfqa_data.codecs.CODECS.find", lambda *_, **__: entry)
    with pytest.raises(FormatError, match=told) if told else nullcontext():
        assert not decode(folder).any()
    entry = replace(entry, given=True)  # by plugins=
    other = sha256 != entry.sha256
    with pytest.warns(UserWarning, match="had a different source") if other else nullcontext():
        assert not decode(folder).any()


@pytest.mark.parametrize("options", [{"checkpoint": "x"}, {"script": "/etc/hostname"}])
def test_no_file_that_a_manifest_names_is_opened_by_a_codec(
    folders: dict[str, Path], tmp_path: Path, options: dict[str, str]
) -> None:
    folder = rounded(folders, tmp_path, options=options)
    with pytest.raises(FormatError, match=r"names a file, .*, without a SHA-256 in the manifest"):
        decode(folder, plugins=[Elsewhere])


def test_tables_are_read_for_a_codec_that_takes_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["light"], tmp_path / "copy")
    data = json.loads((folder / "manifest.json").read_text())
    for task, codec in (("words", "rounded"), ("cls", "x265")):
        data["tasks"][task]["codecs"][codec]["tables"] = ["missing.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(data))
    assert decode(folder, plugins=PLUGINS).any()
    assert cfqa_data.load(folder, "cls")[0].compressed.any()


def test_quantisers_have_a_limit_in_all(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfqa_data.format.manifest.MAX_VALUES", 2000)
    with pytest.raises(FormatError, match="its quantisers have 2,048 values; 2,000 are read"):
        cfqa_data.load(folders["full"])


def test_what_is_known_of_a_package_is_complete(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["light"], tmp_path / "copy")
    data = json.loads((folder / "manifest.json").read_text()) | {"packages": {"x": {}}}
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="packages: 'x' lacks its version or SHA-256"):
        cfqa_data.load(folder)


def test_a_deep_verification_needs_no_recipe_and_a_repair_says_so(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["light"]
    told = verify_deep(folder, read_manifest(folder), set(), sample=1, plugins=PLUGINS)
    assert told.faults == ()
    assert told.decoded == 7 * 4 + 4 * 3 + 4 * 10 + 2 * 10
    assert any("cannot rebuild this dataset" in note for note in told.notes)
    with pytest.raises(FormatError, match=r"recipe: .* recipe cannot rebuild this dataset$"):
        repair(folder, dry_run=True, plugins=PLUGINS)
