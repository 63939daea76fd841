"""Study D, declared before it was run: photographs long enough, the last third of a tower on maps that are kept.

    python benchmarks/study_photographs_maps.py --data FOLDER --out runs/maps --parts rates   # held-out identities
    python benchmarks/study_photographs_maps.py --out runs/maps --share 0/2 &                 # the even seeds
    python benchmarks/study_photographs_maps.py --out runs/maps --share 1/2 &                 # the odd ones
    python benchmarks/study_photographs_maps.py --report                                      # means and differences
    python benchmarks/study_photographs_maps.py --out runs/tiny --tiny                        # the same in a minute

results/declared/D_photographs.md says what is compared and how. Market-1501 and CUHK03 together at 128x64. The first
two thirds of EfficientNet-Lite0 (ImageNet, extra `photos`) are locked: they look once at every image and at four
augmented copies of every training image, and their maps of stride 16 stay on the disk. The last third learns, behind
it BN necks; batch norm keeps ImageNet's averages. A training image is one of its copies, drawn anew each time;
graphs and ranks take the image as it is. A run that is in the table is not trained again.
"""
import argparse
import copy
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import study_photographs as photographs
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file, save_file
from study_rendered import compared
from study_rivals import train
from torch import nn

from clip_dfgs.data.loader import cached_images
from clip_dfgs.data.records import pool
from clip_dfgs.data.transforms import Augment
from clip_dfgs.models.reid_model import BNNeck
from clip_dfgs.models.towers import ImageFeatures
from clip_dfgs.models.weights import fill_imagenet, load_timm
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler
from clip_dfgs.utils.files import atomic_write, write_text
from clip_dfgs.utils.tensors import evaluating

RESULTS = Path(__file__).parent.parent/'results'/'photographs'
SIZE, SHAPE, COPIES = (128, 64), (112, 8, 4), 4                                # of images, of maps; augmented copies
LOCKED, WIDTH, BATCH = 5, 1280, 64
AUGMENT = Augment(flip=.5, pad=6, erase=.3, jitter=.3, strength=(.25, .25, .2, .02))
SEEDS = dict(rates=range(1), study=range(700, 708))
STEPS = dict(rates=(410, 600), study=(410, 2050))                              # of the start, of what goes on from it
RATES = (2e-4, 5e-4, 1e-3)
# name -> sampler, and what is different
VARIANTS = {
    'PK': (PKSampler, {}), 'adaptive': (DepthFirstGraphSampler, dict(adaptive=True)),
    'DFGS': (DepthFirstGraphSampler, {}), 'PK one domain': (PKSampler, dict(domains='domain')),
    'PK, steps / 2': (PKSampler, dict(steps=.5)),
    'adaptive, steps / 2': (DepthFirstGraphSampler, dict(adaptive=True, steps=.5)), 'GS': (GraphSampler, dict(k=15))}
FOUR = ('viper', 'prid', 'grid', 'ilids')
# (rank, pair)
COMPARISONS = (('primary', 'adaptive', 'PK'), ('second', 'DFGS', 'PK'), ('third', 'DFGS', 'GS'),
               ('beside', 'PK one domain', 'PK'), ('beside', 'adaptive, steps / 2', 'PK, steps / 2'),
               ('beside', 'PK, steps / 2', 'PK'), ('beside', 'GS', 'PK'), ('beside', 'PK', 'start'))


class DepthwiseOfSmallMaps(torch.autograd.Function):
    """A depthwise convolution of stride 1 whose backward pass is fast on a CPU for maps hardly larger than the kernel.

    Gradient by input: the convolution with the kernel turned round; by kernel: each tap over the places that it meets.
    """
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[2]//2, groups=x.shape[1])

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        g, reach, (h, w) = g.contiguous(memory_format=torch.channels_last), weight.shape[2]//2, x.shape[2:]
        by_tap, (a, b) = torch.zeros_like(weight), (t.permute(0, 2, 3, 1) for t in (x, g))  # [B, h, w, C]
        for i in range(max(-reach, 1 - h), min(reach, h - 1) + 1):
            for j in range(max(-reach, 1 - w), min(reach, w - 1) + 1):
                read = a[:, max(i, 0):h + min(i, 0), max(j, 0):w + min(j, 0)]
                wrote = b[:, max(-i, 0):h - max(i, 0), max(-j, 0):w - max(j, 0)]
                by_tap[:, 0, reach + i, reach + j] = (read*wrote).sum((0, 1, 2))
        return F.conv2d(g, weight.flip(2, 3), padding=reach, groups=x.shape[1]), by_tap


class SmallDepthwise(nn.Module):
    "In place of a depthwise convolution of stride 1."
    def __init__(self, conv):
        super().__init__()
        self.weight = conv.weight

    def forward(self, x): return DepthwiseOfSmallMaps.apply(x, self.weight)


class LastThird(nn.Module):
    "What learns: the tower behind its maps of stride 16, and a BN neck."
    def __init__(self, trunk, identities):
        super().__init__()
        self.blocks, self.conv, self.norm = trunk.blocks[LOCKED:], trunk.conv_head, trunk.bn2
        self.pool = trunk.global_pool
        for block in (block for stage in self.blocks for block in stage):
            if block.conv_dw.stride == (1, 1): block.conv_dw = SmallDepthwise(block.conv_dw)
        self.neck = BNNeck(WIDTH, identities)
        self.to(memory_format=torch.channels_last)

    def features(self, maps):
        pooled = self.pool(self.norm(self.conv(self.blocks(maps))))
        return ImageFeatures(pooled, pooled, pooled)

    def forward(self, maps):
        "Features [n, 1280], a few hundred maps at a time."
        return torch.cat([self.features(part).pooled for part in maps.split(256)])

    def keep_norm(self):
        "Batch norm by its averages, which stay; scale and shift learn. The neck's own goes on."
        for part in (*self.blocks.modules(), *self.norm.modules()):
            if isinstance(part, nn.modules.batchnorm._BatchNorm): part.eval()


class Maps:
    "Maps of images [n, 1 + copies, 112, 8, 4] on the disk; rows are images, the first copy the image as it is."
    def __init__(self, kept, rows, seed=0): self.kept, self.rows, self.seed = kept, np.asarray(rows), seed

    def __len__(self): return len(self.rows)

    def taken(self, rows, copies):
        maps = torch.from_numpy(self.kept[self.rows[np.asarray(rows)], copies]).float()
        return maps.contiguous(memory_format=torch.channels_last)

    def __getitem__(self, rows): return self.taken(rows, 0)

    def drawn(self, rows, step):
        "An augmented copy of each, by seed and step."
        draw = np.random.default_rng([self.seed, step])
        return self.taken(rows, draw.integers(1, self.kept.shape[1], len(rows)))


def trunk_of(): return fill_imagenet(load_timm('tf_efficientnet_lite0')[0].visual.trunk).eval()


@torch.inference_mode()
def looked_at(out, paths, copies, name):
    "Maps of images by the locked part, float16 on the disk; made once, by one process, from where it stopped."
    name = f'{name}-{len(paths)}'                                              # with --tiny there are fewer
    file, done = out/f'{name}.npy', out/f'{name}.done'
    with FileLock(out/f'{name}.lock'):
        begin = int(done.read_text()) if done.exists() else 0
        if begin < len(paths):
            trunk, pixels = trunk_of(), cached_images(paths, SIZE, str(out/'cache'), progress=False)
            front = nn.Sequential(trunk.conv_stem, trunk.bn1, trunk.blocks[:LOCKED])
            front.to(memory_format=torch.channels_last)
            shape = (len(paths), 1 + copies, *SHAPE)
            kept = np.lib.format.open_memmap(file, 'r+' if begin else 'w+', np.float16, shape)
            for i in range(begin, len(paths), 64):
                some = np.arange(i, min(i + 64, len(paths)))
                plain = torch.from_numpy(np.ascontiguousarray(pixels[some])).permute(0, 3, 1, 2)
                for c, images in enumerate([plain, *(AUGMENT(pixels, some, 0, c) for c in range(copies))]):
                    kept[some, c] = front(images/127.5 - 1).half().numpy()
                if i % 1024 and some[-1] < len(paths) - 1: continue
                kept.flush()
                write_text(str(some[-1] + 1), done)
    return np.load(file, mmap_mode='r')


def material(a, part):
    "Pooled training rows, their maps; what is ranked (name -> partitions), place of each of its images, their maps."
    folder = a.out/'data'
    found = photographs.tables(folder, a.tiny)
    sources = [found['market'], found['cuhk03']]
    every = pool(sources)
    places = {str(path): i for i, path in enumerate(every['path'])}
    kept = looked_at(a.out, [str(path) for path in every['path']], COPIES, 'sources')
    if part == 'rates':
        parts = [photographs.held_out(table, 10 if a.tiny else 100) for table in sources]
        rows, targets = pool([train for train, _ in parts]), {f'{n} held out': [t] for n, (_, t) in zip(found, parts)}
        return rows, Maps(kept, [places[str(p)] for p in rows['path']]), targets, places, Maps(kept, range(len(kept)))
    targets = {name: found[name] for name in photographs.TARGETS}
    paths = sorted({str(path) for parts in targets.values() for table in parts for path in table['path']})
    seen = looked_at(a.out, paths, 0, 'targets')
    return (every, Maps(kept, range(len(kept))), targets, {path: i for i, path in enumerate(paths)},
            Maps(seen, range(len(seen))))


def finished(file): return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=['seed', 'variant'])


def keep(file, rows):
    "Add rows to a table that is written anew, whole; processes take turns."
    with FileLock(file.with_suffix('.lock')):
        rows = pd.concat([finished(file), pd.DataFrame(rows)], ignore_index=True)
        write_text(rows.to_csv(index=False, float_format='%.5g'), file)


def forms(part):
    "What is trained from a start: name -> sampler, what is different."
    if part == 'study': return VARIANTS
    return {f'{name} {rate:.0e}': (kind, more | dict(stage=dict(lr=rate))) for rate in RATES
            for name, (kind, more) in VARIANTS.items() if name in ('PK', 'DFGS')}


def one_seed(a, part, seed):
    "The start of a seed, then every variant that is not in the table yet."
    table, names = a.to/f'{part}.csv', forms(part)
    def left():
        done = finished(table)
        known = set(done['variant'][done['seed'] == seed])
        return [name for name in ('start', *names) if name not in known and name in (a.only or ('start', *names))]
    if not left(): return
    rows, maps, targets, places, seen = material(a, part)
    maps.seed, batch, size = seed, 16 if a.tiny else BATCH, (4, 8) if a.tiny else STEPS[part]
    stage = dict(lr=a.rate, normalize=True)
    def go(model, kind, more, size, name):
        steps = []
        def note(*step): steps.append(step)
        options = dict(batch=batch, watched=batch, size=size, drawn=maps.drawn, averaged=True, note=note)
        lost = train(model, maps, rows, kind, seed + (name != 'start'), **options | more |
                     dict(stage=stage | more.get('stage', {})))
        steps = pd.DataFrame(steps, columns=['step', 'walked', 'violated'])
        at = pd.Series(-(-steps['step']*10//len(steps)), name='tenth')
        mean = steps.groupby([at, 'walked'])['violated'].agg(['mean', 'size']).reset_index()
        mean = mean.rename(columns=dict(mean='violated', size='batches')).assign(seed=seed, variant=name)
        return lost, mean
    file = a.out/f'{part}-{seed}.safetensors'
    torch.manual_seed(seed)
    start, lost = LastThird(trunk_of(), rows['label'].nunique()), np.nan
    if file.exists(): start.load_state_dict(load_file(file))
    else:
        lost, _ = go(start, PKSampler, dict(live=True, stage=dict(lr=photographs.BEGIN.lr)), size[0], 'start')
        with atomic_write(file) as free: save_file({k: v.contiguous() for k, v in start.state_dict().items()}, free)
    for name in left():
        begun, model, steps = time.time(), copy.deepcopy(start), None
        if name != 'start':
            torch.manual_seed(seed + 1)
            kind, more = names[name]
            if 'domains' in more: more = more | dict(domains=rows[more['domains']])
            lost, steps = go(model, kind, more, size[1], name)
            keep(a.to/f'history_{part}.csv', steps)
        with evaluating(model), torch.no_grad():
            features = torch.cat([model(seen[range(i, min(i + 1024, len(seen)))]) for i in range(0, len(seen), 1024)])
        found = [dict(seed=seed, variant=name, **row, violated=lost)
                 for row in photographs.scores(features, places, targets)]
        keep(table, found)
        mAP = np.mean([row['mAP'] for row in found if row['target'] != 'col780'])
        print(f'{time.strftime("%H:%M:%S")}  {part} {seed}, {name}: mAP {mAP:.2f}, violated {lost:.3f}, '
              f'{time.time() - begun:.0f} s', flush=True)


def report(folder):
    "Means, and the declared comparisons: paired over seeds, 95 % t intervals, in points."
    table, lines = pd.read_csv(folder/'study.csv'), []
    four = table[table['target'].isin(FOUR)]
    for where, part in (('four', four), *((name, table[table['target'] == name]) for name in table['target'].unique())):
        for measure in ('mAP', 'R1'):
            mean = part.groupby(['seed', 'variant'])[measure].mean().unstack()
            lines += [line | dict(where=where, measure=measure) for line in compared(mean, COMPARISONS, 'seeds')]
    order = 'comparison what where measure mean low high seeds ahead'.split()
    summary = pd.DataFrame(lines, columns=order).round(10)
    write_text(summary.to_csv(index=False), folder/'summary.csv')
    print(four.groupby('variant')[['mAP', 'R1', 'violated']].mean().round(2).to_string())
    return summary


def main(words=None):
    "Work or report."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=Path(os.environ.get('CLIP_DFGS_REALDATA') or '../shared/realdata'))
    p.add_argument('--out', type=Path, default=Path('runs/maps'), help='folder of images, maps and starts')
    p.add_argument('--to', type=Path, default=RESULTS, help='folder of the tables')
    p.add_argument('--parts', nargs='+', choices=SEEDS, default=['study'])
    p.add_argument('--share', default='0/1', help='which of the seeds: 0/2 every second one, 1/2 the others')
    p.add_argument('--only', nargs='+', help='names of variants')
    p.add_argument('--rate', type=float, default=5e-4, help='peak learning rate, chosen by `--parts rates`')
    p.add_argument('--tiny', action='store_true', help='a few steps of one seed')
    p.add_argument('--report', action='store_true', help='print and write what study.csv says')
    a = p.parse_args(words)
    if a.report: return print(report(a.to).round(2).to_string(index=False))
    a.out = a.out.resolve()
    if a.tiny: a.to = a.out
    for folder in (a.out/'data', a.to): folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    photographs.unpack(a.data, a.out/'data')
    mine, of = map(int, a.share.split('/'))
    for part in a.parts:
        for seed in SEEDS[part][:1 if a.tiny else None][mine::of]: one_seed(a, part, seed)


if __name__ == '__main__': main()
