"The trainer from outside: whole runs, kills, damage, several processes, and mistakes on the command line."
import contextlib, io, json, multiprocessing, os, re, resource, shutil, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file, save_file
from clip_dfgs import features, trainer
from clip_dfgs.cli import main
from clip_dfgs.datasets import load_dataset, pool
from clip_dfgs.images import Augment
from clip_dfgs.models import ReIDModel
from clip_dfgs.trainer import Stage, TrainConfig, TrainError, config_dict, config_from, evaluate_records, fit, read_checkpoint, read_history, results_table

SHORT = dict(checkpoint_steps=2, log_steps=1, precision='no')

def config(**more):
    c = TrainConfig(pretrained=None, **SHORT | more)
    cut = dict(batch=16, instances=4)
    return replace(c, adapt=replace(c.adapt, steps=5, **cut), prompts=replace(c.prompts, steps=5, batch=24), finetune=replace(c.finetune, steps=7, **cut))

def rows_of(world): return pool(load_dataset('market1501', world))
def weights(out): return load_file(Path(out)/'model'/'model.safetensors')
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# Processes are forked from a server that has imported everything and computed nothing: real processes, without a new interpreter for each.
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['clip_dfgs.trainer', 'clip_dfgs.cli'])

def job(world, out, c, resume=False, err=None, env={}, largest=None, pairs=False, test=False, poison=None):
    os.environ.update(env); torch.set_num_threads(1)
    if err: os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    rank = os.environ.get('RANK')
    if largest and rank in (None, '0'): resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))  # no file may grow beyond: a disk that fills up
    if pairs:  # two neighbouring batches as one
        plan = trainer.epoch_of
        def pairs_of(sampler, epoch): batches = plan(sampler, epoch); return [a + b for a, b in zip(batches[::2], batches[1::2])]
        trainer.epoch_of = pairs_of
    if poison == rank and poison:  # from the third batch on
        losses, calls = trainer.image_losses, []
        trainer.image_losses = lambda *args, **options: (calls.append(1), {k: v*(float('nan') if len(calls) > 2 else 1) for k, v in losses(*args, **options).items()})[1]
    try:
        run = fit(rows_of(world), c, out, resume=resume)
        if test: save_file(run.model.state_dict(), out.with_name(f'{out.name}.{os.environ["RANK"]}.safetensors')); results_table(run.evaluate(load_dataset('market1501', world), ranks=(1, 5))).to_csv(out.with_name(f'{out.name}.{os.environ["RANK"]}.csv'))
    except (ValueError, TrainError) as e: print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True); os._exit(2)

def started(*args, **options):
    p = processes.Process(target=job, args=args, kwargs=options); p.start()
    return p

def ended(p, seconds=600):
    p.join(seconds); code = p.exitcode; p.kill(); p.join()
    return code

def said(*args): # command line -> (exit code, stdout, stderr)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(list(map(str, args)))
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

@pytest.fixture(scope='module', autouse=True)
def one_thread_one_cache(tmp_path_factory):
    before, threads = os.environ.get('CLIP_DFGS_CACHE'), torch.get_num_threads()
    os.environ['CLIP_DFGS_CACHE'] = str(tmp_path_factory.mktemp('cache')); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    if before is None: del os.environ['CLIP_DFGS_CACHE']
    else: os.environ['CLIP_DFGS_CACHE'] = before

@pytest.fixture(scope='module')
def whole(world, tmp_path_factory):
    "An uninterrupted run."
    out = tmp_path_factory.mktemp('runs')/'whole'; before = torch.get_rng_state(); fit(rows_of(world), config(), out)
    assert torch.equal(before, torch.get_rng_state())     # the caller's random stream is where it was
    return out

def test_run_folder(whole):
    assert {'config.json', 'records.csv', 'history.csv', 'sampler.csv', 'epoch.csv', 'checkpoint', 'model'} == {p.name for p in whole.iterdir()}
    h = pd.read_csv(whole/'history.csv')
    assert h.groupby('stage', sort=False).step.max().to_dict() == dict(adapt=5, prompts=5, finetune=7) and len(h) == 17
    assert np.allclose(h[['id', 'triplet', 'image_to_text', 'i2t', 't2i']].sum(axis=1), h.loss, atol=1e-5)
    assert pd.read_csv(whole/'sampler.csv').images.eq(1).all()
    assert len(list((whole/'checkpoint').iterdir())) == 2

# one moment in each stage (all in the middle of an epoch), and one during the writing of a checkpoint
@pytest.mark.parametrize('moment', ['adapt 3', 'prompts 3', 'finetune 3', 'finetune 5', 'part'])
def test_killed_run_ends_in_the_same_weights(world, whole, tmp_path, moment, capfd):
    out = tmp_path/'run'; p = started(world, out, config()); deadline = time.monotonic() + 600
    def reached():
        if moment == 'part': return any((out/'checkpoint').glob('.part*')) and any((out/'checkpoint').glob('[0-9]*'))
        stage, step = moment.split()
        return any(r['stage'] == stage and r['step'] >= int(step) for r in read_history(out/'history.csv'))
    while p.is_alive() and time.monotonic() < deadline:
        time.sleep(.002)
        if not reached(): continue
        os.kill(p.pid, signal.SIGSTOP)                  # hold still, so that what we saw is still so
        if reached(): break
        os.kill(p.pid, signal.SIGCONT)
    assert reached(); p.kill(); p.join()
    assert p.exitcode == -signal.SIGKILL and not (out/'model').exists()
    if moment == 'part': assert any((out/'checkpoint').glob('.part*'))
    fit(rows_of(world), config(), out, resume=True)
    assert same(weights(out), weights(whole)) and not any(out.rglob('.*'))
    a, b = (pd.read_csv(d/'history.csv')[['stage', 'epoch', 'step', 'loss', 'spread']] for d in (out, whole))
    pd.testing.assert_frame_equal(a, b)

@pytest.mark.parametrize('sampler', ['gs', 'pk'])
def test_stopped_in_a_later_epoch(world, tmp_path, sampler, monkeypatch):
    "GS carries pointers across epochs; they are in the checkpoint."
    c = config(sampler=sampler); c = replace(c, adapt=None, prompts=None, finetune=replace(c.finetune, steps=16)); rows = rows_of(world)
    straight = fit(rows, c, tmp_path/'straight')
    assert straight.history.epoch.max() >= 1
    def stop(run, name, step, *_):
        if step == 15: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt): m.setattr(trainer, 'guard', stop); fit(rows, c, tmp_path/'run')
    fit(rows, c, tmp_path/'run', resume=True)
    assert same(weights(tmp_path/'run'), weights(tmp_path/'straight'))

def test_history_with_a_torn_line(tmp_path):
    f = tmp_path/'history.csv'; f.write_text('stage,epoch,step,loss,id\nadapt,0,1,0.5,0.25\nadapt,0,2,1.5,\nadapt,0,3,0.7')
    assert read_history(f) == [dict(stage='adapt', epoch=0, step=1, loss=.5, id=.25), dict(stage='adapt', epoch=0, step=2, loss=1.5)]
    assert read_history(tmp_path/'none') == []

@pytest.mark.parametrize('damage', ['cut', 'flip', 'state', 'gone', 'step', 'key'])
def test_damaged_checkpoint_falls_back_and_says_so(world, whole, tmp_path, capsys, damage):
    out = tmp_path/'run'; shutil.copytree(whole, out); shutil.rmtree(out/'model')
    folder = sorted((out/'checkpoint').iterdir())[-1]; f = folder/('state.json' if damage == 'state' else 'tensors.safetensors'); raw = f.read_bytes()
    if damage == 'gone': f.unlink()
    elif damage in ('step', 'key'):                     # one character of the state: JSON as before, another position
        g = folder/'state.json'; text = g.read_text(); assert text.count('"step": 7') == 1; g.write_text(text.replace('"step": 7', dict(step='"step": 5', key='"stop": 7')[damage]))
    else: f.write_bytes(raw[:1000] + (bytes([raw[1000] ^ 1]) + raw[1001:] if damage == 'flip' else b'') if damage != 'state' else raw[:20])
    state = read_checkpoint(out/'checkpoint')[1]
    assert state['stage'] == 'finetune' and state['step'] == 6 and not state['done']
    assert len(re.findall(r'checkpoint \S+ is damaged \(.*falling back', capsys.readouterr().err)) == 1
    assert not folder.exists() and read_checkpoint(out/'checkpoint')[1] == state and not capsys.readouterr().err   # set aside, and not counted any more
    if damage != 'cut': return
    run = trainer.start(rows_of(world), config(), out, resume=True); assert trainer.last_good(run).endswith(f'{int(folder.name) - 1:06d}')
    fit(rows_of(world), config(), out, resume=True)
    assert same(weights(out), weights(whole)) and sorted(p.name for p in (out/'checkpoint').iterdir()) == [f'{int(folder.name) - 1:06d}', folder.name, f'damaged-{folder.name}']

def test_a_checkpoint_that_cannot_be_read_now_is_left_alone(world, whole, tmp_path):
    "Not damage: the disk or the system refuses."
    out = tmp_path/'checkpoint'; shutil.copytree(whole/'checkpoint', out); newest = trainer.checkpoints(out)[0]; f = newest/'tensors.safetensors'
    f.unlink(); f.mkdir(); before = sorted(out.rglob('*'))
    with pytest.raises(TrainError, match=r'checkpoint \S+ cannot be read \(Is a directory\); it was left as it is'): read_checkpoint(out)
    assert sorted(out.rglob('*')) == before

def test_every_process_reads_the_checkpoint_the_main_one_found(world, tmp_path):
    run = trainer.start(rows_of(world), config(), tmp_path/'run'); folder = tmp_path/'run'/'checkpoint'
    for step in (1, 2): trainer.save_point(run, 'adapt', step, 0, step)
    first, second = (json.loads((folder/n/'state.json').read_text()) for n in ('000000', '000001'))
    same_tensors = [(folder/n/'tensors.safetensors').read_bytes() for n in ('000000', '000001')]; assert same_tensors[0] == same_tensors[1]   # nothing was trained: one content, two states
    for state in (first, second): assert read_checkpoint(folder, state)[1] == state
    (folder/'000001'/'tensors.safetensors').write_bytes(b'')
    assert read_checkpoint(folder, second) is None and (folder/'000001').exists() and read_checkpoint(folder, first)[1] == first

def test_nothing_but_damage_starts_over(world, whole, tmp_path, capsys):
    out = tmp_path/'checkpoint'; shutil.copytree(whole/'checkpoint', out)
    for p in out.iterdir(): (p/'state.json').write_text('[]')
    assert read_checkpoint(out) is None and 'starting over' in capsys.readouterr().err
    newest = trainer.checkpoints(whole/'checkpoint')[0]; shutil.rmtree(out); shutil.copytree(whole/'checkpoint', out)
    f = out/newest.name/'state.json'; f.write_text(json.dumps(json.loads(f.read_text()) | dict(format=99)))
    with pytest.raises(TrainError, match='format 99'): read_checkpoint(out)

def test_resume_refuses_another_run(world, whole, tmp_path):
    rows = rows_of(world); files = {p: p.read_bytes() for p in whole.rglob('*') if p.is_file()}
    with pytest.raises(ValueError, match='another sampler'): fit(rows, config(sampler='gs'), whole, resume=True)
    with pytest.raises(ValueError, match='not empty'): fit(rows, config(), whole)
    with pytest.raises(ValueError, match='other images'): fit(rows[rows.label < 11].reset_index(drop=True), config(), whole, resume=True)
    (tmp_path/'mine').write_text('precious')
    for how in ('resume', 'overwrite'):
        with pytest.raises(ValueError, match='holds no run'): fit(rows, config(), tmp_path, **{how: True})
    assert files == {p: p.read_bytes() for p in whole.rglob('*') if p.is_file()} and (tmp_path/'mine').exists()

def test_folder_of_an_older_version_goes_on(world, whole, tmp_path):
    "A setting that did not exist yet had its default."
    out = tmp_path/'run'; shutil.copytree(whole, out); old = json.loads((out/'config.json').read_text()); del old['track'], old['recompute']
    (out/'config.json').write_text(json.dumps(old)); assert trainer.check_folder(out, config(), True, False)
    (out/'config.json').write_text('{'); pytest.raises(ValueError, trainer.check_folder, out, config(), True, False).match('cannot be read')

def test_killed_while_the_folder_is_made(world, tmp_path):
    "What is left can be started again: without a config it counts as empty, and config.json is the last to go."
    out = tmp_path/'run'; out.mkdir(); (out/'.config.json.123').write_text('{'); rows = rows_of(world)
    assert trainer.start(rows, config(), out).out == out and not list(out.glob('.*'))
    (out/'records.csv').unlink(); trainer.start(rows, config(), out, resume=True); assert (out/'records.csv').exists()   # killed before the records were written
    (out/'checkpoint').mkdir(); (out/'checkpoint'/'x').write_text('x'); (tmp_path/'elsewhere').mkdir(); (tmp_path/'elsewhere'/'precious').write_text(''); (out/'link').symlink_to(tmp_path/'elsewhere')
    order = []; unlink, rmtree = Path.unlink, shutil.rmtree
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Path, 'unlink', lambda p, **o: (order.append(p.name), unlink(p, **o))[1]); m.setattr(shutil, 'rmtree', lambda p, **o: (order.append(p.name), rmtree(p, **o))[1])
        trainer.start(rows, config(seed=1), out, overwrite=True)
    order = [n for n in order if not n.startswith('.')]
    assert order[0] == 'checkpoint' and order[-1] == 'config.json' and {p.name for p in out.iterdir()} == {'config.json', 'records.csv'} and (tmp_path/'elsewhere'/'precious').exists()

def test_killed_while_an_old_run_is_replaced(world, whole, tmp_path):
    "After any number of deletions: other images are never given the old weights, and --overwrite works."
    rows = rows_of(world); other = rows[rows.label < 8].reset_index(drop=True); c = config(); c = replace(c, **{k: replace(getattr(c, k), steps=1) for k in trainer.STAGES})
    for n in range(1, 7):
        out, left = tmp_path/str(n), n; shutil.copytree(whole, out); unlink, rmtree = Path.unlink, shutil.rmtree
        def counted(f):
            def g(p, *args, **options):
                nonlocal left
                if out in Path(p).parents and '.' not in Path(p).name[:1]: left -= 1
                if left < 0: raise KeyboardInterrupt
                return f(p, *args, **options)
            return g
        with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt): m.setattr(Path, 'unlink', counted(unlink)); m.setattr(shutil, 'rmtree', counted(rmtree)); trainer.start(other, c, out, overwrite=True)
        assert not trainer.checkpoints(out/'checkpoint')
        try: assert trainer.start(other, config(), out, resume=True).restored is None
        except ValueError as e: assert 'other images' in str(e)
        trainer.start(other, c, out, overwrite=True)

def test_what_a_killed_run_was_writing_is_cleared_away(world, whole, tmp_path):
    out = tmp_path/'run'; shutil.copytree(whole, out)
    for p in (out/'.history.csv.77', out/'model'/'.model.safetensors.77.part'): p.write_text('x')
    trainer.start(rows_of(world), config(), out, resume=True); assert not list(out.rglob('.*'))

@pytest.mark.parametrize('text', ['', 'a,b\n1', 'path'])
def test_unreadable_records(world, whole, tmp_path, text):
    out = tmp_path/'run'; shutil.copytree(whole, out); (out/'records.csv').write_text(text)
    with pytest.raises(ValueError, match='records.csv cannot be read|other images'): trainer.start(rows_of(world), config(), out, resume=True)
    (out/'records.csv').unlink()
    with pytest.raises(ValueError, match='records.csv cannot be read.*No such file'): trainer.start(rows_of(world), config(), out, resume=True)
    assert not (out/'records.csv').exists()

def test_paths_in_a_config(world, tmp_path):
    c = config(cache=tmp_path/'cache'); trainer.start(rows_of(world), c, tmp_path/'run'); trainer.start(rows_of(world), c, tmp_path/'run', resume=True)
    assert config_from(json.loads((tmp_path/'run'/'config.json').read_text())).cache == str(tmp_path/'cache')

def test_domains_with_awkward_names_are_resumed(world, tmp_path):
    for name in ('0012', 'NA', '1e5', 'a,"b'):
        rows = pool(load_dataset('market1501', world, domain=name)); trainer.start(rows, config(), tmp_path/name); trainer.start(rows, config(), tmp_path/name, resume=True)
    with pytest.raises(ValueError, match='other images'): trainer.start(pool(load_dataset('market1501', world, domain='12')), config(), tmp_path/'0012', resume=True)

def test_nan_stops_with_the_place(world, tmp_path):
    c = config(); c = replace(c, adapt=replace(c.adapt, lr=1e30, head_lr=1e30, clip_norm=0.), prompts=None, finetune=None)
    with pytest.raises(TrainError, match=r'adapt, step \d+: the loss is .*town.*last good checkpoint'): fit(rows_of(world), c, tmp_path/'run')
    code, out, err = said('train', '--source', f'market1501:{world}', '--out', tmp_path/'again', '--batch', '16', '--lr', '1e30', '--adapt-steps', '0', '--prompt-steps', '0', '--graph', 'image', '--precision', 'no')
    assert code == 2 and re.search(r'(^|\n)clip-dfgs: finetune, step \d+: the loss is [^\n\r]*\n$', err)       # on a line of its own, below the bar

def test_a_bad_batch_is_listed_in_full(world, tmp_path):
    run = trainer.start(rows_of(world), config(), tmp_path/'run'); rows = [3, 7, 3, 11]
    trainer.save_point(run, 'adapt', 1, 0, 1)
    with pytest.raises(TrainError, match=r'^finetune, step 4: the loss is nan; batch of 4 images, first \S+, all in \S+bad_batch.csv; last good checkpoint: \S+000000;') as e: trainer.guard(run, 'finetune', 4, torch.tensor(float('nan')), rows)
    assert '\n' not in str(e.value) and pd.read_csv(run.out/'bad_batch.csv').path.tolist() == run.records.path.iloc[rows].tolist()
    trainer.guard(run, 'finetune', 4, torch.tensor(1.), rows)

def test_gradients_that_no_loss_scale_helps(world, tmp_path, monkeypatch):
    "The loss stays finite, every step is skipped, nothing is learned: fp16's scaler on the CPU stands in for a GPU's."
    run = trainer.start(rows_of(world), config(), tmp_path/'run'); run.accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=4.)
    def broken(features, *args): s = (features.projected*0).sum(); return dict(triplet=1. + (s*s).sqrt())     # value 1, gradient not a number
    monkeypatch.setattr(trainer, 'image_losses', broken)
    with pytest.raises(TrainError, match=r'^adapt, step 3: the gradients overflow whatever the loss scale \(now 5.0e-01\).*last good checkpoint: \S+; use precision bf16'): trainer.adapt(run)
    run.accelerator.scaler = None

def test_weights_that_are_not_finite_are_never_saved(world, tmp_path):
    run = trainer.start(rows_of(world), config(), tmp_path/'run'); trainer.save_point(run, 'adapt', 1, 0, 1)
    with torch.no_grad(): run.model.clip.visual.proj[0, 0] = float('inf')
    with pytest.raises(TrainError, match=r'adapt, step 2: 1 tensors are no longer finite, first model.clip.visual.proj, and are not saved; last good checkpoint: \S+000000'): trainer.save_point(run, 'adapt', 2, 0, 2)
    assert read_checkpoint(tmp_path/'run'/'checkpoint')[1]['step'] == 1

def test_a_checkpoint_says_how_it_was_made(whole):
    for p in (whole/'checkpoint').iterdir():
        state = json.loads((p/'state.json').read_text())
        assert config_from(state['config']) == config() and state['format'] == trainer.FORMAT and set(p.iterdir()) == {p/'state.json', p/'tensors.safetensors'}

def test_full_disk(world, tmp_path):
    out, err = tmp_path/'run', tmp_path/'err'
    assert ended(started(world, out, config(), err=err, largest=20_000_000)) == 2
    last = err.read_text().strip().splitlines()[-1]
    assert re.search(r'TrainError: checkpoint in \S+ could not be written \(.*File too large.*\); the last good one is none', last)
    assert not list((out/'checkpoint').iterdir())        # nothing half-written
    with pytest.raises(TrainError, match='history.csv could not be written'): trainer.write_text('x', tmp_path/'nowhere'/'history.csv')

@pytest.mark.parametrize('workers', [0, 1])
def test_image_lost_on_the_way(world, tmp_path, workers):
    "Nothing is cached, and an image goes away while the run goes on."
    town = tmp_path/'town'; shutil.copytree(world, town); rows = rows_of(town)
    c = config(cache='off', workers=workers); c = replace(c, prompts=None, finetune=None)
    run = trainer.start(rows, c, tmp_path/'run')
    for p in rows['path']: Path(p).unlink()
    with pytest.raises(trainer.ImageError, match=r'^image \S+\.jpg is missing$'): trainer.adapt(run)

def test_worker_that_dies(world, tmp_path):
    def die(index): os.kill(os.getpid(), signal.SIGKILL)
    run = trainer.start(rows_of(world), replace(config(workers=1), prompts=None, finetune=None), tmp_path/'run'); data = trainer.image_data(run)
    data.__class__ = type('Dying', (type(data),), dict(__getitems__=lambda self, index: die(index)))
    with pytest.raises(TrainError, match='a process that loads images ended'): list(trainer.loaded(data, [[0, 1]], 1))

def test_scaler_is_in_the_checkpoint(world, tmp_path):
    "fp16's loss scale survives; a scaler on the CPU stands in for a GPU's."
    run = trainer.start(rows_of(world), config(), tmp_path/'run'); run.accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=512.)
    trainer.save_point(run, 'adapt', 1, 0, 1); run.restored = read_checkpoint(tmp_path/'run'/'checkpoint')
    assert trainer.resume_point(run, 'adapt')['scaler']['scale'] == trainer.resume_point(run, 'finetune')['scaler']['scale'] == 512.   # also into the next stage
    run.accelerator.scaler = None

def test_precision_of_a_resumed_run(world, whole, tmp_path):
    "`auto` may come to something else on another machine: said, not crashed or continued in another precision."
    with pytest.raises(ValueError, match=r"was trained with precision 'no', here it is 'bf16'; resume with precision='no'"): fit(rows_of(world), config(precision='bf16'), whole, resume=True)

def test_losses_are_float32(world, tmp_path, monkeypatch):
    "In bf16 the network computes in bf16; what it returns and every loss are float32."
    seen = []; image, prompt = trainer.image_losses, trainer.prompt_losses
    def watched(f): return lambda *args, **options: (seen.append((f.__name__, torch.is_autocast_enabled('cpu'), args)), f(*args, **options))[1]
    monkeypatch.setattr(trainer, 'image_losses', watched(image)); monkeypatch.setattr(trainer, 'prompt_losses', watched(prompt))
    c = config(precision='bf16'); c = replace(c, **{k: replace(getattr(c, k), steps=1) for k in trainer.STAGES}); run = fit(rows_of(world), c, tmp_path/'run')
    assert [n for n, *_ in seen] == ['image_losses', 'prompt_losses', 'image_losses'] and not any(on for _, on, _ in seen)
    for _, _, args in seen:
        tensors = [t for a in args for t in (a if isinstance(a, (tuple, list)) else [a]) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        assert len(tensors) >= 2 and all(t.dtype == torch.float32 for t in tensors)
    features, logits, labels, stage = seen[0][2]
    assert torch.equal(features.last, features.last.bfloat16().float())    # computed in bf16
    with torch.no_grad(): parts = image(features, logits, labels, stage)
    assert np.isclose(run.history.loss[0], sum(v.item() for v in parts.values()), rtol=1e-6)

def test_less_memory_same_numbers(world, tmp_path):
    def losses(name, **more):
        c = config(**more); c = replace(c, adapt=replace(c.adapt, steps=2), prompts=replace(c.prompts, steps=1), finetune=None)
        return fit(rows_of(world), c, tmp_path/name).history.loss
    assert np.allclose(losses('kept'), losses('again', recompute=True), rtol=1e-5)
    assert np.allclose(losses('kept16', precision='bf16'), losses('again16', recompute=True, precision='bf16'), rtol=1e-2)

def test_tensorboard(world, tmp_path):
    c = replace(config(track='tensorboard'), prompts=None, finetune=None); pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = fit(rows_of(world), c, tmp_path/'run'); files = [p for p in (tmp_path/'run').rglob('events*') if 'hparams' not in str(p)]
    found = [e.value for f in files for a in [EventAccumulator(str(f))] if a.Reload() and 'adapt/loss' in a.Tags()['scalars'] for e in a.Scalars('adapt/loss')]
    assert np.allclose(found, run.history.loss)

def test_weights_and_biases(world, tmp_path, monkeypatch):
    pytest.importorskip('wandb'); monkeypatch.setenv('WANDB_MODE', 'offline'); monkeypatch.chdir(tmp_path)
    c = config(track='wandb'); c = replace(c, adapt=replace(c.adapt, steps=2), prompts=None, finetune=None); fit(rows_of(world), c, tmp_path/'run')
    logs = list((tmp_path/'run').rglob('*.wandb'))
    assert len(logs) == 1 and b'adapt/loss' in logs[0].read_bytes() and not (tmp_path/'wandb').exists()
    ids = lambda: {p.stem for p in (tmp_path/'run').rglob('*.wandb')}
    first = ids(); fit(rows_of(world), c, tmp_path/'run', resume=True); assert ids() == first and len(first) == 1      # goes on under its name
    fit(rows_of(world), c, tmp_path/'run', overwrite=True); assert len(ids()) == 1 and not ids() & first              # a new one

def test_compiled_gives_the_same_losses(world, tmp_path, monkeypatch):
    def losses(name, **more):
        c = config(**more); c = replace(c, adapt=replace(c.adapt, steps=3), prompts=None, finetune=None)
        return fit(rows_of(world), c, tmp_path/name).history.loss
    assert np.allclose(losses('eager'), losses('compiled', compile=True), rtol=1e-5)
    monkeypatch.setenv('PATH', str(tmp_path)); monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(ValueError, match=r'compile needs a C\+\+ compiler'): losses('none', compile=True)
    assert not (tmp_path/'none').exists()

@pytest.mark.parametrize('change, words', [
    (dict(sampler='dfg'), "did you mean 'dfgs'"), (dict(graph='txt'), "did you mean 'text'"), (dict(precision='half'), 'bf16'), (dict(log_steps=0), 'log_steps is 0'), (dict(track='wand'), "did you mean 'wandb'"),
    (dict(adapt=Stage(steps=1, batch=10, instances=4)), 'multiple'), (dict(adapt=Stage(steps=1, batch=64)), '12'), (dict(adapt=Stage()), 'neither steps nor epochs'),
    (dict(adapt=Stage(steps=-1, epochs=3)), 'adapt: steps is -1; it must not be negative'), (dict(finetune=Stage(epochs=-3, batch=16)), 'finetune: epochs is -3'), (dict(adapt=Stage(steps=1, batch=16, lr=float('nan'))), 'lr is nan'),
    (dict(adapt=Stage(steps=1, batch=16, id_weight=0., triplet_weight=0.)), 'adapt: every loss has weight 0'), (dict(adapt=Stage(steps=1, batch=16, triplet_on=())), 'triplet_on names no feature'),
    (dict(prompts=None, finetune=Stage(steps=1, batch=16, id_weight=0., triplet_weight=0.)), 'finetune: every loss has weight 0'),
    (dict(adapt=Stage(steps=1, batch=16, head_lr=-1.)), 'head_lr is -1'), (dict(adapt=Stage(steps=1, batch=16, sharpness=float('nan'))), 'sharpness is nan'), (dict(adapt=Stage(steps=1, batch=16, floor=-2.)), 'floor is -2'),
    (dict(adapt=Stage(steps=1, batch=4)), 'holds one identity'), (dict(sampler='gs', skip=9), 'skip 9 leaves too few of 12'), (dict(skip=11), 'skip 11 leaves too few of 12'), (dict(pk_share=2.), 'pk_share is 2.0'),
    (dict(temperature=0.), 'temperature is 0.0'), (dict(adapt=Stage(steps=1, batch=16, margin=float('nan'))), 'margin is nan'), (dict(seed=2**63), 'below 2'),
    (dict(adapt=Stage(steps=1, batch=16, triplet_on=('pool',))), "did you mean 'pooled'"), (dict(clip='ViT-B-61', pretrained='openai'), 'ViT-B-16')])
def test_impossible_settings(world, tmp_path, change, words):
    with pytest.raises(ValueError, match=words): fit(rows_of(world), replace(config(), **change), tmp_path/'run')
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('change, words', [(dict(finetune=Stage(steps=1, batch=16, id_weight=0., triplet_weight=0.)), 'every loss has weight 0'), (dict(graph='text'), 'no text encoder'), (dict(graph='dual', sampler='gs'), 'no text encoder'),
    (dict(prompts=Stage(steps=1)), 'no text encoder')])
def test_start_from_a_model_without_words(world, tmp_path, change, words):
    ReIDModel.create('timm:resnet10t', None, num_ids=12, image_size=(64, 32)).save(tmp_path/'saved')
    c = replace(config(init=str(tmp_path/'saved')), adapt=None, prompts=None)
    with pytest.raises(ValueError, match=words): fit(rows_of(world), replace(c, **change), tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_labels_with_gaps(world, tmp_path):
    with pytest.raises(ValueError, match='labels of the records are not 0, 1, 2'): fit(rows_of(world).assign(label=lambda r: 2*r.label), config(), tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_one_camera_and_timm(world, tmp_path):
    rows = rows_of(world); rows = rows[rows.camera == 0].reset_index(drop=True)
    c = replace(config(clip='timm:resnet18', image_size=(64, 32)), prompts=None); c = replace(c, adapt=replace(c.adapt, steps=1), finetune=replace(c.finetune, steps=1))
    assert len(fit(rows, c, tmp_path/'run').history) == 2
    with pytest.raises(ValueError, match='no text encoder'): fit(rows, replace(c, graph='text', prompts=config().prompts), tmp_path/'no')

@pytest.mark.parametrize('graph', ['text', 'dual'])
@pytest.mark.parametrize('sampler', ['gs', 'dfgs'])
def test_every_graph(world, tmp_path, graph, sampler):
    c = config(graph=graph, sampler=sampler); c = replace(c, adapt=None, prompts=replace(c.prompts, steps=2), finetune=replace(c.finetune, steps=2))
    run = fit(rows_of(world), c, tmp_path/'run')
    assert run.history.stage.tolist() == ['prompts']*2 + ['finetune']*2

def addresses(): # what the launcher tells each of two processes
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = str(s.getsockname()[1])
    return [dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port, ACCELERATE_USE_CPU='true', RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]

def begin_two(world, out, c, **options): # both processes
    return [started(world, out, c, err=out.with_name(f'{out.name}{r}'), env=env, **options) for r, env in enumerate(addresses())]

def two(world, out, c, **options): # exit codes of both
    return [ended(p) for p in begin_two(world, out, c, **options)]

def test_two_processes_killed_go_on_and_test_like_one(world, tmp_path):
    c, whole, out = config(), tmp_path/'whole', tmp_path/'run'
    assert two(world, whole, c, test=True) == [0, 0], [(tmp_path/f'whole{r}').read_text()[-1500:] for r in range(2)]
    # features are embedded by both; every process has the results that one has alone, to the bit
    alone = results_table(evaluate_records(ReIDModel.load(whole/'model'), load_dataset('market1501', world), ranks=(1, 5)))
    for r in range(2): pd.testing.assert_frame_equal(pd.read_csv(tmp_path/f'whole.{r}.csv', index_col='domain'), alone, check_exact=False, rtol=1e-12)
    both = begin_two(world, out, c)
    while not any(r['stage'] == 'finetune' and r['step'] >= 3 for r in read_history(out/'history.csv')): assert all(p.is_alive() for p in both); time.sleep(.002)
    for p in both: p.kill(); p.join()
    assert not (out/'model').exists()
    assert two(world, out, c, resume=True) == [0, 0], [(tmp_path/f'run{r}').read_text()[-1500:] for r in range(2)]
    assert same(weights(out), weights(whole))

@pytest.mark.parametrize('n, batch, world', [(10, 4, 2), (10, 4, 3), (3, 4, 2), (8, 4, 2), (9, 2, 4)])
def test_images_are_embedded_once_and_come_back_in_order(n, batch, world, monkeypatch):
    "Threads stand in for processes; each batch holds the images it would hold alone."
    seen, sent, meet = {}, {}, threading.Barrier(world)
    def embed(model, pixels, rows, batch, accelerator): seen[accelerator.process_index] = list(rows); return torch.tensor(np.asarray(rows))[:, None].float()
    monkeypatch.setattr(features, 'embed_images', embed)
    class Peer:
        num_processes, device = world, 'cpu'
        def __init__(self, r): self.process_index = r
        def exchanged(self, f): sent[self.process_index] = f; meet.wait(60); parts = [sent[r] for r in range(world)]; meet.wait(60); return parts
        def pad_across_processes(self, f): return torch.cat([f, torch.zeros(max(map(len, self.exchanged(f))) - len(f), 1)])
        def gather(self, f): return torch.cat(self.exchanged(f))
    with ThreadPoolExecutor(world) as peers: found = list(peers.map(lambda r: trainer.embed_together(None, range(n), Peer(r), batch=batch)[:, 0].tolist(), range(world)))
    assert found == [list(range(n))]*world
    shares = [s for r, s in seen.items() if r < -(-n//batch)]              # processes without a batch embed one image for nothing
    assert sorted(i for s in shares for i in s) == list(range(n)) and all(s == [0] for r, s in seen.items() if r >= -(-n//batch))
    assert {tuple(s[i:i + batch]) for s in shares for i in range(0, len(s), batch)} == {tuple(range(i, min(i + batch, n))) for i in range(0, n, batch)}

def test_two_processes_learn_what_one_learns_with_twice_the_batch(world, tmp_path):
    "Losses over the gathered batch, no batch norm in the way: the same numbers but for rounding."
    c = config(gather=True, augment=Augment(flip=0, pad=0, erase=0)); bare = dict(id_weight=0., batch=8)
    c = replace(c, adapt=replace(c.adapt, steps=3, **bare), prompts=replace(c.prompts, steps=3, batch=12), finetune=replace(c.finetune, steps=3, **bare)); out = tmp_path/'two'
    assert two(world, out, c) == [0, 0], [(tmp_path/f'two{r}').read_text()[-1500:] for r in range(2)]
    one = replace(c, gather=False, prompts=replace(c.prompts, batch=24))
    assert ended(started(world, tmp_path/'one', one, pairs=True)) == 0
    a, b = (pd.read_csv(tmp_path/n/'history.csv') for n in ('one', 'two'))
    assert len(a) == len(b) == 9 and np.allclose(a[['loss', 'spread']], b[['loss', 'spread']], atol=1e-3, equal_nan=True)
    a, b = weights(tmp_path/'one'), weights(out)
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=2e-3) for k in a if 'neck' not in k)
    assert pd.read_csv(out/'sampler.csv').images.eq(1).all() and not any(out.rglob('.*'))
    # the folder exists now: both processes are refused, neither waits for the other
    contents = lambda: {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    before = contents()
    assert two(world, out, c) == [2, 2] and all('not empty' in (tmp_path/f'two{r}').read_text() for r in range(2))
    assert ended(started(world, out, c, resume=True, err=tmp_path/'alone')) == 2 and 'trained by 2 processes, not 1' in (tmp_path/'alone').read_text()
    assert before == contents()

def test_two_processes_stop_together(world, tmp_path):
    "A loss that is not a number on one of them, a disk that is full for the one that writes: one line from each."
    words = lambda name: [(tmp_path/f'{name}{r}').read_text().strip().splitlines()[-1] for r in range(2)]
    assert two(world, tmp_path/'nan', config(), poison='1') == [2, 2]
    a, b = words('nan'); place = r'TrainError: adapt, step 2: the loss '
    assert re.match(place + r'of process 1 is not a number.*last good checkpoint: \S+000000', a) and re.match(place + r'is nan; batch of 16 images.*bad_batch.csv', b) and (tmp_path/'nan'/'bad_batch.csv').exists()
    assert two(world, tmp_path/'full', config(), largest=20_000_000) == [2, 2]
    assert all(re.match(r'TrainError: checkpoint in \S+ could not be written', w) for w in words('full'))

def test_two_processes_and_a_feature_that_no_loss_reads(world, tmp_path):
    c = config(); s = replace(c.adapt, steps=3, id_weight=0., triplet_on=('pooled',)); c = replace(c, adapt=s, prompts=None, finetune=None)
    assert two(world, tmp_path/'run', c) == [0, 0], [(tmp_path/f'run{r}').read_text()[-1500:] for r in range(2)]
    start = ReIDModel.create('pedestrians', None, num_ids=12).state_dict(); end = weights(tmp_path/'run')
    assert torch.equal(start['clip.visual.proj'], end['clip.visual.proj']) and not torch.equal(start['clip.visual.conv1.weight'], end['clip.visual.conv1.weight'])

def command(args, err, env): # a process of its own for a command line
    os.environ.update(env); os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2); torch.set_num_threads(1)
    main(args)

def test_two_processes_refused_by_a_command(world, tmp_path):
    "The main process refuses; the other one must not wait for it."
    (tmp_path/'m'/'market1501').mkdir(parents=True); (tmp_path/'m'/'market1501'/'mine').write_text('precious'); there = f'market1501:{tmp_path/"city"}'
    from clip_dfgs.pedestrians import make_domain
    make_domain(tmp_path/'city', 5, identities=40, cameras=2, images_per_camera=1, progress=False)          # enough people for the recipe
    both = [processes.Process(target=command, args=(['matrix', '--source', there, '--target', there, '--out', str(tmp_path/'m'), '--quick', '1'], str(tmp_path/f'err{r}'), env)) for r, env in enumerate(addresses())]
    for p in both: p.start()
    assert [ended(p, 120) for p in both] == [2, 2]
    assert all(re.match(r'clip-dfgs: .*market1501 exists and is not empty', (tmp_path/f'err{r}').read_text().splitlines()[-1]) for r in range(2))

def test_batch_norm_on_two_processes(world, tmp_path):
    "Each process sees other images, so its statistics are its own until they agree: graph, results and the saved model need one set."
    c = config(clip='timm:resnet10t', image_size=(64, 32)); c = replace(c, prompts=None, adapt=replace(c.adapt, steps=3), finetune=replace(c.finetune, steps=3)); out = tmp_path/'two'
    assert two(world, out, c, test=True) == [0, 0], [(tmp_path/f'two{r}').read_text()[-1500:] for r in range(2)]
    start = ReIDModel.create('timm:resnet10t', None, num_ids=12, image_size=(64, 32)).state_dict()
    for r in range(2): assert same(load_file(tmp_path/f'two.{r}.safetensors'), weights(out))
    assert any('running_mean' in k and not torch.equal(start[k], v) for k, v in weights(out).items())

def test_results_with_intervals(world, tmp_path):
    from clip_dfgs.evaluation import evaluate
    rng = np.random.default_rng(0); one = evaluate(rng.normal(size=(6, 4)), rng.normal(size=(18, 4)), np.arange(6), np.repeat(np.arange(6), 3), bootstrap=200); two = replace(one, mAP=one.mAP/2, intervals=None)
    table = results_table(dict(one=one, two=two))
    assert table.loc['one', 'mAP low'] == pytest.approx(100*one.intervals.loc['mAP', 'low']) and table.loc['one', 'mAP low'] < table.loc['one', 'mAP'] < table.loc['one', 'mAP high']
    assert table.loc['mean', 'mAP'] == pytest.approx(75*one.mAP) and table.loc[['two', 'mean'], ['mAP low', 'R1 high']].isna().all().all()
    assert not any('low' in c for c in results_table(dict(two=two)))

def test_real_images(real, tmp_path):
    "A minute on photographs: train on a few identities of CUHK03, test on COL780."
    from clip_dfgs.trainer import evaluate_records
    def tree(name): return next(p.parent for p in (real/name).rglob('query'))
    source = next(d for d in real.iterdir() if 'cuhk' in d.name).name; target = next(d for d in real.iterdir() if 'col' in d.name).name
    rows = load_dataset('market1501', tree(source)); train = rows[rows['split'] == 'train']; train = train[train.pid.isin(sorted(train.pid.unique())[:60])]
    c = TrainConfig(precision='no', cache=str(tmp_path/'cache')); c = replace(c, adapt=replace(c.adapt, steps=10), prompts=replace(c.prompts, steps=5), finetune=replace(c.finetune, steps=5))
    run = fit(train.reset_index(drop=True), c, tmp_path/'run'); result = list(run.evaluate(load_dataset('market1501', tree(target))).values())[0]
    assert result.queries == 148 and result.mAP > 3*8/1184
