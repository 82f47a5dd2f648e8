"""Load one source's ladders and plot rate against error, in ten lines.

python examples/load_and_plot.py cfqa errors.png
"""

import sys

from matplotlib.figure import Figure

import cfqa_data

folder, picture = sys.argv[1:]
axes = Figure(layout="constrained").add_subplot(xlabel="bits per feature point", ylabel="MSE")
source = cfqa_data.load(folder, "seg").source_ids[0]
for codec in ("x265", "vvenc"):
    pairs = cfqa_data.load(folder, "seg", codec=codec, source=source)
    rates = [pair.label["bpfp"] for pair in pairs]
    errors = [((pair.compressed - pair.original) ** 2).mean() for pair in pairs]
    axes.loglog(rates, errors, "o-", label=codec)
axes.legend(title=source)
axes.figure.savefig(picture)
