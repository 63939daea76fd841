"The command line: what it says, what it refuses, and what it leaves behind."
import contextlib, io, re, shutil, subprocess, sys
from dataclasses import replace
import pytest, torch
from clip_dfgs.cli import main

def said(*args): # command line -> (exit code, stdout, stderr)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(list(map(str, args)))
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

@pytest.mark.parametrize('error, lost', [(RuntimeError('[enforce fail] Connection closed by peer [127.0.0.1]:5'), True), (RuntimeError('image /data/igloo/1.jpg cannot be read'), False),
    (torch.OutOfMemoryError('CUDA out of memory'), False), (torch.distributed.DistBackendError('NCCL error'), True), (ValueError('Connection closed'), False)])
def test_what_counts_as_a_lost_peer(monkeypatch, error, lost):
    from clip_dfgs.cli import other_process_stopped
    assert not other_process_stopped(error)                # a single process has no peers
    monkeypatch.setenv('WORLD_SIZE', '2'); assert other_process_stopped(error) == lost

@pytest.mark.parametrize('args, words', [
    (['train', '--source', 'market1501:nowhere', '--out', 'RUN'], 'nowhere'), (['train', '--source', 'nowhere', '--out', 'RUN'], 'name:folder'),
    (['train', '--source', 'market1502:WORLD', '--out', 'RUN'], 'market1501'), (['train', '--source', 'market1501:WORLD', '--sampler', 'dfg', '--out', 'RUN'], 'dfgs'),
    (['train', '--source', 'market1501:WORLD', '--recipe', 'smal', '--out', 'RUN'], 'small'), (['train', '--source', 'market1501:WORLD', '--out', 'RUN'], '12'),
    (['train', '--source', 'market1501:EMPTY', '--out', 'RUN'], 'EMPTY'), (['render', 'WORLD'], 'not empty'), (['test', 'EMPTY', '--target', 'market1501:WORLD'], 'EMPTY'),
    (['demo', '--out', 'WORLD'], 'not empty'), (['train', '--source', 'market1501:WORLD', '--out', 'RUN', '--batch', '0'], 'batch 0'), (['train', '--source', '--out', 'RUN'], '--source names no data set'),
    (['train', '--source', 'market1501:WORLD', '--out', 'RUN', '--batch', '16', '--steps', '-3'], 'steps is -3'), (['train', '--source', 'market1501:WORLD', '--out', 'RUN', '--batch', '16', '--lr', '-1'], 'lr is -1'),
    (['train', '--source', 'market1501:WORLD', '--out', 'RUN', '--seed', '99999999999999999999999'], 'below 2^63'), (['check-data', 'market1501', 'WORLD', '--sheet', 'RUN.xyz'], 'name it'),
    (['train', '--source', 'market1501:WORLD', '--target', 'market1501:STRANGERS', '--out', 'RUN', '--batch', '16'], "market1501: no query has a match left in the gallery: query identities"),
    (['test', 'EMPTY', '--target'], '--target names no data set'), (['test', 'EMPTY', '--target', 'market1501:WORLD', '--bootstrap', '-1'], 'bootstrap is -1'),
    (['compare', 'EMPTY', 'EMPTY', '--target', 'market1501:WORLD', '--bootstrap', '0'], 'bootstrap is 0')])
def test_mistakes_on_the_command_line(world, tmp_path, args, words):
    (tmp_path/'empty').mkdir(); names = dict(WORLD=str(world), RUN=str(tmp_path/'run'), EMPTY=str(tmp_path/'empty'), STRANGERS=str(tmp_path/'strangers'))
    if any('STRANGERS' in a for a in args):
        shutil.copytree(world, tmp_path/'strangers')
        for p in (tmp_path/'strangers'/'query').iterdir(): p.rename(p.with_name('9' + p.name[1:]))
    put = lambda s: re.sub('WORLD|RUN|EMPTY|STRANGERS', lambda m: names[m[0]], s); before = sorted(world.rglob('*'))
    code, out, err = said(*map(put, args))
    assert code == 2 and put(words) in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path/'run').exists() and sorted(world.rglob('*')) == before

def test_changes_of_a_recipe():
    from clip_dfgs.cli import Changes, changed
    from clip_dfgs.protocols import RECIPES
    c = RECIPES['small']; assert changed('small', 3, Changes()) == replace(c, seed=3)
    want = replace(c, seed=0, sampler='gs', recompute=True, adapt=None, prompts=replace(c.prompts, steps=7), finetune=replace(c.finetune, steps=9, batch=32, lr=0., sharpness=5.))
    assert changed('small', 0, Changes(sampler='gs', recompute=True, adapt_steps=0, prompt_steps=7, steps=9, batch=32, lr=0., sharpness=5.)) == want
    assert changed('small', 0, Changes(batch=32)) == replace(c, seed=0, adapt=replace(c.adapt, batch=32), finetune=replace(c.finetune, batch=32))

def test_mistake_in_a_shell():
    r = subprocess.run([sys.executable, '-m', 'clip_dfgs.cli', 'train', '--source', 'market1501:nowhere', '--out', 'run'], capture_output=True, text=True)
    assert r.returncode == 2 and r.stderr.startswith('clip-dfgs: ') and len(r.stderr.splitlines()) == 1 and not r.stdout

def test_truncated_image_is_named(world, tmp_path):
    bad = tmp_path/'bad'; shutil.copytree(world, bad); f = sorted((bad/'bounding_box_train').iterdir())[3]; f.write_bytes(f.read_bytes()[:200])
    code, _, err = said('train', '--source', f'market1501:{bad}', '--out', tmp_path/'run', '--batch', '16')
    assert code == 2 and f.name in err and len(err.strip().splitlines()) == 1 and not (tmp_path/'run').exists()

def test_train_and_test(world, tmp_path):
    there = f'market1501:{world}'
    code, out, err = said('train', '--source', there, '--target', there, '--out', tmp_path/'run', '--batch', '16', '--steps', '3', '--adapt-steps', '2', '--prompt-steps', '2', '--precision', 'no')
    assert code == 0 and 'mAP' in out, err
    trained = out.splitlines(); code, out, err = said('test', tmp_path/'run', '--target', there, '--precision', 'no')
    assert code == 0 and out.splitlines() == trained[:len(out.splitlines())]        # the saved model is the one that was tested

def test_help_needs_no_torch():
    code = "import sys\nfrom clip_dfgs.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)

