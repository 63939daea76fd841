"""Run notebooks and compare what they show with what is stored, numbers masked: `python tests/fresh.py [FOLDER ...]`.
Exit 1 names the cells whose text differs."""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def shown(notebook):
    "The text outputs of each code cell, numbers, folders and addresses masked."
    cells = [c for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']
    for cell in cells:
        text = ''
        for output in cell['outputs']:
            if output.get('name') == 'stderr': continue
            text += ''.join(output.get('text', output.get('data', {}).get('text/plain', '')))
        yield re.sub(r'\s+', ' ', re.sub(r'/\S+|0x[0-9a-f]+|[-+]?\d[\d.,e%+-]*', '#', text))


def stale(notebook):
    "Numbers of the cells that show something else when they are run now."
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--output-dir', out,
                   '--output', 'now', '--log-level', 'ERROR', notebook.name]
        subprocess.run(command, cwd=notebook.parent, check=True)
        pairs = zip(shown(notebook), shown(Path(out)/'now.ipynb'))
        return [number for number, (old, new) in enumerate(pairs) if old != new]


if __name__ == '__main__':
    folders = [root/name for name in sys.argv[1:]] or [root/'nbs']
    books = [b for f in folders for b in ([f] if f.is_file() else sorted(f.rglob('*.ipynb')))]
    found = {str(b.relative_to(root)): stale(b) for b in books if '.ipynb_checkpoints' not in b.parts}
    for book, cells in found.items():
        if cells: print(f'{book}: code cells {cells} show something else now')
    sys.exit(any(found.values()))
