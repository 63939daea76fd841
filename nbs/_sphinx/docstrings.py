"""The comments beside parameters as numpy-style docstrings, in the exported modules; notebooks stay the source.

`python nbs/_sphinx/docstrings.py`, after `nbdev_export`, rewrites the docstring of every name that a sub-package hands
out, and of its public methods, so that `help()` and editors show shapes, units and errors.
"""
import ast
import re
import textwrap
from pathlib import Path

root = Path(__file__).resolve().parent.parent.parent


def comments(lines, first, last):
    "Line number -> the comment at its end, for lines that hold a parameter."
    found = {}
    for number in range(first, last + 1):
        match = re.search(r'\s# (.*)$', lines[number - 1])
        if match: found[number] = match[1].strip()
    return found


def section(title, entries):
    "A section of a numpy-style docstring; '' without entries."
    rows = [f'{name}\n    {told}' for name, told in entries if told]
    return f'\n\n{title}\n{"-"*len(title)}\n' + '\n'.join(rows) if rows else ''


def told(function, lines):
    "Parameters and Returns of a function, from the comments in its signature."
    end = function.body[0].lineno - 1
    beside = comments(lines, function.lineno, end)
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    entries = []
    for a in arguments:
        if a.arg in ('self', 'cls'): continue
        kind = f' : {ast.unparse(a.annotation)}' if a.annotation else ''
        alone = sum(b.lineno == a.lineno for b in arguments if b.arg not in ('self', 'cls')) == 1
        line = a.end_lineno if alone else a.lineno
        result = function.returns is not None and line == function.returns.lineno   # then the comment is the result's
        entries.append((f'{a.arg}{kind}', None if result else beside.get(line)))
    returned = beside.get(end)
    kind = ast.unparse(function.returns).strip("'\"") if function.returns else 'value'
    if returned and any(returned == words for _, words in entries): returned = None
    return section('Parameters', entries) + section('Returns', [(kind, returned)])


def raised(sentence):
    "Raises, from the parts of a docstring's sentence that begin with the name of an error."
    found = re.findall(r'(?:^|; |, )(\w+Error) ([^;]+?)(?=;|\.? ?\[|\.?$)', sentence)
    return section('Raises', found)


def documented(node, lines):
    "(first line, last line, new docstring) of a function or class, or None."
    if not isinstance(node.body[0], ast.Expr) or not isinstance(node.body[0].value, ast.Constant): return None
    doc, text = node.body[0], node.body[0].value.value
    if not isinstance(text, str) or '\n' in text: return None
    if isinstance(node, ast.ClassDef):
        begin = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None)
        more = told(begin, lines).split('\n\nReturns')[0] if begin else ''
    else: more = told(node, lines)
    more += raised(text)
    if not more: return None
    whole = textwrap.indent(f'"""{text}{more}\n"""', ' '*doc.col_offset)
    return doc.lineno, doc.end_lineno, re.sub(r'[ \t]+$', '', whole, flags=re.M).replace('\\', '\\\\')


def patched(node):
    "The class that a function is patched into as a public method; None for other definitions."
    decorators = [ast.unparse(d) for d in getattr(node, 'decorator_list', [])]
    if not any(d.split('(')[0] == 'patch' for d in decorators) or node.name.startswith('_'): return None
    return ast.unparse(node.args.args[0].annotation)


def rewrite(path, names):
    "Rewrite the docstrings of some names of a module."
    source = path.read_text(encoding='utf-8')
    lines, changes = source.split('\n'), []
    for node in ast.parse(source).body:
        if getattr(node, 'name', None) not in names and patched(node) not in names: continue
        inner = [m for m in getattr(node, 'body', []) if isinstance(m, ast.FunctionDef)
                 and (not m.name.startswith('_') or m.name == '__call__')] if isinstance(node, ast.ClassDef) else []
        changes += [c for c in (documented(n, lines) for n in [node, *inner]) if c]
    for first, last, text in sorted(changes, reverse=True): lines[first - 1:last] = text.split('\n')
    if changes: path.write_text('\n'.join(lines), encoding='utf-8')


if __name__ == '__main__':
    for folder in sorted(p.parent.name for p in (root/'clip_dfgs').glob('*/__init__.py')):
        tree = ast.parse((root/'clip_dfgs'/folder/'__init__.py').read_text())
        call = next(n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call))
        for word in call.keywords:
            names = set(ast.literal_eval(word.value).split())
            rewrite(root/'clip_dfgs'/folder/f'{word.arg}.py', names)
