#!/usr/bin/env bash
# faiss-cpu 1.15.1, the exact index (IndexFlatL2): features of 192 numbers that lie close together and
# far from zero, as those of like pictures do before a mean is taken off (here around 30, spread 0.1).
# Guess: the nearest ten of an exact index do not depend on how many queries are asked at once.
# Seen: asked one by one all are right and every item is at distance 0 from itself. Asked together,
# from 128000 / width queries on, distances are formed from norms and products in float32: a quarter of
# the nearest ten are others, and an item is up to 0.2 from itself where its neighbours are at 2.6.
# With the mean taken off the answers agree again.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np

COUNT, WIDTH = 2000, 192
LIMIT = 128_000 // WIDTH
faiss.omp_set_num_threads(1)
features = (np.random.default_rng(0).normal(size=(COUNT, WIDTH)) * 0.1 + 30).astype(np.float32)


def seen(vectors: np.ndarray, together: int) -> tuple[float, float]:
    """Share of the nearest ten that is right, and the largest distance from an item to itself."""
    exact = vectors.astype(np.float64) - vectors.mean(dtype=np.float64)
    norms = (exact**2).sum(1)
    right = np.argsort(norms[:, None] + norms - 2 * exact @ exact.T, axis=1)[:, :10]
    index = faiss.IndexFlatL2(WIDTH)
    index.add(vectors)
    parts = [index.search(vectors[i : i + together], 10) for i in range(0, COUNT, together)]
    found = np.concatenate([ids for _, ids in parts])
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, right, strict=True)])
    return float(shared), float(max(distances[:, 0].max() for distances, _ in parts))


for what, vectors in (("as they are", features), ("mean taken off", features - np.float32(30))):
    for together in (1, LIMIT // 2, COUNT):
        share, itself = seen(vectors, together)
        print(f"{what}, {together} queries together: {share:.3f} right, {itself:.3f} from itself")
        if what == "as they are" and together > LIMIT:
            assert share < 0.85 and itself > 0.1, "changed"
        else:
            assert share > 0.999 and itself < 1e-4, "changed"
PYTHON
