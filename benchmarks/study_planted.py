"""Studies A, B, E and L, declared before they were run: no planted groups; rivals of the walk; one source domain;
half as long.

    python benchmarks/study_planted.py --work FOLDER --share 0/2 &    # the even worlds
    python benchmarks/study_planted.py --work FOLDER --share 1/2 &    # the odd ones
    python benchmarks/study_planted.py --report                       # the declared comparisons, from rows.csv
    python benchmarks/study_planted.py --study E ...                  # the same for study E, B or L
    python benchmarks/study_planted.py --work FOLDER --out FOLDER --tiny # the same code in a minute

results/declared says what is compared and how. A world is rendered, its start trained, then each variant from that
start, all ranked on twelve unseen domains and on held-out identities of the sources. A call that is repeated goes on.
Small tables go to --out as soon as they are known; worlds, starts, runs and average precisions of single queries stay
in --work, so that a control can be added later.
"""
import argparse
import contextlib
import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from study_rendered import SCALES, TINY_SETTING, Size, compared, config_of, dfgs, domains, read_world, world_folder

from clip_dfgs.experiments.studies import Study, compare_variants
from clip_dfgs.sampling.depth_first import depth_first_batches, random_batch_mask
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, PKSampler
from clip_dfgs.sampling.depth_first import min_batches
from clip_dfgs.synthetic.domain import render_domain
from clip_dfgs.utils.files import write_text

RESULTS = Path(__file__).parent.parent/'results'
TARGETS, EVERY = 12, 300                                                       # steps between two ranks
# study: folder of its tables; identities that share a caption -> seeds of worlds; (comparison, identities, pair)
STUDIES = {
    'A': ('planted', {1: range(300, 308), 4: range(310, 318)}, (
        ('primary', 1, 'adaptive', 'PK'), ('second', 4, 'adaptive', 'PK'),
        ('third', 1, 'DFGS', 'PK one domain'), ('third', 4, 'DFGS', 'PK one domain'),
        ('other', 1, 'DFGS', 'PK'), ('other', 4, 'DFGS', 'PK'),
        ('other', 1, 'PK one domain', 'PK'), ('other', 4, 'PK one domain', 'PK'),
        ('other', 1, 'adaptive', 'PK one domain'), ('other', 4, 'adaptive', 'PK one domain'),
        ('other', 1, 'PK', 'start'), ('other', 4, 'PK', 'start'))),
    'B': ('rivals', {1: range(300, 308)}, (
        ('primary', 1, 'adaptive', 'PK, batch x 2'), ('second', 1, 'adaptive', 'PK, domains balanced'),
        ('third', 1, 'adaptive', 'PK, batch x 2, steps / 2'), ('other', 1, 'PK, batch x 2', 'PK'),
        ('other', 1, 'PK, domains balanced', 'PK'), ('other', 1, 'PK, batch x 2, steps / 2', 'PK'),
        ('other', 1, 'adaptive', 'PK'))),
    'L': ('run_length', {1: range(300, 308), 4: range(310, 318)}, (
        ('primary', 1, 'adaptive, steps / 2', 'PK, steps / 2'), ('second', 1, 'PK, steps / 2', 'PK'),
        ('third', 1, 'PK, batch x 2, steps / 2', 'PK, steps / 2'), ('other', 1, 'DFGS, steps / 2', 'PK, steps / 2'),
        ('other', 1, 'adaptive, steps / 2', 'adaptive'),
        ('other', 1, 'adaptive, steps / 2', 'PK, batch x 2, steps / 2'),
        ('fourth', 4, 'DFGS, steps / 2', 'PK, steps / 2'), ('fifth', 4, 'adaptive, steps / 2', 'PK, steps / 2'),
        ('other', 4, 'PK, steps / 2', 'PK'))),
    'E': ('one_domain', {1: range(320, 328), 4: range(310, 318)}, (
        ('primary', 1, 'PK one domain', 'PK'), ('second', 1, 'DFGS one domain', 'PK one domain'),
        ('third', 4, 'PK one domain', 'PK'), ('fourth', 4, 'DFGS one domain', 'PK one domain'),
        ('other', 1, 'adaptive one domain', 'PK one domain'), ('other', 1, 'DFGS across', 'PK'),
        ('other', 1, 'PK', 'start')))}


def domains_of(sampler):
    "A number for the source domain of each identity: what identities and cameras connect; no camera is of two domains."
    ids, n = len(sampler.tuplets), sampler.cameras.max() + 1
    edges = coo_array((np.ones(len(sampler.labels)), (sampler.labels, ids + sampler.cameras)), shape=[ids + n]*2)
    return connected_components(edges, directed=False)[1][:ids]


class OneDomainPK(PKSampler):
    "`PKSampler` with batches of one source domain each, where the cameras tell the domains."
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        domains = domains_of(self)
        self.parts = [np.flatnonzero(domains == domain) for domain in np.unique(domains)]


class OneDomainDFGS(OneDomainPK, DepthFirstGraphSampler):
    "The walk inside each source domain by itself, over a graph whose edges stay inside; batches in random order."
    def _identities(self, rng, epoch):
        batches = [self.batches_of(ids, rng) for ids in self.parts]
        self.order_of_batches = rng.permutation(sum(map(len, batches)))
        return np.concatenate(batches)[self.order_of_batches]

    def batches_of(self, ids, rng):
        "Batches of some identities, shape [batches, P]."
        if self.neighbors is None:
            return ids[depth_first_batches(None, self.tuplets[ids], self.ids_per_batch, rng=rng)]
        place = np.full(len(self.tuplets), -1)
        place[ids] = np.arange(len(ids))
        graph = rng.permuted(place[self.neighbors.numpy()[ids]], axis=1)
        if (graph < 0).any(): raise ValueError('the graph leaves the domain; neighbors_from="within" keeps it inside')
        return ids[depth_first_batches(graph, self.tuplets[ids], self.ids_per_batch, rng=rng, pk_ratio=self.pk_ratio)]

    @property
    def random_batches(self):
        "Which batches of the epoch are random; the walk's own marks, in the order of the epoch."
        self.planned()
        share = 1. if self.neighbors is None else self.pk_ratio
        counts = [min_batches(self.tuplets[ids], self.ids_per_batch) for ids in self.parts]
        return np.concatenate([random_batch_mask(n, share) for n in counts])[self.order_of_batches]


def variants(study, config):
    "What is compared, in the order of work."
    if study == 'B':
        from study_rivals import decided
        return decided(config)
    half = dict(finetune=replace(config.finetune, steps=config.finetune.steps//2))
    if study == 'L':
        return {f'{name}, steps / 2': changes | half for name, changes in
                {'PK': dict(sampler='pk'), 'adaptive': dfgs(pk_ratio='adaptive'), 'DFGS': dfgs()}.items()}
    one = dict(sampler='study_planted:OneDomainPK', graph_every_steps=10**6)   # the graph that it is given is not used
    walk = dfgs(neighbors_from='within') | dict(sampler='study_planted:OneDomainDFGS')
    if study == 'A':
        return {'PK': dict(sampler='pk'), 'adaptive': dfgs(pk_ratio='adaptive'), 'DFGS': dfgs(), 'PK one domain': one}
    return {name: changes | half for name, changes in {
        'PK': dict(sampler='pk'), 'PK one domain': one, 'DFGS one domain': walk,
        'adaptive one domain': walk | dict(pk_ratio='adaptive'), 'DFGS across': dfgs(neighbors_from='across')}.items()}


def plan(study, tiny, work):
    "Size of a world, config and seeds."
    scale, size = 'tiny' if tiny else 'wide', SCALES['tiny' if tiny else 'wide'].size
    setting = TINY_SETTING if tiny else json.loads((RESULTS/'setting_wide.json').read_text())
    size = replace(size, identities=setting['identities'], targets=2 if tiny else TARGETS)
    worlds = STUDIES[study][1]
    return size, config_of(setting, work, scale), {n: seeds[:2] if tiny else seeds for n, seeds in worlds.items()}


def render(work, seed, size:Size, look_alikes):
    "Render a world, unless it is there."
    for name, domain_seed, identities, share in domains(seed, size):
        folder = world_folder(work, seed, size)/name
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists(): continue
        render_domain(folder, domain_seed, identities, size.cameras, look_alikes=look_alikes, test_share=share,
                      workers=1, progress=False)


def work_on(study, work, out, share, tiny, only=None):
    "The worlds of one process, in the declared order."
    size, config, worlds = plan(study, tiny, work)
    mine, of = map(int, share.split('/'))
    every = 2 if tiny else EVERY
    for look_alikes, seeds in worlds.items():
        for seed in seeds[mine::of]:
            began = time.time()
            render(work, seed, size, look_alikes)
            said(f'world {seed}, {look_alikes} share a caption: rendered', began)
            rows, targets = read_world(work, size, size.identities, seed)
            folder = Path(work)/f'look_alikes-{look_alikes}'
            for name, changes in variants(study, config).items():
                if only and name not in only: continue
                began = time.time()
                with open(os.devnull, 'w') as silent, contextlib.redirect_stderr(silent):
                    compare_variants(rows, targets, config, {name: changes}, [seed], folder, every)
                save(work, out)
                said(f'world {seed}, {name}', began)


def said(what, began):
    "A line of the log."
    print(f'{time.strftime("%H:%M:%S")}  {what}: {time.time() - began:.0f} s', flush=True)


def save(work, out):
    "Write the small tables anew from all that is known; two processes take turns."
    out.mkdir(parents=True, exist_ok=True)
    with open(Path(work)/'.save.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tables, histories, queries = [], [], []
        for folder in sorted(Path(work).glob('look_alikes-*')):
            n, study = int(folder.name.split('-')[1]), Study.load(folder)
            tables.append(study.table.assign(look_alikes=n))
            queries.append(study.queries.assign(look_alikes=n))
            histories += [history(run, n) for run in sorted(folder.glob('seed-*/*/sampler.csv')) if ended(run.parent)]
        names = dict(seed='world', domain='target', R1='rank1')
        table = pd.concat(tables).rename(columns=names)
        table = table[['world', 'look_alikes', 'variant', 'target', 'step', 'mAP', 'rank1', 'mINP', 'queries', 'last']]
        write_text(table.round(6).to_csv(index=False), out/'rows.csv')
        write_text(pd.concat(histories).round(5).to_csv(index=False), out/'history.csv')
        pd.concat(queries).round(6).to_csv(Path(work)/'queries.csv.gz', index=False)


def ended(run):
    "Whether a run has come to its last step."
    return (run/'model').exists()


def history(file, look_alikes, parts=20):
    "Means over all steps of each twentieth of a run, by kind of batch; `file` is the run's sampler.csv."
    run, epochs = file.parent, pd.read_csv(file)
    steps = pd.read_csv(run/'history.csv')
    steps = steps[steps['stage'] == 'finetune']
    walked = 'DFGS' in run.name or 'adaptive' in run.name
    random = {}
    for row in epochs.itertuples():
        random[row.epoch] = random_batch_mask(int(row.batches), getattr(row, 'pk_ratio', 0.) if walked else 1.)
    at = steps['step'] - steps.groupby('epoch')['step'].transform('min')       # place in the epoch
    kind = ['random' if random[e][p] else 'walked' for e, p in zip(steps['epoch'], at)]
    total = json.loads((run/'config.json').read_text())['finetune']['steps']
    part = (-(-steps['step']*parts//total)).astype(int)
    world = int(run.parent.name.split('-')[1])
    keys = [part.rename('twentieth'), pd.Series(kind, steps.index, name='kind')]
    mean = steps.groupby(keys)[['violated_triplets', 'loss']].mean().rename(columns=dict(violated_triplets='violated'))
    mean['batches'] = steps.groupby(keys).size()
    mean = mean.reset_index()
    for place, (name, value) in enumerate(dict(world=world, look_alikes=look_alikes, variant=run.name).items()):
        mean.insert(place, name, value)
    return mean


def report(study, out):
    "The declared comparisons: paired differences over worlds at the last step, in points, with 95 % t intervals."
    rows = pd.read_csv(out/'rows.csv')
    ended = rows['last'] if 'last' in rows else rows['step'] == rows['step'].max()
    last = rows[ended | (rows['variant'] == 'start')]
    lines = []
    unseen = last['target'] != 'held-out'
    for sort, part in (('unseen', last[unseen]), ('held-out', last[~unseen])):
        for measure in ('mAP', 'rank1'):
            mean = 100*part.groupby(['look_alikes', 'world', 'variant'])[measure].mean().unstack('variant')
            for rank, n, *pair in STUDIES[study][2]:
                if n not in mean.index.levels[0]: continue
                known = dict(look_alikes=n, where=sort, measure=measure)
                lines += [line | known for line in compared(mean.loc[n], [(rank, *pair)], 'worlds')]
    order = 'comparison look_alikes what where measure mean low high worlds ahead sd'.split()
    table = pd.DataFrame(lines, columns=order).round(10)
    write_text(table.to_csv(index=False), out/'summary.csv')
    return table


def main(given=None):
    "Work or report."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--study', choices=STUDIES, default='A')
    p.add_argument('--work', type=Path, help='folder of worlds, starts and runs')
    p.add_argument('--out', type=Path, help="folder of the small tables; default: the study's, in results")
    p.add_argument('--share', default='0/1', help='which of the worlds: 0/2 every second one, 1/2 the others')
    p.add_argument('--only', nargs='+', help='names of variants')
    p.add_argument('--tiny', action='store_true', help='a few steps in small worlds')
    p.add_argument('--report', action='store_true', help='print and write what rows.csv says')
    p.add_argument('--collect', action='store_true', help='only write the small tables of what is in --work')
    a = p.parse_args(given)
    a.out = a.out or RESULTS/STUDIES[a.study][0]
    if a.report: return print(report(a.study, a.out).round(2).to_string(index=False))
    if not a.work: p.error('--work is needed')
    if a.collect: return save(str(a.work), a.out)
    a.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    work_on(a.study, str(a.work), a.out, a.share, a.tiny, a.only)


if __name__ == '__main__': main()
