"""Notebooks, modules and README say the same: export, clean and write the README in a copy, and compare.
Exit 1 names what differs; `--readme` only writes the README of this folder anew."""
import filecmp, os, shutil, subprocess, sys, tempfile
from pathlib import Path

root, bin = Path(__file__).resolve().parent.parent, Path(sys.executable).parent

def write_readme(folder):
    "README.md from what nbs/index.ipynb says and shows, without its code."
    subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'markdown', '--TemplateExporter.exclude_input=True', '--output-dir', '.', '--output', 'README',
                    '--NbConvertApp.output_files_dir=nbs/images', '--log-level', 'WARN', 'nbs/index.ipynb'], cwd=folder, env=dict(os.environ, JUPYTER_PLATFORM_DIRS='1'), check=True)

def differing():
    "Files that a fresh export, clean and README would change."
    files = [f for f in subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True, check=True).stdout.split('\0') if f and (root/f).exists()]
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/root.name
        for f in files: (copy/f).parent.mkdir(parents=True, exist_ok=True); shutil.copy2(root/f, copy/f)
        for command in ('nbdev_export', 'nbdev_clean'): subprocess.run([bin/command], cwd=copy, env=dict(os.environ, PYTHONPATH=str(copy)), check=True)
        write_readme(copy)
        made = {str(p.relative_to(copy)) for d in ('clip_dfgs', 'nbs') for p in (copy/d).rglob('*') if p.suffix in ('.py', '.ipynb', '.png', '.jpg', '.jpeg')} | {'README.md'}
        return sorted(f for f in made if not ((root/f).exists() and filecmp.cmp(root/f, copy/f, shallow=False)))

if '--readme' in sys.argv: write_readme(root)
elif wrong := differing(): sys.exit('out of step with the notebooks (nbdev_export, nbdev_clean, make readme): ' + ', '.join(wrong))
else: print('notebooks, modules and README are in step')
