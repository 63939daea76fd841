"""Study B, declared before it was run: is it the depth-first walk, or would any harder batch do?

    python benchmarks/study_rivals.py --work FOLDER --beds worlds groups      # FOLDER: that of study_planted.py
    python benchmarks/study_rivals.py --work FOLDER --beds market both --data FOLDER   # photographs, extra `photos`
    python benchmarks/study_rivals.py --report                                # means and paired differences
    python benchmarks/study_rivals.py --work FOLDER --out FOLDER --tiny       # the same code in a minute

This is the screen of results/declared/B_rivals.md; its three winners meet *adaptive* on study A's worlds by
`study_planted.py --study B`. A locked tower looks at every image once; behind it a small head
learns, first with PK batches (the start), then from that start with each rival, always 3,000 steps. What is ranked are
held-out identities of the sources, never a target. Beds: `worlds`, those of study A without planted groups, through
the small CLIP of their starts; `groups`, those whose identities share a caption in fours; `market`, Market-1501
through EfficientNet-Lite0; `both`, the same with CUHK03. A run that is in the table is not trained again.
"""
import argparse
import copy
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import study_photographs as photographs
import torch
from scipy.cluster.vq import kmeans2
from torch.optim.swa_utils import AveragedModel
from study_photographs_head import Head, seen_by_tower
from study_planted import domains_of, plan, read_world
from study_rendered import dfgs, world_folder

from clip_dfgs.data.loader import cached_images
from clip_dfgs.data.records import pool
from clip_dfgs.data.leakage import camera_rule
from clip_dfgs.evaluation.bootstrap import t_interval
from clip_dfgs.evaluation.metrics import evaluate
from clip_dfgs.inference.embed import embed_images
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.sampling.depth_first import min_batches
from clip_dfgs.sampling.samplers import AdaptivePKRatio, DepthFirstGraphSampler, GraphSampler, PKSampler, update_graph
from clip_dfgs.training.config import rate
from clip_dfgs.training.losses import violated_share
from clip_dfgs.training.step import image_losses
from clip_dfgs.utils.files import write_text
from clip_dfgs.utils.tensors import evaluating

RESULTS = Path(__file__).parent.parent/'results'/'rivals'
START, STEPS, BATCH, SLOTS = 500, 3000, 64, 2400
STAGE = replace(photographs.BEGIN, steps=STEPS, batch=BATCH, norm='frozen')
SEEDS = dict(worlds=range(300, 306), groups=range(310, 316), market=range(600, 606), both=range(610, 616))


# -- batches of other kinds: every tuplet once an epoch, as few batches as can be, as DFGS has them

def batches_by(follow, tuplets, ids_per_batch, rng):
    "Batches [n, P]; `follow(batch, able)` names the next identity of a batch, or None for a random one."
    left, batches = np.array(tuplets), []
    for to_come in range(min_batches(tuplets, ids_per_batch), 0, -1):
        batch = np.flatnonzero(left >= to_come).tolist()                       # have to be in every batch from here on
        while len(batch) < ids_per_batch:
            able = left.copy()
            able[batch] = 0
            if not able.any():                                                 # nothing left: once more
                able = np.ones(len(left))
                able[batch] = 0
            chosen = follow(batch, able > 0)
            batch.append(int(rng.choice(len(able), p=able/able.sum()) if chosen is None else chosen))
        left[batch] = np.maximum(left[batch] - 1, 0)
        batches.append(batch)
    return np.array(batches)


class RandomWalkSampler(DepthFirstGraphSampler):
    "A random walk with restart on DFGS's graph: to a neighbor by chance, now and then back to the batch's first."
    restart, patience = .15, 100

    def _identities(self, rng, epoch):
        if self.neighbors is None: return super()._identities(rng, epoch)
        graph = self.neighbors.numpy()
        def follow(batch, able):
            v = batch[-1] if batch else None
            for _ in range(self.patience if batch else 0):
                v = batch[0] if rng.random() < self.restart else rng.choice(graph[v])
                if able[v]: return v
        return batches_by(follow, self.tuplets, self.ids_per_batch, rng)


class GroupSampler(PKSampler):
    "Batches of whole groups of identities; the last one's group first, then a random one's."
    groups = None                                                              # a number for each identity [N]

    def _identities(self, rng, epoch):
        if self.groups is None: return super()._identities(rng, epoch)
        def follow(batch, able):
            mates = np.flatnonzero(able & (self.groups == self.groups[batch[-1]])) if batch else ()
            return rng.choice(mates) if len(mates) else None
        return batches_by(follow, self.tuplets, self.ids_per_batch, rng)


class BalancedSampler(GroupSampler):
    "PK with as many identities of each group (of each domain) in a batch as can be."
    def _identities(self, rng, epoch):
        def follow(batch, able):
            held = np.bincount(self.groups[batch], minlength=self.groups.max() + 1)
            open_groups = np.unique(self.groups[able])
            fewest = open_groups[held[open_groups] == held[open_groups].min()]
            return rng.choice(np.flatnonzero(able & (self.groups == rng.choice(fewest))))
        return batches_by(follow, self.tuplets, self.ids_per_batch, rng)


class DomainBalancedPK(BalancedSampler):
    "`BalancedSampler` over the source domains, which have cameras of their own."
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.groups = np.unique(domains_of(self), return_inverse=True)[1]


class MemoryTriplet:
    "Batch-hard triplet loss whose partners are also found among the last `slots` embeddings (cross-batch memory)."
    def __init__(self, slots=SLOTS, margin=.3):
        self.slots, self.margin, self.keys, self.labels = slots, margin, None, None

    def __call__(self, f, labels):
        keys = f.detach() if self.keys is None else torch.cat([f.detach(), self.keys])
        names = labels if self.labels is None else torch.cat([labels, self.labels])
        distances, same = torch.cdist(f, torch.cat([f, keys[len(f):]])), labels[:, None] == names[None]
        farthest = distances.masked_fill(~same, -1).amax(1)
        nearest = distances.masked_fill(same, torch.inf).amin(1)
        self.keys, self.labels = keys[:self.slots], names[:self.slots]
        return torch.relu(self.margin + farthest - nearest).mean()


# -- the rivals

def rivals(bed, batch=BATCH):
    "What is compared: name -> sampler, and what is different."
    soft = photographs.SOFT
    found = {
        'PK': (PKSampler, {}), 'DFGS': (DepthFirstGraphSampler, {}),
        'adaptive': (DepthFirstGraphSampler, dict(adaptive=True)), 'GS, fresh graphs': (GraphSampler, dict(k=15)),
        'random walk': (RandomWalkSampler, {}), 'k-means': (GroupSampler, dict(groups='k-means')),
        'PK, batch x 2': (PKSampler, dict(batch=2*batch)),
        'PK, batch x 2, steps / 2': (PKSampler, dict(batch=2*batch, steps=.5)),
        'PK, memory': (PKSampler, dict(memory=True)), 'PK soft': (PKSampler, dict(stage=soft)),
        'PK, 17 % more steps': (PKSampler, dict(steps=1.17)),
        'DFGS soft': (DepthFirstGraphSampler, dict(stage=soft)),
        'adaptive soft': (DepthFirstGraphSampler, dict(adaptive=True, stage=soft))}
    if bed != 'market': found['PK, domains balanced'] = BalancedSampler, dict(groups='domain')
    if bed == 'groups': found['oracle'] = GroupSampler, dict(groups='caption')
    return found


def decided(config):
    "The winners of the screen for whole runs of study A's settings, beside *adaptive* and PK; in the order of work."
    last = config.finetune
    def longer(**changes): return dict(sampler='pk', finetune=replace(last, **changes))
    return {'PK': dict(sampler='pk'), 'adaptive': dfgs(pk_ratio='adaptive'),
            'PK, batch x 2': longer(batch=2*last.batch),
            'PK, domains balanced': dict(sampler='study_rivals:DomainBalancedPK', graph_every_steps=10**6),
            'PK, batch x 2, steps / 2': longer(batch=2*last.batch, steps=last.steps//2)}


def clusters(centers, count, seed):
    "A cluster for each identity [N] by k-means of the unit features [N, D], about a batch each."
    unit = torch.nn.functional.normalize(centers, dim=1).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                                        # an empty cluster is no harm
        return kmeans2(unit, count, minit='++', rng=np.random.default_rng(seed))[1]


def train(head, x, rows, kind, seed, groups=None, stage=None, steps=1., batch=BATCH, k=10, adaptive=False,
          memory=False, size=STEPS, live=False, watched=BATCH, drawn=None, averaged=False, note=None,
          domains=None):
    """Train a head in place; the violated share of the last tenth of the steps (of a random batch beside each).

    `drawn(rows, step)`: augmented images in place of x[rows]; `averaged`: weights are means over the last tenth of the
    steps; `note(step, walked, violated)` is told of every step; `domains` are those of `PKSampler`.
    """
    labels, cameras = (rows[name].to_numpy(copy=True) for name in ('label', 'cam_label'))
    stage = replace(STAGE, steps=max(2, round(size*steps)), batch=batch, **(stage or {}))
    known = {} if domains is None else dict(domains=domains)
    sampler = kind(labels, cameras, seed=seed, batch=batch, instances=4, **known)
    if isinstance(groups, np.ndarray): sampler.groups = groups
    clustered = isinstance(groups, str)
    fresh = min_batches(sampler.tuplets, batch//4)                             # batches of one pass by DFGS
    ratio, losses, step, epoch, position = adaptive and AdaptivePKRatio(sampler), memory and MemoryTriplet(), 0, 0, 0
    y, optimizer = torch.as_tensor(labels), torch.optim.AdamW(head.parameters(), lr=0., weight_decay=5e-4, fused=True)
    watch, violated = PKSampler(labels, cameras, seed=seed + 1, batch=watched, instances=4), []
    random, mean = iter(()), AveragedModel(head) if averaged else None
    drawn = drawn or (lambda rows, step: x[rows])

    def renew():
        if clustered:
            with evaluating(head), torch.no_grad(): f = head(x)
            sums = torch.zeros(len(sampler.tuplets), f.shape[1]).index_add_(0, y, f)
            sampler.groups = clusters(sums, max(2, len(sums)*4//batch), [seed, step])
        elif issubclass(kind, (DepthFirstGraphSampler, GraphSampler)):
            update_graph(sampler, lambda some: head(x[some]), model=head, k=k)

    while step < stage.steps:
        sampler.set_epoch(epoch)
        renew()
        todo = sampler.plan(epoch)[position:]
        for b in todo[:stage.steps - step]:
            head.train()
            if not live: head.keep_norm()
            for group in optimizer.param_groups: group['lr'] = stage.lr*rate(stage, step, stage.steps)
            f = head.features(drawn(b, step))
            parts = image_losses(f, [head.neck(f.pooled)], y[b], stage if not memory else
                                 replace(stage, triplet_on=()))
            loss = sum(parts.values()) + (losses(f.pooled, y[b]) if memory else 0.)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            walked = hasattr(sampler, 'random_batches') and not sampler.random_batches[position]
            if note or ratio and not walked:
                lost = violated_share(f.pooled, y[b]).item()
                if ratio and not walked: ratio.see(lost)
                if note: note(step + 1, walked, lost)
            step, position = step + 1, position + 1
            if averaged and step > .9*stage.steps: mean.update_parameters(head)
            if step > .9*stage.steps and step % 5 == 0:
                batch_of = next(random, None)
                if batch_of is None:
                    watch.set_epoch(step)
                    random = iter(watch.plan(step))
                    batch_of = next(random)
                with evaluating(head), torch.no_grad():
                    violated.append(violated_share(head(x[batch_of]), y[batch_of]).item())
            if kind is GraphSampler and step % fresh == 0: break
        if position >= sampler.batch_count():
            epoch, position = epoch + 1, 0
            if ratio: ratio.next_epoch()
    if averaged: head.load_state_dict(mean.module.state_dict())
    return float(np.mean(violated)) if violated else np.nan


# -- the beds: training rows, their features, and held-out identities

def world_bed(work, seed, look_alikes, tiny):
    "Rows, features, held-out rows, their features, and the caption of each identity, of a world of study A."
    size, config, _ = plan('A', tiny, str(work))
    rows, targets = read_world(str(work), size, size.identities, seed)
    test = targets['held-out']
    model = ReIDModel.load(work/f'look_alikes-{look_alikes}'/f'seed-{seed}'/'start'/'model')
    paths = [*rows['path'], *test['path']]
    pixels = cached_images(paths, model.config['image_size'], str(work/'cache'), progress=False)
    x = torch.cat([embed_images(model, pixels, part=part, progress=None) for part in ('pooled', 'projected')], 1)
    return rows, test, x


def captions_of(work, rows, seed, tiny):
    "A number for the caption of each identity; domains share captions."
    size = plan('A', tiny, str(work))[0]
    said = {(f.parent.name, pid): text for f in world_folder(str(work), seed, size).glob('s*/captions.csv')
            for pid, text in pd.read_csv(f)[['pid', 'caption']].itertuples(index=False)}
    first = rows.groupby('label')[['domain', 'pid']].first()
    return np.unique([said[key] for key in first.itertuples(index=False, name=None)], return_inverse=True)[1]


def photograph_bed(a, bed):
    "The same of photographs."
    folder = a.work/'photographs'/'data'
    folder.mkdir(parents=True, exist_ok=True)
    photographs.unpack(a.data, folder)
    found = photographs.tables(folder, False)
    names, kept, tests = ('market',) if bed == 'market' else ('market', 'cuhk03'), [], []
    for i, name in enumerate(names):
        train_rows, test = photographs.held_out(found[name], 10 if a.tiny else 100)
        kept.append(train_rows)
        tests.append(test.assign(pid=test['pid'] + 10_000*i, camid=test['camid'] + 100*i))
    rows, test = pool(kept), pd.concat(tests, ignore_index=True)
    if a.tiny: rows = pool([part[part['pid'].isin(sorted(set(part['pid']))[:30])] for part in kept])
    paths = [str(path) for path in [*rows['path'], *test['path']]]
    place, x = seen_by_tower(folder, paths)
    return rows, test, x[[place[path] for path in paths]]


def material(a, bed, seed):
    "Rows, held-out rows, standardized features of both in this order, and what a rival may know of each identity."
    known = {}
    if bed in ('worlds', 'groups'):
        rows, test, x = world_bed(a.work, seed, 1 if bed == 'worlds' else 4, a.tiny)
        known['caption'] = captions_of(a.work, rows, seed, a.tiny)
    else: rows, test, x = photograph_bed(a, bed)
    known['domain'] = np.unique(rows.groupby('label')['domain'].first(), return_inverse=True)[1]
    own = x[:len(rows)]
    return rows, test, (x - own.mean(0))/(own.std(0) + 1e-3), known


@torch.inference_mode()
def score(head, x, test):
    "mAP and Rank-1 of the held-out identities, in points."
    sides = [np.flatnonzero(test['split'] == side) for side in ('query', 'gallery')]
    with evaluating(head): f = head(x)
    tables = [test.iloc[side] for side in sides]
    found = evaluate(*(f[side] for side in sides), *(t['pid'].to_numpy() for t in tables), *camera_rule(*tables))
    return dict(mAP=100*found.mAP, rank1=100*found.cmc[1])


def one_seed(a, bed, seed, file):
    "The start of a seed, then every rival that is not in the table yet; a row as soon as it is known."
    done = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=['seed', 'rival'])
    usual = 16 if a.tiny else BATCH
    names = rivals(bed, usual)
    left = [name for name in ('start', *names) if not ((done['seed'] == seed) & (done['rival'] == name)).any()]
    if not left: return
    rows, test, x, known = material(a, bed, seed)
    own, size = x[:len(rows)], dict(size=4 if a.tiny else STEPS, watched=usual)
    torch.manual_seed(seed)
    start = Head(x.shape[1], rows['label'].nunique(), seed, False)
    first = train(start, own, rows, PKSampler, seed, batch=usual, live=True, watched=usual, size=4 if a.tiny else START)
    for name in left:
        begun, head, lost = time.time(), copy.deepcopy(start), first
        if name != 'start':
            kind, more = names[name]
            if 'groups' in more: more = more | dict(groups=known.get(more['groups'], more['groups']))
            torch.manual_seed(seed + 1)
            lost = train(head, own, rows, kind, seed + 1, **dict(batch=usual) | more | size)
        row = dict(seed=seed, rival=name, **score(head, x[len(rows):], test), violated=lost)
        done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
        write_text(done.to_csv(index=False, float_format='%.5g'), file)
        print(f'{time.strftime("%H:%M:%S")}  {bed} {seed}, {name}: mAP {row["mAP"]:.2f}, {time.time() - begun:.0f} s',
              flush=True)


def report(out):
    "Mean mAP of each rival, and how far it is ahead of PK and of *adaptive*: paired over seeds, 95 % t interval."
    lines = []
    for file in sorted(out.glob('screen_*.csv')):
        table = pd.read_csv(file)
        mAP, lost = (table.pivot(index='seed', columns='rival', values=value) for value in ('mAP', 'violated'))
        for name in mAP.mean().sort_values(ascending=False).index:
            line = dict(bed=file.stem.removeprefix('screen_'), rival=name, seeds=mAP[name].count(),
                        mAP=mAP[name].mean(), violated=lost[name].mean())
            for other in ('PK', 'adaptive'):
                gain = (mAP[name] - mAP[other]).dropna()
                low, high = t_interval(gain) if len(gain) > 1 and name != other else (np.nan, np.nan)
                line |= {f'{other}: ahead': gain.mean(), f'{other}: low': low, f'{other}: high': high}
            lines.append(line)
    table = pd.DataFrame(lines).round(4)
    write_text(table.to_csv(index=False), out/'screen.csv')
    return table


def main(given=None):
    "Work or report."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, help='work folder of study_planted.py')
    p.add_argument('--data', type=Path, default=Path(os.environ.get('CLIP_DFGS_REALDATA') or '../shared/realdata'))
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the tables')
    p.add_argument('--beds', nargs='+', choices=SEEDS, default=[*SEEDS])
    p.add_argument('--tiny', action='store_true', help='a few steps of one seed, in small worlds')
    p.add_argument('--report', action='store_true', help='print and write what the tables say')
    a = p.parse_args(given)
    if a.report: return print(report(a.out).round(2).to_string(index=False))
    if not a.work: p.error('--work is needed')
    a.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for bed in a.beds:
        for seed in SEEDS[bed][:1 if a.tiny else None]: one_seed(a, bed, seed, a.out/f'screen_{bed}.csv')


if __name__ == '__main__': main()
