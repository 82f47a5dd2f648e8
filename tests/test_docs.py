"""The documentation against the code: names, links, commands, keys, columns, code blocks."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pipeline_toy
import pytest
import torch
import typer
from cases import each
from mock_dataset import toy_recipe, write_mock_dataset
from pipeline_toy import QPS, write_networks, write_toml

import cfqa_data
from cfqa_data.builders.calibration.calibrate import SEED as CALIBRATION_SEED
from cfqa_data.builders.pipeline.build import STAGES, build
from cfqa_data.builders.sources.scenes import NUM_CLASSES
from cfqa_data.builders.sources.solids import COLOURS, SHAPES, TEXTURES
from cfqa_data.builders.training.backbone import Config
from cfqa_data.builders.training.scenes import HELD_OUT_SEED, TRAINING_SEED
from cfqa_data.cli import app
from cfqa_data.codecs import list_codecs
from cfqa_data.eval.metrics import METRICS, Metric
from cfqa_data.format.format_1 import LAYERS, TASKS, VIEWS
from cfqa_data.format.schema import LABEL_COLUMNS, ORIGINAL_COLUMNS
from cfqa_data.processes.executor import Executor
from cfqa_data.recipe.load import Recipe, list_recipes, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [*map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
HOSTS = {
    "arxiv.org",
    "docs.mlcommons.org",
    "download.pytorch.org",
    "keepachangelog.com",
    "semver.org",
}
pages = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
each_page = each("page", PAGES)


def read(name: str) -> str:
    return TEXT[ROOT / name]


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """Yield (text after the language, code) of the fenced code blocks of a page."""
    for info, code in re.findall(r"^```([^\n]*)\n(.*?)^```$", TEXT[page], re.M | re.S):
        first, _, rest = info.partition(" ")
        if first == language:
            yield rest, code


def commands(*programs: str) -> Iterator[list[str]]:
    """Yield the words of every command of some programs in the bash blocks of the pages."""
    for page in PAGES:
        for _, code in blocks(page, "bash"):
            for line in re.split(r"\n|&&", code.replace("\\\n", " ")):
                words = shlex.split(line, comments=True)
                if words and words[0] in programs:
                    yield words


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if target.startswith("https://"):
            assert target.split("/")[2] in HOSTS
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and Sphinx give to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@each_page
def test_hosts_are_known(page: Path) -> None:
    assert set(re.findall(r"https?://([^/\s)>`]+)", TEXT[page])) <= HOSTS


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    folders = r"(?:cfqa_data|builders|loaders|eval|examples|docs|tests|benchmarks|findings|\.ci)"
    for name in re.findall(rf"(?<![\w./-])({folders}/[\w./-]*)", TEXT[page]):
        name = name.rstrip(".")
        if not re.search(r"/[A-Z]+\.", name):  # such as recipes/NAME.toml
            assert (ROOT / name).exists(), name


@each_page
def test_words_that_do_not_belong_here(page: Path) -> None:
    text = TEXT[page]
    assert not re.search(r"(?<![\w.])/(home|root|tmp|mnt|work|Users)/", text)
    assert not re.search(r"\.\./", text)
    assert not re.search(r"\b(TODO|FIXME|TBD)\b", text)
    assert not re.search(
        r"\b(powerful|seamless|blazing|cutting-edge|state-of-the-art|effortless\w*|simply)\b",
        text,
        re.I,
    )


def test_no_figure_is_left_open() -> None:
    """No page has a placeholder @@NAME@@ of a figure that is not measured yet."""
    assert {mark for text in TEXT.values() for mark in re.findall(r"@@\w+@@", text)} == set()


def test_the_readme_has_the_two_commands_and_the_gate_runs_the_second() -> None:
    install_and_build = (
        'pip install -c constraints.txt -e ".[all]" && cfqa build mini --out cfqa'
        " && python examples/first_look.py cfqa\n"
    )
    install_and_test = 'pip install -c constraints.txt -e ".[dev]" && python -m pytest -n 2\n'
    shell = [code.replace("\\\n    ", "") for _, code in blocks(ROOT / "README.md", "bash")]
    assert install_and_build in shell
    assert install_and_test in shell
    gate = (ROOT / ".ci" / "run").read_text().replace("python -m pip install -q", "pip install")
    lines = gate.splitlines()
    for part in install_and_test.strip().split(" && "):
        assert part in lines
    checks = lines[lines.index("ruff check .") :]
    for line in checks:
        assert f"`{line}`" in " ".join(read("CONTRIBUTING.md").split()), line


def test_commands_and_their_options_exist() -> None:
    known: Any = typer.main.get_command(app)
    seen = set()
    for words in commands("cfqa"):
        command = known.commands[words[1]]
        options = {n for p in command.params for n in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= options
        seen.add(words[1])
    assert {"build", "eval"} <= seen


def test_every_option_of_the_command_line_is_documented() -> None:
    known: Any = typer.main.get_command(app)
    pages = {
        "build": "docs/building.md",
        "verify": "docs/verifying.md",
        "repair": "docs/verifying.md",
        "eval": "docs/evaluating.md",
        "report": "docs/report.md",
        "publish": "docs/publishing.md",
        "export": "docs/publishing.md",
    }
    for name, page in pages.items():
        for parameter in known.commands[name].params:
            if parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}" in read(page), (name, parameter.opts)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_modules_that_are_run_exist_and_know_their_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, set[str]] = {}
    for words in commands("python"):
        if words[1:2] == ["-m"] and words[2].startswith("cfqa_data."):
            written = {word for word in words if word.startswith("--")}
            options.setdefault(words[2], set()).update(written)
    assert len(options) >= 4
    for module, written in options.items():
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_module(module, run_name="__main__")
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert written <= known, (module, written - known)


def test_every_example_is_named_in_the_readme() -> None:
    for example in (ROOT / "examples").glob("*.py"):
        assert f"`{example.name}`" in read("README.md")


def test_every_page_is_in_the_index() -> None:
    pages = {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", read("docs/README.md"))) == pages


@each_page
def test_python_blocks_compile(page: Path) -> None:
    for _, code in blocks(page, "python"):
        compile(code, str(page), "exec")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset `cfqa`, the name that the pages use."""
    folder = tmp_path_factory.mktemp("docs")
    write_mock_dataset(folder / "cfqa", sources=3)
    return folder


@pages
def test_python_blocks_run(page: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code blocks of a page run as one script, in order, without those marked `no-run`."""
    monkeypatch.chdir(parent)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", parent / "cache")
    names: dict[str, Any] = {"__name__": "__main__"}
    for info, code in blocks(page, "python"):
        if info != "no-run":
            exec(compile(code, str(page), "exec"), names)
    if page.name == "format.md":
        pairs = cfqa_data.load("cfqa")
        source_id = names["source_id"]
        assert np.array_equal(names["feature"], pairs.compressed(source_id, "x265", 9))
        assert np.array_equal(names["original"], pairs.original(source_id))
        assert names["row"]["source_id"] == source_id


def test_the_script_that_builds_works_and_is_told_of_its_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the script of the page in this process, and a copy without its guard in another one."""
    (code,) = (code for _, code in blocks(ROOT / "docs/building.md", "python"))
    write_networks(tmp_path)
    data = pipeline_toy.toy_recipe(tmp_path, {"x265": QPS}, sources_per_task=1).to_dict()
    recipe = Recipe.from_dict(data | {"tasks": {"cls": data["tasks"]["cls"]}})
    code = code.replace("mini", str(write_toml(recipe, tmp_path / "toy.toml")))
    unguarded = re.sub(r"^if __name__ .*\n    ", "", code, flags=re.M).replace('"cfqa"', '"none"')
    assert code != unguarded
    (tmp_path / "guarded.py").write_text(code)
    (tmp_path / "unguarded.py").write_text(unguarded)
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(
        [sys.executable, "unguarded.py"], stderr=subprocess.PIPE, text=True
    ) as script:
        monkeypatch.setattr(
            sys.modules["cfqa_data.builders.pipeline.build"], "Executor", lambda *_: Executor()
        )
        runpy.run_path("guarded.py", run_name="__main__")
        assert (tmp_path / "cfqa" / "manifest.json").is_file()
        told = script.communicate()[1]
    assert script.returncode == 1
    assert told.count("Traceback") == 1
    assert 'under `if __name__ == "__main__":`' in told.splitlines()[-1]


def test_reading_without_the_package_also_fits_a_kmeans_table(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parent)
    code = next(code for _, code in blocks(ROOT / "docs/format.md", "python"))
    names: dict[str, Any] = {}
    exec(code.replace("x265", "hyperprior_multi_task"), names)
    expected = cfqa_data.load("cfqa").compressed(names["source_id"], "hyperprior_multi_task", 9)
    assert np.array_equal(names["feature"], expected)


@pytest.mark.parametrize(
    ("heading", "columns"), [("## Labels", LABEL_COLUMNS), ("`labels/originals", ORIGINAL_COLUMNS)]
)
def test_every_column_is_documented_with_its_type(
    heading: str, columns: dict[str, tuple[str, str]]
) -> None:
    section = read("docs/format.md").split(f"\n{heading}", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert table is not None
    rows = [[cell.strip() for cell in line.split("|")] for line in table[0].splitlines()[2:]]
    expected = {f"`{name}`": kind for name, (kind, _) in columns.items()}
    assert {row[1]: row[2] for row in rows} == expected
    assert [row[1] for row in rows] == list(expected)


def keys(data: Any) -> Iterator[str]:
    """Yield the keys of nested tables, without the names of tasks and codecs."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key not in TASKS and key not in list_codecs():
                yield key
            yield from keys(value)


def test_every_key_of_a_recipe_is_documented() -> None:
    text = read("docs/building.md")
    names = {"extends", *keys(toy_recipe().to_dict())}
    for recipe in list_recipes():
        data = (ROOT / "cfqa_data" / "recipes" / f"{recipe}.toml").read_text()
        names |= set(re.findall(r"(\w+) = ", data))
    for name in names:
        assert re.search(rf"[`[.]{name}\b", text), name


def test_the_recipe_in_the_page_is_a_recipe(tmp_path: Path) -> None:
    code, *keys = (code for _, code in blocks(ROOT / "docs/building.md", "toml"))
    (tmp_path / "own.toml").write_text(code)
    recipe = load_recipe(tmp_path / "own.toml")
    assert recipe.tasks["cls"].codecs["x265"].levels == tuple(range(8, 45, 4))
    assert set(recipe.tasks) == set(load_recipe("mini").tasks)
    for line in "".join(keys).splitlines():
        (tmp_path / "fit.toml").write_text(f"{code}\n[tasks.seg.codecs.x265]\n{line}")
        assert [spec.codec for spec in load_recipe(tmp_path / "fit.toml").to_fit] == ["x265"]


def test_the_recipe_of_own_classes_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/own.md"
    code = [code for _, code in blocks(page, "python") if "cfqa_data.testing" not in code]
    (tmp_path / "waves.py").write_text("\n".join(code))
    (tmp_path / "waves.toml").write_text(next(code for _, code in blocks(page, "toml")))
    monkeypatch.syspath_prepend(tmp_path)
    out = build(tmp_path / "waves.toml", tmp_path / "cfqa", workers=1)
    assert set(cfqa_data.load(out).manifest.packages) == {"waves"}


def test_every_key_of_the_manifest_is_documented(parent: Path) -> None:
    for key in json.loads((parent / "cfqa" / "manifest.json").read_text()):
        assert f"`{key}`" in read("docs/format.md"), key


def test_every_figure_of_health_is_documented(parent: Path) -> None:
    figures = cfqa_data.load(parent / "cfqa").manifest.health[0].keys()
    for figure in figures - {"task", "codec", "sources"}:
        assert f"`{figure}`" in read("docs/levels.md"), figure


def test_every_task_codec_metric_stage_and_recipe_is_documented() -> None:
    for name in [*TASKS, *list_codecs(), *list_recipes()]:
        assert f"`{name}`" in read("README.md"), name
    for name in list_codecs():
        assert re.search(rf"^(## .*|`.*)?`{name}`", read("docs/codecs.md"), re.M), name
    for stage in (*(stage.name for stage in STAGES), "pack"):
        assert f"\n| {stage} |" in read("docs/building.md"), stage


def metric_row(metric: Metric) -> str:
    """Return the row of a metric in the catalogue."""
    low, high = (f"{value:.4g}".replace("inf", "∞") for value in metric.score_range)
    formula = metric.formula.replace("|", r"\|")
    tokens = [f"{metric.least_tokens} tokens"] if metric.least_tokens > 1 else []
    cells = (
        f"`{metric.name}`",
        f"`{formula}`",
        f"{low} to {high}",
        "lower" if metric.lower_better else "higher",
        ", ".join(sorted(metric.invariances)) or "none",
        metric.cost,
        ", ".join([*tokens, *(f"`{name}`" for name in metric.needs)]) or "-",
    )
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("family", dict.fromkeys(metric.family for metric in METRICS))
def test_the_catalogue_has_the_metrics_of_a_family_as_they_are(family: str) -> None:
    section = read("docs/metrics.md").split(f"\n### {family.capitalize()}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert table is not None
    expected = [metric_row(metric) for metric in METRICS if metric.family == family]
    assert table[0].splitlines()[2:] == expected


def test_the_site_shows_formulas_as_mathematics() -> None:
    from docutils.utils.math.latex2mathml import tex2mathml

    latex = runpy.run_path(str(ROOT / "docs/conf.py"))["latex"]
    assert latex("mean_nc |x_0|, N the k nearest by distance") == (
        r"$\operatorname{mean}_{nc} |x_{0}|$, N the k nearest by distance"
    )
    assert latex("<x_t, y_tj> Xc^T") == r"$\langle x_{t},\ y_{tj}\rangle  X_c^{T}$"
    for metric in METRICS:
        _, formula, _ = latex(metric.formula).split("$")
        assert tex2mathml(formula).startswith("<math")
        assert not re.search(r"&|1e-|[XY]c|_\w\w", formula)


def test_mini_is_as_it_is_described() -> None:
    recipe = tomllib.loads((ROOT / "cfqa_data" / "recipes" / "mini.toml").read_text())
    training, text = Config(), " ".join(read("docs/training.md").split())
    assert f"{training.scenes:_} scenes".replace("_", " ") in text
    assert f"--minutes {training.minutes:g}\n" in read("docs/training.md")
    seeds = [task["source"]["seed"] for task in recipe["tasks"].values()]
    for seed in [*seeds, CALIBRATION_SEED, TRAINING_SEED, HELD_OUT_SEED]:
        assert f"{seed:_}".replace("_", " ") in text, seed
    for name, task in recipe["tasks"].items():
        (row,) = re.findall(rf"^\| `{name}` .*", read("README.md"), re.M)
        shape = f"({len(VIEWS[name])}, {LAYERS[name]}, 65, {training.dim})"
        assert shape in row
        plural = "s" if len(task["blocks"]) > 1 else ""
        assert f"block{plural} {', '.join(map(str, task['blocks']))} |" in row
        assert f"| {recipe['sources_per_task']}" in row


def test_the_scenes_are_as_they_are_described() -> None:
    text = " ".join(read("docs/training.md").split())
    words = set(re.findall(r"\w+", text))
    assert {*SHAPES, *TEXTURES, *COLOURS} <= words
    for count, kind in ((SHAPES, "shapes"), (TEXTURES, "textures"), (COLOURS, "colours")):
        assert f"{len(count)} {kind}" in text
    assert f"{NUM_CLASSES} classes" in text
    assert f"of {NUM_CLASSES}, 1 is best" in read("README.md")


def test_the_outlier_channel_hides_the_noise_as_described() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 1, 257, 1536, generator=generator)
    y = x + torch.randn(x.shape, generator=generator)
    x[..., 0] *= 500
    y[..., 0] = x[..., 0]
    assert float(cfqa_data.create_metric("cosine")(x, y)) > 0.95
    assert float(cfqa_data.create_metric("cka")(x, y)) > 0.999999
    text = " ".join(read("docs/metrics.md").split())
    assert "stays above 0.95" in text
    assert "more than 0.999999" in text
