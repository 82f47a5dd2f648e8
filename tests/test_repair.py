"""Repair of every kind of damage: the folder is restored, or is not changed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cases import release
from damaged import DAMAGES, KINDS, build_toy, cut, edit_manifest, flip
from hub_cache import move_into_cache
from pipeline_dies import refuse
from pipeline_toy import tree

from cfqa_data.access.files import LocalFiles
from cfqa_data.builders.maintenance import scratch
from cfqa_data.builders.maintenance.plan import check_environment, plan_repair
from cfqa_data.builders.maintenance.repair import repair
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.lock import locked
from cfqa_data.builders.pipeline.select import Extract
from cfqa_data.cli import main
from cfqa_data.errors import BuildError, FormatError
from cfqa_data.format.manifest import hash_file, read_manifest
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe import Recipe, SourceSpec


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy(tmp_path_factory.mktemp("repair"))


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "cfqa")


def same(folder: Path, built: Path) -> bool:
    """Return whether a folder equals the built one, apart from files that were moved aside."""
    shutil.rmtree(folder / ".repair" / "aside", ignore_errors=True)
    if (folder / ".repair").exists():
        (folder / ".repair").rmdir()
    assert not (folder / ".build").exists()
    return tree(folder) == tree(built)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_is_made_again(kind: str, folder: Path, built: Path) -> None:
    flip(folder / KINDS[kind])
    told = repair(folder, workers=1)
    assert (told.repaired, told.failed, told.aside) == ((KINDS[kind],), (), ())
    assert [fault.path for fault in told.damaged] == [KINDS[kind]]
    assert same(folder, built)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_kind_of_damage_is_repaired(damage: str, folder: Path, built: Path) -> None:
    name = KINDS["codes"]
    DAMAGES[damage](folder / name)
    told = repair(folder, workers=1)
    assert told.repaired == (name,)
    assert told.failed == ()
    assert same(folder, built)


def test_everything_but_the_manifest_is_made_again(folder: Path, built: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "manifest.json":
            cut(path)
    told = repair(folder, workers=1)
    assert told.failed == ()
    assert len(told.repaired) == len(read_manifest(built).files)
    assert same(folder, built)


def test_a_sound_folder_is_left_alone(folder: Path, built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    told = repair(folder)
    assert told.damaged == told.repaired == told.failed == ()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert same(folder, built)


def test_what_is_extra_is_put_aside_and_kept(folder: Path, built: Path) -> None:
    (folder / "labels" / "notes.txt").write_text("mine")
    (folder / ".DS_Store").write_text("a desktop's")
    os.symlink(built / "labels", folder / "more")
    told = repair(folder, workers=1)
    assert told.aside == ("labels/notes.txt", "more")
    assert (folder / ".repair/aside/labels/notes.txt").read_text() == "mine"
    assert (folder / ".repair/aside/more").is_symlink()
    (folder / ".DS_Store").unlink()
    assert verify(folder).damage == ()
    assert same(folder, built)


def test_a_dry_run_tells_and_touches_nothing(folder: Path) -> None:
    flip(folder / KINDS["labels"])
    (folder / "extra").write_text("x")
    before = tree(folder)
    told = repair(folder, dry_run=True)
    assert (told.repaired, told.aside, told.failed) == ((KINDS["labels"],), ("extra",), ())
    assert tree(folder) == before


def test_other_versions_are_refused_before_anything_is_touched(folder: Path, built: Path) -> None:
    versions = dict(read_manifest(folder).versions)
    edit_manifest(folder, versions=versions | {"numpy": "1.0", "x265 encoder": "libx265 1"})
    flip(folder / KINDS["bitstreams"])
    (folder / "extra").write_text("x")
    before = tree(folder)
    for dry_run in (True, False):
        with pytest.raises(BuildError) as caught:
            repair(folder, dry_run=dry_run)
        assert f"numpy was 1.0, is {versions['numpy']}" in str(caught.value)
        assert "x265 encoder was libx265 1" in str(caught.value)
        assert "--allow-version-mismatch" in str(caught.value)
        assert tree(folder) == before
    told = repair(folder, workers=1, accept_versions=True)
    assert told.repaired == (KINDS["bitstreams"],)
    assert (folder / KINDS["bitstreams"]).read_bytes() == (built / KINDS["bitstreams"]).read_bytes()


def test_other_encoders_do_not_matter_where_nothing_is_encoded(folder: Path) -> None:
    versions = dict(read_manifest(folder).versions)
    edit_manifest(folder, versions=versions | {"x265 encoder": "libx265 1"})
    flip(folder / "compressed/dpt/x265.zarr/c/0/0/0/0/0/0")
    assert repair(folder, workers=1).failed == ()
    assert verify(folder).damage == ()


def test_other_weights_are_refused(folder: Path) -> None:
    weights = dict(read_manifest(folder).weights)
    head = next(uri for uri in weights if uri.endswith("seg.safetensors"))
    edit_manifest(folder, weights=weights | {head: "0" * 64})
    flip(folder / KINDS["truth"])
    before = tree(folder)
    with pytest.raises(BuildError, match=r"seg\.safetensors: no file of SHA-256 0{64}") as caught:
        repair(folder, accept_versions=True)
    assert "--allow-version-mismatch" not in str(caught.value)
    assert tree(folder) == before


def test_weights_are_found_below_the_root_where_nobody_remembers_them(
    folder: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setenv("CFQA_ROOT", "")  # which the command changes
    (folder / KINDS["truth"]).unlink()
    with pytest.raises(BuildError, match=r"root://backbone\.safetensors: no file of .*CFQA_ROOT"):
        repair(folder, workers=1)
    (folder / "weights").symlink_to(built.parent)
    found = repair(folder, dry_run=True, follow_links=True)
    assert (found.repaired, found.aside, found.failed) == ((KINDS["truth"],), (), ())
    with pytest.raises(BuildError, match=r"root://backbone\.safetensors: no file of"):
        repair(folder, dry_run=True)
    (folder / "weights").unlink()
    assert main(["repair", str(folder), "--root", str(built.parent), "-j", "1"]) == 0
    assert same(folder, built)


def test_sources_are_found_by_name_and_their_lists_by_hash(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "VOCdevkit").mkdir(parents=True)
    listed = tmp_path / "here" / "lists" / "renamed.txt"
    listed.parent.mkdir()
    listed.write_text("2007_000033\n")
    manifest = read_manifest(built)
    options = {"root": "root://VOCdevkit", "list": "root://mine.txt"}
    recipe = Recipe.from_dict(manifest.recipe)
    seg = replace(recipe.tasks["seg"], source=SourceSpec("voc2012", 0, options))
    recipe = replace(recipe, tasks={**recipe.tasks, "seg": seg})
    weights = {**manifest.weights, "root://mine.txt": hash_file(listed)}
    manifest = replace(manifest, recipe=recipe.to_dict(), weights=weights)
    damaged = {KINDS["truth"]}
    steps = plan_repair(LocalFiles(built), manifest, damaged)
    monkeypatch.setenv("CFQA_ROOT", str(tmp_path / "here"))
    here = check_environment(steps, versions=False).plan.recipe
    assert here.tasks["seg"].source.options == {
        "root": str(tmp_path / "here" / "VOCdevkit"),
        "list": str(listed),
    }
    assert here.tasks["seg"].head == str(built.parent / "seg.safetensors")
    listed.write_text("2007_000042\n")
    with pytest.raises(BuildError, match=r"root://mine\.txt: no file of SHA-256"):
        check_environment(steps, versions=False)


def test_a_file_that_comes_out_otherwise_does_not_get_in(folder: Path) -> None:
    name = KINDS["codes"]
    flip(folder / name)
    damaged = (folder / name).read_bytes()
    files = {k: dict(v) for k, v in read_manifest(folder).files.items()}
    files[name]["sha256"] = "0" * 64
    edit_manifest(folder, files=files)
    told = repair(folder, workers=1)
    assert [str(fault) for fault in told.failed] == [
        f"{name}: the rebuilt file differs from the manifest; fetch the dataset again"
    ]
    assert (folder / name).read_bytes() == damaged


class Killed(BaseException):
    """An exception that nothing catches, like a kill."""


@pytest.mark.parametrize("after", [3, *release(0, 6)])
def test_a_repair_that_was_killed_is_run_again(
    after: int, folder: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [KINDS[kind] for kind in ("labels", "bitstreams", "originals", "codes", "card")]
    for name in names:
        flip(folder / name)
    real, left = scratch.link, [after]

    def dying(source: Path, target: Path) -> None:
        if source.is_relative_to(folder / ".repair"):
            if not left[0]:
                raise Killed
            left[0] -= 1
        real(source, target)

    monkeypatch.setattr("cfqa_data.builders.maintenance.repair.link", dying)
    done: tuple[str, ...] = ()
    try:
        repair(folder, workers=1)
    except Killed:
        monkeypatch.undo()
        assert len(verify(folder).faults) == len(names) - after
        flip(folder / "originals/cls-00000-of-00002.safetensors")  # and something more breaks
        done = repair(folder, workers=1).repaired
        assert len(done) == len(names) - after + 1
    assert bool(done) == (after < len(names))
    assert same(folder, built)


def test_two_at_once_are_refused(folder: Path) -> None:
    flip(folder / KINDS["codes"])
    with locked(folder), pytest.raises(BuildError, match="another build is running in"):
        repair(folder)


def test_a_damaged_manifest_cannot_be_repaired(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(FormatError, match="manifest"):
        repair(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FormatError, match="not a CFQA dataset folder"):
        repair(folder)


@pytest.mark.parametrize("name", [".repair", ".repair/work", ".repair/aside", ".build"])
@pytest.mark.parametrize("damaged", [False, True])
def test_nothing_is_done_through_a_link(name: str, damaged: bool, folder: Path) -> None:
    outside = folder.parent / "outside"
    (outside / "work").mkdir(parents=True)
    (outside / "work" / "mine.partial").write_text("mine")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)
    if damaged:
        flip(folder / KINDS["codes"])
    before = tree(outside), tree(folder)
    with pytest.raises(BuildError, match="remove it"):
        repair(folder, workers=1)
    assert (tree(outside), tree(folder)) == before


def test_a_folder_of_links_into_a_cache_is_repaired(folder: Path) -> None:
    blobs = folder / ".cache" / "blobs"
    blobs.mkdir(parents=True)
    for number, name in enumerate(sorted(read_manifest(folder).files)):
        path = folder / name
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    name = "compressed/dpt/x265.zarr/c/0/0/0/0/0/0"
    (folder / name).unlink()
    told = repair(folder, workers=1)
    assert (told.repaired, told.failed) == ((name,), ())
    assert verify(folder).damage == ()


def test_a_repair_leaves_the_caches_store_as_it_is(
    folder: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = move_into_cache(folder, tmp_path / "hub")
    assert repair(snapshot, workers=1).damaged == ()
    monkeypatch.setattr(Compress, "run", refuse)  # nothing sound is encoded again
    name, store = KINDS["codes"], tmp_path / "hub" / "blobs"
    damaged = Path(os.path.realpath(snapshot / name))
    damaged.chmod(0o644)
    flip(damaged)
    before = tree(store), {path: path.stat().st_mode for path in store.rglob("*")}
    told = repair(snapshot, workers=1)
    assert (told.repaired, told.failed) == ((name,), ())
    assert (tree(store), {path: path.stat().st_mode for path in store.rglob("*")}) == before
    assert (snapshot / name).read_bytes() == (built / name).read_bytes()
    assert not (snapshot / name).is_symlink()
    assert verify(snapshot).damage == ()


def test_a_repair_that_follows_links_keeps_those_to_folders(
    folder: Path, built: Path, tmp_path: Path
) -> None:
    disk, store = tmp_path / "disk", tmp_path / "store"
    shutil.move(folder / "compressed", disk)
    (folder / "compressed").symlink_to(disk)
    kept, lost = KINDS["originals"], KINDS["codes"]
    shutil.move(folder / kept, store)
    (folder / kept).symlink_to(store)
    (disk / "notes").write_text("mine")
    (folder / lost).unlink()
    told = repair(folder, workers=1, follow_links=True)
    assert (told.repaired, told.failed, told.aside) == ((lost,), (), ("compressed/notes",))
    assert (folder / "compressed").is_symlink()
    assert (folder / kept).is_symlink()
    assert (disk / Path(lost).relative_to("compressed")).read_bytes() == (built / lost).read_bytes()
    assert (folder / ".repair/aside/compressed/notes").read_text() == "mine"
    assert verify(folder, follow_links=True).damage == ()
    flip(store)
    told = repair(folder, workers=1, follow_links=True)
    assert (told.repaired, told.failed) == ((kept,), ())
    assert not (folder / kept).is_symlink()  # what it led to may be another's, and stays


def test_what_cannot_be_made_does_not_keep_the_rest_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Extract, "run", refuse)
    flip(folder / KINDS["originals"])
    flip(folder / KINDS["codes"])
    told = repair(folder, workers=1)
    assert told.repaired == (KINDS["codes"],)
    (fault,) = told.failed
    assert fault.path == KINDS["originals"]
    assert "could not be rebuilt: extract " in fault.what
    assert "nothing doing" in fault.what
    assert [left.path for left in verify(folder).damage] == [KINDS["originals"]]


def test_what_is_put_aside_finds_a_place(folder: Path) -> None:
    (folder / "notes").write_text("first")
    repair(folder, workers=1)
    (folder / "notes").mkdir()
    (folder / "notes" / "a").write_text("second")
    assert repair(folder, workers=1).aside == ("notes/a",)
    aside = folder / ".repair" / "aside"
    assert (aside / "notes").read_text() == "first"
    assert (aside / "1" / "notes" / "a").read_text() == "second"


def test_nothing_leaves_through_a_link_that_was_put_aside(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "notes").symlink_to(outside)
    repair(folder, workers=1)
    (folder / "notes").mkdir()
    (folder / "notes" / "a").write_text("mine")
    repair(folder, workers=1)
    assert list(outside.iterdir()) == []
