from __future__ import annotations

import pytest

from cfqa_data.errors import CfqaError, unknown_name
from cfqa_data.format.tasks import CODECS, FOLDS, LEVELS, TASKS, get_task


def test_the_protocol_s_constants() -> None:
    assert list(TASKS) == ["cls", "seg", "dpt"]
    assert {name: (task.views, task.layers) for name, task in TASKS.items()} == {
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
    assert get_task(task).distortion(score, reference) == distortion
    assert get_task(task).distortion(reference, reference) == 0


def test_an_unknown_task_names_the_near_ones() -> None:
    with pytest.raises(CfqaError, match=r"unknown task 'clss': did you mean 'cls'\? known: cls, "):
        get_task("clss")


def test_a_long_list_of_names_is_cut() -> None:
    message = unknown_name("source", "x", map(str, range(1000)))
    assert len(message) < 120
    assert message.endswith("...")
