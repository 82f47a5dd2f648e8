"""Evaluate a dataset on the counting device and on the CPU; print the counts as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from counted_device import DEVICE, count, uploads

import cfqa_data
from cfqa_data.eval.metrics import METRICS

PER_BATCH = 10


class Batches:
    """A progress listener that records the counts of each batch."""

    def __init__(self) -> None:
        self.batches: list[dict[str, int]] = []
        self.before: Counter[str] = Counter()

    def start(self, stage: str, total: int, unit: str) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        if n == PER_BATCH:
            self.batches.append({name: count[name] - self.before[name] for name in count})
        self.before = count.copy()

    def finish(self) -> None:
        pass


def run(folder: str) -> dict[str, Any]:
    metrics, batches = [metric.name for metric in METRICS], Batches()
    tasks = cfqa_data.load(folder).labels["task"].to_pylist()
    both = [
        cfqa_data.evaluate(folder, metrics, device, batch=PER_BATCH, progress=progress)
        for device, progress in ((DEVICE, batches), ("cpu", None))
    ]
    assert not both[0].failures
    values = [result.scores["value"].to_pylist() for result in both]
    other = {
        name
        for name, *pair in zip(both[0].scores["metric"].to_pylist(), *values, strict=True)
        if pair[0] != pair[1]
    }
    sent = Counter(str((str(one.dtype).removeprefix("torch."), *one.shape)) for one in uploads)
    return {"other": sorted(other), "batches": batches.batches, "sent": sent, "rows": len(tasks)}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
