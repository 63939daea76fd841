"Protocols over small trees with the real file names: what is trained, what is tested, what is kept, what is said."
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_dfgs.experiments import protocols
from clip_dfgs.cli import main
from clip_dfgs.training.config import RECIPES
from clip_dfgs.data.datasets import identity_splits, load_dataset
from clip_dfgs.utils.checks import DatasetError
from clip_dfgs.inference.embed import embed_images
from clip_dfgs.inference.evaluator import evaluate_records
from clip_dfgs.data.loader import cached_images
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import render_domain
from clip_dfgs.experiments.protocols import PROTOCOLS, PUBLISHED, Setting, count_steps, evaluate_partitions
from clip_dfgs.experiments.protocols import plan_protocol, plot_matrix, protocol_sets, protocol_table, read_sets
from clip_dfgs.experiments.protocols import run_protocol, setting_data, train_matrix
from trees import make_tree


def few(**more):
    "The small recipe, two steps a stage, weights at random, small images."
    c, cut = RECIPES['small'], dict(steps=2, batch=16)
    stages = {name: replace(getattr(c, name), **cut) for name in ('adapt', 'prompts', 'finetune')}
    return replace(c, pretrained=None, image_size=(64, 32), precision='no', **stages | more)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "One folder with every set of the protocols under its usual name."
    root = tmp_path_factory.mktemp('données')
    for n in dict.fromkeys(protocol_sets('p1') + protocol_sets('p2')): make_tree(n, root)
    return root


@pytest.fixture(autouse=True, scope='module')
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('CLIP_DFGS_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module')
def p1(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'p1'
    return out, run_protocol('p1', data, out, few())


def files(folder):
    "Time and size of every file."
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path(folder).rglob('*') if p.is_file()}


# ---- values

def test_protocols_are_those_of_the_field():
    sources = ('market1501', 'cuhk02', 'cuhk03', 'cuhk_sysu')
    assert PROTOCOLS['p1'] == (Setting(sources, ('prid', 'grid', 'viper', 'ilids'), True, 10),)
    for name, include_test in (('p2', False), ('p3', True)):
        assert [(set(s.sources), s.targets) for s in PROTOCOLS[name]] == [
            ({'msmt17', 'cuhk_sysu', 'cuhk03'}, ('market1501',)),
            ({'market1501', 'cuhk_sysu', 'cuhk03'}, ('msmt17',)),
            ({'market1501', 'msmt17', 'cuhk_sysu'}, ('cuhk03',))]
        assert all(s.include_test == include_test and s.splits == 1 for s in PROTOCOLS[name])
    dfgs = dict(backbone='ViT-B/16', year=2024, p1=(83.0, 76.5), p2=(53.7, 67.3), p3=(55.3, 68.3))
    assert PUBLISHED['CLIP-DFGS'] == dfgs
    assert all(set(v) == {'backbone', 'year', *PROTOCOLS} for v in PUBLISHED.values())


# ---- what is trained on: identities and images by hand, for trees of eight identities

@pytest.mark.parametrize('name, target, identities, images', [
    # Market and CUHK03 with their four test identities; three distractors never
    ('p1', 'prid', 12 + 10 + 12 + 8, (32 + 16) + 40 + (31 + 15) + 24),
    ('p2', 'market1501', 8 + 8 + 8, 32 + 24 + 31),
    ('p2', 'msmt17', 8 + 8 + 8, 32 + 24 + 31),
    ('p2', 'cuhk03', 8 + 8 + 8, 32 + 32 + 24),
    ('p3', 'market1501', 12 + 8 + 12, (32 + 12) + 24 + (31 + 15)),
    ('p3', 'cuhk03', 12 + 12 + 8, (32 + 16) + (32 + 12) + 24)])
def test_training_rows(data, name, target, identities, images):
    setting = next(s for s in PROTOCOLS[name] if target in s.targets)
    rows, targets = setting_data(setting, read_sets(protocol_sets(name), data))
    assert (rows['label'].nunique(), len(rows)) == (identities, images)
    assert set(rows['label']) == set(range(identities)) and rows['pid'].min() > 0
    assert set(rows['domain']) == set(setting.sources) and list(targets) == list(setting.targets)
    tested = {p for parts in targets.values() for t in parts for p in t['path']}
    assert not set(rows['path']) & tested


def test_sets_in_folders_of_their_own(tmp_path):
    data = {n: make_tree(n, tmp_path/f'{n} here') for n in protocol_sets('p2')}
    assert {n: set(t['domain']) for n, t in read_sets(data, data).items()} == {n: {n} for n in data}
    with pytest.raises(DatasetError, match='cuhk02: no folder was given'): read_sets(['cuhk02'], data)


def test_options_go_to_the_sets_that_know_them(data):
    labeled, detected = (read_sets(['cuhk03', 'market1501'], data, dict(detected=d)) for d in (False, True))
    assert set(labeled['cuhk03']['path']) != set(detected['cuhk03']['path'])
    pd.testing.assert_frame_equal(labeled['market1501'], detected['market1501'])


# ---- from the call to the table

def test_p1_end_to_end(p1):
    out, results = p1
    counts = results.groupby('target', sort=False).size().to_dict()
    assert counts == dict(prid=10, grid=10, viper=10, ilids=10) # viper: two directions a split, averaged
    assert set(results['run']) == {'p1_to_prid_grid_viper_ilids'}
    written = pd.read_csv(out/'results.csv')
    assert written['split'].value_counts()[['mean', 'std']].tolist() == [4, 4]
    folder = out/'p1_to_prid_grid_viper_ilids'
    made = {'config.json', 'records.csv', 'history.csv', 'model', 'results.csv'}
    assert made <= {p.name for p in folder.iterdir()}
    assert ReIDModel.load(folder/'model').config['num_ids'] == 42
    table = protocol_table('p1', results)
    assert list(table.index) == [*PUBLISHED, 'this run']
    assert table.loc['CLIP-DFGS', ('average', 'mAP')] == '83.0' and table.loc['CLIP-DFGS', ('prid', 'mAP')] == ''
    ours = results[results['target'] == 'prid']['mAP']
    assert table.loc['this run', ('prid', 'mAP')] == f'{ours.mean():.1f} ± {ours.std(ddof=1):.1f}'
    average = results.groupby('target')['R1'].mean().mean()
    assert table.loc['this run', ('average', 'R1')] == f'{average:.1f}'


def test_p1_is_what_its_model_ranks(p1, data):
    "One partition of each target, ranked again from the saved model with numpy alone."
    out, results = p1
    model = ReIDModel.load(out/'p1_to_prid_grid_viper_ilids'/'model')
    for target in ('prid', 'grid', 'ilids'):
        part = next(p for p in identity_splits(target, load_dataset(target, data)) if p['partition'].iloc[0] == 3)
        found = results[(results['target'] == target) & (results['split'] == 3)]['mAP'].item()
        assert abs(100*plain_map(model, part) - found) < 1e-2


def plain_map(model, records):
    "Mean average precision by its definition."
    tests = records[records['split'] != 'train']
    f = embed_images(model, cached_images(tests['path'].tolist(), model.config['image_size'])).numpy()
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    rows, several = tests.reset_index(drop=True), tests['camid'].nunique() > 1
    g, scores = rows[rows['split'] == 'gallery'], []
    for i, q in rows[rows['split'] == 'query'].iterrows():
        kept = g[~((g['pid'] == q['pid']) & (g['camid'] == q['camid']))] if several else g
        right = (kept['pid'] == q['pid']).to_numpy()[np.argsort(-f[kept.index] @ f[i], kind='stable')]
        if right.any(): scores.append((np.arange(1, right.sum() + 1)/(np.flatnonzero(right) + 1)).mean())
    return np.mean(scores)


def test_resume_keeps_finished_sets_and_does_the_rest(p1, data):
    out, results = p1
    folder, before = out/'p1_to_prid_grid_viper_ilids', files(out/'p1_to_prid_grid_viper_ilids')
    again = run_protocol('p1', data, out, few(), resume=True)
    pd.testing.assert_frame_equal(again[results.columns], results)
    assert files(folder) == before # nothing is touched
    kept = pd.read_csv(folder/'results.csv')
    kept = kept[kept['target'] != 'viper']
    kept.loc[kept['target'] == 'prid', 'mAP'] = 1.25
    kept.to_csv(folder/'results.csv', index=False)
    model = (folder/'model'/'model.safetensors').read_bytes()
    again = run_protocol('p1', data, out, few(), resume=True).set_index(['target', 'split'])
    assert (again.loc['prid', 'mAP'] == 1.25).all() and (folder/'model'/'model.safetensors').read_bytes() == model
    viper = results.set_index(['target', 'split']).loc['viper', 'mAP']
    pd.testing.assert_series_equal(again.loc['viper', 'mAP'], viper)


def test_an_existing_protocol_is_not_touched_unasked(p1, data):
    out, _ = p1
    before = files(out)
    with pytest.raises(ValueError, match='--resume'): run_protocol('p1', data, out, few())
    with pytest.raises(ValueError, match='another seed'): run_protocol('p1', data, out, few(seed=1), resume=True)
    assert files(out) == before


@pytest.mark.slow
@pytest.mark.parametrize('name', ['p2', 'p3'])
def test_leave_one_out_end_to_end(data, tmp_path, name):
    results = run_protocol(name, data, tmp_path/name, few(prompts=None, sampler='pk'))
    want = [[f'{name}_to_{t}', t, 0] for t in ('market1501', 'msmt17', 'cuhk03')]
    assert results[['run', 'target', 'split']].values.tolist() == want
    table = protocol_table(name, results)
    assert '±' not in table.to_string()
    assert table.loc['this run', ('average', 'mAP')] == f'{results["mAP"].mean():.1f}'
    assert (pd.read_csv(tmp_path/name/f'{name}_to_cuhk03'/'records.csv')['split'] == 'train').all()


# ---- testing on partitions

def test_partitions_are_ranked_as_by_the_plain_evaluation(data):
    model = ReIDModel.create('pedestrians', None, num_ids=2, seed=3)
    parts = identity_splits('viper', load_dataset('viper', data))
    got, slow = evaluate_partitions(model, parts[:4]), [evaluate_records(model, p)['viper'].mAP for p in parts[:4]]
    assert got['split'].tolist() == [0, 1] and (got['queries'] == 4).all()
    assert np.allclose(got['mAP'], [50*(slow[0] + slow[1]), 50*(slow[2] + slow[3])], atol=1e-3)


# ---- the plan

def test_a_dry_run_counts_and_writes_nothing(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CLIP_DFGS_CACHE', str(tmp_path/'cache'))
    before = files(data)
    main(['protocol', 'p1', '--data', str(data), '--dry-run', '--quick', '2', '--batch', '16', '--recipe', 'small',
          '--image-size', '[64,32]', '--precision', 'no'])
    assert files(data) == before and not [p for p in tmp_path.iterdir() if p.name != 'cache']
    plan = capsys.readouterr().out.strip()
    assert '42 identities, 158 images, 2 steps of adapt, 2 steps of prompts, 2 steps of finetune' in plan
    assert '12936' in plan and 'viper' in plan and plan.endswith('Nothing was trained.')
    assert 'warning: market1501: train: 8 identities found, 751 expected' in plan


def test_images_of_a_source_in_a_target_are_said(data, tmp_path):
    "A folder that was filled from another: a copy of a training image under a test image's name."
    sets = shutil.copytree(data, tmp_path/'sets')
    seen = read_sets(['market1501', 'viper'], sets)
    shutil.copy(seen['market1501']['path'].iloc[0], seen['viper']['path'].iloc[0])
    for folder, n in ((data, 0), (sets, 1)):
        said = protocols._leaks_of(protocols.jobs_of('p1', read_sets(protocol_sets('p1'), folder)))
        assert len(said) == n and all('viper: 1' in line for line in said)


def test_steps_from_epochs():
    rows = pd.DataFrame(dict(path=[str(i) for i in range(70)], label=np.repeat(range(10), 7), cam_label=0))
    c = few(sampler='dfgs')
    c = replace(c, adapt=replace(c.adapt, steps=0, epochs=3), finetune=replace(c.finetune, steps=11),
                prompts=replace(c.prompts, steps=0, epochs=2, batch=32))
    # 20 tuplets in batches of 4: five a pass; 70//32 = 2
    assert count_steps(rows, c) == dict(adapt=15, prompts=4, finetune=11)


def test_domains_of_one_table_are_evaluated_apart(tmp_path):
    "Identity 3 of one site is not identity 3 of the other; in the matrix each is a column."
    sites = [render_domain(tmp_path/n, seed, 16, cameras=2, progress=False) for n, seed in (('east', 3), ('west', 4))]
    both, model = pd.concat(sites, ignore_index=True), ReIDModel.create('pedestrians', 'pedestrians')
    wanted = {domain: 100*r.mAP for domain, r in evaluate_records(model, both).items()}
    found = evaluate_partitions(model, [both])
    assert dict(zip(found['domain'], found['mAP'])) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="domain 'east'.*different images"):
        evaluate_partitions(model, [sites[0], sites[1].assign(domain='east')])
    c = few()
    c = replace(c, adapt=replace(c.adapt, steps=1), prompts=None, finetune=None)
    matrix = train_matrix([both], [both], c, tmp_path/'matrix')
    assert matrix['mAP'].shape == (2, 2) and list(matrix['mAP'].columns) == ['east', 'west']
    with pytest.raises(ValueError, match="domain 'east'"): train_matrix(sites, [sites[0]]*2, c, tmp_path/'no')


# ---- mistakes, in one line

def test_everything_wrong_is_said_at_once(tmp_path):
    make_tree('market1501', tmp_path)
    make_tree('viper', tmp_path)
    with pytest.raises(DatasetError) as e: run_protocol('p1', tmp_path, tmp_path/'out', few())
    said = str(e.value)
    assert '\n' not in said and all(f'{n}:' in said for n in ('cuhk02', 'cuhk03', 'cuhk_sysu', 'prid', 'grid', 'ilids'))
    assert 'viper' not in said.replace('VIPeR', '') and not (tmp_path/'out').exists()


def test_unknown_protocols_and_impossible_batches(data, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'p1'"): run_protocol('p11', data, tmp_path/'out', few())
    c = few(adapt=replace(few().adapt, batch=400))
    for f in (lambda: run_protocol('p2', data, tmp_path/'out', c), lambda: plan_protocol('p2', data, c)):
        with pytest.raises(ValueError, match='a batch of 400'): f()
    assert not (tmp_path/'out').exists()


# ---- the matrix

def test_matrix(data, tmp_path):
    tables = {n: load_dataset(n, data) for n in ('market1501', 'msmt17', 'cuhk_sysu')}
    c = few(prompts=None, sampler='pk')
    sources, targets = [tables['market1501'], tables['cuhk_sysu']], [tables['msmt17'], tables['market1501']]
    m = train_matrix(sources, targets, c, tmp_path/'m')
    assert set(m) == {'mAP', 'R1'} and list(m['mAP'].index) == ['market1501', 'cuhk_sysu']
    assert list(m['R1'].columns) == ['msmt17', 'market1501'] and plot_matrix(m).axes[0].get_xlabel() == 'tested on'
    model = ReIDModel.load(tmp_path/'m'/'cuhk_sysu'/'model')
    assert model.config['num_ids'] == 8
    for target in ('msmt17', 'market1501'):
        assert abs(100*evaluate_records(model, tables[target])[target].mAP - m['mAP'].loc['cuhk_sysu', target]) < 1e-2
    before = files(tmp_path/'m'/'cuhk_sysu')
    again = train_matrix(sources, targets, c, tmp_path/'m', resume=True)
    pd.testing.assert_frame_equal(again['mAP'], m['mAP'])
    assert files(tmp_path/'m'/'cuhk_sysu') == before # a finished run is not trained again
    with pytest.raises(ValueError, match='--resume'): train_matrix(sources, targets, c, tmp_path/'m')


# ---- from the command line to a table

@pytest.mark.slow
@pytest.mark.parametrize('name', ['p1', 'p3'])
def test_protocol_command(data, tmp_path, capsys, name):
    quick = ['--data', str(data), '--recipe', 'small', '--quick', '1', '--image-size', '[64,32]', '--precision', 'no',
             '--out', str(tmp_path/name)]
    main(['protocol', name, *quick])
    out = capsys.readouterr().out
    assert 'CLIP-DFGS' in out and str(PUBLISHED['CLIP-DFGS'][name][0]) in out and (tmp_path/name/'table.csv').exists()


def test_matrix_command(tmp_path, capsys):
    for n, seed in (('a', 1), ('b', 2)): render_domain(tmp_path/n, seed, identities=16, cameras=2, progress=False)
    both = [f'market1501:{tmp_path/n}' for n in 'ab']
    main(['matrix', '--source', *both, '--target', *both, '--quick', '1', '--precision', 'no',
          '--batch', '16', '--image-size', '[64,32]', '--out', str(tmp_path/'runs')])
    assert 'mAP' in capsys.readouterr().out and (tmp_path/'runs'/'matrix.png').exists()


def test_study_command(tmp_path, capsys):
    "Published splits of a target count as one; the table is booktabs with mean, interval, and bold where it allows."
    render_domain(tmp_path/'town', 1, identities=16, cameras=2, progress=False)
    prid = make_tree('prid', tmp_path/'prid')
    main(['study', '--source', f'market1501:{tmp_path/"town"}', '--target', f'market1501:{tmp_path/"town"}',
          f'prid:{prid}', '--variants', 'pk', 'dfgs', '--seeds', '0-1', '--quick', '1', '--precision', 'no',
          '--batch', '16', '--image-size', '[64,32]', '--out', str(tmp_path/'study'),
          '--latex', str(tmp_path/'table.tex')])
    table = pd.read_csv(tmp_path/'study'/'seed-0'/'pk.ranks.csv')
    assert table['domain'].tolist() == ['market1501', 'prid'] and table['deviation'].notna().tolist() == [False, True]
    lines = (tmp_path/'table.tex').read_text().splitlines()
    assert [line for line in lines if 'rule' in line] == [r'\toprule', r'\midrule', r'\bottomrule']
    score, difference = lines[5].split(' & ')[1:]
    mean, low, high = map(float, re.fullmatch(r'(\S+) \[(\S+), (\S+)\] ..', difference).groups())
    assert low <= mean <= high and score.startswith(r'\textbf') == (low > 0)


