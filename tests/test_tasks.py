from __future__ import annotations

import pytest

from cfqa_data.errors import unknown_name
from cfqa_data.format.format_1 import CODECS, LAYERS, LEVELS, TASKS, VIEWS
from cfqa_data.format.invariants import FOLDS


def test_the_protocol_s_constants() -> None:
    assert list(TASKS) == ["cls", "seg", "dpt"]
    assert {name: (len(VIEWS[name]), LAYERS[name]) for name in TASKS} == {
        "cls": (1, 1),
        "seg": (2, 1),
        "dpt": (2, 4),
    }
    assert (LEVELS, FOLDS, len(CODECS)) == (10, 5, 6)


@pytest.mark.parametrize(
    ("task", "score", "reference", "distortion"),
    [("cls", 5.0, 1.0, 4.0), ("seg", 0.25, 0.75, 0.5), ("dpt", 0.75, 0.5, 0.25)],
)
def test_distortion_is_larger_where_the_score_is_worse(
    task: str, score: float, reference: float, distortion: float
) -> None:
    assert TASKS[task].distortion(score, reference) == distortion
    assert TASKS[task].distortion(reference, reference) == 0


def test_an_unknown_name_names_the_near_ones() -> None:
    assert unknown_name("task", "clss", TASKS).startswith(
        "unknown task 'clss': did you mean 'cls'? known: cls, "
    )


def test_a_long_list_of_names_is_cut() -> None:
    message = unknown_name("source", "x", map(str, range(1000)))
    assert len(message) < 120
    assert message.endswith("...")
