#!/usr/bin/env bash
# norfair 2.3.0: `get_cutout`, which cuts the pixels for an appearance feature out of a frame, does not keep a box
# inside the frame. A box that reaches a few pixels over the left or upper edge gives an empty image; one that reaches
# far over it gives pixels from another place, because negative places count from the other side. Detectors and Kalman
# filters put such boxes out wherever a person enters the picture. A frame of 80 columns, each with its number as color.
# Seen: "-5 to 20: 0 columns", "-70 to 20: 10 columns, 10 to 19", "60 to 95: 20 columns, 60 to 79".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check norfair==2.3.0 numpy==1.26.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from norfair.utils import get_cutout

frame = np.tile(np.arange(80, dtype='uint8'), (100, 1))
seen = []
for left, right in ((-5, 20), (-70, 20), (60, 95)):
    cut = get_cutout(np.array([[left, 10], [right, 60]]), frame)
    what = f', {cut.min()} to {cut.max()}' if cut.size else ''
    seen.append(f'{left} to {right}: {cut.shape[1]} columns{what}')
    print(seen[-1])
assert seen == ['-5 to 20: 0 columns', '-70 to 20: 10 columns, 10 to 19', '60 to 95: 20 columns, 60 to 79']
PYTHON
