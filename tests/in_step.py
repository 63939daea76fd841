"Notebooks, modules and README say the same: export, clean and README again in a copy, and compare. Exit 1 names what differs."
import filecmp, os, shutil, subprocess, sys, tempfile
from pathlib import Path

root, bin = Path(__file__).resolve().parent.parent, Path(sys.executable).parent
files = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True, check=True).stdout.split('\0')
with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/root.name
    for f in filter(None, files):
        if (root/f).exists(): (copy/f).parent.mkdir(parents=True, exist_ok=True); shutil.copy2(root/f, copy/f)
    env = dict(os.environ, PYTHONPATH=str(copy), JUPYTER_PLATFORM_DIRS='1')
    for command in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([bin/command], cwd=copy, env=env, check=True)
    subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'markdown', '--output-dir', '.', '--output', 'README', '--NbConvertApp.output_files_dir=nbs/images', '--log-level', 'WARN', 'nbs/index.ipynb'], cwd=copy, env=env, check=True)
    made = {str(p.relative_to(copy)) for d in ('clip_dfgs', 'nbs') for p in (copy/d).rglob('*') if p.suffix in ('.py', '.ipynb', '.png')} | {'README.md'}
    wrong = sorted(f for f in made | {f for f in files if f.startswith('clip_dfgs/') and f.endswith('.py')}
                   if not ((root/f).exists() and (copy/f).exists() and filecmp.cmp(root/f, copy/f, shallow=False)))
if wrong: sys.exit('out of step with the notebooks (run: make export readme, nbdev_clean): ' + ', '.join(wrong))
print('notebooks, modules and README are in step')
