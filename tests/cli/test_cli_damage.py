"Damaged arguments, tables, folders and saved models at every command: exit code 0, or 2 with one line, no traceback."
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.synthetic.domain import render_domain
from command import said

SHORT = '--steps 1 --adapt-steps 0 --prompt-steps 0 --batch 8 --precision no'.split()


def some(quick, *slow): return [*quick, *(pytest.param(value, marks=pytest.mark.slow) for value in slow)]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a small world, its table, a run on it, and things that are not what they should be."
    place = tmp_path_factory.mktemp('damage')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(place)
        m.setenv('CLIP_DFGS_CACHE', str(place/'cache'))
        render_domain('world', seed=400, identities=16, cameras=2, workers=1, progress=False)
        load_dataset('market1501', 'world', domain='w').to_csv('good.csv', index=False)
        data = 'market1501:world'
        assert said('train', '--source', data, '--target', data, '--out', 'run', *SHORT)[0] == 0
        assert said('embed', 'world/query', '--model', 'run', '--out', 'stored')[0] == 0
        (place/'empty').mkdir()
        (place/'file').write_text('text')
        (place/'binary').write_bytes(bytes(range(256))*20)
        yield place


def check(*words):
    "Run a command; its ending has to be orderly."
    shutil.rmtree('new', ignore_errors=True)
    code, _, err = said(*words)
    lines = [line for line in re.split('[\r\n]', err) if line.startswith('clip-dfgs: ')]
    mistakes = [line for line in lines if not line.startswith('clip-dfgs: note: ')]
    assert (code, len(mistakes)) in ((0, 0), (2, 1)), (words, code, err)
    assert 'Traceback' not in err and '.py:' not in err, (words, err)
    return code, ''.join(mistakes)


# ---- arguments

COMMANDS = [line.split() for line in """
render new --identities 4 --cameras 2 --seed 1 --images-per-camera 1 --look-alikes 2 --test-share .5
check-data market1501 world --sheet new/sheet.png --domain d
check-data folder world --camera _c(.)
check-data csv good.csv --distractors false
train --source market1501:world --target market1501:world --out new --domain a b --graph image --k 2 --skip-nearest 0
train --source market1501:world --out new --recipe small --seed 1 --workers 0 --finetune.lr .001 --cache off
train --source market1501:world --out new --image-size [64,32] --config run/config.json
train --source market1501:world --out new --clip pedestrians --pretrained none --init run/model --checkpoint-steps 1
train --source market1501:world --out run --resume
test run --target market1501:world --precision no --bootstrap 2 --exclude walk
compare run run --target market1501:world --precision no --bootstrap 2
protocol p1 --data empty --out new --recipe small --sampler pk --clip pedestrians --precision no --quick 1 --dry-run
matrix --source market1501:world --target market1501:world --out new --quick 1 --recipe small --cache off
study --source market1501:world --target market1501:world --out new --quick 1 --seeds 0 --variants pk dfgs --every 0
report empty
embed world/query market1501:world --model pedestrians --out new --domain a b --camera _c(.) --dtype float32 --block 9
embed world/query --model run --out stored --batch 4
search stored world/query/x.jpg --text red --top 3 --camera 1 --domain query --sheet new.png --csv new.csv --exact
search stored --text red blue --model run
export run --to new/f.onnx --precision int8 --tolerance .1
demo --out file --seed 1 --identities 4 --steps 1
""".strip().split('\n')]
BAD = ['', ' ', 'x'*3000, '-1', '0', '1e400', 'nan', '-inf', 'none', '1'*40, '../..', '/dev/null', '/', '.', 'empty',
       'file', 'binary', 'file/below', 'market1501:file', 'csv:empty', 'mot:binary', 'folder:binary', 'csv:', ':', '(',
       '*', 'é', '\udcff', 'a\nb', '--', '-', '-x', '--help ', 'timm:', 'timm:nothing', 'os:path', '%s', '{}']


# 5 is left out: it asks for a report of all that lies here, which takes a minute and has a test of its own below
@pytest.mark.parametrize('seed', some([1], 0, 2, 3, 4, 6))
def test_damaged_arguments(place, seed):
    rng = random.Random(seed)
    for line in rng.sample(COMMANDS, 10):
        words = line + (SHORT if line[0] == 'train' and '--resume' in line else [])
        at, how = rng.randrange(1, len(words)), rng.random()
        new = [] if .7 <= how < .85 else [rng.choice(BAD)]
        words = words[:at] + new + words[at + (how < .85):]
        if line[0] == 'train': words += ['--batch', '8', '--steps', '1', '--adapt-steps', '0', '--prompt-steps', '0']
        if line[0] == 'demo': words += ['--steps', '1']
        check(*words)


# ---- tables

CELLS = [('path', 'nowhere.jpg'), ('pid', '9'*30), ('camid', '1.5'), ('split', ''), ('domain', 'a,b')]
MORE = [('path', ''), ('path', '/'), ('pid', ''), ('pid', '-1'), ('pid', 'nan'), ('pid', 'anna'), ('camid', ''),
        ('camid', '9'*30), ('split', 'val'), ('domain', '')]


@pytest.mark.parametrize('cell', some(CELLS, *MORE), ids=str)
def test_damaged_cells(place, cell):
    table = load_dataset('csv', 'good.csv').astype(object)
    table.loc[len(table) - 1, cell[0]] = cell[1]
    table.to_csv('cells.csv', index=False)
    check('check-data', 'csv', 'cells.csv')
    check('test', 'run', '--target', 'csv:cells.csv', '--precision', 'no')


def damaged_tables(good):
    "Name -> bytes of a file that is no good table."
    lines = good.split('\n')
    return dict(
        empty=b'', only_names=lines[0].encode(), no_names='\n'.join(lines[1:]).encode(),
        long_row=(good + 'a,b,c,d,e,f,g,h').encode(), short_row=(good + 'a').encode(), quote=(good + '"abc').encode(),
        utf16=good.encode('utf-16'), latin=good.encode() + 'é,1,0,w,train'.encode('latin1'),
        semicolons=good.replace(',', ';').encode(), nulls=(good + '\0\0,1,1').encode(),
        no_gallery=good.replace('gallery', 'query').encode(), no_query=good.replace('query', 'gallery').encode(),
        no_train='\n'.join(line for line in lines if ',train' not in line).encode(), upper=good.upper().encode())


@pytest.mark.parametrize('name', damaged_tables(''))
def test_damaged_tables(place, name):
    Path('table.csv').write_bytes(damaged_tables(Path('good.csv').read_text())[name])
    check('check-data', 'csv', 'table.csv')
    trains = name in ('short_row', 'quote', 'no_gallery', 'no_query')
    if not trains: assert check('train', '--source', 'csv:table.csv', '--out', 'new', *SHORT)[0] == 2


# ---- folders

DAMAGE = {
    'no queries': lambda first, train: shutil.rmtree(first.parent),
    'broken link': lambda first, train: (first.unlink(), first.symlink_to('/nowhere.jpg')),
    'a folder for an image': lambda first, train: (first.unlink(), first.mkdir()),
    'empty image': lambda first, train: first.write_bytes(b''),
    'text for an image': lambda first, train: train[0].write_text('hello'),
    'a loop': lambda first, train: (first.parent/'loop').symlink_to(first.parent.parent.resolve()),
    'other names': lambda first, train: [f.rename(f.with_name('x' + f.name)) for f in [*first.parent.iterdir()]],
    'identity zero': lambda first, train: first.rename(first.with_name('0000' + first.name[4:])),
    'huge identity': lambda first, train: first.rename(first.with_name('9'*25 + first.name[4:])),
    'in train and query': lambda first, train: first.rename(first.with_name(train[0].name[:4] + first.name[4:])),
    'nothing to train on': lambda first, train: shutil.rmtree(train[0].parent),
    'one identity': lambda first, train: [f.rename(f.with_name(f'0001_c1s1_{i}.jpg')) for i, f in enumerate(train)]}
QUICK = ['empty image', 'text for an image', 'a loop', 'one identity']


@pytest.mark.parametrize('name', some(QUICK, *sorted(DAMAGE.keys() - set(QUICK))))
def test_damaged_folders(place, name):
    shutil.rmtree('broken', ignore_errors=True)
    shutil.copytree('world', 'broken')
    DAMAGE[name](sorted(Path('broken/query').iterdir())[0], sorted(Path('broken/bounding_box_train').iterdir()))
    for kind in ('market1501', 'folder', 'mot'): check('check-data', kind, 'broken', '--decode')
    check('test', 'run', '--target', 'market1501:broken', '--precision', 'no')
    check('train', '--source', 'market1501:broken', '--out', 'new', *SHORT)


# ---- runs and their models

def break_file(file, how):
    "Damage one file in one way."
    if how in ('gone', 'folder'): file.unlink(missing_ok=True)
    if how == 'folder': file.mkdir()
    elif how == 'binary': file.write_bytes(bytes(range(256)))
    elif how == 'cut': file.write_bytes(file.read_bytes()[:file.stat().st_size//2])
    elif how == 'other': file.write_text('[3]' if file.suffix == '.json' else 'a,b\n1,2\n')


FILES = ('model/config.json', 'model/model.safetensors', 'config.json', 'records.csv', 'history.csv', 'sources.json')
FOUR = [('model/config.json', 'other'), ('model/model.safetensors', 'cut'), ('config.json', 'binary'),
        ('sources.json', 'gone')]
REST = sorted({(name, how) for name in FILES for how in ('gone', 'binary', 'cut', 'other', 'folder')} - {*FOUR})


@pytest.fixture
def damaged(place):
    "A copy of the run."
    shutil.rmtree('damaged', ignore_errors=True)
    return Path(shutil.copytree('run', 'damaged'))


@pytest.mark.parametrize('file', some(FOUR, *REST), ids=str)
def test_damaged_files_of_a_run(damaged, file):
    name, how = file
    break_file(damaged/name, how)
    data = ['--precision', 'no', '--target', 'market1501:world']
    code, _ = check('test', 'damaged', *data)
    assert code == 2 or not name.startswith('model/')
    check('compare', 'run', 'damaged', *data, '--bootstrap', '2')
    if name.startswith('model/'):
        check('train', '--source', 'market1501:world', '--out', 'new', *SHORT, '--init', 'damaged/model')
    else: check('train', '--source', 'market1501:world', '--out', 'damaged', *SHORT, '--resume')


@pytest.mark.parametrize('options', [dict(camera='('), dict(camera=3), dict(camera=[]), dict(distractors='x'), 3, None])
def test_damaged_memory_of_a_run(damaged, options):
    (damaged/'sources.json').write_text(json.dumps(dict(options=options)))
    for split, folder in (('query', 'query'), ('gallery', 'bounding_box_test')):
        for file in Path('world', folder).glob('*.jpg'):
            Path('plain', split, file.name[:4]).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, Path('plain', split, file.name[:4]))
    assert check('test', 'damaged', '--precision', 'no', '--target', 'folder:plain')[0] == 2


@pytest.mark.slow
def test_a_report_of_a_damaged_run(damaged):
    break_file(damaged/'history.csv', 'other')
    code, said = check('report', 'damaged')
    assert code == 2 and 'report cannot be made' in said
