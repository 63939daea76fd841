#!/usr/bin/env bash
# pytrec_eval-terrier 0.5.11: average precision depends on how the gallery files are named. Scores are kept in single
# precision, and equal ones are ordered by name, last name first. Two images whose similarities differ by 1e-9 are a
# tie, though the matching one is nearer: renamed, the same search has half the average precision.
# Seen: "match 0002.jpg, other 0001.jpg: AP 1.000", "match 0001.jpg, other 0002.jpg: AP 0.500"; with a difference of
# 1e-6 both 1.000.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pytrec_eval-terrier==0.5.11 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import pytrec_eval

def average_precision(match, other, difference):
    evaluator = pytrec_eval.RelevanceEvaluator({'query': {match: 1}}, {'map'})
    return evaluator.evaluate({'query': {match: 0.9 + difference, other: 0.9}})['query']['map']

found = {}
for difference in (1e-9, 1e-6):
    for match, other in (('0002.jpg', '0001.jpg'), ('0001.jpg', '0002.jpg')):
        found[difference, match] = average_precision(match, other, difference)
        print(f'match {match} nearer by {difference}, other {other}: AP {found[difference, match]:.3f}')
assert list(found.values()) == [1, 0.5, 1, 1]
PYTHON
