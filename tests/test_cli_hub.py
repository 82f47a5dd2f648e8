"""Commands that show or evaluate a dataset accept a repo on the Hub instead of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loopback_hub import loopback_hub, point_clients_at
from mock_dataset import write_mock_dataset

from cfqa_data.cli import main

pytestmark = pytest.mark.usefixtures("quick_statistics")


def test_info_eval_and_report_of_a_repo_say_what_they_say_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_mock_dataset(tmp_path / "cfqa", sources=2)
    monkeypatch.chdir(tmp_path)

    def told(*words: str) -> dict[str, object]:
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    with loopback_hub() as hub:
        hub.put("org/name", folder)
        point_clients_at(hub, monkeypatch, tmp_path / "cache")
        here, there = told("info", str(folder)), told("info", "org/name")
        assert (here.pop("path"), there.pop("path")) == (str(folder), "hf://datasets/org/name")
        assert there == here
        assert hub.count("*/originals/*") == hub.count("*/compressed/*") == 0
        scored = ["--task", "cls", "--codec", "x265", "--metric", "mse"]
        of_repo = told("eval", "org/name", *scored, "--out", "scores.parquet")
        assert of_repo == told("eval", str(folder), *scored)
        # Scores of the folder are accepted for the repo, since the manifests have the same hash.
        for place, page in (("org/name", "there.html"), (str(folder), "here.html")):
            assert main(["report", place, "scores.parquet", "--out", page]) == 0
        assert Path("there.html").read_bytes() == Path("here.html").read_bytes()
        capsys.readouterr()
        assert main(["info", "org/none"]) == 2
        assert capsys.readouterr().err.startswith("cfqa: hf://datasets/org/none: no folder")
