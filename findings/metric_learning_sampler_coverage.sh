#!/usr/bin/env bash
# pytorch-metric-learning 2.9.0 with torch 2.13.0: MPerClassSampler visits every identity once an epoch when it isn't
# told the batch size, and only about 63 % of them when it is. With batch_size every batch draws its identities anew
# from all of them, so that many come twice or three times and more than a third not at all. The length of the epoch
# is the same but for the last batch. 1,000 identities with 4 images each, m=4, one epoch.
# Seen: "without batch_size: 4000 images drawn, 1000 identities"; "batch_size=64: 3968 images drawn, 632 identities".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 \
    pytorch-metric-learning==2.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from pytorch_metric_learning.samplers import MPerClassSampler

labels = np.arange(1000).repeat(4)

def epoch(batch_size):
    np.random.seed(0)
    rows = list(MPerClassSampler(labels, m=4, batch_size=batch_size, length_before_new_iter=len(labels)))
    return len(rows), len(set(labels[rows]))

for batch_size in (None, 64):
    name = f'batch_size={batch_size}' if batch_size else 'without batch_size'
    print('{}: {} images drawn, {} identities'.format(name, *epoch(batch_size)))
assert epoch(None) == (4000, 1000)
assert epoch(64)[0] == 3968 and 550 < epoch(64)[1] < 720
PYTHON
