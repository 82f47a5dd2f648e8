"""Score logs in the published form: reading them, and the published table's statistic."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cfqa_data.cli import main
from cfqa_data.errors import MetricError
from cfqa_data.eval.paper_logs import (
    find_logs,
    level_of,
    paper_figures,
    paper_logs_text,
    read_log,
    read_series,
)

QPS = list(range(2, 22, 2))
LAMBDAS = [0.0005, 0.001, 0.0025, 0.003, 0.004, 0.005, 0.006, 0.007, 0.01, 0.015]


def series(task: str, seed: int, sources: int = 7, levels: int = 10) -> np.ndarray:
    """Return (sources, levels, 4): score, MSE, cosine and CKA as printed; source 0 is constant."""
    rng = np.random.default_rng(seed)
    harm = np.sort(rng.exponential(0.1, (sources, levels)), axis=1)
    table = np.empty((sources, levels, 4))
    table[..., 0] = {"cls": np.ceil(4 * harm), "seg": 90 - 50 * harm, "dpt": 0.3 + harm}[task]
    table[0, :, 0] = table[0, 0, 0]
    table[..., 0] = np.round(table[..., 0], 8)
    noisy = harm * rng.lognormal(0, 0.3, harm.shape)
    table[..., 1] = np.round(noisy * 3, 8)
    table[..., 2] = np.round(1 - noisy / 20, 4)
    table[..., 3] = np.round(1 - noisy / 4000, 4)  # few distinct values: ties, and constants
    return table


def published(path: Path, task: str, table: np.ndarray, settings: str, levels: list[float]) -> Path:
    """Write a log with everything that the published scripts print around the sources."""
    suffix = ".npy" if task == "cls" else ""
    lines = ["root_path:  /gdata/decoded"]
    for number, level in enumerate(levels):
        lines += ["/gdata/source/list_100.txt", settings.format(level=level)]
        for source, row in enumerate(table[:, number]):
            score = f"{row[0]:.0f}" if task == "cls" else f"{row[0]:.8f}"
            values = f"{score} {row[1]:.8f} {row[2]:.4f} {row[3]:.4f}"
            lines.append(f"ILSVRC2012_val_{source:08d}{suffix} {values}")
        lines += ["Accuracy: 95.0000", "Feature MSE: 0.12345678", "", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def write_logs(root: Path) -> dict[tuple[str, str], np.ndarray]:
    """Write published logs of four codecs; return their numbers."""
    hyper = "{{arch}} {data} kmeans 10 8 {{level}} 200 0.0001 180 256-256"
    codecs: dict[str, tuple[str, str, str, list[Any]]] = {
        "hm": ("hm", "hybrid", "hm uniform 0 10 {level}", QPS),
        "vtm": ("vtm", "hybrid", "vtm uniform 0 10 {level}", QPS),
        "hyperprior_multi_task": ("hyperprior", "hybrid", hyper, LAMBDAS),
        "hyperprior_task_specific": ("hyperprior", "{task}", hyper, LAMBDAS),
    }
    tables = {}
    for number, (codec, (arch, data, settings, levels)) in enumerate(codecs.items()):
        for task in ("cls", "seg", "dpt"):
            trained = data.format(task=task)
            line = settings.replace("{{", "{").replace("}}", "}").replace("{arch}", arch)
            line = line.replace("{data}", trained)
            table = tables[codec, task] = series(task, 10 * number + len(tables))
            folder = root / arch / f"trained_{trained}" / "x0_bitdepth10" / f"dinov2_{task}"
            name = f"{arch}_trained_{trained}_eval_{task}_all.txt"
            published(folder / name, task, table, line, levels)
    return tables


def oracle(table: np.ndarray, column: int, function: Callable[..., Any]) -> tuple[float, int]:
    """Return the averages of the published script, with scipy, and the number of NaN series."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant series
        rows = [function(rows[:, 0], rows[:, column]).statistic for rows in table]
    return float(np.nanmean(rows)), int(np.isnan(rows).sum())


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], Any]]:
    root = tmp_path_factory.mktemp("logs")
    return root, write_logs(root)


def test_every_figure_equals_scipys_per_series(logs: tuple[Path, Any]) -> None:
    root, tables = logs
    figures = paper_figures(root)
    assert [(f.codec, f.task, f.metric) for f in figures[:4]] == [
        ("hm", "cls", "mse"),
        ("hm", "cls", "cosine"),
        ("hm", "cls", "cka"),
        ("hm", "seg", "mse"),
    ]
    assert len(figures) == 4 * 3 * 3
    for figure in figures:
        table = tables[figure.codec, figure.task]
        column = ("mse", "cosine", "cka").index(figure.metric) + 1
        plcc, gone = oracle(table, column, stats.pearsonr)
        srocc, _ = oracle(table, column, stats.spearmanr)
        assert figure.plcc == pytest.approx(plcc, abs=1e-12)
        assert figure.srocc == pytest.approx(srocc, abs=1e-12)
        assert figure.constant + figure.flat == gone
        assert (figure.sources, figure.fewest, figure.most) == (7, 10, 10)
        assert figure.n_valid == 7 - gone
        assert figure.constant >= 1


def test_the_signs_are_those_of_the_raw_score(logs: tuple[Path, Any]) -> None:
    signs = {(f.task, f.metric): f.srocc for f in paper_figures(logs[0]) if f.codec == "hm"}
    assert signs["dpt", "mse"] is not None
    assert signs["dpt", "mse"] > 0 > (signs["seg", "mse"] or 0)
    assert (signs["seg", "cosine"] or 0) > 0


def test_a_source_that_is_constant_or_flat_vanishes_and_is_counted(tmp_path: Path) -> None:
    table = series("dpt", 1, sources=4)
    table[2, :, 3] = 0.125
    published(tmp_path / "hm" / "dpt.txt", "dpt", table, "hm uniform 0 10 {level}", QPS)
    mse, _, cka = paper_figures(tmp_path)
    assert (mse.constant, mse.flat, cka.constant, cka.flat) == (1, 0, 1, 1)
    assert cka.plcc == pytest.approx(oracle(table[[1, 3]], 3, stats.pearsonr)[0], abs=1e-12)
    table[:, :, 0] = 1
    published(tmp_path / "hm" / "dpt.txt", "dpt", table, "hm uniform 0 10 {level}", QPS)
    assert [f.plcc for f in paper_figures(tmp_path)] == [None] * 3
    assert " -  " in paper_logs_text(paper_figures(tmp_path))


def test_a_source_with_nan_or_infinity_vanishes_and_is_counted(tmp_path: Path) -> None:
    table = series("dpt", 2, sources=6)
    table[1, 3, 0] = np.nan  # a score
    table[2, 9, 3] = np.nan
    table[3, 0, 1] = np.inf
    table[4, 0, 1], table[4, 1, 1] = np.inf, -np.inf
    published(tmp_path / "hm" / "dpt.txt", "dpt", table, "hm uniform 0 10 {level}", QPS)
    figures = paper_figures(tmp_path)
    assert [(f.n_valid, f.constant, f.flat) for f in figures] == [(2, 2, 2), (4, 2, 0), (3, 2, 1)]
    for column, (figure, left) in enumerate(
        zip(figures, ([2, 5], [2, 3, 4, 5], [3, 4, 5]), strict=True), start=1
    ):
        plcc, gone = oracle(table[left], column, stats.pearsonr)
        assert (figure.plcc, gone) == (pytest.approx(plcc, abs=1e-12), 0)
        srocc, _ = oracle(table[left], column, stats.spearmanr)
        assert figure.srocc == pytest.approx(srocc, abs=1e-12)


def test_line_ends_and_a_mark_of_the_encoding_change_nothing(tmp_path: Path) -> None:
    table = series("cls", 4)
    unix = published(tmp_path / "a/hm/cls.txt", "cls", table, "hm uniform 0 10 {level}", QPS)
    other = tmp_path / "b/hm/cls.txt"
    other.parent.mkdir(parents=True)
    source_first = unix.read_text().partition("\n")[2].partition("\n")[2]
    text = source_first.partition("\n")[2]  # a line of a source, without its level
    unix.write_text(text)
    other.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert paper_figures(tmp_path / "a") == paper_figures(tmp_path / "b")


def test_one_file_per_level_gives_the_same(tmp_path: Path) -> None:
    table = series("seg", 3)
    whole = published(tmp_path / "a/vtm/seg.txt", "seg", table, "vtm uniform 0 10 {level}", QPS)
    for number, qp in enumerate(QPS):
        rows = [f"ILSVRC2012_val_{i:08d} " for i in range(len(table))]
        rows = [
            name + " ".join(f"{value:.8f}" for value in row)
            for name, row in zip(rows, table[:, number], strict=True)
        ]
        path = tmp_path / f"b/vtm/seg/QP{qp}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["name score mse cosine cka", *rows]))
    assert paper_figures(tmp_path / "a") == paper_figures(tmp_path / "b")
    paths = find_logs(tmp_path / "b")["vtm", "seg"]
    assert [level_of(path.stem) for path in paths] == QPS
    (first, *_), (again, *_) = read_series(paths).values(), read_series([whole]).values()
    assert [line.level for line in first] == [line.level for line in again] == QPS


def test_lines_carry_their_level_and_place(logs: tuple[Path, Any]) -> None:
    path = find_logs(logs[0])["hyperprior_multi_task", "cls"][0]
    lines = read_log(path)
    assert [line.level for line in lines[::7]] == LAMBDAS
    assert lines[0].name == "ILSVRC2012_val_00000000"
    assert lines[0].where == f"{path}, line 4"


GOOD = "a 1 0.1 0.9 0.9\na 2 0.2 0.8 0.8\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "a 3 0.3 0.7", 3),
        (GOOD + "a 3 0.3 0.7 0.7 0.7", 3),
        (GOOD + "\na three 0.3 0.7 0.7", 4),
        ("a.npy\n" + GOOD, 1),
        (GOOD + "a b 3 0.3 0.7 0.7", 3),
        (GOOD + "living room 0.3 0.3 nan 0.7", 3),
        (GOOD + "b 3 0.3 0.7 x", 3),
        (GOOD + "b 3 0.3", 3),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    text: str, line: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hm" / "cls.txt"
    path.parent.mkdir()
    path.write_text(text)
    assert main(["eval", "--paper-logs", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"cfqa: {path}, line {line}: not `name score mse cosine cka`")
    assert captured.err.count("\n") == 1


def test_what_tools_leave_is_no_log(logs: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(logs[0], tmp_path / "logs")
    for path in list((tmp_path / "logs").rglob("*.txt")):
        for left in (f"._{path.name}", f".ipynb_checkpoints/{path.name}"):
            path.with_name(".ipynb_checkpoints").mkdir(exist_ok=True)
            (path.parent / left).write_bytes(b"\0\5\x16\7")
    assert paper_figures(tmp_path / "logs") == paper_figures(logs[0])


def test_what_is_no_log_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="no such folder"):
        paper_figures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text(GOOD)  # a place that says nothing
    (tmp_path / "hyperprior_trained_seg_eval_cls_all.txt").write_text(GOOD)
    with pytest.raises(MetricError, match="no logs found; a log is"):
        paper_figures(tmp_path)
    path = tmp_path / "hm" / "cls.txt"
    path.parent.mkdir()
    for content, message in (
        (b"Accuracy: 95.0\n", "no line `name score mse cosine cka` in it"),
        (b"\xff\xfe", "not a readable log"),
        (b"a 1 0.1 0.9 0.9\n", "cls.txt, line 1: a has a single level"),
        (b"hm uniform 0 10 2\n" + GOOD.encode(), "line 3: a at level 2 occurs twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(MetricError, match=message):
            paper_figures(tmp_path)


def test_the_command_prints_the_published_table(
    logs: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--paper-logs", str(logs[0])]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith(("hm", "vtm", "hyper"))]
    assert [row[:2] for row in rows[:4]] == [
        ["hm", "cls"],
        ["hm", "seg"],
        ["hm", "dpt"],
        ["vtm", "cls"],
    ]
    assert len(rows) == 12
    first = paper_figures(logs[0])[0]
    assert rows[0][2:4] == [f"{first.plcc:.4f}", f"{first.srocc:.4f}"]
    assert rows[0][8:11] == ["7", "10", str(first.constant)]
    used = [f.n_valid for f in paper_figures(logs[0])[:3]]
    assert rows[0][12] == "/".join(map(str, used))
    assert "are missing from the mean" in out


def test_the_command_as_json(logs: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--paper-logs", str(logs[0]), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["correlations"]
    assert rows == [figure._asdict() for figure in paper_figures(logs[0])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["somewhere"], "--paper-logs cannot be combined with DIR, only with --json"),
        (["--metric", "mse"], "--paper-logs cannot be combined with --metric"),
        (["--table", "plain"], "--paper-logs cannot be combined with --table"),
    ],
)
def test_logs_go_alone(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments, "--paper-logs", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_neither_a_dataset_nor_logs_is_bad_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval"]) == 2
    assert (
        "'DIR': missing; name a dataset, or a folder of logs with --paper-logs"
        in capsys.readouterr().err
    )
