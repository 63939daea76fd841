#!/usr/bin/env bash
# deep-sort-realtime 1.3.2: update_tracks takes boxes and the appearance features that belong to them. It silently
# drops boxes of width or height 0, but not their features: from the empty box on, every person is tracked with the
# feature of the one before, and the last feature belongs to nobody. Four boxes, the second of width 0, with features
# 0 to 3.
# Seen: "box at 0 has feature 0, box at 200 has feature 1, box at 300 has feature 2"; without the empty box and its
# feature 0, 2 and 3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check deep-sort-realtime==1.3.2 numpy==2.4.6 scipy==1.17.1 \
    opencv-python-headless==5.0.0.93
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from deep_sort_realtime.deepsort_tracker import DeepSort

boxes = [[0, 0, 40, 100], [100, 0, 0, 100], [200, 0, 40, 100], [300, 0, 40, 100]] # left, top, width, height
features = np.eye(4, 8) # feature i has its 1 at place i

def tracked(rows):
    tracker = DeepSort(embedder=None, n_init=1)
    tracks = tracker.update_tracks([(boxes[i], 0.9, 'person') for i in rows], embeds=[features[i] for i in rows])
    return {int(track.to_ltwh()[0]): int(track.get_feature().argmax()) for track in tracks}

for rows in ([0, 1, 2, 3], [0, 2, 3]):
    print(f'given {rows}: ' + ', '.join(f'box at {left} has feature {i}' for left, i in tracked(rows).items()))
assert tracked([0, 2, 3]) == {0: 0, 200: 2, 300: 3}
assert tracked([0, 1, 2, 3]) == {0: 0, 200: 1, 300: 2}
PYTHON
