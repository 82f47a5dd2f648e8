"""Fingerprints of metrics: every change of code, imports, options or state changes them."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import each

from cfqa_data.eval import create_metric
from cfqa_data.eval.fingerprint import Fingerprint, _version, fingerprint
from cfqa_data.eval.metrics import as_metric

SOURCES = {
    "fp_own.py": "import fp_helper\nimport fp_package.part\n\n"
    "def far(x, y):\n    import fp_lazy\n    return fp_helper.far(x, y)\n\n"
    "class Far:\n    def __call__(self, x, y):\n        return far(x, y)\n",
    "fp_helper.py": "from fp_deeper import SCALE\nimport fp_owner\n\n"
    "def far(x, y):\n    return SCALE * (y - x).abs().mean((1, 2, 3, 4))\n",
    "fp_deeper.py": "SCALE = 1.0\n",
    "fp_lazy.py": "",
    "fp_package/__init__.py": "",
    "fp_package/part.py": "import fp_package.sibling\nfrom .sibling import json\n",
    "fp_package/sibling.py": "import json\n",
    "fp_package/unused.py": "",
    "fp_unrelated.py": "",
    "site-packages/fp_owner.py": "import fp_unrelated\n",
    "site-packages/fp_owner-1.0.dist-info/METADATA": "Name: fp-owner\nVersion: 1.0\n",
}
COVERED = {
    "fp_own.py": "fp_own",
    "fp_helper.py": "fp_helper",
    "fp_deeper.py": "fp_deeper",
    "fp_lazy.py": "fp_lazy",
    "fp_package/__init__.py": "fp_package",
    "fp_package/part.py": "fp_package.part",
    "fp_package/sibling.py": "fp_package.sibling",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("fp_")]:
        del sys.modules[name]
    _version.cache_clear()
    importlib.invalidate_caches()


@pytest.mark.parametrize("attribute", ["far", "Far"])
def test_every_own_module_that_is_imported_counts_and_no_other(
    folder: Path, attribute: str
) -> None:
    def found() -> Fingerprint:
        forget()
        return fingerprint(as_metric(f"fp_own:{attribute}"))

    first = found()
    own = {name for name in first.sources if not name.startswith("cfqa_data.")}
    assert own == set(COVERED.values())
    assert first.packages["fp_owner"] == "1.0"
    assert {"python", "torch", "numpy", "cfqa_data"} < set(first.packages)
    assert "fp_lazy" not in sys.modules  # nothing is run to look at it
    assert found() == first
    for name in SOURCES:
        path = folder / name
        path.write_text(SOURCES[name].replace("1.0", "1.1") + "EDITED = True\n")
        counts = name in COVERED or name.endswith("METADATA")
        edited = found()
        assert (edited.digest != first.digest) == counts, name
        if name in COVERED:
            assert edited.difference(first) == f"other code in {COVERED[name]}"
            documented = re.sub(r"(:\n)( +)", r"\1\2'Says what.'  # why\n\n\2", SOURCES[name])
            path.write_text('"""What it does."""\n' + documented)
            assert found().digest == first.digest, name
        elif counts:
            assert edited.difference(first) == "another version of fp_owner"
        path.write_text(SOURCES[name])
    assert found() == first


def error(x: torch.Tensor, y: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    return (y - x).abs().pow(power * LEVEL[0]).mean((1, 2, 3, 4))


LEVEL = [1.0]


def closure(value: float) -> Any:
    held = {"scales": (torch.tensor([value]), [value])}
    return lambda x, y: held["scales"][0] * error(x, y)


def default(value: float) -> Any:
    def metric(x: torch.Tensor, y: torch.Tensor, *, power: float = value) -> torch.Tensor:
        return error(x, y, power)

    return metric


def attribute(value: float) -> Any:
    metric = default(1.0)
    metric.power = value
    return metric


class Scaled:
    def __init__(self, value: float) -> None:
        self.scale, self.itself = value, self

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.scale * error(x, y)


class Trained(Scaled):
    def fit(self, training: Any, device: str) -> Any:
        return self


def weights(value: float) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    with torch.no_grad():
        model[0].bias[1] = value
    return model


def typed(value: float) -> Any:
    """A function without a file, as in a notebook, and the functions that it calls."""
    names: dict[str, Any] = {"__name__": "nowhere", "torch": torch, "factor": value}
    exec("def g(a):\n    return factor * a\ndef f(x, y):\n    return g((y - x).amax())\n", names)
    return names["f"]


@each(
    "make",
    [
        closure,
        default,
        attribute,
        Scaled,
        Trained,
        weights,
        typed,
        lambda value: functools.partial(error, power=value),
        lambda value: Scaled(value).__call__,
        lambda value: create_metric("mutual_knn", k=int(10 * value)),
        lambda value: functools.cache(default(value)),
    ],
)
def test_options_and_state_count(make: Callable[[float], Any]) -> None:
    first, same, other = (fingerprint(as_metric(make(value))) for value in (1.0, 1.0, 2.0))
    assert first.digest is not None
    assert first.digest == same.digest != other.digest
    assert other.difference(first) == "other options, state or training"


def test_the_values_of_globals_and_whatever_else_is_said_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = fingerprint(as_metric(error))
    assert fingerprint(as_metric(error), "more").digest != first.digest
    monkeypatch.setitem(globals(), "LEVEL", [2.0])
    assert fingerprint(as_metric(error)).digest != first.digest


def test_what_cannot_be_told_has_no_digest_and_says_why() -> None:
    for state, kind in (
        (threading.Lock(), "_thread.lock"),
        (torch.eye(2).to_sparse(), "torch.Tensor"),
        ((number for number in range(3)), "builtins.generator"),
    ):
        found = fingerprint(as_metric(Scaled(state)))  # type: ignore[arg-type]
        assert found.digest is None
        assert found.reason == f"the state of an object {kind} cannot be determined"
    names: dict[str, Any] = {"__name__": "nowhere"}
    exec("class Typed:\n    def __call__(self, x, y):\n        return y\n", names)
    assert fingerprint(as_metric(names["Typed"]())).reason == "the class Typed is in no file"
