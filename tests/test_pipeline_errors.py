"""Builds that fail: a one-line error, and no loss of finished work."""

from __future__ import annotations

import errno
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pipeline_dies import Doubling
from pipeline_toy import QPS, toy_recipe, tree, write_networks

from cfqa_data.builders.pipeline import build, check, compress, select
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.builders.tasks.classification import Classification
from cfqa_data.errors import BuildError, CodecError, DiskError, RecipeError
from cfqa_data.processes.executor import ATTEMPTS, Executor
from cfqa_data.recipe.load import Recipe


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    return folder


@pytest.fixture(scope="module")
def small(networks: Path) -> Recipe:
    whole = toy_recipe(networks, {"x265": QPS}, sources_per_task=2, group_size=1)
    tasks = {task: whole.tasks[task].to_dict() for task in ("cls", "seg")}
    return Recipe.from_dict(whole.to_dict() | {"tasks": tasks})


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_foreign_content_is_not_touched(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(BuildError) as caught:
        build(small, tmp_path)
    assert "thesis.txt" in one_line(caught)
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis.txt"]


def test_a_folder_that_a_desktop_looked_at_is_still_new(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    assert status(small, tmp_path) == "new"


def test_another_recipe_does_not_go_on_or_over(
    small: Recipe,
    networks: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = toy_recipe(networks, {"x265": QPS}, name="other", sources_per_task=2)
    with monkeypatch.context() as patch:
        patch.setattr(select.Extract, "run", None)
        with pytest.raises(BuildError, match="failed 3 times: TypeError"):
            build(small, tmp_path, workers=0)
    differences = r"\(.*name: toy there, other here.*\)"
    with pytest.raises(BuildError, match=f"unfinished build of recipe 'toy' .* {differences}"):
        build(other, tmp_path, workers=0)
    build(small, tmp_path, workers=0)
    before = tree(tmp_path)
    with pytest.raises(BuildError, match=f"finished dataset of recipe 'toy' .* {differences}"):
        build(other, tmp_path, workers=0)
    with pytest.raises(BuildError, match=r"\(tier: full there, light here\)"):
        build(small, tmp_path, workers=0, tier="light")
    copy = shutil.copytree(networks, tmp_path_factory.mktemp("copy") / "networks")
    moved = small.with_paths(lambda path: path.replace(str(networks), str(copy)))
    build(moved, tmp_path, workers=0)  # the same bytes elsewhere
    with (copy / "seg.safetensors").open("ab") as file:
        file.write(b"x")
    told = r"finished dataset of other weights or lists \(root://seg.safetensors\): choose another"
    with pytest.raises(BuildError, match=told):
        build(moved, tmp_path, workers=0)
    (copy / "seg.safetensors").unlink()
    with pytest.raises(BuildError, match=r"recipe 'toy': .*seg\.safetensors: no such file"):
        build(moved, tmp_path, workers=0)
    assert tree(tmp_path) == before


def test_no_room_is_seen_before_and_while_compressing(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(compress.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(BuildError) as caught:
            build(small, tmp_path, workers=0)
    assert "not enough disk space: 0 MB are free" in one_line(caught)
    write, calls = compress.write_tensors, []

    def full_disk(path: Path, *arguments: Any) -> None:
        calls.append(path)
        if len(calls) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(compress, "write_tensors", full_disk)
        with pytest.raises(DiskError) as caught:
            build(small, tmp_path, workers=0)
    assert one_line(caught).startswith("compress cls x265 shard 0: no space left at ")
    assert len(calls) == 3  # the others are not even begun
    assert len(list((tmp_path / ".build" / "rows").iterdir())) == 2
    build(small, tmp_path, workers=0)
    assert not (tmp_path / ".build").exists()


def test_no_permission(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(DiskError) as caught:
        build(small, tmp_path / "out")
    assert "no permission to write at somewhere" in one_line(caught)


def test_a_missing_encoder_or_weights_file_writes_nothing(
    small: Recipe, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: Any) -> Any:
        raise CodecError("vvenc: this ffmpeg has no libvvenc")

    with monkeypatch.context() as patch:
        patch.setattr(check, "codec_for", absent)
        with pytest.raises(BuildError, match="cls, codec x265: vvenc: this ffmpeg has no libvvenc"):
            build(small, tmp_path / "out")
    moved = tmp_path / "networks"
    shutil.copytree(networks, moved)
    lacking = toy_recipe(moved, {"x265": QPS})
    (moved / "seg.safetensors").unlink()
    with pytest.raises(BuildError, match=r"recipe 'toy': .*seg.safetensors: no such file"):
        build(lacking, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_value_that_a_codec_cannot_have_is_told_before_a_build(small: Recipe) -> None:
    data = small.to_dict()
    data["tasks"]["cls"]["codecs"] = {"mxfp": {"levels": [8, 7]}}
    with pytest.raises(BuildError, match="mxfp: no format of 7 bits, only of 8, 6, 4"):
        check.make_plan(Recipe.from_dict(data), "full")


def test_bad_arguments(small: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="workers must be 0 or more, got -1"):
        build(small, tmp_path / "out", workers=-1)
    with pytest.raises(BuildError, match="tier 'big' is unknown"):
        build(small, tmp_path / "out", tier="big")
    with pytest.raises(RecipeError, match="unknown recipe"):
        build("mnii", tmp_path / "out")
    with pytest.raises(BuildError, match="no Dask scheduler responds at 'nonsense://x'"):
        build(small, tmp_path / "out", scheduler="nonsense://x")
    with pytest.raises(BuildError, match="give one of them, not both"):
        build(small, tmp_path / "out", workers=2, scheduler="nonsense://x")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_is_no_scheduler_is_one_line_whatever_it_answers() -> None:
    def answer() -> None:
        while True:
            try:
                taken, _ = server.accept()
            except OSError:
                return
            with taken:
                taken.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 9)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        foreign = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        for address in (foreign, "tls://127.0.0.1:1"):
            with (
                pytest.raises(
                    BuildError, match=f"no Dask scheduler responds at '{address}'"
                ) as told,
                Executor(0, address) as executor,
            ):
                list(executor.run(Doubling(1), [0]))
            one_line(told)
        server.shutdown(socket.SHUT_RDWR)


def test_too_few_sources_that_fit(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "PATIENCE", 4)
    monkeypatch.setattr(Classification, "accepts", lambda *_: "not right")
    with pytest.raises(BuildError, match="cls: only 0 of 8 candidates are accepted, 2 are needed"):
        build(small, tmp_path, workers=0)


def test_samples_that_score_badly_are_passed_over(
    small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "PATIENCE", 4)
    data = small.to_dict()
    options = data["tasks"]["seg"]["source"]["options"]
    models = Models(Recipe.from_dict(data))
    every = list(select.accepted_samples(models, "seg", 4))
    task = models.task("seg")
    scores = [task.score(models.features("seg", s.inputs), s.truth)[0] for s in every]
    options["worst_score"] = worst = sorted(scores)[-2]
    chosen = select.accepted_samples(Models(Recipe.from_dict(data)), "seg", 2)
    good = [s.source_id for s, score in zip(every, scores, strict=True) if score >= worst]
    assert [sample.source_id for sample in chosen] == good
    options["worst_score"] = 1.0
    with pytest.raises(BuildError, match="seg: only 0 of 4 candidates"):
        list(select.accepted_samples(Models(Recipe.from_dict(data)), "seg", 1))


def test_what_a_fault_of_the_disk_left_is_told_in_one_line(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compress, "write_tensors", stop)
        with pytest.raises(KeyboardInterrupt):
            build(small, tmp_path / "out", workers=0)
    for name, told in (
        ("originals/cls-00000-of-00002.safetensors", r"damaged \(.*; build in a new folder"),
        (".build/sources/cls.json", r"damaged \(.*; delete it and run the same command again$"),
    ):
        damaged, whole = tmp_path / "out" / name, (tmp_path / "out" / name).read_bytes()
        damaged.write_bytes(whole[:9])
        with pytest.raises(BuildError, match=f"{damaged}: {told}") as caught:
            build(small, tmp_path / "out", workers=0)
        one_line(caught)
        damaged.write_bytes(whole)
    damaged.unlink()
    build(small, tmp_path / "out", workers=0)


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_not_forever(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, failures = compress.write_tensors, [RuntimeError("once"), RuntimeError("twice")]

    def flaky(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        kept(*arguments)

    monkeypatch.setattr(compress, "write_tensors", flaky)
    build(small, tmp_path / "first", workers=0)
    failures += [RuntimeError("always")] * ATTEMPTS
    with pytest.raises(
        BuildError, match=r"^compress seg x265 shard 0 failed 3 times: RuntimeError: always$"
    ):
        build(small, tmp_path / "second", workers=0)
    assert not failures
    rows = sorted(path.name for path in (tmp_path / "second/.build/rows").iterdir())
    assert len(rows) == 3  # the rest was done
    build(small, tmp_path / "second", workers=0)
    assert tree(tmp_path / "second") == tree(tmp_path / "first")
