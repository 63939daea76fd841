"""Samplers, measured: one epoch of PK, GS, DFGS and the released DFGS over growing numbers of identities.

    python benchmarks/samplers.py              # 1,000 to 20,000 identities x 17 images: time, memory, coverage
    python benchmarks/samplers.py --million    # 1,000,000 identities x 10 images; --million 200000 for a fifth of it
    python benchmarks/samplers.py --learning   # does it learn better? a small network trained with each sampler

Each measurement runs in a process of its own, so that its peak memory is its own. `graph` and `plan` are seconds of
processor time, which other work on the machine does not change (all cores together; `wall` in the last column is what
a clock shows), `memory` is the peak beyond what Python, numpy and torch take; `images` is the share of images in the
epoch; `hardness` is nearest negative overall / nearest negative in the batch, mean over anchors (1: the hardest batch).
At a million the graph is asked for recall 0.9; the library's default of 0.95 takes longer. 200,000
identities took 21 s for the graph (recall 0.90) and 6 s for the plan, one thread of a busy machine, below 1.5 GB.
"""
import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from clip_dfgs.sampling.diagnostics import batch_hardness
from clip_dfgs.sampling.graph import nearest_identities
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler, update_graph

# a sampler, the neighbors of its graph, its options
KINDS = dict(
    pk=(PKSampler, 0, {}), gs=(GraphSampler, 15, {}), dfgs=(DepthFirstGraphSampler, 10, {}),
    paper=(DepthFirstGraphSampler, 10, dict(order='paper')),
    released=(DepthFirstGraphSampler, 10, dict(order='released')))


def crowd(n, width=128, seed=0):
    "Features of n people, 50 look-alikes to a group: 24 traits, seen through a random nonlinear map, and noise."
    rng = np.random.default_rng(seed)
    groups = -(-n // 50)
    centers = rng.standard_normal((groups, 24), np.float32)
    traits = centers[rng.integers(0, groups, n)] + .5 * rng.standard_normal((n, 24), np.float32)
    x = np.tanh(traits @ rng.standard_normal((24, width), np.float32) / 4)
    return torch.from_numpy(x + .1 * rng.standard_normal((n, width), np.float32))


def recall_of(neighbors, x, sample=512):
    "The share of the true neighbors of a sample of identities that is in an approximate graph."
    found = []
    for row in np.random.default_rng(5).choice(len(x), sample, replace=False):
        gap = (x - x[row]).square().sum(1)
        gap[row] = torch.inf
        found.append(torch.isin(gap.topk(neighbors.shape[1], largest=False).indices, neighbors[row]).float().mean())
    return float(torch.stack(found).mean())


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(kind, n, images):
    "One epoch in this process: a dict of numbers."
    x, labels = crowd(n), np.repeat(np.arange(n), images)
    cameras = np.random.default_rng(1).integers(0, 6, len(labels))
    make, k, options = KINDS[kind]
    sampler, before, row = make(labels, cameras, **options), peak(), dict(n=n, kind=kind)
    clock, start = time.perf_counter(), time.process_time()
    recall = .95 if n <= 200_000 else .9                        # at a million, speed before the last neighbors
    if k: sampler.neighbors = nearest_identities(x, k, recall=recall)
    row['graph'], start = time.process_time() - start, time.process_time()
    plan = sampler.planned()
    row |= dict(plan=time.process_time() - start, wall=time.perf_counter() - clock)
    row |= dict(memory=peak() - before, total_memory=peak(), batches=len(plan))
    row |= dict(identities=len(np.unique(labels[plan])) / n, images=len(np.unique(plan)) / len(labels))
    row |= batch_hardness(plan, labels, x, anchors=1024) if len(plan) else {}
    if k and n > 50_000: row['recall'] = recall_of(sampler.neighbors, x)
    return row


def apart(kind, n, images):
    "`measure` in a process of its own."
    command = [sys.executable, __file__, '--one', kind, str(n), str(images)]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode: sys.exit(out.stderr)
    return json.loads(out.stdout.splitlines()[-1])


WIDTHS = dict(n=(9, ','), kind=(10, ''), graph=(8, '.2f'), plan=(8, '.2f'), memory=(8, '.2f'), batches=(8, ','),
              identities=(10, '.1%'), images=(8, '.1%'), hardness=(9, '.3f'), wall=(8, '.2f'))


def show(row):
    cells = [format(format(row.get(name, np.nan), form), f'>{width}') for name, (width, form) in WIDTHS.items()]
    if 'recall' in row: cells.append(f"  recall {row['recall']:.3f}, peak of the process {row['total_memory']:.1f} GB")
    print(*cells, flush=True)


def table(sizes, kinds, images):
    print(*(format(name, f'>{width}') for name, (width, _) in WIDTHS.items()), '(seconds, GB)')
    rows = []
    for n in sizes:
        for kind in kinds:
            rows.append(apart(kind, n, images))
            show(rows[-1])
    return rows


def growth(rows):
    "Exponents of time ~ N^a by least squares on the logarithms, and ratios at the largest N."
    for kind, (_, k, _) in KINDS.items():
        own = [r for r in rows if r['kind'] == kind and r['n'] >= 2000]
        sizes = np.log([r['n'] for r in own])
        for what in ('plan', 'graph') if k else ('plan',):
            exponent = np.polyfit(sizes, np.log([r[what] for r in own]), 1)[0]
            print(f'{kind:>10}: {what} ~ N^{exponent:.2f}')
    last = {r['kind']: r for r in rows if r['n'] == rows[-1]['n']}
    print(f"at {rows[-1]['n']:,} identities:")
    for what, other in (('hardness', 'released'), ('hardness', 'pk'), ('images', 'released')):
        print(f"    {what} of dfgs / {other}: {last['dfgs'][what] / last[other][what]:.2f}")


def people(seed, groups, each, images):
    "Images of people in groups of look-alikes: traits, a camera's offset, own circumstances; mixed by one fixed map."
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    n = groups * each
    traits = np.repeat(rng.normal(size=(groups, 24)), each, 0) + .35 * rng.normal(size=(n, 24))
    labels = np.repeat(np.arange(n), images)
    cameras = rng.integers(0, 6, len(labels))
    mix, offset = fixed.normal(size=(56, 128)) / 4, fixed.normal(size=(6, 24))
    scene = offset[cameras] + .8 * rng.normal(size=(len(labels), 24))
    parts = np.concatenate([traits[labels], scene, rng.normal(size=(len(labels), 8))], 1)
    return torch.as_tensor(np.tanh(parts @ mix), dtype=torch.float32), labels, cameras


def mean_average_precision(x, labels, cameras):
    same, here = (torch.as_tensor(v[:, None] == v[None]) for v in (labels, cameras))
    order = torch.cdist(x, x).masked_fill(same & here, torch.inf).argsort(1)
    good = (same & ~here).gather(1, order).double()
    total = good.sum(1)
    ap = (good.cumsum(1) / torch.arange(1, len(x) + 1) * good).sum(1)[total > 0] / total[total > 0]
    return ap.mean().item()


def train(kind, k, seed, steps=1128):
    "mAP on unseen people after so many steps with the soft-margin batch-hard triplet loss."
    (x, labels, cameras), test = people(1, 60, 10, 17), people(2, 30, 10, 8)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    make, _, options = KINDS[kind]
    sampler, done, epoch = make(labels, cameras, seed=seed, **options), 0, 0
    while done < steps:
        sampler.set_epoch(epoch)
        if kind != 'pk': update_graph(sampler, lambda rows: network(x[rows]), k=k, model=network)
        epoch += 1
        for rows in list(sampler)[:steps - done]:
            f, y = network(x[rows]), torch.as_tensor(labels[rows])
            d, same = torch.cdist(f, f), y[:, None] == y[None]
            gap = d.masked_fill(~same, -1).amax(1) - d.masked_fill(same, 1e9).amin(1)
            loss = torch.nn.functional.softplus(gap).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    with torch.no_grad(): return mean_average_precision(network(test[0]), *test[1:])


def learning(seeds=5):
    print(f'mAP on 300 unseen people after 1,128 steps, {seeds} seeds: mean +- standard error')
    walks = [(kind, k) for k in (5, 10, 15) for kind in ('released', 'paper', 'dfgs')]
    for kind, k in [('pk', 0), ('gs', 15), *walks]:
        found = np.array([train(kind, k, seed) for seed in range(seeds)])
        print(f'{kind:>10} k={k:<3} {found.mean():.3f} +- {found.std(ddof=1) / seeds ** .5:.3f}', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--million', type=int, nargs='?', const=1_000_000, help='so many identities x 10 images')
    parser.add_argument('--learning', action='store_true', help='train a small network with each sampler')
    parser.add_argument('--one', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: print(json.dumps(measure(args.one[0], int(args.one[1]), int(args.one[2]))))
    elif args.million: table([args.million], ['dfgs'], 10)
    elif args.learning: learning()
    else: growth(table([1000, 2000, 5000, 10_000, 20_000], list(KINDS), 17))
