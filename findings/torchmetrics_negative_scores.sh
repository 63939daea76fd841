#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0: retrieval metrics that see the same ranking disagree about scores of zero or
# below. Mean average precision, reciprocal rank, precision and recall count such an image as no match; nDCG,
# R-precision and hit rate don't. With minus the distance as the score, the order is right and mAP is exactly 0. Six
# images at distances 1 to 6, matches at ranks 1, 4 and 5.
# Seen (10 - distance, then -distance): MAP 0.700, 0.000; MRR 1.000, 0.000; precision 0.500, 0.000; recall 1.000,
# 0.000; R-precision 0.333, 0.333; nDCG 0.853, 0.853; hit rate 1.000, 1.000.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torchmetrics import retrieval

distances, query = torch.arange(1.0, 7), torch.zeros(6, dtype=torch.long)
matches = torch.tensor([1, 0, 0, 1, 1, 0]).bool()

def values(name):
    metric = getattr(retrieval, f'Retrieval{name}')
    return [metric()(scores, matches, indexes=query).item() for scores in (10 - distances, -distances)]

counts_nothing = {name: values(name) for name in ('MAP', 'MRR', 'Precision', 'Recall')}
same = {name: values(name) for name in ('RPrecision', 'NormalizedDCG', 'HitRate')}
for name, (positive, negative) in {**counts_nothing, **same}.items():
    print(f'{name}: 10 - distance {positive:.3f}, -distance {negative:.3f}')
assert all(positive > 0.3 and negative == 0 for positive, negative in counts_nothing.values())
assert all(positive == negative > 0.3 for positive, negative in same.values())
PYTHON
