"""A dataset on a (loopback) Hub reads like the folder, with few and small requests."""

from __future__ import annotations

import builtins
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import each
from huggingface_hub.utils import get_session
from loopback_handler import Handler
from loopback_hub import READ_TOKEN, TOKEN, LoopbackHub, loopback_hub, point_clients_at
from mock_dataset import TOY_SHAPES, MockCodec, toy_recipe_dict, write_mock_dataset
from pickling_pool import replace_workers

import cfqa_data
from cfqa_data.access import hub_client
from cfqa_data.errors import CfqaError, FormatError, HubError, MissingDependencyError
from cfqa_data.eval import evaluate
from cfqa_data.format.manifest import hash_files
from cfqa_data.recipe.load import Recipe

FULL, LIGHT, BIG = "org/full", "org/light", "org/big"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiers of the mock dataset, and one whose chunks are larger than the merged gaps."""
    base = tmp_path_factory.mktemp("remote")
    found = {
        FULL: write_mock_dataset(base / "full"),
        LIGHT: write_mock_dataset(base / "light", tier="light"),
    }
    recipe = toy_recipe_dict(1)
    recipe["tasks"] = {"dpt": recipe["tasks"]["dpt"]}
    recipe["tasks"]["dpt"]["codecs"] = {"x265": recipe["tasks"]["dpt"]["codecs"]["x265"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOY_SHAPES, "dpt", (2, 4, 2049, 33))
        found[BIG] = write_mock_dataset(base / "big", sources=1, recipe=Recipe.from_dict(recipe))
    return found


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        for repo, folder in folders.items():
            hub.put(repo, folder, tag="v1")
        yield hub


@pytest.fixture
def hub(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[LoopbackHub]:
    point_clients_at(server, monkeypatch, tmp_path / "cache", token=None)
    monkeypatch.setattr(hub_client, "PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cfqa_data.codecs.get_codec", mock_codec, raising=False)
    server.reset()
    yield server
    server.reset()


def mock_codec(name: str, **_: Any) -> MockCodec:
    return MockCodec(np.dtype(np.uint8 if "hyperprior" in name else np.uint16))


@pytest.fixture
def spoiled(hub: LoopbackHub, folders: dict[str, Path], tmp_path: Path) -> Callable[..., str]:
    """Return a function that uploads a modified copy of the full folder to a new repo."""

    def make(
        change: Callable[[Path], None], *, rehash: bool = False, name: str = "org/spoiled"
    ) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folders[FULL], copy)
        change(copy)
        if rehash:
            path = copy / "manifest.json"
            facts = json.loads(path.read_text())
            path.write_text(json.dumps(facts | {"files": hash_files(copy)}))
        hub.put(name, copy)
        return name

    return make


# Results equal to those of the folder.


@pytest.mark.parametrize("repo", [FULL, LIGHT])
@pytest.mark.parametrize("cache", [False, True])
def test_everything_is_as_in_the_folder(
    hub: LoopbackHub, folders: dict[str, Path], repo: str, cache: bool
) -> None:
    local, remote = cfqa_data.load(folders[repo]), cfqa_data.load(repo, cache=cache)
    assert remote.labels.equals(local.labels)
    assert remote.manifest == local.manifest
    assert (remote.path, remote.location) == (None, f"hf://datasets/{repo}")
    for index in range(0, len(local), 23):
        one, other = local[index], remote[index]
        assert one.label == other.label
        for kind in ("original", "compressed"):
            a, b = getattr(one, kind), getattr(other, kind)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert a.tobytes() == b.tobytes()
            assert b.flags.writeable
        source, codec, level = (one.label[name] for name in ("source_id", "codec", "level"))
        assert local.bitstream(source, codec, level) == remote.bitstream(source, codec, level)
        truths = local.truth(source), remote.truth(source)
        assert truths[0].dtype == truths[1].dtype
        np.testing.assert_array_equal(*truths)


def test_the_first_item_takes_few_requests(hub: LoopbackHub) -> None:
    counts = {}
    for repo in (FULL, LIGHT):
        for task in ("cls", "seg", "dpt"):
            hub.reset()
            cfqa_data.load(repo, task)[0]
            counts[repo, task] = len(hub.requests)
    # manifest; labels, originals and codes or bitstreams each with a redirect to the storage
    assert set(counts.values()) <= {9, 10}, counts
    hub.reset()
    dataset = cfqa_data.load(FULL, "cls", codec="x265")
    dataset[0]
    before = len(hub.requests)
    dataset[1]  # the same source, whose header and shard index are cached
    assert len(hub.requests) == before + 2


def test_a_worker_of_an_evaluation_asks_the_hub_once_for_each_file(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = cfqa_data.load(FULL, codec="x265")
    sources = len(dataset.source_ids)
    replace_workers(monkeypatch)  # all workers together make the same requests as one

    def counted(workers: int) -> tuple[int, int]:
        hub.reset()
        evaluate(pickle.loads(pickle.dumps(dataset)), ["mse"], workers=workers, progress=None)
        return hub.count("*/resolve/*"), len(hub.requests) - hub.count("*/resolve/*")

    one, several = counted(1), counted(2)
    files = [name for name in dataset.manifest.files if name.startswith(("originals", "compr"))]
    assert one[0] <= len(files)
    # In addition to all features, the caller reads one original of each task, for its size.
    assert several[0] <= one[0] + len(dataset.manifest.tasks)
    assert (
        sources + len(dataset) <= one[1] <= several[1] <= one[1] + 2 * len(dataset.manifest.tasks)
    )


def test_tokens_go_to_the_hub_and_not_to_its_storage(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    cfqa_data.load(FULL, "cls")[0]
    assert all(request.authorized for request in hub.find("*/resolve/*"))
    assert hub.count("/cdn/*") > 3
    assert not any(request.authorized for request in hub.find("/cdn/*"))


@pytest.mark.parametrize("repo", [FULL, BIG])
def test_parts_are_those_of_the_whole(
    hub: LoopbackHub, folders: dict[str, Path], repo: str
) -> None:
    key = ("dpt-000", "x265", 3)
    for dataset in (cfqa_data.load(folders[repo]), cfqa_data.load(repo)):
        original, compressed = dataset.original(key[0]), dataset.compressed(*key)
        for views, layers, tokens in (
            (0, None, None),
            (None, -1, 0),
            (1, slice(1, 3), slice(1, None)),
            (slice(None, None, -1), slice(None, None, 2), slice(8, None, -3)),
            (None, None, np.int64(8)),
        ):
            part = {"views": views, "layers": layers, "tokens": tokens}
            chosen = tuple(
                [p] if p is not None and not isinstance(p, slice) else p or slice(None)
                for p in (views, layers, tokens)
            )
            for whole, found in (
                (original, dataset.original(key[0], **part)),
                (compressed, dataset.compressed(*key, **part)),
                (compressed, dataset.codes(*key, **part).dequantize()),
            ):
                expected = whole
                for axis, places in enumerate(chosen):
                    expected = expected[(slice(None),) * axis + (places,)]
                np.testing.assert_array_equal(found, expected)
                assert found.flags.c_contiguous


def test_parts_of_a_decoded_bitstream(hub: LoopbackHub, folders: dict[str, Path]) -> None:
    for where in (folders[LIGHT], LIGHT):
        dataset = cfqa_data.load(where, "dpt")
        for codec in ("x265", "hyperprior_multi_task"):
            whole = dataset.compressed("dpt-001", codec, 5)
            part = dataset.compressed("dpt-001", codec, 5, views=1, layers=[2].pop(), tokens=0)
            np.testing.assert_array_equal(part, whole[1:, 2:3, :1])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"layers": 4}, "no layer 4: layers are 0 to 3"),
        ({"views": -3}, "no view -3"),
        ({"tokens": slice(9, None)}, r"no token slice\(9, None, None\)"),
        ({"layers": 1.5}, "layers: a whole number or a slice of them, not 1.5"),
        ({"layers": "all"}, "not 'all'"),
        ({"layers": slice(0, 2, 0)}, "a whole number or a slice"),
    ],
)
def test_parts_that_are_not_there(
    folders: dict[str, Path], part: dict[str, Any], message: str
) -> None:
    dataset = cfqa_data.load(folders[FULL])
    for read in (
        lambda: dataset.original("dpt-000", **part),
        lambda: dataset.compressed("dpt-000", "x265", 0, **part),
    ):
        with pytest.raises(CfqaError, match=message):
            read()


def test_a_part_costs_its_own_bytes(hub: LoopbackHub, folders: dict[str, Path]) -> None:
    dataset = cfqa_data.load(BIG)
    (shard,) = (folders[BIG] / "compressed/dpt/x265.zarr/c/0").rglob("0/0/0/0/0")
    data, count = shard.read_bytes(), 10 * 2 * 4
    index = np.frombuffer(data[-16 * count - 4 : -4], "<u8").reshape(10, 2, 4, 2)
    dataset.compressed("dpt-000", "x265", 7, views=0, layers=0)
    hub.reset()

    def cost(read: Callable[[], object], pattern: str) -> int:
        hub.reset()
        read()
        return hub.sent(pattern)

    key = ("dpt-000", "x265", 7)
    codes, originals = "/cdn/*/c/0/*", "/cdn/*/originals/*"
    one = cost(lambda: dataset.compressed(*key, views=1, layers=2), codes)
    assert one == index[7, 1, 2, 1] > 60_000
    two = cost(lambda: dataset.compressed(*key, layers=2), codes)
    assert two == index[7, :, 2, 1].sum()
    assert cost(lambda: dataset.compressed(*key), codes) == index[7, ..., 1].sum()
    row = 33 * 4
    dataset.original("dpt-000", views=0, layers=0, tokens=0)
    assert cost(lambda: dataset.original("dpt-000", views=1, layers=3), originals) == 2049 * row
    tokens = {"tokens": slice(1, 601)}
    assert cost(lambda: dataset.original("dpt-000", **tokens), originals) == 8 * 600 * row
    assert cost(lambda: dataset.original("dpt-000"), originals) == 8 * 2049 * row


def test_rows_by_source(hub: LoopbackHub, folders: dict[str, Path]) -> None:
    for where in (folders[FULL], FULL):
        dataset = cfqa_data.load(where, codec="x265", source=["seg-001", "cls-002"])
        assert dataset.source_ids == ["cls-002", "seg-001"]
        assert len(dataset) == 20
        assert len(cfqa_data.load(where, "cls", source="cls-000", level=0)) == 4
        with pytest.raises(CfqaError, match="unknown source 'cls-0001': did you mean"):
            cfqa_data.load(where, source="cls-0001")
        with pytest.raises(CfqaError, match="unknown source 'seg-000'"):
            cfqa_data.load(where, "cls", source="seg-000")
        with pytest.raises(CfqaError, match="unknown source '3'"):
            cfqa_data.load(where, source=3)  # type: ignore[arg-type]


# In other processes and threads.


def read_bytes(dataset: Any, index: int) -> bytes:
    pair = dataset[index]
    return bytes(pair.original.tobytes() + pair.compressed.tobytes())


def test_a_pickled_dataset_stays_at_its_commit_and_holds_no_token(
    hub: LoopbackHub, spoiled: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    repo = spoiled(lambda _: None)
    dataset = cfqa_data.load(repo, "cls")
    before = read_bytes(dataset, 4)
    data = pickle.dumps(dataset)
    assert TOKEN.encode() not in data
    spoiled(lambda copy: shutil.rmtree(copy / "originals"), rehash=True)
    assert read_bytes(pickle.loads(data), 4) == before
    with pytest.raises(FormatError, match=r"originals/cls-00000-of-00002.safetensors: missing"):
        cfqa_data.load(repo, "cls")[4]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_read_the_same(hub: LoopbackHub, method: str) -> None:
    dataset = cfqa_data.load(FULL, "seg", codec=["x265", "vvenc"])
    expected = read_bytes(dataset, 5)
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.apply(read_bytes, (dataset, 5)) == expected


def test_threads_read_the_same(hub: LoopbackHub, folders: dict[str, Path]) -> None:
    local, remote = cfqa_data.load(folders[FULL]), cfqa_data.load(FULL)
    rows = list(range(0, len(local), 9))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: read_bytes(remote, index), rows))
    assert found == [read_bytes(local, index) for index in rows]


# Names, revisions, permissions.


def test_a_folder_wins_over_a_repo(
    hub: LoopbackHub, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[LIGHT], tmp_path / FULL)
    assert cfqa_data.load(FULL).manifest.tier == "light"
    assert not hub.requests
    assert cfqa_data.load(f"hf://datasets/{FULL}").manifest.tier == "full"
    with pytest.raises(FormatError, match="no/such: not a CFQA dataset folder"):
        cfqa_data.load(Path("no/such"))
    with pytest.raises(CfqaError, match="revisions are for repos"):
        cfqa_data.load(tmp_path / FULL, revision="v1")


def test_revisions(hub: LoopbackHub, spoiled: Callable[..., str]) -> None:
    repo = spoiled(lambda _: None, name="org/grown")
    first = hub.repos[repo].branches["main"]
    hub.repos[repo].tags["refs odd/1"] = first
    spoiled(lambda copy: (copy / "manifest.json").unlink(), name="org/grown")
    for dataset in (
        cfqa_data.load(repo, "cls", revision=first),
        cfqa_data.load(repo, "cls", revision="refs odd/1"),
        cfqa_data.load(f"hf://datasets/{repo}@refs%20odd%2F1", "cls"),
    ):
        assert dataset[0].original.shape == TOY_SHAPES["cls"]
    assert hub.count(f"*/resolve/{first}/labels/cls.parquet") == 3
    with pytest.raises(
        FormatError, match=r"org/grown: not a CFQA dataset folder \(no manifest.json"
    ):
        cfqa_data.load(repo)
    with pytest.raises(HubError, match="full@v2: no such branch, tag or commit"):
        cfqa_data.load(FULL, revision="v2")
    with pytest.raises(CfqaError, match="differs from revision='v1'"):
        cfqa_data.load(f"hf://datasets/{FULL}@main", revision="v1")


@each(
    "address",
    [
        "hf://org/name",
        "hf://datasets/name",
        "hf://datasets/org/name/deeper",
        "hf://datasets/org/../etc",
        "hf://datasets/../../etc/passwd",
        "hf://datasets/org/na me",
        "hf://datasets/org/name@",
        "hf://models/org/name",
        "hf://datasets/örg/name",
        "https://huggingface.co/datasets/org/name",
        "s3://org/name",
        "org/na\0me",
    ],
)
def test_addresses_of_another_kind(hub: LoopbackHub, address: str) -> None:
    with pytest.raises(CfqaError, match="hf://") as caught:
        cfqa_data.load(address)
    assert "\n" not in str(caught.value)
    assert not hub.requests


@pytest.mark.parametrize("name", ["../folder", "a b/c ü", "org/../etc", "örg/name", "a/b/c", "."])
def test_names_that_are_no_repo_s_are_folders(hub: LoopbackHub, name: str) -> None:
    with pytest.raises(FormatError, match="not a CFQA dataset folder"):
        cfqa_data.load(name)
    assert not hub.requests


def test_a_folder_may_be_named_as_an_address_is(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders[FULL], tmp_path / "s3:" / "name")
    monkeypatch.chdir(tmp_path)
    assert len(cfqa_data.load("s3://name", "cls")) == 120


def test_a_token_that_the_hub_does_not_know_is_told_from_a_missing_repo(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    with pytest.raises(HubError, match="the Hub does not accept this token") as caught:
        cfqa_data.load(FULL, "cls")
    assert "hf_mistyped" not in str(caught.value)
    assert len(hub.requests) == 1


def test_a_folder_of_any_name_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "a b" / "Ünï@cödé #1%20"
    shutil.copytree(folders[FULL], odd)
    assert cfqa_data.load(str(odd), "cls")[0].original.shape == TOY_SHAPES["cls"]
    assert len(cfqa_data.load(tmp_path / "a b" / ".." / "a b" / odd.name, "cls")) == 120


def test_private_and_missing_repos(
    hub: LoopbackHub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/private", folders[LIGHT], private=True)
    for cache in (False, True):
        for repo in ("org/private", "org/none"):
            with pytest.raises(HubError, match=f"{repo}: no folder .* HF_TOKEN") as caught:
                cfqa_data.load(repo, cache=cache)
            assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert len(cfqa_data.load("org/private", "cls")) == 120
    with pytest.raises(HubError, match="org/none: no folder"):
        cfqa_data.load("org/none")


def test_no_network_is_told(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = cfqa_data.load(FULL, "cls", codec="x265")
    kept = cfqa_data.load(FULL, "cls", codec="x265", cache=True)[0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.reset()
    for read in (lambda: cfqa_data.load(FULL), lambda: dataset.original("cls-000")):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            read()
    cached = cfqa_data.load(FULL, "cls", codec="x265", cache=True)
    np.testing.assert_array_equal(cached[0].compressed, kept.compressed)
    with pytest.raises(HubError, match=r"bitstreams/.*: not in the cache, and HF_HUB_OFFLINE"):
        cached.bitstream("cls-000", "x265", 0)
    assert not hub.requests


@pytest.mark.parametrize("cache", [False, pytest.param(True, marks=pytest.mark.release)])
def test_a_hub_that_is_down_is_told(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: bool
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with loopback_hub() as gone:
        point_clients_at(gone, monkeypatch, tmp_path / "cache")
    with pytest.raises(HubError, match=r"org/full/manifest.json: cannot be") as caught:
        cfqa_data.load(FULL, cache=cache)
    assert "\n" not in str(caught.value)


def test_a_cache_fetches_a_file_once(hub: LoopbackHub, tmp_path: Path) -> None:
    dataset = cfqa_data.load(FULL, "cls", cache=tmp_path / "mine")
    dataset[0]
    assert any((tmp_path / "mine").rglob("manifest.json"))
    assert not (tmp_path / "cache/hub").exists()
    hub.reset()
    pickle.loads(pickle.dumps(dataset))[1]
    assert not hub.find(method="GET")


def test_a_dataset_without_huggingface_hub_says_what_to_install(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "huggingface_hub":
            raise ModuleNotFoundError(name, name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'cfqa-data\[hf\]'"):
        cfqa_data.load(FULL)


def test_a_local_folder_needs_no_client(folders: dict[str, Path]) -> None:
    script = (
        f"import sys, cfqa_data; cfqa_data.load({str(folders[FULL])!r}, 'cls')[0]; "
        "print([m for m in sys.modules if m.startswith(('huggingface_hub', 'httpx'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


# Faults of the connection.


PASSING: list[tuple[str, dict[str, Any]]] = [
    ("*/manifest.json", {"status": 503}),
    ("*/manifest.json", {"drop_after": 100}),
    ("/datasets/*/labels/cls.parquet", {"status": 500}),
    ("/cdn/*/labels/cls.parquet", {"drop_after": 1000}),
    ("/cdn/*/labels/cls.parquet", {"corrupt": True, "times": 1}),
    ("/cdn/*/originals/*", {"drop_after": 10}),
    ("*/zarr.json", {"drop_after": 0}),
    ("/cdn/*/c/0/*", {"drop_after": 7}),
]


@pytest.mark.parametrize(("pattern", "fault"), PASSING)
@pytest.mark.parametrize("cache", [False, True])
def test_a_fault_that_passes_is_overcome(
    hub: LoopbackHub,
    folders: dict[str, Path],
    pattern: str,
    fault: dict[str, Any],
    cache: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    expected = read_bytes(cfqa_data.load(folders[FULL], "cls"), 0)
    hub.fail(pattern, **({"times": 2} | fault))
    assert read_bytes(cfqa_data.load(FULL, "cls", cache=cache), 0) == expected
    assert not any(fault.times for fault in hub.faults)


@pytest.mark.parametrize("status", [403, 410, 429])
def test_an_address_of_the_storage_that_has_run_out_is_asked_for_again(
    hub: LoopbackHub, status: int
) -> None:
    dataset = cfqa_data.load(FULL, "cls")
    expected = read_bytes(dataset, 0)
    hub.reset()
    hub.fail("/cdn/*/originals/*", status=status)
    assert read_bytes(dataset, 0) == expected
    assert hub.count("/cdn/*/originals/*") == 2
    assert hub.count("/datasets/*/originals/*") == (status != 429)


def test_a_dropped_download_goes_on_where_it_stopped(hub: LoopbackHub) -> None:
    dataset = cfqa_data.load(BIG)
    dataset.original("dpt-000", tokens=0)
    hub.reset()
    hub.fail("/cdn/*/originals/*", drop_after=1_500_000)
    size = dataset.original("dpt-000").nbytes
    assert hub.requests[0].sent == 1_500_000
    assert hub.sent() < 1.7 * size


@pytest.mark.parametrize(
    ("pattern", "fault", "message"),
    [
        ("*/manifest.json", {"status": 503}, "manifest.json: .*5 attempts: the server answers 503"),
        ("*/labels/cls.parquet", {"drop_after": 0}, "labels/cls.parquet: .* after 5 attempts"),
        ("/cdn/*/originals/*", {"drop_after": 0}, "originals/cls-00000.* after 5 attempts"),
        ("*/labels/cls.parquet", {"status": 418}, "cls.parquet: the server answers 418"),
    ],
)
def test_a_fault_that_stays_is_told_of_in_one_line(
    hub: LoopbackHub, pattern: str, fault: dict[str, Any], message: str
) -> None:
    hub.fail(pattern, times=1000, **fault)
    with pytest.raises(HubError, match=message) as caught:
        cfqa_data.load(FULL, "cls")[0]
    assert "\n" not in str(caught.value)
    assert hub.count() < 20


def test_damage_is_noticed_in_what_is_fetched_whole(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail("/cdn/*/labels/cls.parquet", times=9, corrupt=True)
    with pytest.raises(FormatError, match=r"cls.parquet: its SHA-256 differs from the"):
        cfqa_data.load(FULL, "cls")
    hub.reset()
    hub.fail("*/zarr.json", times=9, corrupt=True)
    with pytest.raises(FormatError, match=r"zarr.json: its SHA-256"):
        cfqa_data.load(FULL, "cls")[0]
    hub.reset()
    hub.fail("/cdn/*/originals/cls*", times=9, corrupt=True)
    dataset = cfqa_data.load(FULL, "cls", cache=True)
    with pytest.raises(FormatError, match=r"originals/cls.* its SHA-256"):
        dataset.original("cls-000")


def test_damage_in_ranges_is_noticed_where_the_bytes_show_it(hub: LoopbackHub) -> None:
    hub.fail("/cdn/*/c/0/*", corrupt=True)
    with pytest.raises(FormatError, match=r"c/0/0/0/0/0/0: damaged shard: .*its index"):
        cfqa_data.load(FULL, "cls")[0]
    dataset = cfqa_data.load(FULL, "cls")
    good = dataset.original("cls-000")
    hub.fail("/cdn/*/originals/cls*", corrupt=True)
    # Bytes of an original have no checksum of their own: only `cache=True` notices.
    assert not np.array_equal(dataset.original("cls-000"), good)


# Repos with invalid content.


def header(**entry: Any) -> Callable[[Path], None]:
    """Change the header of a shard of originals."""

    def change(copy: Path) -> None:
        path = copy / "originals/cls-00000-of-00002.safetensors"
        data = json.dumps({"cls-000": entry}).encode()
        path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(9 * 16 * 4))

    return change


def raw(content: bytes) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        (copy / "originals/cls-00000-of-00002.safetensors").write_bytes(content)

    return change


def shared() -> bytes:
    """Return a file with two overlapping tensors."""
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    head = json.dumps({"a": entry, "b": entry}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(4)


SHAPE = [1, 1, 9, 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (header(dtype="F32", shape=SHAPE, data_offsets=[0, 577]), "ends at byte"),
        (header(dtype="F32", shape=SHAPE, data_offsets=[0, 4]), "does not fill its range"),
        (header(dtype="F32", shape=[1 << 62, 16], data_offsets=[0, 4]), "does not fill"),
        (header(dtype="F32", shape=SHAPE, data_offsets=[8, 4]), "ends at byte"),
        (header(dtype="F32", shape=SHAPE, data_offsets=[-4, 572]), "invalid"),
        (header(dtype="F32", shape=[1, 1, 9, True], data_offsets=[0, 36]), "invalid"),
        (header(dtype=7, shape=SHAPE, data_offsets=[0, 576]), "invalid"),
        (header(dtype="F32", data_offsets=[0, 576]), "invalid"),
        (header(dtype="F32", shape=[9, 16], data_offsets=[0, 576]), r"float32 \(9, 16\), not"),
        (header(dtype="BF16", shape=SHAPE, data_offsets=[0, 576]), "is BF16, not used by datasets"),
        (raw(struct.pack("<Q", 1 << 60) + b"{}"), "its header claims"),
        (raw(struct.pack("<Q", 2000) + b"{}"), "its header claims 2000 bytes"),
        (raw(struct.pack("<Q", 2) + b"[]"), "its header is not an object"),
        (raw(struct.pack("<Q", 9) + b'{"a": 12}'), "'a' is not a table"),
        (raw(struct.pack("<Q", 200_000) + b"[" * 200_000), "nested too deeply"),
        (header(dtype="F32", shape=[1] * 1000, data_offsets=[0, 4]), "has 1000 axes"),
        (header(dtype="U8", shape=[572], data_offsets=[4, 576]), r"begins at byte \d+, not at"),
        (header(dtype="U8", shape=[572], data_offsets=[0, 572]), r"its tensors end at byte \d+ of"),
        (raw(shared()), r"'b' begins at byte \d+, not at"),
        (raw(b"abc"), "shorter than the length"),
        (raw(b""), "shorter than the length"),
    ],
)
def test_headers_that_lie_are_refused(
    hub: LoopbackHub, spoiled: Callable[..., str], change: Callable[[Path], None], message: str
) -> None:
    dataset = cfqa_data.load(spoiled(change, rehash=True), "cls")
    with pytest.raises(FormatError, match=message) as caught:
        dataset.original("cls-000")
    assert "\n" not in str(caught.value)
    assert hub.sent("/cdn/*/originals/*") < 500_000


@pytest.mark.parametrize("shape", [[1] * 1000, [0, 1 << 62, 1 << 62]])
@pytest.mark.parametrize("remote", [False, True])
def test_shapes_that_no_array_has_are_refused(
    hub: LoopbackHub, spoiled: Callable[..., str], shape: list[int], remote: bool, tmp_path: Path
) -> None:
    def change(copy: Path) -> None:
        size = 8 * math.prod(shape)
        entry = {"dtype": "I64", "shape": shape, "data_offsets": [0, size]}
        head = json.dumps({"cls-000": entry}).encode()
        path = copy / "truth/cls.safetensors"
        path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))

    repo = spoiled(change, rehash=True)
    with pytest.raises(FormatError, match="cls"):
        cfqa_data.load(repo if remote else tmp_path / "copy", "cls").truth("cls-000")


def test_a_manifest_longer_than_what_is_read_whole_is_refused(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "LARGEST_WHOLE", 1000)
    with pytest.raises(FormatError, match=r"manifest.json: cannot be read: more bytes arrived"):
        cfqa_data.load(FULL)


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "nonsense"}, {"Content-Encoding": "gzip"}, {"ETag": ""}]
)
def test_nonsense_on_the_way_to_a_cache_is_one_line(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between its attempts
    hub.fail("*manifest.json", times=1000, headers=headers)
    with suppress(HubError):  # cases that the client tolerates are read
        cfqa_data.load(FULL, "cls", cache=tmp_path / "kept")
    if "ETag" not in headers:
        with pytest.raises(HubError, match=r"manifest.json: cannot be (fetched|read)"):
            cfqa_data.load(FULL, "cls", cache=tmp_path / "other")


def edit_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(copy: Path) -> None:
        path = copy / "manifest.json"
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))

    return changed


ORIGINAL = "originals/cls-00000-of-00002.safetensors"
ENTRY = {"size": 1, "sha256": hashlib.sha256().hexdigest()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["files"].update({"../../etc/passwd": ENTRY}),
            "is not a path inside the folder",
        ),
        (lambda m: m["files"].update({"/etc/passwd": ENTRY}), "is not a path inside the folder"),
        (lambda m: m["files"].update({"a\\..\\b": ENTRY}), "is not a path inside the folder"),
        (lambda m: m["files"][ORIGINAL].update(size=-1), "lacks its size"),
        (lambda m: m["files"][ORIGINAL].update(size=10**15), "the server sends .*upload complete"),
        (lambda m: m["files"][ORIGINAL].update(size=700), "the server sends .*upload complete"),
        (lambda m: m["files"].pop(ORIGINAL), "cls-00000-of-00002.safetensors: missing; is"),
        (lambda m: m["files"]["labels/cls.parquet"].update(size=10**12), "are too many to read at"),
        (lambda m: m["files"].pop("labels/cls.parquet"), "labels/cls.parquet: missing; is this"),
        (lambda m: m.update(format=3), "format version 3"),
        (lambda m: m["tasks"].update({"../x": m["tasks"]["cls"]}), "tasks are not the recipe's"),
        (
            lambda m: m["recipe"]["tasks"]["cls"]["codecs"].update(
                {"../x": m["recipe"]["tasks"]["cls"]["codecs"]["x265"]}
            ),
            r"\.\./x",
        ),
    ],
)
def test_manifests_that_lie_are_refused(
    hub: LoopbackHub,
    spoiled: Callable[..., str],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    repo = spoiled(edit_manifest(change))
    with pytest.raises(CfqaError, match=message) as caught:
        cfqa_data.load(repo, "cls")[0]
    assert "\n" not in str(caught.value)
    assert all("/resolve/" in request.path or "/cdn/" in request.path for request in hub.requests)
    assert not [request for request in hub.requests if ".." in request.path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels/cls.parquet", "labels/cls.parquet: missing; is this a complete dataset folder"),
        (ORIGINAL, "cls-00000-of-00002.safetensors: missing; is this a complete dataset folder"),
        ("compressed/cls/x265.zarr/zarr.json", "zarr.json: missing; is this a complete dataset"),
        ("compressed/cls/x265.zarr/c/0", "c/0/0/0/0/0/0: missing shard; build or fetch"),
    ],
)
def test_a_half_uploaded_repo_is_told(
    hub: LoopbackHub, spoiled: Callable[..., str], name: str, message: str
) -> None:
    def remove(copy: Path) -> None:
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    repo = spoiled(remove)
    for cache in (False, True):
        with pytest.raises(FormatError, match=message):
            cfqa_data.load(repo, "cls", cache=cache)[0]


def test_a_shard_that_was_cut_off_is_told(hub: LoopbackHub, spoiled: Callable[..., str]) -> None:
    def cut(copy: Path) -> None:
        path = copy / "compressed/cls/x265.zarr/c/0/0/0/0/0/0"
        path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(FormatError, match=r"damaged shard: fewer bytes than the manifest's"):
        cfqa_data.load(spoiled(cut), "cls")[0]
    with pytest.raises(FormatError, match=r"damaged shard: .*checksum .*is wrong"):
        cfqa_data.load(spoiled(cut, rehash=True), "cls")[0]


def test_a_server_that_sends_something_else_is_refused(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = cfqa_data.load(FULL, "cls")
    monkeypatch.setattr(hub, "ranges", False)
    with pytest.raises(FormatError, match=r"requested bytes .* the server sends status 200"):
        dataset.original("cls-000")
    monkeypatch.setattr(hub, "ranges", True)
    hub.fail("/cdn/*/originals/*", headers={"Content-Range": "bytes 5-9/99"})
    with pytest.raises(FormatError, match="the server sends 'bytes 5-9/99'"):
        cfqa_data.load(FULL, "cls").original("cls-000")


def test_shards_of_other_sources_are_told(hub: LoopbackHub, spoiled: Callable[..., str]) -> None:
    def swap(copy: Path) -> None:
        names = [copy / f"originals/cls-0000{n}-of-00002.safetensors" for n in (0, 1)]
        contents = [path.read_bytes() for path in names]
        for path, content in zip(names, reversed(contents), strict=True):
            path.write_bytes(content)

    repo = spoiled(swap, rehash=True)
    with pytest.raises(FormatError, match=r"cls-00000-of-00002.safetensors: lacks 'cls-000'"):
        cfqa_data.load(repo, "cls").original("cls-000")


# Redirects by an untrusted server.


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "//[::1", "gopher://x"]
)
def test_redirects_to_what_is_no_address_of_the_net_are_refused(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    dataset = cfqa_data.load(FULL, "cls")
    monkeypatch.setattr(Handler, "_resolve", lambda *_: (302, b"", {"Location": location}))
    with pytest.raises(HubError, match="the server redirects to"):
        dataset[0]


def test_redirects_have_an_end(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = cfqa_data.load(FULL, "cls")
    hub.reset()
    monkeypatch.setattr(Handler, "_resolve", lambda *_: (302, b"", {"Location": "?again"}))
    with pytest.raises(HubError, match="more than 5 redirects"):
        dataset[0]
    assert len(hub.requests) == hub_client.REDIRECTS + 1


def test_the_body_of_a_redirect_is_not_read(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would read a body of any length into memory."""
    answer = Handler._resolve

    def with_body(self: Handler, *args: Any) -> tuple[int, bytes, dict[str, str]]:
        status, body, headers = answer(self, *args)
        return status, b"more" if status == 302 else body, headers

    dataset = cfqa_data.load(FULL, "cls")
    expected = dataset[0].original.tobytes()
    monkeypatch.setattr(Handler, "_resolve", with_body)
    read: list[int] = []
    client = sys.modules[type(get_session()).__module__.split(".")[0]]  # httpx, or its successor
    whole = client.Response.read
    monkeypatch.setattr(client.Response, "read", lambda self: read.append(1) or whole(self))
    assert cfqa_data.load(FULL, "cls")[0].original.tobytes() == expected
    assert not read
