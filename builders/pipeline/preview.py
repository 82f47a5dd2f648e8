"""The stage that draws previews of sources: input, truth, and the task's output at some levels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.arrow import pa, pq
from cfqa_data.builders.pipeline.context import BuildContext, read_tensors
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.builders.sources.base import Source, check_image
from cfqa_data.builders.tasks.drawing import Drawing, check_drawing, webp
from cfqa_data.errors import BuildError
from cfqa_data.format.limits import LONGEST_ID
from cfqa_data.format.manifest import package_versions
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.format.previews import ANSWERS, previews_table, sort_previews
from cfqa_data.format.storage import write_bytes, write_table
from cfqa_data.registry import naming_user_code

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Preview", "drawing_versions", "write_previews"]

LEVELS = 4
"""Number of a codec's levels that are drawn, equally spaced from the best to the worst."""

MAX_SOURCES = 1000
"""Number of sources of a task that are drawn, from the first on."""

HERO_SOURCES, HERO_HEIGHT, GAP = 2, 112, 4
"""Layout of the card's picture: sources per task, height of a row and gaps, in pixels."""

ROWS = 100
"""Rows per row group of the table, so that a viewer can fetch few at a time."""


class Preview(BuildStage):
    """Stage that draws the sources of a shard, as far as the terms of their source allow."""

    name, unit = "preview", "sources"

    def items(self) -> list[Item]:
        return [
            Item(self.name, task, _shown_codec(self.context, task), item.shard)
            for task in self.plan.recipe.tasks
            for item in self.per_shard(task)
        ]

    def cost(self, item: Item) -> int:
        return len(self.plan.members(item.task, item.shard))

    def run(self, item: Item) -> None:
        context, task = self.context, item.task
        source, rows = context.models.source(task), []
        ids, members = context.ids(task, item.shard), self.plan.members(task, item.shard)
        features, truths = context.originals(task, item.shard), context.truths(task, item.shard)
        for source_id, position, feature, truth in zip(ids, members, features, truths, strict=True):
            drawn = position < MAX_SOURCES
            pictures = self.row(item, source, source_id, feature, truth) if drawn else {}
            rows.append({"source_id": source_id} | pictures)
        names = dict.fromkeys(name for row in rows for name in row if name != ANSWERS)
        kinds = {name: pa.binary() for name in names} | {"source_id": pa.string()}
        schema = pa.schema([*kinds.items(), (ANSWERS, pa.string())])
        write_table(item.result_path(self.layout), pa.Table.from_pylist(rows, schema=schema))

    def row(
        self, item: Item, source: Source, source_id: str, original: np.ndarray, truth: Any
    ) -> dict[str, Any]:
        """Return a source's columns: pictures as WebP files, and the top answers as a text."""
        task, terms = self.context.models.task(item.task), self.context.entry(item.task).terms
        classes = tuple(map(str, source.classes))
        row: dict[str, Any] = {}
        with naming_user_code(BuildError):
            if terms and terms.inputs and (image := source.image(source_id)) is not None:
                row["image"] = webp(check_image(image, f"{type(source).__name__}.image"))
        answers = []

        def draw(column: str, feature: np.ndarray | None) -> Drawing | None:
            with naming_user_code(BuildError):
                drawing = task.draw(feature, truth, classes)
                drawn = check_drawing(drawing, f"{type(task).__name__}.draw")
            if drawn and drawn.picture is not None:
                row[column] = webp(drawn.picture)
            elif drawn and drawn.bars:
                name, first = column.removeprefix("output_"), drawn.bars[0]
                answers.append(f"{name}: {first.label} {first.text}".rstrip())
            return drawn

        if terms and terms.truths:
            draw("truth", None)
        if draw("output_original", original):
            for level, feature in self.levels(item, source_id, original.shape):
                draw(f"output_{item.codec}_{level}", feature)
        return row | ({ANSWERS: "; ".join(answers)[:LONGEST_ID]} if answers else {})

    def levels(
        self, item: Item, source_id: str, shape: tuple[int, ...]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the levels to draw, each with the feature that its bitstream decodes to."""
        if not item.codec:
            return
        spec, codec = self.context.codec_spec(item), self.context.codec(item.task, item.codec)
        shards = self.plan.shards(item.task)
        n, c, t, d = shape
        path = self.layout.bitstreams(item.task, item.codec, item.shard, shards)
        levels = np.linspace(0, len(spec.levels) - 1, min(len(spec.levels), LEVELS))
        for level in levels.round().astype(int).tolist():
            key = f"{source_id}/{level}"
            stream = read_tensors(path, [key])[key].tobytes()
            if spec.quantizer is None:
                yield level, codec.decode(stream, shape)
            else:
                plane = codec.decode(stream, plane_shape((n, c, t, d)))
                yield level, spec.quantizer.dequantize(unpack(plane, (n, c, t, d)))


def drawing_versions() -> dict[str, str]:
    """Return the version of Pillow, which writes the pictures, as a manifest records it."""
    return {"previews pillow": package_versions(("pillow",))["pillow"]}


def _shown_codec(context: BuildContext, task: str) -> str:
    """Return the task's first codec whose bitstreams decode to features; "" if there is none."""
    codecs = context.plan.recipe.tasks[task].codecs.items()
    names = (c for c, s in codecs if s.facts.on != "inputs" and s.facts.bits == "bitstream")
    return next(names, "")


def write_previews(context: BuildContext, originals: pa.Table) -> None:
    """Write the table of previews and the card's picture, if anything was drawn."""
    paths = [item.result_path(context.layout) for item in Preview(context).items()]
    if not all(path.exists() for path in paths):  # an import has no preview stage
        return
    previews = pa.concat_tables(map(_read, paths), promote_options="default")
    previews = sort_previews(originals, previews)
    if (table := previews_table(originals, previews)) is None:
        return
    write_table(context.layout.previews, table, row_group_size=ROWS)
    if (picture := draw_hero(originals, previews)) is not None:
        write_bytes(context.layout.hero, picture)


def draw_hero(originals: pa.Table, previews: pa.Table) -> bytes | None:
    """Draw the card's picture: a row for each of the first drawn sources of every task.

    Args:
        originals: The table of originals.
        previews: Their pictures, in the same order.

    Returns:
        A WebP file; None if no source has pictures other than its input.
    """
    from PIL import Image

    names = [name for name in previews.column_names if name != ANSWERS]
    rows: dict[str, list[dict[str, bytes]]] = {}
    for task, row in zip(originals["task"].to_pylist(), previews.to_pylist(), strict=True):
        pictures = {name: row[name] for name in names if row[name]}
        shown = rows.setdefault(task, [])
        if len(pictures) > 1 and len(shown) < HERO_SOURCES:
            shown.append(pictures)
    cells = [
        {name: _scaled(name, data) for name, data in row.items()}
        for shown in rows.values()
        for row in shown
    ]
    if not cells:
        return None
    widths = [max((row[name].width for row in cells if name in row), default=0) for name in names]
    size = sum(widths) + GAP * (len(names) - 1), len(cells) * (HERO_HEIGHT + GAP) - GAP
    canvas = Image.new("RGB", size, "white")
    for y, row in enumerate(cells):
        for x, name in enumerate(names):
            if name in row:
                corner = sum(widths[:x]) + GAP * x, y * (HERO_HEIGHT + GAP)
                canvas.paste(row[name], corner)
    data = io.BytesIO()
    canvas.save(data, "WEBP", quality=90, method=4)
    return data.getvalue()


def _scaled(name: str, data: bytes) -> Image.Image:
    """Decode a picture and scale it to the height of a row.

    Raises:
        BuildError: If it is damaged, which may happen in a dataset that is being extended.
    """
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data), formats=["WEBP"])
        return picture.resize((round(picture.width * HERO_HEIGHT / picture.height), HERO_HEIGHT))
    except (OSError, ValueError) as error:
        raise BuildError(f"a picture of the column {name!r} cannot be read: {error}") from None


def _read(path: Path) -> pa.Table:
    with path.open("rb") as file:
        return pq.read_table(file)
