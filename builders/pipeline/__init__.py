"""Build a dataset folder from a recipe: select, extract, prepare, compress, pack.

A stage is a list of independent items (`cfqa_data.processes.stage`). An item is a pure function of
the recipe and of the files that earlier stages wrote; it writes its result file last, which marks
it as done. Items run in this process, in worker processes or on Dask
(`cfqa_data.processes.executor`). A killed build therefore resumes where it stopped, and its bytes
depend neither on the number of workers nor on their order.
"""

from cfqa_data.builders.pipeline.build import build
from cfqa_data.builders.pipeline.workspace import status

__all__ = ["build", "status"]
