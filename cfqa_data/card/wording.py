"""What a card says beside figures: of a built dataset, of an imported release, of any other."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from cfqa_data.format.manifest import Manifest

__all__ = ["RELEASE", "meanings", "wording"]

RELEASE = "cfqa-release"
"""Name of a dataset that holds the published release."""


def wording(manifest: Manifest) -> dict[str, str]:
    """Return the texts of a dataset's card, by their names in its template."""
    texts = _texts()
    if manifest.format == 1:
        kind = "released" if manifest.name == RELEASE else "built"
        return texts["benchmark"] | texts[kind]
    task, entry = next(iter(manifest.tasks.items()))
    some = {"one_task": task, "some_task": task, "some_codec": next(iter(entry.codecs))}
    licences = {entry.terms.licence if entry.terms else "" for entry in manifest.tasks.values()}
    licence = licences.pop() if len(licences) == 1 else "other"
    terms = {"license": licence or "unknown", "licence": _terms(manifest)}
    return texts["other"] | some | terms


def meanings() -> dict[str, str]:
    """Return what columns hold whose meaning is another in a dataset of any tasks and codecs."""
    return dict(_texts()["columns"])


def _texts() -> dict[str, Any]:
    text = resources.files("cfqa_data.card").joinpath("wording.toml").read_text("utf-8")
    return tomllib.loads(text)


def _terms(manifest: Manifest) -> str:
    """Return on what terms the inputs and truths of each task may be used."""
    lines = []
    for name, entry in manifest.tasks.items():
        terms = entry.terms
        if terms is None:
            lines.append(f"- `{name}`: nothing is stated.")
            continue
        parts = [terms.licence, terms.link, terms.attribution]
        for what, given in (("inputs", terms.inputs), ("truths", terms.truths)):
            parts.append(f"{what} may {'' if given else 'not '}be given on")
        lines.append(f"- `{name}`: {'; '.join(filter(None, parts))}.")
    return "\n".join(lines)
