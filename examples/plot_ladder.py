"""Plot rate against harm: the mean of each level of each codec, one column per task.

python examples/plot_ladder.py cfqa ladders.png
"""

from __future__ import annotations

import argparse

from matplotlib.figure import Figure

import cfqa_data

MARKERS = "osD^v<>pPX"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", help="what `cfqa build` made")
    parser.add_argument("out", help="picture to write")
    arguments = parser.parse_args()

    dataset = cfqa_data.load(arguments.folder)
    means = dataset.labels.group_by(["task", "codec", "level"], use_threads=False).aggregate(
        [("bpfp", "mean"), ("distortion", "mean"), ("loss", "mean")]
    )
    rows = means.sort_by([(key, "ascending") for key in ("task", "codec", "level")]).to_pylist()
    tasks = dataset.manifest.tasks
    codecs = list(dict.fromkeys(row["codec"] for row in rows))

    figure = Figure(figsize=(4.2 * len(tasks), 6.2), layout="constrained")
    for column, name in enumerate(tasks):
        task = tasks[name].facts
        unit = f" ({task.score.unit})" if task.score.unit else ""
        above, below = (
            figure.add_subplot(2, len(tasks), column + 1 + n * len(tasks)) for n in (0, 1)
        )
        for axes, label in ((above, "distortion"), (below, "loss")):
            for codec, marker in zip(codecs, MARKERS, strict=False):
                points = [row for row in rows if (row["task"], row["codec"]) == (name, codec)]
                axes.plot(
                    [row["bpfp_mean"] for row in points],
                    [row[f"{label}_mean"] for row in points],
                    marker=marker,
                    label=codec,
                )
            axes.set(xscale="log")
            axes.grid(alpha=0.3)
        above.set(title=task.title, ylabel=f"distortion: {task.score.name}{unit}")
        if name == "cls":
            above.set_yscale("symlog", linthresh=1)  # ranks differ by less than 1 and by hundreds
            above.set_ylim(bottom=0)
        below.set(xlabel="bits per feature point", ylabel=f"loss: {task.loss and task.loss.name}")
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=len(codecs))
    figure.savefig(arguments.out, dpi=100)
    print(arguments.out)


if __name__ == "__main__":
    main()
