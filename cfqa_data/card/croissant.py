"""Write the Croissant description of a dataset: its files, and the meaning of their columns.

Croissant is a schema.org vocabulary for machine learning datasets
(https://docs.mlcommons.org/croissant/docs/croissant-spec.html). Catalogues and search engines read
it, and `mlcroissant` loads tables through it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cfqa_data.arrow import pa
from cfqa_data.card.wording import meanings
from cfqa_data.format.layout import NAMES
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.previews import ANSWERS, column_meaning
from cfqa_data.format.schema import LABEL_COLUMNS, NEW_COLUMNS, ORIGINAL_COLUMNS

__all__ = ["CROISSANT", "croissant_text"]

CROISSANT = "croissant.json"

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""JSON-LD context that the specification requires."""

TYPES = {"string": "sc:Text", "float": "cr:Float32", "double": "cr:Float64", "bool": "sc:Boolean"}
"""Arrow type -> Croissant type; integer types are `cr:Int8` and so on."""

PAPER = (
    'Gao et al., "Compressed Feature Quality Assessment: Dataset and Baselines", ACM MM 2025, '
    "https://arxiv.org/abs/2506.07412"
)


def croissant_text(
    manifest: Manifest,
    labels: Mapping[str, pa.Table],
    originals: pa.Table,
    shown: Sequence[str],
    repo: str,
    tag: str,
) -> str:
    """Return the Croissant description of a published dataset as JSON.

    Paths are relative to the description, so that it is valid for a download too. It contains no
    date, so that publishing the same version again gives the same description.

    Args:
        manifest: Manifest of the dataset, with the size and SHA-256 of every file.
        labels: Label tables by task.
        originals: Table of originals.
        shown: Image columns of the table of previews; empty if there is none.
        repo: Repo id on the Hub, "org/name".
        tag: Tag of this version in the repo.
    """
    terms = dict.fromkeys(entry.terms for entry in manifest.tasks.values() if entry.terms)
    tables = {NAMES.labels(task).as_posix(): table for task, table in labels.items()}
    pictured = (NAMES.previews if shown else NAMES.originals_table).as_posix()
    meaning = {name: text for name, (_, text) in (LABEL_COLUMNS | ORIGINAL_COLUMNS).items()}
    if manifest.format > 1:
        meaning |= meanings() | {name: text for name, (_, text) in NEW_COLUMNS.items()}
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"cfqa-{manifest.name}",
        "alternateName": tag,
        "description": f"Compressed Feature Quality Assessment: {manifest.summary}",
        "url": f"https://huggingface.co/datasets/{repo}",
        "version": manifest.versions.get("cfqa-data", "0.0.0"),
        "license": [one.link or one.licence for one in terms],
        "citeAs": PAPER,
        "distribution": [
            *(_file(path, manifest) for path in tables),
            _file(pictured, manifest),
            *_file_sets(manifest),
        ],
        "recordSet": [
            *(
                _records(task, NAMES.labels(task).as_posix(), table, meaning)
                for task, table in labels.items()
            ),
            _records("originals", pictured, originals, meaning, shown),
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _file(path: str, manifest: Manifest) -> dict[str, Any]:
    entry = manifest.files[path]
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{entry['size']} B",
        "encodingFormat": "application/x-parquet",
        "sha256": entry["sha256"],
    }


def _file_sets(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the file sets of the arrays: one per task and kind of array."""
    patterns = {
        "originals": ("originals/{}-*.safetensors", "application/x-safetensors"),
        "bitstreams": ("bitstreams/{}-*.safetensors", "application/x-safetensors"),
        "compressed": ("compressed/{}/**", "application/x-zarr"),
    }
    return [
        {
            "@type": "cr:FileSet",
            "@id": f"{kind}/{task}",
            "name": f"{kind} of {task}",
            "encodingFormat": encoding,
            "includes": pattern.format(task),
        }
        for task in manifest.tasks
        for kind, (pattern, encoding) in patterns.items()
        if any(path.startswith(pattern.format(task).partition("*")[0]) for path in manifest.files)
    ]


def _records(
    name: str,
    path: str,
    table: pa.Table,
    meaning: Mapping[str, str],
    shown: Sequence[str] = (),
) -> dict[str, Any]:
    def field(column: str, text: str, kind: str, **transform: Any) -> dict[str, Any]:
        source = {"fileObject": {"@id": path}, "extract": {"column": column}, **transform}
        about = {"@type": "cr:Field", "@id": f"{name}/{column}", "name": column}
        return about | {"description": text, "dataType": kind, "source": source}

    picture = {"kind": "sc:ImageObject", "transform": {"jsonPath": "bytes"}}
    pictures = [
        field(one, column_meaning(one)[1], **({"kind": "sc:Text"} if one == ANSWERS else picture))
        for one in shown
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": pictures
        + [
            field(
                column.name,
                meaning.get(column.name, column.name),
                TYPES.get(str(column.type)) or f"cr:{str(column.type).title()}",
            )
            for column in table.schema
        ],
    }
