"""Draw the README's picture: rendered scenes with their mask and their depth.

    python examples/contact_sheet.py docs/images/scenes.png

The scenes are the first of the `mini` recipe's depth task. Above the image, in the middle the
segmentation mask (one colour a shape, white where a pixel is ignored), below the depth (near is
bright).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from cfqa_data.builders.sources.scenes import draw_scene, render
from cfqa_data.builders.tasks.drawing import draw_depth, draw_mask
from cfqa_data.recipe.load import load_recipe

SIDE, GAP = 112, 2


def column(seed: int) -> list[np.ndarray]:
    """Return image, mask and depth of a scene as uint8 (112, 112, 3) pictures."""
    scene = render(draw_scene(seed), SIDE, SIDE)
    depth = draw_depth(scene.depth, float(scene.depth.min()), float(scene.depth.max()))
    return [scene.image, draw_mask(scene.mask, ()).picture, depth.picture]


def sheet(columns: int) -> np.ndarray:
    """Return the contact sheet, uint8 (height, width, 3)."""
    seed = load_recipe("mini").tasks["dpt"].source.seed
    step = SIDE + GAP
    canvas = np.full((3 * step - GAP, columns * step - GAP, 3), 255, np.uint8)
    for x in range(columns):
        for y, picture in enumerate(column(seed + x)):
            canvas[y * step : y * step + SIDE, x * step : x * step + SIDE] = picture
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--columns", type=int, default=8, help="number of scenes")
    arguments = parser.parse_args()
    Image.fromarray(sheet(arguments.columns)).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
