"""Averages the weights of training runs that went on from each other, and measures the mean.

    python -m cfqa_data.builders.training.average FIRST SECOND --scenes DIR --out builders/weights

Runs that share most of their path end in one basin, and the mean of their ends generalises better
than either (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
UAI 2018).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfqa_data.builders.training.backbone import (
    Config,
    MultiTask,
    held_out,
    restore,
    round_to_half,
    save,
)
from cfqa_data.builders.training.scenes import HELD_OUT_SEED, render_scenes
from cfqa_data.paths import expanded

__all__ = ["average"]


def average(folders: list[Path], config: Config) -> tuple[MultiTask, list[dict[str, Any]]]:
    """Return the model whose tensors are the means of several runs', and the runs' reports."""
    total: dict[str, Tensor] = {}
    reports = []
    model = MultiTask(config)
    for folder in folders:
        reports.append(restore(model, folder))
        for name, tensor in model.state_dict().items():
            total[name] = total.get(name, torch.zeros_like(tensor)) + tensor
    mean = {
        name: tensor / len(folders) if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }
    model.load_state_dict(mean)
    round_to_half(model)
    return model, reports


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=expanded, nargs="+", help="folders of weights")
    parser.add_argument("--scenes", type=expanded, required=True, help="folder of rendered scenes")
    parser.add_argument("--out", type=expanded, required=True, help="folder of the weights")
    arguments = parser.parse_args()
    config = Config()
    model, reports = average(arguments.runs, config)
    checks = render_scenes(arguments.scenes / "val", HELD_OUT_SEED, config.held_out)
    figures = {name: round(value, 4) for name, value in held_out(model, checks).items()}
    report = {
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "held_out_figures": figures,
        "mean_of": reports,
    }
    save(model, arguments.out, report)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
