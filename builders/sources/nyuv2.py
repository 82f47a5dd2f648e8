"""NYUv2's test images as a source of depth, from single files or from the labelled MATLAB file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cfqa_data.builders.sources.files import Entry, FileSource, Unfit, choose, require
from cfqa_data.builders.sources.geometry import DEPTH_RANGE, DepthGeometry
from cfqa_data.builders.sources.nyuv2_files import TEST, SplitFiles
from cfqa_data.builders.sources.nyuv2_mat import MAT, LabelledMat
from cfqa_data.builders.sources.preprocessing import depth_views
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import Terms
from cfqa_data.format.resources import locate

__all__ = ["Nyuv2"]

_GEOMETRY = DepthGeometry()
_SHAPE = (_GEOMETRY.height, _GEOMETRY.width)


class Nyuv2(FileSource):
    """Test images of 480 x 640 and their depth.

    Depth maps without a depth that counts in the scored crop are passed over, and refused where a
    list names them.

    Args:
        task: "dpt".
        seed: decides the order of the candidates that no list gives.
        root: folder of `scene/rgb_*.jpg` with `scene/sync_depth_*.png`; or
            `nyu_depth_v2_labeled.mat`, or the folder that holds it.
        list: text file with one image per line, as in `nyu_test.txt` or by its source id, or for
            the MATLAB file by its index from 1; keeps its order.
        train: text file of the same kind with images for training.
        converted: for the MATLAB file: give what the split files are made from, see `LabelledMat`.

    Raises:
        BuildError: another task, or something is missing, unknown or damaged.
    """

    terms = Terms("other", "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html", "NYU Depth V2")
    kind, serves = "nyuv2", "dpt"
    offered = (
        "nyu_depth_v2_labeled.mat and splits.mat are at "
        "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
    )

    def __init__(
        self,
        task: str,
        seed: int,
        root: str,
        list: str | None = None,
        train: str | None = None,
        converted: bool = False,
    ) -> None:
        self.check(task, seed)
        folder = locate(root)
        wanted = None if list is None else locate(list)
        self._train = None if train is None else locate(train)
        require([path for path in (folder, wanted, self._train) if path], self.offered)
        mat = folder if folder.is_file() else folder / MAT
        self._store: LabelledMat | SplitFiles
        if mat.is_file() and not (folder / TEST).is_file():
            self._store = LabelledMat(mat, converted, wanted is not None, self.offered)
        elif converted:
            raise BuildError(f"{folder}: 'converted' is for {MAT}")
        else:
            self._store = SplitFiles(folder, self._train, wanted is not None, self.offered)
        chosen = self._store.test if wanted is None else choose(wanted, self._store.named)
        self._store.check(chosen.values())
        super().__init__(seed, chosen, wanted is not None, [*self._store.deciding, wanted])

    def inputs(self, entry: Entry) -> np.ndarray:
        """The image and its mirror image, float32 (2, 3, 490, 644)."""
        image = self._store.image(entry)
        _check_shape(entry.image, image.shape[:2])
        return depth_views(image)

    def truth(self, entry: Entry) -> np.ndarray:
        """The depth in millimetres, uint16 (480, 640).

        Raises:
            Unfit: no depth counts.
            BuildError: it has another size.
        """
        depth = self._store.depth(entry)
        _check_shape(entry.truth, depth.shape)
        scored = depth[slice(*_GEOMETRY.rows), slice(*_GEOMETRY.columns)] / 1000.0
        if not ((scored > DEPTH_RANGE[0]) & (scored < DEPTH_RANGE[1])).any():
            raise Unfit(f"{entry.name}: its depth has no pixel that counts ({entry.truth})")
        return depth

    def training(self) -> Iterable[Entry]:
        """The images of `train`, of `nyu_train.txt`, or of the training set of `splits.mat`."""
        return self._store.training(self._train)


def _check_shape(where: object, shape: tuple[int, ...]) -> None:
    if shape != _SHAPE:
        size = "x".join(map(str, shape[::-1]))
        raise BuildError(f"{where}: {size} pixels, must be {_SHAPE[1]}x{_SHAPE[0]}")
