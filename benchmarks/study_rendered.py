"""The studies on rendered identities: calibration of the setting, samplers, orders, settings, batch norm.

    python benchmarks/study_rendered.py setting --scale long --out found     # calibrate: PK alone
    python benchmarks/study_rendered.py samplers orders confirm tables norm --scale long --out found
    python benchmarks/study_rendered.py samplers --seeds 103 --only 'DFGS image complete' --out again   # one row again
    python benchmarks/study_rendered.py samplers --scale tiny --out tiny # the same code in a minute

Parts, each with worlds and seeds of its own:
setting   PK on one calibration world: fewest steps first, until a setting starts with half of PK's anchors violated
          and ends with less than a fifth. The choice is written to setting_SCALE.json, all that was tried to .csv.
samplers  PK, GS and DFGS by image, text and both graphs, hardest pair and soft: six seeds.
orders    the graphs in the paper's and the released order: the first three of the same worlds and starts.
tables    ablation, and k x m: the same; nothing is chosen by them.
confirm   shares of random batches, fixed and adaptive: six other seeds.
norm      a convolution tower trained from nothing, its batch norm live or frozen: three other seeds.

Scales: `short` ends while PK's batches are becoming easy, `long` when they are; `wide` has six times the identities of
`long`, so that a random batch holds few hard negatives; `large` is for a GPU.

This file is tables of variants; `compare_variants` trains, evaluates, shares the work among processes and goes on
where it stopped. The small tables go to --out, the run folders to --work.
"""
import argparse
import contextlib
import io
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
from filelock import FileLock

from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.data.records import pool
from clip_dfgs.data.transforms import Augment
from clip_dfgs.experiments.studies import Study, compare_variants
from clip_dfgs.synthetic.domain import render_domain
from clip_dfgs.training.config import TrainConfig
from clip_dfgs.utils.files import write_text
from clip_dfgs.viz.charts import paired_differences

RESULTS = Path(__file__).parent.parent/'results'
CALIBRATION = 90                          # seed of its world
SEEDS = dict(samplers=range(6), orders=range(3), tables=range(3), confirm=range(20, 26), norm=range(40, 43))
LATER = dict(long=100, wide=200)           # added to them: worlds that no shorter study has seen
STUDY = dict(orders='samplers', tables='samplers') # parts that share worlds and starts
SHARED = {'PK', 'DFGS image complete'}        # variants that are in the tables of both
IMAGE_SECONDS = .235/64                    # of training, on two cores: benchmarks/train_step.py


@dataclass(frozen=True)
class Size:
    "How large a world is."
    sources:int                           # domains
    identities:int                        # of a source, to train on
    held_out:int                          # of a source, to rank
    targets:int                           # unseen domains
    people:int                            # of a target
    cameras:int = 4


@dataclass(frozen=True)
class Scale:
    "How large the studies are."
    size:Size                             # of a world
    batch:int                             # images in a batch of the image stages
    prompts:int                           # steps of the prompts stage
    grid:dict                             # what the calibration tries
    augment:Augment = TrainConfig().augment


@dataclass(frozen=True)
class Plan:
    "One study: its worlds, its start and its variants."
    name:str
    size:Size
    config:TrainConfig
    variants:dict
    every:int


LIGHT = Augment(flip=.5, pad=2, erase=0., gray=0., jitter=0.) # with shifts of 6 pixels a quarter stays violated
SCALES = dict(
    tiny=Scale(Size(2, 12, 4, 1, 8, 2), 16, 2, dict(identities=(12,), adapt=(2,), lr=(1e-4,), steps=(4, 6))),
    short=Scale(Size(4, 24, 8, 3, 30), 48, 100,
                dict(identities=(24,), adapt=(10,), lr=(4e-4,), steps=(120, 160, 240, 320))),
    long=Scale(Size(4, 48, 8, 3, 30), 48, 100,
               dict(identities=(24, 48), adapt=(5,), lr=(2e-4, 4e-4), steps=(300,)), LIGHT),
    wide=Scale(Size(4, 150, 8, 3, 30), 48, 100, dict(identities=(150,), adapt=(5,), lr=(4e-4,), steps=(600,)), LIGHT),
    large=Scale(Size(6, 160, 25, 4, 100), 64, 200,
                dict(identities=(80, 160), adapt=(60, 120), lr=(1e-4, 2e-4, 4e-4), steps=(400, 600, 900))))
TINY_SETTING = dict(identities=12, adapt=2, lr=1e-4, steps=2)


# -- worlds

def domains(seed, size):
    "Name, seed, people and share of test people of each domain of a world."
    everybody = size.identities + size.held_out
    for i in range(size.sources): yield f's{i}', 100_000 + 1_000*seed + i, everybody, size.held_out/everybody
    for i in range(size.targets): yield f't{i}', 100_500 + 1_000*seed + i, size.people, 1.


def world_folder(work, seed, size):
    "Where a world lies; one of another size lies elsewhere."
    return Path(work)/'worlds'/f'{seed}-{size.sources}x{size.identities + size.held_out}-{size.targets}x{size.people}'


def read_world(work, size, identities, seed):
    "Pooled training rows of the first identities of each source; unseen domains and held-out identities to evaluate."
    folder, tables = world_folder(work, seed, size), {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{folder}.lock'):
        for name, number, people, share in domains(seed, size):
            if not (folder/name).exists():
                render_domain(folder/name, number, people, size.cameras, test_share=share, workers=1, progress=False)
            tables[name] = load_dataset('market1501', folder/name, domain=name)
    sources = [table for name, table in tables.items() if name[0] == 's']
    rows = pool([table[(table['split'] == 'train') & (table['pid'] <= identities)] for table in sources])
    targets = {name: table for name, table in tables.items() if name[0] == 't'}
    if size.held_out: targets['held-out'] = pd.concat(_apart(sources), ignore_index=True)
    return rows, targets


def _apart(sources):
    "The held-out people of all sources as those of one domain, each with a number and cameras of his own."
    for i, table in enumerate(sources):
        test = table[table['split'] != 'train']
        yield test.assign(pid=test['pid'] + 10_000*i, camid=test['camid'] + 100*i, domain='held-out')


# -- what is compared

def config_of(setting, work, scale):
    "The small recipe at the setting's length."
    batch, prompts = SCALES[scale].batch, SCALES[scale].prompts
    config = TrainConfig(sampler='pk', augment=SCALES[scale].augment, cache=str(Path(work)/'cache'), workers=0,
                         log_steps=4 if scale == 'large' else 1, image_size=(64, 32) if scale == 'tiny' else None)
    return replace(config, adapt=replace(config.adapt, steps=setting['adapt'], batch=batch),
                   prompts=replace(config.prompts, steps=prompts, batch=min(64, 2*batch)),
                   finetune=replace(config.finetune, steps=setting['steps'], batch=batch, lr=setting['lr']))


def dfgs(graph='image', order='complete', **changes):
    "The depth-first sampler with a graph and an order."
    return dict(sampler='dfgs', graph=graph, order=order) | changes


def soft(config):
    "The last stage with all pairs weighted by a softmax, instead of the hardest pair alone."
    return replace(config.finetune, mining_temperature=.1)


def main_variants(config):
    "What all seeds are given."
    return {'PK': dict(sampler='pk'), 'DFGS image complete': dfgs(), 'GS': dict(sampler='gs'),
            'DFGS text complete': dfgs('text'), 'DFGS image paper': dfgs(order='paper'),
            'DFGS dual complete': dfgs('dual'),
            'PK soft': dict(sampler='pk', finetune=soft(config)), 'DFGS soft': dfgs(finetune=soft(config))}


def order_variants(config):
    "The graphs in the orders that are not among the main variants."
    return {f'DFGS {graph} {order}': dfgs(graph, order) for order in ('paper', 'released')
            for graph in ('image', 'text', 'dual') if (graph, order) != ('image', 'paper')}


def ablation_variants(config):
    "Without the text term (or prompts, which only it and the text graph read), and without stage 0."
    silent, bare = replace(config.finetune, text_weight=0.), dict(init=None, prompts=config.prompts)
    return {'PK, no text': dict(sampler='pk', finetune=silent), 'DFGS, no text': dfgs(finetune=silent),
            'PK, no stage 0': dict(sampler='pk') | bare, 'DFGS, no stage 0': dfgs(**bare)}


def grid_variants(config):
    "k x m by image, complete order; k=10 m=0 is the main variant."
    cells = [(k, m) for k in (5, 10, 15) for m in (0, 2, 4) if (k, m) != (10, 0)]
    return {f'k={k} m={m}': dfgs(k=k, skip_nearest=m) for k, m in cells}


def share_variants(config):
    "Shares of random batches, fixed and falling as PK's violated share falls."
    shares = {'DFGS, random .25': .25, 'DFGS, random .5': .5, 'DFGS, random adaptive': 'adaptive'}
    return {'PK': dict(sampler='pk'), 'DFGS': dfgs()} | {name: dfgs(pk_ratio=s) for name, s in shares.items()}


def norm_variants(config):
    "Batch norm's statistics live, frozen as the start left them, or taken anew on random batches at the end."
    samplers, found = {'PK': dict(sampler='pk'), 'DFGS': dfgs(), 'GS': dict(sampler='gs')}, {}
    for word, norm in (('', 'live'), (' frozen', 'frozen'), (' renewed', 'random')):
        stage = replace(config.finetune, norm=norm)
        found |= {name + word: changes | dict(finetune=stage) for name, changes in samplers.items()}
    return found


def norm_config(config, scale):
    "A ResNet-18 without weights: a long stage 0 makes it a tower that knows rendered people."
    adapt = replace(config.adapt, steps=2 if scale == 'tiny' else 400, lr=1e-3, head_lr=None)
    finetune = replace(config.finetune, lr=3e-4, head_lr=None)
    return replace(config, clip='timm:resnet18', pretrained=None, image_size=(128, 64), normalization='half',
                   prompts=None, adapt=adapt, finetune=finetune)


def plan_of(name, setting, work, scale):
    "A study by its name."
    config = config_of(setting, work, scale)
    if name == 'norm': config = norm_config(config, scale)
    variants = dict(samplers=all_variants, confirm=share_variants, norm=norm_variants)[name](config)
    size = replace(SCALES[scale].size, identities=setting['identities'])
    return Plan(name, size, config, variants, max(1, config.finetune.steps//4))


def all_variants(config):
    "Of the parts samplers, orders and tables, which have worlds and starts in common."
    return main_variants(config) | order_variants(config) | ablation_variants(config) | grid_variants(config)


def setting_plans(work, scale):
    "A study for each start of the grid; its variants are PK with other rates and lengths."
    grid, found = SCALES[scale].grid, []
    usual = SCALES[scale].size
    size = replace(usual, identities=max(grid['identities']), held_out=0, targets=min(2, usual.targets))
    for identities in grid['identities']:
        for adapt in grid['adapt']:
            first = config_of(dict(identities=identities, adapt=adapt, lr=1e-4, steps=4), work, scale)
            variants = {f'lr={lr:g} steps={steps}': dict(finetune=replace(first.finetune, lr=lr, steps=steps))
                        for steps in grid['steps'] for lr in grid['lr']}
            found.append(Plan(f'setting-{identities}-{adapt}', size, first, variants, 0))
    return found


def groups_of(part, config):
    "The variants of a part; a group is done for all seeds before the next one begins."
    groups = dict(samplers=(main_variants,), orders=(order_variants,), tables=(ablation_variants, grid_variants),
                  confirm=(share_variants,), norm=(norm_variants,))
    return [make(config) for make in groups[part]]


# -- the work

def run_setting(a, left):
    "Shorter runs first; longer ones only while no shorter one fulfils the criterion."
    plans = setting_plans(a.work, a.scale)
    for steps in sorted({changes['finetune'].steps for changes in plans[0].variants.values()}):
        for plan in plans:
            some = {name: v for name, v in plan.variants.items() if v['finetune'].steps == steps}
            world = partial(read_world, a.work, plan.size, int(plan.name.split('-')[1]))
            compare_variants(world, None, plan.config, some, [CALIBRATION], Path(a.work)/plan.name,
                             processes=a.processes, minutes=left())
        if setting_table(a.work, a.scale)['fulfils'].any(): return


def run_part(part, setting, a, left):
    "The variants of a part, group by group."
    plan = plan_of(STUDY.get(part, part), setting, a.work, a.scale)
    seeds = a.seeds or [seed + LATER.get(a.scale, 0) for seed in SEEDS[part]][:1 if a.scale == 'tiny' else None]
    world = partial(read_world, a.work, plan.size, plan.size.identities)
    for group in groups_of(part, plan.config):
        some = {name: plan.variants[name] for name in group if not a.only or name in a.only}
        if not some: continue
        compare_variants(world, None, plan.config, some, seeds, Path(a.work)/plan.name, plan.every,
                         a.processes, left())


# -- the tables

def setting_table(work, scale):
    "A row a setting that was tried: PK's violated share in the first and in the last tenth of its steps."
    lines = []
    for plan in setting_plans(work, scale):
        if not (Path(work)/plan.name/'study.json').exists(): continue
        study = Study.load(Path(work)/plan.name)
        _, identities, adapt = plan.name.split('-')
        last = study.last()
        for name, changes in plan.variants.items():
            if name not in last or last[name].isna().all(): continue
            steps, lr = changes['finetune'].steps, changes['finetune'].lr
            history = study.history[study.history['variant'] == name]
            first = history[history['step'] <= max(1, steps/10)]['violated_triplets'].mean()
            end = history[history['step'] > steps*.9]['violated_triplets'].mean()
            seconds = IMAGE_SECONDS*SCALES[scale].batch*(int(adapt) + steps)
            lines.append(dict(identities=int(identities), adapt=int(adapt), lr=lr, steps=steps, first=first, last=end,
                              fulfils=bool(first >= .5 and end < .2 and seconds < 300), seconds=seconds,
                              start_mAP=100*last_start(study), end_mAP=last[name].mean()))
    return pd.DataFrame(lines)


def last_start(study):
    "mAP of a study's starts."
    return study.table[study.table['variant'] == 'start']['mAP'].mean()


def choice(table):
    """The setting that fulfils the criterion: fewest steps, then most identities, then the lowest rate. Where none
    does: the same of those that begin hard enough and end within three points of the lowest end."""
    if not len(table): return None
    able = table[table['fulfils']]
    if not len(able): able = table[(table['first'] >= .5) & (table['seconds'] < 300)]
    if not len(able): return None
    if not able['fulfils'].any(): able = able[able['last'] <= able['last'].min() + .03]
    best = able.sort_values(['steps', 'identities', 'lr', 'adapt'], ascending=[True, False, True, True]).iloc[0]
    names = ('identities', 'adapt', 'lr', 'steps', 'first', 'last', 'seconds', 'fulfils')
    return {name: best[name].item() for name in names}


def save_setting(out, work, scale):
    "What was tried, and the choice."
    table = setting_table(work, scale)
    if not len(table): return
    write_text(table.round(4).to_csv(index=False), out/f'setting_{scale}.csv')
    chosen = choice(table)
    if chosen: write_text(json.dumps(chosen, indent=1) + '\n', out/f'setting_{scale}.json')


def thinned(history, parts=20):
    "Violated share, spread and loss, a row for each twentieth of a run's steps."
    if not len(history): return history
    last = history.groupby('variant')['step'].transform('max')
    step = (-(-history['step']*parts//last)*last/parts).round().astype(int)
    keys = [history['seed'], history['variant'], step.rename('step')]
    means = history.groupby(keys, sort=False)[['violated_triplets', 'embedding_std', 'loss']].mean()
    return means.reset_index().round(4)


def ended(study):
    "A study without the runs that were cut off."
    runs = study.table.loc[study.table['last'], ['seed', 'variant']].drop_duplicates()
    def kept(rows): return rows.merge(runs) if len(rows) else rows
    return replace(study, table=kept(study.table), history=kept(study.history))


def save_studies(out, work, setting, scale):
    "A small table a study, and one of what training said on the way; runs that have not ended are left out."
    usual, histories = TrainConfig(), []
    some = dict(samplers=[*main_variants(usual), *order_variants(usual)],
                parameters=[*SHARED, *grid_variants(usual)],
                ablation=[*SHARED, *ablation_variants(usual)])
    for folder in ('samplers', 'confirm', 'norm'):
        if not (Path(work)/folder/'study.json').exists(): continue
        study = ended(Study.load(Path(work)/folder))
        histories.append(thinned(study.history).assign(study=folder))
        for name, variants in some.items() if folder == 'samplers' else [(folder, study.table['variant'].unique())]:
            own = {*variants} - SHARED if name in ('parameters', 'ablation') else {*variants}
            if not own & {*study.table['variant']}: continue
            table = study.table[study.table['variant'].isin(['start', *variants])].drop(columns='last')
            if name == 'parameters': table = table.replace({'variant': {'DFGS image complete': 'k=10 m=0'}})
            write_text(table.round(5).to_csv(index=False), out/f'study_{name}.csv')
    if histories: write_text(pd.concat(histories).to_csv(index=False), out/'study_history.csv')


def compared(scores, pairs, unit):
    "A dictionary each for the declared pairs (rank, variant, other) that a table has for two of its rows (`unit`)."
    for rank, name, to in pairs:
        if not {name, to} <= set(scores): continue
        gain = paired_differences(scores[[name, to]], to).loc[name]
        if gain['n'] < 2: continue
        yield dict(comparison=rank, what=f'{name} - {to}', **gain, ahead=int((scores[name] > scores[to]).sum())) | {
            unit: int(gain['n'])}


def told(where, name, to, scores):
    "One paired difference in words, from a table with a row a seed and a column a variant, in points."
    mean, low, high, _, n = paired_differences(scores[[name, to]], to).loc[name]
    verdict = 'more' if low > 0 else 'less' if high < 0 else 'no difference is shown'
    return f'- {where}: {name} − {to}: {mean:+.2f} points ({low:+.2f} to {high:+.2f}, {n:.0f} seeds): {verdict}'


def arguments(given):
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='+', choices=('setting', *SEEDS))
    p.add_argument('--out', type=Path, required=True, help='folder of the small tables')
    p.add_argument('--work', help='folder of worlds and runs; default: work, in --out')
    p.add_argument('--processes', type=int, default=1, help='that share the work, and the GPU if there is one')
    p.add_argument('--minutes', type=float, default=1e6, help='after which no run is begun')
    p.add_argument('--seeds', type=int, nargs='+', help='instead of the usual ones')
    p.add_argument('--only', nargs='+', help='names of variants')
    p.add_argument('--setting', type=Path, help="what `setting` has chosen; default: the scale's, in results")
    p.add_argument('--scale', choices=SCALES, default='long', help='short, long, wide: two cores; large: a GPU; '
                                                                   'tiny: a few steps')
    a = p.parse_args(given)
    a.setting, a.work = a.setting or RESULTS/f'setting_{a.scale}.json', a.work or str(a.out/'work')
    alone = 'setting' in a.parts
    if alone and len(a.parts) > 1: p.error('setting comes first and by itself: the others need its choice')
    if not alone and a.scale != 'tiny' and not a.setting.exists(): p.error(f'{a.setting} is missing; run setting first')
    return a


def main(given=None):
    "Work through the parts; returns the exit code."
    a, until = arguments(given), time.time()
    until += 60*a.minutes
    def left(): return max(.01, (until - time.time())/60)
    a.out.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stderr(io.StringIO()):
        if a.parts == ['setting']:
            run_setting(a, left)
            save_setting(a.out, a.work, a.scale)
            print('chosen:', choice(setting_table(a.work, a.scale)))
            return 0
        setting = TINY_SETTING if a.scale == 'tiny' else json.loads(a.setting.read_text())
        for part in a.parts:
            run_part(part, setting, a, left)
            save_studies(a.out, a.work, setting, a.scale)
    return 0


if __name__ == '__main__': sys.exit(main())
