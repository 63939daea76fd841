"""Photographs: does a batch of hard negatives help on real images, and in which form?

    python benchmarks/study_photographs.py --data FOLDER --out runs/photographs
    python benchmarks/study_photographs.py --out runs/tiny --tiny                          # two steps of each part
    python benchmarks/study_photographs.py --out runs/photographs --osnet osnet_x0_25_msmt17.onnx  # OSNet beside it

Training images: Market-1501's 751 training identities. Backbone: EfficientNet-Lite0 with ImageNet weights (extra
`photos`) at 128x64, image graphs. Every seed has one start, trained with PK batches. From it each form goes on for the
same number of steps.

The rule of choice, written before anything was run:
1. `dev`: 100 of the 751 identities are held out, the other 651 are trained on. Every form of PK and DFGS in `forms`
   is trained from each start and ranks the held-out identities. Of PK and of DFGS the form with the best mAP, mean over
   these seeds, is chosen, among those that all seeds have trained.
2. `confirm`: other seeds, all 751 identities: the chosen forms, and others beside them (PK and GS with the batch norm
   and the miner of DFGS; DFGS in the paper's and in the released order). These rank the targets: VIPeR, PRID, GRID and
   i-LIDS by their ten splits, and COL780. Nothing is chosen by these.
3. `eyes`: a small CLIP with the same image tower, `imagenet_eyes`, with prompts and the image-to-text loss: PK, and
   DFGS as chosen with the image, the text and the dual graph. The same targets.
4. `two`, where CUHK03 is in the folder too: PK and DFGS as chosen, trained on both, at 256x128.

Each part is a study of `compare_variants` in OUT: called again it goes on, and several processes share it.
`photographs.csv` (results) and `photographs_history.csv` (means over 100 steps) are put together from what is there.
No photograph and no weights trained on one are kept outside OUT, and neither may enter the repository.
"""
import argparse
import json
import os
import shutil
import tarfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from clip_dfgs.data.datasets import identity_splits, load_dataset
from clip_dfgs.data.leakage import camera_rule
from clip_dfgs.data.records import pool
from clip_dfgs.data.transforms import Augment
from clip_dfgs.evaluation.metrics import evaluate
from clip_dfgs.experiments.studies import Study, compare_variants
from clip_dfgs.models.weights import imagenet_file
from clip_dfgs.training.config import Stage, TrainConfig
from clip_dfgs.utils.files import stable_shuffle, write_text

TARGETS = dict(viper='VIPeR', prid='prid_2011', grid='underground_reid', ilids='i-LIDS_Pedestrian', col780='col780')
BEGIN = Stage(steps=3000, lr=1e-3, id_weight=.5, triplet_on=('pooled',), weight_decay=5e-4)
GO_ON = replace(BEGIN, steps=1000, lr=5e-4, text_weight=.5)
WORDS = Stage(steps=200, batch=256, lr=1e-2, weight_decay=0.)
SOFT = dict(mining_temperature=.1, normalize=True)
SEEDS = dict(dev=range(2), confirm=range(100, 108), eyes=range(300, 303), two=range(200, 203))

# name of a form -> settings of the run, settings of its stage
FORMS = {
    'PK live': (dict(sampler='pk'), dict(norm='live')),
    'DFGS live': (dict(), dict(norm='live')),
    'PK random': (dict(sampler='pk'), dict(norm='random')),
    'DFGS random': (dict(), dict(norm='random')),
    'PK frozen': (dict(sampler='pk'), dict(norm='frozen')),
    'DFGS frozen': (dict(), dict(norm='frozen')),
    'DFGS frozen half': (dict(pk_ratio=.5), dict(norm='frozen')),
    'DFGS live half': (dict(pk_ratio=.5), dict(norm='live')),
    'DFGS random half': (dict(pk_ratio=.5), dict(norm='random')),
    'PK frozen soft': (dict(sampler='pk'), dict(norm='frozen', **SOFT)),
    'DFGS frozen soft': (dict(), dict(norm='frozen', **SOFT)),
    'DFGS frozen soft half': (dict(pk_ratio=.5), dict(norm='frozen', **SOFT)),
    'DFGS frozen m=10': (dict(skip_nearest=10), dict(norm='frozen'))}


def forms_of(part, chosen=None):
    "The forms of a part: name -> (settings of the run, settings of its stage)."
    if part == 'dev': return FORMS
    run, stage = FORMS[chosen['DFGS']]
    plain = {name: value for name, value in run.items() if name != 'pk_ratio'}
    found = {'PK': FORMS[chosen['PK']], 'DFGS': (run, stage), 'PK as DFGS': (dict(sampler='pk'), stage),
             'GS': (dict(sampler='gs'), stage), 'DFGS paper order': (dict(run, order='paper'), stage),
             'DFGS released order': (dict(plain, order='released'), stage)}
    if part == 'eyes':
        found |= {f'DFGS {graph}': (dict(run, graph=graph), stage) for graph in ('image', 'text', 'dual')}
        return {name: found[name] for name in ('PK', 'DFGS image', 'DFGS text', 'DFGS dual')}
    return found if part == 'confirm' else {name: found[name] for name in ('PK', 'DFGS')}


def variants_of(part, config, chosen=None):
    "The same as `compare_variants` takes them."
    return {name: dict(run, finetune=replace(config.finetune, **stage))
            for name, (run, stage) in forms_of(part, chosen).items()}


# ---------------------------------------------------------------- data
def archive(data, word):
    "The archive whose name begins with a word, or None."
    return next(iter(sorted(data.glob(f'{word}*.tar*'))), None)


def unpack(data, out):
    "Unpack the archives once."
    for word in ('market', 'p1_targets', 'col780', 'cuhk03'):
        file, mark = archive(data, word), out/f'.{word}'
        if not file or mark.exists(): continue
        print(f'unpacking {file.name}', flush=True)
        with tarfile.open(file) as packed: packed.extractall(out, filter='data')
        mark.touch()


@cache
def tables(folder, tiny=False):
    "Training tables and targets, by name; a few identities and two splits if tiny."
    found = dict(market=load_dataset('market1501', next(folder.glob('Market*')), domain='market1501'))
    if cuhk := next(folder.glob('cuhk03*'), None): found['cuhk03'] = load_dataset('market1501', cuhk, domain='cuhk03')
    found = {name: table[table['split'] == 'train'] for name, table in found.items()}
    for name, place in TARGETS.items():
        kind = name if name != 'col780' else 'market1501'
        found[name] = identity_splits(kind, load_dataset(kind, folder/place, domain=name))
    def smaller(table):
        if isinstance(table, list): return [smaller(t) for t in table[:2]]
        some = sorted(set(table['pid'][table['split'] != 'gallery']) - {0})[:40]
        return table[table['pid'].isin(some)].reset_index(drop=True)
    return {name: smaller(table) for name, table in found.items()} if tiny else found


def held_out(table, identities=100):
    "Training rows without some identities; those as queries, one an identity and camera, and gallery."
    able = table.groupby('pid')['camid'].nunique()
    drawn = stable_shuffle(able.index[able > 1], 'held out for the study')[:identities]
    test = table[table['pid'].isin(drawn)]
    names = test['path'].map(os.path.basename)
    first = {stable_shuffle(group, 'held out')[0] for _, group in names.groupby([test['pid'], test['camid']])}
    test = test.assign(split=np.where(names.isin(first), 'query', 'gallery'), domain='held out')
    return table[~table['pid'].isin(drawn)], test.reset_index(drop=True)


def material(folder, part, tiny=False):
    "Pooled training rows of a part, and what is ranked: name -> partitions."
    found = tables(folder, tiny)
    if part == 'dev':
        train, test = held_out(found['market'], 10 if tiny else 100)
        return pool([train]), {'held out': [test]}
    sources = [found['market']] + ([found['cuhk03']] if part == 'two' else [])
    return pool(sources), {name: found[name] for name in TARGETS}


# ---------------------------------------------------------------- the study
def config_of(part, a):
    "The settings of a part: how its start is trained, and how the forms go on."
    eyes, batch = part == 'eyes', 16 if a.tiny else 64
    tower = dict(clip='pedestrians', pretrained='imagenet_eyes')
    if not eyes: tower = dict(clip='timm:tf_efficientnet_lite0', pretrained=str(imagenet_file()))
    seen = dict(batch=batch, triplet_on=('pooled', 'projected') if eyes else ('pooled',))
    steps = (2, 2, 2) if a.tiny else (a.start_steps, WORDS.steps, a.steps)
    return TrainConfig(
        **tower, k=10, augment=Augment(flip=.5, pad=6, erase=.3, jitter=.3, strength=(.25, .25, .2, .02)),
        image_size=(256, 128) if part == 'two' and not a.tiny else (128, 64),
        adapt=replace(BEGIN, steps=steps[0], **seen), prompts=replace(WORDS, steps=steps[1]) if eyes else None,
        finetune=replace(GO_ON, steps=steps[2], **seen), precision='no', workers=a.loaders, log_steps=20,
        cache=str(a.out/'cache'))


def choose(study):
    "Of PK and of DFGS the form with the best mAP, mean over all seeds of the development."
    means = study.last().drop(columns='start').dropna(axis=1).mean()
    return {kind: means[means.index.str.startswith(kind)].idxmax() for kind in ('PK', 'DFGS')}, means.to_dict()


def results_of(study, part, chosen=None):
    "The tables of a part, results in percent and means of the history over 100 steps, as `results/` has them."
    def named(table):
        form = table['variant'] if part == 'dev' else table['variant'].map(
            lambda name: chosen.get(name) or (name if name == 'start' else f'{name} as {chosen["DFGS"]}'))
        return table.assign(phase=part, form=form)
    found = study.finished().rename(columns=dict(domain='target', deviation='mAP deviation'))
    found[['mAP', 'R1', 'mINP', 'mAP deviation']] *= 100
    history = study.history
    if len(history):
        by = ['seed', 'variant', -(-history['step']//100)*100]
        history = history.groupby(by)[['loss', 'violated_triplets', 'embedding_std']].mean().reset_index()
    return named(found.drop(columns=['step', 'last'])), named(history)


def scores(features, place, targets):
    "mAP, Rank-1 and mINP of each target by features whose rows are found by path: mean and deviation over its splits."
    for name, parts in targets.items():
        found = []
        for part in parts:
            sides = [part[part['split'] == side] for side in ('query', 'gallery')]
            seen = [features[[place[str(path)] for path in side['path']]] for side in sides]
            r = evaluate(*seen, *(side['pid'].to_numpy() for side in sides), *camera_rule(*sides))
            split = part['partition'].iloc[0] if 'partition' in part else 0
            found.append(dict(split=split, mAP=100*r.mAP, R1=100*r.cmc[1], mINP=100*r.mINP))
        by_split = pd.DataFrame(found).groupby('split').mean()
        spread = by_split[['mAP', 'R1']].std().add_suffix(' deviation')
        yield dict(target=name, **by_split.mean(), **spread, splits=len(by_split))


def osnet(folder, file, tiny=False):
    "The targets ranked by an ONNX file for 256x128 images, by ImageNet's mean and deviation: a row a target."
    from clip_dfgs.inference.onnx import OnnxExtractor
    targets = material(folder, 'confirm', tiny)[1]
    paths = sorted({path for parts in targets.values() for part in parts for path in part['path']})
    features = np.asarray(OnnxExtractor(file, size=(256, 128), input='imagenet')(paths))
    return pd.DataFrame(scores(features, {path: i for i, path in enumerate(paths)}, targets))


def arguments(words=None):
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=Path(os.environ.get('CLIP_DFGS_REALDATA') or '../shared/realdata'))
    p.add_argument('--out', type=Path, default=Path('runs/photographs'), help='what the study needs and has done')
    p.add_argument('--to', type=Path, help='folder of the tables; OUT if not given')
    p.add_argument('--parts', nargs='+', choices=SEEDS, default=[*SEEDS])
    p.add_argument('--seeds', type=int, default=99, help='at most so many of each part')
    p.add_argument('--processes', type=int, default=1)
    p.add_argument('--minutes', type=float, help='no run is begun after so many')
    p.add_argument('--start-steps', type=int, default=BEGIN.steps)
    p.add_argument('--steps', type=int, default=GO_ON.steps, help='of each form')
    p.add_argument('--loaders', type=int, default=0, help='processes that load images, beside that of a run')
    p.add_argument('--osnet', type=Path, help='rank the targets by this ONNX file, and do nothing else')
    p.add_argument('--tiny', action='store_true', help='one seed, two steps, a few identities: does it run?')
    return p.parse_args(words)


def main(words=None):
    a, begun = arguments(words), time.time()
    a.out, to = a.out.resolve(), (a.to or a.out).resolve()
    for folder in (a.out/'data', to): folder.mkdir(parents=True, exist_ok=True)
    unpack(a.data, a.out/'data')
    def write(table, name): write_text(table.to_csv(index=False, float_format='%.5g'), to/name)
    if a.osnet: return write(osnet(a.out/'data', a.osnet, a.tiny), 'photographs_osnet.csv')
    if not archive(a.data, 'cuhk03'): a.parts = [part for part in a.parts if part != 'two']
    file, parts = a.out/'choice.json', []
    for part in a.parts:
        if part != 'dev' and not file.exists():
            raise SystemExit(f'no {file}: `--parts dev` makes it, or copy results/tower/photographs_choice.json to it')
        chosen = None if part == 'dev' else json.loads(file.read_text())
        rows, targets = material(a.out/'data', part, a.tiny)
        config, seeds = config_of(part, a), SEEDS[part][:1 if a.tiny else a.seeds]
        left = a.minutes and max(1e-3, a.minutes - (time.time() - begun)/60)
        compare_variants(rows, targets, config, variants_of(part, config, chosen), seeds, a.out/part,
                         processes=a.processes, minutes=left)
        study = Study.load(a.out/part)
        if part == 'dev' and not file.exists():
            best, means = choose(study)
            write_text(json.dumps(best | dict(means=means), indent=1), file)
            print(f'chosen by held-out identities: {best}', flush=True)
        parts.append(results_of(study, part, chosen))
        for table, name in zip(zip(*parts), ('photographs.csv', 'photographs_history.csv')):
            write(pd.concat(table, ignore_index=True), name)
        print(f'{part} after {(time.time() - begun)/60:.1f} minutes: {study}', flush=True)
    if to != a.out and file.exists(): shutil.copy(file, to/'photographs_choice.json')


if __name__ == '__main__': main()
