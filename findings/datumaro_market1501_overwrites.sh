#!/usr/bin/env bash
# datumaro 1.13.12: the Market-1501 export gives every image of a person and camera the same frame number, 000000,
# where the items have none. Several images of a person in a camera get one file name and overwrite each other; the
# list file names that file once for each of them. The export succeeds. Three crops of person 7 in camera 0 and one in
# camera 1, brightness 0, 100, 200 and 50.
# Seen: the list has 7_c1s1_000000_00.jpg three times; of the three crops only the last one, of brightness 200, is
# left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check datumaro==1.13.12 numpy==2.4.6 pillow==12.3.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from pathlib import Path

import numpy as np
import PIL.Image
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

def crop(name, camera, brightness):
    picture = Image.from_numpy(np.full((128, 64, 3), brightness, 'uint8'))
    return DatasetItem(id=name, subset='train', media=picture, attributes=dict(person_id=7, camera_id=camera))

crops = [crop('a', 0, 0), crop('b', 0, 100), crop('c', 0, 200), crop('d', 1, 50)]
Dataset.from_iterable(crops, media_type=Image).export('market', 'market1501', save_media=True)
listed = Path('market/images_train.txt').read_text().split()
files = sorted(Path('market/bounding_box_train').iterdir())
print('listed:', *(Path(name).name for name in listed))
for file in files: print(f'file {file.name}: brightness {np.asarray(PIL.Image.open(file)).mean():.0f}')
assert len(listed) == 4 and len(set(listed)) == 2 == len(files)
assert abs(np.asarray(PIL.Image.open(files[0])).mean() - 200) < 3
PYTHON
