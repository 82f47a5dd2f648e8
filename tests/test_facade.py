from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import cfqa_data
from cfqa_data import errors


def test_importing_brings_nothing_heavy() -> None:
    script = "import sys, cfqa_data; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "pyarrow", "zarr", "safetensors", "torch", "scipy", "datasets", "av", "typer"}
    assert not heavy & set(done.stdout.split())


def test_every_public_name_is_there() -> None:
    for name in cfqa_data.__all__:
        assert getattr(cfqa_data, name) is not None
    assert set(cfqa_data.__all__) <= set(dir(cfqa_data))
    assert cfqa_data.__version__ == version("cfqa-data")
    assert cfqa_data.FormatError is errors.FormatError
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cfqa_data.nothing  # noqa: B018
