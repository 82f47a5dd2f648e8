"""From a recipe to a dataset folder: select, extract, centre, compress, pack.

A stage is a list of independent work items (`plan`); an item is a pure function of the recipe
and of files that earlier stages wrote (`work`), and the last thing it writes says that it is
done. Items run in this process or on Dask (`run`). So a build that was killed goes on where it
stopped, and its bytes depend neither on the number of workers nor on their order.
"""

from cfqa_data.builders.pipeline.build import build
from cfqa_data.builders.pipeline.workspace import status

__all__ = ["build", "status"]
