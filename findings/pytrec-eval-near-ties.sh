#!/usr/bin/env bash
# pytrec-eval-terrier 0.5.11 (trec_eval), mean average precision of float64 scores.
# Guess: scores that differ are ranked by the score; documents of relevance -1, which many sets call
# junk, are left out.
# Seen: scores are rounded to float32 first, and what is then equal is ranked by document name, the
# last of the alphabet first: one ranking has an average precision of 1.0 or 0.5 by its names.
# Documents of relevance -1 stay in the ranking as if they were wrong. No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pytrec-eval-terrier==0.5.11 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import pytrec_eval


def average_precision(scores, relevance):
    return pytrec_eval.RelevanceEvaluator({"q": relevance}, {"map"}).evaluate({"q": scores})["q"]["map"]


near, far = -10.0, -10.0 - 1e-7  # negative distances; float32 has steps of 1e-6 there
found = {}
for first, second in ("ab", "ba"):
    found[first] = average_precision({first: near, second: far}, {first: 1, second: 0})
    print(f"the right one is nearer and called {first}: average precision {found[first]}")
clear = average_precision({"a": -10.0, "b": -10.1}, {"a": 1, "b": 0})
junk = average_precision({"junk": 3.0, "right": 2.0}, {"junk": -1, "right": 1})
print(f"a clear difference {clear}, junk in front {junk}")
assert clear == 1.0, "changed: clear differences"
assert found == {"a": 0.5, "b": 1.0}, "changed: near ties"
assert junk == 0.5, "changed: relevance -1"
PYTHON
