"""The study on photographs where there is no GPU: the tower is locked, and a small head learns on its features.

    python benchmarks/study_photographs_head.py --data FOLDER --out runs/head --to results/head --processes 2
    python benchmarks/study_photographs_head.py --out runs/tiny --tiny                     # two steps of each part

EfficientNet-Lite0 with ImageNet weights (extra `photos`) looks once at each image, at 128x64: its last feature, and
two inner ones averaged over four stripes. On these 1,888 numbers a head is trained: a linear layer, batch norm, ReLU,
a linear layer; L_id on a BN neck, and the batch-hard triplet loss. The identities that are held out, the forms, the
rule of choice and the targets are those of `study_photographs.py`; nothing is augmented but for dropout. What this
cannot show is what batches of hard negatives do to a tower. Parts beside that script's: `to_market` (CUHK03 to all of
Market-1501) and `to_cuhk03`. `eyes` is the small CLIP with ImageNet eyes behind its locked trunk: an adapter, which
begins as nothing, its projection and prompts learn. A seed whose rows are there is not run again.
"""
import argparse
import copy
import json
import multiprocessing
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import study_photographs as study
import torch
from torch import nn

from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.data.image_io import load_image
from clip_dfgs.data.records import pool
from clip_dfgs.models.reid_model import BNNeck
from clip_dfgs.models.prompts import all_text_features
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.models.weights import fill_imagenet, load_timm
from clip_dfgs.models.towers import ImageFeatures
from clip_dfgs.sampling.graph import nearest_identities
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler, update_graph
from clip_dfgs.training.config import rate
from clip_dfgs.training.losses import triplet_health
from clip_dfgs.training.step import image_losses, prompt_losses
from clip_dfgs.utils.files import write_text
from clip_dfgs.utils.tensors import evaluating

SEEDS = dict(dev=range(2), confirm=range(100, 106), two=range(200, 206), eyes=range(300, 304),
             to_market=range(400, 404), to_cuhk03=range(500, 503))
SAMPLERS = dict(pk=PKSampler, gs=GraphSampler, dfgs=DepthFirstGraphSampler)


def material(folder, part, tiny):
    "Pooled training rows of a part, and what is ranked: name -> partitions."
    if part not in ('to_market', 'to_cuhk03'): return study.material(folder, part, tiny)
    source, target = ('cuhk03', 'market') if part == 'to_market' else ('market', 'cuhk03')
    table = load_dataset('market1501', next(folder.glob(dict(market='Market*', cuhk03='cuhk03*')[target])))
    if tiny: table = table[table['pid'].isin(sorted(set(table['pid'][table['split'] == 'query']))[:20])]
    test = table[table['split'] != 'train'].assign(domain=target).reset_index(drop=True)
    return pool([study.tables(folder, tiny)[source]]), {target: [test]}


def features(folder, parts, tiny):
    "Number of each image of some parts by its path, and what the locked tower sees of all; each is looked at once."
    wanted = set()
    for part in parts:
        rows, targets = material(folder, part, tiny)
        for table in (rows, *sum(targets.values(), [])): wanted |= set(map(str, table['path']))
    return seen_by_tower(folder, wanted)


@torch.inference_mode()
def seen_by_tower(folder, paths=()):
    "Number of each image by its path, and what the locked tower sees, float32 [n,1888]; new ones are added to a file."
    file = folder.parent/'features.npz'
    kept = dict(np.load(file)) if file.exists() else dict(paths=np.array([], str), x=np.zeros((0, 1888), np.float16))
    if missing := sorted({os.path.relpath(path, folder) for path in paths} - set(kept['paths'].tolist())):
        print(f'looking at {len(missing):,} images', flush=True)
        trunk, seen = fill_imagenet(load_timm('tf_efficientnet_lite0')[0].visual.trunk).eval(), []
        for i in range(0, len(missing), 64):
            pixels = np.stack([load_image(folder/path, (128, 64)) for path in missing[i:i + 64]])
            final, inner = trunk.forward_intermediates(torch.from_numpy(pixels).permute(0, 3, 1, 2)/127.5 - 1,
                                                       indices=[2, 3])
            stripes = [nn.functional.adaptive_avg_pool2d(layer, (4, 1)).flatten(1) for layer in inner]
            seen.append(torch.cat([*stripes, trunk.forward_head(final, pre_logits=True)], 1).half())
        kept = dict(paths=np.concatenate([kept['paths'], missing]), x=np.concatenate([kept['x'], torch.cat(seen)]))
        np.savez(file, **kept)
    return {str(folder/path): i for i, path in enumerate(kept['paths'])}, torch.from_numpy(kept['x']).float()


def layers(width, out): # what learns behind the tower
    return nn.Sequential(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(.2), nn.Linear(256, out))


class Head(nn.Module):
    "What learns: two layers behind the locked tower, and BN necks; of the small CLIP an adapter and its projection."
    def __init__(self, width, identities, seed, eyes):
        super().__init__()
        self.eyes, self.layers = eyes, layers(1280, 1280) if eyes else layers(width, 256)
        self.neck = BNNeck(256, identities)
        if not eyes: return
        for p in self.layers[-1].parameters(): nn.init.zeros_(p)
        self.model = ReIDModel.create('pedestrians', 'imagenet_eyes', num_ids=identities, seed=seed)
        self.model.trainable('finetune')
        self.model.clip.visual.trunk.requires_grad_(False)

    def features(self, x):
        if not self.eyes: return ImageFeatures(*[self.layers(x)]*3)
        pooled = x[:, -1280:] + self.layers(x[:, -1280:])
        return ImageFeatures(pooled, pooled, self.model.clip.visual.head(pooled))

    def forward(self, x):
        found = self.features(x)
        return torch.cat(found[1:], 1) if self.eyes else found.pooled

    def keep_norm(self):
        "Batch norm by its averages, which stay as they are."
        self.layers[1].eval()

    def loss(self, x, y, stage, text=None):
        "The loss of a batch, and its features; with the texts of all identities L_i2tce is part of it."
        f = self.features(x)
        logits = self.model.heads(f) if self.eyes else [self.neck(f.pooled)]
        stage = replace(stage, triplet_on=('pooled', 'projected') if self.eyes else ('pooled',))
        parts = image_losses(f, logits, y, stage, text, temperature=.05)
        return sum(parts.values()), torch.cat(f[1:], 1) if self.eyes else f.pooled


def learn_prompts(head, x, labels, seed, words):
    "Prompts of all identities from the projected features of their images; the texts, shape [N, 128]."
    with evaluating(head), torch.no_grad(): seen = head.features(x).projected
    context, draw = head.model.prompts.context.requires_grad_(True), np.random.default_rng([seed, 3])
    optimizer = torch.optim.AdamW([context], lr=0., weight_decay=words.weight_decay)
    for step in range(words.steps):
        rows = torch.as_tensor(draw.choice(len(x), min(len(x), words.batch), replace=False))
        for group in optimizer.param_groups: group['lr'] = words.lr*rate(words, step, words.steps)
        loss = sum(prompt_losses(seen[rows], head.model.text_features(labels[rows]), labels[rows], .05).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    context.requires_grad_(False)
    return all_text_features(head.model)


def train(head, x, rows, run, stage, seed, text=None):
    "Train a head in place; a row of loss and violated share every 100 steps."
    kind, graph = run.get('sampler', 'dfgs'), run.get('graph', 'image')
    own = {name: run[name] for name in ('order', 'pk_ratio') if name in run}
    sampler = SAMPLERS[kind](rows['label'].to_numpy(copy=True), rows['cam_label'].to_numpy(copy=True), seed=seed,
                             batch=stage.batch, instances=4, **own)
    options = dict(k=15 if kind == 'gs' else 10, skip_nearest=run.get('skip_nearest', 0))
    if graph == 'dual': options['second'] = text
    if graph == 'text': sampler.neighbors = nearest_identities(text, **options)
    labels, step, history = torch.as_tensor(sampler.labels), 0, []
    learning = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0., weight_decay=stage.weight_decay, fused=True)
    for epoch in range(stage.steps):
        sampler.set_epoch(epoch)
        if kind != 'pk' and graph != 'text': update_graph(sampler, lambda some: head(x[some]), model=head, **options)
        for batch in list(sampler)[:stage.steps - step]:
            head.train()
            if stage.norm == 'frozen': head.keep_norm()
            for group in optimizer.param_groups: group['lr'] = stage.lr*rate(stage, step, stage.steps)
            loss, f = head.loss(x[batch], labels[batch], stage, text)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 10: continue
            health = triplet_health(f.detach(), labels[batch], normalize=True)
            history.append(dict(step=-(-step//100)*100, loss=loss.item(), **health))
    if stage.norm == 'random': renew(head, x, seed)
    return pd.DataFrame(history).groupby('step').mean().reset_index() if history else pd.DataFrame()


def renew(head, x, seed):
    "The averages of batch norm anew, over 50 random batches."
    norm, draw = head.layers[1], np.random.default_rng([seed, 2])
    with evaluating(head):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
        for _ in range(50): head(x[draw.choice(len(x), min(len(x), 64), replace=False)])
    norm.momentum = .1


def one_seed(a, part, seed):
    "A start and what goes on from it; two files, the table last."
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    file, folder = a.out/'rows'/f'{part}-{seed}.csv', a.out/'data'
    if file.exists(): return
    (rows, targets), (place, x) = material(folder, part, a.tiny), features(folder, (), a.tiny)
    own = x[[place[str(path)] for path in rows['path']]]
    if part != 'eyes':                                                        # the CLIP's own layers know its scale
        mean, std = own.mean(0), own.std(0) + 1e-3
        x, own = (x - mean)/std, (own - mean)/std
    torch.manual_seed(seed)
    start, text = Head(own.shape[1], rows['label'].nunique(), seed, part == 'eyes'), None
    chosen = None if part == 'dev' else json.loads((a.out/'choice.json').read_text())
    batch, steps = (16, (2, 2, 2)) if a.tiny else (64, (1500, 200, 500))
    begin = replace(study.BEGIN, steps=steps[0], batch=batch)
    lines, histories = [], []
    def note(head, name, history):
        about = dict(phase=part, seed=seed, variant=name, form=name)
        if chosen: about['form'] = chosen.get(name) or (name if name == 'start' else f'{name} as {chosen["DFGS"]}')
        with evaluating(head), torch.no_grad(): found = head(x)
        lines.extend(about | row for row in study.scores(found, place, targets))
        histories.append(history.assign(**about))
    note(start, 'start', train(start, own, rows, dict(sampler='pk'), begin, seed))
    if part == 'eyes':
        labels, words = torch.as_tensor(rows['label'].to_numpy(copy=True)), replace(study.WORDS, steps=steps[1])
        text = learn_prompts(start, own, labels, seed, words)
    forms = study.forms_of(part if part in ('dev', 'eyes') else 'confirm', chosen)
    if part == 'eyes': forms |= {'PK as DFGS': study.forms_of('confirm', chosen)['PK as DFGS']}
    for name, (run, more) in forms.items():
        head, stage = copy.deepcopy(start), replace(study.GO_ON, steps=steps[2], batch=batch, **more)
        torch.manual_seed(seed + 1)
        note(head, name, train(head, own, rows, run, stage, seed + 1, text))
    write_text(pd.concat(histories).to_csv(index=False), file.with_suffix('.history'))
    write_text(pd.DataFrame(lines).to_csv(index=False), file)
    print(part, seed, flush=True)


def collected(a, kind='csv'):
    "The rows of all seeds that are done."
    files = [file.with_suffix(f'.{kind}') for file in sorted((a.out/'rows').glob('*.csv'))]
    return pd.concat(map(pd.read_csv, files), ignore_index=True)


def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=Path(os.environ.get('CLIP_DFGS_REALDATA') or '../shared/realdata'))
    p.add_argument('--out', type=Path, default=Path('runs/head'))
    p.add_argument('--to', type=Path, help='folder of the tables; OUT if not given')
    p.add_argument('--processes', type=int, default=1)
    p.add_argument('--parts', nargs='+', choices=SEEDS, default=[*SEEDS])
    p.add_argument('--tiny', action='store_true', help='one seed, two steps, a few identities: does it run?')
    a = p.parse_args(words)
    a.out, to = a.out.resolve(), (a.to or a.out).resolve()
    for name in ('data', 'rows'): (a.out/name).mkdir(parents=True, exist_ok=True)
    study.unpack(a.data, a.out/'data')
    if not study.archive(a.data, 'cuhk03'):
        a.parts = [part for part in a.parts if part not in ('two', 'to_market', 'to_cuhk03')]
    file = a.out/'choice.json'
    features(a.out/'data', a.parts, a.tiny)
    with multiprocessing.get_context('forkserver').Pool(a.processes) as workers:
        for part in a.parts:
            if part != 'dev' and not file.exists(): raise SystemExit(f'no {file}; --parts dev makes it')
            workers.starmap(one_seed, [(a, part, seed) for seed in SEEDS[part][:1 if a.tiny else None]], chunksize=1)
            if part != 'dev' or file.exists(): continue
            rows = collected(a)
            means = rows[rows['phase'] == 'dev'].pivot_table(index='seed', columns='form', values='mAP').mean()
            best = {kind: means[means.index.str.startswith(kind)].idxmax() for kind in ('PK', 'DFGS')}
            write_text(json.dumps(best | dict(means=means.to_dict()), indent=1), file)
    for kind, name in (('csv', 'photographs'), ('history', 'photographs_history')):
        write_text(collected(a, kind).to_csv(index=False, float_format='%.5g'), to/f'{name}.csv')
    write_text(file.read_text(), to/'photographs_choice.json')


if __name__ == '__main__': main()
