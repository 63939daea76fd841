"Protocols over small trees with the real file names: what is trained, what is tested, what is kept, what is said."
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from clip_dfgs import protocols
from clip_dfgs.datasets import DatasetError, identity_splits, load_dataset, pool
from clip_dfgs.models import ReIDModel
from clip_dfgs.protocols import (PROTOCOLS, PUBLISHED, RECIPES, Setting, count_steps, evaluate_partitions, plan_protocol, protocol_sets, protocol_table,
                                 read_sets, recipe_table, run_protocol, setting_data, train_matrix, with_spread)
from clip_dfgs.trainer import config_dict, config_from, evaluate_records
from trees import make_tree

def few(**more):
    "The small recipe, two steps a stage, weights at random."
    c = RECIPES['small']; cut = dict(steps=2, batch=16, instances=4)
    return replace(c, pretrained=None, precision='no', adapt=replace(c.adapt, **cut), prompts=replace(c.prompts, steps=2, batch=16), finetune=replace(c.finetune, **cut), **more)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "One folder with every set of the protocols under its usual name."
    root = tmp_path_factory.mktemp('données')
    for n in dict.fromkeys(protocol_sets('p1') + protocol_sets('p2')): make_tree(n, root)
    return root

@pytest.fixture(autouse=True, scope='module')
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m: m.setenv('CLIP_DFGS_CACHE', str(tmp_path_factory.mktemp('cache'))); yield

@pytest.fixture(scope='module')
def p1(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'p1'
    return out, run_protocol('p1', data, out, few())

def files(folder): return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path(folder).rglob('*') if p.is_file()}

# ---- values

def test_protocols_are_those_of_the_field():
    assert PROTOCOLS['p1'] == (Setting(('market1501', 'cuhk02', 'cuhk03', 'cuhk_sysu'), ('prid', 'grid', 'viper', 'ilids'), True, 10),)
    for name, include_test in (('p2', False), ('p3', True)):
        assert [(set(s.sources), s.targets) for s in PROTOCOLS[name]] == [
            ({'msmt17', 'cuhk_sysu', 'cuhk03'}, ('market1501',)), ({'market1501', 'cuhk_sysu', 'cuhk03'}, ('msmt17',)), ({'market1501', 'msmt17', 'cuhk_sysu'}, ('cuhk03',))]
        assert all(s.include_test == include_test and s.splits == 1 for s in PROTOCOLS[name])
    assert PUBLISHED['CLIP-DFGS'] == dict(p1=(83.0, 76.5), p2=(53.7, 67.3), p3=(55.3, 68.3)) and all(set(v) == set(PROTOCOLS) for v in PUBLISHED.values())

def test_recipes_print_and_survive_json():
    t = recipe_table()
    assert t.loc['finetune.lr', 'clip_reid'] == 5e-6 and t.loc['augment.augmix', 'follow_up'] == .6 and t.loc['finetune.batch', 'follow_up'] == 128
    assert all(config_from(config_dict(c)) == c for c in RECIPES.values())

# ---- what is trained on: identities and images by hand, for trees of eight identities

@pytest.mark.parametrize('name,target,identities,images', [
    ('p1', 'prid', 12 + 10 + 12 + 8, (32 + 16) + 40 + (31 + 15) + 24),   # Market and CUHK03 with their four test identities; three distractors never
    ('p2', 'market1501', 8 + 8 + 8, 32 + 24 + 31),
    ('p2', 'msmt17', 8 + 8 + 8, 32 + 24 + 31),
    ('p2', 'cuhk03', 8 + 8 + 8, 32 + 32 + 24),
    ('p3', 'market1501', 12 + 8 + 12, (32 + 12) + 24 + (31 + 15)),
    ('p3', 'cuhk03', 12 + 12 + 8, (32 + 16) + (32 + 12) + 24)])
def test_training_rows(data, name, target, identities, images):
    setting = next(s for s in PROTOCOLS[name] if target in s.targets)
    rows, targets = setting_data(setting, read_sets(protocol_sets(name), data))
    assert (rows['label'].nunique(), len(rows)) == (identities, images) and set(rows['label']) == set(range(identities))
    assert set(rows['domain']) == set(setting.sources) and rows['pid'].min() > 0 and list(targets) == list(setting.targets)
    assert not set(rows['path']) & {p for parts in targets.values() for t in parts for p in t['path']}

def test_sets_in_folders_of_their_own(tmp_path):
    data = {n: make_tree(n, tmp_path/f'{n} here') for n in protocol_sets('p2')}
    assert {n: set(t['domain']) for n, t in read_sets(data, data).items()} == {n: {n} for n in data}
    with pytest.raises(DatasetError, match='cuhk02: no folder was given'): read_sets(['cuhk02'], data)

# ---- from the call to the table

def test_p1_end_to_end(p1):
    out, results = p1
    assert results.groupby('target', sort=False).size().to_dict() == dict(prid=10, grid=10, viper=10, ilids=10)   # viper: two directions a split, averaged
    assert results[['mAP', 'R1']].stack().between(0, 100).all() and set(results['run']) == {'p1_to_prid_grid_viper_ilids'}
    written = pd.read_csv(out/'results.csv')
    assert written['split'].value_counts()[['mean', 'std']].tolist() == [4, 4]
    folder = out/'p1_to_prid_grid_viper_ilids'
    assert {'config.json', 'records.csv', 'history.csv', 'model', 'results.csv'} <= {p.name for p in folder.iterdir()}
    assert ReIDModel.load(folder/'model').config['num_ids'] == 42
    table = protocol_table('p1', results)
    assert list(table.index) == [*PUBLISHED, 'this run'] and table.loc['CLIP-DFGS', ('average', 'mAP')] == '83.0' and table.loc['CLIP-DFGS', ('prid', 'mAP')] == ''
    ours = results[results['target'] == 'prid']['mAP']
    assert table.loc['this run', ('prid', 'mAP')] == f'{ours.mean():.1f} ± {ours.std(ddof=1):.1f}'
    assert table.loc['this run', ('average', 'R1')] == f'{results.groupby("target")["R1"].mean().mean():.1f}'

def test_resume_keeps_finished_sets_and_does_the_rest(p1, data):
    out, results = p1; folder = out/'p1_to_prid_grid_viper_ilids'; before = files(folder)
    again = run_protocol('p1', data, out, few(), resume=True)
    pd.testing.assert_frame_equal(again[results.columns], results); assert files(folder) == before        # nothing is touched
    kept = pd.read_csv(folder/'results.csv'); kept = kept[kept['target'] != 'viper']; kept.loc[kept['target'] == 'prid', 'mAP'] = 1.25
    kept.to_csv(folder/'results.csv', index=False); model = (folder/'model'/'model.safetensors').read_bytes()
    again = run_protocol('p1', data, out, few(), resume=True).set_index(['target', 'split'])
    assert (again.loc['prid', 'mAP'] == 1.25).all() and (folder/'model'/'model.safetensors').read_bytes() == model
    pd.testing.assert_series_equal(again.loc['viper', 'mAP'], results.set_index(['target', 'split']).loc['viper', 'mAP'])

def test_an_existing_protocol_is_not_touched_unasked(p1, data):
    out, _ = p1; before = files(out)
    with pytest.raises(ValueError, match='--resume'): run_protocol('p1', data, out, few())
    with pytest.raises(ValueError, match='another seed'): run_protocol('p1', data, out, few(seed=1), resume=True)
    assert files(out) == before

@pytest.mark.parametrize('name', ['p2', 'p3'])
def test_leave_one_out_end_to_end(data, tmp_path, name):
    c = few(); c = replace(c, prompts=None, sampler='pk')
    results = run_protocol(name, data, tmp_path/name, c)
    assert results[['run', 'target', 'split']].values.tolist() == [[f'{name}_to_{t}', t, 0] for t in ('market1501', 'msmt17', 'cuhk03')]
    table = protocol_table(name, results)
    assert '±' not in table.to_string() and table.loc['this run', ('average', 'mAP')] == f'{results["mAP"].mean():.1f}'
    assert (pd.read_csv(tmp_path/name/f'{name}_to_cuhk03'/'records.csv')['split'] == 'train').all()

# ---- testing on partitions

def test_partitions_are_ranked_as_by_the_plain_evaluation(data):
    model = ReIDModel.create('pedestrians', None, num_ids=2, seed=3)
    parts = identity_splits('viper', load_dataset('viper', data))
    got = evaluate_partitions(model, parts[:4]); slow = [evaluate_records(model, p)['viper'] for p in parts[:4]]
    assert got['split'].tolist() == [0, 1] and (got['queries'] == 4).all()
    assert np.allclose(got['mAP'], [50*(slow[0].mAP + slow[1].mAP), 50*(slow[2].mAP + slow[3].mAP)], atol=1e-3)

def test_spread_by_hand():
    t = with_spread(pd.DataFrame(dict(target=['a', 'a', 'b'], split=[0, 1, 0], mAP=[1., 3., 5.])))
    assert t['split'].tolist() == [0, 1, 'mean', 'std', 0, 'mean', 'std'] and t['mAP'].tolist()[:4] == [1, 3, 2, 2**.5] and np.isnan(t['mAP'].iloc[-1])

def test_table_of_a_part_has_no_average():
    t = protocol_table('p1', pd.DataFrame(dict(target='grid', split=range(2), mAP=[50., 52.], R1=[40., 40.])))
    assert t.loc['this run', ('grid', 'mAP')] == '51.0 ± 1.4' and t.loc['this run', ('grid', 'R1')] == '40.0 ± 0.0'
    assert t.loc['this run', ('average', 'mAP')] == '' and t.loc['this run', ('prid', 'mAP')] == ''

# ---- the plan

def test_plan_counts_and_writes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('CLIP_DFGS_CACHE', str(tmp_path/'cache')); before = files(data)
    plan = plan_protocol('p1', data, few(), steps=2); run = plan.runs.iloc[0]
    assert files(data) == before and not list(tmp_path.iterdir())
    assert (run['identities'], run['images'], run['adapt steps'], run['finetune steps']) == (42, 158, 2, 2) and run['hours'] > 0 and run['memory_GB'] > .05
    assert plan.sets.loc['market1501', 'train images'] == '32 of 12,936' and plan.sets.loc['prid', 'gallery identities'] == '7 of 649'
    assert 'market1501: train: 8 identities found, 751 expected' in plan.warnings and 'Nothing was trained' in str(plan)

def test_steps_from_epochs():
    rows = pd.DataFrame(dict(path=[str(i) for i in range(70)], label=np.repeat(range(10), 7), camera=0))
    c = few(); c = replace(c, sampler='dfgs', adapt=replace(c.adapt, steps=0, epochs=3), prompts=replace(c.prompts, steps=0, epochs=2, batch=32), finetune=replace(c.finetune, steps=11))
    assert count_steps(rows, c) == dict(adapt=(15, 3), prompts=(4, 2), finetune=(11, 3))   # 20 tuplets in batches of 4: five a pass; 70//32 = 2

# ---- mistakes, in one line

def test_everything_wrong_is_said_at_once(tmp_path):
    make_tree('market1501', tmp_path); make_tree('viper', tmp_path)
    with pytest.raises(DatasetError) as e: run_protocol('p1', tmp_path, tmp_path/'out', few())
    said = str(e.value)
    assert '\n' not in said and all(f'{n}:' in said for n in ('cuhk02', 'cuhk03', 'cuhk_sysu', 'prid', 'grid', 'ilids')) and 'viper' not in said.replace('VIPeR', '') and not (tmp_path/'out').exists()

def test_unknown_protocols_and_impossible_batches(data, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'p1'"): run_protocol('p11', data, tmp_path/'out', few())
    c = few(); c = replace(c, adapt=replace(c.adapt, batch=400))
    for f in (lambda: run_protocol('p2', data, tmp_path/'out', c), lambda: plan_protocol('p2', data, c)):
        with pytest.raises(ValueError, match='a batch needs 100 identities'): f()
    assert not (tmp_path/'out').exists()

# ---- the matrix

def test_matrix(data, tmp_path, monkeypatch):
    c = few(); c = replace(c, prompts=None, sampler='pk')
    tables = {n: load_dataset(n, data) for n in ('market1501', 'msmt17', 'cuhk_sysu')}
    sources, targets = [tables['market1501'], tables['cuhk_sysu']], [tables['msmt17'], tables['market1501']]
    m = train_matrix(sources, targets, c, tmp_path/'m')
    assert set(m) == {'mAP', 'R1'} and list(m['mAP'].index) == ['market1501', 'cuhk_sysu'] and list(m['R1'].columns) == ['msmt17', 'market1501']
    assert m['mAP'].stack().between(0, 100).all() and protocols.plot_matrix(m).axes[0].get_xlabel() == 'tested on'
    model = ReIDModel.load(tmp_path/'m'/'cuhk_sysu'/'model'); assert model.config['num_ids'] == 8
    alone = evaluate_records(model, tables['msmt17'])['msmt17']
    assert abs(100*alone.mAP - m['mAP'].loc['cuhk_sysu', 'msmt17']) < 1e-2
    monkeypatch.setattr(protocols, 'fit', lambda *a, **k: pytest.fail('a finished run was trained again'))
    again = train_matrix(sources, targets, c, tmp_path/'m', resume=True)
    pd.testing.assert_frame_equal(again['mAP'], m['mAP'])
    with pytest.raises(ValueError, match='--resume'): train_matrix(sources, targets, c, tmp_path/'m')

# ---- from the command line to a table

def command(*args):
    import os, subprocess, sys
    r = subprocess.run([sys.executable, '-m', 'clip_dfgs.cli', *map(str, args)], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    return r.returncode, r.stdout, r.stderr

@pytest.mark.parametrize('name', ['p1', 'p2', 'p3'])
def test_protocol_command(data, tmp_path, name):
    quick = ['--data', data, '--recipe', 'small', '--quick', '1', '--out', tmp_path/name]
    code, out, err = command('protocol', name, *quick, '--dry-run')
    assert code == 0 and 'market1501' in out and not (tmp_path/name).exists(), err
    code, out, err = command('protocol', name, *quick)
    assert code == 0 and 'CLIP-DFGS' in out and str(PUBLISHED['CLIP-DFGS'][name][0]) in out and (tmp_path/name/'table.csv').exists(), err

def test_unknown_protocol_command(data, tmp_path):
    code, _, err = command('protocol', 'p4', '--data', data, '--out', tmp_path/'p4')
    assert code == 2 and 'p2' in err and len(err.strip().splitlines()) == 1

def test_matrix_command(data, tmp_path):
    from clip_dfgs.pedestrians import make_domain
    for n, seed in (('a', 1), ('b', 2)): make_domain(tmp_path/n, seed, identities=36, cameras=2, progress=False)
    both = [f'market1501:{tmp_path/n}' for n in 'ab']
    code, out, err = command('matrix', '--source', *both, '--target', *both, '--quick', '1', '--out', tmp_path/'runs')
    assert code == 0 and 'mAP' in out and (tmp_path/'runs'/'matrix.png').exists(), err

def test_check_data_command(data, tmp_path):
    code, out, err = command('check-data', 'market1501', data, '--decode', '--sheet', tmp_path/'sheet.png')
    assert code == 0 and '751' in out and (tmp_path/'sheet.png').exists(), err
    assert command('check-data', 'viper', tmp_path)[0] == 2

@pytest.mark.parametrize('name', protocol_sets('p1') + ['msmt17', 'folder', 'csv'])
def test_check_data_of_every_set(name, tmp_path, capsys):
    from clip_dfgs.cli import main
    main(['check-data', name, str(make_tree(name, tmp_path))])
    assert name in capsys.readouterr().out
