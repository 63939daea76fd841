#!/usr/bin/env bash
# faiss-cpu 1.15.1: identical vectors added to an HNSW index make the OTHER vectors unreachable. 500 different
# features are added first, and each of them finds itself. Then 1,000 all-zero vectors are added, such as the features
# of empty crops. From then on not one of the 500 finds itself; with 1,000 different vectors instead of the identical
# ones nearly all do. No call fails or warns.
# Seen: "before: 500 of 500", "after 1,000 different vectors: 498 of 500", "after 1,000 zero vectors: 0 of 500".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import faiss
import numpy as np

faiss.omp_set_num_threads(1)
random = np.random.default_rng(0)
people = random.normal(size=(500, 64)).astype('float32')

def found_by_themselves(more):
    index = faiss.IndexHNSWFlat(64, 32)
    index.add(people)
    if len(more): index.add(more)
    return int((index.search(people, 1)[1][:, 0] == np.arange(500)).sum())

before = found_by_themselves(people[:0])
different = found_by_themselves(random.normal(size=(1000, 64)).astype('float32'))
zeros = found_by_themselves(np.zeros((1000, 64), 'float32'))
print(f'before: {before} of 500')
print(f'after 1,000 different vectors: {different} of 500')
print(f'after 1,000 zero vectors: {zeros} of 500')
assert before > 490 and different > 490 and zeros < 50
PYTHON
