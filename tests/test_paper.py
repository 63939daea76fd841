"What the studies' script hands out when, and that sentences with numbers are those of the tables."
import importlib
import json
import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_rel

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'benchmarks'))
import study_rendered as script  # noqa: E402

SENTENCE = re.compile(r'- ([a-z, -]+): (.+?) − (.+?): ([+-][\d.]+) points '
                      r'\(([+-][\d.]+) to ([+-][\d.]+), (\d+) seeds\): (more|less|no difference is shown)')


@pytest.mark.parametrize('name', sorted(file.stem for file in (root/'benchmarks').glob('*.py')))
def test_every_script_finds_what_it_imports(name): importlib.import_module(name)


def test_batches_of_the_rivals_hold_every_tuplet_once():
    "A walk with restart, whole clusters, balanced domains: as few batches as DFGS has, nobody twice in one."
    import study_rivals as rivals
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), rng.integers(1, 14, 60))
    for kind in (rivals.RandomWalkSampler, rivals.GroupSampler, rivals.BalancedSampler):
        sampler = kind(labels, batch=32, instances=4, seed=1)
        if kind is rivals.RandomWalkSampler:
            sampler.neighbors = np.stack([rng.permutation(np.delete(np.arange(60), v))[:5] for v in range(60)])
        else: sampler.groups = np.arange(60) % 4
        batches = sampler.plan(0)[:, ::4]
        owners = labels[batches]
        assert all(len(set(row)) == 8 for row in owners) and len(batches) == sampler.batch_count()
        assert (np.bincount(owners.ravel(), minlength=60) >= sampler.tuplets).all()
        assert set(labels[sampler.plan(0)].ravel()) == set(range(60))
        if kind is rivals.BalancedSampler:
            assert np.mean([np.bincount(row % 4, minlength=4).tolist() == [2]*4 for row in owners]) > .5


def test_memory_finds_what_all_embeddings_so_far_hold():
    "Against the plain loop over batch and memory; a full memory forgets the oldest."
    import study_rivals as rivals
    rng, loss = torch.Generator().manual_seed(0), rivals.MemoryTriplet(slots=20)
    seen, names = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    for _ in range(4):
        f, y = torch.randn(8, 4, generator=rng), torch.arange(8)//2
        keys, ids, found = torch.cat([f, seen]), torch.cat([y, names]), []
        for a, b in zip(f, y):
            d = (keys - a).norm(dim=1)
            found.append(max(0, .3 + d[ids == b].max() - d[ids != b].min()))
        assert float(loss(f, y)) == pytest.approx(float(sum(found)/8), rel=1e-5)
        seen, names = keys[:20], ids[:20]


def test_a_difference_in_words_is_a_paired_t_test():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(dict(A=rng.normal(30, 2, 6), B=rng.normal(32, 2, 6)))
    test = ttest_rel(scores['B'], scores['A']).confidence_interval(.95)
    line = script.told('unseen', 'B', 'A', scores)
    _, b, a, mean, low, high, n, said = SENTENCE.fullmatch(line).groups()
    assert (b, a, int(n)) == ('B', 'A', 6)
    assert float(mean) == pytest.approx((scores['B'] - scores['A']).mean(), abs=.006)
    assert (float(low), float(high)) == pytest.approx((test.low, test.high), abs=.006)
    assert said == ('more' if test.low > 0 else 'no difference is shown')
    assert script.told('x', 'A', 'B', scores + np.array([100, 0])).endswith(': more')
    assert script.told('x', 'B', 'A', scores + np.array([100, 0])).endswith(': less')


def test_calibration_studies_and_confirmation_have_seeds_and_domains_of_their_own():
    seeds = dict(setting=[script.CALIBRATION], samplers=script.SEEDS['samplers'], confirm=script.SEEDS['confirm'],
                 norm=script.SEEDS['norm'])
    assert {*script.SEEDS['tables'], *script.SEEDS['orders']} <= {*seeds['samplers']}
    for a, b in combinations(seeds.values(), 2): assert not {*a} & {*b}
    many = [script.domains(seed, script.SCALES['large'].size) for part in seeds.values() for seed in part]
    every = [number for domains in many for _, number, *_ in domains]
    assert len(every) == len({*every})


def test_a_run_that_was_cut_off_is_not_in_the_tables():
    def rows(variant, *steps):
        return [dict(seed=0, variant=variant, step=n, domain='t0', mAP=.3, last=n in (0, 400)) for n in steps]
    table = pd.DataFrame(rows('start', 0) + rows('PK', 80, 400) + rows('DFGS', 80))
    study = script.ended(script.Study(None, table, history=table[table['step'] > 0]))
    assert {*study.table['variant']} == {'start', 'PK'} and {*study.history['variant']} == {'PK'}


def test_the_rule_takes_the_shortest_setting_that_fulfils():
    def row(identities, steps, lr, fulfils):
        return dict(identities=identities, adapt=60, lr=lr, steps=steps, fulfils=fulfils,
                    first=.6, last=.1, seconds=99.)
    tried = [row(80, 400, 1e-4, False), row(80, 600, 2e-4, True), row(160, 600, 4e-4, True), row(160, 600, 2e-4, True),
             row(160, 900, 1e-4, True)]
    chosen = script.choice(pd.DataFrame(tried))
    assert (chosen['identities'], chosen['steps'], chosen['lr']) == (160, 600, 2e-4)
    none = [row(24, 120, 4e-4, False) | dict(last=.36), row(24, 160, 4e-4, False) | dict(last=.27),
            row(24, 320, 4e-4, False) | dict(last=.25)]
    assert script.choice(pd.DataFrame(none))['steps'] == 160 and not script.choice(pd.DataFrame(none))['fulfils']
    assert script.choice(pd.DataFrame()) is None


PAPER, RESULTS = root/'nbs'/'paper', root/'results'
STUDIES = sorted(RESULTS.glob('*/study_*.csv'))
UNSEEN = [f't{i}' for i in range(3)]


def sentences(notebook):
    "Every sentence about a difference in a notebook's stored outputs, as groups of SENTENCE."
    for cell in json.loads((PAPER/f'{notebook}.ipynb').read_text())['cells']:
        for output in cell.get('outputs', ()):
            text = output.get('data', {}).get('text/markdown', '')
            yield from (match.groups() for match in map(SENTENCE.fullmatch, ''.join(text).splitlines()) if match)


def last_scores(table, domains, variant):
    "mAP at a variant's last step, a row a seed, mean over domains, in points: the slow way."
    rows = table[(table['variant'] == variant) & table['domain'].isin(domains)]
    return {seed: 100*part['mAP'].mean() for seed, part in rows[rows['step'] == rows['step'].max()].groupby('seed')}


def table_of(where):
    "The table of a sentence."
    study = {'grid': 'parameters', 'six seeds': 'samplers', 'unseen': 'samplers'}.get(where, 'ablation')
    return pd.read_csv(RESULTS/'short'/f'study_{study}.csv')


def late_shares(variant):
    "Violated anchors in the second half of a run's steps, a row a seed, in percent."
    history = pd.read_csv(RESULTS/'short'/'study_history.csv').replace({'DFGS image complete': 'k=10 m=0'})
    rows = history[(history['variant'] == variant) & (history['step'] > history['step'].max()/2)]
    return {seed: 100*part['violated_triplets'].mean() for seed, part in rows.groupby('seed') if seed < 3}


def test_sentences_say_what_the_tables_say():
    said = list(sentences('tables'))
    assert len(said) > 30
    for where, name, to, mean, low, high, n, verdict in said:
        if where == 'violated anchors': one, other = late_shares(name), late_shares(to)
        else:
            table = table_of(where)
            if where == 'six seeds': table = table.replace({'variant': {'DFGS image complete': name}})
            one, other = (last_scores(table, UNSEEN, variant) for variant in (name, to))
        seeds = sorted({*one} & {*other})
        pairs = [[scores[seed] for seed in seeds] for scores in (one, other)]
        test = ttest_rel(*pairs).confidence_interval(.95)
        found = (float(mean), float(low), float(high), int(n))
        gain = np.subtract(*pairs).mean()
        assert found == pytest.approx((gain, test.low, test.high, len(seeds)), abs=.0051), (where, name, to)
        assert verdict == ('more' if test.low > 0 else 'less' if test.high < 0 else 'no difference is shown')


CELL = re.compile(r'([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+), (\d+) seeds\)')


def test_the_table_of_samplers_says_what_the_studies_say():
    "Cells of the chapter's first table: a paired difference to PK on unseen domains, with its interval."
    cells = json.loads((PAPER/'samplers_compared.ipynb').read_text())['cells']
    texts = [''.join(o['data']['text/markdown']) for c in cells for o in c.get('outputs', ())
             if 'text/markdown' in o.get('data', {})]
    lines = [[cell.strip() for cell in line.strip('| ').split(' |')] for line in texts[0].splitlines()]
    names, seen = {'DFGS': 'DFGS image complete', 'GS': 'GS'}, 0
    for line in lines[2:]:
        scale = line[0].removeprefix('rendered, ')
        if scale not in ('wide', 'long', 'short'): continue
        table = pd.read_csv(RESULTS/scale/'study_samplers.csv')
        for head, cell in zip(lines[0], line):
            name, _, to = head.partition(' - ')
            if to != 'PK' or name not in names or not (said := CELL.fullmatch(cell)): continue
            one, other = (last_scores(table, UNSEEN, variant) for variant in (names[name], 'PK'))
            pairs = [[scores[seed] for seed in sorted({*one} & {*other})] for scores in (one, other)]
            test = ttest_rel(*pairs).confidence_interval(.95)
            found = np.subtract(*pairs).mean(), test.low, test.high, len(pairs[0])
            assert tuple(map(float, said.groups())) == pytest.approx(found, abs=.0051), (scale, head)
            seen += 1
    assert seen >= 5


def test_tables_of_studies():
    "Each row once, every evaluation on all domains, as many steps as the setting says."
    for file in STUDIES:
        table = pd.read_csv(file)
        keys = [name for name in ('study', 'seed', 'variant', 'step', 'domain') if name in table]
        assert len(table) and not table.duplicated(keys).any() and not table[keys].isna().any(axis=None), file
        if 'mAP' in table:
            assert table['mAP'].between(0, 1, inclusive='neither').all()
            assert table.groupby(['seed', 'variant', 'step'])['domain'].nunique().nunique() == 1, file
        if file.stem == 'study_history': continue
        setting = json.loads((RESULTS/f'setting_{file.parent.name}.json').read_text())
        assert table['step'].max() == setting['steps'], file


@pytest.mark.parametrize('name', ['short', 'long', 'wide'])
def test_a_setting_was_chosen_by_the_rule_and_says_what_it_does_not_fulfil(name):
    tried = pd.read_csv(RESULTS/f'setting_{name}.csv')
    chosen = json.loads((RESULTS/f'setting_{name}.json').read_text())
    assert chosen['seconds'] < 300 and chosen['fulfils'] == (chosen['first'] >= .5 and chosen['last'] < .2)
    assert chosen['fulfils'] or name != 'long'
    if name == 'wide': return                                               # one setting, which no rule chose
    assert chosen['first'] >= .5
    able = tried[(tried['first'] >= .5) & (tried['seconds'] < 300)]
    assert (tried['fulfils'] == (tried.index.isin(able.index) & (tried['last'] < .2))).all()
    near = able[able['last'] <= able['last'].min() + .03]
    if not tried['fulfils'].any(): assert chosen['steps'] == near['steps'].min()
    else: assert chosen['fulfils'] and chosen['steps'] == tried[tried['fulfils']]['steps'].min()


def test_settings_have_seeds_of_their_own():
    files = [f'{name}/study_samplers.csv' for name in ('short', 'long', 'wide')] + ['wide/study_confirm.csv']
    seeds = [{*pd.read_csv(RESULTS/file)['seed']} for file in files]
    for one, other in combinations(seeds, 2): assert one and other and not one & other
