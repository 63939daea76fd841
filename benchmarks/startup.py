"""CPU time of starting, as a ratio to `import torch`, in one run: what is imported needlessly shows here.

    python benchmarks/startup.py            # minima of three alternating repeats, each in a fresh interpreter
"""
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = 'from clip_dfgs.cli import main\n'
LINES = {
    'import torch': 'import torch',
    'import open_clip': 'import open_clip',
    'clip-dfgs train --help': COMMAND + "try: main(['train', '--help'])\nexcept SystemExit: pass",
    'import clip_dfgs.synthetic': 'import clip_dfgs.synthetic',
    'from clip_dfgs.sampling import DepthFirstGraphSampler': 'from clip_dfgs.sampling import DepthFirstGraphSampler',
    'from clip_dfgs import FeatureExtractor': 'from clip_dfgs import FeatureExtractor',
    "FeatureExtractor('pedestrians')": "from clip_dfgs import FeatureExtractor; FeatureExtractor('pedestrians')",
    'clip-dfgs search GALLERY IMAGE, first answer': COMMAND + "main(['search', {gallery!r}, {image!r}])",
    'clip-dfgs search GALLERY --text, first answer': COMMAND + "main(['search', {gallery!r}, '--text', 'a red coat'])"}


def seconds(code):
    "CPU time of a fresh interpreter that runs these lines."
    timed = f'{code}\nimport time, sys; print(time.process_time(), file=sys.stderr)'
    done = subprocess.run([sys.executable, '-c', timed], capture_output=True, text=True, check=True)
    return float(done.stderr.split()[-1])


def main(repeats=3):
    from clip_dfgs.gallery.gallery import find_images
    from clip_dfgs.gallery.store import embed_gallery
    from clip_dfgs.synthetic.domain import render_domain
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)/'images'
        render_domain(images, seed=1, identities=4, progress=False)
        embed_gallery(find_images([str(images)], camera=''), 'pedestrians', Path(folder)/'gallery')
        places = dict(gallery=str(Path(folder)/'gallery'), image=str(next(images.rglob('*.jpg'))))
        lines = {name: code.format(**places) for name, code in LINES.items()}
        runs = [{name: seconds(code) for name, code in lines.items()} for _ in range(repeats)]
    best = {name: min(run[name] for run in runs) for name in LINES}
    for name, value in best.items(): print(f'{name:55} {value:6.2f} s CPU {value/best["import torch"]:6.2f} x torch')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
