#!/usr/bin/env bash
# mlcroissant 1.1.1 with pandas 3.1.1 and pyarrow 26.0.1, reading a Parquet column that a Croissant
# description declares as cr:Int64.
# Guess: whole numbers come as they are, whether or not the column has a null; texts (sc:Text) are str.
# Seen: where one row is null, the others go through float64 and come back as int64: 2^53 + 1 is read
# as 2^53, without a warning. Without a null it is right. Texts are bytes in either case.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    mlcroissant==1.1.1 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import hashlib
import json
from pathlib import Path

import mlcroissant
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {"number": "cr:Int64", "name": "sc:Text"}
SPEC = "http://mlcommons.org/croissant/"
TERMS = "column containedIn extract field fileObject recordSet source"
context = {term: f"cr:{term}" for term in TERMS.split()} | {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": SPEC,
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
}


def read(rows):
    """Write rows to Parquet with a description, and return what is read by that."""
    types = pa.schema([("number", pa.int64()), ("name", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, types), "t.parquet")
    file = {"@type": "cr:FileObject", "@id": "t", "name": "t", "contentUrl": "t.parquet"}
    file |= {"encodingFormat": "application/x-parquet"}
    file |= {"sha256": hashlib.sha256(Path("t.parquet").read_bytes()).hexdigest()}
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"r/{name}",
            "name": name,
            "dataType": kind,
            "source": {"fileObject": {"@id": "t"}, "extract": {"column": name}},
        }
        for name, kind in COLUMNS.items()
    ]
    described = {"@context": context, "@type": "sc:Dataset", "conformsTo": f"{SPEC}1.0"}
    described |= {"name": "d", "description": "d", "url": "https://example.org"}
    described |= {"license": "https://example.org", "version": "1.0.0"}
    described |= {"distribution": [file]}
    described |= {"recordSet": [{"@type": "cr:RecordSet", "@id": "r", "name": "r", "field": fields}]}
    Path("c.json").write_text(json.dumps(described))
    return list(mlcroissant.Dataset("c.json").records("r"))


large = 2**53 + 1
whole = read([{"number": large, "name": "a"}, {"number": 1, "name": "b"}])
holed = read([{"number": large, "name": "a"}, {"number": None, "name": "b"}])
for what, rows in (("no null", whole), ("a null", holed)):
    value = rows[0]["r/number"]
    print(f"{what} in the column: {large} is read as {value}, {type(value).__name__}")
assert whole[0]["r/number"] == large, "changed: a column without a null"
assert holed[0]["r/number"] == large - 1, "changed: a column with a null"
assert isinstance(holed[0]["r/number"], np.int64), "changed: the type"
print(f"a text: {whole[0]['r/name']!r}")
assert whole[0]["r/name"] == b"a", "changed: texts"
PYTHON
