"The command line: what it says, what it refuses, what it remembers, and what it leaves behind."
import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from clip_dfgs.cli.arguments import explained
from clip_dfgs.cli.overrides import Changes, changed
from clip_dfgs.cli.main import COMMANDS, main
from clip_dfgs.training.recipes import RECIPES
from clip_dfgs.data.datasets import load_dataset
from trees import make_tree

SHORT = '--steps 2 --adapt-steps 2 --prompt-steps 2 --batch 16 --precision no'.split()


def said(*args):
    "A command line's (exit code, stdout, stderr)."
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(args)
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()


def noted(err):
    "The notes among what was printed on stderr; progress bars are not lines of their own."
    return [line.removeprefix('clip-dfgs: note: ') for line in re.split('[\r\n]', err) if 'clip-dfgs: note: ' in line]


def folders_of(world, out, split=True):
    "The pictures of a Market layout as `folder` has them: a folder for each person, in folders for each split."
    for part, name in (('bounding_box_train', 'train'), ('query', 'query'), ('bounding_box_test', 'gallery')):
        for file in sorted((world/part).glob('*.jpg')):
            place = out/(name if split else '')/file.name[:4]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place/file.name)
    return out


@pytest.fixture(scope='module')
def plain(world, tmp_path_factory): return folders_of(world, tmp_path_factory.mktemp('plain')/'set')


@pytest.fixture(scope='module')
def informed(plain, tmp_path_factory):
    "A run that was told where the cameras are, and what it printed."
    out, data = tmp_path_factory.mktemp('informed')/'run', f'folder:{plain}'
    code, text, err = said('train', '--source', data, '--target', data, '--camera', r'_c(\d)', '--out', out, *SHORT)
    assert code == 0, err
    return out, text


# ---- help

def test_overview_fits_a_screen():
    code, out, _ = said('--help')
    assert code == 0 and all(name in out for name in COMMANDS.known)
    assert len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 80
    assert said()[1] == said('-h')[1] == out


def test_words_about_the_program_itself():
    code, _, err = said('--helpp')
    assert code == 2 and "no option --helpp; did you mean '--help'?" in err
    assert '95 % interval' in said('compare', '--help')[1] and not any('%%' in said(c, '-h')[1] for c in COMMANDS.known)


@pytest.mark.parametrize('name', COMMANDS.known)
def test_help_ends_with_an_example(name):
    code = io.StringIO()
    with contextlib.redirect_stdout(code), pytest.raises(SystemExit) as end: main([name, '--help'])
    example = code.getvalue().rstrip().split('\n')[-1].strip()
    assert end.value.code == 0 and example.startswith(f'clip-dfgs {name} ')
    COMMANDS.parser(name).read(shlex.split(example)[2:])


def test_examples_run_one_after_the_other(tmp_path, monkeypatch):
    "As they stand in the help, only shorter."
    monkeypatch.chdir(tmp_path)
    make_tree('market1501', tmp_path/'data')
    shorter = dict(train=SHORT, test=['--precision', 'no'], compare=['--precision', 'no', '--bootstrap', '20'],
                   matrix=['--quick', '2', '--precision', 'no'], demo=['--steps', '2', '--identities', '16'])
    for name in ('render', 'check-data', 'train', 'test', 'compare', 'matrix', 'embed', 'search'):
        words = shlex.split(COMMANDS.known[name][2])[1:]
        if name == 'compare': shutil.copytree('runs/first', 'runs/second')
        code, out, err = said(*words, *shorter.get(name, []))
        assert code == 0 and out, (name, err)
    assert (tmp_path/'runs'/'first'/'results.csv').exists() and (tmp_path/'runs'/'all'/'matrix.png').exists()


def test_the_small_clip_is_a_model_by_its_name(world, tmp_path):
    "As for embed, so for test and export; intervals stand below a table that fits a screen."
    from clip_dfgs.inference.extractor import FeatureExtractor
    words = ['--target', f'market1501:{world}', '--precision', 'no']
    code, out, err = said('test', 'pedestrians', *words, '--bootstrap', '20')
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines[:4])) <= 80 and lines[2].split()[-1] == '0', err
    assert '20 times' in lines[4] and re.match(r'  market1501: mAP [0-9.]+ to [0-9.]+, R1 ', lines[5])
    FeatureExtractor('pedestrians').model.save(tmp_path/'run'/'model')
    assert said('test', tmp_path/'run', *words)[1].splitlines() == lines[:4]
    assert FeatureExtractor(tmp_path/'run')(np.zeros((128, 64, 3), np.uint8)).shape == (1, 320)


HELP = [['--help'], ['--version'], ['--completion', 'bash'], ['tran'], ['train', '--sorce', 'x'],
        *([name, '--help'] for name in COMMANDS.known)]


def test_help_and_mistakes_of_typing_need_no_torch():
    "All in one Python, so that whatever one of them imports is found."
    code = f"""import sys
from clip_dfgs.cli.main import main
for words in {HELP}:
    try: main(words)
    except SystemExit: pass
heavy = {{'torch', 'open_clip', 'timm', 'pandas', 'matplotlib', 'PIL'}} & set(sys.modules)
assert not heavy, heavy"""
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)


def completed(script, *words):
    "What bash offers for the last of these words, an empty one for the next."
    at = f'COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}'
    ask = f'{at}\n_shtab_clip_dfgs clip-dfgs "${{COMP_WORDS[COMP_CWORD]}}"\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(['bash', '-c', f'{script}\n{ask}'], capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split()


def test_bash_completes_commands_and_options(tmp_path, monkeypatch):
    code, script, err = said('--completion', 'bash')
    assert (code, err) == (0, '') and said('--completion')[1] == script
    assert set(COMMANDS.known) <= set(completed(script, 'clip-dfgs', ''))
    assert set(completed(script, 'clip-dfgs', 'tr')) == {'train'}
    for name in COMMANDS.known:
        flags = [flag for action in COMMANDS.parser(name)._actions for flag in action.option_strings]
        assert set(completed(script, 'clip-dfgs', name, '--')) == {flag for flag in flags if flag.startswith('--')}
    monkeypatch.chdir(tmp_path)
    (tmp_path/'crops').mkdir()
    assert completed(script, 'clip-dfgs', 'train', '--out', 'cr') == ['crops']


@pytest.mark.parametrize('shell, mark', [('zsh', '#compdef clip-dfgs'), ('fish', 'complete -c clip-dfgs')])
def test_other_shells_have_a_script(shell, mark):
    code, script, err = said('--completion', shell)
    assert (code, err) == (0, '') and mark in script and 'check-data' in script and 'include-test' in script


def test_an_unknown_shell_is_one_line():
    code, out, err = said('--completion', 'bsh')
    assert code == 2 and not out and "did you mean 'bash'" in err and err.count('\n') == 1


# ---- mistakes

MISTAKES = [line.split(' | ') for line in """
train --source market1501:nowhere --out RUN | nowhere
train --source nowhere --out RUN | name:folder
train --source --out RUN | --source names no data set
train --source market1502:WORLD --out RUN | market1501
train --source market1501:EMPTY --out RUN | EMPTY
train --source market1501:WORLD --out RUN --sampler dfg | dfgs
train --source market1501:WORLD --out RUN --batch 16 --pk-ratio 1.5 | between 0 and 1, or 'adaptive'
train --source market1501:WORLD --out RUN --batch 16 --pk-ratio some | pk_ratio is some
train --source market1501:WORLD --out RUN --batch 16 --pk-ratio .5 --order published | no random batches
train --source market1501:WORLD --out RUN --batch 16 --sampler gs --pk-ratio adaptive | would change nothing
train --source market1501:WORLD --out RUN --batch 16 --curriculum 3 | two whole numbers
train --source market1501:WORLD --out RUN --batch 16 --curriculum 0 2 | two whole numbers
train --source market1501:WORLD --out RUN --batch 16 --sampler gs --curriculum 3 2 | would change nothing
train --source market1501:WORLD --out RUN --batch 16 --sampler pk --metric cosine | would change nothing
train --source market1501:WORLD --out RUN --batch 16 --metric cosin | cosine
train --source market1501:WORLD --out RUN --batch 16 --sampler pk --neighbors-from within | would change nothing
train --source market1501:WORLD --out RUN --batch 16 --neighbors-from within | there is one
train --source market1501:WORLD --out RUN --hold-out 1.5 | between 0 and 1
train --source market1501:WORLD --out RUN --hold-out .01 | is none
train --source market1501:WORLD --out RUN --validate-steps 5 | --hold-out 0.1
train --source market1501:WORLD --out RUN --hold-out .2 --select bets | did you mean 'best'
train --source market1501:WORLD --out RUN --batch 16 --norm frosen | did you mean 'frozen'
train --source market1501:WORLD --out RUN --recipe smal | small
train --source market1501:WORLD --out RUN | 12
train --source market1501:WORLD --out RUN --batch 0 | batch 0
train --source market1501:WORLD --out RUN --batch 16 --steps -3 | steps is -3
train --source market1501:WORLD --out RUN --batch 16 --lr -1 | lr is -1
train --source market1501:WORLD --out RUN --seed 99999999999999999999999 | below 2^63
train --source market1501:WORLD --out RUN --steps many | invalid int value: 'many'
train --source market1501:WORLD --out RUN --clip ViT-B-32 | --clip ViT-B-32 needs --pretrained
train --source market1501:WORLD --out RUN --clip timm:resnet18 | --clip timm:resnet18 needs --pretrained
train --source market1501:WORLD --out RUN --clip ViT-B-32 --pretrained pedestrians | cannot have the weights
train --source market1501:WORLD --out RUN --init EMPTY --clip pedestrians | --init brings a model
train --source market1501:WORLD --out RUN --sampler pk --graph text | --graph would change nothing
train --source market1501:WORLD --out RUN --steps 0 --lr 1 | --lr would change nothing
train --source market1501:WORLD --out RUN --steps 0 --adapt-steps 0 --prompt-steps 0 | nothing to train
train --source market1501:WORLD --out RUN --camera _c(.) | camera would change nothing: market1501:WORLD is not
train --source folder:WORLD --out RUN --camera c(\\d | is no regular expression
train --source folder:WORLD --out RUN --camera c\\d | no group in parentheses
train --source market1501:WORLD --out RUN --domain a b | --domain gives 2 names for 1 data sets
train --source market1501:WORLD market1501:WORLD --out RUN --domain a a | a name of its own
train --source market1501:WORLD --target market1501:STRANGERS --out RUN --batch 16 | no query has a match left
train --sorce market1501:WORLD --out RUN | no option --sorce; did you mean '--source'
train --source market1501:WORLD | required: --out
tran --source market1501:WORLD | unknown command 'tran'; did you mean 'train'
render WORLD | not empty
check-data market1501 WORLD --sheet RUN.xyz | name it run.png
check-data market1501 WORLD --domain a b | 2 names for 1 data set
test EMPTY --target market1501:WORLD | EMPTY
test EMPTY --target | --target names no data set
test EMPTY --target market1501:WORLD --bootstrap -1 | bootstrap is -1
compare EMPTY EMPTY --target market1501:WORLD --bootstrap 0 | bootstrap is 0
matrix --source market1501:WORLD --target --out RUN | --target names no data set
protocol p4 --data EMPTY --out RUN | unknown protocol 'p4'
protocol p1 --data EMPTY --out RUN --camera _c(.) | camera would change nothing
protocol p1 --data EMPTY --out RUN --domain x | leave it out
report EMPTY | no run found
report EMPTY EMPTY | no run found
report EMPTY EMPTY EMPTY | takes one run or two, not 3
embed EMPTY --model pedestrians --out RUN | EMPTY: no pictures there
embed market1501:EMPTY --model pedestrians --out RUN | EMPTY
embed WORLD/query --model nothing --out RUN | name a run, a saved model, or pedestrians
embed WORLD/query --model EMPTY --out RUN | no such file
embed WORLD/query --model pedestrians --out WORLD | no gallery; choose another folder
embed WORLD/query --model pedestrians --out RUN --camera c(\\d | is no regular expression
embed WORLD/query --model pedestrians --out RUN --detected | would change nothing
embed --model pedestrians --out RUN | required: data
search EMPTY | nothing is asked for
search EMPTY WORLD/x.jpg | is no gallery
search RUN --text red | is not there; clip-dfgs embed makes one
search EMPTY --text red --picture RUN.jpg | name it run.png
demo --out WORLD | not empty
demo --out WORLD --overwrite | not of a demo
""".strip().split('\n')]


@pytest.mark.parametrize('line, words', MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes_on_the_command_line(world, tmp_path, line, words):
    names = dict(WORLD=world, RUN=tmp_path/'run', EMPTY=tmp_path/'empty', STRANGERS=tmp_path/'strangers')
    names['EMPTY'].mkdir()
    if 'STRANGERS' in line:
        shutil.copytree(world, names['STRANGERS'])
        for file in (names['STRANGERS']/'query').iterdir(): file.rename(file.with_name('9' + file.name[1:]))

    def put(text): return re.sub('|'.join(names), lambda found: str(names[found[0]]), text)

    before = sorted(world.rglob('*'))
    code, _, err = said(*map(put, line.split()))
    assert code == 2 and put(words) in err and len(err.strip().splitlines()) == 1, err
    assert not names['RUN'].exists() and sorted(world.rglob('*')) == before


def test_mistake_in_a_shell():
    command = [sys.executable, '-m', 'clip_dfgs.cli.main', 'train', '--source', 'market1501:nowhere', '--out', 'run']
    r = subprocess.run(command, capture_output=True, text=True)
    assert r.returncode == 2 and r.stderr.startswith('clip-dfgs: ') and len(r.stderr.splitlines()) == 1 and not r.stdout


def test_truncated_image_is_named(world, tmp_path):
    bad = tmp_path/'bad'
    shutil.copytree(world, bad)
    file = sorted((bad/'bounding_box_train').iterdir())[3]
    file.write_bytes(file.read_bytes()[:200])
    code, _, err = said('train', '--source', f'market1501:{bad}', '--out', tmp_path/'run', '--batch', '16')
    assert code == 2 and file.name in err and len(err.strip().splitlines()) == 1 and not (tmp_path/'run').exists()


@pytest.mark.parametrize('error, lost', [
    (RuntimeError('[enforce fail] Connection closed by peer [127.0.0.1]:5'), True),
    (torch.distributed.DistBackendError('NCCL error'), True),
    (RuntimeError('image /data/igloo/1.jpg cannot be read'), False),
    (torch.OutOfMemoryError('CUDA out of memory'), False),
    (ValueError('Connection closed'), False)])
def test_what_counts_as_a_lost_peer(monkeypatch, error, lost):
    assert 'connection to another process' not in (explained(error) or '') # a single process has no peers
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert ('connection to another process' in (explained(error) or '')) == lost


# ---- held-out people

def test_held_out_people_on_the_command_line_and_a_kill(world, tmp_path):
    "A quarter of the people is left out, ranked on the way; killed and resumed, the table is the one of an easy run."
    line = ['train', '--source', f'market1501:{world}', *SHORT, '--steps', '6', '--checkpoint-steps', '3',
            *'--hold-out .25 --validate-steps 2 --select best --norm frozen'.split(),
            '--cache', tmp_path/'cache', '--out']
    code, _, err = said(*line, tmp_path/'easy')
    assert code == 0, err
    rows, kept = (pd.read_csv(tmp_path/'easy'/name) for name in ('records.csv', 'validate.csv'))
    assert rows['pid'].nunique() == 9 and set(kept['split']) == {'query', 'gallery'}
    assert kept['pid'].nunique() == 3 and not set(kept['pid']) & set(rows['pid'])
    p = subprocess.Popen([sys.executable, '-m', 'clip_dfgs.cli.main', *map(str, line), str(tmp_path/'hard')],
                         stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    file = tmp_path/'hard'/'validation.csv'
    deadline = time.monotonic() + 600
    while p.poll() is None and time.monotonic() < deadline:
        if file.exists() and 'finetune,4' in file.read_text(): break
        time.sleep(.002)
    p.kill()
    assert p.wait() == -9 and not (tmp_path/'hard'/'model').exists()
    assert said(*line, tmp_path/'hard', '--resume')[0] == 0
    for name in ('validation.csv', 'validate.csv', 'model/model.safetensors'):
        assert (tmp_path/'easy'/name).read_bytes() == (tmp_path/'hard'/name).read_bytes()
    table = pd.read_csv(file)
    assert [*zip(table['stage'], table['step'])] == [('adapt', 2), ('finetune', 2), ('finetune', 4), ('finetune', 6)]


# ---- a recipe and its changes

def test_changes_of_a_recipe():
    small = RECIPES['small']
    assert changed('small', 3, Changes()) == replace(small, seed=3)
    finetune = replace(small.finetune, steps=9, batch=32, lr=0., mining_temperature=.2)
    prompts = replace(small.prompts, steps=7)
    want = replace(small, seed=0, sampler='gs', recompute=True, adapt=None, prompts=prompts, finetune=finetune)
    given = dict(sampler='gs', recompute=True, adapt_steps=0, prompt_steps=7)
    assert changed('small', 0, Changes(**given, steps=9, batch=32, lr=0., mining_temperature=.2)) == want
    both = {stage: replace(getattr(small, stage), batch=32) for stage in ('adapt', 'finetune')}
    assert changed('small', 0, Changes(batch=32)) == replace(small, seed=0, **both)


# ---- what the data mean, and what a run remembers of it

def test_train_and_test_agree(informed, plain):
    "The saved model is the one that was tested, and on the same meaning of the data."
    out, trained = informed
    code, again, err = said('test', out, '--target', f'folder:{plain}', '--precision', 'no')
    assert code == 0 and again.splitlines() == trained.splitlines()[:len(again.splitlines())]
    assert noted(err) == [rf'camera is _c(\d), as {out} was trained; --camera changes it']
    assert said('test', out/'model', '--target', f'folder:{plain}', '--precision', 'no')[1] == again
    given = said('test', out, '--target', f'folder:{plain}', '--precision', 'no', '--camera', r'_c(\d)')
    assert given[1] == again and not noted(given[2])


def test_cameras_can_be_taken_as_unknown(informed, plain):
    out, trained = informed
    code, text, err = said('test', out, '--target', f'folder:{plain}', '--precision', 'no', '--camera', '')
    assert code == 0 and text.splitlines()[2] not in trained and not [n for n in noted(err) if 'was trained;' in n]


def test_every_command_knows_the_cameras(informed, plain, tmp_path):
    out, trained = informed
    data, rule = f'folder:{plain}', ['--camera', r'_c(\d)']
    code, text, err = said('check-data', 'folder', plain, *rule)
    assert code == 0 and 'one camera' not in text, err
    code, text, err = said('compare', out, out, '--target', data, '--precision', 'no', '--bootstrap', '5')
    assert code == 0 and len(noted(err)) == 1, err
    few = ['--quick', '2', '--precision', 'no']
    code, text, err = said('matrix', '--source', data, '--target', data, '--out', tmp_path/'m', *few, *rule)
    assert code in (0, 2) and (code == 0 or 'a batch needs' in err), err
    kept = json.loads((out/'sources.json').read_text())
    assert kept == dict(source=[data], target=[data], options=dict(camera=r'_c(\d)'))


def test_models_trained_with_other_cameras_are_not_compared_unasked(informed, plain, tmp_path):
    out, _ = informed
    shutil.copytree(out, tmp_path/'other')
    kept = json.loads((out/'sources.json').read_text())
    kept['options']['camera'] = r'_(c\d)'
    (tmp_path/'other'/'sources.json').write_text(json.dumps(kept))
    line = ['compare', out, tmp_path/'other', '--target', f'folder:{plain}', '--precision', 'no', '--bootstrap', '5']
    code, _, err = said(*line)
    assert code == 2 and 'different --camera' in err and err.count('\n') == 1
    assert said(*line, '--camera', r'_c(\d)')[0] == 0


def test_a_table_keeps_its_domains(world, informed, tmp_path):
    "Person 1 of one site is not person 1 of the other."
    sites = [load_dataset('market1501', world, domain=d) for d in ('north', 'south')]
    copies = [shutil.copy(p, tmp_path/f'south_{i}.jpg') for i, p in enumerate(sites[1]['path'])]
    sites[1] = sites[1].assign(path=list(map(str, copies)))
    pd.concat(sites).to_csv(tmp_path/'sites.csv', index=False)
    out, _ = informed
    code, text, err = said('test', out, '--target', f'csv:{tmp_path/"sites.csv"}', '--precision', 'no')
    assert code == 0 and [line.split()[0] for line in text.splitlines()[2:]] == ['north', 'south', 'mean'], err
    assert not noted(err) # the table says its cameras itself
    code, _, err = said('test', out, '--target', f'csv:{tmp_path/"sites.csv"}', '--camera', '(.)')
    assert code == 2 and 'has a column camid' in err
    code, _, err = said('test', out, '--target', f'csv:{tmp_path/"sites.csv"}', '--domain', 'site')
    assert code == 2 and 'leave --domain out' in err
    code, _, err = said('test', out, '--target', *[f'csv:{tmp_path/"sites.csv"}']*2)
    assert code == 2 and "another table has the domain 'north'" in err


def test_domains_can_be_named(world, informed):
    data = f'market1501:{world}'
    code, text, _ = said('test', informed[0], '--target', data, '--domain', 'harbour', '--precision', 'no')
    assert code == 0 and text.splitlines()[2].startswith('harbour')


# ---- the measurement is what it claims

def test_training_on_the_test_is_said(world, tmp_path):
    data = f'market1501:{world}'
    tests = sum(1 for part in ('query', 'bounding_box_test') for _ in (world/part).glob('*.jpg'))
    words = ['--out', tmp_path/'run', *SHORT, '--overwrite']
    code, _, err = said('train', '--source', data, '--target', data, '--include-test', *words)
    words_of_all = f'market1501: {tests} of {tests} test pictures are trained on too'
    assert code == 0 and [n for n in noted(err) if n.startswith(words_of_all)]
    code, _, err = said('test', tmp_path/'run', '--target', data, '--precision', 'no') # from what the run keeps
    assert code == 0 and [n for n in noted(err) if 'are trained on too' in n]
    code, _, err = said('train', '--source', data, '--target', data, *words)
    assert code == 0 and not noted(err)


def test_copies_of_test_pictures_are_found(world, plain, tmp_path):
    mixed = folders_of(world, tmp_path/'mixed', split=False) # all pictures train, under other names
    line = ['train', '--source', f'folder:{mixed}', '--target', f'market1501:{world}', '--out', tmp_path/'run', *SHORT]
    code, _, err = said(*line)
    assert code == 0 and [n for n in noted(err) if 'test pictures are trained on too' in n], err


def test_a_run_without_a_model_is_named(informed, world, tmp_path):
    stopped = tmp_path/'stopped'
    shutil.copytree(informed[0], stopped)
    shutil.rmtree(stopped/'model')
    code, _, err = said('test', stopped, '--target', f'market1501:{world}')
    assert code == 2 and f'{stopped} has no model yet' in err and err.count('\n') == 1


def test_training_on_the_test_is_said_from_any_folder(world, tmp_path, monkeypatch):
    "And where the pictures are gone, that nothing can be said."
    shutil.copytree(world, tmp_path/'town')
    monkeypatch.chdir(tmp_path)
    short = '--steps 1 --adapt-steps 0 --prompt-steps 0 --batch 16 --precision no'.split()
    code, _, err = said('train', '--source', 'market1501:town', '--include-test', '--out', 'run', *short)
    assert code == 0, err
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    code, _, err = said('test', '../run', '--target', 'market1501:../town', '--precision', 'no')
    assert code == 0 and [n for n in noted(err) if 'are trained on too' in n], err
    shutil.move(tmp_path/'town', tmp_path/'moved')
    code, _, err = said('test', '../run', '--target', 'market1501:../moved', '--precision', 'no')
    assert code == 0 and [n for n in noted(err) if 'are not where they were' in n], err


# ---- nothing of the user's is written over

def test_answers_are_not_written_over_questions_and_tables(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said('embed', world/'query', '--model', 'pedestrians', '--out', 'stored')[0] == 0
    asked = shutil.copy(sorted((world/'query').glob('*.jpg'))[0], 'asked.png')
    (tmp_path/'table.csv').write_text('path,pid\n')
    (tmp_path/'link.png').symlink_to('asked.png')
    before = (tmp_path/'asked.png').read_bytes()
    for option in (['--picture', 'asked.png'], ['--picture', './link.png'], ['--csv', 'table.csv']):
        code, _, err = said('search', 'stored', asked, *option)
        assert code == 2 and 'choose another name' in err and err.count('clip-dfgs:') == 1, err
    assert (tmp_path/'asked.png').read_bytes() == before and (tmp_path/'table.csv').read_text() == 'path,pid\n'
    for _ in range(2): assert said('search', 'stored', asked, '--csv', 'found.csv', '--picture', 'found.png')[0] == 0
    assert (tmp_path/'found.csv').read_text().startswith('query,rank,score')
    code, _, err = said('report', tmp_path, '--out', 'table.csv')
    assert code == 2 and 'written as HTML' in err


def test_a_sheet_is_not_written_over_a_picture(plain, tmp_path):
    shutil.copytree(plain, tmp_path/'set')
    first = sorted((tmp_path/'set'/'train').rglob('*.jpg'))[0]
    mine = first.rename(first.with_suffix('.png'))
    before = mine.read_bytes()
    code, _, err = said('check-data', 'folder', tmp_path/'set', '--sheet', mine)
    assert code == 2 and 'is a picture of the data' in err and mine.read_bytes() == before


def test_a_name_in_no_encoding_is_one_line(world, tmp_path):
    shutil.copytree(world, tmp_path/'town')
    first = sorted((tmp_path/'town'/'bounding_box_train').glob('*.jpg'))[0]
    first.rename(str(first.with_suffix('')) + '\udcff.jpg')
    code, _, err = said('train', '--source', f'market1501:{tmp_path}/town', '--out', tmp_path/'run', *SHORT)
    assert code == 2 and 'a name is not in UTF-8' in err and '\\udcff' in err, err
