"""The command line: output, errors, and imports that must not happen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mock_dataset import write_mock_dataset

import cfqa_data.builders.pipeline as pipeline
from cfqa_data.cli import main
from cfqa_data.cli.commands import COMMANDS, REMOVAL, RENAMED
from cfqa_data.console.progress import Progress
from cfqa_data.errors import BuildError
from cfqa_data.eval import evaluate, read_evaluation
from cfqa_data.integrity.summary import _size_lines
from cfqa_data.torch_state import _torch

pytestmark = pytest.mark.usefixtures("quick_statistics")

CFQA = [sys.executable, "-c", "import sys; from cfqa_data.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("mock") / "cfqa")


@pytest.fixture(autouse=True)
def same_import_path() -> Iterator[None]:
    """Restore `sys.path`, which `--metric module:function` changes."""
    before = list(sys.path)
    yield
    sys.path[:] = before


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("build", "info", "eval", "--version"):
        assert word in out


def test_help_fits_80_columns_and_names_what_values_may_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "--help" not in line]
        cut = [line for line in lines if "…" in line or re.search(r"<(int|float|bool)", line)]
        assert cut == [], command


def test_no_command_shows_the_help_and_is_bad_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: cfqa" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cfqa 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evall"], "No such command 'evall'"),
        (["info"], "Missing argument 'DIR'"),
        (["build"], "--out is missing: name the folder"),
        (["build", "--workers", "0"], "'-j': '0' is not a whole number from 1 (see cfqa build --h"),
        (["show", "{folder}", "x", "--level", "a"], "'--level': 'a' is not a whole number (see"),
        (["verify", "x", "--tolerance", "nan"], "'--tolerance': 'nan' is not a number from 0 to 1"),
        (["build", "--tier", "heavy"], "'--tier': 'heavy' is not one of full, light (see"),
        (["eval", "{folder}", "--table", "wide"], "--table"),
        (["eval", "{folder}", "--colour"], "No such option"),
        (["info", "{folder}/nowhere"], "not a CFQA dataset folder (it does not exist)"),
        (["eval", "{folder}/nowhere"], "not a CFQA dataset folder"),
        (
            ["eval", "{folder}", "--metric", "cosin"],
            "unknown metric 'cosin': did you mean 'cosine'",
        ),
        (["eval", "{folder}", "--metric", "nowhere:f"], "cannot import 'nowhere'"),
        (["eval", "{folder}", "--task", "clss"], "unknown task 'clss': did you mean 'cls'?"),
        (["eval", "{folder}", "--codec", "vvencc"], "unknown codec 'vvencc'"),
        (["eval", "{folder}", "--device", "nonsense"], "device 'nonsense' cannot run"),
        (["eval", "{folder}", "--out", "{folder}/no/x.parquet"], "there is no folder"),
        (["eval", "{folder}", "--out", "{folder}"], "is a folder; name a file to write to"),
        (["eval", "{folder}", "--out", "{folder}/README.md/x.csv"], "there is no folder"),
        (["eval", "{folder}", "--metric", ":f"], "metric ':f': not MODULE:FUNCTION"),
        (["eval", "{folder}", "--metric", ".mm:one"], "metric '.mm:one': not MODULE:FUNCTION"),
    ],
)
def test_bad_use_and_bad_input_are_one_line_and_exit_2(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(folder=folder) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("cfqa: ")
    assert message in last
    assert captured.err.splitlines() == [last]  # nothing was scored before


@pytest.mark.parametrize(
    ("command", "old", "new"), [(command, old, new) for (command, old), new in RENAMED.items()]
)
def test_former_names_of_options_work_with_a_warning(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    value = ["3"] if old == "--limit" else []
    for option in (old, new):
        assert main([command, option, *value, "--no-such-option"]) == 2
        told.append(capsys.readouterr().err.splitlines())
    assert told[0] == [f"cfqa: warning: {old} is now {new}; {REMOVAL}", *told[1]]
    assert "No such option: --no-such-option" in told[1][0]
    assert len(told[1]) == 1


def test_former_names_of_options_take_values(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(folder), "--limit=0"]) == 2
    assert "Invalid value for '--max-sources'" in capsys.readouterr().err


# info


def test_info_shows_counts_shapes_sizes_and_health(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "toy: invented features for tests" in out
    assert "full tier" in out
    assert "(2, 4, 9, 16)" in out
    assert "as float32" in out
    assert _size_lines({"full": 300, "light": 100, "float32": 200}) == [
        "full      300 B, 1.5 x 200 B as float32",
        "light     100 B, 1/2.0 of 200 B as float32",
    ]
    assert "zarr 3" in out
    assert out.count(" ok\n") == 12


def test_info_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tier"] == "full"
    dpt = facts["tasks"]["dpt"]
    assert (dpt["sources"], dpt["features"], dpt["shape"]) == (3, 120, [2, 4, 9, 16])
    assert dpt["tokens"] == [9, 9]
    assert (dpt["score"], dpt["codecs"]["x265"]) == ("RMSE (lower is better, m)", 10)
    assert len(facts["codecs"]) == 4
    assert len(facts["health"]) == 12
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    arrays = sum(p.stat().st_size for p in (folder / "compressed").rglob("*") if p.is_file())
    assert facts["sizes"]["full"] == on_disk
    assert facts["sizes"]["light"] == on_disk - arrays
    assert facts["sizes"]["float32"] == 4 * 9 * 16 * (1 + 2 + 8) * (3 + 120)


def test_info_of_a_light_folder_does_not_claim_the_full_tier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_mock_dataset(tmp_path / "light", tier="light")
    assert main(["info", str(root), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["tier"], facts["sizes"]["full"]) == ("light", None)
    assert "compressed" not in facts["sizes"]


def test_info_of_an_unfinished_build_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".build").mkdir()
    assert main(["info", str(tmp_path)]) == 2
    assert "not built yet: a build is running or was interrupted" in capsys.readouterr().err


def test_info_of_broken_labels_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_mock_dataset(tmp_path / "cfqa")
    path = root / "labels" / "cls.parquet"
    table = pq.read_table(path, partitioning=None)
    nulls = pa.nulls(table.num_rows, pa.string())
    for changed, message in (
        (table.slice(0, 17), "lacks 103 of 120 rows, first"),
        (table.set_column(3, table.schema.field("codec"), nulls), "codec is null in row 0"),
    ):
        pq.write_table(changed, path)
        assert main(["info", str(root)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"cfqa: {path}: {message}")
        assert captured.err.count("\n") == 1


# eval


def test_eval_prints_the_published_layout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["codec", "task", "mse", "cosine", "cka", "sources"]
    assert lines[4].split() == ["PLCC", "SROCC"] * 3 + ["used"]
    rows = [line.split() for line in lines if line.startswith(("x265", "vvenc", "hyper"))]
    assert len(rows) == 12
    first = evaluate(folder).correlations.to_pylist()[:3]
    figures = [f"{row[name]:.4f}" for row in first for name in ("plcc", "srocc")]
    assert rows[0] == ["x265", "cls", *figures, "3", "of", "3"]
    assert sum(line.startswith("all 4 ") for line in lines) == 3
    assert "the 40 points" in lines[1]


def test_eval_prints_every_figure_in_the_plain_layout(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(folder), "--table", "plain", "--metric", "cka"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if " cka " in line]
    # Per source and pooled: a row per task and codec, one per task, and one for all; then a row per
    # task. A table that is split has these rows in each part.
    assert len({row.split(" cka ")[0] for row in rows}) == (12 + 3 + 1) + 3
    assert all(" higher " in row for row in rows)
    assert max(map(len, rows)) <= 100


def test_eval_of_one_task_and_codec_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(folder), "--task", "seg", "--codec", "vvenc", "--target", "loss"]
    assert main([*arguments, "--metric", "mse", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluate(folder, ["mse"], task="seg", codec="vvenc", target="loss")
    assert found["correlations"] == expected.correlations.to_pylist()
    assert len(found["correlations"]) == 1
    assert (found["target"], found["metrics"]) == ("loss", ["mse"])
    assert main([*arguments, "--metric", "mse"]) == 0
    assert "all" not in capsys.readouterr().out.split("\n\n")[1]


def test_eval_writes_every_score(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.parquet"
    assert main(["eval", str(folder), "--task", "cls", "--out", str(out)]) == 0
    assert f"Scores: {out}" in capsys.readouterr().out
    assert read_evaluation(folder, out).scores.equals(evaluate(folder, task="cls").scores)


def test_eval_prints_what_it_then_cannot_write(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "scores.parquet"
    arguments = ["eval", str(folder), "--task", "cls", "--out", str(out)]
    monkeypatch.setattr("cfqa_data.eval.score_format.write_table", full)
    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["correlations"]) == 4 * 3
    assert captured.err.splitlines()[-1] == (
        f"cfqa: {out}: the scores could not be written: No space left on device"
    )
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "x265" in captured.out
    assert "Scores:" not in captured.out
    assert list(tmp_path.iterdir()) == []


def test_eval_prints_what_no_report_could_be_written_of(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    page = tmp_path / "report.html"
    monkeypatch.setattr("cfqa_data.eval.report.page.write_text", full)
    arguments = ["eval", str(folder), "--task", "cls", "--codec", "x265", "--report", str(page)]
    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["correlations"]) == 3
    assert captured.err.splitlines()[-1] == (
        f"cfqa: {page}: the report could not be written: No space left on device"
    )


def test_the_stored_baselines_are_the_evaluators(folder: Path) -> None:
    """Scoring the stored arrays gives the values of mse, cosine and cka in the labels."""
    scores = evaluate(folder).scores
    for name in ("mse", "cosine", "cka"):
        values = [r["value"] for r in scores.to_pylist() if r["metric"] == name]
        labels = [
            value
            for task in ("cls", "seg", "dpt")
            for value in pq.read_table(folder / "labels" / f"{task}.parquet")[name].to_pylist()
        ]
        assert values == pytest.approx(labels, rel=1e-6)


def test_eval_takes_a_metric_from_the_working_directory(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "my_cli_metric.py").write_text(
        "def worst(x, y):\n    return (x - y).abs().amax((1, 2, 3, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", str(folder), "--task", "cls", "--metric", "my_cli_metric:worst"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == ["worst"]


def test_eval_as_json_has_every_table_and_nothing_that_a_metric_prints(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "loud_cli_metric.py").write_text(
        "print('made')\ndef loud(x, y):\n    print('scored')\n    return y.sum((1, 2, 3, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    metrics = ["--metric", "mse", "--metric", "loud_cli_metric:loud"]
    assert main(["eval", str(folder), "--codec", "x265", *metrics, "--json"]) == 0
    captured = capsys.readouterr()
    assert "made" in captured.err
    assert "scored" in captured.err
    found = json.loads(captured.out)
    assert list(found) == [
        *("target", "metrics", "failures", "notes", "correlations", "across_codecs"),
        *("across_tasks", "per_level", "comparisons", "discrimination", "left_out"),
    ]
    assert [row["metric"] for row in found["across_tasks"]] == ["mse", "loud"]
    assert len(found["per_level"]) == 3 * 10 * 2
    assert {row["task"] for row in found["discrimination"]} == {"cls", "seg", "dpt"}


def test_all_metrics_go_with_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cfqa_data.eval.list_metrics", lambda: ["mse", "cosine"])
    asked = ["--metric", "mae", "--metric", "all", "--metric", "mse", "--json"]
    assert main(["eval", str(folder), "--task", "cls", "--codec", "x265", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == ["mae", "mse", "cosine"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(x, y:", "cannot import 'spoilt_cli_metric': SyntaxError: "),
        ("raise OSError('gone')", "cannot import 'spoilt_cli_metric': OSError: gone"),
        (
            "def f(x, y):\n    raise ValueError('no good\\nat all')",
            "metric 'f' failed: ValueError: no good (compressed feature cls-000, x265, level 0)",
        ),
    ],
)
def test_a_metric_that_fails_is_one_line_and_exits_2(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    message: str,
) -> None:
    (tmp_path / "spoilt_cli_metric.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "spoilt_cli_metric", raising=False)
    assert main(["eval", str(folder), "--metric", "spoilt_cli_metric:f"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = [line for line in captured.err.splitlines() if not line.startswith("evaluate: ")]
    assert len(said) == 1
    assert message in said[0]


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        (
            "def f(x, y):\n    e = (y - x).abs().amax((1, 2, 3, 4))\n    return e / e.sum()",
            0,
            "metric 'f': its scores depend on the batch: ",
        ),
        (
            "def f(x, y):\n    assert x.shape[1] == 1, 'not cls'\n    return y.sum((1, 2, 3, 4))",
            2,
            "metric 'f' failed: AssertionError: not cls (compressed feature seg-000, x265, "
            "level 0); 60 of 90 features have no score",
        ),
    ],
    ids=["batch", "task"],
)
def test_what_is_to_be_known_of_a_metric_is_one_line_beside_its_figures(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    status: int,
    message: str,
) -> None:
    (tmp_path / "noted_cli_metric.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "noted_cli_metric", raising=False)
    words = ["eval", str(folder), "--codec", "x265", "--metric", "noted_cli_metric:f", "--json"]
    assert main(words) == status
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    said = [line for line in captured.err.splitlines() if not line.startswith("evaluate: ")]
    assert len(said) == 1
    assert said[0].startswith(f"cfqa: {message}")
    assert [*found["failures"], *found["notes"]] == found["metrics"] == ["f"]
    assert found["across_codecs"][0]["n_valid"] == 3


# build, with the pipeline replaced


def fake_build(calls: list[dict[str, Any]]) -> Any:
    def build(recipe: str, out: Path, *, progress: Progress, **options: Any) -> Path:
        calls.append({"recipe": recipe, **options})
        progress.start("extract", 9, "originals")
        progress.advance(9)
        progress.finish()
        return write_mock_dataset(out)

    return build


def test_build_passes_its_options_and_says_what_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(pipeline, "build", fake_build(calls))
    monkeypatch.chdir(tmp_path)
    assert main(["build", "nano", "--out", "my cfqa", "--workers", "3", "--tier", "light"]) == 0
    options = {"workers": 3, "tier": "light", "scheduler": None, "accept_versions": False}
    assert calls == [{"recipe": "nano"} | options]
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "extract: 9 originals"
    assert "9 originals, 360 compressed features" in captured.out
    commands = [line.strip() for line in captured.out.splitlines() if line.startswith("  ")]
    assert commands[:2] == ["cfqa info 'my cfqa'", "cfqa eval 'my cfqa'"]
    # The third suggestion is run as it is printed.
    shell = commands[2].replace("python", f'"{sys.executable}"', 1)
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True)
    assert "FeaturePair" in done.stdout


def test_build_defaults_to_mini_and_answers_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(pipeline, "build", fake_build(calls))
    assert main(["build", "--out", str(tmp_path / "cfqa"), "--json"]) == 0
    assert calls[0]["recipe"] == "mini"
    assert 1 <= calls[0]["workers"] <= 8
    assert json.loads(capsys.readouterr().out)["name"] == "toy"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BuildError("the folder\nholds something else"), 2, "the folder holds something else"),
        (OSError(28, "No space left on device", "x/y"), 2, "x/y: No space left on device"),
        (ModuleNotFoundError("no", name="distributed"), 2, "pip install 'cfqa-data[build]'"),
        (ModuleNotFoundError("no", name="torch"), 2, "pip install 'cfqa-data[build]'"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept"),
    ],
)
def test_a_build_that_fails_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    line: str,
) -> None:
    def build(*_: Any, **__: Any) -> Path:
        raise error

    monkeypatch.setattr(pipeline, "build", build)
    assert main(["build", "--out", str(tmp_path)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cfqa: ")
    assert line in captured.err
    assert captured.err.count("\n") == 1


def test_a_bad_codec_option_in_a_recipe_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('extends = "nano"\n[tasks.cls.codecs.x265.options]\nname = "x"\n')
    assert main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    message = "cfqa: cls, codec x265: x265: unknown option 'name': known: preset, parameters\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / "out").exists()


def test_a_bug_is_not_dressed_up_as_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> Path:
        raise ModuleNotFoundError("no", name="cfqa_data.typo")

    monkeypatch.setattr(pipeline, "build", build)
    with pytest.raises(ModuleNotFoundError):
        main(["build", "--out", str(tmp_path)])


def test_eval_without_torch_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    _torch.cache_clear()
    assert main(["eval", str(folder)]) == 2
    message = "cfqa: torch is not installed: pip install 'cfqa-data[eval]'"
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_a_report_without_jinja2_names_the_extra_before_anything_is_scored(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith("cfqa_data.eval.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["eval", str(folder), "--report", str(tmp_path / "report.html")]) == 2
    message = "cfqa: jinja2 is not installed: pip install 'cfqa-data[eval]'"
    assert capsys.readouterr().err.splitlines() == [message]


# As a process


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CFQA, *arguments], capture_output=True, text=True, **options)


def test_exit_statuses_of_the_process(folder: Path) -> None:
    script = Path(sys.executable).with_name("cfqa")
    assert subprocess.run([script, "--version"], capture_output=True).returncode == 0
    failed = run("info", str(folder / "nowhere"))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("cfqa: ")
    assert failed.stderr.count("\n") == 1


def test_interrupting_says_whether_the_same_command_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process itself is tested in `test_cli_process.py`."""
    (tmp_path / "cli_stopper.py").write_text("def stop(x, y):\n    raise KeyboardInterrupt\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", str(folder), "--metric", "cli_stopper:stop"]
    for more, said in (
        ([], "cfqa: interrupted"),
        (
            ["--out", "scores.csv"],
            "cfqa: interrupted; scores so far are kept, run the same command again to resume",
        ),
    ):
        assert main([*arguments, *more]) == 130
        told = capsys.readouterr()
        assert told.err.splitlines()[-1] == said
        assert told.out == ""


def test_a_reader_that_goes_away_is_no_error(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*CFQA, "info", folder], stdout=write, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")
    out, dropped = tmp_path / "scores.parquet", []
    arguments = ["eval", str(folder), "--task", "cls", "--codec", "x265", "--out", str(out)]
    with monkeypatch.context() as patch:  # in this process, whose stdout must not change
        patch.setattr("cfqa_data.cli.commands.discard", dropped.append)
        patch.setattr(sys, "stdout", os.fdopen(write, "w"))
        assert main(arguments) == 141
        with pytest.raises(BrokenPipeError):
            sys.stdout.close()
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("evaluate: ")] == []
    assert dropped == [1]
    assert pq.read_table(out).num_rows == 30 * 3


HEAVY = ["dask", "datasets", "numpy", "pandas", "pyarrow", "scipy", "torch", "zarr"]


@pytest.mark.parametrize(
    "code", ["import cfqa_data", "from cfqa_data.cli import main; main(['--help'])"]
)
def test_starting_imports_nothing_heavy(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(HEAVY) & set(done.stdout.split())
