"""How much slower is a training step beside another busy process, and what helps?

    python benchmarks/under_load.py              # under three minutes on two cores
    python benchmarks/under_load.py --busy 2     # beside two busy processes

A step of the small CLIP (stage 2, 64 images) runs on all cores, alone and then beside a process that only counts. The
threads of a product wait for each other at its end, and a thread that waits keeps its core busy for a while ("spins")
rather than give it up. Alone that saves the time of waking up. Beside another process it keeps from a core the one
thread that all wait for. The variations are settings of OpenMP, read when a process starts, so that each is a process
of its own; what has no effect on the OpenMP that torch brings (the first line says which) is as slow as the plain one.

`alone` and `busy` are medians in milliseconds, `cost` is alone against the plain setting alone, `slowdown` is busy
against alone of one setting. The best is fast beside a busy process and costs nothing alone.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {
    'plain': {},
    'one thread': dict(OMP_NUM_THREADS='1'),
    'waiting threads sleep': dict(OMP_WAIT_POLICY='PASSIVE'),
    'waiting threads spin briefly': dict(GOMP_SPINCOUNT='10000'),
    'the same for Intel OpenMP': dict(KMP_BLOCKTIME='0')}
COUNTING = [sys.executable, '-c', 'while True: pass']
SECONDS, STEPS = 6, 30 # of each measurement, whichever comes first


def median_step(step):
    "Median seconds of a step."
    times, begun = [], time.perf_counter()
    while len(times) < STEPS and (len(times) < 3 or time.perf_counter() - begun < SECONDS):
        start = time.perf_counter()
        step().item()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def child(folder, busy):
    "Measures in this process's setting and prints the figures as JSON."
    import torch
    from clip_dfgs.training.config import Stage, TrainConfig
    from clip_dfgs.data.datasets import load_dataset
    from clip_dfgs.inference.embed import make_accelerator
    from clip_dfgs.data.loader import LazyImages
    from clip_dfgs.data.records import pool
    from clip_dfgs.training.run import Run
    from clip_dfgs.training.trainer import new_model
    from train_step import one_step
    config = TrainConfig(precision='no', prompts=None, sampler='pk', finetune=Stage(steps=1, batch=64))
    rows, accelerator = pool([load_dataset('market1501', folder)]), make_accelerator('no')
    model = new_model(rows, config).to(accelerator.device)
    images = LazyImages(rows['path'].tolist(), model.config['image_size'])
    step = one_step(Run(None, config, rows, model, images, accelerator), 'finetune')
    for _ in range(2): step()
    alone = median_step(step)
    others = [subprocess.Popen(COUNTING) for _ in range(busy)]
    try: beside = median_step(step)
    finally:
        for other in others: other.kill()
    print(json.dumps(dict(alone=alone, busy=beside, threads=torch.get_num_threads())))


def main(busy):
    "The table, and what is best beside a busy process."
    import torch
    from clip_dfgs.synthetic.domain import render_domain
    lines = torch.__config__.parallel_info().splitlines()
    openmp = next((line for line in lines if line.startswith('OpenMP')), 'OpenMP: none')
    own = ' '.join(sorted(p.name for p in Path(torch.__file__).parent.rglob('lib*omp*.so*'))) or 'not its own'
    print(f'torch {torch.__version__}, {os.cpu_count()} cores, {openmp} ({own})')
    print(f'{"setting":32}{"threads":>8}{"alone":>10}{"busy":>10}{"cost":>8}{"slowdown":>10}')
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        render_domain(f'{folder}/town', seed=0, identities=40, cameras=4, progress=False)
        for name, setting in SETTINGS.items():
            clean = {k: v for k, v in os.environ.items() if not k.startswith(('OMP_', 'GOMP_', 'KMP_', 'MKL_'))}
            command = [sys.executable, __file__, '--child', f'{folder}/town', str(busy)]
            done = subprocess.run(command, env=clean | setting, capture_output=True, text=True)
            if done.returncode: raise SystemExit(f'{name}: {done.stderr.strip().splitlines()[-1:]}')
            found[name] = r = json.loads(done.stdout.splitlines()[-1])
            plain = found['plain']['alone']
            print(f'{name:32}{r["threads"]:8}{1000*r["alone"]:10.1f}{1000*r["busy"]:10.1f}{r["alone"]/plain:7.2f}x'
                  f'{r["busy"]/r["alone"]:9.2f}x   {" ".join(f"{k}={v}" for k, v in setting.items())}', flush=True)
    free = {name: r for name, r in found.items() if r['alone'] <= 1.05*found['plain']['alone']}
    best = min(free, key=lambda name: free[name]['busy'])
    print(f'of what costs at most 5 % alone, best beside a busy process: {best}, '
          f'{found["plain"]["busy"]/found[best]["busy"]:.1f}x as fast as plain')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--busy', type=int, default=1, help='processes that only count')
    parser.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: child(args.child[0], int(args.child[1]))
    else: main(args.busy)
