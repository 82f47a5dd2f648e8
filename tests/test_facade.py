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
    for module in (cfqa_data, cfqa_data.eval, cfqa_data.loaders):
        with pytest.raises(AttributeError, match=f"{module.__name__}' has no attribute 'nothing'"):
            module.nothing  # noqa: B018


@pytest.mark.parametrize("heavy", [False, pytest.param(True, marks=pytest.mark.release)])
def test_modules_are_attributes_without_being_imported_first(heavy: bool) -> None:
    script = (
        "import sys, cfqa_data\n"
        "assert {'builders', 'codecs', 'eval', 'loaders'} <= {*dir(cfqa_data)}\n"
        "assert not {'cfqa_data.codecs', 'torch'} & {*sys.modules}\n"
        "assert 'torch' in dir(cfqa_data.loaders) and 'tasks' in dir(cfqa_data.builders)\n"
        "assert 'torch' not in sys.modules\n"
        "cfqa_data.codecs.get_codec, cfqa_data.integrity.verify.verify\n"
        "cfqa_data.errors.CodecError\n"
    )
    if heavy:
        script += (
            "cfqa_data.codecs.hyperprior.codec.load_hyperprior\n"
            "cfqa_data.eval.read_evaluation, cfqa_data.eval.report.write_report\n"
            "cfqa_data.loaders.attach, cfqa_data.loaders.torch.Pairs\n"
            "cfqa_data.builders.pipeline.build, cfqa_data.builders.tasks.heads.load_head\n"
        )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
