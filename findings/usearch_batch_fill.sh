#!/usr/bin/env bash
# usearch 2.26.6: asked for more neighbors than the index holds, a single query gets fewer, and a batch of queries
# gets rows filled up with key 0 and distance NaN. Key 0 is a real image wherever images are numbered from 0, so that
# the first image of a gallery is found again and again. Three images with keys 0, 1 and 2, five neighbors asked for.
# Seen: "one query: keys [2, 1, 0]", "two queries: keys [2, 1, 0, 0, 0], distances [..., nan, nan]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check usearch==2.26.6 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from usearch.index import Index

index = Index(ndim=2, metric='l2sq', dtype='f32')
index.add(np.arange(3), np.array([[3, 4], [0, 2], [0, 0]], 'float32'))
query = np.array([2, 0], 'float32')
one, two = index.search(query, 5), index.search(np.stack([query, query]), 5)
print(f'one query: keys {one.keys.tolist()}, distances {one.distances.tolist()}')
for keys, distances in zip(two.keys, two.distances):
    print(f'two queries: keys {keys.tolist()}, distances {distances.tolist()}')
assert one.keys.tolist() == [2, 1, 0]
assert two.keys.tolist() == [[2, 1, 0, 0, 0]]*2 and np.isnan(two.distances[:, 3:]).all()
PYTHON
