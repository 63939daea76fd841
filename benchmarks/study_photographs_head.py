"""The study on photographs where there is no GPU: the tower is locked, and a small head learns on its features.

    python benchmarks/study_photographs_head.py --data FOLDER --out runs/head --to results/head --processes 2
    python benchmarks/study_photographs_head.py --out runs/head --parts eyes   # one part alone, after `dev`

EfficientNet-Lite0 with ImageNet weights (extra `photos`) looks once at each picture, at 128x64: its last feature, and
two inner ones averaged over four stripes. On these 1,888 numbers a head is trained: a linear layer, batch norm, ReLU,
a linear layer; L_id on a BN neck, and the batch-hard triplet loss. Everything else is as in `study_photographs.py`:
the people who are held out, the forms, the rule of choice, the confirmation on targets; and seeds are cheap.
Nothing is augmented but for dropout. What this cannot show is what batches of look-alikes do to a tower.

Parts, each with seeds of its own: two for dev, which chooses the forms of all others, six for confirm and two, four
for eyes and to_market, three for to_cuhk03:
confirm    Market-1501 to the targets
two        Market-1501 and CUHK03 to the targets
to_market  CUHK03 to Market-1501, all 3,368 queries against 15,913 pictures
to_cuhk03  Market-1501 to CUHK03's test people
eyes       Market-1501 to the targets by the small CLIP with ImageNet eyes: behind its locked trunk an adapter, which
           begins as nothing, and its projection learn; prompts, the image-to-text loss, text and dual graphs
A part whose rows are there is not run again: a call that is repeated goes on.
"""
import argparse
import copy
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
from study_photographs import ALSO, BEGIN, FORMS, GO_ON, WORDS, Plan
from torch import nn

from clip_dfgs.models.timm_towers import fill_imagenet, load_timm
from clip_dfgs.training.config import rate
from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.models.reid_model import BNNeck
from clip_dfgs.evaluation.metrics import evaluate
from clip_dfgs.data.leakage import camera_rule
from clip_dfgs.utils.files import write_text
from clip_dfgs.sampling.graph import nearest_identities
from clip_dfgs.training.losses import batch_hard_triplet, id_loss, triplet_health
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.data.image_io import load_image
from clip_dfgs.models.prompts import all_text_features
from clip_dfgs.data.records import pool
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler, update_graph
from clip_dfgs.utils.tensors import evaluating
from clip_dfgs.training.step import image_losses, prompt_losses
from clip_dfgs.models.towers import ImageFeatures

KINDS = dict(pk=PKSampler, gs=GraphSampler, dfgs=DepthFirstGraphSampler)
START, STEPS, PIXELS, TEMPERATURE = 1500, 500, (128, 64), .05
SEEDS = dict(dev=range(2), confirm=range(100, 106), two=range(200, 206), eyes=range(300, 304),
             to_market=range(400, 404), to_cuhk03=range(500, 503))
ROLES = 'PK', 'DFGS', 'PK as DFGS', 'GS', 'DFGS paper order', 'DFGS released order'
GRAPHS = 'PK', 'PK as DFGS', 'DFGS image', 'DFGS text', 'DFGS dual'


# ---------------------------------------------------------------- data
def material(plan, part):
    "Pooled training rows of a part, and what is ranked: name -> partitions."
    if part in ('dev', 'confirm', 'two'): return study.material(plan, part)
    if part == 'eyes': return study.material(plan, 'confirm')
    source, target = ('cuhk03', 'market') if part == 'to_market' else ('market', 'cuhk03')
    folder = next((plan.out/'data').glob(dict(market='Market*', cuhk03='cuhk03*')[target]))
    table = load_dataset('market1501', folder, domain=target)
    return pool([study.tables(plan)[source]]), {target: [table[table['split'] != 'train'].reset_index(drop=True)]}


# ---------------------------------------------------------------- what the locked tower sees
@torch.inference_mode()
def look(paths):
    "Features of pictures, float32 [n,1888]."
    trunk, found = fill_imagenet(load_timm('tf_efficientnet_lite0')[0].visual.trunk).eval(), []
    for i in range(0, len(paths), 64):
        pixels = np.stack([load_image(path, PIXELS) for path in paths[i:i + 64]])
        final, inner = trunk.forward_intermediates(torch.from_numpy(pixels).permute(0, 3, 1, 2)/127.5 - 1,
                                                   indices=[2, 3])
        stripes = [nn.functional.adaptive_avg_pool2d(part, (4, 1)).flatten(1) for part in inner]
        found.append(torch.cat([*stripes, trunk.forward_head(final, pre_logits=True)], 1))
    return torch.cat(found)


def features(plan, parts=()):
    "Features of pictures by their path in the data, each looked at once; those of `parts` are added."
    file, folder, wanted = plan.out/'features.npz', plan.out/'data', set()
    for part in parts:
        rows, targets = material(plan, part)
        for table in (rows, *(table for tables in targets.values() for table in tables)):
            wanted |= {os.path.relpath(path, folder) for path in table['path']}
    kept = dict(np.load(file)) if file.exists() else dict(paths=np.array([], str), x=np.zeros((0, 1888), np.float16))
    if missing := sorted(wanted - set(kept['paths'].tolist())):
        print(f'looking at {len(missing):,} pictures', flush=True)
        seen = look([folder/path for path in missing]).half().numpy()
        kept = dict(paths=np.concatenate([kept['paths'], missing]), x=np.concatenate([kept['x'], seen]))
        np.savez(file, **kept)
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

    def loss(self, x, y, stage, text=None):
        "The loss of a batch, and its features."
        f = self(x)
        loss = stage.id_weight*id_loss(self.neck(f), y)
        return loss + batch_hard_triplet(f, y, stage.margin, stage.normalize, stage.mining_temperature), f


class Eyes(nn.Module):
    "The small CLIP with ImageNet eyes behind its locked trunk: adapter and projection learn; so do prompts."
    def __init__(self, people, seed):
        super().__init__()
        self.model = ReIDModel.create('pedestrians', 'imagenet_eyes', num_ids=people, seed=seed)
        self.layers = nn.Sequential(nn.Linear(1280, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(.2),
                                    nn.Linear(256, 1280))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        self.model.trainable('finetune')
        self.model.clip.visual.trunk.requires_grad_(False)

    def features(self, x):
        pooled = x[:, -1280:]
        pooled = pooled + self.layers(pooled)
        return ImageFeatures(pooled, pooled, self.model.clip.visual.head(pooled))

    def forward(self, x): return torch.cat(self.features(x)[1:], 1)

    def loss(self, x, y, stage, text=None):
        "The loss of a batch, and its features; with the texts of all people L_i2tce is part of it."
        f = self.features(x)
        stage = replace(stage, triplet_on=('pooled', 'projected'))
        parts = image_losses(f, self.model.heads(f), y, stage, text, TEMPERATURE)
        return sum(parts.values()), torch.cat(f[1:], 1)

    def learn_prompts(self, x, labels, seed):
        "Prompts of all people from the projected features of their pictures; the texts, shape [N, 128]."
        with evaluating(self), torch.no_grad(): seen = self.features(x).projected
        context, draw = self.model.prompts.context.requires_grad_(True), np.random.default_rng([seed, 3])
        optimizer = torch.optim.AdamW([context], lr=0., weight_decay=WORDS.weight_decay)
        for step in range(WORDS.steps):
            rows = torch.as_tensor(draw.choice(len(x), WORDS.batch, replace=False))
            for group in optimizer.param_groups: group['lr'] = WORDS.lr*rate(WORDS, step, WORDS.steps)
            parts = prompt_losses(seen[rows], self.model.text_features(labels[rows]), labels[rows], TEMPERATURE)
            optimizer.zero_grad()
            sum(parts.values()).backward()
            optimizer.step()
        context.requires_grad_(False)
        return all_text_features(self.model)


def sampler_of(rows, run, seed):
    "The sampler of a form."
    labels, cameras = rows['label'].to_numpy(copy=True), rows['cam_label'].to_numpy(copy=True)
    kind, options = run.get('sampler', 'dfgs'), {}
    if kind == 'dfgs': options = {name: run[name] for name in ('order', 'pk_ratio') if name in run}
    return KINDS[kind](labels, cameras, batch=64, instances=4, seed=seed, **options)


def train(head, x, rows, form, stage, seed, text=None):
    "Train a head in place; a row of loss and violated share every 100 steps."
    run, sampler = form[0], sampler_of(rows, form[0], seed)
    labels = torch.as_tensor(sampler.labels)
    learning = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0., weight_decay=stage.weight_decay, fused=True)
    history, watched, step, epoch = [], [], 0, 0
    def embed(rows): return head(x[rows])
    while step < stage.steps:
        sampler.set_epoch(epoch)
        k = 15 if run.get('sampler') == 'gs' else 10
        options, graph = dict(k=k, skip_nearest=run.get('skip_nearest', 0)), run.get('graph', 'image')
        if graph == 'dual': options['second'] = text
        if graph == 'text' and epoch == 0: sampler.neighbors = nearest_identities(text, **options)
        if run.get('sampler') != 'pk' and graph != 'text': update_graph(sampler, embed, model=head, **options)
        for batch in list(sampler)[:stage.steps - step]:
            head.train()
            if stage.norm == 'frozen': head.layers[1].eval()
            for group in optimizer.param_groups: group['lr'] = stage.lr*rate(stage, step, stage.steps)
            y = labels[batch]
            loss, f = head.loss(x[batch], y, stage, text)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 10 == 0: watched.append(dict(loss=loss.item(), **triplet_health(f.detach(), y, normalize=True)))
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
            r = evaluate(*sides, query['pid'].to_numpy(), gallery['pid'].to_numpy(), *camera_rule(query, gallery))
            scores.setdefault(part['partition'].iloc[0] if 'partition' in part else 0, []).append((r.mAP, r.cmc[1]))
        split = 100*np.array([np.mean(pairs, axis=0) for pairs in scores.values()])
        spread = split.std(axis=0, ddof=1) if len(split) > 1 else (np.nan, np.nan)
        rows.append(dict(target=name, mAP=split[:, 0].mean(), R1=split[:, 1].mean(), splits=len(split),
                         **{'mAP deviation': spread[0], 'R1 deviation': spread[1]}))
    return rows


def begun(plan, part, seed):
    "Training rows, their features, place and features of all pictures, targets, and the start, not trained."
    (rows, targets), (place, x) = material(plan, part), features(plan)
    own = x[[place[str(path)] for path in rows['path']]]
    if part != 'eyes':                                                        # the CLIP's own layers know its scale
        mean, std = own.mean(0), own.std(0) + 1e-3
        x, own = (x - mean)/std, (own - mean)/std
    torch.manual_seed(seed)
    people = rows['label'].nunique()
    return rows, own, place, x, targets, Eyes(people, seed) if part == 'eyes' else Head(own.shape[1], people)


def one_seed(plan, part, seed):
    "A start and what goes on from it; two files, the table last."
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    file = plan.out/'rows'/f'{part}-{seed}.csv'
    if file.exists(): return
    rows, own, place, x, targets, start = begun(plan, part, seed)
    lines, histories, text = [], [], None
    def note(head, name, form, history):
        about = dict(phase=part, seed=seed, variant=name, form=form)
        lines.extend(about | row for row in ranks(head, x, place, targets))
        histories.extend(about | row for row in history)
    note(start, 'start', 'start', train(start, own, rows, FORMS['PK live'], replace(BEGIN, steps=START), seed))
    if part == 'eyes': text = start.learn_prompts(own, torch.as_tensor(rows['label'].to_numpy(copy=True)), seed)
    for name in FORMS if part == 'dev' else GRAPHS if part == 'eyes' else ROLES:
        form, settings = study.form_of(plan, study.Job(part, seed, name))
        head = copy.deepcopy(start)
        torch.manual_seed(seed + 1)
        stage = replace(GO_ON, steps=STEPS, text_weight=.5, **settings[1])
        history = train(head, own, rows, settings, stage, seed + 1, text)
        if settings[1]['norm'] == 'random': renew(head, own, seed)
        note(head, name, form, history)
        again = form.replace('live', 'random')
        if part == 'dev' and again in ALSO:
            renew(head, own, seed)
            note(head, again, again, [])
    write_text(pd.DataFrame(histories).to_csv(index=False), file.with_suffix('.history'))
    write_text(pd.DataFrame(lines).to_csv(index=False), file)
    print(f'{time.strftime("%X")} {part} {seed}', flush=True)


# ---------------------------------------------------------------- the study
def collected(plan, kind='csv'):
    "The rows of all seeds that are done."
    files = [file.with_suffix(f'.{kind}') for file in sorted((plan.out/'rows').glob('*.csv'))]
    return pd.concat(map(pd.read_csv, files), ignore_index=True)


def check_choice(plan):
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
    p.add_argument('--parts', nargs='+', choices=SEEDS, default=[*SEEDS])
    a = p.parse_args()
    a.out, to = a.out.resolve(), (a.to or a.out).resolve()
    for name in ('data', 'rows'): (a.out/name).mkdir(parents=True, exist_ok=True)
    study.unpack(a.data, a.out/'data')
    plan = Plan(a.out, a.data, False, len(SEEDS['dev']), 0, 0, START, STEPS, 0., 0, ())
    warnings.simplefilter('ignore')
    others = [part for part in SEEDS if part in a.parts and part != 'dev']
    if {*others} & {'two', 'to_market', 'to_cuhk03'} and not study.archive(a.data, 'cuhk03'):
        raise SystemExit(f'{a.data}: CUHK03 is not there; give --parts without two, to_market and to_cuhk03')
    chosen = (plan.out/'choice.json').exists()
    if not chosen and 'dev' not in a.parts: raise SystemExit(f'no {plan.out}/choice.json; --parts dev makes it')
    features(plan, a.parts)
    with multiprocessing.get_context('forkserver').Pool(a.processes) as workers:
        if 'dev' in a.parts: workers.starmap(one_seed, [(plan, 'dev', seed) for seed in SEEDS['dev']], chunksize=1)
        if not chosen: check_choice(plan)
        workers.starmap(one_seed, [(plan, part, seed) for part in others for seed in SEEDS[part]], chunksize=1)
    for kind, name in (('csv', 'photographs'), ('history', 'photographs_history')):
        write_text(collected(plan, kind).to_csv(index=False, float_format='%.5g'), to/f'{name}.csv')
    write_text((plan.out/'choice.json').read_text(), to/'photographs_choice.json')


if __name__ == '__main__': main()
