"""What a card says beside figures: of a built dataset, of an imported release, of any other."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from cfqa_data.format.facts import Terms
from cfqa_data.format.manifest import Manifest

__all__ = ["RELEASE", "collected", "hub_facts", "meanings", "plain", "wording"]

RELEASE = "cfqa-release"
"""Name of a dataset that holds the published release."""

LICENCES = {
    "cc-by-4.0": "CC BY 4.0",
    "cc0-1.0": "CC0 1.0",
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
}
"""Names of licences in words, by a hub's identifiers."""


def wording(manifest: Manifest) -> dict[str, str]:
    """Return the texts of a dataset's card, by their names in its template."""
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
    """Return what columns hold whose meaning is another in a dataset of any tasks and codecs."""
    return dict(_texts()["columns"])


def hub_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what a hub finds a dataset by, in its own words."""
    hub = _texts()["hub"]
    found = [hub["tasks"].get(entry.facts.title, {}) for entry in manifest.tasks.values()]
    codecs = dict.fromkeys(codec for entry in manifest.tasks.values() for codec in entry.codecs)
    sources = [about["dataset"] for about in _sources(manifest).values() if about["dataset"]]
    facts = {
        "pretty_name": hub["names"].get(manifest.name, f"CFQA {manifest.name}"),
        "task_categories": [
            *dict.fromkeys(about["category"] for about in found if about),
            "image-feature-extraction" if any(found) else "other",
        ],
        "task_ids": [about["id"] for about in found if "id" in about],
        "annotations_creators": ["machine-generated"],
        "source_datasets": list(dict.fromkeys(sources)),
        "tags": [*hub["tags"], *codecs],
    }
    return {name: value for name, value in facts.items() if value}


def collected(manifest: Manifest) -> tuple[str, str]:
    """Return where the inputs of each task come from, and what they say of persons."""
    kinds = _sources(manifest)
    tasks: dict[str, list[str]] = {}
    for task, about in kinds.items():
        tasks.setdefault(about["inputs"], []).append(f"`{task}`")
    inputs = [f"- {', '.join(of)}: {what}." for what, of in tasks.items()]
    persons = dict.fromkeys(about["persons"] for about in kinds.values())
    return "\n".join(inputs), " ".join(persons)


def plain(text: str) -> str:
    """Return a text of others with what Markdown would take for its own escaped."""
    return text.translate({ord(letter): f"\\{letter}" for letter in "\\`*_[]<>"})


def _sources(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return what is known of each task's source, by its kind in the recipe."""
    known, tasks = _texts()["sources"], manifest.recipe.get("tasks")
    found = {}
    for task in manifest.tasks:
        spec = tasks.get(task) if isinstance(tasks, Mapping) else None
        source = spec.get("source") if isinstance(spec, Mapping) else None
        kind = source.get("kind") if isinstance(source, Mapping) else None
        found[task] = dict(known.get(kind, known["unknown"]))
    return found


def _texts() -> dict[str, Any]:
    text = resources.files("cfqa_data.card").joinpath("wording.toml").read_text("utf-8")
    return tomllib.loads(text)


def _licence(manifest: Manifest) -> dict[str, str]:
    """Return the licence of a dataset, as a hub's identifier and in words.

    The identifier is that of all tasks' sources, and "other", with a name and a link, where they
    have several, or one that no hub knows, or where one does not say.
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
    named = {"license_name": name, "license_link": link or "README.md"}
    return {"license": "other", **named, "licence": lead + text}


def _terms(terms: Terms | None) -> str:
    """Return the terms of a task's source in words."""
    if terms is None:
        return "nothing is stated"
    may = [
        f"{what} may {'' if given else 'not '}be redistributed"
        for what, given in (("inputs", terms.inputs), ("truths", terms.truths))
    ]
    return "; ".join(filter(None, [terms.licence, terms.link, terms.attribution, *may]))
