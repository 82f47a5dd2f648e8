"""Texts of a card that depend on the kind of dataset: built, imported from a release, or other."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from cfqa_data.format.facts import Terms
from cfqa_data.format.manifest import Manifest

__all__ = ["RELEASE", "collected", "hub_facts", "meanings", "plain", "wording"]

RELEASE = "cfqa-release"
"""Name of the dataset of the published release."""

LICENCES = {
    "cc-by-4.0": "CC BY 4.0",
    "cc0-1.0": "CC0 1.0",
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
}
"""Identifier of a licence on the Hub -> its name."""


def wording(manifest: Manifest) -> dict[str, str]:
    """Return the texts of a card: placeholder in the template -> text."""
    texts = _texts()
    texts["benchmark"] |= texts["any"] | {"pretty_name": plain(hub_facts(manifest)["pretty_name"])}
    texts["other"] = texts["benchmark"] | texts["other"]
    if manifest.format == 1:
        if manifest.name == RELEASE:
            return texts["benchmark"] | texts["released"]
        return texts["benchmark"] | texts["built"] | _licence(manifest)
    task, entry = next(iter(manifest.tasks.items()))
    some = {"one_task": task, "some_task": task, "some_codec": next(iter(entry.codecs))}
    return texts["other"] | some | _licence(manifest)


def meanings() -> dict[str, str]:
    """Return the descriptions of columns whose meaning is more general in format 2."""
    return dict(_texts()["columns"])


def hub_facts(manifest: Manifest) -> dict[str, Any]:
    """Return the Hub's metadata of a dataset, in the Hub's vocabulary."""
    hub = _texts()["hub"]
    known = [hub["tasks"].get(entry.facts.title, {}) for entry in manifest.tasks.values()]
    codecs = dict.fromkeys(codec for entry in manifest.tasks.values() for codec in entry.codecs)
    sources = [about["dataset"] for about in _sources(manifest).values() if about["dataset"]]
    facts = {
        "pretty_name": hub["names"].get(manifest.name, f"CFQA {manifest.name}"),
        "task_categories": [
            *dict.fromkeys(about["category"] for about in known if about),
            "image-feature-extraction" if any(known) else "other",
        ],
        "task_ids": [about["id"] for about in known if "id" in about],
        "annotations_creators": ["machine-generated"],
        "source_datasets": list(dict.fromkeys(sources)),
        "tags": [*hub["tags"], *codecs],
    }
    return {name: value for name, value in facts.items() if value}


def collected(manifest: Manifest) -> tuple[str, str]:
    """Return the origin of each task's inputs, and whether they show persons, as text."""
    kinds = _sources(manifest)
    tasks: dict[str, list[str]] = {}
    for task, about in kinds.items():
        tasks.setdefault(about["inputs"], []).append(f"`{task}`")
    inputs = [f"- {', '.join(of)}: {what}." for what, of in tasks.items()]
    persons = dict.fromkeys(about["persons"] for about in kinds.values())
    return "\n".join(inputs), " ".join(persons)


def plain(text: str) -> str:
    """Escape the special characters of Markdown in a text."""
    return text.translate({ord(letter): f"\\{letter}" for letter in "\\`*_[]<>"})


def _sources(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return the texts on each task's source, by the kind of source in the recipe."""
    known, tasks = _texts()["sources"], manifest.recipe.get("tasks")
    texts = {}
    for task in manifest.tasks:
        spec = tasks.get(task) if isinstance(tasks, Mapping) else None
        source = spec.get("source") if isinstance(spec, Mapping) else None
        kind = source.get("kind") if isinstance(source, Mapping) else None
        texts[task] = dict(known.get(kind, known["unknown"]))
    return texts


def _texts() -> dict[str, Any]:
    text = resources.files("cfqa_data.card").joinpath("wording.toml").read_text("utf-8")
    return tomllib.loads(text)


def _licence(manifest: Manifest) -> dict[str, str]:
    """Return the licence of a dataset: metadata for the Hub, and a text.

    The identifier is "other", with a name and a link, if the sources of the tasks have different
    licences, a licence unknown to the Hub, or no stated licence.
    """
    terms = {name: entry.terms for name, entry in manifest.tasks.items()}
    first, *others = dict.fromkeys(terms.values())
    if first and not others and first.inputs and first.truths and first.licence != "other":
        name = LICENCES.get(first.licence, f"`{first.licence}`")
        by = f"; credit {first.attribution}" if first.attribution else ""
        return {"license": first.licence, "licence": f"The data is licensed under {name}{by}."}
    text = "\n".join(f"- `{name}`: {_terms(terms[name])}." for name in terms)
    lead = "The features are made from these sources, on whose terms they may be used:\n\n"
    one = first.licence if first and not others else "other"
    if one != "other":
        return {"license": one, "licence": lead + text}
    if first and not others:
        name, link = first.attribution or "terms of the sources", first.link
    else:
        name, link = "terms of each source" if all(terms.values()) else "not stated", ""
    other = {"license_name": name, "license_link": link or "README.md"}
    return {"license": "other", **other, "licence": lead + text}


def _terms(terms: Terms | None) -> str:
    """Return the terms of a task's source as text."""
    if terms is None:
        return "nothing is stated"
    permissions = [
        f"{what} may {'' if allowed else 'not '}be redistributed"
        for what, allowed in (("inputs", terms.inputs), ("truths", terms.truths))
    ]
    return "; ".join(filter(None, [terms.licence, terms.link, terms.attribution, *permissions]))
