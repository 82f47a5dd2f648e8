#!/usr/bin/env bash
# usearch 2.26.6 and faiss-cpu 1.15.1: a graph index (HNSW) over 5000 normal vectors of 64 numbers,
# one of them zero, as an embedding is of which a codec has left nothing.
# Guess: the zero vector is one more neighbour; nearly every vector still finds itself.
# Seen: without it 99.8% or more find themselves; with a zero added first 12% do in usearch and
# less than half in faiss, without a warning. The zero is nearer to all vectors than they are to each
# other, so that links to others are pruned and most of the graph cannot be reached from there.
# With zero added last usearch is as before and faiss is not. Exact search finds all.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check usearch==2.26.6 faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np
from usearch.index import Index

COUNT, WIDTH = 5000, 64
faiss.omp_set_num_threads(1)


def by_usearch(vectors: np.ndarray) -> np.ndarray:
    index = Index(ndim=WIDTH, metric="l2sq", connectivity=16, expansion_add=200, expansion_search=200)
    index.add(np.arange(COUNT), vectors, threads=1)
    return np.asarray(index.search(vectors, 1, threads=1).keys).ravel()


def by_faiss(vectors: np.ndarray, graph: bool = True) -> np.ndarray:
    index = faiss.IndexHNSWFlat(WIDTH, 32) if graph else faiss.IndexFlatL2(WIDTH)
    if graph:
        index.hnsw.efConstruction = index.hnsw.efSearch = 200
    index.add(vectors)
    return index.search(vectors, 1)[1].ravel()


def found(nearest: np.ndarray) -> float:
    return float((nearest == np.arange(COUNT)).mean())


plain = np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)
seen = {}
for zero in (None, 0, COUNT - 1):
    vectors = plain.copy()
    if zero is not None:
        vectors[zero] = 0
    exact = found(by_faiss(vectors, graph=False))
    seen[zero] = found(by_usearch(vectors)), found(by_faiss(vectors))
    print(f"zero vector at {zero}: usearch {seen[zero][0]:.4f}, faiss {seen[zero][1]:.4f}, exact {exact:.4f}")
    assert exact == 1.0, "changed"
assert min(seen[None]) > 0.995, "changed"
assert seen[0][0] < 0.3 and seen[0][1] < 0.7, "changed"
assert seen[COUNT - 1][0] > 0.995 and seen[COUNT - 1][1] < 0.7, "changed"
PYTHON
