"""The benchmarks produce the figures that the pages state; their structure is tested, not times."""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_dataset import write_mock_dataset

import cfqa_data

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # last: nothing there may stand for another module

import all as everything  # noqa: E402
import backbone  # noqa: E402
import bootstrap  # noqa: E402
import build  # noqa: E402
import coding  # noqa: E402
import evaluator  # noqa: E402
import imports  # noqa: E402
import loading  # noqa: E402
import metrics  # noqa: E402
import mini  # noqa: E402
import pages  # noqa: E402
import reference  # noqa: E402
import results  # noqa: E402
import rows  # noqa: E402
import scaling  # noqa: E402
import table  # noqa: E402
import workers  # noqa: E402
from results import FIGURES, Figure, Limit, Result  # noqa: E402

PAGES = ("README.md", "docs/building.md", "docs/format.md", "docs/loading.md")
PAGES += ("docs/metrics.md", "docs/metric-results.md", "docs/statistics.md")
QUANTITY = re.compile(
    r"\d ?(?:s|ms|seconds?|minutes?|hours?|GB/s|[kMG]B|requests?)\b|times as long|times faster"
)


def blocks(page: str) -> list[str]:
    """Return the paragraphs, list entries and table rows of a page, without code."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    parts = re.split(r"\n\s*\n|\n(?=\||- |\d+\. )", text)
    return [" ".join(part.split()) for part in parts]


# The data.


def test_figures_are_measured_by_a_benchmark_that_is_there() -> None:
    text = (ROOT / "benchmarks/figures.toml").read_text()
    assert len(FIGURES) == text.count("[[figure]]")  # no name twice
    for known in FIGURES.values():
        assert (ROOT / "benchmarks" / f"{known.benchmark}.py").is_file()
        assert known.unit
        assert not known.limit or Limit(known.limit)
        assert known.limit or not known.missed


def test_figures_are_stated_where_the_data_say() -> None:
    for known in FIGURES.values():
        for place in known.stated:
            page, words = place.split(": ", 1)
            assert any(words in block for block in blocks(page)), place


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_of_a_page_is_measured(page: str) -> None:
    import tomllib

    data = tomllib.loads((ROOT / "benchmarks/figures.toml").read_text())
    places = [place for known in FIGURES.values() for place in known.stated]
    places += data["not_measured"]
    words = [place.split(": ", 1)[1] for place in places if place.startswith(f"{page}: ")]
    stated = [block for block in blocks(page) if QUANTITY.search(block)]
    assert stated
    for block in stated:
        assert any(part in block for part in words), block


@pytest.mark.parametrize(
    "wrong", ["size <= 3", "value < 3", "ratio >= many", "value <= -1", "value <=", ""]
)
def test_a_limit_that_says_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Limit(wrong)


def test_a_figure_that_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="no peer"):
        Figure("x", "name", "s", limit="ratio <= 2")
    with pytest.raises(ValueError, match="page: words"):
        Figure("x", "name", "s", stated=("README.md",))


# A result.


@pytest.mark.parametrize(
    ("limit", "value", "peer", "met"),
    [
        ("value <= 2", 2.0, None, True),
        ("value <= 2", 2.1, None, False),
        ("value >= 2", 2.1, None, True),
        ("ratio <= 1/6", 1.0, 6.0, True),
        ("ratio <= 1/6", 1.01, 6.0, False),
        ("ratio >= 3", 5.9, 2.0, False),
        ("ratio >= 3", 5.9, None, None),
        ("value <= 2", None, 1.0, None),
        ("", 1.0, 1.0, None),
    ],
)
def test_a_result_is_held_against_its_limit(
    limit: str, value: float | None, peer: float | None, met: bool | None
) -> None:
    result = Result("name", value, "s", "peer", peer, limit)
    assert result.met is met
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_result_is_shown_as_people_say_it() -> None:
    assert Result("a", 351.2, "MB", "float32", 2251.0, "ratio <= 1/6").cells() == [
        "351 MB",
        "float32: 2251 MB",
        "1/6.41",
        "at most 1/6 x",
        "yes",
    ]
    assert Result("a", 2.0, "s", "", None, "value <= 1").cells()[-2:] == ["at most 1 s", "NO"]
    assert Result("a", None, "s", note="not here: X").cells() == ["not here: X", *["-"] * 4]


# Every benchmark tells its figures.


def options(module: Any, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    getattr(module, "options", lambda parser: None)(parser)
    return parser.parse_args(["--quick", *given])


def check(told: Iterable[Result], benchmark: str, unmeasured: str = "$^") -> dict[str, Result]:
    """Check that a benchmark prints all its figures, except those whose name matches."""
    found = {result.name: result for result in told}
    for name, known in FIGURES.items():
        if known.benchmark == benchmark and not re.search(unmeasured, name):
            assert name in found, name
            assert found[name].unit == known.unit
            value = found[name].value
            assert value is None or np.isfinite(value), name
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small shapes and few repetitions."""
    shapes = {name: (*shape[:2], 9, 16) for name, shape in metrics.SHAPES.items()}
    for module in (evaluator, loading, metrics):
        monkeypatch.setattr(module, "SHAPES", shapes)
    monkeypatch.setattr(evaluator, "REST", 0.0)
    monkeypatch.setattr(evaluator, "SIDE", 64)
    monkeypatch.setattr(mini, "HASHED", 1 << 16)


def test_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[str] = []
    monkeypatch.setattr(imports, "start", codes.append)
    check(imports.measure(options(imports)), "imports")
    assert codes.count("") == codes.count("import cfqa_data") == 2
    compile("\n".join(codes), "codes", "exec")


@pytest.mark.usefixtures("small")
def test_loading() -> None:
    found = check(loading.measure(options(loading)), "loading")
    assert 0 < (found["bits per stored code"].value or 0) < 100


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("module", [build, evaluator, loading, metrics])
def test_a_peer_is_measured_in_turns(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Version:
        def __init__(self, command: Any, folder: str | None = None, **environment: str) -> None:
            self.seconds = 2.0 if folder else 1.0

        def ask(self, line: str) -> Any:
            asked.append(self.seconds)
            if module is build:
                return {"compress": self.seconds}
            return self.seconds if module is loading else (self.seconds, [0.5, 0.5, 0.5])

        def close(self) -> None:
            pass

    monkeypatch.setattr(module, "Version", Version)
    which = [] if module is build else ["--task=dpt"]
    found = list(module.measure(options(module, "--peer=elsewhere", *which)))
    speed_up = 0.5 if module in (build, metrics) else 2.0  # times, or rates
    assert {result.ratio for result in found if result.peer} == {speed_up}
    assert asked == [1.0, 2.0] * (len(asked) // 2)


@pytest.mark.usefixtures("small")
def test_evaluator() -> None:
    told = evaluator.measure(options(evaluator, *(f"--task={task}" for task in evaluator.SHAPES)))
    found = check(told, "evaluator")
    assert (found["largest difference from NumPy, seg"].value or 0) < 1e-5


@pytest.mark.usefixtures("small")
def test_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mock_dataset(tmp_path / "mini")
    data, scores = str(tmp_path / "mini"), str(tmp_path / "scores.parquet")
    cfqa_data.evaluate(data, ["mse", "cosine", "cka", "gap_mean"], limit=3, out=scores)
    names = ["levels", "health", "ceilings", "scores", "baselines", "apart"]
    places = [
        f"<!-- table {name} -->\nold\n<!-- end -->\n" for name in map("mini {}".format, names)
    ]
    kept = "<!-- table wide scores -->\nold\n<!-- end -->\n"
    page = tmp_path / "page.md"
    page.write_text("".join([*places, kept]))
    told = ["pages.py", "--mini", data, scores, "--docs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", told)
    pages.main()
    text = page.read_text()
    assert text.count("old") == 1
    assert text.endswith(kept)
    assert "| cls | x265 | qp " in text
    assert "| `cosine` | " in text
    assert " of 6 (" in text


def test_metrics() -> None:
    found = check(metrics.measure(options(metrics)), "metrics")
    assert "cls: all together, next" in found


def test_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = bootstrap.made_up_labels(sources=3)
    monkeypatch.setattr(bootstrap, "made_up_labels", lambda: labels)
    monkeypatch.setattr(bootstrap, "coverage", lambda experiments: [0.9, 1.0])
    check(bootstrap.measure(options(bootstrap)), "bootstrap")


def test_coding() -> None:
    found = check(coding.measure(options(coding)), "coding", "full-size|vvenc|hyperprior")
    assert found["x265, cls at 30: size"].value


@pytest.mark.release
@pytest.mark.usefixtures("small")
def test_mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_mock_dataset(tmp_path / "mini", sources=2)
    found = check(mini.measure(options(mini, f"--dataset={root}")), "mini", "build|memory")
    assert found["mini: requests until the first pair"].met
    sizes = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    assert found["mini: full tier"].value == sum(sizes.values()) / 1e6


def test_build(monkeypatch: pytest.MonkeyPatch) -> None:
    made = build.Built(10.0, {"select": 1.0}, 2 * 10**9, 10**9, 10**6)
    check(build.told("mini", made), "mini", "tier|scores|gallery|verify|requests|bytes")
    item = argparse.Namespace(task="cls", codec="x265")
    other = argparse.Namespace(task="cls", codec="hyperprior_multi_task")
    rows = [(item, 10, 2.6, 2.0, 0.1), (other, 10, 4.0, 1.0, 1.0)]
    monkeypatch.setattr(build, "ratios", lambda recipe: rows)
    ratios = build.told_ratios(argparse.Namespace(name="nano"))
    found = check([*build.told("nano", made), *ratios], "build")
    assert found["nano: features by video, over encoding"].ratio == pytest.approx(1.3)
    assert found["nano: features by hyperpriors, over both ways"].ratio == pytest.approx(2.0)


def test_reference_software_that_is_not_here_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CFQA_HM_ENCODER", "CFQA_VTM_ENCODER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    found = check(reference.measure(options(reference)), "reference")
    for result in found.values():
        assert result.value is None
        assert result.met is None
        assert "ENCODER" in result.note


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reference.VTM, "find_encoder", lambda self: None)
    monkeypatch.setenv("PATH", "")
    for name in ("HM", "VTM"):
        monkeypatch.delenv(f"CFQA_{name}_ENCODER", raising=False)
        monkeypatch.delenv(f"CFQA_{name}_DECODER", raising=False)
    assert reference.absent(reference.VTM) == "not here: CFQA_VTM_DECODER"


def test_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"load_s": 1.0, "first_s": 2.0, "again_s": 1.5, "bare_s": 1.0}
    row |= {"loaded": 1e9, "run": 6e9, "weights": 4e9}
    monkeypatch.setattr(backbone, "in_child", lambda *_: row)
    told = [
        result
        for layout in ("official layout", "Hub layout")
        for result in backbone.of_layout(layout, Path(), ["cls", "dpt"], "float32")
    ]
    found = check(told, "backbone")
    assert found["ViT-g, Hub layout: memory to load"].ratio == pytest.approx(0.25)


# Growth.


def test_workers_are_simulated_with_a_caller_that_does_one_thing_at_a_time(tmp_path: Path) -> None:
    assert workers.simulated([(0.0, 1.0, 0.0)] * 10, 1) == 10
    assert workers.simulated([(0.0, 1.0, 0.0)] * 10, 4) == 3
    assert workers.simulated([(0.5, 1.0, 0.5)] * 10, 100) == 10  # the caller is busy all along
    items = workers.recorded(write_mock_dataset(tmp_path / "mock", sources=2), ["mse"])
    assert len(items) == 3 * 2
    assert all(min(item) >= 0 for item in items)


def test_tables_of_many_rows_open(tmp_path: Path) -> None:
    rows.write(tmp_path, 200)
    assert len(cfqa_data.load(tmp_path)) == 200
    assert len(cfqa_data.load(tmp_path, source="s0000007")) == 10


def test_growth_steps_run_on_what_is_written(tmp_path: Path) -> None:
    scaling.write(tmp_path / "growth", 20)
    for name, prepare in scaling.STEPS.items():
        if name != "statistics":
            prepare(tmp_path / "growth")()
    assert len(list((tmp_path / "growth.export").rglob("*.npy"))) == 22


def test_growth_is_judged_by_the_last_tenfold() -> None:
    rows = {
        100: {"seconds": 9.0, "memory": 0.0},
        1_000: {"seconds": 1.0, "memory": 5e6},
        10_000: {"seconds": 20.0, "memory": 5e6 + 9_000 * scaling.FEATURE / 2},
    }
    told = [result for name in ("write", *scaling.STEPS) for result in scaling.judged(name, rows)]
    found = check(told, "scaling")
    assert found["read: time of an item, of 10 000 and of 1000"].ratio == pytest.approx(2)
    assert found["read: memory that an item adds"].ratio == pytest.approx(0.5)
    assert not any(result.met for result in told)
    assert sum(result.met is False for result in told) == 2 * len(scaling.STEPS) + 1


def test_growth_is_drawn(tmp_path: Path) -> None:
    from scaling_plot import STYLES, plot

    rows = {n: {"seconds": 1e-3 * n, "memory": 1e6} for n in scaling.ITEMS}
    plot(dict.fromkeys(("write", *scaling.STEPS), rows), tmp_path / "growth.png")
    assert set(STYLES) == {"write", *scaling.STEPS}
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


# All of them.


def run_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[Result], code: int, *more: str
) -> tuple[int, Any]:
    """Run the command for all benchmarks, with one that prints these figures."""
    asked = []

    def run_one(name: str, given: list[str]) -> tuple[list[Result], int]:
        asked.append((name, *given))
        return told, code

    monkeypatch.setattr(everything, "run_one", run_one)
    file = tmp_path / "told.json"
    status = everything.main(["--only", "bootstrap", "--json", str(file), *more])
    assert asked == [("bootstrap", *(["--quick"] if "--quick" in more else []))]
    return status, json.loads(file.read_text())


def test_the_table_marks_what_is_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = results.figure("tables of 25 metrics, 1000 resamples", 8.0, 24000.0)
    bad = results.figure("their memory", 3.0)
    status, told = run_with(monkeypatch, tmp_path, [good, bad], 1)
    out = capsys.readouterr().out
    assert status == 1
    assert re.search(r"their memory +3 GB .*at most 2 GB +NO", out)
    assert re.search(r"resamples +8 s +a loop over scipy.* 1/3000 +at most 30 s +yes", out)
    assert told["benchmarks"]["bootstrap"]["results"][1]["met"] is False
    assert told["machine"]["cores"] >= 1
    assert platform.node() not in json.dumps(told["machine"])
    status, _ = run_with(monkeypatch, tmp_path, [good, bad], 1, "--quick")
    assert status == 0  # a reduced run is held to nothing
    status, _ = run_with(monkeypatch, tmp_path, [good], 0)
    assert status == 0
    assert everything.main(["--from", str(tmp_path / "told.json")]) == 0
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(("told", "code"), [([], 0), ([Result("a", 1.0, "s")], -9)])
def test_a_benchmark_that_fails_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[Result], code: int
) -> None:
    assert run_with(monkeypatch, tmp_path, told, code)[0] == 1


def test_the_command_runs_a_benchmark_and_fills_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{table.BEGIN}\nold\n{table.END}\n\nAfter\n")
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks/all.py",
            "--quick",
            "--only=coding",
            f"--markdown={page}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "x265: encode mini's planes" in done.stdout
    known = json.loads((tmp_path / "benchmarks.json").read_text())
    assert known["quick"] is True
    assert known["benchmarks"]["coding"]["failed"] is False
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("After\n")
    assert "\nold\n" not in text
    assert "| x265: encode mini's planes |" in text


def test_the_page_has_a_row_for_every_figure() -> None:
    text = (ROOT / "docs/performance.md").read_text()
    filled = text.split(table.BEGIN)[1].split(table.END)[0]
    rows = [
        [cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| .*", filled, re.M)
    ]
    by_name = {row[1]: row for row in rows[1:]}
    assert list(by_name) == list(FIGURES)
    for name, known in FIGURES.items():
        assert by_name[name][-2] == f"`{known.benchmark}.py`"
        shown = Limit(known.limit).shown(known.unit) if known.limit else "-"
        assert by_name[name][5] == shown, name
    for benchmark in everything.BENCHMARKS:
        assert f"`{benchmark}.py`" in text
