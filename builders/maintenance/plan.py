"""What a repair has to do: from damaged files to the pipeline's items; and what is not possible.

Think of the folder as the pipeline's result: each file has an item that makes it, and what an item
needs is either intact or is made by an item before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.weights import find_below_root, find_weights
from cfqa_data.builders.pipeline.plan import STAGES, Item, Plan
from cfqa_data.builders.pipeline.tools import codec_for
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.format.invariants import shard_of
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest, package_versions
from cfqa_data.integrity.verify import Fault
from cfqa_data.recipe.spec import SOURCE_PATHS, Recipe

__all__ = ["Steps", "check_same", "made_by", "plan_steps", "was_built"]

NAMES = Layout(Path())

FETCH = "fetch the dataset again"


@dataclass(frozen=True)
class Steps:
    """What is to be done, in this order.

    Attributes:
        plan: of the scratch build: the manifest's recipe, in the light tier.
        items: of the pipeline, by stage.
        tables: tasks whose labels are joined again.
        originals: whether the table of originals is joined again.
        heads: (task, codec) whose array's metadata is written again.
        codes: (task, codec, position) whose shard is decoded again.
        card: whether the card is written again.
        impossible: files that cannot be made again, and why.
    """

    plan: Plan
    items: Mapping[str, tuple[Item, ...]]
    tables: tuple[str, ...]
    originals: bool
    heads: tuple[tuple[str, str], ...]
    codes: tuple[tuple[str, str, int], ...]
    card: bool
    impossible: tuple[Fault, ...]


def was_built(manifest: Manifest) -> bool:
    """Return whether `cfqa build` made a dataset, so that its recipe can make it again."""
    codecs = {codec for task in manifest.tasks.values() for codec in task.codecs}
    return all(f"{codec} encoder" in manifest.versions for codec in codecs)


def made_by(plan: Plan, item: Item) -> tuple[str, ...]:
    """Return the files of a light dataset that an item makes."""
    if item.stage == "select":
        return (NAMES.truth(item.task).as_posix(),)
    if item.stage == "extract":
        return (NAMES.originals(item.task, item.group, plan.groups).as_posix(),)
    if item.stage == "compress":
        path = NAMES.bitstreams(item.task, item.codec, item.group, plan.groups)
        return (path.as_posix(),)
    return ()


def plan_steps(manifest: Manifest, damaged: set[str]) -> Steps:
    """Return what makes damaged files of a dataset again.

    Args:
        manifest: the dataset's.
        damaged: files that it lists.
    """
    recipe = Recipe.from_dict(manifest.recipe)
    plan = Plan(recipe.without_programs(), "light", manifest.versions, manifest.weights)
    todo, left = {stage: dict[Item, None]() for stage in STAGES}, set(damaged)

    def bad(path: Path) -> bool:
        name = path.as_posix()
        if name not in damaged:
            return False
        left.discard(name)
        return True

    tables, heads, codes = [], [], []
    originals, card = bad(NAMES.originals_table), bad(NAMES.card)
    for task, spec in recipe.tasks.items():
        relabel = bad(NAMES.labels(task))
        if relabel:
            tables.append(task)
        if bad(NAMES.truth(task)):
            todo["select"][Item("select", task)] = None
        for group in range(plan.groups):
            if bad(NAMES.originals(task, group, plan.groups)) or (relabel and originals):
                todo["extract"][Item("extract", task, "", group)] = None
        for codec in spec.ladders:
            for group in range(plan.groups):
                if bad(NAMES.bitstreams(task, codec, group, plan.groups)) or relabel:
                    todo["compress"][Item("compress", task, codec, group)] = None
            array = NAMES.compressed(task, codec)
            if bad(array / "zarr.json"):
                heads.append((task, codec))
                todo["centre"][Item("centre", task)] = None
            for position in range(len(manifest.tasks[task].sources)):
                if bad(array / f"c/{position}/0/0/0/0/0"):
                    codes.append((task, codec, position))
    why = f"is not a file that this version makes; {FETCH}"
    impossible = [Fault(name, why) for name in sorted(left)]
    if not was_built(manifest):
        why = f"comes from a release, not from a recipe; import that again, or {FETCH}"
        parts = {stage: made for stage, made in todo.items() if stage != "centre"}
        names = {name for made in parts.values() for i in made for name in made_by(plan, i)}
        names |= {NAMES.labels(task).as_posix() for task in tables}
        impossible += [Fault(name, why) for name in sorted(names & damaged)]
        todo = {stage: {} for stage in STAGES}
        if tables and originals:
            impossible.append(Fault(NAMES.originals_table.as_posix(), why))
            originals = False
        if tables and card:
            impossible.append(Fault(NAMES.card.as_posix(), "needs the labels, which are damaged"))
            card = False
        streams = {name for name in manifest.files if name.startswith("bitstreams/")} - damaged
        gone = [c for c in codes if _streams(plan, *c) not in streams]
        no_head = [h for h in heads if _streams(plan, *h, 0) not in streams]
        impossible += [Fault(_shard(*c), f"has no intact bitstreams; {FETCH}") for c in gone]
        impossible += [
            Fault((NAMES.compressed(*h) / "zarr.json").as_posix(), f"{why}") for h in no_head
        ]
        impossible += [
            Fault(_shard(*c), f"has no metadata; {FETCH}")
            for c in codes
            if c not in gone and c[:2] in no_head
        ]
        codes = [c for c in codes if c not in gone and c[:2] not in no_head]
        heads = [h for h in heads if h not in no_head]
        tables = []
    return Steps(
        plan=plan,
        items={stage: tuple(made) for stage, made in todo.items()},
        tables=tuple(tables),
        originals=originals,
        heads=tuple(heads),
        codes=tuple(codes),
        card=card,
        impossible=tuple(impossible),
    )


def _streams(plan: Plan, task: str, codec: str, position: int) -> str:
    group = shard_of(position, plan.recipe.group_size)
    return NAMES.bitstreams(task, codec, group, plan.groups).as_posix()


def _shard(task: str, codec: str, position: int) -> str:
    return (NAMES.compressed(task, codec) / f"c/{position}/0/0/0/0/0").as_posix()


def check_same(
    files: LocalFiles, manifest: Manifest, steps: Steps, damaged: set[str], *, versions: bool
) -> Steps:
    """See that this machine has the software and weights of the manifest.

    Args:
        files: of the folder.
        manifest: its manifest.
        steps: what is to be done.
        damaged: files that it lists.
        versions: look at versions, too, not only at the weights.

    Returns:
        The steps, with the recipe's files named as they lie here.

    Raises:
        BuildError: something differs; names all of it.
    """
    here, lost = _find_files(files, manifest, steps)
    recipe = steps.plan.recipe.with_paths(lambda uri: here.get(uri, uri))
    steps = replace(steps, plan=replace(steps.plan, recipe=recipe))
    different = []
    if versions:
        found = package_versions()
        for item in steps.items["compress"]:
            ladder = recipe.tasks[item.task].ladders[item.codec]
            if damaged & set(made_by(steps.plan, item)) and ladder.models not in lost:
                told = codec_for(ladder).version()
                told.pop("models", None)
                found |= {f"{item.codec} {what}": version for what, version in told.items()}
        names = {*found, *(name for name in manifest.versions if " " not in name)}
        for name in sorted(names):
            then, now = manifest.versions.get(name, "absent"), found.get(name, "absent")
            # What an import, or an earlier version of this package, did not note may be the same.
            unknown = then == "absent" and (" " in name or not was_built(manifest))
            if then != now and not unknown:
                different.append(f"{name} was {then}, is {now}")
    accept = "" if lost else "try --accept-versions, "
    different += lost.values()
    if different:
        more = f" (and {len(different) - 5} more)" if len(different) > 5 else ""
        raise BuildError(
            f"{files.location}: cannot be repaired with what is installed here: "
            f"{'; '.join(different[:5])}{more}; "
            f"install what its manifest names, {accept}or {FETCH}"
        )
    return steps


def _find_files(
    files: LocalFiles, manifest: Manifest, steps: Steps
) -> tuple[dict[str, str], dict[str, str]]:
    """Return where the files of the recipe lie here, and why those that are needed do not, by URI.

    Weights and lists are found by their SHA-256, all other paths of sources by their names.
    """
    here: dict[str, str] = {}
    lost: dict[str, str] = {}
    needed = _weights(manifest, steps)
    for task, spec in Recipe.from_dict(manifest.recipe).tasks.items():
        read = any(
            item.task == task for stage in ("select", "extract") for item in steps.items[stage]
        )
        paths = {k: v for k, v in spec.source.options.items() if k in SOURCE_PATHS and v}
        for key, uri in paths.items() if read else ():
            if key != "root" and uri in manifest.weights:
                needed.add(uri)
            elif found := find_below_root(str(uri), manifest.weights.get(uri)):
                here[uri] = str(found)
    for uri in sorted(needed):
        try:
            here[uri] = str(find_weights(uri, manifest.weights.get(uri), files))
        except CfqaError as error:
            lost[uri] = str(error)
    return here, lost


def _weights(manifest: Manifest, steps: Steps) -> set[str]:
    """Return the weights that the steps need."""
    uris, recipe = set(), Recipe.from_dict(manifest.recipe)
    items = [item for made in steps.items.values() for item in made if item.stage != "centre"]
    for task in {item.task for item in items}:
        uris |= {recipe.backbone.weights, recipe.tasks[task].head}
    pairs = {(item.task, item.codec) for item in items if item.codec}
    for task, codec in pairs | {(t, c) for t, c, _ in steps.codes}:
        ladder = recipe.tasks[task].ladders[codec]
        uris |= {uri for uri in ladder.weights if ladder.models or uri in manifest.weights}
    return uris
