"""No value depends on the caller's global state of torch or NumPy: states x public functions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import official_compressai as official
import pytest
import torch
from memory_dataset import FoldedDataset
from metric_samples import TRAINED, pair, ready
from pipeline_toy import DIM, HEADS, write_networks
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import cfqa_data
from cfqa_data.builders.backbones.dinov2 import load_backbone
from cfqa_data.builders.tasks.heads import load_head
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.hyperprior.codec import load_hyperprior
from cfqa_data.eval.metrics import METRICS, PAPER_METRICS, as_metric, create_metric
from cfqa_data.format.codes import Codes
from cfqa_data.loaders.torch import CodeTensors
from cfqa_data.torch_state import torch_state

# States.


@contextmanager
def set_to(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        assert get() == value  # the function restored what it changed
        put(before)


class HalfAsMuch(TorchFunctionMode):
    """A function mode that halves new tensors."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        return made / 2 if isinstance(made, torch.Tensor) and made.is_floating_point() else made


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
        assert torch.empty(1).device.type == "meta"
    finally:
        torch.set_default_device(None)


def default_dtype(dtype: torch.dtype) -> Any:
    return set_to(torch.get_default_dtype, torch.set_default_dtype, dtype)


def attribute(of: Any, name: str, value: Any) -> Any:
    return set_to(lambda: getattr(of, name), lambda value: setattr(of, name, value), value)


def new_names(operation: Any, value: str) -> Any:
    """Set the precision through torch's newer API, which makes the older one raise errors."""
    return attribute(operation, "fp32_precision", value)


STATES: dict[str, Callable[[], Any]] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default device": default_device,
    "with a device": lambda: torch.device("meta"),
    "function mode": HalfAsMuch,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "deterministic": lambda: set_to(  # what use_deterministic_algorithms does; it imports a lot
        torch.are_deterministic_algorithms_enabled, torch._C._set_deterministic_algorithms, True
    ),
    "matrix products": lambda: set_to(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "anomalies": lambda: set_to(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, True),
    "NumPy errors": lambda: np.errstate(all="raise"),
    "sdpa": lambda: sdpa_kernel(SDPBackend.MATH),
    "mkldnn off": lambda: attribute(torch.backends.mkldnn, "enabled", False),
    "cudnn": lambda: attribute(torch.backends.cudnn, "allow_tf32", False),
}
NEWER = hasattr(torch.backends.mkldnn, "matmul")
"""Whether this torch has the newer API of precision."""

if NEWER:
    STATES |= {
        "products, new names": lambda: new_names(torch.backends.mkldnn.matmul, "bf16"),
        "convolutions": lambda: new_names(torch.backends.mkldnn.conv, "bf16"),
        "all backends": lambda: new_names(torch.backends, "bf16"),
        "cudnn, new names": lambda: new_names(torch.backends.cudnn.conv, "ieee"),
    }

# Public functions ("doors"). Each returns numbers, arrays, tensors, bytes, or lists and dicts.


class Learned(nn.Module):
    """A user-defined metric with weights, a constant and a temporary tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        nn.init.orthogonal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.linear.bias)
        self.scale = torch.tensor(0.3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        error = self.linear(x - y) * self.scale + torch.zeros(32) + torch.tensor([1]) / 3
        return error.square().mean((1, 2, 3, 4))


class Trained:
    name = "trained"

    def fit(self, training: Any, device: str) -> Any:
        weight = torch.zeros(1, requires_grad=True)
        for _ in range(3):
            loss = (weight - training.labels["distortion"].to_numpy().mean()).square().sum()
            (slope,) = torch.autograd.grad(loss, weight)
            weight = (weight - 0.1 * slope).detach().requires_grad_()
        return lambda x, y: (weight.detach() * (x - y)).abs().mean((1, 2, 3, 4))


def plain_list(x: torch.Tensor, y: torch.Tensor) -> list[float]:
    return [0.1 + float(error) for error in (x - y).abs().amax((1, 2, 3, 4))]


SHAPE = (1, 1, 33, 32)  # large enough for products of lower precision


def metrics_alone(_: Path) -> Any:
    x, y = pair(SHAPE, batch=2)
    metrics = [ready(metric, SHAPE) for metric in (*METRICS, *PAPER_METRICS)]
    metrics += [create_metric(name, **found) for name, found in TRAINED.items()]
    metrics += [as_metric(Learned), as_metric(plain_list)]
    return {metric.name: metric(x, y) for metric in metrics}


def evaluation(_: Path) -> Any:
    metrics = ["mse", "mahalanobis", "gap_mean", Trained(), plain_list]
    found = cfqa_data.evaluate(FoldedDataset(), metrics, limit=1)
    assert not found.failures
    return [found.scores.to_pydict(), repr(found.correlations.to_pydict())]


def extraction(folder: Path) -> Any:
    backbone = load_backbone(folder / "backbone.safetensors", HEADS)
    images = np.random.default_rng(0).normal(size=(1, 3, 56, 84)).astype(np.float32)
    return [backbone.extract(images, (1, 3), kind) for kind in ("float32", "bfloat16")]


def heads(folder: Path) -> Any:
    backbone = load_backbone(folder / "backbone.safetensors", HEADS)
    rng = np.random.default_rng(0)
    found = []
    for task, (shape, truth) in {
        "cls": ((1, 1), np.array(3)),
        "seg": ((2, 1), rng.integers(0, 13, (112, 168), np.uint8)),
        "dpt": ((2, 4), rng.integers(500, 9000, (112, 112), np.uint16)),
    }.items():
        head = load_head(task, folder / f"{task}.safetensors", backbone.norm)
        feature = rng.normal(size=(*shape, 65, DIM)).astype(np.float32)
        found += [head.predict(feature, *([truth.shape] if task == "seg" else []))]
        if task == "seg":
            found += [head.predict_logits(feature, *truth.shape)]
        found += [*head.score(feature, truth), *head.evaluate(feature[None], truth)]
    return found


def hyperpriors(folder: Path) -> Any:
    codec = get_codec("hyperprior_multi_task")
    plane = np.random.default_rng(0).integers(100, 160, (16, 24), np.uint8)
    stream = codec.encode(plane, codec.lambdas[3])
    published = load_hyperprior(folder / "published.pth")
    other = published.encode(plane / 256.0)
    found = [stream, codec.decode(stream, plane.shape)]
    return [*found, other, published.decode(other, plane.shape)]


def codes(_: Path) -> Any:
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(2, 60000)).astype(np.float32)
    codes = Codes(rng.integers(0, 60000, (1, 2, 3, 4), np.uint16), tables)
    return [codes.dequantize(), CodeTensors.of(codes).dequantize()]


DOORS = [metrics_alone, evaluation, extraction, heads, hyperpriors, codes]


def exactly(value: Any) -> Any:
    """Convert results for an exact comparison; tensors must be ordinary CPU tensors."""
    if isinstance(value, torch.Tensor):
        assert not value.is_inference()
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: exactly(item) for name, item in value.items()}
    return [exactly(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write networks to files."""
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    state = official.weights("near")
    state["entropy_bottleneck.quantiles"] = torch.tensor([[[-9.0, 0.1, 9.0]]] * official.N)
    torch.save(state, folder / "published.pth")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    return {door.__name__: exactly(door(folder)) for door in DOORS}


TOGETHER: tuple[tuple[str, ...], ...] = (
    ("autocast bfloat16", "function mode", "float64", "inference", "matrix products"),
    ("default device", "gradients", "deterministic", "NumPy errors")
    + (("all backends", "products, new names") if NEWER else ()),
)
"""States that are set together: a state that changes a value is noticed in a group too."""


@pytest.mark.parametrize(
    "states",
    [*TOGETHER, *(pytest.param((state,), marks=pytest.mark.release) for state in STATES)],
    ids="+".join,
)
def test_no_state_of_the_caller_changes_a_value(
    states: tuple[str, ...], folder: Path, expected: dict[str, Any]
) -> None:
    for door in DOORS:
        with ExitStack() as stack:
            for state in states:
                stack.enter_context(STATES[state]())
            found = door(folder)
        assert exactly(found) == expected[door.__name__], f"{door.__name__}, {states}"


def test_threads_change_no_more_than_rounding(folder: Path, expected: dict[str, Any]) -> None:
    def numbers(found: Any) -> np.ndarray:
        if isinstance(found, dict):
            found = list(found.values())
        if isinstance(found, list):
            return np.concatenate([numbers(item) for item in found])
        if isinstance(found, bytes | str):
            return np.empty(0)
        found = found.detach() if isinstance(found, torch.Tensor) else found
        return np.asarray(found, np.float64).ravel()

    for door in DOORS:
        found = []
        for count in (1, 3):
            with set_to(torch.get_num_threads, torch.set_num_threads, count):
                found.append(numbers(door(folder)))
        np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6, err_msg=door.__name__)


@pytest.mark.parametrize("state", ["autocast bfloat16", "default device", "float64", "gradients"])
def test_a_metric_is_a_loss_in_any_state(state: str) -> None:
    x, y = pair(SHAPE, batch=2)
    mahalanobis = ready(create_metric("mahalanobis"), SHAPE)
    with torch.inference_mode():  # the cached covariance is used again below
        mahalanobis(x, y)
    for metric in (create_metric("cosine"), mahalanobis):
        slopes = []
        for kind in ("no gradients", state):
            z = y.clone().requires_grad_()
            with STATES[kind]():
                assert metric(x, z).requires_grad == (kind != "no gradients")
            with STATES[state](), torch.enable_grad():
                scores = metric(x, z)
            scores.sum().backward()
            slopes.append(z.grad)
        torch.testing.assert_close(*slopes, rtol=0, atol=0)
        assert bool(slopes[0].abs().amax() > 0)


def test_a_metric_that_changes_the_state_changes_no_other_metric() -> None:
    def careless(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.set_default_device("meta")
        torch.set_autocast_enabled("cpu", True)
        torch.set_grad_enabled(False)
        return torch.zeros(len(y), device="cpu")

    found = []
    for metrics in (["mahalanobis", plain_list], [careless, "mahalanobis", plain_list]):
        scores = cfqa_data.evaluate(FoldedDataset(), metrics, limit=1).scores.to_pylist()
        found.append([row for row in scores if row["metric"] != "careless"])
    assert found[0] == found[1]
    as_metric(careless)(*pair((1, 1, 2, 3)))
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.empty(1).device.type == "cpu"
    torch.set_default_device(None)


def test_threads_inside_at_the_same_time_leave_what_there_was() -> None:
    second_is_in, first_is_out = threading.Event(), threading.Event()
    seen = []

    def second() -> None:
        with torch_state():
            second_is_in.set()
            first_is_out.wait()
            seen.append(torch.get_default_dtype())

    with default_dtype(torch.float64):
        thread = threading.Thread(target=second)
        with torch_state():
            thread.start()
            second_is_in.wait()
        first_is_out.set()
        thread.join()
        assert seen == [torch.float32]


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("mixed", [False, True] if NEWER else [False])
def test_precision_is_that_of_the_state_around(tf32: bool, mixed: bool) -> None:
    cudnn = torch.backends.cudnn

    def check(precision: str) -> None:
        assert torch.get_float32_matmul_precision() == precision
        assert cudnn.allow_tf32 == (precision == "high")  # of convolutions

    with attribute(cudnn, "allow_tf32", tf32):
        with new_names(cudnn.conv, "ieee" if tf32 else "tf32") if mixed else nullcontext():
            with torch_state():
                check("highest")
            with torch_state(precision="high"):
                check("high")
                with torch_state():
                    check("high")
                torch.set_float32_matmul_precision("medium")
                cudnn.allow_tf32 = False
                with torch_state(precision="highest"):
                    check("highest")
                check("high")
        assert torch.get_float32_matmul_precision() == "highest"
