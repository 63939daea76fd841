"The trainer from outside: whole runs, kills, damage, several processes, and mistakes on the command line."
import json, os, re, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file
from clip_dfgs.datasets import load_dataset, pool
from clip_dfgs.trainer import Stage, TrainConfig, TrainError, config_dict, fit, read_checkpoint

SHORT = dict(checkpoint_steps=2, log_steps=1, precision='no')

def config(**more):
    c = TrainConfig(pretrained=None, **SHORT)
    cut = dict(batch=16, instances=4)
    return replace(c, adapt=replace(c.adapt, steps=5, **cut), prompts=replace(c.prompts, steps=5, batch=24), finetune=replace(c.finetune, steps=7, **cut), **more)

def weights(out): return load_file(Path(out)/'model'/'model.safetensors')
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

TRAIN = '''
import sys, json
from clip_dfgs.datasets import load_dataset, pool
from clip_dfgs.trainer import config_from, fit
world, out, config, resume = sys.argv[1:]
fit(pool(load_dataset('market1501', world)), config_from(json.loads(config)), out, resume=resume == 'resume')
'''
def process(world, out, c, resume=''):
    return subprocess.Popen([sys.executable, '-c', TRAIN, str(world), str(out), json.dumps(config_dict(c)), resume], stderr=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))

def cli(*args, **env):
    r = subprocess.run([sys.executable, '-m', 'clip_dfgs.cli', *map(str, args)], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1', **env))
    return r.returncode, r.stdout, r.stderr

@pytest.fixture(scope='module')
def whole(world, tmp_path_factory):
    "An uninterrupted run in a process of its own."
    out = tmp_path_factory.mktemp('runs')/'whole'; p = process(world, out, config()); p.communicate()
    assert p.returncode == 0
    return out

def test_run_folder(whole):
    assert {'config.json', 'records.csv', 'history.csv', 'sampler.csv', 'epoch.csv', 'checkpoint', 'model'} <= {p.name for p in whole.iterdir()}
    h = pd.read_csv(whole/'history.csv')
    assert h.groupby('stage', sort=False).step.max().to_dict() == dict(adapt=5, prompts=5, finetune=7) and np.isfinite(h.loss).all()
    assert pd.read_csv(whole/'sampler.csv').images.eq(1).all()
    assert len(list((whole/'checkpoint').iterdir())) == 2

# one moment in each stage, in the middle of an epoch, and during the writing of a checkpoint
@pytest.mark.parametrize('moment', ['adapt 3', 'prompts 3', 'finetune 5', 'part'])
def test_killed_run_ends_in_the_same_weights(world, whole, tmp_path, moment):
    out = tmp_path/'run'; p = process(world, out, config()); deadline = time.time() + 120
    def reached():
        if moment == 'part': return any((out/'checkpoint').glob('.part*')) and any((out/'checkpoint').glob('[0-9]*'))
        stage, step = moment.split()
        try: h = pd.read_csv(out/'history.csv')
        except (OSError, pd.errors.EmptyDataError): return False
        return ((h.stage == stage) & (h.step >= int(step))).any()
    while p.poll() is None and time.time() < deadline and not reached(): time.sleep(.002)
    killed = p.poll() is None; p.send_signal(signal.SIGKILL); p.communicate()
    assert killed and not (out/'model').exists()
    p = process(world, out, config(), 'resume'); err = p.communicate()[1]
    assert p.returncode == 0, err
    assert same(weights(out), weights(whole))
    a, b = (pd.read_csv(d/'history.csv')[['stage', 'step', 'loss']] for d in (out, whole))
    pd.testing.assert_frame_equal(a, b)

def test_damaged_checkpoint_falls_back_and_says_so(world, whole, tmp_path, capsys):
    import shutil
    out = tmp_path/'run'; shutil.copytree(whole, out); shutil.rmtree(out/'model')
    newest = sorted((out/'checkpoint').iterdir())[-1]/'tensors.safetensors'; newest.write_bytes(newest.read_bytes()[:1000])
    before = read_checkpoint(out/'checkpoint')
    assert before[1]['stage'] == 'finetune' and before[1]['step'] == 6 and not before[1]['done']
    assert 'is damaged' in capsys.readouterr().err
    p = process(world, out, config(), 'resume'); err = p.communicate()[1]
    assert p.returncode == 0 and 'falling back' in err and same(weights(out), weights(whole))

def test_resume_refuses_another_config(world, whole):
    rows = pool(load_dataset('market1501', world))
    with pytest.raises(ValueError, match='another sampler'): fit(rows, config(sampler='gs'), whole, resume=True)
    with pytest.raises(ValueError, match='not empty'): fit(rows, config(), whole)

def test_nan_stops_with_the_place(world, tmp_path):
    c = config(); c = replace(c, adapt=replace(c.adapt, lr=1e30, clip_norm=0.), prompts=None, finetune=None)
    with pytest.raises(TrainError, match=r'adapt, step \d+: the loss is .*town.*last good checkpoint'): fit(pool(load_dataset('market1501', world)), c, tmp_path/'run')

@pytest.mark.parametrize('change, words', [
    (dict(sampler='dfg'), "did you mean 'dfgs'"), (dict(graph='txt'), "did you mean 'text'"), (dict(precision='half'), 'bf16'),
    (dict(adapt=Stage(steps=1, batch=10, instances=4)), 'multiple'), (dict(adapt=Stage(steps=1, batch=64)), '12'), (dict(clip='ViT-B-61', pretrained=None), 'ViT-B-16')])
def test_impossible_settings(world, tmp_path, change, words):
    with pytest.raises(ValueError, match=words): fit(pool(load_dataset('market1501', world)), replace(config(), **change), tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_one_camera_and_timm(world, tmp_path):
    rows = pool(load_dataset('market1501', world)); rows = rows[rows.camera == 0].reset_index(drop=True)
    c = replace(config(clip='timm:resnet18', image_size=(64, 32)), prompts=None); c = replace(c, adapt=replace(c.adapt, steps=1), finetune=replace(c.finetune, steps=1))
    assert len(fit(rows, c, tmp_path/'run').history) == 2
    with pytest.raises(ValueError, match='no text encoder'): fit(rows, replace(c, graph='text', prompts=config().prompts), tmp_path/'no')

@pytest.mark.parametrize('graph', ['text', 'dual'])
@pytest.mark.parametrize('sampler', ['gs', 'dfgs'])
def test_every_graph(world, tmp_path, graph, sampler):
    c = config(graph=graph, sampler=sampler); c = replace(c, adapt=None, prompts=replace(c.prompts, steps=2), finetune=replace(c.finetune, steps=2))
    run = fit(pool(load_dataset('market1501', world)), c, tmp_path/'run')
    assert run.history.stage.tolist() == ['prompts']*2 + ['finetune']*2

def test_two_processes_learn_what_one_learns_with_twice_the_batch(world, tmp_path):
    "Losses over the gathered batch, no batch norm in the way: the same numbers but for rounding."
    script = tmp_path/'job.py'; script.write_text(TRAIN)
    def run(name, batch, launch):
        c = config(gather=True, sampler='pk'); c = replace(c, adapt=replace(c.adapt, steps=4, batch=batch, id_weight=0.), prompts=None, finetune=None, augment=replace(c.augment, erase=0.))
        r = subprocess.run([*launch, str(script), str(world), str(tmp_path/name), json.dumps(config_dict(c)), ''], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
        assert r.returncode == 0, r.stderr[-2000:]
        return pd.read_csv(tmp_path/name/'history.csv').loss.to_numpy()
    one = run('one', 16, [sys.executable])
    two = run('two', 8, [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--num_cpu_threads_per_process', '1'])
    assert len(one) == len(two) == 4 and np.allclose(one, two, atol=2e-4)

@pytest.mark.parametrize('args, words', [
    (['train', '--source', 'market1501:nowhere', '--out', 'RUN'], 'nowhere'), (['train', '--source', 'nowhere', '--out', 'RUN'], 'name:folder'),
    (['train', '--source', 'market1502:WORLD', '--out', 'RUN'], 'market1501'), (['train', '--source', 'market1501:WORLD', '--sampler', 'dfg', '--out', 'RUN'], 'dfgs'),
    (['train', '--source', 'market1501:WORLD', '--recipe', 'smal', '--out', 'RUN'], 'small'), (['train', '--source', 'market1501:WORLD', '--out', 'RUN'], '12'),
    (['train', '--source', 'market1501:EMPTY', '--out', 'RUN'], 'EMPTY'), (['render', 'WORLD'], 'not empty'), (['test', 'EMPTY', '--target', 'market1501:WORLD'], 'EMPTY'),
    (['demo', '--out', 'WORLD'], 'not empty')])
def test_mistakes_on_the_command_line(world, tmp_path, args, words):
    (tmp_path/'empty').mkdir(); names = dict(WORLD=str(world), RUN=str(tmp_path/'run'), EMPTY=str(tmp_path/'empty'))
    put = lambda s: re.sub('WORLD|RUN|EMPTY', lambda m: names[m[0]], s); before = sorted(world.rglob('*'))
    code, out, err = cli(*map(put, args))
    assert code == 2 and put(words) in err and len(err.strip().splitlines()) == 1 and 'Traceback' not in err, err
    assert not (tmp_path/'run').exists() and sorted(world.rglob('*')) == before

def test_truncated_image_is_named(world, tmp_path):
    import shutil
    bad = tmp_path/'bad'; shutil.copytree(world, bad); f = sorted((bad/'bounding_box_train').iterdir())[3]; f.write_bytes(f.read_bytes()[:200])
    code, _, err = cli('train', '--source', f'market1501:{bad}', '--out', tmp_path/'run', '--batch', '16', CLIP_DFGS_CACHE=str(tmp_path/'cache'))
    assert code == 2 and f.name in err and len(err.strip().splitlines()) == 1 and not (tmp_path/'run').exists()

def test_render_train_test(tmp_path):
    env = dict(CLIP_DFGS_CACHE=str(tmp_path/'cache'))
    assert cli('render', tmp_path/'a', '--seed', '7', '--identities', '20', '--cameras', '2', **env)[0] == 0
    code, out, err = cli('train', '--source', f'market1501:{tmp_path/"a"}', '--target', f'market1501:{tmp_path/"a"}', '--out', tmp_path/'run', '--batch', '16', '--steps', '3', '--adapt-steps', '2', '--prompt-steps', '2', **env)
    assert code == 0 and 'mAP' in out, err
    code, out, err = cli('test', tmp_path/'run', '--target', f'market1501:{tmp_path/"a"}', **env)
    assert code == 0 and 'mean' in out, err

def test_help_needs_no_torch():
    code = "import sys\nfrom clip_dfgs.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)

def test_real_images(real, tmp_path):
    "A minute on photographs: train on a few identities of CUHK03, test on COL780."
    from clip_dfgs.trainer import evaluate_records
    def tree(name): return next(p.parent for p in (real/name).rglob('query'))
    source = next(d for d in real.iterdir() if 'cuhk' in d.name).name; target = next(d for d in real.iterdir() if 'col' in d.name).name
    rows = load_dataset('market1501', tree(source)); train = rows[rows['split'] == 'train']; train = train[train.pid.isin(sorted(train.pid.unique())[:60])]
    c = TrainConfig(precision='no', cache=str(tmp_path/'cache')); c = replace(c, adapt=replace(c.adapt, steps=10), prompts=replace(c.prompts, steps=5), finetune=replace(c.finetune, steps=5))
    run = fit(train.reset_index(drop=True), c, tmp_path/'run'); result = list(run.evaluate(load_dataset('market1501', tree(target))).values())[0]
    assert result.queries == 148 and result.mAP > 3*8/1184
