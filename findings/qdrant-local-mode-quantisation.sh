#!/usr/bin/env bash
# qdrant-client 1.20.0 in its local mode (":memory:"), to see what compressed vectors cost in retrieval.
# Guess: a collection with scalar or binary quantisation, or with the data type uint8, answers a little
# worse than one without; one that is not supported is refused.
# Seen: all are accepted and nothing is compressed: the scores are those of the float32 vectors to the
# last digit, vectors of numbers below 1 come back whole from a collection of type uint8, and the
# collection says that it has no quantisation. A benchmark in local mode finds every method without loss.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check qdrant-client==1.20.0 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import numpy as np
from qdrant_client import QdrantClient, models

vectors = np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)
query = np.random.default_rng(1).normal(size=32).astype(np.float32)


def answers(datatype=None, quantisation=None):
    """Ids and scores of the nearest five, the error of their vectors, and what the collection says."""
    client = QdrantClient(":memory:")
    shape = models.VectorParams(size=32, distance=models.Distance.EUCLID, datatype=datatype)
    client.create_collection("items", vectors_config=shape, quantization_config=quantisation)
    points = [models.PointStruct(id=i, vector=vector.tolist()) for i, vector in enumerate(vectors)]
    client.upsert("items", points)
    found = client.query_points("items", query=query.tolist(), limit=5, with_vectors=True).points
    error = max(float(np.abs(np.array(point.vector) - vectors[point.id]).max()) for point in found)
    said = client.get_collection("items").config.quantization_config
    return [(point.id, point.score) for point in found], error, said


int8 = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type="int8"))
binary = models.BinaryQuantization(binary=models.BinaryQuantizationConfig())
plain = answers()
for name, settings in {
    "int8": {"quantisation": int8},
    "binary": {"quantisation": binary},
    "type uint8": {"datatype": models.Datatype.UINT8},
    "type float16": {"datatype": models.Datatype.FLOAT16},
}.items():
    seen = answers(**settings)
    print(f"{name}: same answers {seen[0] == plain[0]}, error of vectors {seen[1]}, it says {seen[2]}")
    assert seen == plain and seen[1] == 0 and seen[2] is None, "changed"
PYTHON
