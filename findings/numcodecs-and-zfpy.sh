#!/usr/bin/env bash
# numcodecs 0.16.6 beside zfpy 1.0.1.post0.
# Guess: an optional codec that is installed adds itself, and one that is not liked is left out.
# Seen: numcodecs turns zfpy's version into integers part by part while it is imported, "post0" is
# no integer, and `import numcodecs` ends in a ValueError; so does `import zarr`, for whoever has
# installed the newest zfpy for anything else. Without zfpy, or with 1.0.1, both import.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
import() { { "$folder/venv/bin/python" -c "import $1" 2>&1 || true; } | tail -1; }
pip numcodecs==0.16.6 zarr==3.1.6
[ -z "$(import zarr)" ] || { echo "changed: zarr does not import without zfpy"; exit 1; }
pip zfpy==1.0.1.post0
for module in numcodecs zarr; do
    said="$(import $module)"
    echo "import $module beside zfpy 1.0.1.post0: ${said:-no error}"
    [[ "$said" == "ValueError: invalid literal for int()"* ]] || { echo "changed"; exit 1; }
done
