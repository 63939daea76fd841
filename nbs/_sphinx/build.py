"""The documentation site: chapters, guides, paper and API as one site, built by Sphinx from the notebooks as they are.

`python nbs/_sphinx/build.py _docs` writes `_docs/html/index.html`; a broken link or reference is an error.
"""
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
PAPER = ['00_method', 'sampling/01_graph', 'sampling/02_depth_first', 'sampling/03_samplers', 'training/02_losses',
         'training/06_trainer']                               # the paper in six chapters
FOLDERS = ['data', 'sampling', 'models', 'evaluation', 'inference', 'synthetic', 'training', 'gallery', 'viz',
           'experiments', 'cli', 'utils']


def chapters(folder):
    "The chapters of a folder, in order."
    return [f'{folder}/{p.stem}' for p in sorted((root/'nbs'/folder).glob('*.ipynb'))]


def site_cell(cell):
    "A cell without nbdev's directives; code that only draws is folded, code that nobody reads is gone."
    source = ''.join(cell['source'])
    if cell['cell_type'] != 'code':
        for tag in TAGS:
            link = rf'\[\[{re.escape(tag)}\]\]\((?:\.\./)*references\.bib\)'
            source = re.sub(link, f'[[{tag}]](/references.md)', source)
        return cell | dict(source=source)
    directives = re.findall(r'^#\|\s*(\w[\w-]*)', source, re.M)
    if {'hide', 'default_exp'} & set(directives): return None
    tags = ['hide-input'] if 'code-fold' in directives else []
    if re.search(r'^#\|\s*echo:\s*false', source, re.M): tags = ['remove-input']
    bare = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')
    for output in cell['outputs']:                            # what a table does not know is an empty cell
        data = output.get('data', {})
        html = ''.join(data.get('text/html', ''))
        if html: data['text/html'] = re.sub(r'<td([^>]*)>\s*(NaN|nan|None|NaT|&lt;NA&gt;)\s*<', r'<td\1><', html)
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


def api_page(chapter):
    "The public names of a chapter's module with signatures, sentences and parameters."
    folder, stem = chapter.split('/')
    module = f'{folder}.{stem.split("_", 1)[1]}'
    loaded = importlib.import_module(f'clip_dfgs.{module}')
    page = [f'# {module}', '', inspect.getdoc(loaded) or '', '', f'The chapter: [{stem}](/{chapter}.ipynb).', '']
    for name in loaded.__all__:
        thing = getattr(loaded, name)
        if not callable(thing): continue
        told = inspect.getdoc(thing) if inspect.isclass(thing) or inspect.isfunction(thing) else ''
        page += [f'## {name}', '', (told or '').split('\n\n')[0], '', parameters(thing)]
    return '\n'.join(page)


def modules():
    "The chapters that are modules of the package."
    return [c for folder in FOLDERS for c in chapters(folder)]


def table_of_contents():
    "`_toc.yml`: the paper in six chapters, guides, then the rest by folder, API and references."
    def lines(caption, files): return [f'- caption: {caption}', '  chapters:', *(f'  - file: {f}' for f in files)]
    toc = ['format: jb-book', 'root: index', 'parts:', *lines('The paper in six chapters', PAPER)]
    guides = sorted(chapters('guides'), key=lambda c: (not c.endswith('from_nothing'), c))
    toc += lines('Guides', guides) + lines('Figures and tables', chapters('paper'))
    for folder in FOLDERS: toc += lines(folder.capitalize(), [c for c in chapters(folder) if c not in PAPER])
    toc += lines('API', [f'api/{c.replace("/", "_")}' for c in modules()]) + lines('References', ['references'])
    return '\n'.join(toc) + '\n'


def not_found(html):
    "Built pages that load something from elsewhere, or show a formula as text."
    return [str(p) for p in Path(html).rglob('*.html')
            if re.search(r'<script[^>]*src="https?:|MathJax|class="math[^>]*>\s*\\', p.read_text('utf-8'))]


def raw_tables(html):
    "Built pages on which a Markdown table stands as text."
    return [str(p) for p in Path(html).rglob('*.html') if re.search(r'<p>\s*\|[^<]*\|\s*-{3}', p.read_text('utf-8'))]


def build(out):
    "Write the site; the exit code of Sphinx, which takes every warning for an error."
    source = Path(out)/'source'
    shutil.rmtree(out, ignore_errors=True)
    for book in (root/'nbs').rglob('*.ipynb'):
        if not any(part.startswith(('.', '_')) for part in book.relative_to(root/'nbs').parts):
            site_notebook(book, source/book.relative_to(root/'nbs'))
    (source/'api').mkdir()
    for chapter in modules():
        (source/'api'/f'{chapter.replace("/", "_")}.md').write_text(api_page(chapter), encoding='utf-8')
    (source/'references.md').write_text('# References\n\n```{bibliography}\n:all:\n```\n')
    (source/'_toc.yml').write_text(table_of_contents())
    shutil.copy(root/'nbs'/'references.bib', source)
    shutil.copy(here/'conf.py', source)
    (source/'_static').mkdir()
    shutil.copy(here/'site.css', source/'_static')
    command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', str(source), f'{out}/html']
    code = subprocess.run(command).returncode
    if raw := raw_tables(f'{out}/html'): sys.exit(f'tables stand as text on {raw}')
    if lost := not_found(f'{out}/html'): sys.exit(f'formulas or scripts need a network on {lost}')
    return code


if __name__ == '__main__': sys.exit(build(sys.argv[1] if len(sys.argv) > 1 else '_docs'))
