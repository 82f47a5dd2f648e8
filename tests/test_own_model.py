"""The code and the recipe of the page on user-defined models build a dataset."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfqa_data import label, load
from cfqa_data.cli import main
from cfqa_data.integrity.verify import verify

pytestmark = pytest.mark.usefixtures("quick_statistics")


def test_the_page_on_own_models_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "own-model.md").read_text()
    for kind, name in (("python", "mymodel.py"), ("toml", "mymodel.toml")):
        (code,) = re.findall(rf"^```{kind}\n(.*?)^```$", page, re.M | re.S)
        (tmp_path / name).write_text(code)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(32, 0).repeat(32, 1)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["build", "mymodel.toml", "--out", "mine", "--workers", "1"]) == 0
    assert not verify("mine").faults
    dataset = load("mine", plugins=["mymodel:MyModel", "mymodel:Answer"])
    assert dataset.manifest.tasks["answer"].grid == (14, 14)
    assert set(dataset.labels["reference_score"].to_pylist()) == {1.0}
    assert max(dataset.labels["distortion"].to_pylist()) > 0
    for pair in dataset[::7]:
        found = label(dataset, pair.label["source_id"], pair.compressed)
        assert found == tuple(pair.label[key] for key in ("score", "distortion", "loss"))
