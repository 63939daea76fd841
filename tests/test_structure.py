"The house: who imports whom, how large a room is, which names are public, and how a line is written."
import ast
import graphlib
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
modules = {p.stem: p for p in sorted((root/'clip_dfgs').glob('*.py')) if not p.stem.startswith('_')}
notebooks = sorted((root/'nbs').rglob('*.ipynb'))
FOR_OTHER_PROJECTS = ('graph hubs walk passes samplers epochs losses distances matching evaluation intervals '
                      'verification reranking').split()


def imported(module):
    "Modules of the package that a module imports, also inside functions."
    names = set()
    for node in ast.walk(ast.parse(modules[module].read_text())):
        if isinstance(node, ast.Import): names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            base = 'clip_dfgs.' if node.level else ''
            names |= {base + (node.module or '')} | {f'{base}{node.module or ""}.{a.name}' for a in node.names}
    return {n.split('.')[1] for n in names if n.startswith('clip_dfgs.') and n.split('.')[1] in modules}


def outside(module):
    "Packages that a module imports at its top."
    found = set()
    for node in ast.parse(modules[module].read_text()).body:
        if isinstance(node, ast.Import): found |= {a.name.split('.')[0] for a in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0: found.add(node.module.split('.')[0])
    return found


def code_cells(notebook):
    "Sources of the code cells of a notebook."
    return [''.join(c['source']) for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']


def test_no_two_modules_import_each_other():
    graphlib.TopologicalSorter({m: imported(m) for m in modules}).prepare()      # CycleError names the circle


def test_an_import_circle_would_be_found():
    with pytest.raises(graphlib.CycleError): graphlib.TopologicalSorter(dict(a={'b'}, b={'a'})).prepare()
    assert 'files' in imported('records') and imported('files') == set()


@pytest.mark.parametrize('module', FOR_OTHER_PROJECTS)
def test_rooms_for_other_projects_import_little(module):
    import sys
    heavy = outside(module) - set(sys.stdlib_module_names) - {'clip_dfgs', 'numpy', 'torch', 'pandas'}
    assert not heavy and imported(module) <= {'files', *FOR_OTHER_PROJECTS}


@pytest.mark.parametrize('module', modules)
def test_a_room_is_small(module):
    code = [line for line in modules[module].read_text().split('\n') if line.strip() and not line.startswith('#')]
    assert len(code) <= (600 if module == 'pedestrians' else 350)


def test_public_names_are_the_ones_agreed_on():
    "tests/public_names.txt: a module a line; a new public name is written there on purpose."
    agreed = dict(line.split(': ') for line in (root/'tests'/'public_names.txt').read_text().splitlines())
    found = {}
    for module, path in modules.items():
        names = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign)
                     and getattr(n.targets[0], 'id', '') == '__all__')
        found[module] = ' '.join(sorted(ast.literal_eval(names.value)))
    assert found == agreed


@pytest.mark.parametrize('notebook', [n for n in notebooks if n.parent.name == 'nbs' and n.stem != 'index'],
                         ids=lambda n: n.stem)
def test_a_chapter_says_what_it_is_for(notebook):
    first = json.loads(notebook.read_text())['cells'][0]
    title, purpose = [line for line in ''.join(first['source']).split('\n') if line][:2]
    assert title.startswith('# ') and purpose.startswith('> ')


@pytest.mark.parametrize('notebook', notebooks, ids=lambda n: n.stem)
def test_export_cells_hold_one_thing(notebook):
    "A function or a few small ones; a class is longer, since its methods stand in its body."
    for source in code_cells(notebook):
        if not re.search(r'^#\| exporti?\b', source, re.M): continue
        assert len(source.split('\n')) <= (130 if re.search(r'^class ', source, re.M) else 50), source[:200]


def statements(source):
    "The syntax tree of a cell, without IPython's magics."
    return ast.walk(ast.parse(re.sub(r'^[%!].*', 'pass', source, flags=re.M)))


def unfit(source):
    "What a linter does not see: conditional expressions as statements, `:=` in comprehensions."
    for node in statements(source):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.IfExp): yield ast.unparse(node)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            if any(isinstance(n, ast.NamedExpr) for n in ast.walk(node)): yield ast.unparse(node)


@pytest.mark.parametrize('notebook', notebooks, ids=lambda n: n.stem)
def test_how_notebooks_are_written(notebook):
    assert [u for source in code_cells(notebook) for u in unfit(source)] == []


scripts = [*(root/'tests').glob('*.py'), *(root/'benchmarks').glob('*.py')]


@pytest.mark.parametrize('file', scripts, ids=lambda f: f.stem)
def test_how_scripts_are_written(file):
    assert list(unfit(file.read_text())) == []


def test_unfit_lines_are_found():
    assert len(list(unfit('a() if b else c()'))) == 1 and len(list(unfit('[y for x in z if (y := x)]'))) == 1
    assert not list(unfit('x = a if b else c'))
