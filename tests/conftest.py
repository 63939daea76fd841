"Shared by the tests: a small rendered domain, and the real images where they are."
import gc
import os
import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope='session', autouse=True)
def _frozen():
    "What is imported by now is never garbage; each stage of a run collects, which took a fifth of a short run."
    gc.collect()
    gc.freeze()


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


# Runs that many tests read and none changes

def _run(tmp_path_factory, name, train):
    "The folder of a run, trained in one thread with a cache of its own."
    import torch
    threads, out = torch.get_num_threads(), tmp_path_factory.mktemp('shared')/name
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CLIP_DFGS_CACHE', str(out.parent/'cache'))
        train(out)
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope='session')
def whole(world, tmp_path_factory):
    "An uninterrupted run of seventeen steps."
    from runs import config, fit, rows_of
    return _run(tmp_path_factory, 'whole', lambda out: fit(rows_of(world), config(), out))


@pytest.fixture(scope='session')
def resumed(world, tmp_path_factory):
    "The same run, killed in the last stage and resumed."
    from runs import config, fit, killed_at, rows_of
    def train(out):
        killed_at(world, out, config(), 'finetune', 5)
        fit(rows_of(world), config(), out, resume=True)
    return _run(tmp_path_factory, 'resumed', train)


@pytest.fixture(scope='session')
def pair(world, tmp_path_factory):
    "The same run of two processes, which evaluate it too."
    from runs import config, said_by_two, two
    def train(out): assert two(world, out, config(), test=True) == [0, 0], said_by_two(out)
    return _run(tmp_path_factory, 'pair', train)
