"A study: killed and called again it ends in the same table; intervals are those of the definition."
import multiprocessing
import os
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from clip_dfgs.training.config import TrainConfig
from clip_dfgs.evaluation.bootstrap import t_interval
from clip_dfgs.inference.evaluator import evaluate_records
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import render_domain
from clip_dfgs.data.records import pool
from clip_dfgs.experiments import studies
from clip_dfgs.experiments.studies import Study, compare_variants

VARIANTS = {'PK': dict(sampler='pk'), 'DFGS k=5': dict(sampler='dfgs', k=5)}


def short(cache):
    "A start and variants of three steps, on small images."
    config = TrainConfig(cache=str(cache), log_steps=1, checkpoint_steps=2, precision='no', pretrained=None,
                         image_size=(64, 32))
    return replace(config, adapt=replace(config.adapt, steps=1, batch=16), prompts=replace(config.prompts, steps=1),
                   finetune=replace(config.finetune, steps=3, batch=16))


@pytest.fixture(scope='module')
def tables(tmp_path_factory):
    "Training rows, and two targets."
    folder = tmp_path_factory.mktemp('study')
    def domain(name, seed, share):
        return render_domain(folder/name, seed, 16, cameras=2, test_share=share, progress=False)
    targets = pd.concat([domain('t1', 801, 1.), domain('t2', 802, 1.)], ignore_index=True)
    return pool([domain('s', 800, 0.)]), targets


def study_in(out, tables, cache, seeds=(0, 1)):
    "The study as a process of its own runs it."
    import torch
    torch.set_num_threads(1)
    compare_variants(*tables, short(cache), VARIANTS, seeds, out, every=2)


def table_of(out):
    "Its rows in an order of their own."
    return Study.load(out).table.sort_values(['seed', 'variant', 'step', 'domain']).reset_index(drop=True)


@pytest.fixture(scope='module')
def whole(tables, tmp_path_factory):
    "A study that nobody disturbs."
    folder = tmp_path_factory.mktemp('whole')
    study_in(folder/'study', tables, folder/'cache')
    return folder/'study'


def test_a_row_a_seed_variant_step_and_domain(whole):
    table = table_of(whole)
    assert len(table) == 2*(1 + 2*2)*2 and not table.duplicated(['seed', 'variant', 'step', 'domain']).any()
    assert set(table['step'][table['variant'] != 'start']) == {2, 3}
    assert table['mAP'].between(0, 1, inclusive='neither').all() and (table['queries'] > 0).all()


def test_an_interrupted_study_goes_on_and_ends_in_the_same_table(whole, tables, tmp_path, monkeypatch):
    "Cut off while the first result of a variant is computed: what is known is kept, the rest is done."
    out, cache, rank = tmp_path/'study', tmp_path/'cache', studies.rank_partitions
    def cut(*args, left=iter([True]*3)):
        if not next(left, False): raise KeyboardInterrupt
        return rank(*args)
    monkeypatch.setattr(studies, 'rank_partitions', cut)
    with pytest.raises(KeyboardInterrupt): study_in(out, tables, cache, [0])
    monkeypatch.undo()
    study_in(out, tables, cache, [0])
    pd.testing.assert_frame_equal(table_of(out), table_of(whole).query('seed == 0').reset_index(drop=True))


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_in_the_same_table(whole, tables, tmp_path):
    "With two processes, which share what is left: each takes the runs that are free."
    out, cache = tmp_path/'study', tmp_path/'cache'
    process = multiprocessing.get_context('forkserver').Process(target=study_in, args=(out, tables, cache))
    process.start()
    for _ in range(2400):
        if sum(len(pd.read_csv(file)) for file in out.glob('seed-0/*.ranks.csv')) >= 4: break
        assert process.is_alive(), 'the study ended before it could be killed'
        time.sleep(.05)
    process.kill()
    process.join()
    compare_variants(*tables, short(cache), VARIANTS, (0, 1), out, every=2, processes=2)
    pd.testing.assert_frame_equal(table_of(out), table_of(whole))


def made(gains, queries=50):
    "A study with given gains of B over A, a seed each, and queries that all gain the same."
    rows, lines = [], []
    for seed, gain in enumerate(gains):
        for variant, mAP in (('start', .3), ('A', .4), ('B', .4 + gain)):
            rows.append(dict(seed=seed, variant=variant, step=0 if variant == 'start' else 9, domain='x', mAP=mAP))
            lines += [dict(seed=seed, variant=variant, step=rows[-1]['step'], domain='x', identity=i//2, AP=mAP)
                      for i in range(queries)]
    return Study(None, pd.DataFrame(rows), pd.DataFrame(lines), pd.DataFrame())


def test_intervals_are_those_of_a_paired_t_test():
    gains = [.01, .03, -.005, .02]
    row = made(gains).differences(to='A').loc['B']
    test = ttest_rel(100*(.4 + np.array(gains)), [40]*4).confidence_interval(.95)
    assert row['mean'] == pytest.approx(100*np.mean(gains)) and row['n'] == 4
    assert (row['low'], row['high']) == pytest.approx((test.low, test.high))
    assert (row['queries low'], row['queries high']) == pytest.approx((row['mean'], row['mean']))   # all queries alike
    assert np.isnan(t_interval([1.])).all()


def test_the_last_step_of_each_run_counts():
    study = made([.1, .2])
    early = study.table[study.table['variant'] == 'B'].assign(step=3, mAP=.9)
    both = Study(None, pd.concat([study.table, early]), study.queries, study.history)
    pd.testing.assert_frame_equal(both.last(), study.last())


def test_a_seed_that_was_cut_off_does_not_count():
    "B of seed 1 has come to step 3 of 9: its rank there is no result."
    study = made([.1, .2])
    cut = (study.table['variant'] == 'B') & (study.table['seed'] == 1)
    part = Study(None, study.table.assign(step=study.table['step'].mask(cut, 3)), study.queries, study.history)
    row = part.differences(to='A').loc['B']
    assert row['n'] == 1 and row['mean'] == pytest.approx(10)


def test_each_seed_ends_at_a_step_of_its_own():
    "Stages in epochs: the finished model of a seed is the one that `last` names, for queries too."
    study = made([.1, .2])
    def moved(rows): return rows.assign(step=rows['step'].mask((rows['seed'] == 1) & (rows['variant'] == 'B'), 7))
    table = moved(study.table).assign(last=True)
    early = table[table['variant'] == 'B'].assign(step=3, mAP=.9, last=False)
    queries = moved(study.queries)
    wrong = queries[queries['variant'] == 'B'].assign(step=3, AP=.9)
    both = Study(None, pd.concat([table, early]), pd.concat([queries, wrong]), study.history)
    row = both.differences(to='A').loc['B']
    assert (row['mean'], row['n']) == (pytest.approx(15), 2)
    assert (row['queries low'], row['queries high']) == pytest.approx((15, 15))


def test_a_study_on_some_of_its_domains():
    study = made([.1, .2])
    other = study.table.assign(domain='y', mAP=.9)
    both = Study(None, pd.concat([study.table, other]), study.queries, study.history)
    pd.testing.assert_frame_equal(both.only('x').last(), study.last())
    assert both.last().loc[0, 'A'] == pytest.approx(65)
    with pytest.raises(ValueError, match="unknown domain 'z'"): both.only('z')


def test_domains_are_never_mixed(whole, tables, tmp_path):
    "A target of two domains becomes two; two tables of one domain are refused."
    rows, targets = tables
    c = short(whole.parent/'cache')
    named = compare_variants(rows, dict(both=targets), c, {}, (0,), tmp_path/'named').table
    plain = table_of(whole).query("variant == 'start' and seed == 0")
    assert named['mAP'].tolist() == plain['mAP'].tolist() and named['domain'].tolist() == ['both, t1', 'both, t2']
    with pytest.raises(ValueError, match="domain 't1'"):
        compare_variants(rows, [targets, targets], c, {}, (0,), tmp_path/'twice')


def test_stages_in_epochs_are_filed_under_their_steps(tables, tmp_path):
    "The last result is the finished model's, and `last` finds it."
    rows, targets = tables
    config = short(tmp_path/'cache')
    config = replace(config, prompts=None, finetune=replace(config.finetune, steps=0, epochs=1, batch=8, instances=2))
    study = compare_variants(rows, targets, config, {'PK': dict(sampler='pk')}, [0], tmp_path/'study', every=3)
    mine = study.table[study.table['variant'] == 'PK']
    steps = mine['step'].unique().tolist()
    assert steps == sorted(steps) and steps[-1] == study.history['step'].max() > 3
    model = ReIDModel.load(tmp_path/'study'/'seed-0'/'PK'/'model')
    true = np.mean([r.mAP for r in evaluate_records(model, targets, cache=config.cache).values()])
    assert study.last()['PK'].iloc[0] == pytest.approx(100*true) and mine['last'].sum() == 2


def test_another_study_in_the_same_folder_is_refused(whole, tables, tmp_path):
    out = tmp_path/'study'
    out.mkdir()
    (out/'study.json').write_bytes((whole/'study.json').read_bytes())
    cache = os.path.join(whole.parent, 'cache')
    with pytest.raises(ValueError, match='other settings'):
        compare_variants(*tables, replace(short(cache), temperature=.2), VARIANTS, (0,), out, every=2)
    with pytest.raises(ValueError, match="'PK' was another one"):
        compare_variants(*tables, short(cache), {'PK': dict(sampler='gs')}, (0,), out, every=2)
    with pytest.raises(ValueError, match="'start' is what all"):
        compare_variants(*tables, short(cache), {'start': {}}, (0,), tmp_path/'other')
    with pytest.raises(ValueError, match='no study is there'): Study.load(tmp_path/'nowhere')
    with pytest.raises(ValueError, match="unknown method 'C'"): made([.1]).differences(to='C')
