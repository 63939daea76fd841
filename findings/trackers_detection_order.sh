#!/usr/bin/env bash
# trackers 2.6.1 with supervision 0.31.2: ByteTrackTracker.update returns the detections in another order than it got
# them, and in another order in the first frame than in the next ones, although the boxes hardly move. SORTTracker, of
# the same package, keeps the order. Features computed for the boxes that went in, in their order, therefore land on
# the identities of other people when they are paired with `tracker_id` by position.
# Seen: "ByteTrackTracker: frame 0 [0, 2, 1, 3], frame 1 [1, 3, 0, 2], frame 2 [1, 3, 0, 2]", "SORTTracker: frame 0
# [0, 1, 2, 3], ...".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check trackers==2.6.1 supervision==0.31.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import supervision
import trackers

boxes = np.array([[0, 0, 50, 100], [100, 0, 150, 100], [200, 0, 250, 100], [300, 0, 350, 100]], float)
confidence = np.array([0.30, 0.90, 0.35, 0.95])

def orders(tracker):
    rows = []
    for frame in range(3):
        detections = supervision.Detections(xyxy=boxes + frame, confidence=confidence, class_id=np.zeros(4, int),
                                            data={'row': np.arange(4)})
        rows.append(tracker.update(detections).data['row'].tolist())
    return rows

found = {name: orders(getattr(trackers, name)()) for name in ('ByteTrackTracker', 'SORTTracker')}
for name, rows in found.items():
    print(f'{name}: ' + ', '.join(f'frame {frame} {row}' for frame, row in enumerate(rows)))
assert all(row == [0, 1, 2, 3] for row in found['SORTTracker'])
assert all(sorted(row) == [0, 1, 2, 3] and row != [0, 1, 2, 3] for row in found['ByteTrackTracker'])
assert found['ByteTrackTracker'][0] != found['ByteTrackTracker'][1]
PYTHON
