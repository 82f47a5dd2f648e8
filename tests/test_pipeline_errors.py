"""What cannot be built: one clear line, and nothing lost."""

from __future__ import annotations

import errno
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pipeline_dies import StubDask, die, refuse, refuse_odd_groups
from pipeline_toy import QPS, toy_recipe, tree, write_networks

from cfqa_data.builders.pipeline import build, check, compress, run, select, tools, work
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.errors import BuildError, CodecError, DiskError, RecipeError
from cfqa_data.recipe import Recipe


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
        patch.setitem(work._STAGES, "extract", None)
        with pytest.raises(BuildError, match="failed 3 times: TypeError"):
            build(small, tmp_path, workers=0)
    with pytest.raises(BuildError, match="begun build of recipe 'toy'"):
        build(other, tmp_path, workers=0)
    build(small, tmp_path, workers=0)
    before = tree(tmp_path)
    with pytest.raises(BuildError, match="finished dataset of recipe 'toy'"):
        build(other, tmp_path, workers=0)
    with pytest.raises(BuildError, match="finished dataset of recipe 'toy'"):
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
        patch.setattr(check.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(BuildError) as caught:
            build(small, tmp_path, workers=0)
    assert "no space: 0 MB are free" in one_line(caught)
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
    assert one_line(caught).startswith("compress cls x265 group 0: no space left at ")
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


def test_bad_arguments(small: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="workers must be 0 or more, got -1"):
        build(small, tmp_path / "out", workers=-1)
    with pytest.raises(BuildError, match="tier 'big' is unknown"):
        build(small, tmp_path / "out", tier="big")
    with pytest.raises(RecipeError, match="unknown recipe"):
        build("mnii", tmp_path / "out")
    with pytest.raises(BuildError, match="no Dask scheduler answers at 'nonsense://x'"):
        build(small, tmp_path / "out", scheduler="nonsense://x")
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
                    BuildError, match=f"no Dask scheduler answers at '{address}'"
                ) as told,
                run.ClusterRunner(0, address),
            ):
                pass
            one_line(told)
        server.shutdown(socket.SHUT_RDWR)


def test_too_few_sources_that_fit(
    small: Recipe, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "PATIENCE", 4)
    wrong = tools.Models(small).head("cls")
    monkeypatch.setattr(type(wrong), "correct", lambda *_: False)
    with pytest.raises(BuildError, match="cls: only 0 of 8 candidates fit, 2 are wanted"):
        build(small, tmp_path, workers=0)


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
    failures += [RuntimeError("always")] * run.ATTEMPTS
    with pytest.raises(
        BuildError, match=r"^compress seg x265 group 0 failed 3 times: RuntimeError: always$"
    ):
        build(small, tmp_path / "second", workers=0)
    assert not failures
    rows = sorted(path.name for path in (tmp_path / "second/.build/rows").iterdir())
    assert len(rows) == 3  # the rest was done
    build(small, tmp_path / "second", workers=0)
    assert tree(tmp_path / "second") == tree(tmp_path / "first")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.release)])
def test_failed_items_are_told_together_and_the_rest_is_kept(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Also where the cluster then fails to close."""
    from distributed import LocalCluster

    closed, close = [], LocalCluster.__exit__

    def close_badly(cluster: LocalCluster, *error: Any) -> None:
        close(cluster, *error)
        closed.append(cluster)
        raise AssertionError("can only join a started process")

    monkeypatch.setattr(LocalCluster, "__exit__", close_badly)
    monkeypatch.setattr(run, "run_item", refuse_odd_groups)
    with pytest.raises(BuildError) as caught:
        build(small, tmp_path, workers=workers)
    told, _, items = one_line(caught).partition(": ")
    assert told == "2 of 4 items failed, the rest is kept"
    named = {f"extract {task} group 1: group 1 is odd" for task in ("cls", "seg")}
    assert set(items.split("; ")) == named
    done = {path.name for path in (tmp_path / ".build" / "references").iterdir()}
    assert done == {f"{task}-00000.json" for task in ("cls", "seg")}
    assert len(closed) == (workers > 0)


def test_many_failures_end_a_stage_early(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item("extract", "cls", "", group) for group in range(2 * run.MOST_FAILURES)]
    monkeypatch.setattr(run, "run_item", refuse)
    for runner in (run.LocalRunner(), run.ClusterRunner(2)):
        stub_dask(monkeypatch)
        with runner, pytest.raises(BuildError, match=r"^10 of 20 items failed"):
            list(runner.run(tmp_path, "", items))


def test_an_item_that_kills_every_worker_ends_the_build(
    small: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "run_item", die)
    one_task = replace(small, tasks={"cls": small.tasks["cls"]})
    with pytest.raises(BuildError, match="every worker that tried it was killed") as caught:
        build(one_task, tmp_path, workers=2)
    one_line(caught)
    assert capfd.readouterr().err == ""
    assert [path.name for path in (tmp_path / ".build").iterdir()] == ["plan.json"]


def stub_dask(monkeypatch: pytest.MonkeyPatch, failing: Exception | None = None) -> StubDask:
    stub = StubDask(failing)
    for name in ("LocalCluster", "Client"):
        monkeypatch.setattr(f"distributed.{name}", lambda *_, **__: stub)
    monkeypatch.setattr("distributed.as_completed", stub.as_completed)
    return stub


@pytest.mark.parametrize("failing", [None, TimeoutError("no worker"), RuntimeError("not now")])
def test_workers_may_come_up_before_a_failed_build_closes_them(
    failing: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask = stub_dask(monkeypatch, failing)
    with pytest.raises(BuildError, match=r"^nothing doing$"), run.ClusterRunner(2):
        refuse()
    assert dask.calls == [("wait", 2), "close", "close"]


def test_nobody_waits_for_workers_after_a_build_or_for_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dask = stub_dask(monkeypatch)
    with run.ClusterRunner(2):
        pass
    assert dask.calls == ["close", "close"]
    with pytest.raises(BuildError), run.ClusterRunner(2, "tcp://elsewhere:8786"):
        refuse()
    assert dask.calls == ["close"] * 3


def test_items_that_have_not_begun_are_cancelled_when_a_build_ends_early(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = [Item("select", task) for task in ("cls", "seg", "dpt")]
    ends = {"seg": refuse}
    monkeypatch.setattr(run, "run_item", lambda *args: ends.get(args[-1].task, str)())
    dask = stub_dask(monkeypatch)
    with run.ClusterRunner(2) as runner:
        with pytest.raises(BuildError, match=r"^select seg: nothing doing$"):
            list(runner.run(tmp_path, "", items))
        monkeypatch.setattr(run, "MOST_FAILURES", 1)
        with pytest.raises(BuildError, match=r"^select seg: nothing doing$"):
            list(runner.run(tmp_path, "", items))
        done = runner.run(tmp_path, "", items)
        assert next(done) == items[0]
        done.close()
        ends.clear()
        assert list(runner.run(tmp_path, "", items)) == items
    assert dask.calls == [("cancel", items[2:]), ("cancel", items[1:]), "close", "close"]
