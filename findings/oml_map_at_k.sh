#!/usr/bin/env bash
# open-metric-learning 4.0.0 with torch 2.14.1: map@k, k = 5 by default, divides by the matches that are among the first
# k, not by those that the gallery holds. Of ten matches one at place 1 and none after it gives 1.0, the best there is;
# one more at place 5 makes it worse, 0.7. It becomes the field's mAP only when k is the size of the gallery.
# (It imports omegaconf, which its package does not name.)
# Seen: "places 1: map@5 1.00", "places 1, 5: map@5 0.70", "places 1, 5, whole gallery: map@100 0.19, mAP 0.19".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==1.26.4 \
    omegaconf==2.3.0 open-metric-learning==4.0.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import inspect
import numpy as np
import torch
from oml.functional.metrics import calc_map
from oml.metrics import EmbeddingMetrics

def score(places, k):
    "map@k of one query: a gallery of 100 with ten matches, the ones that aren't named at the end."
    right = torch.zeros(100, dtype=torch.bool)
    right[np.array(places) - 1] = True
    right[100 - (10 - len(places)):] = True
    return float(calc_map([right], [10], (k,))[0]), np.flatnonzero(right) + 1

(one, _), (two, _), (whole, at) = score([1], 5), score([1, 5], 5), score([1, 5], 100)
AP = np.mean(np.arange(1, 11)/at)                         # precision at each match, mean over all ten
print('default:', inspect.signature(EmbeddingMetrics.__init__).parameters['map_top_k'].default)
print(f'places 1: map@5 {one:.2f}\nplaces 1, 5: map@5 {two:.2f}')
print(f'places 1, 5, whole gallery: map@100 {whole:.2f}, mAP {AP:.2f}')
assert one == 1 and abs(two - .7) < 1e-6 and abs(whole - AP) < 1e-6
PYTHON
