"""An edition: what of a dataset folder goes to a hub, with the card and manifest that say so."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

from cfqa_data.access.dataset import load
from cfqa_data.console.text import size_text
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.layout import Layout
from cfqa_data.format.limits import LARGEST_TEXT, read_limited
from cfqa_data.format.manifest import TIERS, Manifest, manifest_text
from cfqa_data.recipe.load import list_recipes, load_recipe

__all__ = ["CARD", "HEADING", "MANIFEST", "Edition", "make_edition"]

CARD, MANIFEST = "README.md", "manifest.json"

HEADING = "## On the Hub"

SECTION = Template("""$heading

```python
from datasets import load_dataset

labels = load_dataset("$repo", "$task", revision="$tag")["test"]
```

```python
import cfqa_data

pairs = cfqa_data.load("$repo", "$task", revision="$tag")
```

This is `$name` in the $tier tier: $files files, $size. The tag
`$tag` stays with these bytes when the dataset is published anew;
`manifest.json` has the size and SHA-256 of every file.

**To make it again:** $again

**To cite it:** name this repository and the tag, and the paper that poses the benchmark: Gao et
al., "Compressed Feature Quality Assessment: Dataset and Baselines", ACM MM 2025, arXiv 2506.07412.

""")

BUILT_IN = (
    "`cfqa build {name} --out cfqa{tier}`, with cfqa-data {version}. The versions of programs\n"
    "in the manifest give the same bytes."
)
OTHER = (
    "the whole recipe is in `manifest.json`, with the versions of the programs that its bytes\n"
    "depend on."
)

COUNTS = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
"""Rows, up to which a hub calls a dataset's size so."""


@dataclass(frozen=True)
class Edition:
    """What goes to a hub.

    Attributes:
        root: the folder that the files are in, all but card and manifest.
        manifest: the manifest of what goes there.
        card: text of the card.
        tag: name of this version.
    """

    root: Path
    manifest: Manifest
    card: str
    tag: str

    @cached_property
    def texts(self) -> dict[str, bytes]:
        """The files that are not taken from the folder: card and manifest."""
        return {CARD: self.card.encode(), MANIFEST: manifest_text(self.manifest).encode()}

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Path -> {"size": bytes, "sha256": hex} of all files, card and manifest among them."""
        entry = _entry(self.texts[MANIFEST])
        return {path: dict(e) for path, e in self.manifest.files.items()} | {MANIFEST: entry}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry["size"] for entry in self.files.values())


def make_edition(
    root: Path,
    manifest: Manifest,
    repo: str,
    tier: str | None = None,
    tag: str | None = None,
    *,
    follow_links: bool = False,
) -> Edition:
    """Return what of a folder goes to a hub.

    Args:
        root: a dataset folder that holds what its manifest says.
        manifest: its manifest.
        repo: the repo's "org/name", for the card.
        tier: "light" or "full"; the folder's own if None.
        tag: name of this version; one made of its content if None.
        follow_links: read what links lead to, wherever that is.

    Raises:
        CfqaError: the folder cannot be given in that tier.
        FormatError: the card is not one that a hub reads, or a table is missing or damaged.
    """
    tier = tier or manifest.tier
    if TIERS.index(tier) > TIERS.index(manifest.tier):
        raise CfqaError(f"{root}: is of the {manifest.tier} tier; a {tier} one has to be built")
    rows = load(root, follow_links=follow_links).labels
    text = _own_card(root, manifest)
    files = {path: entry for path, entry in manifest.files.items() if path != CARD}
    if tier != manifest.tier:
        if not all(rows["bits"].to_pylist()):
            raise CfqaError(
                f"{root}: not every compressed feature has its bitstream, so there is no light "
                "tier of it; publish the full one"
            )
        files = {path: entry for path, entry in files.items() if not _is_code(path)}
        text = _light_card(text)
    manifest = replace(manifest, tier=tier, files=files)
    tag = tag or _tag(manifest)
    size = sum(entry["size"] for entry in files.values())
    text = _with_section(
        _with_count(text, rows.num_rows),
        SECTION.substitute(
            heading=HEADING,
            repo=repo,
            task=next(iter(manifest.tasks)),
            tag=tag,
            name=manifest.name,
            tier=tier,
            files=f"{len(files) + 2:,}",
            size=size_text(size),
            again=_again(manifest),
        ),
    )
    _check_configs(root, text, files)
    files = dict(sorted((files | {CARD: _entry(text.encode())}).items()))
    return Edition(Path(root), replace(manifest, files=files), text, tag)


def _entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _is_code(path: str) -> bool:
    return path.startswith("compressed/")


def _tag(manifest: Manifest) -> str:
    """Return a name that is the same for the same content, whatever its card says."""
    text = json.dumps(manifest.to_dict(), sort_keys=True)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", manifest.name).strip("-.") or "cfqa"
    return f"{name}-{manifest.tier}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _own_card(root: Path, manifest: Manifest) -> str:
    """Return the folder's card without what an earlier publishing added."""
    path = Layout(root).card
    if CARD not in manifest.files:
        raise FormatError(f"{path}: missing from the manifest; build or fetch the dataset again")
    try:
        text = read_limited(path, LARGEST_TEXT).decode("utf-8")
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from None
    if not re.match(r"---\n.*?\n---\n", text, re.S):
        raise FormatError(f"{path}: does not begin with YAML between two lines of ---")
    text = re.sub(r"^size_categories:\n(- .*\n)+", "", text, count=1, flags=re.M)
    return re.sub(rf"^{HEADING}\n.*?(?=^## )", "", text, count=1, flags=re.M | re.S)


def _light_card(text: str) -> str:
    """Return the card of a full folder as that of a light one."""
    text = text.replace("\n## The folder (full tier)\n", "\n## The folder (light tier)\n")
    return re.sub(r"^\| `compressed/` \|.*\n", "", text, flags=re.M)


def _with_count(text: str, rows: int) -> str:
    """Return the card with the number of rows, as a hub sorts datasets, in its head."""
    category = next((name for most, name in COUNTS.items() if rows < most), "1M<n<10M")
    head, rest = text.split("\n---\n", 1)
    return f'{head}\nsize_categories:\n- "{category}"\n---\n{rest}'


def _with_section(text: str, section: str) -> str:
    """Return the card with a section before that on its use, or else at its end."""
    before, use, after = text.partition("\n## Use\n")
    if not use:
        return f"{text.rstrip()}\n\n{section}"
    return f"{before}\n{section}{use.lstrip()}{after}"


def _again(manifest: Manifest) -> str:
    """Return how the dataset is made again, where a recipe of this package makes it."""
    if manifest.name in list_recipes() and load_recipe(manifest.name).to_dict() == manifest.recipe:
        tier = "" if manifest.tier == "full" else f" --tier {manifest.tier}"
        version = manifest.versions.get("cfqa-data", "")
        return BUILT_IN.format(name=manifest.name, tier=tier, version=version)
    return OTHER


def _check_configs(root: Path, text: str, files: Mapping[str, Any]) -> None:
    """See that every file that the card's head names is there; one that is not breaks them all."""
    import yaml

    where = Layout(root).card
    try:
        text = text.split("\n---\n", 1)[0].removeprefix("---\n")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError  # a list of lists of one list, told in a few bytes, never ends
        head = yaml.safe_load(text)
        paths = [
            str(path)
            for config in head["configs"]
            for split in config["data_files"]
            for path in split["path"]
        ]
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise FormatError(
            f"{where}: its head does not say which files load_dataset reads"
        ) from None
    if missing := [path for path in paths if path not in files]:
        raise FormatError(f"{where}: its head names {missing[0]}, which is not in the dataset")
