"""Notebooks, modules and README say the same: export, clean and write the README in a copy, and compare.
Exit 1 names what differs; `--readme` only writes the README of this folder anew."""
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root, programs = Path(__file__).resolve().parent.parent, Path(sys.executable).parent


def write_readme(folder):
    "README.md from what nbs/index.ipynb says and shows, without its code."
    command = [sys.executable, '-m', 'nbconvert', '--to', 'markdown', '--TemplateExporter.exclude_input=True',
               '--output-dir', '.', '--output', 'README', '--NbConvertApp.output_files_dir=nbs/images',
               '--log-level', 'WARN', 'nbs/index.ipynb']
    subprocess.run(command, cwd=folder, env=dict(os.environ, JUPYTER_PLATFORM_DIRS='1'), check=True)


def copied(folder):
    "What git tracks, in a folder of its own."
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split('\0')):
        if not (root/name).exists(): continue
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/name, folder/name)
    return folder


def differing():
    "Files that a fresh export, clean and README would change."
    with tempfile.TemporaryDirectory() as tmp:
        copy = copied(Path(tmp)/root.name)
        for command in ('nbdev_export', 'nbdev_clean'):
            subprocess.run([programs/command], cwd=copy, env=dict(os.environ, PYTHONPATH=str(copy)), check=True)
        subprocess.run([sys.executable, copy/'nbs'/'_sphinx'/'docstrings.py'], check=True)
        write_readme(copy)
        made = [p for d in ('clip_dfgs', 'nbs') for p in (copy/d).rglob('*')
                if p.suffix in ('.py', '.ipynb', '.png', '.jpg', '.jpeg')]
        names = {str(p.relative_to(copy)) for p in made} | {'README.md'}
        return sorted(n for n in names if not (root/n).exists() or not filecmp.cmp(root/n, copy/n, shallow=False))


if '--readme' in sys.argv: write_readme(root)
elif wrong := differing():
    sys.exit('out of step with the notebooks (make export, nbdev_clean, make readme): ' + ', '.join(wrong))
else: print('notebooks, modules and README are in step')
