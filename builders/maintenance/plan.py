"""Plan a repair: which work items recreate the damaged files, and which files cannot be recreated.

Each file of a dataset folder is an output of an item of a stage. The inputs of an item are either
intact, or are recreated by items of earlier stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.weights import find_below_root, find_weights
from cfqa_data.builders.maintenance.stages import CARD, repair_stages, was_built
from cfqa_data.builders.pipeline.check import packages_of, versions_of
from cfqa_data.builders.pipeline.context import BuildContext, Models
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.format.layout import NAMES, Layout
from cfqa_data.format.manifest import Manifest, package_versions
from cfqa_data.integrity.verify import Fault
from cfqa_data.recipe.portable import recipe_of

__all__ = ["RepairPlan", "check_environment", "plan_repair"]

FETCH = "fetch the dataset again"
RELEASE = f"was imported from a release, not built from a recipe; import it again, or {FETCH}"


@dataclass(frozen=True)
class RepairPlan:
    """Plan of a repair.

    Attributes:
        files: Files of the dataset.
        manifest: Manifest of the dataset.
        damaged: Damaged or missing files that the manifest lists.
        plugins: Classes that are not installed, as `module:Class`.
        plan: Build plan of the scratch build, with the manifest's recipe.
        items: Name of a stage -> items to run, in the order of stages.
        impossible: Files that cannot be recreated, with the reasons.
    """

    files: LocalFiles
    manifest: Manifest
    damaged: frozenset[str]
    plugins: tuple[str, ...]
    plan: Plan
    items: Mapping[str, Sequence[Item]]
    impossible: tuple[Fault, ...] = ()

    def stages(self, root: Path) -> list[tuple[BuildStage, Sequence[Item]]]:
        """Return the stages of the scratch build in a folder, each with its items to run."""
        context = BuildContext(self.plan, Layout(root))
        stages = repair_stages(context, self.files, self.plugins)
        return [(stage, self.items.get(stage.name, ())) for stage in stages]


def plan_repair(
    files: LocalFiles, manifest: Manifest, damaged: set[str], plugins: tuple[str, ...] = ()
) -> RepairPlan:
    """Plan the repair of damaged files.

    Args:
        files: Files of the dataset.
        manifest: Manifest of the dataset.
        damaged: Damaged or missing files that the manifest lists.
        plugins: Classes that are not installed, as `module:Class`.
    """
    recipe = recipe_of(manifest, plugins).without_programs()
    plan = Plan(recipe, manifest.tier, manifest.versions, manifest.weights, manifest.packages)
    empty = RepairPlan(files, manifest, frozenset(damaged), plugins, plan, {})
    built, intact, left = was_built(manifest), manifest.files.keys() - damaged, set(damaged)
    unlabelled = {task for task in recipe.tasks if NAMES.labels(task).as_posix() in damaged}
    # These items supply the rows of damaged tables, even if their own files are intact.
    unknown = unlabelled if NAMES.originals_table.as_posix() in damaged else set()
    pictures = {NAMES.previews.as_posix(), NAMES.hero.as_posix()}
    undrawn = set(recipe.tasks) if pictures & damaged else set()
    again = {"compress": unlabelled, "extract": unknown, "preview": undrawn}

    def possible(item: Item) -> bool:
        """Whether the inputs of an item are available; a release can only be decoded."""
        if item.stage in ("tables", CARD):
            return built or not unlabelled
        shards = plan.shards(item.task)
        if item.stage == "decode" or (item.stage == "arrays" and not built):
            streams = NAMES.bitstreams(item.task, item.codec, item.shard, shards)
            metadata = f"{NAMES.compressed(item.task, item.codec).as_posix()}/zarr.json"
            return streams.as_posix() in intact and (item.stage == "arrays" or metadata not in left)
        return built

    items: dict[str, list[Item]] = {}
    for stage, _ in empty.stages(Path()):
        for item in filter(possible, stage.items()):
            recreated = {path.as_posix() for path in stage.outputs(item)} & left
            left -= recreated
            if recreated or (built and item.task in again.get(stage.name, ())):
                items.setdefault(stage.name, []).append(item)

    def reason(name: str) -> str:
        array, chunk, _ = name.partition("/c/")
        if built:
            return f"is not a file that this version builds; {FETCH}"
        if name == NAMES.card.as_posix():
            return "needs the labels, which are damaged"
        if name.startswith("compressed/") and chunk:
            no = "metadata" if f"{array}/zarr.json" in left else "intact bitstreams"
            return f"has no {no}; {FETCH}"
        return RELEASE

    impossible = tuple(Fault(name, reason(name)) for name in sorted(left))
    return replace(empty, items=items, impossible=impossible)


def check_environment(repair_plan: RepairPlan, *, versions: bool) -> RepairPlan:
    """Check that this machine has the software and weights of the manifest.

    Args:
        repair_plan: Plan of the repair.
        versions: Whether to check versions of software as well as weights.

    Returns:
        The plan, with local paths of the recipe's files.

    Raises:
        BuildError: If versions or weights differ; the message lists the differences.
    """
    manifest, damaged = repair_plan.manifest, repair_plan.damaged
    local_paths, missing = _find_files(repair_plan)
    recipe = repair_plan.plan.recipe.with_paths(lambda uri: local_paths.get(uri, uri))
    repair_plan = replace(repair_plan, plan=replace(repair_plan.plan, recipe=recipe))
    different = []
    if versions:
        current = package_versions()
        for item in repair_plan.items.get("compress", ()):
            streams = NAMES.bitstreams(
                item.task, item.codec, item.shard, repair_plan.plan.shards(item.task)
            )
            codec_spec = recipe.tasks[item.task].codecs[item.codec]
            if streams.as_posix() in damaged and codec_spec.models not in missing:
                current |= versions_of(codec_spec)
        names = {*current, *(name for name in manifest.versions if " " not in name)}
        for name in sorted(names):
            then, now = manifest.versions.get(name, "absent"), current.get(name, "absent")
            # Imports, and earlier versions of this package, do not record all versions.
            unknown = then == "absent" and (" " in name or not was_built(manifest))
            if then != now and not unknown:
                different.append(f"{name} was {then}, is {now}")
        packages = packages_of(Models(recipe)) if manifest.packages else {}
        different += [
            f"the source of {name} has changed"
            for name, entry in manifest.packages.items()
            if name in packages and packages[name]["sha256"] != entry["sha256"]
        ]
    accept = "" if missing else "try --allow-version-mismatch, "
    different += missing.values()
    if different:
        more = f" (and {len(different) - 5} more)" if len(different) > 5 else ""
        raise BuildError(
            f"{repair_plan.files.location}: cannot be repaired with the installed versions: "
            f"{'; '.join(different[:5])}{more}; "
            f"install those of its manifest, {accept}or {FETCH}"
        )
    return repair_plan


def _find_files(repair_plan: RepairPlan) -> tuple[dict[str, str], dict[str, str]]:
    """Return, by URI, local paths of the recipe's files, and errors for missing ones.

    Weights and lists are searched by their SHA-256, all other paths of sources by name.
    """
    manifest, recipe = repair_plan.manifest, repair_plan.plan.recipe
    local_paths: dict[str, str] = {}
    missing: dict[str, str] = {}
    needed: set[str | None] = set()
    paths = recipe.paths
    all_items = [item for items in repair_plan.items.values() for item in items]
    for item in all_items:
        if item.stage in ("select", "extract", "compress", "preview"):
            needed |= {recipe.backbone.weights, recipe.tasks[item.task].head}
        if item.stage in ("compress", "decode", "preview") and item.codec:
            spec = recipe.tasks[item.task].codecs[item.codec]
            needed |= {uri for uri in spec.weights if spec.models or uri in manifest.weights}
    for task in {i.task for i in all_items if i.stage in ("select", "extract", "preview")}:
        for key, uri in recipe.tasks[task].source.options.items():
            if uri not in paths:
                continue
            if key != "root" and uri in manifest.weights:
                needed.add(uri)
            elif local := find_below_root(str(uri), manifest.weights.get(uri)):
                local_paths[uri] = str(local)
    for uri in sorted(filter(None, needed)):
        try:
            path = find_weights(uri, manifest.weights.get(uri), repair_plan.files)
            local_paths[uri] = str(path)
        except CfqaError as error:
            missing[uri] = str(error)
    return local_paths, missing
