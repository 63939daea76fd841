#!/usr/bin/env bash
# webdataset 1.0.2: its own writer and reader disagree on keys with a dot. Three crops written under cam1.000001,
# cam1.000002 and cam2.000001 are read back as two samples, because the reader ends a key at the first dot: both crops
# of camera 1 become one sample with the key "cam1", whose pictures are named "000001.jpg" and "000002.jpg". No sample
# has the entry "jpg". Writing and reading succeed.
# Seen: "wrote 3 samples, read 2: cam1 [000001.jpg, 000002.jpg], cam2 [000001.jpg]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check webdataset==1.0.2 pillow numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import io

import webdataset
from PIL import Image

keys = ['cam1.000001', 'cam1.000002', 'cam2.000001']
with webdataset.TarWriter('crops.tar') as writer:
    for shade, key in enumerate(keys):
        picture = io.BytesIO()
        Image.new('RGB', (64, 128), (80*shade, 0, 0)).save(picture, 'jpeg')
        writer.write({'__key__': key, 'jpg': picture.getvalue()})
samples = list(webdataset.WebDataset('crops.tar', shardshuffle=False))
entries = {sample['__key__']: [name for name in sample if not name.startswith('__')] for sample in samples}
print(f'wrote {len(keys)} samples, read {len(samples)}: '
      + ', '.join(f'{key} [{", ".join(names)}]' for key, names in entries.items()))
assert entries == {'cam1': ['000001.jpg', '000002.jpg'], 'cam2': ['000001.jpg']}
PYTHON
