"""Plot rate against harm: the mean of each level of each codec, for one task.

python examples/plot_ladder.py cfqa dpt ladder.png
"""

from __future__ import annotations

import argparse

from matplotlib.figure import Figure

import cfqa_data
from cfqa_data.tasks import get_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", help="what `cfqa build` made")
    parser.add_argument("task", help="cls, seg or dpt")
    parser.add_argument("out", help="picture to write")
    arguments = parser.parse_args()

    task = get_task(arguments.task)
    labels = cfqa_data.load(arguments.folder, task.name).labels
    means = labels.group_by(["codec", "level"], use_threads=False).aggregate(
        [("bpfp", "mean"), ("distortion", "mean"), ("loss", "mean")]
    )
    rows = means.sort_by([("codec", "ascending"), ("level", "ascending")]).to_pylist()

    figure = Figure(figsize=(9, 4), layout="constrained")
    unit = f" ({task.score_unit})" if task.score_unit else ""
    names = {"distortion": f"harm to {task.score_name}{unit}", "loss": task.loss_name}
    for axes, (column, name) in zip(figure.subplots(1, 2), names.items(), strict=True):
        for codec in dict.fromkeys(row["codec"] for row in rows):
            points = [row for row in rows if row["codec"] == codec]
            x = [row["bpfp_mean"] for row in points]
            axes.plot(x, [row[f"{column}_mean"] for row in points], marker="o", label=codec)
        axes.set(xscale="log", xlabel="bits per feature point", ylabel=f"mean {name}")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(task.title)
    figure.savefig(arguments.out, dpi=110)
    print(arguments.out)


if __name__ == "__main__":
    main()
