"""Photographs: does a batch of look-alikes help, on real people, and in which form?

    python benchmarks/study_photographs.py --data FOLDER --out runs/photographs
    python benchmarks/study_photographs.py --out runs/photographs --processes 14 --loaders 2 --minutes 5  # on a GPU
    python benchmarks/study_photographs.py --out runs/tiny --tiny                         # two steps of each part
    python benchmarks/study_photographs.py --out runs/photographs --only osnet --osnet osnet_x0_25_msmt17.onnx

Training images: Market-1501's 751 training identities. Backbone: EfficientNet-Lite0 with ImageNet weights (extra
`photos`) at 128x64, image-side graphs. Every seed has one start, trained with PK batches. From it each form goes on for
the same number of steps.

The rule of choice, written before anything was run:
1. *Development.* 100 of the 751 identities are held out; the other 651 are trained on. Every form of PK and DFGS in
   FORMS is trained from each development start, and ranks the held-out people. Of PK and of DFGS the form with the
   best mAP, mean over these seeds, is chosen. Only forms that all seeds have trained take part. The choice is made
   once: when all are trained, or, with --minutes, when 60 % of the time are over.
2. *Confirmation.* Other seeds, all 751 identities: the chosen form of PK, the chosen form of DFGS, and others beside
   them (PK and GS with the same batch norm and miner as DFGS; DFGS in the paper's and in the released order). These
   rank the targets: VIPeR, PRID, GRID and i-LIDS by their ten splits, and COL780. Nothing is chosen by these.
3. *Eyes*: a small CLIP whose image tower is the same, `imagenet_eyes`, with prompts and the image-to-text loss. PK,
   and DFGS as chosen with the image, the text and the dual graph; three more seeds; the same targets.
4. *Two sources*, where CUHK03 is in the folder too: PK and DFGS as chosen, trained on both, at 256x128; three seeds.

Jobs are done in this order by several processes. A job is done when its file in OUT/rows is there; one that was cut
off is done again. `photographs.csv` (ranks) and `photographs_history.csv` (loss, violated share) are put together from
the jobs that are done, so that whatever was finished in time is a smaller study of the same kind. The history is in
means over 100 steps.

No photograph and no weights trained on one are kept outside OUT, and neither may enter the repository.
"""
import argparse
import fcntl
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
import time
import traceback
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from clip_dfgs.models.timm_towers import imagenet_file
from clip_dfgs.training.config import Stage, TrainConfig
from clip_dfgs.data.datasets import identity_splits, load_dataset
from clip_dfgs.utils.files import stable_shuffle, write_text
from clip_dfgs.data.transforms import Augment
from clip_dfgs.experiments.protocols import evaluate_partitions
from clip_dfgs.data.records import pool
from clip_dfgs.training.batch_norm import renew_norm
from clip_dfgs.training.trainer import fit

TARGETS = dict(viper='VIPeR', prid='prid_2011', grid='underground_reid', ilids='i-LIDS_Pedestrian', col780='col780')
BEGIN = Stage(steps=3000, lr=1e-3, id_weight=.5, triplet_on=('pooled',), weight_decay=5e-4)
GO_ON = replace(BEGIN, steps=1000, lr=5e-4)
WORDS = Stage(steps=200, batch=256, lr=1e-2, weight_decay=0.)
SOFT = dict(mining_temperature=.1, normalize=True)

# name of a form -> settings of the run, settings of its stage; ALSO: those whose averages are taken anew on random
# batches, which are no runs of their own, since the weights are those of 'live'
FORMS = {
    'PK live': (dict(sampler='pk'), dict(norm='live')),
    'DFGS live': (dict(), dict(norm='live')),
    'PK frozen': (dict(sampler='pk'), dict(norm='frozen')),
    'DFGS frozen': (dict(), dict(norm='frozen')),
    'DFGS frozen half': (dict(pk_ratio=.5), dict(norm='frozen')),
    'DFGS live half': (dict(pk_ratio=.5), dict(norm='live')),
    'PK frozen soft': (dict(sampler='pk'), dict(norm='frozen', **SOFT)),
    'DFGS frozen soft': (dict(), dict(norm='frozen', **SOFT)),
    'DFGS frozen soft half': (dict(pk_ratio=.5), dict(norm='frozen', **SOFT)),
    'DFGS frozen m=10': (dict(skip_nearest=10), dict(norm='frozen'))}
ALSO = {name.replace('live', 'random'): (run, dict(stage, norm='random')) for name, (run, stage) in FORMS.items()
        if stage['norm'] == 'live'}


@dataclass(frozen=True)
class Job:
    "Something to train and rank."
    phase:str   # dev, confirm, eyes, two
    seed:int
    name:str    # 'start', a form (dev), or a part (the others)

    def __str__(self): return f'{self.phase}-{self.seed}-{self.name.replace(" ", "_").replace("=", "")}'


@dataclass(frozen=True)
class Plan:
    "What is done, at which size; the same in every process."
    out:Path
    data:Path
    tiny:bool
    dev:int         # seeds of the development
    confirm:int     # seeds of the confirmation
    more:int        # seeds of eyes and of two sources
    start_steps:int
    steps:int
    choose_at:float # time at which the choice is made with what is there
    loaders:int     # processes that load images for a start
    wanted:tuple    # names of jobs; () = all

    def jobs(self)->list: # in the order in which they are done
        "All jobs."
        dev, confirm = range(self.dev), range(100, 100 + self.confirm)
        first, later = confirm[:4], confirm[4:]
        found = [Job('dev', seed, 'start') for seed in dev] + [Job('confirm', seed, 'start') for seed in first]
        found += [Job('dev', seed, name) for name in FORMS for seed in dev]
        main, more = ('PK', 'DFGS'), ('PK as DFGS', 'GS', 'DFGS released order', 'DFGS paper order')
        found += [Job('confirm', seed, name) for seed in first for name in main]
        found += [Job('confirm', seed, name) for name in more for seed in first]
        graphs = 'PK', 'DFGS image', 'DFGS text', 'DFGS dual'
        found += [Job('eyes', seed, name) for seed in range(300, 300 + self.more) for name in ('start', *graphs)]
        if archive(self.data, 'cuhk03'):
            found += [Job('two', seed, name) for seed in range(200, 200 + self.more) for name in ('start', *main)]
        found += [Job('confirm', seed, name) for seed in later for name in ('start', *main, *more)]
        if not self.wanted: return found
        starts = {f'{job.phase}-{job.seed}-start' for job in found if str(job) in self.wanted}
        return [job for job in found if str(job) in self.wanted or str(job) in starts]


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
def tables(plan):
    "Training tables and targets, by name."
    folder = plan.out/'data'
    found = dict(market=load_dataset('market1501', next(folder.glob('Market*')), domain='market1501'))
    if cuhk := next(folder.glob('cuhk03*'), None): found['cuhk03'] = load_dataset('market1501', cuhk, domain='cuhk03')
    for name, place in TARGETS.items():
        set_name = name if name != 'col780' else 'market1501'
        found[name] = identity_splits(set_name, load_dataset(set_name, folder/place, domain=name))
    found = {name: table[table['split'] == 'train'] if isinstance(table, pd.DataFrame) else table
             for name, table in found.items()}
    if plan.tiny: found = {name: smaller(table) for name, table in found.items()}
    return found


def smaller(table):
    "A few people; of the targets two splits."
    if isinstance(table, list): return [smaller(t) for t in table[:2]]
    people = sorted(set(table['pid'][table['split'] != 'gallery']) - {0})[:40]
    return table[table['pid'].isin(people)].reset_index(drop=True)


def held_out(table, people=100):
    "Some people as queries, one a person and camera, and gallery; the others as training rows."
    able = table.groupby('pid')['camid'].nunique()
    drawn = stable_shuffle(able.index[able > 1], 'held out for the study')[:people]
    test = table[table['pid'].isin(drawn)]
    names = test['path'].map(os.path.basename)
    first = {stable_shuffle(group, 'held out')[0] for _, group in names.groupby([test['pid'], test['camid']])}
    asks = names.isin(first)
    test = test.assign(split=np.where(asks, 'query', 'gallery'), domain='held out')
    return table[~table['pid'].isin(drawn)], test.reset_index(drop=True)


@cache
def material(plan, phase):
    "Pooled training rows, and what is ranked: name -> partitions."
    found = tables(plan)
    if phase == 'dev':
        train, test = held_out(found['market'], 10 if plan.tiny else 100)
        return pool([train]), {'held out': [test]}
    sources = [found['market']] + ([found['cuhk03']] if phase == 'two' else [])
    return pool(sources), {name: found[name] for name in TARGETS}


# ---------------------------------------------------------------- jobs
def config_of(plan, job, form=None):
    "The settings of a job: a start, or a form that goes on from it."
    augment = Augment(flip=.5, pad=6, erase=.3, jitter=.3, strength=(.25, .25, .2, .02))
    eyes, batch = job.phase == 'eyes', 16 if plan.tiny else 64
    tower = dict(clip='pedestrians', pretrained='imagenet_eyes') if eyes else dict(clip='timm:tf_efficientnet_lite0')
    base = TrainConfig(
        **tower | ({} if eyes else dict(pretrained=str(imagenet_file()))), k=10, prompts=None, augment=augment,
        image_size=(256, 128) if job.phase == 'two' and not plan.tiny else (128, 64),
        precision='no', workers=0, log_steps=20, cache=str(plan.out/'cache'), seed=job.seed)
    seen = dict(batch=batch, triplet_on=('pooled', 'projected') if eyes else ('pooled',))
    if form is None:
        words = replace(WORDS, steps=2 if plan.tiny else WORDS.steps) if eyes else None
        begin = replace(BEGIN, steps=plan.start_steps, **seen)
        return replace(base, adapt=begin, prompts=words, finetune=None, workers=plan.loaders)
    run, stage = form
    start = plan.out/'runs'/str(Job(job.phase, job.seed, 'start'))/'model'
    stage = replace(GO_ON, steps=plan.steps, text_weight=.5, **seen, **stage)
    return replace(base, adapt=None, finetune=stage, init=str(start), **run)


def form_of(plan, job):
    "Name and settings of a job's form."
    if job.name == 'start': return 'start', None
    if job.phase == 'dev': return job.name, FORMS[job.name]
    chosen, forms = choice(plan), FORMS | ALSO
    if job.name == 'PK': return chosen['PK'], forms[chosen['PK']]
    run, stage = forms[chosen['DFGS']]
    plain = {name: value for name, value in run.items() if name != 'pk_ratio'}
    other = {'DFGS': run, 'PK as DFGS': dict(sampler='pk'), 'GS': dict(sampler='gs'),
             'DFGS paper order': dict(run, order='paper'), 'DFGS released order': dict(plain, order='released'),
             **{f'DFGS {graph}': dict(run, graph=graph) for graph in ('image', 'text', 'dual')}}
    return f'{job.name} as {chosen["DFGS"]}', (other[job.name], stage)


def done(plan, job): return (plan.out/'rows'/f'{job}.csv').exists()


def ready(plan, job):
    "Whether what a job needs is there; starts of later parts wait for the choice, so as not to hold it up."
    if job.name != 'start' and not done(plan, Job(job.phase, job.seed, 'start')): return False
    early = job.phase == 'dev' or job.name == 'start' and job.phase == 'confirm' and job.seed < 104
    return early or choice(plan) is not None


def choice(plan):
    "The forms that held-out people chose; None as long as that cannot be said."
    file = plan.out/'choice.json'
    if file.exists(): return json.loads(file.read_text())
    jobs = [job for job in plan.jobs() if job.phase == 'dev' and job.name != 'start']
    if not all(done(plan, job) or failed(plan, job) for job in jobs) and time.time() < plan.choose_at: return None
    found = collected(plan)
    if not len(found): return None
    table = found[found['phase'] == 'dev'].pivot_table(index='seed', columns='form', values='mAP')
    means = table.dropna(axis=1).mean() if len(table) == plan.dev else pd.Series(dtype=float)
    best = {kind: means[means.index.str.startswith(kind)] for kind in ('PK', 'DFGS')}
    if not all(map(len, best.values())): return None
    said = {kind: str(scores.idxmax()) for kind, scores in best.items()}
    try:
        with open(plan.out/'choice.part', 'x') as f: json.dump(said | dict(means=means.to_dict()), f, indent=1)
    except FileExistsError: return None
    os.replace(plan.out/'choice.part', file)
    print(f'chosen by held-out people: {said}', flush=True)
    return json.loads(file.read_text())


def rank(plan, run, job, form):
    "A row for each target: mean and deviation over its splits."
    rows = []
    for name, parts in material(plan, job.phase)[1].items():
        found = evaluate_partitions(run.model, parts, run.accelerator, plan.out/'cache')
        scores = {score: found[score].mean() for score in ('mAP', 'R1', 'mINP')}
        spread = {f'{score} deviation': found[score].std(ddof=1) for score in ('mAP', 'R1')}
        rows.append(dict(phase=job.phase, seed=job.seed, variant=job.name, form=form, target=name, **scores, **spread,
                         splits=len(found)))
    return rows


def do(plan, job):
    "Train and rank one job, then write its rows."
    begun, (form, settings) = time.time(), form_of(plan, job)
    same = Job(job.phase, job.seed, 'PK')
    twins = job.name == 'PK as DFGS' and form_of(plan, same)[1] == settings
    if twins and done(plan, same): return copy(plan, same, job)
    config, folder = config_of(plan, job, settings), plan.out/'runs'/str(job)
    shutil.rmtree(folder, ignore_errors=True)
    run = fit(material(plan, job.phase)[0], config, folder)
    rows = rank(plan, run, job, form)
    if form in FORMS and form.replace('live', 'random') in ALSO:
        renew_norm(run.model, run.pixels, run.accelerator, [run.config.seed, 2, 2], run.config.finetune.batch)
        name = form.replace('live', 'random')
        rows += [row | dict(variant=name) for row in rank(plan, run, job, name)]
    history = run.history[run.history['stage'] == ('adapt' if job.name == 'start' else 'finetune')]
    columns = ['loss', 'violated_triplets', 'embedding_std']
    means = history.groupby(-(-history['step']//100)*100)[columns].mean().reset_index()
    means = means.assign(phase=job.phase, seed=job.seed, variant=job.name, form=form)
    write_text(means.to_csv(index=False), plan.out/'rows'/f'{job}.history')
    table = pd.DataFrame(rows).assign(steps=int(history['step'].iloc[-1]), seconds=time.time() - begun)
    write_text(table.to_csv(index=False), plan.out/'rows'/f'{job}.csv')       # last: it says that the job is done
    if job.name != 'start': shutil.rmtree(folder, ignore_errors=True)


def copy(plan, old, new):
    "The rows of a job that was the same."
    for kind in ('history', 'csv'):
        table = pd.read_csv(plan.out/'rows'/f'{old}.{kind}').assign(variant=new.name)
        write_text(table.to_csv(index=False), plan.out/'rows'/f'{new}.{kind}')


def failed(plan, job): return (plan.out/'failed'/str(job)).exists()


def work(plan, number):
    "Do the first job that is ready and free, until none is left."
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    sys.stderr = open(plan.out/f'process-{number}.log', 'a')
    while True:
        open_jobs = [job for job in plan.jobs() if not done(plan, job) and not failed(plan, job)]
        if not open_jobs: return
        for job in open_jobs:
            if not ready(plan, job):
                start = Job(job.phase, job.seed, 'start')
                if failed(plan, start): write_text('its start failed', plan.out/'failed'/str(job))
                continue
            with open(plan.out/'locks'/str(job), 'w') as handle:
                try: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError: continue
                if done(plan, job): continue
                try: do(plan, job)
                except Exception:
                    write_text(traceback.format_exc(), plan.out/'failed'/str(job))
                    print(f'{job} failed: {traceback.format_exc(limit=-1).splitlines()[-1]}', flush=True)
                else: print(f'{time.strftime("%X")} {job}', flush=True)
            break
        else: time.sleep(.2)


# ---------------------------------------------------------------- results
def collected(plan, kind='csv'):
    "The rows of all jobs that are done."
    files = [plan.out/'rows'/f'{job}.{kind}' for job in plan.jobs() if done(plan, job)]
    return pd.concat(map(pd.read_csv, files), ignore_index=True) if files else pd.DataFrame()


def write(plan, to):
    "Put the two tables together."
    to.mkdir(parents=True, exist_ok=True)
    for kind, name in (('csv', 'photographs'), ('history', 'photographs_history')):
        table = collected(plan, kind)
        if len(table): write_text(table.to_csv(index=False, float_format='%.5g'), to/f'{name}.csv')
    if (plan.out/'choice.json').exists(): shutil.copy(plan.out/'choice.json', to/'photographs_choice.json')


class OnnxModel(torch.nn.Module):
    "An ONNX file in the shape that the ranking expects: OSNet, 256x128, ImageNet's mean and deviation."
    config = dict(image_size=(256, 128))

    def __init__(self, file):
        super().__init__()
        import onnxruntime
        self.session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
        self.place = torch.nn.Parameter(torch.zeros(1))

    def embed(self, images):
        "Features of uint8 images [B,3,256,128]."
        mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
        pixels = ((images.float()/255 - mean)/std).numpy()
        name = self.session.get_inputs()[0].name
        found = [self.session.run(None, {name: pixels[i:i + 1]})[0] for i in range(len(pixels))]
        return torch.from_numpy(np.concatenate(found))


def osnet(plan, file, to):
    "The same targets ranked by an ONNX model: a row a target."
    rows = []
    for name, parts in material(plan, 'confirm')[1].items():
        found = evaluate_partitions(OnnxModel(file), parts, None, plan.out/'cache')
        rows.append(dict(target=name, mAP=found['mAP'].mean(), R1=found['R1'].mean(), mINP=found['mINP'].mean(),
                         **{f'{k} deviation': found[k].std(ddof=1) for k in ('mAP', 'R1')}, splits=len(found)))
        print(rows[-1], flush=True)
    to.mkdir(parents=True, exist_ok=True)
    write_text(pd.DataFrame(rows).to_csv(index=False, float_format='%.5g'), to/'photographs_osnet.csv')


def check(plan):
    "SystemExit for what would never end."
    try: imagenet_file()
    except ValueError as e: raise SystemExit(f'{e}') from None
    jobs = plan.jobs()
    if unknown := sorted(set(plan.wanted) - set(map(str, jobs))): raise SystemExit(f'unknown job {unknown[0]}')
    chosen = (plan.out/'choice.json').exists() or any(job.phase == 'dev' and job.name != 'start' for job in jobs)
    if not chosen: raise SystemExit(f'no {plan.out}/choice.json; copy results/tower/photographs_choice.json to it')


def arguments():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, default=Path(os.environ.get('CLIP_DFGS_REALDATA') or '../shared/realdata'))
    p.add_argument('--out', type=Path, default=Path('runs/photographs'), help='what the study needs and has done')
    p.add_argument('--to', type=Path, help='folder of the tables; OUT if not given')
    p.add_argument('--processes', type=int, default=1)
    p.add_argument('--minutes', type=float, default=1e6, help='stop then, with what is done')
    p.add_argument('--dev', type=int, default=2, help='seeds of the development')
    p.add_argument('--confirm', type=int, default=8, help='seeds of the confirmation')
    p.add_argument('--more', type=int, default=3, help='seeds of the small CLIP, and of two sources')
    p.add_argument('--start-steps', type=int, default=BEGIN.steps)
    p.add_argument('--steps', type=int, default=GO_ON.steps, help='of each form')
    p.add_argument('--loaders', type=int, default=0, help='processes that load images, beside that of a start')
    p.add_argument('--jobs', nargs='+', default=(), help='these alone and their starts, such as confirm-100-DFGS; the '
                   'choice is read from OUT/choice.json')
    p.add_argument('--osnet', type=Path, help='also rank the targets by this ONNX file')
    p.add_argument('--only', choices=('study', 'osnet', 'tables'), default='study')
    p.add_argument('--tiny', action='store_true', help='two steps and a few people: does it run?')
    return p.parse_args()


def main():
    a, begun = arguments(), time.time()
    a.out, to = a.out.resolve(), (a.to or a.out).resolve()
    for name in ('data', 'rows', 'locks', 'failed', 'runs'): (a.out/name).mkdir(parents=True, exist_ok=True)
    unpack(a.data, a.out/'data')
    steps = dict(start_steps=2, steps=2) if a.tiny else dict(start_steps=a.start_steps, steps=a.steps)
    seeds = dict(dev=1, confirm=1, more=1) if a.tiny else dict(dev=a.dev, confirm=a.confirm, more=a.more)
    plan = Plan(a.out, a.data, a.tiny, **seeds, **steps, choose_at=begun + .6*60*a.minutes, loaders=a.loaders,
                wanted=tuple(a.jobs))
    if a.only == 'study':
        check(plan)
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(['clip_dfgs.training.trainer', 'clip_dfgs.experiments.protocols', 'timm'])
        workers = [context.Process(target=work, args=(plan, n), daemon=False) for n in range(a.processes)]
        for process in workers: process.start()
        while any(process.is_alive() for process in workers) and time.time() < begun + 60*a.minutes:
            time.sleep(1)
            if int(time.time()) % 10 == 0: write(plan, to)
        for process in workers: process.kill()
    if a.osnet: osnet(plan, a.osnet, to)
    write(plan, to)
    finished = sum(done(plan, job) for job in plan.jobs())
    print(f'{finished} of {len(plan.jobs())} jobs done after {(time.time() - begun)/60:.1f} minutes; tables in {to}')


if __name__ == '__main__': main()
