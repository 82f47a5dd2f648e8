from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mock_dataset import write_mock_dataset

import cfqa_data
from cfqa_data.errors import CfqaError
from cfqa_data.loaders import read_ahead


def test_results_come_in_order_whoever_is_first() -> None:
    def read(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(read_ahead(read, range(20), threads=3)) == [item * item for item in range(20)]
    assert list(read_ahead(read, [], threads=3)) == []


def test_it_reads_in_threads_and_no_further_ahead_than_told() -> None:
    started: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def read(item: int) -> int:
        started.append(item)
        if item < 2:
            both.wait()  # passes only if two are read at once
        return item

    reading = read_ahead(read, range(100), threads=2, ahead=3)
    assert started == []
    assert [next(reading), next(reading)] == [0, 1]
    assert len(started) <= 2 + 2 * 3
    reading.close()  # type: ignore[attr-defined]
    assert len(started) <= 2 + 2 * 3


def test_an_error_is_raised_in_its_place() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise KeyError("two")
        return item

    reading = read_ahead(read, range(5), threads=2)
    assert [next(reading), next(reading)] == [0, 1]
    with pytest.raises(KeyError, match="two"):
        next(reading)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"ahead": 0}])
def test_impossible_numbers_are_told_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(CfqaError, match="needs at least 1 thread and 1 item"):
        read_ahead(str, [], **wrong)


def test_pairs_are_those_of_the_dataset(tmp_path: Path) -> None:
    pairs = cfqa_data.load(write_mock_dataset(tmp_path / "cfqa", sources=1), "cls")
    for ahead, pair in zip(read_ahead(pairs.__getitem__, range(40)), pairs, strict=True):
        assert ahead.label == pair.label
        np.testing.assert_array_equal(ahead.compressed, pair.compressed)
        np.testing.assert_array_equal(ahead.original, pair.original)
