"Galleries on the disk: what is embedded again and what not, runs that are really killed, damage, names, and answers."
import json
import os
import re
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
from PIL import Image

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.gallery.gallery import Gallery, find_images, read_table
from clip_dfgs.gallery.store import embed_gallery, one_writer
from command import said
from runs import addresses


def noted(err):
    "The notes among what was printed on stderr; progress bars are not lines of their own."
    return [line.removeprefix('clip-dfgs: note: ') for line in re.split('[\r\n]', err) if 'clip-dfgs: note: ' in line]


def refused(words, *line):
    "A command ends with exit code 2, and one line that has these words."
    code, _, err = said(*line)
    assert code == 2 and words in err and err.count('\n') == 1, err


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


# ---- made, and made again

def test_only_what_is_new_is_embedded(home, extract):
    again = embed(home/'shots', home/'gallery')
    assert (again.new, again.changed, again.removed, again.embedded, again.images) == (0, 0, 0, 0, 6)
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
    assert (again.new, again.changed, again.removed, again.embedded, again.images) == (4, 1, 2, 3, 8)
    gallery = Gallery.load(home/'gallery')
    np.testing.assert_allclose(gallery.features, extract(gallery.records['path']), atol=1e-3)
    assert not [*(home/'gallery'/'parts').iterdir()] and len([*(home/'gallery').glob('features-*')]) == 1


def test_files_that_cannot_be_read_are_counted_and_tried_again(home):
    whole = (home/'shots'/'000_c1.png').read_bytes()
    (home/'shots'/'half.png').write_bytes(whole[:100])
    (home/'shots'/'text.jpg').write_text('hello')
    done = embed(home/'shots', home/'gallery')
    assert done.images == 6 and sorted(Path(p).name for p in done.problems) == ['half.png', 'text.jpg']
    assert read_table(home/'gallery'/'unreadable.csv')['path'].tolist() == [*done.problems]
    paint(home/'shots'/'half.png', 9)
    done = embed(home/'shots', home/'gallery')
    assert done.images == 7 and len(done.problems) == 1


def test_nothing_left_does_not_lose_a_gallery(home):
    before = Gallery.load(home/'gallery').about
    for file in (home/'shots').iterdir(): file.write_bytes(b'not a picture')
    with pytest.raises(ValueError, match='none of 6 images can be read, first: .*000_c1.png'):
        embed(home/'shots', home/'gallery')
    shutil.rmtree(home/'shots')
    with pytest.raises(ValueError, match='is not a folder'): embed(home/'shots', home/'gallery')
    (home/'shots').mkdir()
    with pytest.raises(ValueError, match='no images there'): embed(home/'shots', home/'gallery')
    assert Gallery.load(home/'gallery').about == before


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


def test_what_would_replace_a_gallery_is_an_error(home):
    before = Gallery.load(home/'gallery').about
    with pytest.raises(ValueError, match='is of .*shots'): embed(folder_of(home/'others', 2, 90), home/'gallery')
    with pytest.raises(OSError, match='000_c1.png'): embed(home/'shots', home/'shots'/'000_c1.png') # a file
    assert Gallery.load(home/'gallery').about == before


def test_overwriting_uses_what_is_still_true(home, extract):
    (home/'shots').rename(home/'elsewhere')
    done = embed(home/'elsewhere', home/'gallery', overwrite=True)
    assert done.embedded == 0 and done.images == 6 # the pictures were only moved
    ReIDModel.create('pedestrians', None, seed=4).save(home/'other')
    pictures = find_images([home/'elsewhere'])
    assert embed_gallery(pictures, home/'other', home/'gallery', overwrite=True, progress=False).embedded == 6
    with pytest.raises(ValueError, match='made by another model'): Gallery.load(home/'gallery', 'pedestrians')


def test_one_process_writes(home):
    with one_writer(home/'gallery'), pytest.raises(ValueError, match='is being written by another process'):
        embed(home/'shots', home/'gallery')
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


KILL = ['--model', 'pedestrians', '--batch', '1', '--block', '2', '--camera', r'_c(\d)']


def kill_embed(home):
    "Embed `shots` by the command and kill it after some blocks; how many were kept."
    parts = home/'gallery'/'parts'
    command = [sys.executable, '-m', 'clip_dfgs.cli', 'embed', str(home/'shots'), '--out', str(home/'gallery')]
    killed([*command, *KILL], lambda: len([*parts.glob('*.safetensors')]) > 3, home/'log')
    return len([*parts.glob('*.safetensors')])


def test_a_killed_embed_goes_on(tmp_path, extract):
    folder_of(tmp_path/'shots', 40)
    kept = kill_embed(tmp_path)
    with pytest.raises(ValueError, match='is not finished'): Gallery.load(tmp_path/'gallery')
    (tmp_path/'gallery'/'parts'/'x.safetensors').write_bytes(b'of another program')
    done = embed(tmp_path/'shots', tmp_path/'gallery')
    assert done.images == 40 and done.resumed == 2*kept and done.embedded == 40 - 2*kept
    gallery = Gallery.load(tmp_path/'gallery')
    np.testing.assert_allclose(gallery.features, extract(gallery.records['path']), atol=1e-3)


@pytest.mark.slow
def test_a_killed_update_leaves_the_old_gallery(home):
    before = Gallery.load(home/'gallery').about
    folder_of(home/'shots', 40, 6)
    kept = kill_embed(home)
    assert Gallery.load(home/'gallery').about == before
    done = embed(home/'shots', home/'gallery')
    assert done.images == 46 and done.resumed == 2*kept and done.new == 40


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


def test_damage_is_named_and_can_be_mended(made, home):
    for what, damage in DAMAGE.items():
        shutil.rmtree(home/'gallery')
        shutil.copytree(made/'gallery', home/'gallery')
        damage(home/'gallery')
        with pytest.raises(ValueError, match='is damaged .*--overwrite') as problem: Gallery.load(home/'gallery')
        assert '\n' not in str(problem.value), what
    with pytest.raises(ValueError, match='is damaged'): embed(home/'shots', home/'gallery')
    assert embed(home/'shots', home/'gallery', overwrite=True).images == len(Gallery.load(home/'gallery')) == 6


def test_a_gallery_can_be_moved_and_its_images_can_be_gone(home, extract):
    (home/'gallery').rename(home/'g2')
    gallery, query = Gallery.load(home/'g2', extract), shutil.copy(home/'shots'/'000_c1.png', home/'query.png')
    before = gallery.search(query, 3)
    shutil.rmtree(home/'shots')
    assert before.equals(gallery.search(query, 3))


def test_a_model_that_was_moved_or_trained_on(home):
    model = ReIDModel.create('pedestrians', 'pedestrians')
    model.save(home/'run'/'model')
    assert said('embed', home/'shots', '--model', home/'run', '--out', home/'own')[0] == 0
    search = ['search', home/'own', home/'shots'/'000_c1.png']
    (home/'run').rename(home/'moved')
    refused(str(home/'run'), *search)
    for place in (home/'moved', 'pedestrians'): # the same weights in another place
        code, out, err = said(*search, '--model', place)
        assert code == 0 and '1.0000' in out, err
    model.clip.visual.proj.data.mul_(1.001)
    model.save(home/'moved'/'model')
    refused('made by another model', *search, '--model', home/'moved')


# ---- names

def test_hostile_names(tmp_path):
    "They are embedded and found, and nothing of them reaches the terminal as it is."
    odd = ['a\nb.png', '\x1b[31mred.png', ',".png', '--text.png', '-x.png', '$(touch x).png', '.h.png', 'ü.png',
           '😀.png']
    for i, name in enumerate(odd): paint(tmp_path/'shots'/name, i)
    with open(os.fsencode(tmp_path/'shots') + b'/\xff.png', 'wb') as file:
        file.write((tmp_path/'shots'/'ü.png').read_bytes())
    code, out, err = said('embed', tmp_path/'shots', '--model', 'pedestrians', '--out', tmp_path/'g')
    assert code == 0 and '8 images' in out and '1 names are not in UTF-8' in err, err # one is hidden
    code, out, err = said('search', tmp_path/'g', tmp_path/'shots'/'ü.png', '--top', '20', '--csv', tmp_path/'f.csv',
                          '--sheet', tmp_path/'f.png')
    assert code == 0 and '\x1b' not in out and len(out.splitlines()) == 11, out # a head, the question, answers
    code, out, err = said('search', tmp_path/'g', '--text', 'a\x1b[31m man', '--sheet', tmp_path/'f.png')
    assert code == 0 and '\x1b' not in out + err
    code, out, err = said('features', tmp_path/'g', '--to', tmp_path/'f.parquet')
    assert code == 0 and out.endswith('8 images, vectors of 320 numbers\n'), err
    gallery, table = Gallery.load(tmp_path/'g'), pd.read_parquet(tmp_path/'f.parquet')
    assert list(table) == ['path', 'identity', 'camera', 'domain', 'digest', 'vector']
    assert table['path'].tolist() == gallery.records['path'].tolist()
    assert table['digest'].tolist() == gallery.digests and table['identity'].isna().all()
    assert (np.stack(table['vector']) == gallery.features).all()
    refused('name it f.parquet', 'features', tmp_path/'g', '--to', tmp_path/'f.csv')


# ---- searching

def test_cameras_and_domains(home):
    code, out, err = said('search', home/'gallery', home/'shots'/'000_c1.png', '--camera', '2', '--csv', home/'f.csv')
    table = pd.read_csv(home/'f.csv', dtype=str)
    assert code == 0 and table['camera'].tolist() == ['2']*3
    assert list(table) == 'query rank score path camera domain'.split()
    refused("did you mean 'shots'", 'search', home/'gallery', home/'shots'/'000_c1.png', '--domain', 'shot')
    refused('query text is empty', 'search', home/'gallery', '--text', '')
    embed_gallery(find_images([home/'shots']), 'pedestrians', home/'plain', progress=False)
    refused('it has none', 'search', home/'plain', '--text', 'a man', '--camera', '1')


def test_a_sentence_is_asked_as_it_stands(made, extract):
    code, out, err = said('search', made/'gallery', '--text', 'a tall woman in red')
    assert code == 0 and noted(err) == ["'a tall woman in red': not understood: tall"]
    query = extract.text(['a tall woman in red'])[0].numpy().astype(float)
    part = np.asarray(Gallery.load(made/'gallery').features[:, -128:], float)
    best = ((part @ query)/np.linalg.norm(part, axis=1)/np.linalg.norm(query)).max()
    assert f'{best:.4f}' in out.splitlines()[2]
    assert 'not understood: xylophone' in said('search', made/'gallery', '--text', 'a xylophone')[2]
    assert not noted(said('search', made/'gallery', '--text', 'a lady in gray pants, red rucksack')[2])


def test_a_query_that_cannot_be_read(made, tmp_path):
    (tmp_path/'x.jpg').write_bytes(b'\xff\xd8\xff nothing')
    for query in (tmp_path/'x.jpg', tmp_path/'absent.jpg', tmp_path):
        refused(query.name, 'search', made/'gallery', query)


def test_a_model_without_text(home):
    ReIDModel.create('timm:resnet18', None, image_size=(64, 32)).save(home/'tower')
    assert said('embed', home/'shots', '--model', home/'tower', '--out', home/'g')[0] == 0
    assert said('search', home/'g', home/'shots'/'000_c1.png')[0] == 0
    refused('has no text', 'search', home/'g', '--text', 'a man')


def test_data_sets_know_their_cameras(world, tmp_path):
    code, out, err = said('embed', f'market1501:{world}', '--model', 'pedestrians', '--out', tmp_path/'g')
    assert code == 0, err
    records = Gallery.load(tmp_path/'g').records
    assert set(records['camera']) == {'c1', 'c2', 'c3'} and set(records['domain']) == {'market1501'}
    assert set(records['split']) == {'train', 'query', 'gallery'} and records['pid'].nunique() == 24
    for words, line in ((('--detected',), 'would change nothing'), (('--domain', 'a', 'b'), '2 names of domains for 1'),
                        (('--dtype', 'float8'), 'unknown dtype')):
        refused(line, 'embed', world, '--model', 'pedestrians', '--out', tmp_path/'i', *words)
        assert not (tmp_path/'i').exists()


@pytest.mark.parametrize('change, name', [
    (dict(k=0), 'k='), (dict(k='3'), 'k='), (dict(text=['a', 3]), '3'), (dict(images={'a.jpg', 'b.jpg'}), 'set'),
    (dict(camera='9'), "'9'"), (dict(domain=['shot']), 'shots')])
def test_queries_that_are_none(made, extract, change, name):
    gallery = Gallery.load(made/'gallery', extract)
    with pytest.raises(ValueError, match=name): gallery.search(**dict(images=gallery.records['path'][0]) | change)


def test_one_table_for_images_rows_and_text(made, extract):
    "Each query as if it were asked alone; the small CLIP's sentences compare the projected columns."
    gallery = Gallery.load(made/'gallery', extract)
    path = gallery.records['path'][3]
    found = gallery.search([path], 2, text=['a man', 'a red coat'], rows=[1])
    assert found['query'].tolist() == [path]*2 + [gallery.records['path'][1]]*2 + ['a man']*2 + ['a red coat']*2
    alone = [gallery.search(path, 2), gallery.search(rows=1, k=2), gallery.search(text=['a man', 'a red coat'], k=2)]
    assert found.equals(pd.concat(alone, ignore_index=True)) and found['row'].tolist()[:3] == [3, found['row'][1], 1]


def test_identity_and_camera_are_answered_and_asked_as_written(made, extract):
    files = sorted(map(str, (made/'shots').iterdir()))
    records = pd.DataFrame(dict(path=files, identity=[f'P{i:04d}' for i in range(6)], domain='site',
                                camera=['entrance north 2', 'c1']*3))
    gallery = Gallery.from_records(records, extract)
    found = gallery.search(files[0], camera='entrance north 2')
    assert set(found['camera']) == {'entrance north 2'} and found['identity'][0] == 'P0000' and len(found) == 3
    with pytest.raises(ValueError, match="no camera '1'.*it has c1, entrance north 2"): gallery.search(rows=0, camera=1)


def test_what_was_saved_is_searched_and_updated_by_the_commands(made, extract, tmp_path):
    gallery = Gallery.from_folder(made/'shots', extract, camera=r'_c(\d)')
    gallery.save(tmp_path/'kept')
    assert Gallery.load(tmp_path/'kept').about['dtype'] == 'float32'
    query = sorted((made/'shots').iterdir())[2]
    with pytest.raises(ValueError, match='where its model lies'): Gallery.load(tmp_path/'kept').search(query)
    code, out, err = said('search', tmp_path/'kept', query, '--model', 'pedestrians')
    assert code == 0 and '1.0000' in out, err
    assert embed(made/'shots', tmp_path/'kept', dtype='float32').embedded == 0


def test_an_open_page_of_a_gallery_survives_an_update(home, extract):
    "The old features stay readable while the folder holds the new ones."
    old = Gallery.load(home/'gallery', extract)
    before = old.search(rows=2)
    folder_of(home/'shots', 3, 60)
    embed(home/'shots', home/'gallery')
    assert old.search(rows=2).equals(before) and len(Gallery.load(home/'gallery')) == 9


def test_sources_that_are_none(tmp_path):
    paint(tmp_path/'a'/'x.png', 0)
    assert len(find_images(str(tmp_path/'a'))) == 1 # not letter by letter, beginning with the root of the disk
    for camera, words in (('c1', 'needs a group'), ('(', 'no regular expression')):
        with pytest.raises(ValueError, match=words): find_images([tmp_path/'a'], camera=camera)


def embedded_by(envs, shots, out):
    "Exit code, output and errors of `embed` in each of several processes that work together."
    line = [sys.executable, '-m', 'clip_dfgs.cli', 'embed', shots, '--model', 'pedestrians', '--out', out,
            '--camera', r'_c(\d)', '--batch', '4', '--block', '10']
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = [subprocess.Popen(line, env=os.environ | env | dict(OMP_NUM_THREADS='1'), **pipe) for env in envs]
    said = [p.communicate(timeout=300) for p in begun]
    return [(p.returncode, *words) for p, words in zip(begun, said)]


def test_two_processes_make_the_gallery_of_one(tmp_path):
    "To the bit; a damaged image is said once."
    shots = folder_of(tmp_path/'shots', 25)
    (shots/'broken_c1.png').write_bytes((shots/'000_c1.png').read_bytes()[:100])
    (_, alone, _), = embedded_by([{}], shots, tmp_path/'one')
    (code, first, err), (other, second, _) = embedded_by(addresses(), shots, tmp_path/'two')
    assert (code, other) == (0, 0) and second == '' and first == alone.replace('/one:', '/two:')
    assert '25 embedded, 1 unreadable' in first and len([n for n in noted(err) if 'broken_c1.png' in n]) == 1
    one, two = (Gallery.load(tmp_path/name) for name in ('one', 'two'))
    assert one.records.equals(two.records) and one.features.tobytes() == two.features.tobytes()
    assert (tmp_path/'one'/'unreadable.csv').read_bytes() == (tmp_path/'two'/'unreadable.csv').read_bytes()
