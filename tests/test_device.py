"""What evaluations ask of a device, counted on one that needs no hardware.

torch lets a process have one such device, for good: a process of its own has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mock_dataset import TOY_SHAPES, toy_recipe_dict, write_mock_dataset

from cfqa_data.recipe.load import Recipe

SOURCES, VERSIONS = 2, 20


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    facts = toy_recipe_dict(SOURCES)
    for task in facts["tasks"].values():  # codes of ten bits and of eight
        kept = ("x265", "hyperprior_multi_task")
        task["codecs"] = {name: task["codecs"][name] for name in kept}
    folder = tmp_path_factory.mktemp("counted") / "mock"
    write_mock_dataset(folder, sources=SOURCES, recipe=Recipe.from_dict(facts))
    script = Path(__file__).with_name("counted_run.py")
    command = [sys.executable, "-W", "error", str(script), str(folder)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


def test_scores_are_the_cpus(counted: dict[str, Any]) -> None:
    assert counted["other"] == []


def test_a_batch_waits_twice_and_comes_back_once(counted: dict[str, Any]) -> None:
    batches = counted["batches"]
    assert len(batches) == 2 * SOURCES * len(TOY_SHAPES)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert first["back"] == second["back"] == 1
        assert first["waits"] <= 7  # statistics of a fold are checked
        assert second["waits"] == 2
        assert first["checks"] == second["checks"] == 2  # decompositions, which torch checks


def test_operations_do_not_grow_with_views_and_layers(counted: dict[str, Any]) -> None:
    """From one slice to eight."""
    operations = [batch["operations"] for batch in counted["batches"][1::2]]
    assert max(operations) <= min(operations) + 8
    assert max(operations) <= 1300


def test_only_codes_and_tables_go_to_the_device(counted: dict[str, Any]) -> None:
    """Besides each original, which the statistics read too, and what is the same for all."""
    sent = counted["sent"]
    versions = SOURCES * VERSIONS
    for shape in TOY_SHAPES.values():
        integers = [sent.pop(str((kind, *shape))) for kind in ("uint8", "int16")]
        assert sum(integers) == versions
        assert sent.pop(str(("float32", *shape)), 0) == SOURCES
        assert sent.pop(str(("float32", 1, *shape))) == SOURCES
    tables = sum(
        sent.pop(str(("float32", layers, size))) for layers in (1, 4) for size in (256, 1024)
    )
    assert tables == 3 * versions
    assert sum(sent.values()) <= 1 + 3 * SOURCES, sent  # directions, and value ranges of a fold
