"""A missing package is reported in one line that names its extra, in Python and in the shell."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from mock_dataset import toy_recipe, write_mock_dataset

import cfqa_data
from cfqa_data.errors import CfqaError, MissingDependencyError
from cfqa_data.extras import EXTRAS, INCLUDED, extras

# Prints the error of each public entry point if no optional package is installed.
SCRIPT = """
import json, sys
from pathlib import Path

absent, folder = set(sys.argv[1].split(",")), sys.argv[2]

class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import cfqa_data
import numpy as np

x = cfqa_data.load(folder, "cls").original("cls-000")
plane = np.zeros((16, 16), np.uint8)

def hyperprior():
    codec = cfqa_data.codecs.get_codec("hyperprior_multi_task")
    codec.encode(plane, codec.lambdas[0])

def checkpoint():
    Path("x.pth").write_bytes(b"")
    cfqa_data.codecs.hyperprior.codec.load_hyperprior("x.pth")

doors = {
    "evaluate": lambda: cfqa_data.evaluate(folder),
    "read": lambda: cfqa_data.eval.read_evaluation("scores.parquet").correlations,
    "metric": lambda: cfqa_data.create_metric("mse")(x, x),
    "device": lambda: cfqa_data.create_metric("mse", "cuda"),
    "statistic": lambda: cfqa_data.create_metric("psnr", value_range=[1.0]),
    "list": lambda: cfqa_data.list_metrics(),
    "report": lambda: cfqa_data.eval.report.write_report,
    "hub": lambda: cfqa_data.load("org/name"),
    "image": lambda: cfqa_data.load(folder, "cls").image("cls-000"),
    "gallery": lambda: cfqa_data.builders.gallery.page.write_gallery(folder, "x.html"),
    "attach": lambda: cfqa_data.loaders.attach([], folder),
    "pairs": lambda: cfqa_data.loaders.torch.Pairs,
    "x265": lambda: cfqa_data.codecs.get_codec("x265").encode(plane, 20),
    "vvenc": lambda: cfqa_data.codecs.get_codec("vvenc").encode(plane, 20),
    "hyperprior": hyperprior,
    "checkpoint": checkpoint,
    "backbone": lambda: cfqa_data.builders.backbones.dinov2.load_backbone,
    "head": lambda: cfqa_data.builders.tasks.heads.load_head,
    "scheduler": lambda: list(
        cfqa_data.processes.executor.Executor(0, "tcp://x:1").run(None, [0])
    ),
}
said = {}
for name, door in doors.items():
    try:
        door()
    except ImportError as error:
        assert isinstance(error, cfqa_data.MissingDependencyError), (name, error)
        said[name] = str(error)
print(json.dumps(said))
"""


def test_each_door_names_what_is_missing_and_the_extra_that_brings_it(tmp_path: Path) -> None:
    whole = toy_recipe()
    tasks = {"cls": whole.to_dict()["tasks"]["cls"]}
    folder = write_mock_dataset(tmp_path / "cfqa", recipe=toy_recipe(tasks=tasks))
    cfqa_data.evaluate(folder, "mse", out=tmp_path / "scores.parquet")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(EXTRAS), str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    expected = {
        "evaluate": ("scipy", "eval"),
        "read": ("scipy", "eval"),
        "metric": ("torch", "eval"),
        "device": ("torch", "eval"),
        "statistic": ("torch", "eval"),
        "report": ("jinja2", "eval"),
        "hub": ("huggingface_hub", "hf"),
        "image": ("PIL", "build"),
        "gallery": ("jinja2", "build"),
        "attach": ("datasets", "hf"),
        "pairs": ("torch", "eval"),
        "x265": ("av", "codecs"),
        "vvenc": ("imageio_ffmpeg", "codecs"),
        "hyperprior": ("constriction", "codecs"),
        "checkpoint": ("torch", "eval"),
        "backbone": ("torch", "build"),
        "head": ("torch", "build"),
        "scheduler": ("distributed", "build"),
    }
    assert said.keys() == expected.keys()
    for name, (package, extra) in expected.items():
        assert said[name] == f"{package} is not installed: pip install 'cfqa-data[{extra}]'", name


def test_the_outermost_extra_that_brings_a_package_is_named() -> None:
    @extras()
    def inner(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name, extra in (("torch", "build"), ("distributed", "build"), ("h5py", "paper")):
        with pytest.raises(MissingDependencyError) as caught, extras("build"):
            inner(name)
        told = f"{name} is not installed: pip install 'cfqa-data[{extra}]'"
        assert str(caught.value) == told
        assert isinstance(caught.value, CfqaError)
    for name in ("cfqa_data.typo", "torch.typo"):  # of an installed package
        for extra in (None, "build"):
            with pytest.raises(ModuleNotFoundError) as found, extras(extra):
                importlib.import_module(name)
            assert not isinstance(found.value, MissingDependencyError)


def test_extras_are_the_package_s() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    distributions = {"PIL": "pillow", "distributed": "dask", "sklearn": "scikit-learn"}
    for module, extra in EXTRAS.items():
        wanted = distributions.get(module, module.replace("_", "-"))
        assert any(line.startswith(wanted) for line in declared[extra]), module
    for extra, included in INCLUDED.items():
        (others,) = (line for line in declared[extra] if line.startswith("cfqa-data["))
        assert {*others[len("cfqa-data[") : -1].split(","), extra} == {*included}
