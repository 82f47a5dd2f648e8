"""From a recipe to a dataset folder: select, extract, prepare, compress, pack.

A stage is a list of independent items (`cfqa_data.processes.stage`); an item is a pure function of
the recipe and of files that earlier stages wrote, and the last thing it writes says that it is
done. Items run in this process, in others or on Dask (`cfqa_data.processes.executor`). So a build
that was killed goes on where it stopped, and its bytes depend neither on the number of workers nor
on their order.
"""

from cfqa_data.builders.pipeline.build import build
from cfqa_data.builders.pipeline.workspace import status

__all__ = ["build", "status"]
