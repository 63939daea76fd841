"The command line: help, settings, mistakes, what a run remembers, and what is never written over."
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from clip_dfgs.cli.parser import COMMANDS, _settings, config_of, parser_of, read
from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.training.config import RECIPES
from command import done, said
from trees import make_tree

SHORT = '--steps 2 --adapt-steps 2 --prompt-steps 2 --batch 16 --precision no'.split()
ONE = '--steps 1 --adapt-steps 0 --prompt-steps 0 --batch 16 --precision no'.split()


def settings(*words):
    "The config that `train` makes of these words."
    words = [*words, '--out', 'x']
    parser, base = parser_of('train', words)
    named = {w[2:].partition('=')[0].replace('-', '_') for w in words if w.startswith('--')}
    return config_of(read(parser, words), base, named)


@pytest.fixture(scope='module')
def plain(world, tmp_path_factory):
    "The images of a Market layout as `folder` has them: a folder for each identity, in folders for each split."
    out = tmp_path_factory.mktemp('plain')/'set'
    for part, name in (('bounding_box_train', 'train'), ('query', 'query'), ('bounding_box_test', 'gallery')):
        for file in sorted((world/part).glob('*.jpg')):
            place = out/name/file.name[:4]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place/file.name)
    return out


@pytest.fixture(scope='module')
def informed(plain, tmp_path_factory):
    "A run that was told where the cameras are, what it printed, and its notes."
    out, data = tmp_path_factory.mktemp('informed')/'run', f'folder:{plain}'
    return out, *done('train', '--source', data, '--target', data, '--camera', r'_c(\d)', '--out', out, *ONE)


# ---- help

def test_help_of_every_command():
    overview = done('--help')[0]
    assert len(overview.splitlines()) <= 26 and max(map(len, overview.splitlines())) <= 80
    assert done()[0] == done('-h')[0] == overview and done('--version')[0].startswith('clip-dfgs ')
    for name, (_, f, example) in COMMANDS.items():
        shown = done(name, '--help')[0]
        assert name in overview and shown.rstrip().endswith(f'clip-dfgs {name} {example}') and '%%' not in shown
        read(parser_of(name)[0], shlex.split(example))
        for p in inspect.signature(f).parameters.values():
            if p.name not in ('options', 'config'): assert re.search(rf'(--|^  ){p.name}\b', shown.replace('-', '_')
                                                                     .replace('__', '--').lower(), re.M), p.name


def test_help_mistakes_of_typing_and_check_data_need_no_torch(world):
    "All in one Python, so that whatever one of them imports is found; in less CPU time than a second each."
    lines = [['--help'], ['--completion', 'bash'], ['tran'], ['train', '--sorce', 'x']]
    lines += [[name, '--help'] for name in COMMANDS]
    code = f"""import sys, time
from clip_dfgs.cli import main
for words in {lines}:
    begin = time.process_time()
    try: main(words)
    except SystemExit: pass
    assert time.process_time() - begin < 1, words
heavy = {{'torch', 'open_clip', 'timm', 'pandas', 'matplotlib', 'PIL'}} & set(sys.modules)
assert not heavy, heavy
main(['check-data', 'market1501', sys.argv[1], '--decode'])
heavy = {{'torch', 'open_clip', 'timm', 'matplotlib'}} & set(sys.modules)
assert not heavy, heavy"""
    subprocess.run([sys.executable, '-c', code, str(world)], check=True, capture_output=True)


def completed(script, *words):
    "What bash offers for the last of these words, an empty one for the next."
    at = f'COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}'
    ask = f'{at}\n_shtab_clip_dfgs clip-dfgs "${{COMP_WORDS[COMP_CWORD]}}"\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    r = subprocess.run(['bash', '-c', f'{script}\n{ask}'], capture_output=True, text=True)
    assert not r.stderr
    return r.stdout.split()


def test_completion(tmp_path, monkeypatch):
    script = done('--completion', 'bash')[0]
    assert done('--completion')[0] == script and set(COMMANDS) <= set(completed(script, 'clip-dfgs', ''))
    assert {'--include-test', '--finetune.lr'} <= set(completed(script, 'clip-dfgs', 'train', '--'))
    monkeypatch.chdir(tmp_path)
    (tmp_path/'crops').mkdir()
    assert completed(script, 'clip-dfgs', 'train', '--out', 'cr') == ['crops']
    for shell, mark in (('zsh', '#compdef clip-dfgs'), ('fish', 'complete -c clip-dfgs')):
        assert mark in done('--completion', shell)[0]


# ---- settings

@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_without_options_is_the_recipe(name): assert settings('--recipe', name) == RECIPES[name]


def test_every_field_is_an_option(tmp_path):
    "Each field, also of stages that the recipe leaves out, with dashes or underscores, and from a file."
    other = {bool: 'true', int: '7', float: '0.75', tuple: '[3,2]', str: 'word'}
    parser, base = parser_of('train', ['--recipe', 'clip_dfgs'])
    names = [name for name, *_ in _settings(base)]
    assert len(names) > 100 and {'image_size', 'log_steps', 'adapt.head_lr', 'augment.strength'} <= set(names)
    words = [w for name, kind, *_ in _settings(base) for w in (f'--{name}', other[get_args(kind)[0]])]
    for spelled in (words, [w.replace('_', '-') for w in words]):
        given = read(parser, [*spelled, '--out', 'x'])
        for name, kind, *_ in _settings(base):
            value = given
            for part in name.split('.'): value = value[part]
            kind = get_args(kind)[0]
            assert value == {bool: True, int: 7, float: .75, tuple: (3, 2), str: 'word'}[kind], name
    got = settings(*'--image-size [64,32] --finetune.lr 1e-4 --adapt.margin null --pk-ratio adaptive'.split())
    small = RECIPES['small']
    assert got == replace(small, image_size=(64, 32), pk_ratio='adaptive', adapt=replace(small.adapt, margin=None))
    file = tmp_path/'some.json'
    file.write_text('{"finetune": {"lr": 3e-5, "steps": 9}, "adapt": null, "sampler": "gs"}')
    want = replace(small, adapt=None, sampler='pk', finetune=replace(small.finetune, lr=3e-5, steps=8))
    assert settings('--config', str(file), '--sampler', 'pk', '--finetune.steps', '8') == want


def test_short_names():
    small = RECIPES['small']
    got = settings(*'--adapt-steps 0 --prompt-steps 7 --steps 9 --batch 32 --lr 0'.split())
    finetune = replace(small.finetune, steps=9, batch=32, lr=0.)
    assert got == replace(small, adapt=None, prompts=replace(small.prompts, steps=7), finetune=finetune)
    assert settings('--recipe', 'clip_dfgs', '--prompt-steps', '0').prompts is None
    assert settings('--recipe', 'clip_dfgs', '--clip', 'pedestrians').pretrained == 'pedestrians'
    assert settings('--clip', 'timm:resnet18', '--pretrained', 'true').pretrained is True


def test_a_config_runs_again(informed, tmp_path):
    "RUN/config.json brings settings, data sets and cameras of the run, and ends in the same weights."
    run, text, _ = informed
    again, _ = done('train', '--config', run/'config.json', '--out', tmp_path/'again')
    assert again.splitlines()[:-1] == text.splitlines()[:-1]
    for name in ('config.json', 'sources.json', 'model/model.safetensors'):
        assert (run/name).read_bytes() == (tmp_path/'again'/name).read_bytes()


# ---- examples

@pytest.mark.slow # the chapters on the command line run most of them
def test_examples_run_one_after_the_other(tmp_path, monkeypatch):
    "As they stand in the help, only shorter."
    monkeypatch.chdir(tmp_path)
    make_tree('market1501', tmp_path/'data')
    no = ['--precision', 'no']
    shorter = dict(render=['--identities', '16', '--cameras', '2'], train=[*ONE, '--seed', '1'], test=no,
                   compare=[*no, '--bootstrap', '20'], matrix=ONE)
    for name in ('render', 'check-data', 'train', 'test', 'compare', 'matrix', 'embed', 'search', 'export'):
        if name == 'compare': shutil.copytree('runs/first', 'runs/second')
        assert done(name, *shlex.split(COMMANDS[name][2]), *shorter.get(name, []))[0], name
    assert Path('runs/first/results.csv').exists() and Path('runs/all/matrix.png').exists()
    assert Path('features.onnx').exists()
    lines = done('test', 'pedestrians', '--target', 'market1501:town', *no, '--bootstrap', '20')[0].splitlines()
    assert max(map(len, lines[:4])) <= 80 and re.match(r'  market1501: mAP [0-9.]+ to [0-9.]+, R1 ', lines[5])


MANY = [pytest.param(name, marks=pytest.mark.slow) for name in ('viper', 'grid', 'ilids', 'msmt17', 'cuhk03')]


@pytest.mark.parametrize('name', ['prid', 'folder', 'csv', *MANY])
def test_what_check_data_calls_usable_can_be_a_target(name, world, plain, tmp_path):
    "Data sets with published splits give mean and deviation over the ten, or one by --split."
    if name in ('folder', 'csv'): place = plain
    else: place = make_tree(name, tmp_path)
    if name == 'csv':
        place = tmp_path/'table.csv'
        load_dataset('market1501', world).to_csv(place, index=False)
    camera = ['--camera', r'_c(\d)'] if name == 'folder' else []
    done('check-data', name, place, *camera)
    lines = done('test', 'pedestrians', '--target', f'{name}:{place}', '--precision', 'no', *camera)[0].splitlines()
    assert len(lines) == 4 and lines[0].endswith('mAP std  R1 std') == (name in SPLITS)
    if name == 'prid':                                                                # one line, one table, not ten
        intervals = done('test', 'pedestrians', '--target', f'prid:{place}', '--bootstrap', '20')[0].splitlines()[4:]
        assert len(intervals) == 2 and intervals[1].startswith('  prid: mAP ')
        table = done('compare', 'pedestrians', 'pedestrians', '--target', f'prid:{place}', '--bootstrap', '20')[0]
        assert table.splitlines()[0] == 'prid' and len(table.splitlines()) == 7
    one = said('test', 'pedestrians', '--target', f'{name}:{place}', '--precision', 'no', '--split', '3', *camera)
    assert one[0] == (0 if name in SPLITS else 2) and ('one fixed test' in one[2]) == (name not in SPLITS)


SPLITS = ('viper', 'prid', 'grid', 'ilids')


# ---- mistakes

TRAIN = 'train --source market1501:WORLD --out RUN --batch 16'
MISTAKES = [line.split(' | ') for line in f"""
train --source --out RUN | --source is missing
train --out RUN | --source is missing
train --source market1502:WORLD --out RUN | market1501
train --source market1501:WORLD | required: --out
--helpp | did you mean '--help'
{TRAIN} --finetune.lrr 1 | no option --finetune.lrr; did you mean '--finetune.lr'
{TRAIN} --steps many | --steps many
{TRAIN} --image-size 64 | --image-size 64
{TRAIN} --config EMPTY/none.json | none.json
{TRAIN} --config EMPTY/bad.json | unknown key 'lr'
{TRAIN} --config EMPTY/text.json | text.json
{TRAIN} --sampler dfg | dfgs
{TRAIN} --pk-ratio 1.5 | between 0 and 1, or 'adaptive'
{TRAIN} --curriculum [3,2] --sampler gs | --curriculum would change nothing
{TRAIN} --steps 0 --adapt-steps 0 --prompt-steps 0 | every stage is left out
{TRAIN} --finetune.norm frosen | did you mean 'frozen'
{TRAIN} --hold-out 1.5 | between 0 and 1
{TRAIN} --validate-steps 5 | validate_steps needs validate
{TRAIN} --clip ViT-B-32 --pretrained pedestrians | cannot have the weights
{TRAIN} --camera _c(.) | camera would change nothing: market1501:WORLD is not
{TRAIN} --domain a b | --domain gives 2 names for 1 data sets
{TRAIN} --target market1501:OTHERS | no query has a match left
render WORLD | not empty
check-data market1501 WORLD --sheet RUN.xyz | name it run.png
test EMPTY --target market1501:WORLD | EMPTY
test EMPTY --target | --target
test EMPTY --target market1501:WORLD --bootstrap -1 | --bootstrap=-1
compare EMPTY EMPTY --target market1501:WORLD --bootstrap 0 | --bootstrap=0
study --source market1501:WORLD --target market1501:WORLD --out RUN --seeds a | --seeds a
study --source market1501:WORLD --target market1501:WORLD --out RUN --variants samplr=pk | did you mean 'sampler'
protocol p4 --data EMPTY --out RUN | unknown protocol 'p4'
protocol p1 --data EMPTY --out RUN --domain x | leave it out
report EMPTY | no run found
report EMPTY EMPTY EMPTY | takes one run or two, not 3
embed EMPTY --model pedestrians --out RUN | EMPTY: no
embed WORLD/query --model pedestrians --out RUN --detected | would change nothing
embed WORLD/query --model pedestrians --out RUN --frame-step 5 | --frame-step would change nothing
check-data market1501 WORLD --visibility 0.5 | visibility would change nothing
search EMPTY WORLD/x.jpg | is no gallery
search RUN --text red | is not there; clip-dfgs embed makes one
search EMPTY --text red --sheet RUN.jpg | name it run.png
demo --out WORLD --overwrite | not of a demo
train --source csv:EMPTY/no.csv --out RUN --batch 16 | no camera is known; give --camera EXPRESSION
test pedestrians --target csv:EMPTY/no.csv | no camera is known
""".strip().split('\n')]


@pytest.mark.parametrize('line, words', MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes_on_the_command_line(world, tmp_path, line, words):
    names = dict(WORLD=world, RUN=tmp_path/'run', EMPTY=tmp_path/'empty', OTHERS=tmp_path/'others')
    names['EMPTY'].mkdir()
    if 'no.csv' in line:
        (tmp_path/'empty'/'no.csv').write_text(f'path,pid,split\n{next((world/"query").iterdir())},1,query\n')
    if 'json' in line:
        (tmp_path/'empty'/'bad.json').write_text('{"lr": 1}')
        (tmp_path/'empty'/'text.json').write_text('lr: 1')
    if 'OTHERS' in line:
        shutil.copytree(world, names['OTHERS'])
        for file in (names['OTHERS']/'query').iterdir(): file.rename(file.with_name('9' + file.name[1:]))

    def put(text): return re.sub('|'.join(names), lambda found: str(names[found[0]]), text)

    before = sorted(world.rglob('*'))
    code, _, err = said(*map(put, line.split()))
    assert code == 2 and put(words) in err and len(err.strip().splitlines()) == 1, err
    assert not names['RUN'].exists() and sorted(world.rglob('*')) == before


def test_an_interruption_prints_the_line_that_goes_on(monkeypatch):
    def stop(*args, **more): raise KeyboardInterrupt
    monkeypatch.setattr(sys.modules['clip_dfgs.cli.parser'], 'run', stop)
    for words, more in (('train --out a --overwrite', '; go on with: clip-dfgs train --out a --resume'),
                        ("embed 'a b' --out g", "; go on with: clip-dfgs embed 'a b' --out g"), ('test a', '')):
        assert said(*shlex.split(words)) == (130, '', f'clip-dfgs: interrupted{more}\n')


def test_a_truncated_image_and_a_name_that_is_no_text(world, tmp_path):
    shutil.copytree(world, tmp_path/'bad')
    files = sorted((tmp_path/'bad'/'bounding_box_train').iterdir())
    files[3].write_bytes(files[3].read_bytes()[:200])
    code, _, err = said('train', '--source', f'market1501:{tmp_path}/bad', '--out', tmp_path/'run', *ONE)
    assert code == 2 and files[3].name in err and err.strip().count('\n') == 0 and not (tmp_path/'run').exists()
    files[4].rename(str(files[4].with_suffix('')) + '\udcff.jpg')
    code, _, err = said('train', '--source', f'market1501:{tmp_path}/bad', '--out', tmp_path/'run', *ONE)
    assert code == 2 and 'a name is not in UTF-8' in err and '\\udcff' in err, err


def test_held_out_identities(world, tmp_path):
    "A quarter of the identities is evaluated on the way and not trained on."
    done('train', '--source', f'market1501:{world}', *ONE, *'--steps 2 --hold-out .25 --validate-steps 1'.split(),
         '--select', 'best', '--out', tmp_path/'run')
    rows, kept, found = (pd.read_csv(tmp_path/'run'/f'{name}.csv') for name in ('records', 'validate', 'validation'))
    assert rows['pid'].nunique() == 9 and kept['pid'].nunique() == 3 and not set(kept['pid']) & set(rows['pid'])
    assert found['step'].tolist() == [1, 2] and found['mAP'].between(0, 1).all()


# ---- how the data are read, and what a run remembers of it

def test_train_and_test_agree(informed, plain, tmp_path):
    "The saved model is the one that was tested, on the same cameras; others are taken only when asked for."
    out, trained, _ = informed
    line = ['test', out, '--target', f'folder:{plain}', '--precision', 'no']
    again, notes = done(*line)
    assert again.splitlines() == trained.splitlines()[:len(again.splitlines())]
    assert notes == [rf'camera is _c(\d), as {out} was trained; --camera changes it']
    assert done(*line, '--camera', r'_c(\d)') == (again, [])
    text, notes = done(*line, '--camera', '')
    assert text.splitlines()[2] not in trained and not [n for n in notes if 'was trained;' in n]
    shutil.copytree(out, tmp_path/'other')
    kept = json.loads((out/'sources.json').read_text())
    assert kept['source'] == [f'folder:{plain}'] and kept['options']['camera'] == r'_c(\d)'
    kept['options']['camera'] = r'_(c\d)'
    (tmp_path/'other'/'sources.json').write_text(json.dumps(kept))
    line = ['compare', out, tmp_path/'other', '--target', f'folder:{plain}', '--precision', 'no', '--bootstrap', '5']
    code, _, err = said(*line)
    assert code == 2 and 'different --camera' in err and err.count('\n') == 1
    done(*line, '--camera', r'_c(\d)')
    shutil.rmtree(tmp_path/'other'/'model')
    code, _, err = said('test', tmp_path/'other', '--target', f'folder:{plain}')
    assert code == 2 and 'has no model yet' in err


def test_a_table_keeps_its_domains(world, informed, tmp_path):
    "Identity 1 of one site is not identity 1 of the other."
    sites = [load_dataset('market1501', world, domain=d) for d in ('north', 'south')]
    copies = [shutil.copy(p, tmp_path/f'south_{i}.jpg') for i, p in enumerate(sites[1]['path'])]
    sites[1] = sites[1].assign(path=list(map(str, copies)))
    pd.concat(sites).to_csv(tmp_path/'sites.csv', index=False)
    line = ['test', informed[0], '--precision', 'no', '--target', f'csv:{tmp_path/"sites.csv"}']
    assert [row.split()[0] for row in done(*line)[0].splitlines()[2:]] == ['north', 'south', 'mean']
    for more, words in ((['--camera', '(.)'], 'has a column camid'), (['--domain', 'site'], 'leave the name'),
                        (['--target', line[-1]], "two tables are of the domain 'north'")):
        code, _, err = said(*line, *more)
        assert code == 2 and words in err
    text, _ = done('test', informed[0], '--target', f'market1501:{world}', '--domain', 'harbor', '--precision', 'no')
    assert text.splitlines()[2].startswith('harbor')


def test_test_images_that_are_trained_on_are_reported(world, informed, tmp_path, monkeypatch):
    "By train, by test from any folder, for copies under other names; and that nothing is known where they are gone."
    shutil.copytree(world, tmp_path/'town')
    monkeypatch.chdir(tmp_path)
    data = ['--source', 'market1501:town', '--target', 'market1501:town', *ONE, '--include-test', '--out', 'run']

    def reported(notes): return [n for n in notes if 'are trained on too' in n]

    assert not reported(informed[2]) and reported(done('train', *data)[1])
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    assert reported(done('test', '../run', '--target', 'market1501:../town', '--precision', 'no')[1])
    shutil.move(tmp_path/'town', tmp_path/'moved')
    notes = done('test', '../run', '--target', 'market1501:../moved', '--precision', 'no')[1]
    assert [n for n in notes if 'are not where they were' in n]


# ---- nothing of the user's is written over

def test_answers_are_not_written_over_queries_and_tables(world, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done('embed', world/'query', '--model', 'pedestrians', '--out', 'stored')
    asked = shutil.copy(sorted((world/'query').glob('*.jpg'))[0], 'asked.png')
    (tmp_path/'table.csv').write_text('path,pid\n')
    (tmp_path/'link.png').symlink_to('asked.png')
    before = (tmp_path/'asked.png').read_bytes()
    for option in (['--sheet', 'asked.png'], ['--sheet', './link.png'], ['--csv', 'table.csv']):
        code, _, err = said('search', 'stored', asked, *option)
        assert code == 2 and 'choose another name' in err and err.count('clip-dfgs:') == 1, err
    code, _, err = said('report', tmp_path, '--out', 'table.csv')
    assert code == 2 and 'name it table.html' in err
    assert (tmp_path/'asked.png').read_bytes() == before and (tmp_path/'table.csv').read_text() == 'path,pid\n'
    for _ in range(2): done('search', 'stored', asked, '--csv', 'found.csv', '--sheet', 'found.png')
    assert (tmp_path/'found.csv').read_text().startswith('query,rank,score')
    shutil.copytree(plain, tmp_path/'set')
    first = sorted((tmp_path/'set'/'train').rglob('*.jpg'))[0]
    mine = first.rename(first.with_suffix('.png'))
    before = mine.read_bytes()
    code, _, err = said('check-data', 'folder', tmp_path/'set', '--sheet', mine)
    assert code == 2 and 'is an image of the data' in err and mine.read_bytes() == before
