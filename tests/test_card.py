from __future__ import annotations

from dataclasses import replace
from html import escape
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, DatasetCardData
from mock_dataset import toy_recipe_dict, write_mock_dataset

from cfqa_data import load
from cfqa_data.card.wording import plain
from cfqa_data.card.write import _ceiling, _table, write_card
from cfqa_data.eval.label_figures import ceilings
from cfqa_data.format.manifest import read_manifest
from cfqa_data.format.schema import LABEL_COLUMNS, label_schema, originals_schema
from cfqa_data.recipe.load import Recipe, load_recipe

CONFIGS = {None: 120, "cls": 120, "seg": 120, "dpt": 120, "originals": 9, "all": 360}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("card") / "cfqa")


@pytest.mark.parametrize("config", CONFIGS)
def test_load_dataset_opens_every_config_from_the_folder_s_parent(
    config: str | None,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    schema = originals_schema() if config == "originals" else label_schema()
    expected = {f.name: str(f.type).replace("double", "float64") for f in schema}
    rows = []
    for streaming in (False, True):
        data = load_dataset("cfqa", config, streaming=streaming, cache_dir=str(tmp_path))
        assert list(data) == ["test"]
        rows.append(list(data["test"]))
        assert {name: f.dtype for name, f in data["test"].features.items()} == expected
    assert rows[0] == rows[1]
    assert len(rows[0]) == CONFIGS[config]
    assert rows[0][0]["task"] == (config if config in ("seg", "dpt") else "cls")
    assert "gnoring" not in capfd.readouterr().err


def test_the_card_s_head_is_what_the_hub_reads(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["size_categories"] == ["n<1K"]
    assert head["task_ids"] == ["multi-class-image-classification", "semantic-segmentation"]
    card = DatasetCard(text)  # by the Hub's own reader
    assert card.data.to_dict() == head
    assert DatasetCardData(**head).to_dict() == head
    assert [entry["config_name"] for entry in head["configs"]] == [c for c in CONFIGS if c]
    assert [entry.get("default", False) for entry in head["configs"]] == [True] + [False] * 4
    for config in head["configs"]:
        for path in config["data_files"][0]["path"]:
            assert (folder / path).is_file()
    info = {entry["config_name"]: entry for entry in head["dataset_info"]}
    assert {name: info[name]["splits"][0]["num_examples"] for name in info} == {
        name: rows for name, rows in CONFIGS.items() if name
    }
    assert [f["name"] for f in info["dpt"]["features"]] == list(LABEL_COLUMNS)


def test_the_card_states_the_folder_s_own_figures(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "invented features for tests" in text
    assert "9 original features" in text
    assert "360 compressed ones (4 codecs, 10 levels each)" in " ".join(text.split())
    assert "| dpt | depth estimation | 3 | 2 x 4 x 9 x 16 |" in text
    line = next(s for s in text.splitlines() if s.startswith("| cls | vvenc | uniform, 10 bits"))
    assert "| qp | 4, 8, 12, " in line
    rows = load(folder, "cls", codec="vvenc").labels.to_pylist()
    ends = [[row["bpfp"] for row in rows if row["level"] == level] for level in (0, 9)]
    assert line.endswith(" | " + " to ".join(f"{sum(end) / 3:.3g}" for end in ends) + " |")
    assert "$" not in text


def test_the_card_says_which_ladders_are_weak_and_what_float32_would_take(tmp_path: Path) -> None:
    data = toy_recipe_dict(sources=7)
    data["tasks"] = {"dpt": data["tasks"]["dpt"]}
    codecs = data["tasks"]["dpt"]["codecs"]
    data["tasks"]["dpt"]["codecs"] = {codec: codecs[codec] for codec in ("x265", "vvenc")}
    recipe = Recipe.from_dict(data)
    weak = {("dpt", "vvenc")}
    root = write_mock_dataset(tmp_path / "x", sources=7, tier="light", recipe=recipe, weak=weak)
    lines = (root / "README.md").read_text().splitlines()
    healthy, sick = (line for line in lines if line.endswith(("| yes |", "| no |")))
    assert healthy.startswith("| dpt | x265 | 100% |")
    assert sick == "| dpt | vvenc | 0% | 0 | 0 | 100.0% | 100.0% | no |"
    # 7 originals and 7 x 2 x 10 compressed features of 2 x 4 x 9 x 16 numbers: 677,376 bytes.
    assert "|  | the same features as float32 arrays | 0.7 MB |  |" in lines


def test_the_ceiling_is_what_the_evaluator_says(folder: Path) -> None:
    labels = load(folder).labels
    for task, found in ceilings(labels).items():
        own = labels.filter(pc.equal(labels["task"], task))
        assert _ceiling(own) == pytest.approx(found["source"])
        unknown = own.set_column(own.column_names.index("loss"), "loss", pa.nulls(120, "float64"))
        assert _ceiling(unknown) is None


def test_words_of_others_are_no_markdown() -> None:
    from markdown_it import MarkdownIt

    text = r"a*b*c, <b>_x_</b>, [y](z), `w` and \n"
    assert MarkdownIt().renderInline(plain(text)) == escape(text, quote=False)


def test_a_bar_in_a_title_is_no_column(folder: Path) -> None:
    assert _table(["a", "b"], [["x | y", 1]]).splitlines()[2] == r"| x \| y | 1 |"


def test_the_card_states_where_the_backbone_comes_from(folder: Path) -> None:
    said = Recipe.from_dict(read_manifest(folder).recipe).backbone
    assert said.origin == ""
    assert f"those of `{said.weights}`" in (folder / "README.md").read_text()
    told = load_recipe("mini").backbone.origin
    assert "held-out" in told
    assert "\n" not in told
    manifest = read_manifest(folder)
    trained = {**manifest.recipe, "backbone": replace(said, origin=told).to_dict()}
    write_card(folder, replace(manifest, recipe=trained))
    assert told in (folder / "README.md").read_text()


def test_the_template_is_the_one_at_the_top_of_the_repository() -> None:
    import cfqa_data

    package = Path(cfqa_data.__file__).parent
    top = package.parent / "dataset_card.md"
    assert top.read_text() == (package / "card" / "dataset_card.md").read_text()
