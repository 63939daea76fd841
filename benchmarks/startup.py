"""CPU time of starting, as a ratio to `import torch`, in one run: what is imported needlessly shows here.

    python benchmarks/startup.py            # minima of three alternating repeats, each in a fresh interpreter
"""
import subprocess
import sys

LINES = {
    'import torch': 'import torch',
    'import open_clip': 'import open_clip',
    'clip-dfgs --help': "from clip_dfgs.cli.main import main; main(['--help'])",
    'clip-dfgs train --help': "from clip_dfgs.cli.main import main\ntry: main(['train', '--help'])\n"
                              'except SystemExit: pass',
    'import clip_dfgs': 'import clip_dfgs',
    'from clip_dfgs import FeatureExtractor': 'from clip_dfgs import FeatureExtractor',
    'what clip-dfgs search imports': 'import clip_dfgs.gallery.search, clip_dfgs.gallery.store',
    'from clip_dfgs.sampling import DepthFirstGraphSampler': 'from clip_dfgs.sampling import DepthFirstGraphSampler'}


def seconds(code):
    "CPU time of a fresh interpreter that runs these lines."
    timed = f'{code}\nimport time, sys; print(time.process_time(), file=sys.stderr)'
    done = subprocess.run([sys.executable, '-c', timed], capture_output=True, text=True, check=True)
    return float(done.stderr.split()[-1])


def main(repeats=3):
    runs = [{name: seconds(code) for name, code in LINES.items()} for _ in range(repeats)]
    best = {name: min(run[name] for run in runs) for name in LINES}
    for name, value in best.items(): print(f'{name:55} {value:6.2f} s CPU {value/best["import torch"]:6.2f} x torch')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
