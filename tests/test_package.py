"The package as a whole: what an import brings in, what ships, what the repository may not hold."
import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent


def loaded(code):
    "Top-level modules that a fresh Python has after `code`."
    code += '\nimport sys\nprint(*{m.split(".")[0] for m in sys.modules})'
    return set(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split())


def tracked():
    "The files of the repository."
    listed = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True, check=True).stdout
    return [root/f for f in listed.split('\n') if f and (root/f).exists()]


def test_every_name_at_the_top_is_there():
    import clip_dfgs
    for name in clip_dfgs.__all__: assert getattr(clip_dfgs, name) is not None
    assert set(clip_dfgs.__all__) <= set(dir(clip_dfgs))
    with pytest.raises(AttributeError, match='no attribute'): clip_dfgs.load_datasets
    from clip_dfgs import pool
    from clip_dfgs.data.records import pool as home
    assert pool is home


def test_installing_does_not_bring_the_notebook_tools():
    settings = ConfigParser(delimiters=['='])
    settings.read(root/'settings.ini')
    words = set(re.findall(r'[a-z_]+', settings['DEFAULT']['requirements']))
    assert words and not {'nbdev', 'execnb', 'fastcore', 'ghapi'} & words


@pytest.mark.slow
def test_works_from_its_wheel():
    "Built, installed and used with what it declares and nothing else; the script says how."
    done = subprocess.run([sys.executable, root/'tests'/'clean_install.py'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('works from its wheel\n'), done.stdout + done.stderr


def test_extras_are_declared():
    settings = ConfigParser(delimiters=['='])
    settings.read(root/'settings.ini')
    extras = {key.removesuffix('_requirements') for key in settings['DEFAULT'] if key.endswith('_requirements')}
    assert {'scale', 'export', 'app', 'report', 'docs', 'dev', 'photos'} <= extras


def test_files_are_written_for_the_oldest_python():
    "A parser of Python 3.10 reads every module, test and benchmark."
    settings = ConfigParser(delimiters=['='])
    settings.read(root/'settings.ini')
    oldest = tuple(map(int, settings['DEFAULT']['min_python'].split('.')))
    for file in tracked():
        if file.suffix == '.py': ast.parse(file.read_text(), str(file), feature_version=oldest)


def test_small_clip_is_small():
    assert (root/'clip_dfgs'/'weights'/'pedestrians.safetensors').stat().st_size < 16e6


def test_notebooks_are_small_and_without_errors():
    for file in tracked():
        if file.suffix != '.ipynb': continue
        cells = json.loads(file.read_text())['cells']
        assert file.stat().st_size < 1_000_000, file
        assert not [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error'], file


def test_no_pickles_and_no_photographs():
    "The one JPEG is the README's picture, which is rendered."
    bad = {'.pkl', '.pickle', '.pt', '.pth', '.jpg', '.jpeg'}
    assert not [f for f in tracked() if f.suffix.lower() in bad and f.parent != root/'nbs'/'images']
