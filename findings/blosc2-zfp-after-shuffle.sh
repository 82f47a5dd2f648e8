#!/usr/bin/env bash
# blosc2 4.14.1: float32 features stored with one of its ZFP codecs, the other settings as they are.
# Guess: a codec that is for floats gets floats, and the error stays within the bound (here 0.1).
# Seen: the shuffle filter is on unless it is turned off, and ZFP then codes shuffled bytes as if they
# were numbers: values of about 1 come back as up to 8e37, in three times the bytes, without an error
# or a warning. With `filters=[NOFILTER]` the error is 0.024. So it is by accuracy, precision and rate.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check blosc2==4.14.1 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import blosc2
import numpy as np

rough = np.random.default_rng(0).normal(size=(257, 192)).astype(np.float32)
feature = (rough + np.roll(rough, 1, 0) + np.roll(rough, 1, 1)) / 3


def stored(**settings) -> tuple[float, int]:
    array = blosc2.asarray(feature, cparams=settings)
    return float(np.abs(array[:].astype(float) - feature).max()), array.schunk.cbytes


# The exponent of the accuracy is read as a signed byte: 255 is 10 ** -1.
for name, meta in (("ZFP_ACC", 255), ("ZFP_PREC", 12), ("ZFP_RATE", 25)):
    codec = getattr(blosc2.Codec, name)
    plain = stored(codec=codec, codec_meta=meta)
    bare = stored(codec=codec, codec_meta=meta, filters=[blosc2.Filter.NOFILTER], filters_meta=[0])
    print(f"{name}: error {plain[0]:.1e} in {plain[1]} bytes, without a filter {bare[0]:.1e} in {bare[1]}")
    assert plain[0] > 1e30 and bare[0] < 0.1, "changed"
PYTHON
