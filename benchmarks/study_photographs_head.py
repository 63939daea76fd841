"""The study on photographs where there is no GPU: the tower is locked, and a small head learns on its features.

    python benchmarks/study_photographs_head.py --data FOLDER --out runs/head --to nbs/paper/head --processes 2

EfficientNet-Lite0 with ImageNet weights (extra `photos`) looks once at each picture, at 128x64: its last feature, and
two inner ones averaged over four stripes. On these 1,888 numbers a head is trained: a linear layer, batch norm, ReLU,
a linear layer; L_id on a BN neck, and the batch-hard triplet loss. Everything else is as in `study_photographs.py`:
the people who are held out, the forms, the rule of choice, the confirmation on targets; and seeds are cheap.
Nothing is augmented but for dropout. What this cannot show is what batches of look-alikes do to a tower.
"""
import argparse
import json
import multiprocessing
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import study_photographs as study
import torch
from study_photographs import ALSO, BEGIN, FORMS, GO_ON, Plan
from torch import nn

from clip_dfgs.backbones import fill_imagenet, load_timm
from clip_dfgs.config import rate
from clip_dfgs.encoder import BNNeck
from clip_dfgs.evaluation import evaluate
from clip_dfgs.features import known_cameras
from clip_dfgs.files import write_text
from clip_dfgs.losses import batch_hard_triplet, id_loss, triplet_health
from clip_dfgs.pictures import load_image
from clip_dfgs.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler, evaluating, refresh_neighbours

KINDS = dict(pk=PKSampler, gs=GraphSampler, dfgs=DepthFirstGraphSampler)
START, STEPS, DEV, CONFIRM = 1500, 500, range(2), range(100, 106)
ROLES = 'PK', 'DFGS', 'PK as DFGS', 'GS', 'DFGS paper order', 'DFGS published order'


# ---------------------------------------------------------------- what the locked tower sees
@torch.inference_mode()
def look(paths):
    "Features of pictures, float32 [n,1888]."
    trunk, found = fill_imagenet(load_timm('tf_efficientnet_lite0')[0].visual.trunk).eval(), []
    for i in range(0, len(paths), 64):
        pixels = np.stack([load_image(path, (128, 64)) for path in paths[i:i + 64]])
        final, inner = trunk.forward_intermediates(torch.from_numpy(pixels).permute(0, 3, 1, 2)/127.5 - 1,
                                                   indices=[2, 3])
        stripes = [nn.functional.adaptive_avg_pool2d(part, (4, 1)).flatten(1) for part in inner]
        found.append(torch.cat([*stripes, trunk.forward_head(final, pre_logits=True)], 1))
    return torch.cat(found)


def features(plan):
    "Features of all pictures by their path in the data, looked at once."
    file, folder = plan.out/'features.npz', plan.out/'data'
    if not file.exists():
        parts = [study.material(plan, 'confirm')[0], *study.material(plan, 'dev')[1]['held out']]
        for tables in study.material(plan, 'confirm')[1].values(): parts += tables
        paths = sorted(set().union(*(map(str, part['path']) for part in parts)))
        np.savez(file, paths=[os.path.relpath(path, folder) for path in paths], x=look(paths).half().numpy())
    kept = np.load(file)
    return {str(folder/path): i for i, path in enumerate(kept['paths'])}, torch.from_numpy(kept['x']).float()


# ---------------------------------------------------------------- one seed
class Head(nn.Module):
    "What learns: two layers, and a BN neck for the classifier."
    def __init__(self, width, people):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(.2),
                                    nn.Linear(256, 256))
        self.neck = BNNeck(256, people)

    def forward(self, x): return self.layers(x)


def sampler_of(rows, run, seed):
    "The sampler of a form."
    labels, cameras = rows['label'].to_numpy(copy=True), rows['camera'].to_numpy(copy=True)
    kind, options = run.get('sampler', 'dfgs'), {}
    if kind == 'dfgs': options = {name: run[name] for name in ('order', 'random_share') if name in run}
    return KINDS[kind](labels, cameras, batch=64, instances=4, seed=seed, **options)


def train(head, x, rows, form, stage, seed):
    "Train a head in place; a row of loss and violated share every 100 steps."
    run, sampler = form[0], sampler_of(rows, form[0], seed)
    labels = torch.as_tensor(sampler.labels)
    optimiser = torch.optim.AdamW(head.parameters(), lr=0., weight_decay=stage.weight_decay, fused=True)
    history, watched, step, epoch = [], [], 0, 0
    def embed(rows): return head(x[rows])
    while step < stage.steps:
        sampler.set_epoch(epoch)
        k = 15 if run.get('sampler') == 'gs' else 10
        if run.get('sampler') != 'pk': refresh_neighbours(sampler, embed, k, model=head, skip=run.get('skip', 0))
        for batch in list(sampler)[:stage.steps - step]:
            head.train()
            if stage.norm == 'frozen': head.layers[1].eval()
            for group in optimiser.param_groups: group['lr'] = stage.lr*rate(stage, step, stage.steps)
            f, y = head(x[batch]), labels[batch]
            loss = stage.id_weight*id_loss(head.neck(f), y)
            loss = loss + batch_hard_triplet(f, y, stage.margin, stage.normalise, stage.sharpness)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            if step % 10 == 0: watched.append(dict(loss=loss.item(), **triplet_health(f.detach(), y, normalise=True)))
            if step % 100 == 0:
                history.append(dict(step=step, **pd.DataFrame(watched).mean()))
                watched = []
        epoch += 1
    return history


def renew(head, x, seed):
    "The averages of batch norm anew, over 50 random batches."
    norm, draw = head.layers[1], np.random.default_rng([seed, 2])
    with evaluating(head):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
        for _ in range(50): head(x[draw.choice(len(x), 64, replace=False)])
    norm.momentum = .1


def ranks(head, x, place, targets):
    "mAP and Rank-1 of each target: mean and deviation over its splits."
    rows = []
    with evaluating(head): found = head(x)
    for name, parts in targets.items():
        scores = {}
        for part in parts:
            query, gallery = (part[part['split'] == side] for side in ('query', 'gallery'))
            sides = [found[[place[str(path)] for path in side['path']]] for side in (query, gallery)]
            r = evaluate(*sides, query['pid'].to_numpy(), gallery['pid'].to_numpy(), *known_cameras(query, gallery))
            scores.setdefault(part['partition'].iloc[0] if 'partition' in part else 0, []).append((r.mAP, r.cmc[1]))
        split = 100*np.array([np.mean(pairs, axis=0) for pairs in scores.values()])
        spread = split.std(axis=0, ddof=1) if len(split) > 1 else (np.nan, np.nan)
        rows.append(dict(target=name, mAP=split[:, 0].mean(), R1=split[:, 1].mean(), splits=len(split),
                         **{'mAP deviation': spread[0], 'R1 deviation': spread[1]}))
    return rows


def one_seed(plan, phase, seed):
    "A start and what goes on from it; two files, the table last."
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    file = plan.out/'rows'/f'{phase}-{seed}.csv'
    if file.exists(): return
    (rows, targets), (place, x) = study.material(plan, phase), features(plan)
    own = x[[place[str(path)] for path in rows['path']]]
    mean, std = own.mean(0), own.std(0) + 1e-3
    x, own = (x - mean)/std, (own - mean)/std
    torch.manual_seed(seed)
    start = Head(own.shape[1], rows['label'].nunique())
    begin = replace(BEGIN, steps=START)
    lines, histories = [], []
    def note(head, name, form, history):
        about = dict(phase=phase, seed=seed, variant=name, form=form)
        lines.extend(about | row for row in ranks(head, x, place, targets))
        histories.extend(about | row for row in history)
    note(start, 'start', 'start', train(start, own, rows, FORMS['PK live'], begin, seed))
    for name in FORMS if phase == 'dev' else ROLES:
        form, settings = study.form_of(plan, study.Job(phase, seed, name))
        head = Head(own.shape[1], rows['label'].nunique())
        head.load_state_dict(start.state_dict())
        torch.manual_seed(seed + 1)
        history = train(head, own, rows, settings, replace(GO_ON, steps=STEPS, **settings[1]), seed + 1)
        if settings[1]['norm'] == 'random': renew(head, own, seed)
        note(head, name, form, history)
        again = form.replace('live', 'random')
        if phase == 'dev' and again in ALSO:
            renew(head, own, seed)
            note(head, again, again, [])
    write_text(pd.DataFrame(histories).to_csv(index=False), file.with_suffix('.history'))
    write_text(pd.DataFrame(lines).to_csv(index=False), file)
    print(f'{time.strftime("%X")} {phase} {seed}', flush=True)


# ---------------------------------------------------------------- the study
def collected(plan, kind='csv'):
    "The rows of all seeds that are done."
    files = [file.with_suffix(f'.{kind}') for file in sorted((plan.out/'rows').glob('*.csv'))]
    return pd.concat(map(pd.read_csv, files), ignore_index=True)


def choose(plan):
    "The rule of choice of `study_photographs.py`."
    table = collected(plan)
    means = table[table['phase'] == 'dev'].pivot_table(index='seed', columns='form', values='mAP').mean()
    best = {kind: str(means[means.index.str.startswith(kind)].idxmax()) for kind in ('PK', 'DFGS')}
    write_text(json.dumps(best | dict(means=means.round(3).to_dict()), indent=1), plan.out/'choice.json')
    print(f'chosen by held-out people: {best}', flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=Path(os.environ.get('CLIP_DFGS_REALDATA') or '../shared/realdata'))
    p.add_argument('--out', type=Path, default=Path('runs/head'))
    p.add_argument('--to', type=Path, help='folder of the tables; OUT if not given')
    p.add_argument('--processes', type=int, default=1)
    a = p.parse_args()
    a.out, to = a.out.resolve(), (a.to or a.out).resolve()
    for name in ('data', 'rows'): (a.out/name).mkdir(parents=True, exist_ok=True)
    study.unpack(a.data, a.out/'data')
    plan = Plan(a.out, a.data, False, len(DEV), len(CONFIRM), 0, START, STEPS, 0., 0, ())
    warnings.simplefilter('ignore')
    features(plan)
    with multiprocessing.get_context('forkserver').Pool(a.processes) as pool:
        pool.starmap(one_seed, [(plan, 'dev', seed) for seed in DEV], chunksize=1)
        if not (plan.out/'choice.json').exists(): choose(plan)
        pool.starmap(one_seed, [(plan, 'confirm', seed) for seed in CONFIRM], chunksize=1)
    for kind, name in (('csv', 'photographs'), ('history', 'photographs_history')):
        write_text(collected(plan, kind).to_csv(index=False, float_format='%.5g'), to/f'{name}.csv')
    write_text((plan.out/'choice.json').read_text(), to/'photographs_choice.json')


if __name__ == '__main__': main()
