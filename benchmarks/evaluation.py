"""Evaluation beside a careful loop and one matrix product, in one process.

    python benchmarks/evaluation.py                # four sizes, two minutes
    python benchmarks/evaluation.py --sizes market --threads 2 --rerank
    python benchmarks/evaluation.py --sizes market --threads 2 --busy 1  # wall seconds beside a process that counts
    python benchmarks/evaluation.py --device cuda  # on a GPU, where the peak is torch's

The careful loop is what a good programmer writes: both sides at unit length, one product, an argsort of each row, one
query at a time, no table of queries, no checks. It leaves the order of ties to chance. The whole matrix is the way of
torchreid and fast-reid: all distances in torch, one argsort of all, then a loop over queries; their packages on PyPI
hold no compiled form of the loop. The product alone is what nobody can go below.
"""
import argparse
import subprocess
import sys

import numpy as np
import torch
from beside import beside
from clip_dfgs.evaluation.metrics import evaluate

SIZES = dict(small=(100, 500, 128, 50), middle=(1000, 4000, 512, 200), market=(3368, 15913, 512, 750),
             wide=(3368, 15913, 1280, 750), msmt17=(1457, 82161, 512, 3060))


def features(Q, G, width, identities, seed=0):
    "Made-up features around one center an identity, with ids and cameras, queries first."
    draw = np.random.default_rng(seed)
    centers, sides = draw.standard_normal((identities, width), dtype=np.float32), []
    for n in (Q, G):
        ids = draw.integers(0, identities, n)
        sides.append((3*draw.standard_normal((n, width), dtype=np.float32) + centers[ids], ids, draw.integers(0, 6, n)))
    return [x for pair in zip(*sides) for x in pair]


def careful(q, g, qi, gi, qc, gc):
    "The mean average precision, without waste."
    q, g = (x/np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    scores, found = q @ g.T, []
    for i in range(len(q)):
        order = np.argsort(-scores[i])
        right = gi[order] == qi[i]
        right = np.flatnonzero(right[~(right & (gc[order] == qc[i]))]) + 1
        if len(right): found.append((np.arange(1, len(right) + 1)/right).mean())
    return np.mean(found)


def whole(q, g, qi, gi, qc, gc):
    "The mean average precision, all distances and their order at once."
    q, g = (torch.nn.functional.normalize(torch.from_numpy(x)) for x in (q, g))
    order, found = np.argsort((1 - q @ g.T).numpy(), axis=1), []
    right = gi[order] == qi[:, None]
    for i in range(len(q)):
        counts = np.cumsum(hits := right[i][~((gi[order[i]] == qi[i]) & (gc[order[i]] == qc[i]))])
        if hits.any(): found.append((counts/np.arange(1, len(hits) + 1)*hits).sum()/counts[-1])
    return np.mean(found)


def main(sizes, threads, rerank, busy, device):
    torch.set_num_threads(threads)
    others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(busy)]
    try: measure(sizes, rerank, device)
    finally:
        for other in others: other.kill()


def measure(sizes, rerank, device):
    for name in sizes:
        q, g, *labels = features(*SIZES[name])
        there = [torch.from_numpy(x).to(device) for x in (q, g)]
        ways = {'evaluate': lambda: evaluate(*there, *labels).mAP, 'careful loop': lambda: careful(q, g, *labels),
                'whole matrix': lambda: whole(q, g, *labels), 'product': lambda: (there[0] @ there[1].T)[0, 0].item(),
                "numpy's product": lambda: (q @ g.T)[0, 0]}
        if rerank: ways['evaluate, re-ranked'] = lambda: evaluate(*there, *labels, rerank=True).mAP
        found = beside('evaluation, {:,} x {:,} x {}'.format(*SIZES[name]), ways, dict(small=25, middle=5).get(name, 2))
        print(f'mAP differs by {abs(found["evaluate"] - found["careful loop"]):.1e}')
        if device != 'cpu': print(f'peak on the device: {torch.cuda.max_memory_allocated()/1e9:.2f} GB')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=list(SIZES))
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rerank', action='store_true', help='also with k-reciprocal re-ranking')
    parser.add_argument('--busy', type=int, default=0, help='processes that count meanwhile')
    parser.add_argument('--device', default='cpu', help='where the features are, for example cuda')
    main(**vars(parser.parse_args()))
