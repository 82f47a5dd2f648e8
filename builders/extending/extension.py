"""Extend a finished dataset by a codec: same originals, truths and labels, and additional rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.access.hub import open_files
from cfqa_data.builders.extending.stages import STAGES
from cfqa_data.builders.pipeline.build import run_stages
from cfqa_data.builders.pipeline.check import hash_uris, packages_of, versions_of
from cfqa_data.builders.pipeline.coding import code
from cfqa_data.builders.pipeline.context import Models, codec_for
from cfqa_data.builders.pipeline.fit import candidate_levels, check_fit
from cfqa_data.builders.pipeline.label import scoring_recipe, scoring_weights
from cfqa_data.builders.pipeline.plan import PLAN, Plan
from cfqa_data.builders.pipeline.prepare import is_fitted
from cfqa_data.builders.pipeline.workspace import joined_versions, status
from cfqa_data.codecs import find_codec
from cfqa_data.console.progress import Progress
from cfqa_data.console.terminal import listener
from cfqa_data.errors import BuildError, CfqaError, check_known, clear_disk_errors, prefixed
from cfqa_data.extras import extras
from cfqa_data.format.layout import Layout
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.format.manifest import hash_file, package_versions
from cfqa_data.format.quantizers import Quantizer, quantizer_from_dict
from cfqa_data.format.storage import check_folder
from cfqa_data.guard import check_guard
from cfqa_data.integrity.verify import verify
from cfqa_data.paths import real_path
from cfqa_data.processes.executor import Executor
from cfqa_data.recipe.fitted import AutoLevels, FittedRange
from cfqa_data.recipe.load import CodecSpec, Recipe
from cfqa_data.registry import naming_user_code
from cfqa_data.scalars import python_value

__all__ = ["extend"]

EXTENDED = "extended dataset"
"""Key among a manifest's versions that names the extended manifest and the new codecs."""


@extras("build")
def extend(
    dataset: str | Path,
    codec: str,
    levels: Sequence[float] | str | Mapping[str, int],
    *,
    out: str | Path,
    name: str | None = None,
    tasks: Iterable[str] | None = None,
    quantizer: Mapping[str, Any] | Quantizer | None = None,
    models: str | None = None,
    options: Mapping[str, Any] | None = None,
    plugins: Iterable[str] = (),
    workers: int = 2,
    accept_versions: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Create a dataset with the originals, truths and labels of another, and one more codec.

    Existing files are hard-linked (or copied, if the file system has no links) and not computed
    again. New rows are labelled by the same heads. An interrupted extension is resumed.

    Args:
        dataset: A folder that `cfqa build` created.
        codec: Name of a built-in or installed codec, or `module:Class`.
        levels: The codec's parameter at each level, best first. "auto", or {"auto": 6} with the
            number of levels, searches for them on training samples, as a build does.
        out: Output folder: new, empty, or with a started or finished run of this extension.
        name: Name of the codec in the dataset; that of its class if None.
        tasks: Tasks to which the codec is added; all if None.
        quantizer: Quantiser of a codec on planes, as in a recipe; its range may be fitted. If None,
            that of the task's first codec on planes.
        models: Weights of a learned codec, as in a recipe.
        options: Keyword arguments of the codec's class.
        plugins: `module:Class` of classes that the dataset uses and that are not installed.
        workers: Number of processes on this machine.
        accept_versions: Resume an extension that was started with other versions of the software.
        progress: Display of stages and finished items; bars on a terminal if None.

    Returns:
        The absolute path of the output folder.

    Raises:
        CfqaError: If there is no such codec or task, or a level or option is invalid.
        FormatError: If the dataset is damaged, or something it was built with is missing.
        BuildError: If the dataset has no recipe, or cannot be extended here; finished items are
            kept.
        DiskError: If the disk is full or not writable.
    """
    check_guard()
    files = open_files(dataset, None, False, False)
    if not isinstance(files, LocalFiles):
        raise CfqaError(f"{dataset}: a dataset on the Hub cannot be extended; download it first")
    folder, root = Folder(files, plugins=tuple(plugins)), real_path(out)
    if root == files.root or root.is_relative_to(files.root):
        raise CfqaError(f"{out} is the dataset itself, or lies in it: choose another folder")
    if damage := verify(files.root).damage:
        fault = damage[0]
        raise BuildError(f"{dataset}: {fault.path} {fault.what}: repair the dataset first")
    spec = partial(_codec_spec, folder, codec, levels, name, quantizer, models, dict(options or {}))
    chosen = [tasks] if isinstance(tasks, str) else list(tasks or folder.manifest.tasks)
    recipe = _recipe(folder, chosen, spec)
    with clear_disk_errors(f"extending {folder.manifest.name!r}"):
        check_folder(root)
        plan = _plan(folder, recipe)
        _check_origin(root, plan)
        if status(recipe, root, tier=plan.tier) == "new":
            _rehearse(folder, recipe)
        stages = [partial(stage, dataset=files) for stage in STAGES]
        with Executor(workers) as executor, listener(progress) as shown:
            run_stages(stages, plan, root, executor, shown, accept_versions)
    return root


def _codec_spec(
    folder: Folder,
    codec: str,
    levels: Sequence[float] | str | Mapping[str, int],
    name: str | None,
    quantizer: Mapping[str, Any] | Quantizer | None,
    models: str | None,
    options: dict[str, Any],
    task: str,
) -> CodecSpec:
    """Return the specification of the new codec for a task."""
    registered = find_codec(codec, classes=True)
    facts, entry = registered.target.facts(), folder.manifest.tasks[task]
    name = name or facts.name
    if name in entry.codecs:
        raise CfqaError(
            f"{folder.files.location}: {task} already has a codec {name!r}; give another name"
        )
    if isinstance(quantizer, Mapping):
        table = dict(quantizer)
        fit = FittedRange.describes(table)
        quantizer = FittedRange.from_dict(table) if fit else quantizer_from_dict(table)
    if quantizer is None and facts.on == "planes":
        quantizer = next((c.quantizer for c in entry.codecs.values() if c.quantizer), None)
        if quantizer is None:
            raise CfqaError(f"{task}: none of its codecs has a quantiser to reuse; give one")
    kind = None if registered.builtin and name == codec else codec
    if isinstance(levels, Mapping) or (isinstance(levels, str) and levels == "auto"):
        return CodecSpec(name, AutoLevels.from_dict(levels), quantizer, models, options, kind)
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise CfqaError(f'levels must be several numbers, or "auto", not {levels!r:.80}')
    numbers = tuple(map(python_value, levels))
    return CodecSpec(name, numbers, quantizer, models, options, kind)


def _recipe(folder: Folder, tasks: list[str], spec: Any) -> Recipe:
    """Return the dataset's recipe with the new codec and with local paths of scoring weights."""
    where, manifest = folder.files.location, folder.manifest
    for task in tasks:
        check_known("task", task, manifest.tasks, CfqaError, where)
    added = {task: spec(task=task) for task in tasks}
    with prefixed(f"{where}: cannot be extended", BuildError):
        old = scoring_recipe(folder)
        paths: dict[str, str] = {}
        for task in manifest.tasks:
            with nullcontext() if task in tasks else suppress(CfqaError, OSError):
                paths |= scoring_weights(folder, old, task)
    old = old.without_programs().with_paths(lambda uri: paths.get(uri, uri))
    (codec,) = {codec_spec.codec for codec_spec in added.values()}
    tasks_with = {
        task: replace(task_spec, codecs={**task_spec.codecs, codec: added[task]})
        if task in added
        else task_spec
        for task, task_spec in old.tasks.items()
    }
    # Parsing makes paths of the new codec absolute, and puts tasks and codecs in order.
    recipe = replace(old, name=f"{old.name}-{codec}", tasks=tasks_with)
    return Recipe.from_dict(recipe.to_dict())


def _plan(folder: Folder, recipe: Recipe) -> Plan:
    """Return the plan of an extension: software and weights of the dataset and of the codec."""
    manifest, models = folder.manifest, Models(recipe)
    versions, uris, added = package_versions(), {recipe.backbone.weights}, set[str]()
    for task, spec in recipe.tasks.items():
        known = manifest.tasks[task].codecs
        for codec in spec.codecs.keys() - known.keys():
            models.task(task)
            added.add(codec)
            versions |= versions_of(spec.codecs[codec])
            uris |= {spec.head, *spec.codecs[codec].weights}
    packages = packages_of(models)
    for package, old in manifest.packages.items():
        if packages.get(package, old)["sha256"] != old["sha256"]:
            raise BuildError(
                f"{folder.files.location}: the source of {package} has changed since it was built: "
                f"install version {old['version'] or '?'}"
            )
    path = folder.files.path("manifest.json")
    assert path is not None  # it is a local folder
    digest = hash_file(path)
    origin = f"{manifest.name} (manifest.json of SHA-256 {digest}) by {', '.join(sorted(added))}"
    if earlier := manifest.versions.get(EXTENDED):
        origin = f"{earlier}; {origin}"
    joined = joined_versions({**versions, **manifest.versions}, {**manifest.versions, **versions})
    return Plan(
        recipe,
        manifest.tier,
        joined | {EXTENDED: origin},
        {**manifest.weights, **hash_uris(filter(None, uris))},
        {**manifest.packages, **packages},
    )


def _check_origin(root: Path, plan: Plan) -> None:
    """Check that a started or finished extension in a folder is of the same dataset."""
    layout = Layout(root)
    for path in (layout.manifest, layout.work / PLAN):
        origin = None
        # The build reports errors in these files.
        with suppress(CfqaError, OSError, ValueError, TypeError, KeyError):
            origin = parse_json(read_limited(path, LARGEST_JSON))["versions"][EXTENDED]
        if origin not in (None, plan.versions[EXTENDED]):
            raise BuildError(
                f"{root} contains an extension of another dataset ({origin}): choose another folder"
            )


def _rehearse(folder: Folder, recipe: Recipe) -> None:
    """Compress one original of each task with the new codec, at its best and its worst level.

    Raises:
        CfqaError: If the codec fails, decodes to an invalid feature, or needs images that are
            missing.
    """
    models = Models(recipe)
    for task, task_spec in recipe.tasks.items():
        entry = folder.manifest.tasks[task]
        check_fit(models, task)
        for spec in (task_spec.codecs[name] for name in task_spec.codecs.keys() - entry.codecs):
            codec, name = codec_for(spec), entry.sources[0]
            if is_fitted(codec):  # it cannot be tried before it is fitted, which needs the images
                models.source(task)
                continue
            if isinstance(spec.quantizer, FittedRange):  # check_fit has checked its training inputs
                continue
            levels = candidate_levels(spec)
            on_inputs = spec.facts.on == "inputs"
            inputs = [models.source(task).sample(name).inputs] if on_inputs else []
            ends = replace(spec, levels=tuple(dict.fromkeys((levels[0], levels[-1]))))
            extract = partial(models.features, task, what="the feature of a decoded input")
            original = [folder.original(name)]
            with naming_user_code(BuildError):
                code(ends, codec, [name], original, inputs, extract, rehearse=True)
