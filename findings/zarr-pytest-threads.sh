#!/usr/bin/env bash
# zarr 3.1.6 in an environment with pytest 9.2.0: what decides how many threads a test session has.
# Guess: a conftest.py that sets OPENBLAS_NUM_THREADS=1 before any test imports NumPy gives NumPy's
# products one thread (pytest-xdist users do so, lest every worker uses all cores).
# Seen: it comes too late. Zarr registers its testing module as a plugin of pytest, so that every
# session in the environment, whether or not it tests anything of Zarr, imports zarr and NumPy before
# the first conftest.py is read. With `-p no:zarr` NumPy is not loaded by then, and the variable holds.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    zarr==3.1.6 numpy==2.4.6 pytest==9.2.0 threadpoolctl==3.6.0
mkdir "$folder/tests"
cat > "$folder/tests/conftest.py" <<'PYTHON'
import os
import sys

LOADED = "numpy" in sys.modules
os.environ["OPENBLAS_NUM_THREADS"] = "1"
PYTHON
cat > "$folder/tests/test_threads.py" <<'PYTHON'
import numpy as np
from conftest import LOADED
from threadpoolctl import threadpool_info


def test_threads():
    assert np.eye(2).sum() == 2
    threads = [pool["num_threads"] for pool in threadpool_info()]
    print(f"NumPy was loaded before conftest.py: {LOADED}; threads of its BLAS: {threads}")
PYTHON
cd "$folder/tests"
plain="$("$folder/venv/bin/python" -m pytest -q -s -p no:cacheprovider)"
without="$("$folder/venv/bin/python" -m pytest -q -s -p no:cacheprovider -p no:zarr)"
grep "NumPy was" <<< "$plain"
grep "NumPy was" <<< "$without"
grep -q "conftest.py: True" <<< "$plain" || { echo changed; exit 1; }
grep -q "conftest.py: False; threads of its BLAS: \[1\]" <<< "$without" || { echo changed; exit 1; }
