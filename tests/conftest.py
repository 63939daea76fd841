"Shared by the tests: a small rendered domain, and the real images where they are."
import os
import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    "Folder of a rendered domain: 24 identities, 3 cameras, half of them for testing."
    from clip_dfgs.synthetic.domain import render_domain
    folder = tmp_path_factory.mktemp('world')/'town'
    render_domain(folder, seed=400, identities=24, cameras=3, progress=False)
    return folder


@pytest.fixture(scope='session')
def real(tmp_path_factory):
    "Folder with the real images unpacked; skipped with a reason where they are not."
    usual = Path(__file__).resolve().parents[2]/'shared'/'realdata'
    root = Path(os.environ.get('CLIP_DFGS_REALDATA', usual))
    if not (root/'col780.tar.gz').exists(): pytest.skip(f'no real images in {root}; set CLIP_DFGS_REALDATA')
    out = tmp_path_factory.mktemp('real')
    for file in sorted(root.glob('*.tar.gz')):
        with tarfile.open(file) as archive: archive.extractall(out/file.name.split('.')[0], filter='data')
    return out
