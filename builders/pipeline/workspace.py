"""The output folder of a build: inspect it, and decide whether a build may start or resume there.

Until a build is finished, `.build/` contains its plan, its lock and one result file per finished
work item. `.build/plan.json` is the first file written and `manifest.json` the last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfqa_data.builders.pipeline.check import hash_sources, hash_uris, packages_of, weights_of
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.lock import LOCK
from cfqa_data.builders.pipeline.plan import PLAN, Plan
from cfqa_data.errors import BuildError, prefixed
from cfqa_data.format.layout import Layout, is_tool_file
from cfqa_data.format.manifest import Manifest, read_manifest
from cfqa_data.format.storage import PARTIAL, remove_partials, write_text
from cfqa_data.paths import absolute_path
from cfqa_data.recipe.load import Recipe
from cfqa_data.recipe.portable import portable_names, recorded_recipe, replace_path

__all__ = ["open_workspace", "remove_work", "status"]

PARTS = ("recipe", "versions", "weights", "packages")
ABSENT = "absent"
_THEN = ", then "  # separates versions of a build that was resumed with other software


def status(recipe: Recipe, out: Path | str, *, tier: str = "full") -> str:
    """Return the state of a build of `recipe` in `out`.

    Returns:
        "new" (nothing is there yet), "begun" (the build can be resumed) or "finished".

    Raises:
        BuildError: If the folder contains something else, or cannot be read.
    """
    layout = Layout(absolute_path(out))
    if not layout.root.exists():
        return "new"
    if not layout.root.is_dir():
        raise BuildError(f"{layout.root} is a file: choose a folder")
    try:
        inside = _inside(layout)  # read first: a build that ends right now removes it last
        names = _names(layout)
    except OSError as error:
        raise BuildError(f"{layout.root} cannot be read: {error.strerror}") from None
    if layout.manifest.name in names:
        _check_finished(layout, recipe, tier)
        return "finished"
    if PLAN in inside and _untouched(layout):
        return "new"
    if PLAN in inside:
        recorded = _read_plan(layout)
        if recorded is None:  # the running build has just ended
            return status(recipe, out, tier=tier)
        what = f"{layout.root} contains an unfinished build"
        remedy = "finish it, delete this folder, or choose another"
        old = {"tier": recorded["tier"], **recorded["recipe"]}
        new = {"tier": tier, **recipe.fitted_as(recorded["recipe"])}
        _check_recipe(what, remedy, old, new)
        return "begun"
    if names - {layout.work.name} or inside - {LOCK}:
        raise BuildError(
            f"{layout.root} is not empty and not a CFQA dataset "
            f"({', '.join(sorted(names)[:3])}...): choose a new or empty folder"
        )
    return "new"


def _inside(layout: Layout) -> set[str]:
    """Return the names in `.build`, without partial files."""
    try:
        names = (path.name for path in layout.work.iterdir())
        return {n for n in names if not n.endswith(PARTIAL) and not is_tool_file(n)}
    except FileNotFoundError:
        return set()


def _untouched(layout: Layout) -> bool:
    """Whether a build was started here and has not finished a single file."""
    return _names(layout) == {layout.work.name} and _inside(layout) <= {PLAN, LOCK}


def _names(layout: Layout) -> set[str]:
    """Return the names in the folder, except files of the operating system and other tools."""
    return {path.name for path in layout.root.iterdir() if not is_tool_file(path.name)}


def _check_finished(layout: Layout, recipe: Recipe, tier: str) -> None:
    with prefixed(f"{layout.root} is not a dataset of this version", BuildError):
        manifest = read_manifest(layout.root)
    recorded = recorded_recipe(Recipe.from_dict(recipe.fitted_as(manifest.recipe)))
    what, remedy = f"{layout.root} contains a finished dataset", "choose another folder"
    old = {"tier": manifest.tier, **manifest.recipe, "name": manifest.name}
    _check_recipe(what, remedy, old, {"tier": tier, **recorded})
    # Different files may have the same portable name.
    if manifest.packages or _as_json(recorded) != _as_json(recipe.to_dict()):
        _check_files(layout, recipe, manifest)


def _check_recipe(what: str, remedy: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise an error if the recipe and tier of a folder differ from the requested ones."""
    if differences := _difference_text(old, _as_json(new)):
        raise BuildError(
            f"{what} of recipe {old['name']!r} ({old['tier']} tier) that differs ({differences}): "
            f"{remedy}"
        )


def _check_files(layout: Layout, recipe: Recipe, manifest: Manifest) -> None:
    """Check that the files of a recipe have the hashes in the manifest.

    The manifest of an import has the hashes of the files that the import used only.
    """
    names, models = portable_names(recipe), Models(recipe)
    uris = [uri for uri in weights_of(recipe) if replace_path(uri, names) in manifest.weights]
    lists = manifest.weights.keys() - {replace_path(uri, names) for uri in uris}
    with prefixed(f"recipe {recipe.name!r}", BuildError):
        packages = packages_of(models)
        sources = {task: models.source(task) for task in recipe.tasks if lists}
        hashes = hash_uris(uris) | hash_sources(recipe, sources)
    current = {replace_path(uri, names): digest for uri, digest in hashes.items()}
    if other := [name for name, digest in manifest.weights.items() if current.get(name) != digest]:
        raise BuildError(
            f"{layout.root} contains a finished dataset of other weights or lists ({other[0]}): "
            "choose another folder"
        )
    if packages != manifest.packages:
        raise BuildError(
            f"{layout.root} contains a finished dataset of other packages "
            f"({_difference_text(manifest.packages, packages)}): choose another folder"
        )


def _difference_text(there: Any, here: Any, most: int = 3) -> str:
    """Describe the first differences of two nested tables; "" if they are equal."""
    texts = [f"{k}: {_cut(a)} there, {_cut(b)} here" for k, a, b in _differences(there, here)]
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return "; ".join(texts[:most] + more)


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _differences(there: Any, here: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the path of each difference of two nested tables, and both values as texts."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in {**there, **here}:
            inner = f"{where}.{key}" if where else key
            yield from _differences(there.get(key, ABSENT), here.get(key, ABSENT), inner)
    elif there != here:
        first, second = ("given" if isinstance(v, Mapping) else str(v) for v in (there, here))
        yield where, first, second


def _as_json(value: Any) -> Any:
    """Return a value as it reads back from JSON, with lists instead of tuples."""
    return json.loads(json.dumps(value))


def _read_plan(layout: Layout) -> dict[str, Any] | None:
    """Return the recorded plan of an unfinished build, or None if it has been removed.

    It is not parsed as a recipe, since the folder is untrusted and a recipe names code.
    """
    path = layout.work / PLAN
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(data[part], dict) for part in PARTS) or "name" not in data["recipe"]:
            raise ValueError("a part is missing")
        return data | {"tier": data["tier"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"{path} is not a readable build plan ({error}): delete {layout.root}"
        ) from None


def open_workspace(plan: Plan, root: Path, *, accept_versions: bool = False) -> Plan:
    """Record the plan in the folder, or check that it equals the recorded one.

    Args:
        plan: Plan of this machine's software and weights.
        root: The folder, locked by this process.
        accept_versions: Resume even if the build was started with other versions of the software.
            Both versions are then recorded.

    Returns:
        `plan`, with the fitted values of the recipe and the versions of all software used so far.

    Raises:
        BuildError: If the build was started with other weights or packages, or, without
            `accept_versions`, with other software.
    """
    layout = Layout(root)
    path = layout.work / PLAN
    remove_partials(root)
    recorded = None if _untouched(layout) else _read_plan(layout)
    if recorded is None:
        write_text(path, plan.to_json())
        return plan
    _check_equal("weights or lists", root, recorded["weights"], plan.weights, "")
    # The recorded recipe may have fitted ranges and levels, which the given one leaves open.
    recipe = Recipe.from_dict(plan.recipe.fitted_as(recorded["recipe"]))
    plan = replace(plan, recipe=recipe)
    both = recorded["packages"], plan.packages
    before, now = ({n: p["sha256"] for n, p in packages.items()} for packages in both)
    _check_equal("packages", root, before, now, "")
    current, versions = plan.versions, joined_versions(recorded["versions"], plan.versions)
    plan = replace(plan, versions=versions)
    if versions != recorded["versions"]:
        if not accept_versions:
            last = {name: text.rpartition(_THEN)[2] for name, text in recorded["versions"].items()}
            more = ", accept mixed versions with --allow-version-mismatch"
            _check_equal("software", root, last, current, more)
        write_text(path, plan.to_json())
    return plan


def _check_equal(
    what: str, root: Path, earlier: Mapping[str, str], current: Mapping[str, str], more: str
) -> None:
    """Raise an error that names the first difference, if there is one."""
    for name, old, new in sorted(_differences(earlier, current)):
        raise BuildError(
            f"{root} was begun with different {what} ({name}: {old}, now {new}), so it would not "
            f"give the same bytes: restore them{more}, or choose another folder"
        )


def joined_versions(earlier: Mapping[str, str], current: Mapping[str, str]) -> dict[str, str]:
    """Merge versions; where they differ, both are joined into one text, the earlier one first."""
    joined = {}
    for name in sorted({*earlier, *current}):
        old, new = earlier.get(name, ABSENT), current.get(name, ABSENT)
        joined[name] = old if new in (old, old.rpartition(_THEN)[2]) else f"{old}{_THEN}{new}"
    return joined


def remove_work(root: Path) -> None:
    """Remove the build's own files, the plan last, so that being killed here does no harm."""
    work = Layout(root).work
    for path in sorted(work.iterdir()):
        if path.name in (PLAN, LOCK):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (work / PLAN).unlink(missing_ok=True)
