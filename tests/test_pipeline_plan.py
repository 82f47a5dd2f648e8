"""Plans of builds, and their working folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_toy import qp, toy_recipe

from cfqa_data.builders.pipeline import status
from cfqa_data.builders.pipeline.build import STAGES
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.context import BuildContext
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.builders.pipeline.prepare import median_codes
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.builders.pipeline.workspace import open_workspace
from cfqa_data.errors import BuildError, DiskError, clear_disk_errors
from cfqa_data.format.codes import find_centres
from cfqa_data.format.layout import Layout
from cfqa_data.format.quantizers import UniformQuantizer
from cfqa_data.recipe.load import Recipe

QPS = qp(*range(10, 20))


def recipe(**changes: object) -> Recipe:
    return toy_recipe(Path("nowhere"), {"x265": QPS, "vvenc": QPS}, **changes)


def stages_of(plan: Plan) -> dict[str, BuildStage]:
    return {stage.name: stage(BuildContext(plan, Layout(Path("out")))) for stage in STAGES}


@given(sources=st.integers(1, 40), group=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_items_cover_every_source_once_and_have_their_own_marker(sources: int, group: int) -> None:
    plan = Plan(recipe(sources_per_task=sources, group_size=group))
    shards = plan.shards("cls")
    members = [place for shard in range(shards) for place in plan.members("cls", shard)]
    assert members == list(range(sources))
    stages = stages_of(plan)
    made = [stage.outputs(item) for stage in stages.values() for item in stage.items()]
    assert len({files[-1] for files in made}) == len(made) == 3 + 3 * shards + 3 + 9 * shards
    every = [file for files in made for file in files]
    assert len(set(every)) == len(every)  # each file comes from one item
    for name, size in (("extract", 3 * sources), ("compress", 3 * 2 * 10 * sources)):
        assert sum(map(stages[name].cost, stages[name].items())) == size


def test_the_slowest_items_come_first() -> None:
    items = Compress(BuildContext(Plan(recipe()), Layout(Path()))).items()
    first = [("dpt", "vvenc", 0), ("dpt", "x265", 0), ("dpt", "vvenc", 1)]  # of 2, 2 and 1 sources
    assert [(i.task, i.codec, i.shard) for i in items[:3]] == first
    assert items[-1].codec == "x265"


def test_a_plan_is_its_text() -> None:
    plan = Plan(recipe(), "light", {"python": "3"}, {"a": "b"})
    again = Plan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert again.digest() == plan.digest() != Plan(recipe(), "full").digest()
    with pytest.raises(BuildError, match="tier 'half' is unknown"):
        Plan(recipe(), "half")


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_median_codes_of_groups_are_the_median_of_all(groups: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(groups, 2, 1, 3, 5, 7)).astype(np.float32)
    quantizer = UniformQuantizer(8, (-2.0,) * 3, (2.0,) * 3)
    codes = quantizer.quantize(features)
    expected = [
        int(np.sort(codes[..., c, :, :].ravel())[(codes[..., c, :, :].size - 1) // 2])
        for c in range(3)
    ]
    assert median_codes(quantizer, features) == expected
    odd = features[:1, :1, :, :, :1, :]
    assert median_codes(quantizer, odd) == list(find_centres(quantizer.quantize(odd)))


def begin(out: Path) -> None:
    """Write the file of a finished item of a build."""
    (out / "truth").mkdir()
    (out / "truth" / "cls.safetensors").write_bytes(b"")


def test_status_of_new_begun_and_foreign_folders(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert status(recipe(), out) == "new"
    out.mkdir()
    assert status(recipe(), out) == "new"
    open_workspace(Plan(recipe()), out)
    assert status(recipe(sources_per_task=4), out) == "new"  # nothing is finished, nothing is lost
    begin(out)
    assert status(recipe(), out) == "begun"
    with pytest.raises(BuildError, match="unfinished build of recipe 'toy'"):
        status(recipe(sources_per_task=4), out)
    with pytest.raises(BuildError, match=r"full tier\) that differs"):
        status(recipe(), out, tier="light")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BuildError, match="is not empty and not a CFQA dataset"):
        status(recipe(), tmp_path)
    with pytest.raises(BuildError, match="is a file"):
        status(recipe(), tmp_path / "notes.txt")
    (out / "manifest.json").write_text("{}")
    with pytest.raises(BuildError, match="not a dataset of this version"):
        status(recipe(), out)


def test_other_software_or_weights_do_not_go_on(tmp_path: Path) -> None:
    open_workspace(Plan(recipe(), versions={"x265": "4.0"}), tmp_path)
    open_workspace(Plan(recipe(), versions={"x265": "4.1"}), tmp_path)
    begin(tmp_path)
    open_workspace(Plan(recipe(), versions={"x265": "4.1"}), tmp_path)
    with pytest.raises(BuildError, match=r"different software \(x265: 4.1, now 4.2\)"):
        open_workspace(Plan(recipe(), versions={"x265": "4.2"}), tmp_path)
    with pytest.raises(BuildError, match=r"different weights or lists \(a: absent, now b\)"):
        open_workspace(Plan(recipe(), versions={"x265": "4.1"}, weights={"a": "b"}), tmp_path)
    (tmp_path / ".build" / "plan.json").write_text("{")
    with pytest.raises(BuildError, match="is not a readable build plan"):
        status(recipe(), tmp_path)


def test_accepted_versions_are_noted_one_after_the_other(tmp_path: Path) -> None:
    def opened(accept: bool = True, **versions: str) -> dict[str, str]:
        plan = Plan(recipe(), versions=versions, weights={"a": "b"})
        went_by = open_workspace(plan, tmp_path, accept_versions=accept)
        recorded = Plan.from_json((tmp_path / ".build" / "plan.json").read_text())
        assert recorded.digest() == went_by.digest()
        return dict(went_by.versions)

    first = {"numpy": "2.0", "x265": "4.0"}
    assert opened(**first) == first
    begin(tmp_path)
    second = {"numpy": "2.0", "x265": "4.0, then 4.1", "zarr": "absent, then 3"}
    with pytest.raises(BuildError, match=r"\(x265: 4.0, now 4.1\).*--allow-version-mismatch"):
        opened(accept=False, numpy="2.0", x265="4.1", zarr="3")
    assert opened(numpy="2.0", x265="4.1", zarr="3") == second
    assert opened(accept=False, numpy="2.0", x265="4.1", zarr="3") == second  # once is enough
    with pytest.raises(BuildError, match=r"\(x265: 4.1, now 4.0\)"):
        opened(accept=False, numpy="2.0", x265="4.0", zarr="3")
    third = {"numpy": "2.0", "x265": "4.0, then 4.1, then 4.0", "zarr": "absent, then 3"}
    assert opened(numpy="2.0", x265="4.0", zarr="3") == third
    assert opened(numpy="2.0", x265="4.0")["zarr"] == "absent, then 3, then absent"
    with pytest.raises(BuildError, match=r"different weights or lists \(a: b, now c\)") as told:
        open_workspace(Plan(recipe(), weights={"a": "c"}), tmp_path, accept_versions=True)
    assert "--allow-version-mismatch" not in str(told.value)


def test_disk_errors_become_one_line() -> None:
    for number, words in ((28, "no space left"), (13, "no permission"), (30, "read-only")):
        message = f"compress cls: {words}.* at f.*finished work"
        with pytest.raises(DiskError, match=message), clear_disk_errors("compress cls"):
            raise OSError(number, "x", "f")
    with pytest.raises(OSError, match="other"), clear_disk_errors("x"):
        raise OSError(5, "other")
