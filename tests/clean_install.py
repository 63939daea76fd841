"""Does the package work from its wheel, with what it declares that it needs and nothing else?

    python tests/clean_install.py                          # as CI does, in this Python, under a minute
    python tests/clean_install.py --python python3.13      # the parts without torch, in another Python; needs PyPI

1. `python -m build` makes a source archive of the files that git knows, and a wheel out of that archive alone.
2. The wheel is installed in a fresh environment. To download torch for it would take minutes and gigabytes, so the
   environment sees links to the packages that settings.ini asks for (with the extra `export`), to what these ask for
   in turn, and to nothing else: an import of nbdev, pytest or anything that is not declared fails there.
3. There, as a user would: help, a rendered domain, a gallery searched by a picture and by words, an ONNX file written
   by one process and read by another that never loads torch.

Another Python gets numpy, pandas, Pillow and onnxruntime from PyPI and runs what needs no torch: help, the rendered
domain, the ONNX file; all modules are compiled there.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

root = Path(__file__).resolve().parent.parent
LIGHT = ['numpy', 'pandas', 'pillow', 'tqdm', 'onnxruntime', 'shtab']
ONNX_READER = """import sys
import numpy as np
from pathlib import Path
from clip_dfgs.inference.onnx import OnnxExtractor
features = OnnxExtractor('features.onnx')(sorted(Path('town/query').iterdir()))
assert len(features) and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-4)
assert 'torch' not in sys.modules
print('ONNX features', features.shape, 'without torch')"""
ALONE = """import importlib.util as u, clip_dfgs
names = ('nbdev', 'execnb', 'ghapi', 'pytest', 'hypothesis', 'ruff', 'sphinx')
strangers = [m for m in names if u.find_spec(m)]
assert not strangers, strangers
print('installed at', clip_dfgs.__file__)"""


def run(*words, cwd, **more):
    "One command of a user, away from the repository; what it prints. A failure shows what it said."
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    env |= dict(PYTHONNOUSERSITE='1', CLIP_DFGS_CACHE=str(cwd/'cache'), **more)
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=env, capture_output=True, text=True)
    shown = ' '.join(Path(str(w)).name if i == 0 else str(w) for i, w in enumerate(words) if '\n' not in str(w))
    if done.returncode: raise SystemExit(f'{shown} ended with {done.returncode}:\n{done.stdout}{done.stderr}')
    print(f'$ {shown}', *done.stdout.strip().splitlines()[-1:], sep='\n  ', flush=True)
    return done.stdout


def built(folder):
    "The wheel, made from the source archive of the files that git knows; settings, weights and templates included."
    source = folder/'source'
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=root, capture_output=True, text=True,
                            check=True).stdout.split('\n')
    for name in filter(None, listed):
        if not (root/name).is_file() or name.startswith(('nbs/', '.')): continue
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/name, source/name)
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder/'dist', source, cwd=folder)
    wheel, = (folder/'dist').glob('*.whl')
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith('clip_dfgs/')}
    asked = {str(p.relative_to(source)) for p in (source/'clip_dfgs').rglob('*') if p.is_file()}
    if asked != held: raise SystemExit(f'wheel and repository differ: {sorted(asked ^ held)}')
    return wheel


def needed(wheel_requires, extras):
    "Names of the installed packages that are asked for, and of what they ask for, and so on."
    found, ahead = {}, [(text, extras) for text in wheel_requires]
    while ahead:
        text, on = ahead.pop()
        wanted = Requirement(text)
        if wanted.marker and not any(wanted.marker.evaluate(dict(extra=extra)) for extra in ('', *on)): continue
        name, more = wanted.name.lower().replace('_', '-'), set(wanted.extras)
        if name in found and more <= found[name]: continue
        found[name] = found.get(name, set()) | more
        ahead += [(text, found[name]) for text in distribution(name).requires or []]
    return sorted(found)


def environment(folder, python=None):
    "A fresh environment; the path of its Python."
    if python: subprocess.run([python, '-m', 'venv', str(folder)], check=True)
    else: venv.create(folder, with_pip=False)
    return folder/'bin'/'python'


def linked(wheel, folder):
    "An environment of this Python with the wheel unpacked by pip, and links to the packages that it declares."
    python = environment(folder)
    site, = folder.glob('lib/python*/site-packages')
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', '-q', wheel, cwd=folder)
    about, = site.glob('clip_dfgs-*.dist-info')
    requires = [line.split(': ', 1)[1] for line in (about/'METADATA').read_text().splitlines()
                if line.startswith('Requires-Dist: ')]
    for name in needed(requires, ('export',)):
        for file in distribution(name).files:
            top = file.parts[0]
            if top in ('..', '__pycache__', 'bin') or (site/top).exists(): continue
            (site/top).symlink_to(file.locate().parents[len(file.parts) - 2] if len(file.parts) > 1 else file.locate())
    return python


def light(wheel, folder, python):
    "An environment of another Python with what is needed without torch, from PyPI."
    own = environment(folder, python)
    run(own, '-m', 'pip', 'install', '-q', *LIGHT, cwd=folder)
    run(own, '-m', 'pip', 'install', '-q', '--no-deps', wheel, cwd=folder)
    run(own, '-W', 'error', '-m', 'compileall', '-q', '-f', next(folder.glob('lib/python*/site-packages/clip_dfgs')),
        cwd=folder)
    return own


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--python', help='another Python, for the parts without torch')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        wheel = built(folder)
        mine = linked(wheel, folder/'clean')
        place, command = folder/'place', mine.with_name('clip-dfgs')
        place.mkdir()
        run(mine, '-c', ALONE, cwd=place)
        run(command, '--help', cwd=place)
        run(command, 'render', 'town', '--identities', '8', '--cameras', '2', cwd=place)
        model = "from clip_dfgs import ReIDModel; ReIDModel.create('pedestrians', 'pedestrians').save('run/model')"
        run(mine, '-c', model, cwd=place)
        run(command, 'export', 'run', '--to', 'features.onnx', '--precision', 'int8', cwd=place)
        run(mine, '-c', ONNX_READER, cwd=place)
        if a.python:
            other = light(wheel, folder/'other', a.python)
            shutil.rmtree(place/'town')
            run(other, '-V', cwd=place)
            run(other.with_name('clip-dfgs'), '--help', cwd=place)
            run(other.with_name('clip-dfgs'), 'render', 'town', '--identities', '8', '--cameras', '2', cwd=place)
            run(other, '-c', ONNX_READER, cwd=place)
            return
        run(command, 'embed', 'market1501:town', '--model', 'run', '--out', 'gallery', cwd=place)
        query = sorted((place/'town'/'query').iterdir())[0]
        run(command, 'search', 'gallery', query, '--text', 'a woman in a red coat', '--csv', 'found.csv', cwd=place)
        if len((place/'found.csv').read_text().splitlines()) < 3: raise SystemExit('the search found nothing')
    print('works from its wheel')


if __name__ == '__main__': main()
