"""Plan a repair: which work items recreate the damaged files, and which files cannot be recreated.

Think of the folder as the stages' result: each file is an output of an item, and what an item needs
is either intact or is made by an item before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.access.weights import find_below_root, find_weights
from cfqa_data.builders.pipeline.check import packages_of
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.context import BuildContext, Models, codec_for
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.pipeline.prepare import Prepare
from cfqa_data.builders.pipeline.select import BuildStage, Extract, Select
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.format.codes import Codes, find_centres, shard_name, write_codes
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest, package_versions
from cfqa_data.integrity.verify import Fault
from cfqa_data.recipe.portable import recipe_of

__all__ = [
    "Arrays",
    "Decode",
    "Recompress",
    "RepairPlan",
    "check_environment",
    "plan_repair",
    "was_built",
]

FETCH = "fetch the dataset again"


class Recompress(Compress):
    """Makes bitstreams and label rows; of arrays, only those of codecs on inputs."""

    def outputs(self, item: Item) -> tuple[Path, ...]:
        streams, *arrays, result = super().outputs(item)
        on_inputs = self.context.codec_spec(item).facts.on == "inputs"
        return (streams, *(arrays if on_inputs else ()), result)


@dataclass(frozen=True)
class RepairStage(Prepare):
    """A stage that reads the dataset's folder in its current state.

    Attributes:
        files: of the dataset.
        plugins: classes that are not installed.
    """

    files: LocalFiles
    plugins: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> Folder:
        """The dataset's folder."""
        return Folder(self.files, plugins=self.plugins)

    def pairs(self) -> list[tuple[str, str]]:
        """Return every task and codec."""
        tasks = self.plan.recipe.tasks
        return [(task, codec) for task, spec in tasks.items() for codec in spec.codecs]


class Arrays(RepairStage):
    """Makes the tables of a codec and the metadata of its array."""

    name, unit = "arrays", "codecs"

    def items(self) -> list[Item]:
        return [Item(self.name, task, codec) for task, codec in self.pairs()]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        array = self.layout.compressed(item.task, item.codec)
        return self.context.tables_path(item.task, item.codec), array / "zarr.json"

    def run(self, item: Item) -> None:
        folder, codec_spec = self.folder, self.context.codec_spec(item)
        entry, centres = folder.manifest.tasks[item.task], list[int]()
        if entry.codecs[item.codec].tables:
            self.fit(item.task, codec_spec)
        if codec_spec.quantizer is not None and was_built(folder.manifest):
            centres = self.centre(item.task, codec_spec.quantizer)
        elif codec_spec.quantizer is not None:  # of a release: by its first feature
            first = folder.decoded(entry.sources[0], item.codec, 0)
            assert isinstance(first, Codes)
            centres = list(find_centres(first.indices))
        self.make_array(item.task, codec_spec, entry.shape, centres)


class Decode(RepairStage):
    """Decodes a source's bitstreams to its shard of an array."""

    name, unit = "decode", "sources"

    def items(self) -> list[Item]:
        return [
            Item(self.name, task, codec, position)
            for task, codec in self.pairs()
            if self.plan.recipe.tasks[task].codecs[codec].facts.on != "inputs"
            for position in range(self.plan.recipe.sources(task))
        ]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        assert item.shard is not None
        return (self.layout.compressed(item.task, item.codec) / shard_name(item.shard),)

    def streams(self, item: Item) -> str:
        """Return the file of the bitstreams that an item decodes."""
        assert item.shard is not None
        shard = item.shard // self.plan.recipe.group_size
        streams = Item("compress", item.task, item.codec, shard)
        return self.layout.relative(Recompress(self.context).outputs(streams)[0])

    def run(self, item: Item) -> None:
        assert item.shard is not None
        folder = self.folder
        entry = folder.manifest.tasks[item.task]
        source, levels = entry.sources[item.shard], range(len(entry.codecs[item.codec].levels))
        found = [folder.decoded(source, item.codec, level) for level in levels]
        stored = [each.indices if isinstance(each, Codes) else each for each in found]
        write_codes(self.layout.compressed(item.task, item.codec), item.shard, np.stack(stored))


@dataclass(frozen=True)
class RepairPlan:
    """The steps of a repair, in this order.

    Attributes:
        plan: of the scratch build, by the manifest's recipe.
        items: by the name of their stage.
        tables: tasks whose labels are joined again.
        originals: whether the table of originals is joined again.
        card: whether the card is written again.
        impossible: files that cannot be made again, and why.
    """

    plan: Plan
    items: Mapping[str, tuple[Item, ...]]
    tables: tuple[str, ...]
    originals: bool
    card: bool
    impossible: tuple[Fault, ...]


def stages_of(
    plan: Plan, files: LocalFiles, plugins: tuple[str, ...], layout: Layout
) -> list[BuildStage]:
    """Return the stages of a repair."""
    context = BuildContext(plan, layout)
    build_stages: list[BuildStage] = [Select(context), Extract(context), Recompress(context)]
    repair_stages: list[BuildStage] = [kind(context, files, plugins) for kind in (Arrays, Decode)]
    return [*build_stages[:2], repair_stages[0], build_stages[2], repair_stages[1]]


def was_built(manifest: Manifest) -> bool:
    """Return whether `cfqa build` made a dataset, so that its recipe can make it again."""
    codecs = {codec for task in manifest.tasks.values() for codec in task.codecs}
    noted = {name.partition(" ")[0] for name in manifest.versions if not name.startswith("scores ")}
    return codecs <= noted


def plan_repair(
    files: LocalFiles,
    manifest: Manifest,
    damaged: set[str],
    plugins: tuple[str, ...] = (),
) -> RepairPlan:
    """Plan the repair of damaged files.

    Args:
        files: of the dataset.
        manifest: its manifest.
        damaged: files that it lists.
        plugins: classes that are not installed.
    """
    recipe = recipe_of(manifest, plugins).without_programs()
    plan = Plan(recipe, manifest.tier, manifest.versions, manifest.weights, manifest.packages)
    names = Layout(Path())
    damaged_tables = {path.as_posix() for path in (names.originals_table, names.card)} & damaged
    originals, card = (
        names.originals_table.as_posix() in damaged_tables,
        names.card.as_posix() in damaged_tables,
    )
    tables = [task for task in recipe.tasks if names.labels(task).as_posix() in damaged]
    left = damaged - damaged_tables - {names.labels(task).as_posix() for task in tables}
    was_build, stages = was_built(manifest), stages_of(plan, files, plugins, names)
    streams = {name for name in manifest.files if name.startswith("bitstreams/")} - damaged
    decode = stages[-1]
    assert isinstance(decode, Decode)
    without_metadata: set[tuple[str, str]] = (
        set()
    )  # of a release: whose metadata cannot be made again
    release = f"comes from a release, not from a recipe; import that again, or {FETCH}"

    def obstacle(item: Item) -> str:
        """Return why an item cannot be done: of a release, only bitstreams can be decoded."""
        if was_build:
            return ""
        if item.stage not in ("arrays", "decode"):
            return release
        if decode.streams(replace(item, shard=item.shard or 0)) not in streams:
            return release if item.stage == "arrays" else f"has no intact bitstreams; {FETCH}"
        return f"has no metadata; {FETCH}" if (item.task, item.codec) in without_metadata else ""

    todo: dict[str, list[Item]] = {}
    impossible = []
    for stage in stages:
        for item in stage.items():
            made = {path.as_posix() for path in stage.outputs(item)} & left
            left -= made
            why = obstacle(item)
            again = item.task in tables and (
                stage.name == "compress" or (stage.name == "extract" and originals)
            )
            if made and why:
                impossible += [Fault(name, why) for name in sorted(made)]
                without_metadata |= {(item.task, item.codec)} if stage.name == "arrays" else set()
            elif made or (again and was_build):
                todo.setdefault(stage.name, []).append(item)
    why = f"is not a file that this version makes; {FETCH}"
    impossible += [Fault(name, why) for name in sorted(left)]
    if tables and not was_build:
        impossible += [Fault(names.labels(task).as_posix(), release) for task in tables]
        if originals:
            impossible.append(Fault(names.originals_table.as_posix(), release))
        if card:
            impossible.append(Fault(names.card.as_posix(), "needs the labels, which are damaged"))
        originals = card = False
        tables = []
    return RepairPlan(
        plan=plan,
        items={stage: tuple(items) for stage, items in todo.items()},
        tables=tuple(tables),
        originals=originals,
        card=card,
        impossible=tuple(impossible),
    )


def check_environment(
    files: LocalFiles,
    manifest: Manifest,
    repair_plan: RepairPlan,
    damaged: set[str],
    *,
    versions: bool,
) -> RepairPlan:
    """Check that this machine has the software and weights of the manifest.

    Args:
        files: of the folder.
        manifest: its manifest.
        repair_plan: what is to be done.
        damaged: files that it lists.
        versions: look at versions, too, not only at the weights.

    Returns:
        The plan, with local paths of the recipe's files.

    Raises:
        BuildError: something differs; names all of it.
    """
    local_paths, missing = _find_files(files, manifest, repair_plan)
    recipe = repair_plan.plan.recipe.with_paths(lambda uri: local_paths.get(uri, uri))
    repair_plan = replace(repair_plan, plan=replace(repair_plan.plan, recipe=recipe))
    different = []
    if versions:
        found = package_versions()
        context = BuildContext(repair_plan.plan, Layout(Path()))
        for item in repair_plan.items.get("compress", ()):
            codec_spec = context.codec_spec(item)
            streams = Recompress(context).outputs(item)[0].as_posix()
            if streams in damaged and codec_spec.models not in missing:
                versions_now = codec_for(codec_spec).version()
                found |= {
                    f"{item.codec} {k}": text for k, text in versions_now.items() if k != "models"
                }
        names = {*found, *(name for name in manifest.versions if " " not in name)}
        for name in sorted(names):
            then, now = manifest.versions.get(name, "absent"), found.get(name, "absent")
            # What an import, or an earlier version of this package, did not note may be the same.
            unknown = then == "absent" and (" " in name or not was_built(manifest))
            if then != now and not unknown:
                different.append(f"{name} was {then}, is {now}")
        packages = packages_of(Models(recipe)) if manifest.packages else {}
        different += [
            f"the source of {name} has changed"
            for name, entry in manifest.packages.items()
            if name in packages and packages[name]["sha256"] != entry["sha256"]
        ]
    accept = "" if missing else "try --accept-versions, "
    different += missing.values()
    if different:
        more = f" (and {len(different) - 5} more)" if len(different) > 5 else ""
        raise BuildError(
            f"{files.location}: cannot be repaired with what is installed here: "
            f"{'; '.join(different[:5])}{more}; "
            f"install what its manifest names, {accept}or {FETCH}"
        )
    return repair_plan


def _find_files(
    files: LocalFiles, manifest: Manifest, repair_plan: RepairPlan
) -> tuple[dict[str, str], dict[str, str]]:
    """Return local paths of the recipe's files, and why needed ones are missing, both by URI.

    Weights and lists are found by their SHA-256, all other paths of sources by their names.
    """
    local_paths: dict[str, str] = {}
    missing: dict[str, str] = {}
    needed, paths = _weights(manifest, repair_plan), repair_plan.plan.recipe.paths
    for task, spec in repair_plan.plan.recipe.tasks.items():
        if not any(
            i.task == task
            for name in ("select", "extract")
            for i in repair_plan.items.get(name, ())
        ):
            continue
        for key, uri in spec.source.options.items():
            if uri not in paths:
                continue
            if key != "root" and uri in manifest.weights:
                needed.add(uri)
            elif found := find_below_root(str(uri), manifest.weights.get(uri)):
                local_paths[uri] = str(found)
    for uri in sorted(needed):
        try:
            local_paths[uri] = str(find_weights(uri, manifest.weights.get(uri), files))
        except CfqaError as error:
            missing[uri] = str(error)
    return local_paths, missing


def _weights(manifest: Manifest, repair_plan: RepairPlan) -> set[str]:
    """Return the weights that the steps need."""
    uris: set[str | None] = set()
    recipe = repair_plan.plan.recipe
    for name, items in repair_plan.items.items():
        for item in items:
            if name in ("select", "extract", "compress"):
                uris |= {recipe.backbone.weights, recipe.tasks[item.task].head}
            if name in ("compress", "decode"):
                codec_spec = recipe.tasks[item.task].codecs[item.codec]
                uris |= {
                    u for u in codec_spec.weights if codec_spec.models or u in manifest.weights
                }
    return {uri for uri in uris if uri}
