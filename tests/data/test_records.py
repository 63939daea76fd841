"Identities and cameras in every layout and however they are written; which images a folder holds; a table's rules."
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_tree, picture

from clip_dfgs.data.datasets import check_dataset, load_dataset, PARSERS
from clip_dfgs.data.leakage import find_leakage
from clip_dfgs.data.records import check_records, encode_cameras, encode_identities, hold_out, parse_identity, pool
from clip_dfgs.utils.checks import as_cameras, as_labels, DatasetError

SPELLINGS = [int, float, str, lambda n: f'{n}.0', lambda n: f' {n} ', np.int64, np.float32,
             lambda n: f'{n:04d}' if n >= 0 else f'-{-n:03d}']


def said_by(f):
    "What a call says in warnings, and what it returns or refuses with."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try: found = f()
        except DatasetError as e: found = e
    return ' | '.join(str(w.message) for w in caught), found


def table_of(folder, text, images=4):
    "What is said and read of a csv beside images 0.jpg, 1.jpg, ..."
    for i in range(images): picture(folder/f'{i}.jpg', i)
    (folder/'t.csv').write_text(text)
    return said_by(lambda: load_dataset('csv', folder/'t.csv'))


def toy(**columns):
    "Two identities of three images, the second in the test."
    table = dict(path=[f'{i}.jpg' for i in range(6)], pid=[1]*3 + [2]*3, camid=[0, 1, 2]*2, domain='toy',
                 split=['train']*3 + ['query'] + ['gallery']*2)
    return pd.DataFrame(table | columns)


# ---- labels

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 9999), min_size=1, max_size=30), st.data())
def test_a_whole_number_is_a_number_however_it_is_written(numbers, data):
    written = [data.draw(st.sampled_from(SPELLINGS))(n) for n in numbers]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert encode_identities(written).tolist() == numbers


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(['anna', 'Bö b', 'NA', 'null', 'x1', 7, '0007', -1, '-1', 0, '0000']), min_size=1))
def test_names_and_numbers_together(written):
    "Junk and distractors keep their meaning; equal identities get equal numbers from 1 on, different ones different."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = encode_identities([*written, 'zoe']).tolist()
    meaning = {-1: -1, '-1': -1, 0: 0, '0000': 0}
    assert all(n == meaning[v] if v in meaning else n >= 1 for v, n in zip(written, found))
    pairs = {('7' if v in (7, '0007') else v, n) for v, n in zip(written, found) if n > 0}
    assert len({v for v, _ in pairs}) == len({n for _, n in pairs}) == len(pairs)


@pytest.mark.parametrize('value', [
    None, float('nan'), pd.NA, pd.NaT, '', '  ', 'nan', 'NaN', '<NA>', 'None', 'unknown', 'Unknown_individual',
    b'unidentified'], ids=repr)
def test_an_unknown_label_is_unknown_everywhere(value):
    "Parsers number it -1, arrays refuse it, cameras are all known or all unknown."
    for distractors in (True, False): assert encode_identities([3, value, 4], 'pid', distractors).tolist() == [3, -1, 4]
    assert encode_cameras([value, value]).tolist() == [0, 0] and as_cameras([value, value], 2) is None
    for read, known in ((encode_cameras, 3), (lambda v: as_cameras(v, 2), 'a'), (as_labels, 1)):
        with pytest.raises(ValueError, match='1 of 2'): read([known, value])


@pytest.mark.parametrize('value', [
    1.5, '1.5', True, np.bool_(False), float('inf'), 10**30, '2.0E+11', '1e+05', '9007199254740993.0', '9'*5000, (1, 2),
    {}, object, b'\xff', 1j, 2.**60], ids=lambda v: repr(v)[:20])
def test_what_is_no_label_is_refused_with_its_row(value):
    for read in (encode_identities, encode_cameras):
        with pytest.raises(DatasetError, match='row 2 is') as said: read(['x', value])
        assert len(str(said.value)) < 200


@pytest.mark.parametrize('written, identities', [
    (['Nan', 'NA'], 2), (['NULL', 'null'], 2), (['Jürgen', 'Ju\u0308rgen'], 1), ([' anna', 'anna '], 1),
    (['Anna', 'anna'], 2), (['7', '007', '7.0'], 1), (['12e5', '0x1f', '1-2', '2/3'], 4)])
def test_which_names_are_one_identity(written, identities):
    assert len(set(encode_identities(written).tolist())) == identities
    assert parse_identity('12e5') == '12e5'


def listed(*pids): return 'path,pid\n' + ''.join(f'{i}.jpg,{pid}\n' for i, pid in enumerate(pids))


SAID = [
    (listed('007', '7', '8'), "'007' and '7' are one"), (listed('car_1', 'car_10', 'car_100'), ''),
    (listed('p7', 'p07'), 'different'), (listed('anna', 'Anna', 'b'), "'anna' and 'Anna' are different"),
    (listed('-2', '1', '2'), 'identity below 0'), (listed('-1', '1', '2'), 'identity below 0'),
    (listed('7', '7.0', ' 7'), ''), (listed('0007', '0008', '10'), ''), (listed('a', 'a '), ''),
    *((f'{head}\n0.jpg,1,3,query\n1.jpg,1,4, gallery \n', '') for head in (
        'path,pid,camid,split', 'Path,PID,CamID,Split', '\ufeffpath, pid,camid ,split\t')),
    *((f'path,pid,{column}\n0.jpg,1,1\n1.jpg,1,2\n', f'if {column} is the {real}, call it {real}')
      for column, real in (('cams', 'camid'), ('subset', 'split'), ('dataset', 'domain')))]


@pytest.mark.parametrize('text, words', SAID)
def test_what_is_a_guess_is_said(tmp_path, text, words):
    found, records = table_of(tmp_path, text)
    assert (words in found if words else not found) and isinstance(records, pd.DataFrame)


# ---- the same rules in every layout

PLACES = dict(csv='{0}.jpg', folder='gallery/{1}/x_{0}.jpg', market1501='bounding_box_test/{1}_c1s1_{0}_00.jpg',
              cuhk03='labeled/bounding_box_test/{1}_c1s1_{0}_00.jpg')


@pytest.mark.parametrize('layout', PLACES)
def test_junk_and_distractors_are_the_same_in_every_layout(tmp_path, layout):
    "By the table of `utils.checks`: junk and unknown rows dropped, distractors of a gallery at 0, three identities."
    names = ['0005', '-1', '0000', '0007', '0009', '-1', '0000']
    named = layout in ('csv', 'folder')
    if named: names += ['unknown', 'Unidentified']
    for i, who in enumerate(names): picture(tmp_path/PLACES[layout].format(i, who), i)
    if layout == 'cuhk03': (tmp_path/'labeled'/'bounding_box_train').mkdir()
    (tmp_path/'t.csv').write_text(listed(*names).replace('\n', ',gallery\n').replace('pid,gallery', 'pid,split'))
    words, records = said_by(lambda: load_dataset(layout, tmp_path/'t.csv' if layout == 'csv' else tmp_path))
    assert ('2 images have no known identity' in words) == named
    assert len(records) == 5 and (records['pid'] == 0).sum() == 2
    assert sorted(records['pid'][records['pid'] > 0]) == [5, 7, 9]

def test_junk_outside_of_a_gallery_is_said(tmp_path):
    for name in ('bounding_box_test/-1_c1s1_0.jpg', 'bounding_box_test/0002_c1s1_0.jpg'): picture(tmp_path/name)
    words, records = said_by(lambda: load_dataset('market1501', tmp_path))
    assert not words and len(records) == 1
    for name in ('-1_c1s1_0.jpg', '3_c1s1_0.jpg', '0003_c2s1_0.jpg'): picture(tmp_path/'bounding_box_train'/name)
    words, records = said_by(lambda: load_dataset('market1501', tmp_path))
    assert '1 images have an identity below 0' in words and "'0003' and '3' are one number" in words


def test_written_names_are_kept(tmp_path):
    "Identity and camera as the user writes them; numbers beside them; a saved table comes back."
    rows = [('0012', 'entrance north 2'), ('0012', 'lake'), ('7', 'lake')]
    text = 'path,pid,camid\n' + ''.join(f'{i}.jpg,{who},{cam}\n' for i, (who, cam) in enumerate(rows))
    _, records = table_of(tmp_path, text)
    assert records['identity'].tolist() == ['0012', '0012', '7'] and records['pid'].tolist() == [12, 12, 7]
    assert records['camera'].tolist() == ['entrance north 2', 'lake', 'lake'] and records['camid'].tolist() == [0, 1, 1]
    pooled = pool(records)
    assert pooled['camera'].tolist() == records['camera'].tolist() and pooled['cam_label'].tolist() == [0, 1, 1]
    records.to_csv(tmp_path/'again.csv', index=False)
    pd.testing.assert_frame_equal(load_dataset('csv', tmp_path/'again.csv', domain='t'), records)
    (tmp_path/'t.csv').write_text(text.replace('path,pid,camid', 'path,identity,camera'))
    pd.testing.assert_frame_equal(load_dataset('csv', tmp_path/'t.csv')[records.columns], records)


# ---- cameras

@pytest.mark.parametrize('camera, names', [
    ('folder', ['north', 'south']), (r'(north|south)/x_(c\d)', ['north c1', 'south c2']),
    (r'_(c\d)|(never)', ['c1', 'c2'])])
@pytest.mark.parametrize('name', ['csv', 'folder'])
def test_cameras_are_found_in_the_path_below_the_root(tmp_path, name, camera, names):
    places = [f'anna/{place}/x_c{i + 1}.jpg' for i, place in enumerate(('north', 'south'))]
    if name == 'folder': places = [f'train/{place}' for place in ('north/x_c1.jpg', 'south/x_c2.jpg')]
    for i, place in enumerate(places): picture(tmp_path/place, i)
    (tmp_path/'t.csv').write_text('path,pid\n' + ''.join(f'{place},anna\n' for place in places))
    records = load_dataset(name, tmp_path/'t.csv' if name == 'csv' else tmp_path, camera=camera)
    assert records['camera'].tolist() == names and records['camid'].tolist() == [0, 1]


@pytest.mark.parametrize('camera, said', [(r'_f(\d+)', True), (r'_c(\d)', False)])
def test_a_rule_that_finds_something_else_than_cameras_is_said(tmp_path, camera, said):
    for i in range(24): picture(tmp_path/f'{i // 6}'/f'x_c{i % 2}_f{i:03d}.jpg', i)
    words, records = said_by(lambda: load_dataset('folder', tmp_path, camera=camera, distractors=False))
    assert ('are these cameras?' in words) == said and len(records) == 24


# ---- tables

@pytest.mark.parametrize('changes, identities', [
    (dict(pid=['NA', 'NA', 'p2']), 2), (dict(pid=['null', 'Nan', 'null']), 2), (dict(domain='NA'), 2),
    (dict(domain=12), 2), (dict(camid=['null', 'x', 'NA']), 2)])
def test_words_that_pandas_takes_for_missing_are_names(tmp_path, changes, identities):
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(3)], pid=['a', 'a', 'b'], camid=0)).assign(**changes)
    _, records = table_of(tmp_path, table.to_csv(index=False))
    assert records['pid'].nunique() == identities
    if 'domain' in changes: assert records['domain'].unique().tolist() == [str(changes['domain'])]


def test_paths_of_windows_and_commas_at_the_end_of_rows(tmp_path):
    picture(tmp_path/'crops'/'a'/'1.jpg')
    _, records = table_of(tmp_path, 'path,pid\ncrops\\a\\1.jpg,7,\n')
    assert records['path'][0] == str(tmp_path/'crops'/'a'/'1.jpg') and records['pid'].tolist() == [7]


TABLES = [
    ('', {}, 'cannot be read'), ('path,pid\n', {}, 'no image found|records are empty'),
    ('path;pid\n0.jpg;1\n', {}, 'lacks the column'), ('path,pid\n0.jpg,\n', {}, 'no image found .*no known identity'),
    ('path,pid\n,1\n', {}, 'cells of path are empty, first line 2'), ('path,pid\n"0.jpg,1\n', {}, 'cannot be read'),
    ('path,pid,domain\n0.jpg,1,a\n1.jpg,1, \n', {}, 'cells of domain are empty, first line 3'),
    ('path,label\n0.jpg,1\n', {}, 'if label is the pid, call it pid'), ('path,pid\n0.jpg,1.5\n', {}, 'row 1 is 1.5'),
    ('path,pid,camid\n0.jpg,1,\n0.jpg,1,2\n', {}, '1 of 2 cameras'), ('path,pid,camid\n0.jpg,1,-2\n', {}, 'negative'),
    ('path,pid,split\n0.jpg,1,test\n', {}, 'have a split that is'), ('path,pid\n0.jpg,1,2\n', {}, 'cannot be read'),
    ('path,pid,pid\n0.jpg,1,2\n', {}, 'has 2 columns pid'), (bytes(range(256)).decode('latin-1'), {}, 'cannot be read'),
    ('path,pid,split\n0.jpg,1,train\n', dict(split='query'), 'column split'),
    ('path,pid,camid\n0.jpg,1,0\n', dict(camera='c(1)'), 'column camid'),
    ('path,pid\n0.jpg,1\n./0.jpg,2\n', {}, 'more than once'), ('path,pid\nx.jpg,1\n', {}, 'missing on the disk')]


@pytest.mark.parametrize('text, options, words', TABLES)
def test_a_wrong_table_is_one_line(tmp_path, text, options, words):
    picture(tmp_path/'0.jpg')
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(DatasetError, match=words) as said: load_dataset('csv', tmp_path/'t.csv', **options)
    assert '\n' not in str(said.value)


# ---- folders

EXPRESSIONS = ['c(\\d', '*', 'c\\d', '_c(9)?', 'zz(\\d)', 5, 'a{99999999999999999999}', ['_c(1)'], '', '('*2000]
REFUSED = [
    *(('folder', f'{name}/x.jpg', {}, 'row 1 is') for name in ('1.5', '2.0E+11')),
    *(('folder', 'anna/x_c1_1.jpg', dict(camera=camera), '^camera=') for camera in EXPRESSIONS),
    ('folder', 'query/anna/x.jpg', dict(split='train'), 'leave split='),
    ('folder', 'anna/x.jpg', dict(kamera='x'), "did you mean 'camera'"),
    *((name, place, {}, f'no image found .*{os.path.basename(place)}') for name, place in (
        ('market1501', 'query/anna_c1.jpg'), ('market1501', 'query/deeper/0001_c1.jpg'), ('ilids', 'Persons/x.jpg'))),
    ('market1501', 'query/0001_c1.jpg', dict(distractors='no'), 'it is True or False'),
    ('market1501', 'query/0001_c1.jpg', dict(domain=''), 'have no text'),
    ('market1501', 'query/0001_c1.jpg', dict(camera='x'), "unknown option of market1501 'camera'"),
    ('market1501', 'query/0000_c1.jpg', {}, '1 of 1 .* have identity 0.*distractors=False'),
    ('viper', 'cam_a/1_1.bmp', dict(detected=True), "unknown option of viper 'detected'")]


@pytest.mark.parametrize('name, file, options, words', REFUSED)
def test_what_is_refused_is_one_line(tmp_path, name, file, options, words):
    picture(tmp_path/name/file)
    looks = (load_dataset,) if 'domain' in options else (load_dataset, check_dataset)
    for look in looks:
        with pytest.raises(ValueError, match=words) as said: look(name, tmp_path/name, **options)
        assert '\n' not in str(said.value)


@pytest.mark.parametrize('root', [3, '', 'a\0b', 'x'*5000])
def test_what_is_no_path(root):
    for name in ('market1501', 'csv', 'mot'):
        with pytest.raises((TypeError, OSError, ValueError)): load_dataset(name, root)


def test_folders_of_tools_are_no_identities(tmp_path):
    home = make_tree('folder', tmp_path)
    picture(home/'@anna'/'1.jpg')
    before = load_dataset('folder', home)
    for name in ('.ipynb_checkpoints', '__MACOSX', '@eaDir', '.git'): picture(home/name/'x_door_1.jpg')
    (home/'@anna'/'._x_door_1.jpg').write_bytes(b'\0')
    (home/'@anna'/'album.jpg').mkdir()
    pd.testing.assert_frame_equal(load_dataset('folder', home), before)
    assert '@anna' in set(before['identity'])


@pytest.mark.parametrize('where', ['val/anna', 'train/anna/deeper', '.', 'train'])
def test_images_that_lie_elsewhere_are_counted(tmp_path, where):
    for place in ('train/anna/1.jpg', 'query/bob/2.jpg', 'gallery/bob/3.jpg'): picture(tmp_path/place)
    words, before = said_by(lambda: load_dataset('folder', tmp_path))
    for i in range(3): picture(tmp_path/where/f'more{i}.jpg', i)
    later, after = said_by(lambda: load_dataset('folder', tmp_path))
    assert not words and '3 of 6 images' in later and len(after) == len(before)


@pytest.mark.parametrize('name', ['market1501', 'folder', 'viper', 'ilids'])
def test_endings_that_are_not_read_are_counted(tmp_path, name):
    "An iPhone's .heic beside the others, and a broken link; .jfif is a JPEG like any other."
    root = make_tree(name, tmp_path)
    before = load_dataset(name, root)
    first, second = Path(before['path'].iloc[0]), Path(before['path'].iloc[-1])
    first.rename(first.with_suffix('.heic'))
    second.rename(second.with_suffix('.jfif'))
    second.with_name('9' + second.name).symlink_to(tmp_path/'nowhere')
    words, after = said_by(lambda: load_dataset(name, root))
    assert '1 .heic' in words and '1 broken link' in words
    assert len(after) == len(before) - 1 and after['path'].str.endswith('.jfif').sum() == 1


def test_exports_of_annotation_tools_are_read(tmp_path):
    "CVAT and Datumaro: a folder for tasks without subsets, identities written as decimals."
    for i in range(4): picture(tmp_path/'bounding_box_default'/f'{i//2 + 1}.0_c{i % 2 + 1}s1_00000{i}_00.jpg', i)
    words, records = said_by(lambda: load_dataset('market1501', tmp_path))
    assert records['pid'].tolist() == [1, 1, 2, 2] and set(records['split']) == {'train'}
    assert 'bounding_box_default is read as bounding_box_train' in words


@pytest.mark.parametrize('where, words', [
    ('bounding_box_train/0002/0002_c1s1_000001_01.jpg', '1 of 33 images .* are left out'),
    ('val/0002/a.jpg', '1 images in .*val are left out')])
def test_images_beside_and_below_the_folders_of_a_set(tmp_path, where, words):
    root = make_tree('market1501', tmp_path)
    before = load_dataset('market1501', root)
    picture(root/where)
    picture(root/'gt_bbox'/'0002_c1s1_000001_01.jpg')       # of the release, not used by anybody
    with pytest.warns(UserWarning, match=words) as said: after = load_dataset('market1501', root)
    assert len(said) == 1 and len(after) == len(before)


def test_links_and_folders_that_are_gone(tmp_path):
    for name in ('Market-1501', 'market1501'): picture(tmp_path/name/'bounding_box_train'/'0002_c1s1_0.jpg')
    words, records = said_by(lambda: load_dataset('market1501', tmp_path))
    assert f'{tmp_path}/Market-1501 is read, not {tmp_path}/market1501' in words
    picture(tmp_path/'viper'/'cam_a'/'001_1.bmp')
    assert 'cam_b is not there' in said_by(lambda: load_dataset('viper', tmp_path/'viper'))[0]
    (tmp_path/'Market-1501'/'query').symlink_to(tmp_path/'gone')
    with pytest.raises(DatasetError, match='query is not there'): load_dataset('market1501', tmp_path/'Market-1501')


def test_a_check_counts_identities_by_domain(tmp_path):
    rows = [(1, 'a'), (1, 'a'), (2, 'a'), (1, 'b'), (1, 'b'), (2, 'b')]
    lines = [f'{i}.jpg,{pid},{i % 2},{domain}' for i, (pid, domain) in enumerate(rows)]
    table_of(tmp_path, '\n'.join(['path,pid,camid,domain', *lines]), images=6)
    report = check_dataset('csv', tmp_path/'t.csv')
    assert report.counts.set_index('split')['identities']['train'] == 4
    assert report.cameras.set_index(['domain', 'camera'])['identities'].to_dict() == {
        ('a', '0'): 2, ('a', '1'): 1, ('b', '0'): 1, ('b', '1'): 2}


# ---- pooling, holding out, leakage

def test_categories_are_text():
    "pandas.Categorical, also with categories that no row has."
    kind = pd.CategoricalDtype(['elsewhere', 'toy'])
    table = toy().astype(dict(domain=kind, split='category', path='category'))
    assert check_records(table, files=False) is table and pool(table)['label'].tolist() == [0, 0, 0]
    assert hold_out(table, 0.9)['split'].tolist() == hold_out(toy(), 0.9)['split'].tolist()


@pytest.mark.parametrize('index', [[0]*6, [5, 4, 3, 2, 1, 0], list('aabbcc')])
def test_an_index_with_repeats_moves_no_row(index):
    "`pd.concat` without `ignore_index` leaves such tables."
    held = hold_out(toy().set_axis(index), 0.9)
    assert sorted(held['split'][:3]) == ['gallery', 'gallery', 'query'] and held.index.tolist() == index
    assert held['split'].tolist()[3:] == toy()['split'].tolist()[3:]
    found = find_leakage(None, toy(path=['a', 'b', 'c', 'q', 'q', 'f']).set_axis(index))
    assert found[['kind', 'rows']].values.tolist() == [['own image', 1]]


@pytest.mark.parametrize('places, said', [
    (('a/market/query/{0}.jpg', 'b/market/query/{0}.jpg'), True), (('a/query/{0}.jpg', 'b/query/other{0}.jpg'), True),
    (('a/query/x/{0}.jpg', 'b/query/x/other{0}.jpg'), True), (('a/{0}.jpg', 'a/other{0}.jpg'), False),
    (('P1/cam1/{0}.jpg', 'P1/cam2/other{0}.jpg'), False), (('one/{0}.jpg', 'two/other{0}.jpg'), False)])
def test_what_gives_two_sets_under_one_name_away(places, said):
    tables = [toy(path=[place.format(i) for i in range(6)], split=['query']*6) for place in places]
    words, _ = said_by(lambda: check_records(pd.concat(tables, ignore_index=True), files=False))
    assert ('lie in two places' in words) == said and bool(words) == said


def test_one_set_under_two_names(tmp_path):
    for i in range(4): picture(tmp_path/'a'/'x'/f'{i}.jpg', i)
    (tmp_path/'b').symlink_to('a')
    shutil.copytree(tmp_path/'a', tmp_path/'c')
    tables = {name: load_dataset('folder', tmp_path/name, domain=name) for name in 'abc'}
    spelled = tables['a'].assign(domain='d', path=[f'{tmp_path}/x/../a/x/{i}.jpg' for i in range(4)])
    for other in (tables['b'], spelled):
        with pytest.raises(DatasetError, match='stand in two domains'): pool([tables['a'], other])
    assert 'share 4 images' in said_by(lambda: pool([tables['a'], tables['c']]))[0]


@pytest.mark.parametrize('content', [False, True])
def test_queries_that_find_themselves(tmp_path, content):
    "The same path is seen always, a copy by its bytes; another camera hides nothing, the same camera hides it."
    one, copy, other = picture(tmp_path/'a.jpg', 1), tmp_path/'b.jpg', picture(tmp_path/'c.jpg', 2)
    shutil.copy(one, copy)
    def found(gallery, camera, cameras=1):
        paths, cams = [str(one), str(gallery), str(other)], [0, camera, cameras - 1]
        table = pd.DataFrame(dict(path=paths, pid=[1, 1, 2], camid=cams, domain='x', split=['query'] + ['gallery']*2))
        return 'own image' in set(find_leakage(None, table, content)['kind'])
    assert found(one, 0) and found(copy, 0) and found(copy, 1, 2) == content
    assert not found(one, 0, 2)                             # the camera rule leaves it out


# ---- damage of every kind: a report or one line, never a traceback

def damage(file, how, noise):
    "Spoil one file or folder of a tree."
    if how == 'cut': file.write_bytes(file.read_bytes()[:len(noise)])
    if how == 'noise': file.write_bytes(noise)
    if how == 'text': file.write_text('0000/x.jpg zero\n\n,,,\n')
    if how in ('gone', 'folder', 'link'): file.rename(file.with_name(file.name + '.moved'))
    if how == 'folder': file.mkdir()
    if how == 'link': file.symlink_to(file.parent/'nowhere')
    if how == 'renamed': file.rename(file.with_name(f'{file.stem}{noise.hex()[:8]}{file.suffix}'))


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    home = tmp_path_factory.mktemp('trees')
    forms = [('cuhk03', dict(form='mat')), *((name, {}) for name in PARSERS if name != 'cuhk03')]
    return {name: make_tree(name, home/name, ids=3, **form) for name, form in forms}


def check_damage(trees, data, home):
    name = data.draw(st.sampled_from(sorted(trees)))
    shutil.copytree(trees[name].parent, home)
    files = sorted(p for p in home.rglob('*') if p.is_file())
    special = [p for p in files if p.suffix.lower() in ('.txt', '.mat', '.csv', '.json', '.ini')] or files
    file = data.draw(st.sampled_from(data.draw(st.sampled_from([special, files]))))
    how = data.draw(st.sampled_from(['cut', 'noise', 'text', 'gone', 'folder', 'link', 'renamed']))
    damage(file, how, data.draw(st.binary(min_size=4, max_size=400)))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: assert 'usable' in str(check_dataset(name, home/trees[name].name, decode=True, progress=False))
        except ValueError as error: assert str(error) and '\n' not in str(error)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_damage_is_one_line(trees, data, tmp_path_factory):
    check_damage(trees, data, tmp_path_factory.mktemp('damaged')/'x')


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_much_damage_is_one_line(trees, data, tmp_path_factory):
    check_damage(trees, data, tmp_path_factory.mktemp('damaged')/'x')


cells = st.one_of(st.sampled_from(['', '0', '-1', '1', '1.0', 'nan', 'a.jpg', 'b.jpg', 'train', 'query', 'Ä']),
                  st.text(max_size=6))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(['path', 'pid', 'camid', 'split', 'domain', 'label', '']), min_size=1, max_size=6),
       st.lists(st.lists(cells, max_size=7), max_size=5), st.sampled_from([',', ';', '\t']))
def test_any_csv_is_a_table_or_one_line(tmp_path_factory, header, rows, comma):
    home = tmp_path_factory.mktemp('csv')
    for file in ('a.jpg', 'b.jpg'): (home/file).touch()
    text = '\n'.join(comma.join(row) for row in [header, *rows])
    (home/'t.csv').write_bytes(text.encode('utf-8', 'surrogatepass'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: check_records(load_dataset('csv', home/'t.csv'))
        except DatasetError as error: assert '\n' not in str(error)
