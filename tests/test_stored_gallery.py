"Galleries on the disk: what is embedded again and what not, runs that are really killed, damage, names, and the ranks."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from clip_dfgs.inference.extractor import FeatureExtractor
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.gallery.index import build_cells, nearest_in_cells, nearest_rows, open_cells, row_lengths
from clip_dfgs.gallery.search import extractor_of, search_gallery, search_sheet
from clip_dfgs.gallery.store import _alone, _read_table, _write_table, embed_gallery, find_images, open_gallery
from clip_dfgs.gallery.store import shown
from clip_dfgs.synthetic.captions import whole_captions, words_in
from test_cli import noted, said




def paint(path, seed):
    "A small noisy picture."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder_of(root, n=6, begin=0):
    "Pictures of two cameras."
    for i in range(begin, begin + n): paint(root/f'{i:03d}_c{i % 2 + 1}.png', i)
    return root


def embed(root, out, **more):
    "Embed a folder with the small CLIP."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of names without a camera
        pictures = find_images([root], camera=r'_c(\d)')
    return embed_gallery(pictures, 'pedestrians', out, progress=False, **more)


@pytest.fixture(scope='module')
def extract(): return FeatureExtractor(ReIDModel.create('pedestrians', 'pedestrians'), device='cpu')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder of pictures and its gallery, to be looked at only."
    home = tmp_path_factory.mktemp('made')
    embed(folder_of(home/'shots'), home/'gallery')
    return home


@pytest.fixture
def home(made, tmp_path):
    "A copy of both, to be changed."
    shutil.copytree(made/'shots', tmp_path/'shots')
    embed(tmp_path/'shots', tmp_path/'gallery')
    return tmp_path


# ---- the nearest rows

@given(st.integers(0, 2**20), st.integers(1, 60), st.integers(1, 12), st.integers(1, 70), st.booleans())
@settings(max_examples=60, deadline=None)
def test_nearest_rows_are_a_stable_sort(seed, n, k, block, half):
    "Whole numbers of a small range: many equal cosines, which a sort in double precision sees as equal too."
    draw = np.random.default_rng(seed)
    table = draw.integers(-1, 2, (n, 4)).astype(np.float16 if half else np.float32)
    query = draw.integers(-1, 2, (3, 4)).astype(np.float32)
    among = np.flatnonzero(draw.random(n) < .6) if seed % 2 else None
    rows, scores = nearest_rows(query, table, k, among, block)
    kept = np.arange(n) if among is None else among
    def unit(x): return x/max(np.linalg.norm(x), 1e-12)
    asked, rest = query.astype(float), table[kept].astype(float)
    cosines = np.array([[unit(q) @ unit(x) for x in rest] for q in asked]).reshape(3, len(kept))
    for q in range(3):
        order = np.argsort(-cosines[q].round(9), kind='stable')[:k]
        assert rows[q].tolist() == kept[order].tolist()
        np.testing.assert_allclose(scores[q], cosines[q][order], atol=1e-9)


def test_a_number_that_is_none_is_an_error():
    table = np.ones((5, 3), np.float32)
    table[3, 1] = np.nan
    with pytest.raises(ValueError, match='not a number'): nearest_rows(np.ones((1, 3)), table)
    with pytest.raises(ValueError, match='not a number'): nearest_rows(table[3:4], np.ones((5, 3)))


def test_cells_find_most_and_score_exactly(tmp_path):
    pytest.importorskip('faiss')
    draw = np.random.default_rng(1)
    centers = draw.normal(size=(60, 24))
    table = (centers[draw.integers(0, 60, 6000)] + .6*draw.normal(size=(6000, 24))).astype(np.float16)
    facts = build_cells(table, tmp_path/'cells')
    index = open_cells(tmp_path/'cells', table.shape)
    assert facts['recall'] >= .95 and facts['visited'] < facts['cells']
    true, _ = nearest_rows(table[1:300:7], table, 10)
    found, scores = nearest_in_cells(table[1:300:7], table, index, 10)
    assert np.mean([len(set(a) & set(b))/10 for a, b in zip(found, true)]) > .85
    for row, own, q in zip(found, scores, table[1:300:7].astype(float)):
        x = table[row].astype(float)
        np.testing.assert_allclose(own, (x @ q)/np.linalg.norm(x, axis=1)/np.linalg.norm(q), atol=1e-6)
    few = np.arange(0, 6000, 40)
    assert set(nearest_in_cells(table[:5], table, index, 10, few)[0].ravel()) <= {*few, -1}
    with pytest.warns(UserWarning, match='of another table'): assert open_cells(tmp_path/'cells', (7, 24)) is None


# ---- made, and made again

def test_what_is_stored_is_what_the_extractor_says(made, extract):
    gallery = open_gallery(made/'gallery')
    assert gallery.records['path'].tolist() == sorted(map(str, (made/'shots').iterdir()))
    assert gallery.records['camera'].tolist() == ['1', '2']*3 and set(gallery.records['domain']) == {'shots'}
    np.testing.assert_allclose(gallery.features, extract(gallery.records['path']), atol=1e-3)


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_numbers_can_be_chosen(dtype, home, extract):
    embed(home/'shots', home/'own', dtype=dtype)
    features = open_gallery(home/'own').features
    assert str(features.dtype) == dtype
    if dtype == 'float32': np.testing.assert_array_equal(features, extract(sorted((home/'shots').iterdir())))


def test_only_what_is_new_is_embedded(home, extract):
    again = embed(home/'shots', home/'gallery')
    assert (again.new, again.changed, again.removed, again.embedded, again.pictures) == (0, 0, 0, 0, 6)
    files = sorted((home/'shots').iterdir())
    status = files[0].stat()
    paint(files[0], 77) # another picture under the old name, of the same size and date
    data = files[0].read_bytes()
    files[0].write_bytes(data + b'\0'*max(0, status.st_size - len(data)))
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    files[1].unlink()
    files[2].rename(home/'shots'/'moved.png')
    shutil.copy(files[3], home/'shots'/'copy.png')
    folder_of(home/'shots'/'deep', 2, 50)
    again = embed(home/'shots', home/'gallery')
    assert (again.new, again.changed, again.removed, again.embedded, again.pictures) == (4, 1, 2, 3, 8)
    gallery = open_gallery(home/'gallery')
    np.testing.assert_allclose(gallery.features, extract(gallery.records['path']), atol=1e-3)
    assert not [*(home/'gallery'/'parts').iterdir()] and len([*(home/'gallery').glob('features-*')]) == 1


def test_files_that_cannot_be_read_are_counted_and_tried_again(home):
    whole = (home/'shots'/'000_c1.png').read_bytes()
    (home/'shots'/'half.png').write_bytes(whole[:100])
    (home/'shots'/'text.jpg').write_text('hello')
    done = embed(home/'shots', home/'gallery')
    assert done.pictures == 6 and sorted(Path(p).name for p in done.problems) == ['half.png', 'text.jpg']
    assert _read_table(home/'gallery'/'unreadable.csv')['path'].tolist() == [*done.problems]
    paint(home/'shots'/'half.png', 9)
    done = embed(home/'shots', home/'gallery')
    assert done.pictures == 7 and len(done.problems) == 1


def test_nothing_left_does_not_lose_a_gallery(home):
    before = open_gallery(home/'gallery').about
    for file in (home/'shots').iterdir(): file.write_bytes(b'not a picture')
    with pytest.raises(ValueError, match='none of 6 pictures can be read, first: .*000_c1.png'):
        embed(home/'shots', home/'gallery')
    shutil.rmtree(home/'shots')
    with pytest.raises(ValueError, match='is not a folder'): embed(home/'shots', home/'gallery')
    (home/'shots').mkdir()
    with pytest.raises(ValueError, match='no pictures there'): embed(home/'shots', home/'gallery')
    assert open_gallery(home/'gallery').about == before


def test_a_picture_that_changes_while_it_is_read_is_left_out(home, monkeypatch):
    late = paint(home/'shots'/'late.png', 30)
    from clip_dfgs.gallery import store
    real = store._embed

    def meddling(extractor, paths, *more):
        out = real(extractor, paths, *more)
        paint(late, 31)
        return out

    monkeypatch.setattr(store, '_embed', meddling)
    assert embed(home/'shots', home/'gallery').problems == {str(late): 'changed while it was read'}
    monkeypatch.undo()
    assert embed(home/'shots', home/'gallery').embedded == 1


REFUSED = { # what differs, and what is said of it
    'model': (lambda home: embed_gallery(find_images([home/'shots']), home/'other', home/'gallery', progress=False),
              'was made by another model'),
    'numbers': (lambda home: embed(home/'shots', home/'gallery', dtype='float32'), 'holds float16'),
    'source': (lambda home: embed(folder_of(home/'others', 2, 90), home/'gallery'), 'is of .*shots'),
    'not a gallery': (lambda home: embed(home/'shots', home/'shots'), 'not empty and no gallery'),
    'a file': (lambda home: embed(home/'shots', home/'shots'/'000_c1.png'), 'is a file'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_would_replace_a_gallery_is_refused(what, home):
    ReIDModel.create('pedestrians', None, seed=4).save(home/'other')
    before, (call, words) = open_gallery(home/'gallery').about, REFUSED[what]
    with pytest.raises(ValueError, match=words): call(home)
    assert open_gallery(home/'gallery').about == before


def test_overwriting_uses_what_is_still_true(home, extract):
    (home/'shots').rename(home/'elsewhere')
    done = embed(home/'elsewhere', home/'gallery', overwrite=True)
    assert done.embedded == 0 and done.pictures == 6 # the pictures were only moved
    ReIDModel.create('pedestrians', None, seed=4).save(home/'other')
    pictures = find_images([home/'elsewhere'])
    assert embed_gallery(pictures, home/'other', home/'gallery', overwrite=True, progress=False).embedded == 6
    gallery = open_gallery(home/'gallery')
    with pytest.raises(ValueError, match='made by another model'): extractor_of(gallery, 'pedestrians')


def test_one_process_writes(home):
    with _alone(home/'gallery'):
        code = ('import sys; from test_stored_gallery import *; from pathlib import Path\n'
                'embed(Path(sys.argv[1])/"shots", Path(sys.argv[1])/"gallery")')
        r = subprocess.run([sys.executable, '-c', code, home], capture_output=True, text=True,
                           env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert r.returncode and 'is being written by another process' in r.stderr
    embed(home/'shots', home/'gallery')


# ---- killed

def killed(command, ready, out):
    "Start a command, and kill it as soon as `ready()`."
    with open(out, 'w') as file:
        p = subprocess.Popen(command, stdout=file, stderr=file, env=dict(os.environ, OMP_NUM_THREADS='1'))
        until = time.time() + 300
        while not ready():
            assert p.poll() is None and time.time() < until, Path(out).read_text()
            time.sleep(.002)
        p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL


def test_a_killed_embed_goes_on(tmp_path, extract):
    folder_of(tmp_path/'shots', 60)
    words = ['embed', str(tmp_path/'shots'), '--model', 'pedestrians', '--out', str(tmp_path/'gallery')]
    command = [sys.executable, '-m', 'clip_dfgs.cli.main', *words, '--batch', '1', '--block', '2', '--camera', r'_c(\d)']
    parts = tmp_path/'gallery'/'parts'
    def some_blocks(): return len([*parts.glob('*.safetensors')]) > 3
    killed(command, some_blocks, tmp_path/'log')
    with pytest.raises(ValueError, match='is not finished'): open_gallery(tmp_path/'gallery')
    code, _, err = said('search', tmp_path/'gallery', '--text', 'a man')
    assert code == 2 and 'is not finished' in err and err.count('\n') == 1
    kept = len([*parts.glob('*.safetensors')])
    (parts/'x.safetensors').write_bytes(b'of another program')
    done = embed(tmp_path/'shots', tmp_path/'gallery')
    assert done.pictures == 60 and done.resumed == 2*kept and done.embedded == 60 - 2*kept
    gallery = open_gallery(tmp_path/'gallery')
    np.testing.assert_allclose(gallery.features, extract(gallery.records['path']), atol=1e-3)

    folder_of(tmp_path/'shots', 60, 60) # an update that is killed leaves the old gallery as it was
    before = gallery.about
    killed(command, some_blocks, tmp_path/'log')
    assert open_gallery(tmp_path/'gallery').about == before
    done = embed(tmp_path/'shots', tmp_path/'gallery')
    assert done.pictures == 120 and done.resumed >= 8 and done.new == 60


# ---- moved and damaged

DAMAGE = {
    'no features': lambda g: next(g.glob('features-*')).unlink(),
    'cut features': lambda g: os.truncate(next(g.glob('features-*')), 500),
    'empty features': lambda g: os.truncate(next(g.glob('features-*')), 0),
    'other features': lambda g: np.save(next(g.glob('features-*')), np.zeros((6, 5), np.float16)),
    'a pickle': lambda g: np.save(next(g.glob('features-*')), np.array([{}, 1], object), allow_pickle=True),
    'no table': lambda g: next(g.glob('records-*')).unlink(),
    'an edited table': lambda g: next(g.glob('records-*')).write_text('path,camera\n'),
    'an empty gallery.json': lambda g: (g/'gallery.json').write_text(''),
    'a list': lambda g: (g/'gallery.json').write_text('[]'),
    'an entry that lacks': lambda g: (g/'gallery.json').write_text(json.dumps(dict(format=1))),
    'another format': lambda g: (g/'gallery.json').write_text(json.dumps(dict(format=2))),
    'a way out': lambda g: (g/'gallery.json').write_text(json.dumps(json.loads((g/'gallery.json').read_text()) | dict(
        features=f'../{Path(shutil.copy(next(g.glob("features-*")), g.parent/"out.npy")).name}'))),
}


@pytest.mark.parametrize('what', DAMAGE)
def test_damage_is_one_line_and_can_be_mended(what, home):
    DAMAGE[what](home/'gallery')
    code, _, err = said('search', home/'gallery', '--text', 'a man')
    assert code == 2 and 'is damaged' in err and err.count('\n') == 1, err
    words = ['embed', home/'shots', '--model', 'pedestrians', '--out', home/'gallery', '--camera', r'_c(\d)']
    code, _, err = said(*words)
    assert code == 2 and 'embed it with --overwrite' in err
    code, out, err = said(*words, '--overwrite')
    assert code == 0 and '6 pictures' in out, err
    assert len(open_gallery(home/'gallery')) == 6


def test_features_that_are_no_numbers_are_named(home):
    file = next((home/'gallery').glob('features-*'))
    features = np.load(file)
    features[2, -5] = np.nan
    np.save(file, features)
    code, _, err = said('search', home/'gallery', '--text', 'a man')
    assert code == 2 and 'not a number' in err and err.count('\n') == 1


def test_a_gallery_can_be_moved_and_its_pictures_can_be_gone(home, extract):
    (home/'gallery').rename(home/'g2')
    gallery = open_gallery(home/'g2')
    query = home/'query.png'
    shutil.copy(home/'shots'/'000_c1.png', query)
    before = search_gallery(gallery, extract, query, k=3)
    shutil.rmtree(home/'shots')
    after = search_gallery(gallery, extract, query, k=3)
    assert before.equals(after)
    with pytest.warns(UserWarning, match='3 of 3 pictures cannot be read where they were embedded'):
        search_sheet(after, [query])


def test_a_model_that_was_moved_or_trained_on(home):
    model = ReIDModel.create('pedestrians', 'pedestrians')
    model.save(home/'run'/'model')
    words = ['embed', home/'shots', '--model', home/'run', '--out', home/'own']
    assert said(*words)[0] == 0
    query = home/'shots'/'000_c1.png'
    (home/'run').rename(home/'moved')
    code, _, err = said('search', home/'own', query)
    assert code == 2 and 'name it by --model' in err and err.count('\n') == 1
    code, out, err = said('search', home/'own', query, '--model', home/'moved')
    assert code == 0 and '1.0000' in out, err
    assert said('search', home/'own', query, '--model', 'pedestrians')[0] == 0 # the same weights in another place
    model.clip.visual.proj.data.mul_(1.001)
    model.save(home/'moved'/'model')
    code, _, err = said('search', home/'own', query, '--model', home/'moved')
    assert code == 2 and 'made by another model' in err


# ---- names

names = st.text(st.characters(blacklist_characters='/\0', blacklist_categories=('Cs',)), min_size=1, max_size=12)


@given(st.lists(names | names.map(lambda s: s + '\udcff'), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_a_table_keeps_every_name(paths):
    import tempfile
    table = pd.DataFrame(dict(path=paths, camera=['1']*len(paths)), dtype=object)
    with tempfile.TemporaryDirectory() as folder:
        _write_table(table, Path(folder)/'t.csv')
        assert _read_table(Path(folder)/'t.csv').equals(table)
    assert all(shown(path).isprintable() for path in paths)


def test_hostile_names(tmp_path):
    "They are embedded and found, and nothing of them reaches the terminal as it is."
    odd = ['a\nb.png', '\x1b[31mred.png', ',".png', '--text.png', '-x.png', '$(touch x).png', '.h.png', 'ü.png',
           '😀.png']
    for i, name in enumerate(odd): paint(tmp_path/'shots'/name, i)
    with open(os.fsencode(tmp_path/'shots') + b'/\xff.png', 'wb') as file:
        file.write((tmp_path/'shots'/'ü.png').read_bytes())
    code, out, err = said('embed', tmp_path/'shots', '--model', 'pedestrians', '--out', tmp_path/'g')
    assert code == 0 and '9 pictures' in out, err # one is hidden
    code, out, err = said('search', tmp_path/'g', tmp_path/'shots'/'ü.png', '--top', '20', '--csv', tmp_path/'f.csv',
                          '--picture', tmp_path/'f.png')
    assert code == 0 and '\x1b' not in out and len(out.splitlines()) == 12, out # a head, the question, answers
    code, out, err = said('search', tmp_path/'g', '--text', 'a\x1b[31m man', '--picture', tmp_path/'f.png')
    assert code == 0 and '\x1b' not in out + err


# ---- searching

def test_cameras_and_domains(home):
    code, out, err = said('search', home/'gallery', home/'shots'/'000_c1.png', '--camera', '2', '--csv', home/'f.csv')
    table = pd.read_csv(home/'f.csv', dtype=str)
    assert code == 0 and table['camera'].tolist() == ['2']*3
    assert list(table) == 'query rank score path camera domain'.split()
    for words, line in ((('--camera', '3'), "no camera '3' in the gallery"),
                        (('--domain', 'shot'), "did you mean 'shots'"),
                        (('--top', '0'), 'at least one answer'), (('--picture', 'x.jpg'), 'name it x.png'),
                        (('--text', ''), 'a sentence is empty')):
        code, _, err = said('search', home/'gallery', home/'shots'/'000_c1.png', *words)
        assert code == 2 and line in err and err.count('\n') == 1, err
    embed_gallery(find_images([home/'shots']), 'pedestrians', home/'plain', progress=False)
    code, _, err = said('search', home/'plain', '--text', 'a man', '--camera', '1')
    assert code == 2 and 'no camera is known' in err


def test_pictures_are_asked_before_and_after_options(home):
    query = str(home/'shots'/'000_c1.png')
    one = said('search', home/'gallery', query, '--top', '2')
    assert one[0] == 0 and said('search', home/'gallery', '--top', '2', query) == one
    code, out, err = said('search', home/'gallery', '--text', 'a man', query) # it would be a sentence there
    assert (code, out) == (2, '') and 'is a file and not a sentence' in err


def test_a_long_sentence_is_cut_with_a_notice(made):
    code, out, err = said('search', made/'gallery', '--text', 'a man with a hat ' * 40)
    assert code == 0
    code, out, err = said('search', made/'gallery', '--text', 'a man with a hat ' * 40, '--as-is')
    assert code == 0 and any('longer than the 77 tokens' in line for line in noted(err))


def test_the_small_clip_is_asked_with_whole_captions(made, extract):
    code, out, err = said('search', made/'gallery', '--text', 'a tall woman in red')
    assert code == 0 and noted(err) == ["'a tall woman in red' is asked as 64 whole captions; not understood: tall"]
    mean = extract.text(whole_captions('a tall woman in red')).numpy().astype(float).mean(0)
    part = np.asarray(open_gallery(made/'gallery').features[:, -128:], float)
    best = ((part @ mean)/np.linalg.norm(part, axis=1)/np.linalg.norm(mean)).max()
    assert f'{best:.4f}' in out.splitlines()[2]
    code, plain, err = said('search', made/'gallery', '--text', 'a tall woman in red', '--as-is')
    assert code == 0 and not noted(err) and plain != out
    assert 'none of its words is known' in said('search', made/'gallery', '--text', 'xylophone')[2]


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    'red blonde navy striped long coat jeans shoulder bag shoulder-bag cap hair shoes man woman a and tall _ -'.split())
    ).map(' '.join))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read(text):
    look, unknown = words_in(text)
    assert all(isinstance(w, str) for w in [*look.values(), *unknown])
    for line in whole_captions(text, 3): assert all(look[k] in line for k in look if k in ('sex', 'upper', 'lower'))


def test_a_query_that_cannot_be_read(made, tmp_path):
    (tmp_path/'x.jpg').write_bytes(b'\xff\xd8\xff nothing')
    for query in (tmp_path/'x.jpg', tmp_path/'absent.jpg', tmp_path):
        code, _, err = said('search', made/'gallery', query)
        assert code == 2 and query.name in err and err.count('\n') == 1


def test_a_model_without_text(home):
    ReIDModel.create('timm:resnet18', None, image_size=(64, 32)).save(home/'tower')
    assert said('embed', home/'shots', '--model', home/'tower', '--out', home/'g')[0] == 0
    assert said('search', home/'g', home/'shots'/'000_c1.png')[0] == 0
    code, _, err = said('search', home/'g', '--text', 'a man')
    assert code == 2 and 'has no text' in err and err.count('\n') == 1


def test_an_approximate_answer_is_said(home, extract):
    pytest.importorskip('faiss')
    folder_of(home/'shots', 90, 6)
    embed(home/'shots', home/'gallery', cells_from=50)
    query = str(home/'shots'/'000_c1.png')
    code, near, err = said('search', home/'gallery', query, '--top', '3')
    assert code == 0 and [n for n in noted(err) if n.startswith('the answer is approximate')]
    code, exact, err = said('search', home/'gallery', query, '--top', '3', '--exact')
    assert code == 0 and not noted(err) and exact.splitlines()[1] == near.splitlines()[1]
    gallery = open_gallery(home/'gallery')
    (gallery.folder/gallery.about['cells']).write_bytes(b'x')
    code, again, err = said('search', home/'gallery', query, '--top', '3')
    assert code == 0 and again == exact and 'the search is exact instead' in err


def test_data_sets_know_their_cameras(world, tmp_path):
    code, out, err = said('embed', f'market1501:{world}', '--model', 'pedestrians', '--out', tmp_path/'g')
    assert code == 0, err
    records = open_gallery(tmp_path/'g').records
    assert set(records['camera']) == {'0', '1', '2'} and set(records['domain']) == {'market1501'}
    assert set(records['split']) == {'train', 'query', 'gallery'} and records['pid'].nunique() == 24
    code, _, err = said('embed', world, '--model', 'pedestrians', '--out', tmp_path/'h')
    assert code == 0 and [n for n in noted(err) if 'looks like Market-1501' in n]
    for words, line in ((('--detected',), 'would change nothing'), (('--domain', 'a', 'b'), '2 names of domains for 1'),
                        (('--batch', '0'), 'batch is 0'), (('--dtype', 'float8'), 'unknown dtype')):
        code, _, err = said('embed', world, '--model', 'pedestrians', '--out', tmp_path/'i', *words)
        assert code == 2 and line in err and not (tmp_path/'i').exists(), err


@pytest.mark.parametrize('change, words', [
    (dict(k=0), 'k is 0'), (dict(k='3'), "k is '3'"), (dict(k=1.5), 'k is 1.5'),
    (dict(images=(), like=[-1]), 'like has -1'), (dict(images=(), like=[99]), 'like has 99'),
    (dict(images=(), like=[.5]), 'like has 0.5'),
    (dict(images=(), texts=[3]), 'a sentence is text'), (dict(images=(), texts=b'abc'), 'a sentence is text'),
    (dict(images={'a.jpg', 'b.jpg'}), 'a set has no order')])
def test_questions_that_are_none(made, extract, change, words):
    gallery = open_gallery(made/'gallery')
    with pytest.raises(ValueError, match=words):
        search_gallery(gallery, extract, **dict(images=gallery.records['path'][0]) | change)


def test_one_folder_needs_no_list_and_an_empty_table_is_said(tmp_path):
    "A name alone would be read letter by letter, beginning with the root of the disk."
    (tmp_path/'a').mkdir()
    Image.new('RGB', (8, 16)).save(tmp_path/'a'/'x.png')
    found = find_images(str(tmp_path/'a'))
    assert len(found) == len(find_images(tmp_path/'a')) == 1
    for camera, words in (('c1', 'needs a group'), ('(', 'no regular expression')):
        with pytest.raises(ValueError, match=words): find_images([tmp_path/'a'], camera=camera)
    with pytest.raises(ValueError, match='no pictures to embed'):
        embed_gallery(found[:0], 'pedestrians', tmp_path/'g', progress=False)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_lengths_that_are_kept_change_nothing(dtype):
    draw = np.random.default_rng(0)
    table = (draw.normal(size=(3000, 16))[draw.integers(0, 1000, 3000)]*draw.uniform(.1, 9, (3000, 1))).astype(dtype)
    some, lengths = np.flatnonzero(draw.random(3000) < .5), row_lengths(table)
    for among in (None, some):
        for n in (1, 20):
            kept, anew = (nearest_rows(table[:n], table, 12, among, lengths=given) for given in (lengths, None))
            assert (kept[0] == anew[0]).all() and (kept[1] == anew[1]).all()
