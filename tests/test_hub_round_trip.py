"""A dataset is published on a Hub, and the real clients open every config and the arrays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_hub import LoopbackHub, loopback_hub, point_clients_at
from mock_dataset import write_mock_dataset

import cfqa_data
from cfqa_data.builders.sharing.publish import Published, plan_publishing, publish
from cfqa_data.format.schema import label_schema, originals_schema

REPO = "org/cfqa"
CONFIGS = ("cls", "seg", "dpt", "originals", "all")

SCRIPT = """
import json, sys
import fsspec, numpy, zarr
from datasets import load_dataset

repo, tag = sys.argv[1:]
answer = {}
for config in (None, "cls", "seg", "dpt", "originals", "all"):
    for streaming in (False, True):
        data = load_dataset(repo, config, revision=tag, streaming=streaming)
        rows = list(data["test"])
        dtypes = {name: feature.dtype for name, feature in data["test"].features.items()}
        answer[f"{config}/{streaming}"] = [list(data), len(rows), dtypes, rows[0], rows[-1]]
array = zarr.open_array(
    f"hf://datasets/{repo}@{tag}/compressed/dpt/x265.zarr",
    mode="r",
    storage_options={"block_size": 65536},
)
answer["zarr"] = [array[1, 9].tolist(), dict(array.attrs)["centres"], list(array.shape)]
with fsspec.open(f"hf://datasets/{repo}@{tag}/manifest.json") as file:
    answer["manifest"] = json.load(file)["tier"]
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("round") / "cfqa", sources=2)


@pytest.fixture(scope="module")
def hub(
    patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoopbackHub]:
    with loopback_hub() as hub:
        hub.page = 20
        point_clients_at(hub, patch, tmp_path_factory.mktemp("cache"))
        yield hub


@pytest.fixture(scope="module")
def published(hub: LoopbackHub, folder: Path) -> Published:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        return publish(plan_publishing(folder, REPO))


@pytest.fixture(scope="module")
def answer(published: Published) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, REPO, published.tag],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gnoring" not in done.stderr, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("config", [None, *CONFIGS])
def test_every_config_is_the_folder_s(
    config: str | None, streaming: bool, answer: dict[str, Any], folder: Path
) -> None:
    splits, count, dtypes, first, last = answer[f"{config}/{streaming}"]
    if config == "originals":
        import pyarrow.parquet as pq

        schema, table = originals_schema(), pq.read_table(folder / "labels" / "originals.parquet")
    else:
        task = {None: "cls", "all": None}.get(config, config)
        schema, table = label_schema(), cfqa_data.load(folder, task).labels
    rows = table.to_pylist()
    assert splits == ["test"]
    assert (count, first, last) == (len(rows), rows[0], rows[-1])
    assert dtypes == {f.name: str(f.type).replace("double", "float64") for f in schema}


def test_zarr_opens_an_array_in_the_repo(answer: dict[str, Any], folder: Path) -> None:
    stored, centres, shape = answer["zarr"]
    pairs = cfqa_data.load(folder, "dpt")
    codes = pairs.codes(pairs.source_ids[1], "x265", 9)
    assert shape == [2, 10, 2, 4, 9, 16]
    assert len(centres) == 4
    assert np.array_equal(np.array(stored), codes.indices)


def test_other_files_open_by_their_address(answer: dict[str, Any]) -> None:
    assert answer["manifest"] == "full"
