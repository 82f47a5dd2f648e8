"""Constants of format 1: facts of its tasks, codecs and sources, and reading its recipe.

A manifest of format 1 only names tasks, codecs and sources, and readers take their facts from here;
a manifest of format 2 contains them. The built-in tasks and sources use these facts, and a test
compares those of the built-in codecs. A folder with other facts has format 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from cfqa_data.errors import CfqaError, FormatError, prefixed
from cfqa_data.format.facts import (
    CodecEntry,
    CodecFacts,
    Layer,
    Loss,
    Origin,
    Parameter,
    Score,
    TaskEntry,
    TaskFacts,
    Terms,
    Truth,
)
from cfqa_data.format.fields import check_keys
from cfqa_data.format.quantizers import quantizer_from_dict

__all__ = ["CODECS", "LEVELS", "TASKS", "TERMS", "can_represent", "read_tasks"]

LEVELS = 10
"""Levels of every codec."""

TASKS: Mapping[str, TaskFacts] = MappingProxyType(
    {
        "cls": TaskFacts(
            name="cls",
            title="image classification",
            score=Score("rank", lower_better=True, noticeable=1.0),
            loss=Loss("negative log-likelihood", noticeable=0.5),
            truth=Truth("int64", 0),
        ),
        "seg": TaskFacts(
            name="seg",
            title="semantic segmentation",
            score=Score("mIoU", lower_better=False, noticeable=0.02),
            loss=Loss("cross-entropy", noticeable=0.1),
            truth=Truth("uint8", 2),
        ),
        "dpt": TaskFacts(
            name="dpt",
            title="depth estimation",
            score=Score("RMSE", lower_better=True, unit="m", noticeable=0.05),
            loss=Loss("absolute relative error", noticeable=0.02),
            truth=Truth("uint16", 2),
        ),
    }
)
"""The tasks by name, in the order of all tables."""

TERMS: Mapping[str, Terms] = MappingProxyType(
    {
        "scenes": Terms(
            "cc-by-4.0", "https://creativecommons.org/licenses/by/4.0/", inputs=True, truths=True
        ),
        "imagenet": Terms("other", "https://image-net.org/download.php", "ILSVRC 2012"),
        "voc2012": Terms(
            "other", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/", "PASCAL VOC 2012, Flickr"
        ),
        "nyuv2": Terms(
            "other", "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html", "NYU Depth V2"
        ),
    }
)
"""Terms of the sources by kind; the terms of other kinds are unknown."""

LAYERS = {"cls": 1, "seg": 1, "dpt": 4}
VIEWS = {"cls": ("image",), "seg": ("first window", "last window"), "dpt": ("image", "mirrored")}


def _video(name: str, title: str, highest: int) -> CodecFacts:
    qp = Parameter("qp", better="lower", whole=True, lowest=0, highest=highest)
    return CodecFacts(name, title, "planes", qp)


def _learned(name: str, title: str) -> CodecFacts:
    return CodecFacts(name, title, "planes", Parameter("lambda", better="higher", lowest=0.0))


CODECS: Mapping[str, CodecFacts] = MappingProxyType(
    {
        facts.name: facts
        for facts in (
            _video("x265", "HEVC intra by x265", 51),
            _video("vvenc", "VVC intra by VVenC", 63),
            _video("hm", "HEVC intra by the reference encoder HM", 51),
            _video("vtm", "VVC intra by the reference encoder VTM", 63),
            _learned("hyperprior_multi_task", "scale hyperprior, one ladder for all tasks"),
            _learned("hyperprior_task_specific", "scale hyperprior, a ladder for each task"),
        )
    }
)
"""The codecs by name, in the order of all tables."""


def can_represent(recipe: Mapping[str, Any], tasks: Mapping[str, TaskEntry]) -> bool:
    """Return whether a manifest of format 1 with this recipe would give these task entries.

    Entries are compared without the facts that format 1 does not store: the origins of codecs, the
    names of views and layers, the grid and the terms.
    """
    entries = {
        name: {"shape": list(entry.shape), "sources": list(entry.sources)}
        for name, entry in tasks.items()
    }
    try:
        parsed = read_tasks(recipe, entries)
    except CfqaError:
        return False
    return list(parsed) == list(tasks) and all(
        list(entry.codecs) == list(tasks[name].codecs) and _strip(entry) == _strip(tasks[name])
        for name, entry in parsed.items()
    )


def _strip(entry: TaskEntry) -> TaskEntry:
    """Return an entry without the facts that format 1 does not store."""
    codecs = {name: replace(codec, origin=None) for name, codec in entry.codecs.items()}
    fields: dict[str, Any] = {
        "grid": None,
        "layers": (),
        "views": (),
        "terms": None,
        "prefix_tokens": 0,
    }
    return replace(entry, codecs=codecs, **fields)


def read_tasks(recipe: object, tasks: object) -> dict[str, TaskEntry]:
    """Return the task entries of a manifest of format 1.

    Args:
        recipe: Recipe of the manifest.
        tasks: Table of tasks of the manifest: the shape and sources of each.

    Raises:
        FormatError: If a part is not valid in format 1.
    """
    keys = ("name", "summary", "sources_per_task", "group_size", "backbone", "tasks")
    table = check_keys("the recipe", recipe, keys)
    check_keys("recipe.backbone", table["backbone"], ("weights", "num_heads"), ("origin",))
    specs = check_keys("recipe.tasks", table["tasks"], (), TASKS)
    size = table["group_size"]
    if type(size) is not int or size < 1:
        raise FormatError(f"recipe: group_size must be a whole number of at least 1, got {size!r}")
    if not isinstance(tasks, Mapping):
        raise FormatError("tasks is not a table")
    if not tasks or set(tasks) != set(specs):
        raise FormatError("tasks are not the recipe's")
    return {name: _task(name, specs[name], tasks[name], size) for name in TASKS if name in specs}


def _task(name: str, spec: object, entry: Any, size: int) -> TaskEntry:
    where = f"recipe.tasks.{name}"
    task = check_keys(where, spec, ("source", "blocks", "head", "codecs"))
    check_keys(f"{where}.source", task["source"], ("kind", "seed"), ("options",))
    entry = entry if isinstance(entry, Mapping) else {}
    shape, sources, blocks = entry.get("shape"), entry.get("sources"), task["blocks"]
    if not isinstance(sources, list):
        raise FormatError(f"tasks.{name}.sources is not a list of ids")
    count = LAYERS[name]
    if (
        not isinstance(blocks, list)
        or len(blocks) != count
        or not all(type(block) is int and block >= 0 for block in blocks)
        or any(b <= a for a, b in pairwise(blocks))
    ):
        raise FormatError(f"{where}.blocks must be {count} rising number(s), got {blocks!r}")
    codecs = check_keys(f"{where}.codecs", task["codecs"], (), CODECS)
    views = VIEWS[name]
    return TaskEntry(
        facts=TASKS[name],
        shape=shape,
        sources=tuple(sources),
        codecs={c: _codec(where, c, codecs[c]) for c in CODECS if c in codecs},
        shard=size,
        prefix_tokens=1,
        layers=tuple(Layer(f"block {block}", "before") for block in blocks),
        views=views if isinstance(shape, list) and shape[:1] == [len(views)] else (),
        terms=TERMS.get(str(task["source"]["kind"])),
    )


def _codec(where: str, name: str, data: object) -> CodecEntry:
    facts = CODECS[name]
    where = f"{where}.codecs.{name}"
    required = ("parameter_name", "levels", "quantizer")
    spec = check_keys(where, data, required, ("models", "options"))
    if spec["parameter_name"] != facts.parameter.name:
        found = spec["parameter_name"]
        raise FormatError(f"{where}: parameter_name must be {facts.parameter.name}, got {found!r}")
    levels = spec["levels"]
    if not isinstance(levels, list) or len(levels) != LEVELS:
        raise FormatError(f"{where}: needs {LEVELS} levels, got {levels!r}")
    if facts.parameter.name == "lambda" and 0 in levels:
        raise FormatError(f"{where}: a lambda is a number above 0, got 0")
    options = spec.get("options", {})
    if not isinstance(options, Mapping):
        raise FormatError(f"{where}.options is not a table")
    models = spec.get("models")
    if models is None and (name == "hyperprior_multi_task" or "task" in options):
        task = f"-{options['task']}" if "task" in options else ""
        models = f"package://cfqa_data.codecs/weights/{name}{task}.safetensors"
    options = {**options, "models": models} if models else dict(options)
    with prefixed(where, FormatError):
        quantizer = quantizer_from_dict(spec["quantizer"])
    return CodecEntry(facts, tuple(levels), quantizer, origin=Origin(name, options))
