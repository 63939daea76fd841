"The study on photographs: who is held out, what is chosen and when, and that its sentences are those of its tables."
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ttest_rel

from clip_dfgs.experiments.studies import Study
from clip_dfgs.training.config import check_config

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'benchmarks'))
import study_photographs as script  # noqa: E402

paper, results = root/'nbs'/'paper', root/'results'


def test_held_out_identities_are_not_trained_on_and_ask_once_a_camera():
    rng = np.random.default_rng(0)
    people, cameras = np.repeat(np.arange(1, 31), 8), rng.integers(0, 3, 240)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(240)], pid=people, camid=cameras, domain='a',
                              split='train'))
    train, test = script.held_out(table, 10)
    assert not set(train['pid']) & set(test['pid']) and test['pid'].nunique() == 10
    assert len(train) + len(test) == 240
    query = test[test['split'] == 'query']
    assert not query.duplicated(['pid', 'camid']).any()
    assert len(query) == len(test.drop_duplicates(['pid', 'camid']))


def test_the_best_mean_over_all_seeds_is_chosen():
    "Of PK and of DFGS, among the forms that all seeds have trained."
    rows = [dict(seed=seed, variant=name, step=9, domain='held out', mAP=.1 + .01*i, last=True)
            for seed in (0, 1) for i, name in enumerate(['start', *script.FORMS])]
    late = dict(seed=0, variant='DFGS late', step=9, domain='held out', mAP=.99, last=True)
    best, means = script.choose(Study(None, pd.DataFrame([*rows, late])))
    names = [*script.FORMS]
    assert best == {kind: [name for name in names if name.startswith(kind)][-1] for kind in ('PK', 'DFGS')}
    assert 'DFGS late' not in means and 'start' not in means


@pytest.mark.parametrize('part', script.SEEDS)
def test_every_form_is_a_config_that_can_be_trained(tmp_path, monkeypatch, part):
    monkeypatch.setattr(script, 'imagenet_file', lambda: 'weights.pth')
    a = script.arguments(['--out', str(tmp_path)])
    config, chosen = script.config_of(part, a), dict(PK='PK live', DFGS='DFGS frozen half')
    check_config(config, 651)
    assert (config.prompts is None) == (part != 'eyes') and config.adapt.batch == 64
    for name, changes in script.variants_of(part, config, chosen).items():
        told = replace(config, **changes)
        check_config(told, 651)
        assert told.finetune.batch == 64 and told.finetune.instances == 4
        if part == 'dev' or not name.startswith('DFGS'): continue
        assert told.sampler == 'dfgs' and told.finetune.norm == 'frozen'
        assert told.pk_ratio == (0 if 'released' in name else .5)


@pytest.mark.parametrize('size, kernel', [((4, 2), 5), ((1, 1), 3), ((3, 7), 3), ((8, 4), 5)])
def test_a_depthwise_convolution_of_small_maps_has_the_gradients_of_torch(size, kernel):
    import study_photographs_maps as maps
    draw = torch.Generator().manual_seed(0)
    def random(*shape): return torch.randn(shape, generator=draw, dtype=torch.float64)
    x, weight, seen = random(3, 6, *size).requires_grad_(), random(6, 1, kernel, kernel).requires_grad_(), []
    g = random(3, 6, *size)
    for out in (maps.DepthwiseOfSmallMaps.apply(x, weight), F.conv2d(x, weight, padding=kernel//2, groups=6)):
        seen.append((out, *torch.autograd.grad(out, (x, weight), g)))
    for ours, theirs in zip(*seen): torch.testing.assert_close(ours, theirs)


def test_parts_have_seeds_of_their_own():
    assert len(set.union(*map(set, script.SEEDS.values()))) == sum(map(len, script.SEEDS.values()))


# ---------------------------------------------------------------- the tables and what is said of them
SENTENCE = re.compile(r'- (tower|head|maps), (.+?): (.+?) − (.+?): ([+-][\d.]+) points '
                      r'\(([+-][\d.]+) to ([+-][\d.]+), (\d+) seeds\): (more|less|no difference is shown)')
TARGETS = {'the four targets': ['viper', 'prid', 'grid', 'ilids'], 'COL780': ['col780'],
           'CUHK03 to Market-1501': ['market'], 'Market-1501 to CUHK03': ['cuhk03']}
PHASES = {'two sources': 'two', 'CLIP': 'eyes', 'CUHK03 to Market-1501': 'to_market',
          'Market-1501 to CUHK03': 'to_cuhk03'}


def scores(study, where):
    "A row a seed, a column a variant, mean over the targets of a place, after the choice."
    maps = study == 'maps'
    ranks = pd.read_csv(results/('photographs/study.csv' if maps else f'{study}/photographs.csv'))
    if maps: ranks['phase'] = 'confirm'
    first, _, rest = where.partition(', ')
    targets = TARGETS[rest or first]
    part = ranks[(ranks['phase'] == PHASES.get(first, 'confirm')) & ranks['target'].isin(targets)]
    return part.groupby(['seed', 'variant'])['mAP'].mean().unstack('variant')


def test_sentences_on_photographs_follow_from_the_tables():
    outputs = [output for cell in json.loads((paper/'real_images.ipynb').read_text())['cells']
               for output in cell.get('outputs', ())]
    text = '\n'.join(''.join(output.get('data', {}).get('text/markdown', '')) for output in outputs)
    found = SENTENCE.findall(text)
    assert {study for study, *_ in found} == {'tower', 'head', 'maps'}
    for study, where, b, a, mean, low, high, n, verdict in found:
        pair = scores(study, where)[[a, b]].dropna()
        test = ttest_rel(pair[b], pair[a]).confidence_interval(.95)
        assert (float(mean), int(n)) == (pytest.approx((pair[b] - pair[a]).mean(), abs=.006), len(pair))
        assert (float(low), float(high)) == pytest.approx((test.low, test.high), abs=.006)
        assert verdict == ('more' if test.low > 0 else 'less' if test.high < 0 else 'no difference is shown')


@pytest.mark.parametrize('study', ['tower', 'head'])
def test_the_stored_choice_is_the_rules(study):
    ranks = pd.read_csv(results/study/'photographs.csv')
    chosen = json.loads((results/study/'photographs_choice.json').read_text())
    means = ranks[ranks['phase'] == 'dev'].pivot_table(index='seed', columns='form', values='mAP').dropna(axis=1).mean()
    for kind in ('PK', 'DFGS'):
        assert chosen[kind] == means[means.index.str.startswith(kind)].idxmax()


@pytest.mark.parametrize('study', ['tower', 'head'])
def test_nobody_who_chose_confirms(study):
    ranks = pd.read_csv(results/study/'photographs.csv')
    seeds = ranks.groupby('phase')['seed'].unique()
    assert not {*seeds['dev']} & {*seeds['confirm']}
    targets = ranks.groupby('phase')['target'].unique()
    assert {*targets['dev']} == {'held out'} and 'held out' not in targets['confirm']


def test_the_rate_of_the_longest_study_was_chosen_by_its_rule():
    "The best mean of PK and DFGS on held-out identities; none of the seeds and targets of the study took part."
    rates, study = (pd.read_csv(results/'photographs'/f'{part}.csv') for part in ('rates', 'study'))
    rates = rates[rates['variant'] != 'start'].assign(rate=lambda t: t['variant'].str.split().str[1].astype(float))
    assert rates.groupby('rate')['mAP'].mean().idxmax() == 5e-4 and len(rates) == 3*2*2
    assert not {*rates['seed']} & {*study['seed']} and not {*rates['target']} & {*study['target']}


def test_osnet_measures_what_it_did_elsewhere():
    stored = pd.read_csv(results/'photographs_osnet.csv').set_index('target')['mAP']
    before = dict(viper=41.2, prid=21.8, grid=14.3, ilids=68.4)                  # measured once, by other code
    for target, value in before.items(): assert stored[target] == pytest.approx(value, abs=.5)


def test_one_seed_has_means_and_no_differences(tmp_path):
    import study_photographs_maps as maps
    study = pd.read_csv(results/'photographs'/'study.csv')
    study[study['seed'] == 700].to_csv(tmp_path/'study.csv', index=False)
    assert maps.report(tmp_path).empty
    study[study['seed'] < 702].to_csv(tmp_path/'study.csv', index=False)
    assert maps.report(tmp_path)['seeds'].eq(2).all()
