"""Study C: does DFGS pass PK because random batches are easy, or because the learning rate falls? Declared first.

    python benchmarks/study_schedule.py --work FOLDER --share 0/2 &    # of study_planted.py: its worlds are used again
    python benchmarks/study_schedule.py --work FOLDER --share 1/2 &
    python benchmarks/study_schedule.py --report                       # the declared comparisons, from the tables
    python benchmarks/study_schedule.py --work FOLDER --out FOLDER --tiny

results/declared/C_schedule.md says what is compared and how. A call that is repeated goes on.
"""
import argparse
import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from study_planted import STUDIES, plan, read_world, render, said
from study_rendered import dfgs, told

from clip_dfgs.utils.files import write_text
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler
from clip_dfgs.experiments.studies import Study, compare_variants

RESULTS = Path(__file__).parent.parent/'results'/'schedule'
EVERY, TURN, FALL = 60, 3, .9                           # steps; epochs of the first half; where a constant rate falls
RATES = {'cosine': ('DFGS', 'PK'), 'constant': ('DFGS constant', 'PK constant')}


class RandomFirst(DepthFirstGraphSampler):
    "Random batches in the first half of the run, then the walk."
    walks = staticmethod(lambda epoch: epoch >= TURN)

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.pk_ratio = 0. if self.walks(epoch) else 1.


class WalkFirst(RandomFirst):
    "The walk in the first half of the run, then random batches."
    walks = staticmethod(lambda epoch: epoch < TURN)


def variants(config):
    "What is compared."
    constant = dict(finetune=replace(config.finetune, decay=(FALL,)))
    return {'PK': dict(sampler='pk'), 'DFGS': dfgs(), 'PK constant': dict(sampler='pk') | constant,
            'DFGS constant': dfgs(**constant), 'random first': dict(sampler='study_schedule:RandomFirst'),
            'walk first': dict(sampler='study_schedule:WalkFirst')}


def work_on(work, out, share, tiny):
    "The worlds of one process."
    size, config, _ = plan('A', tiny, work)
    mine, of = map(int, share.split('/'))
    for seed in STUDIES['A'][1][1][:1 if tiny else 6][mine::of]:
        render(work, seed, size, 1)
        rows, targets = read_world(work, size, size.identities, seed)
        for name, changes in variants(config).items():
            began = time.time()
            with open(os.devnull, 'w') as silent, contextlib.redirect_stderr(silent):
                study = compare_variants(rows, targets, config, {name: changes}, [seed], Path(work)/'schedule',
                                         2 if tiny else EVERY)
            save(study, out)
            said(f'world {seed}, {name}', began)


def save(study, out):
    "The small tables: ranks, and PK's and everybody's violated share as means over all steps since the last rank."
    out.mkdir(parents=True, exist_ok=True)
    study = Study.load(study.out)
    every = study.table[study.table['step'] > 0]['step'].min()
    history = study.history.assign(step=-(-study.history['step']//every)*every)
    violated = history.groupby(['seed', 'variant', 'step'])['violated_triplets'].mean().reset_index()
    write_text(study.table.rename(columns=dict(seed='world', domain='target')).round(6).to_csv(index=False),
               out/'rows.csv')
    write_text(violated.rename(columns=dict(seed='world')).round(5).to_csv(index=False), out/'violated.csv')


def crossing(gain, steps):
    "Step at which a mean curve crosses zero for good, linear between ranks; the last step where it never does."
    below = np.flatnonzero(gain <= 0)
    if len(below) == 0: return 0.
    at = below[-1]
    if at == len(gain) - 1: return float(steps[-1])
    return steps[at] + (steps[at + 1] - steps[at])*-gain[at]/(gain[at + 1] - gain[at])


def unseen(out):
    "mAP in points on unseen domains, mean over them: variant, world, step."
    rows = pd.read_csv(Path(out)/'rows.csv').query('target != "held-out" and step > 0')
    return 100*rows.groupby(['variant', 'world', 'step'])['mAP'].mean()


def leads(mAP):
    "The lead of DFGS over PK with either rate, of the worlds that have both: a row a world, a column a step."
    found = {name: (mAP[walk] - mAP[to]).unstack('step').dropna() for name, (walk, to) in RATES.items()}
    worlds = found['cosine'].index.intersection(found['constant'].index)
    return {name: lead.loc[worlds] for name, lead in found.items()}


def crossings(mAP, draws=10_000):
    "Steps at which the mean lead crosses zero for good; constant minus cosine, its bootstrap interval over worlds."
    found = leads(mAP)
    worlds, steps = found['cosine'].index, found['cosine'].columns.to_numpy()
    drawn = np.random.default_rng(0).integers(0, len(worlds), (draws, len(worlds)))
    places = {name: np.array([crossing(lead.to_numpy()[d].mean(0), steps) for d in drawn])
              for name, lead in found.items()}
    first = {name: crossing(lead.to_numpy().mean(0), steps) for name, lead in found.items()}
    low, high = np.quantile(places['constant'] - places['cosine'], (.025, .975))
    return first | dict(difference=first['constant'] - first['cosine'], low=low, high=high, worlds=len(worlds),
                        before=np.mean(places['constant'] < FALL*steps[-1]))


def at_end(mAP): return mAP.xs(mAP.index.get_level_values('step').max(), level='step').unstack('variant')


def report(out):
    "The declared comparisons."
    mAP = unseen(out)
    print('primary: crossing at {constant:.0f} with a constant rate, {cosine:.0f} with the cosine; difference '
          '{difference:+.0f} steps ({low:+.0f} to {high:+.0f}), {worlds} worlds; with a constant rate '
          'before its fall in {before:.0%} of the draws'.format(**crossings(mAP)))
    print(told('second', 'random first', 'walk first', at_end(mAP)))


def main(given=None):
    "Work or report."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, help='work folder of study_planted.py')
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the small tables')
    p.add_argument('--share', default='0/1', help='which of the worlds: 0/2 every second one, 1/2 the others')
    p.add_argument('--tiny', action='store_true', help='a few steps in a small world')
    p.add_argument('--report', action='store_true', help='print what the tables say')
    a = p.parse_args(given)
    if a.report: return report(a.out)
    if not a.work: p.error('--work is needed')
    torch.set_num_threads(1)
    work_on(str(a.work), a.out, a.share, a.tiny)


if __name__ == '__main__': main()
