"""Builds are byte-identical for any user, folder, time and number of processes; versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_toy import QPS, toy_recipe, tree, write_models, write_networks, write_toml

from cfqa_data import load
from cfqa_data.builders.pipeline import build, check
from cfqa_data.cli import main
from cfqa_data.format.manifest import package_versions, read_manifest
from cfqa_data.recipe.load import Recipe

ELSEWHERE = """
import os, socket, sys, time
os.umask(0o027)
now = time.time
time.time = lambda: now() + 400 * 24 * 3600
time.time_ns = lambda: int(time.time() * 1e9)
socket.gethostname = lambda: "an-odd-host-name"
if sys.argv[-1] == "1":  # Dask goes by its own
    os.getpid = lambda: 987654321
from cfqa_data.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    write_models(folder)
    whole = toy_recipe(folder, {"x265": QPS}, sources_per_task=2, group_size=1, summary="à côté")
    return Recipe.from_dict(whole.to_dict() | {"tasks": {"cls": whole.tasks["cls"].to_dict()}})


@pytest.fixture(scope="module")
def plain(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(recipe, tmp_path_factory.mktemp("plain") / "out", workers=0)


@pytest.mark.release
@pytest.mark.parametrize(
    ("workers", "environment"),
    [
        (1, {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONUTF8": "0"}),
        (2, {"TZ": "America/Adak", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "8"}),
    ],
)
def test_nothing_around_a_build_is_in_its_bytes(
    workers: int, environment: dict[str, str], recipe: Recipe, plain: Path, tmp_path: Path
) -> None:
    toml, home = write_toml(recipe, tmp_path / "toy.toml"), tmp_path / "a home"
    (home / "deep").mkdir(parents=True)
    options = ["build", toml, "--out", "../some folder", "--workers", str(workers)]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *options],
        cwd=home / "deep",
        env=os.environ | environment | {"PYTHONCOERCECLOCALE": "0", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = home / "some folder"
    assert tree(out) == tree(plain)
    for path in filter(Path.is_file, out.rglob("*")):
        told = path.read_bytes()
        for word in (b"an-odd-host-name", b"987654321", bytes(home), b"some folder"):
            assert word not in told, f"{path} holds {word!r}"


def test_a_build_begun_with_other_versions_says_so_and_goes_on_only_when_told(
    recipe: Recipe,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def older() -> dict[str, str]:
        return package_versions() | {"zarr": "3.0.1"}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    toml, out = str(write_toml(recipe, tmp_path / "toy.toml")), tmp_path / "out"
    command = ["build", toml, "--out", str(out), "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(check, "package_versions", older)
        patch.setattr(sys.modules["cfqa_data.builders.pipeline.build"], "pack", stop)
        assert main(command) == 130
    left, now = tree(out), package_versions()["zarr"]
    capsys.readouterr()
    assert main(command) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"begun with different software (zarr: 3.0.1, now {now})" in told
    assert "accept mixed versions with --allow-version-mismatch, or choose another folder" in told
    assert tree(out) == left
    assert main([*command, "--allow-version-mismatch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["zarr"] == f"3.0.1, then {now}"
    manifest = read_manifest(out)
    assert manifest.versions == read_manifest(plain).versions | {"zarr": f"3.0.1, then {now}"}
    assert load(out, "cls")[0].label == load(plain, "cls")[0].label
    same = {name: digest for name, digest in tree(plain).items() if "/" in name}
    assert {name: digest for name, digest in tree(out).items() if "/" in name} == same
