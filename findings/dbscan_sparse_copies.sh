#!/usr/bin/env bash
# scikit-learn 1.9.1 with scipy 1.17.1: DBSCAN over a sparse matrix of precomputed distances, as pseudo-labeling does
# with re-ranked distances to save memory, takes identical images for strangers. A distance of 0 is not stored by
# csr_matrix(distances), and what is not stored counts as far away: three copies of an image are all noise (-1), while
# three images that only look alike are a cluster. The dense matrix gives two clusters. Zeros that are stored are read
# as distances, so that one matrix has two results.
# Seen: "dense [0 0 0 1 1 1]", "sparse [-1 -1 -1 0 0 0]", "sparse, zeros stored [0 0 0 1 1 1]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from scipy.sparse import csr_matrix
from sklearn.cluster import DBSCAN

features = np.array([[0, 0], [0, 0], [0, 0], [5, 5], [5, 5.1], [5.1, 5]])
distances = np.linalg.norm(features[:, None] - features, axis=-1)
rows, columns = np.indices(distances.shape).reshape(2, -1)
matrices = {'dense': distances, 'sparse': csr_matrix(distances),
            'sparse, zeros stored': csr_matrix((distances.ravel(), (rows, columns)))}
labels = {name: DBSCAN(eps=0.5, min_samples=2, metric='precomputed').fit_predict(matrix).tolist()
          for name, matrix in matrices.items()}
for name, found in labels.items(): print(f'{name}: {found}')
assert labels['dense'] == labels['sparse, zeros stored'] == [0, 0, 0, 1, 1, 1]
assert labels['sparse'] == [-1, -1, -1, 0, 0, 0]
PYTHON
