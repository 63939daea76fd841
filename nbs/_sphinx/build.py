"""The documentation site: chapters, guides, paper and API as one site, built by Sphinx from the notebooks as they are.

`python nbs/_sphinx/build.py _docs` writes `_docs/html/index.html`; a broken link or reference is an error.
"""
import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fastcore.docments import docments

here = Path(__file__).resolve().parent
root = here.parent.parent
TAGS = dict(DFGS='dfgs', GS='gs', CoOp='coop', CLIP='clip', SupCon='supcon', BoT='bot', TransReID='transreid',
            rollout='rollout', MaskCLIP='maskclip',
            **{'CLIP-ReID': 'clipreid', 'k-reciprocal': 'kreciprocal'})
PARTS = {'Begin here': '0', 'Data': '1', 'Batches': '2', 'Model and losses': '3', 'Evaluation': '4', 'Training': '5',
         'Looking and using': '6', 'Commands': '7'}


def chapters(prefix):
    "The chapters of a floor, in order."
    return sorted(p.stem for p in (root/'nbs').glob(f'{prefix}*.ipynb'))


def site_cell(cell):
    "A cell without nbdev's directives; code that only draws is folded, code that nobody reads is gone."
    source = ''.join(cell['source'])
    if cell['cell_type'] != 'code':
        for tag, key in TAGS.items():
            source = source.replace(f'[[{tag}]](references.bib)', f'[[{tag}]](/references.md)')
            source = source.replace(f'[[{tag}]](../references.bib)', f'[[{tag}]](/references.md)')
        return cell | dict(source=source)
    directives = re.findall(r'^#\|\s*(\w[\w-]*)', source, re.M)
    if {'hide', 'default_exp'} & set(directives): return None
    tags = ['hide-input'] if 'code-fold' in directives else []
    bare = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')
    return cell | dict(source=bare, metadata=cell['metadata'] | dict(tags=tags))


def site_notebook(source, target):
    "A notebook as the site shows it."
    book = json.loads(source.read_text(encoding='utf-8'))
    book['cells'] = [c for c in map(site_cell, book['cells']) if c]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(book), encoding='utf-8')


def parameters(thing):
    "A table of the parameters of a function or class, from the comments beside them."
    try: found = docments(thing, full=True, returns=True)
    except (TypeError, ValueError, OSError, SyntaxError): return ''
    rows = []
    for name, about in found.items():
        if name == 'self': continue
        empty = inspect.Parameter.empty
        default = '' if about.get('default', empty) is empty else f'`{about["default"]!r}`'
        words = ' '.join(str(about.get('docment') or '').split()).replace('|', '\\|')
        rows.append(f'| `{name}` | {default[:60]} | {words} |')
    return '\n'.join(['| parameter | default | |', '|---|---|---|', *rows]) + '\n' if rows else ''


def api_page(module):
    "The public names of a module with signatures, sentences and parameters."
    tree = ast.parse((root/'clip_dfgs'/f'{module}.py').read_text())
    names = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                 and getattr(n.targets[0], 'id', '') == '__all__')
    loaded = importlib.import_module(f'clip_dfgs.{module}')
    page = [f'# {module}', '', inspect.getdoc(loaded) or '', '']
    chapter = [c for c in chapters('') if c.split('_', 1)[-1] == module]
    if chapter: page += [f'The chapter: [{chapter[0]}](/{chapter[0]}.ipynb).', '']
    for name in names:
        thing = getattr(loaded, name)
        if not callable(thing): continue
        page += [f'## {name}', '', inspect.getdoc(thing) or '' if inspect.isclass(thing) or inspect.isfunction(thing)
                 else '', '', parameters(thing)]
    return '\n'.join(page)


def modules():
    "The modules of the package in the order of their chapters."
    known = {p.stem for p in (root/'clip_dfgs').glob('*.py') if not p.stem.startswith('_')}
    return [c.split('_', 1)[1] for c in chapters('') if c.split('_', 1)[-1] in known]


def table_of_contents():
    "`_toc.yml`: the floors of the house, then guides, paper, API and references."
    def lines(caption, files): return [f'- caption: {caption}', '  chapters:', *(f'  - file: {f}' for f in files)]
    toc = ['format: jb-book', 'root: index', 'parts:']
    for caption, prefix in PARTS.items(): toc += lines(caption, chapters(prefix))
    for caption, folder in (('Guides', 'guides'), ('The paper', 'paper')):
        books = sorted((root/'nbs'/folder).glob('*.ipynb'), key=lambda p: (p.stem != 'from_nothing', p.stem))
        toc += lines(caption, [f'{folder}/{p.stem}' for p in books])
    toc += lines('API', [f'api/{m}' for m in modules()]) + lines('References', ['references'])
    return '\n'.join(toc) + '\n'


def build(out):
    "Write the site; the exit code of Sphinx, which takes every warning for an error."
    source = Path(out)/'source'
    shutil.rmtree(out, ignore_errors=True)
    for book in (root/'nbs').rglob('*.ipynb'):
        if not any(part.startswith(('.', '_')) for part in book.relative_to(root/'nbs').parts):
            site_notebook(book, source/book.relative_to(root/'nbs'))
    (source/'api').mkdir()
    for module in modules(): (source/'api'/f'{module}.md').write_text(api_page(module), encoding='utf-8')
    (source/'references.md').write_text('# References\n\n```{bibliography}\n:all:\n```\n')
    (source/'_toc.yml').write_text(table_of_contents())
    shutil.copy(root/'nbs'/'references.bib', source)
    shutil.copy(here/'conf.py', source)
    (source/'_static').mkdir()
    shutil.copy(here/'site.css', source/'_static')
    command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', str(source), f'{out}/html']
    return subprocess.run(command).returncode


if __name__ == '__main__': sys.exit(build(sys.argv[1] if len(sys.argv) > 1 else '_docs'))
