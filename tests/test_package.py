"The package as a whole: what an import brings in, what ships, what the repository may not hold."
import ast
import json
import re
import runpy
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent


SETTINGS = ConfigParser(delimiters=['='])
SETTINGS.read(root/'settings.ini')
SETTINGS = SETTINGS['DEFAULT']


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


def test_what_installing_brings():
    "None of the notebook tools (fastcore only patches methods into classes); extras are declared."
    words = set(re.findall(r'[a-z_]+', SETTINGS['requirements']))
    assert words and not {'nbdev', 'execnb', 'ghapi'} & words
    extras = {key.removesuffix('_requirements') for key in SETTINGS if key.endswith('_requirements')}
    assert {'scale', 'export', 'app', 'report', 'docs', 'dev', 'photos'} <= extras


@pytest.mark.slow
def test_works_from_its_wheel():
    "Built, installed and used with what it declares and nothing else; the script says how."
    done = subprocess.run([sys.executable, root/'tests'/'clean_install.py'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('works from its wheel\n'), done.stdout + done.stderr


def test_files_are_written_for_the_oldest_python():
    "A parser of Python 3.10 reads every module, test and benchmark."
    oldest = tuple(map(int, SETTINGS['min_python'].split('.')))
    for file in tracked():
        if file.suffix == '.py': ast.parse(file.read_text(), str(file), feature_version=oldest)


def test_notebooks_are_small_and_without_errors():
    for file in tracked():
        if file.suffix != '.ipynb': continue
        cells = json.loads(file.read_text())['cells']
        assert file.stat().st_size < 1_000_000, file
        assert not [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error'], file


def test_no_pickles_and_no_photographs():
    "The one JPEG is the README's image, which is rendered; the small CLIP is small."
    bad = {'.pkl', '.pickle', '.pt', '.pth', '.jpg', '.jpeg'}
    assert not [f for f in tracked() if f.suffix.lower() in bad and f.parent != root/'nbs'/'images']
    assert (root/'clip_dfgs'/'weights'/'pedestrians.safetensors').stat().st_size < 16e6


def test_pages_of_the_site(tmp_path):
    "Empty cells are empty; raw tables, scripts from elsewhere and formulas as text are found."
    build = runpy.run_path(str(root/'nbs'/'_sphinx'/'build.py'))
    table = dict(data={'text/html': ['<td>NaN</td>', '<td class="a">1</td><td> None </td>']})
    cell = build['site_cell'](dict(cell_type='code', source='x', metadata={}, outputs=[table]))
    assert cell['outputs'][0]['data']['text/html'] == '<td></td><td class="a">1</td><td></td>'
    pages = dict(good='<table><td>1</td></table><math><mi>x</mi></math>', table='<p>| a | b |\n|---|---|</p>',
                 script='<script async src="https://cdn.example/mathjax.js">', formula='<span class="math">\\(x</span>')
    for name, text in pages.items(): (tmp_path/f'{name}.html').write_text(text)
    assert [Path(p).stem for p in build['raw_tables'](tmp_path)] == ['table']
    assert {Path(p).stem for p in build['not_found'](tmp_path)} == {'script', 'formula'}
