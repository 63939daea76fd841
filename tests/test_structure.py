"The structure of the package: which sub-package imports which, what its names are, and how cells are written."
import ast
import functools
import graphlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
modules = sorted(p for p in (root/'clip_dfgs').rglob('*.py') if not p.stem.startswith('_'))
packages = sorted({p.parent.name for p in modules})
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MIDDLE = {'data', 'sampling', 'models', 'evaluation'}
BELOW = dict(utils=set(), **dict.fromkeys(MIDDLE, {'utils'}))
BELOW |= dict.fromkeys(['inference', 'synthetic'], {'utils', *MIDDLE})
BELOW |= dict.fromkeys(['training', 'gallery'], {'inference', 'synthetic', 'utils', *MIDDLE})
BELOW['viz'] = {*BELOW, 'training', 'gallery'}
BELOW['experiments'] = {*BELOW}
BELOW['cli'] = {*BELOW}


def name_of(path):
    "A module's dotted name below clip_dfgs."
    return '.'.join(path.relative_to(root/'clip_dfgs').with_suffix('').parts)


@functools.cache
def handed_out():
    "Names that the package and its sub-packages hand out lazily: dotted name -> dotted module."
    found = {}
    for file in (root/'clip_dfgs').rglob('__init__.py'):
        base = '.'.join(file.relative_to(root).parent.parts)
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call) and n.keywords]
        for keyword in (k for call in calls for k in call.keywords):
            home = f'{base}.{keyword.arg.replace("__", ".")}'
            found |= {f'{base}.{name}': home for name in keyword.value.value.split()}
    return found


def imported(text, folder, inside=True):
    "Modules of the package that a source imports, also inside functions unless told otherwise: dotted names."
    found, tree, homes = set(), ast.parse(text), handed_out()
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        base = folder[:len(folder) - node.level + 1] if node.level else ()
        whole = '.'.join([*base, *filter(None, [node.module])])
        found |= {whole, *(f'{whole}.{alias.name}' for alias in node.names)}
    known = {f'clip_dfgs.{name_of(p)}' for p in modules}
    return {name.removeprefix('clip_dfgs.') for name in {homes.get(name, name) for name in found} & known}


def imports_of(path, inside=True): return imported(path.read_text(), path.relative_to(root).parent.parts, inside)


def test_no_name_that_is_handed_out_is_a_module():
    "Importing the module would put it in the place of the name."
    for dotted in handed_out(): assert not (root/dotted.replace('.', '/')).with_suffix('.py').exists(), dotted


UPWARD = set() # (module, what it imports from above): keep it empty


@pytest.mark.parametrize('package', packages)
def test_a_sub_package_imports_only_what_stands_below_it(package):
    "Neither at the top of a module nor inside a function."
    for path in (root/'clip_dfgs'/package).glob('*.py'):
        allowed = {*BELOW[package], package}
        found = {(name_of(path), name) for name in imports_of(path) if name.split('.')[0] not in allowed}
        assert found <= UPWARD, found - UPWARD


@pytest.mark.parametrize('line', ['from ..training.trainer import fit', 'from clip_dfgs.training import trainer',
                                  'from clip_dfgs import fit', 'from ..training import fit', 'from .. import fit',
                                  'import clip_dfgs.training.trainer'])
def test_every_way_of_importing_is_seen(line):
    for text in (line, f'def later():\n    {line}'): assert 'training.trainer' in imported(text, ('clip_dfgs', 'data'))
    assert not imported(f'def later():\n    {line}', ('clip_dfgs', 'data'), inside=False)


def test_few_private_names_cross_modules():
    private = [(path.stem, alias.name) for path in modules for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').startswith('clip_dfgs'))
               for alias in node.names if re.match('_[a-z]', alias.name)]
    assert len(private) <= 5, private


def test_no_two_modules_import_each_other():
    "When they are imported; a function may import what is made of its own module."
    graph = {name_of(p): imports_of(p, inside=False) for p in modules}
    graphlib.TopologicalSorter(graph).prepare() # CycleError names it
    with pytest.raises(graphlib.CycleError): graphlib.TopologicalSorter(dict(a={'b'}, b={'a'})).prepare()


LIGHT = """import sys
def heavy(*names): return sorted(set(names) & {m.split('.')[0] for m in sys.modules})
import clip_dfgs
print(heavy('torch', 'numpy', 'pandas', 'open_clip', 'timm', 'matplotlib'))
from clip_dfgs.sampling import DepthFirstGraphSampler
import clip_dfgs.training.losses
print(heavy('open_clip', 'timm', 'torchvision', 'accelerate', 'matplotlib', 'PIL'))
kept = ('sampling', 'utils', 'training', '_lazy')
print([m for m in sys.modules if m.startswith('clip_dfgs.') and m.split('.')[1] not in kept])
import clip_dfgs.evaluation.metrics, clip_dfgs.evaluation.reranking, clip_dfgs.evaluation.bootstrap
print(heavy('open_clip', 'timm', 'torchvision', 'accelerate', 'matplotlib', 'PIL'))
import clip_dfgs.synthetic
from clip_dfgs import FeatureExtractor, Gallery
FeatureExtractor('pedestrians').text('a man in a red coat')
print(heavy('open_clip', 'timm', 'torchvision', 'matplotlib', 'onnxruntime'))
"""


def test_imports_are_light():
    "One interpreter for all claims: package, sampler and losses, evaluation, features of the small CLIP."
    said = subprocess.run([sys.executable, '-c', LIGHT], capture_output=True, text=True, check=True).stdout.split('\n')
    assert said[:5] == ['[]'] * 5


@pytest.mark.parametrize('package', packages)
def test_a_sub_package_hands_out_its_names(package):
    found = importlib.import_module(f'clip_dfgs.{package}')
    assert set(found.__all__) <= set(dir(found))
    for name in found.__all__: assert getattr(found, name) is not None
    with pytest.raises(AttributeError): getattr(found, 'no_such_name')


def code_cells(notebook):
    "Sources of the code cells of a notebook."
    return [''.join(c['source']) for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']


@pytest.mark.parametrize('package', packages)
def test_notebooks_and_modules_are_one_to_one(package):
    books = sorted((root/'nbs'/package).glob('*.ipynb'))
    named = [m for book in books for s in code_cells(book) for m in re.findall(r'^#\|\s*default_exp\s+(\S+)', s, re.M)]
    assert named == [f'{package}.{book.stem.split("_", 1)[1]}' for book in books]
    assert sorted(named) == [name_of(p) for p in sorted(modules) if p.parent.name == package]


def test_a_chapter_says_what_it_is_for():
    for notebook in (n for n in notebooks if n.parent.name in packages):
        first = json.loads(notebook.read_text())['cells'][0]
        title, purpose = [line for line in ''.join(first['source']).split('\n') if line][:2]
        assert title.startswith('# ') and purpose.startswith('> '), notebook


def test_export_cells_hold_one_thing():
    "A function or a few small ones; a class is longer, since its methods stand in its body."
    for notebook in notebooks:
        for source in code_cells(notebook):
            if not re.search(r'^#\| exporti?\b', source, re.M): continue
            assert len(source.split('\n')) <= (170 if re.search(r'^class ', source, re.M) else 60), source[:200]
