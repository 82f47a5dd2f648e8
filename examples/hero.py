"""Draw the README's picture: what a codec does to a mask, to depths and to a class.

    python examples/hero.py cfqa docs/images/hero.webp

A row is a source of a built `mini`: its image, the ground truth, and what the task's head makes of
the original feature and of the feature at four levels of a codec.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cfqa_data
from cfqa_data.builders.gallery.figure import draw_cells, output_cells, save_figure

SOURCES = ("scene-seg-02000004", "scene-dpt-03000057", "scene-cls-01000042")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", help="built dataset")
    parser.add_argument("out", type=Path, help="WebP file to write")
    parser.add_argument("--codec", default="x265", help="codec to draw")
    parser.add_argument("--level", type=int, nargs="+", default=[0, 4, 7, 9], help="its levels")
    parser.add_argument("--source", nargs="+", default=SOURCES, help="a row each")
    arguments = parser.parse_args()
    dataset = cfqa_data.load(arguments.folder, codec=arguments.codec, level=arguments.level)
    views = [dataset.show(source).view for source in arguments.source]
    figure = draw_cells([output_cells(view, view.versions) for view in views])
    save_figure(figure, arguments.out, "webp", pil_kwargs={"quality": 85, "method": 6})
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
