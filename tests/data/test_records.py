"Who is who, in every layout and however it is written; which pictures a folder holds; what a table must not be."
import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_tree, picture

from clip_dfgs.data.datasets import check_dataset, load_dataset
from clip_dfgs.data.parsers import PARSERS
from clip_dfgs.data.leakage import find_leakage
from clip_dfgs.data.records import check_records, hold_out, is_pooled, encode_cameras, encode_identities, pool
from clip_dfgs.utils.checks import as_cameras, as_labels, DatasetError
from clip_dfgs.data.records import parse_identity

SPELLINGS = [int, float, str, lambda n: f'{n}.0', lambda n: f' {n} ', np.int64, np.float32,
             lambda n: f'{n:04d}' if n >= 0 else f'-{-n:03d}']


@given(st.lists(st.integers(-3, 9999), min_size=1, max_size=30), st.data())
def test_a_whole_number_is_a_number_however_it_is_written(numbers, data):
    written = [data.draw(st.sampled_from(SPELLINGS))(n) for n in numbers]
    assert encode_identities(written).tolist() == numbers


@given(st.lists(st.sampled_from(['anna', 'Bö b', 'NA', 'null', 'x1', 7, '0007', -1, '-1', 0, '0000']), min_size=1))
def test_names_and_numbers_together(written):
    "Junk and distractors keep their meaning; equal people get equal numbers from 1 on, different ones different."
    found = encode_identities([*written, 'zoe']).tolist()
    for value, number in zip(written, found):
        if value in (-1, '-1'): assert number == -1
        elif value in (0, '0000'): assert number == 0
        else: assert number >= 1
    people = [('7' if v in (7, '0007') else v, n) for v, n in zip(written, found) if n > 0]
    assert len({v for v, _ in people}) == len({n for _, n in people}) == len(set(people))


NOBODY = [None, float('nan'), pd.NA, pd.NaT, '', '  ', 'nan', 'NaN', '<NA>', 'None', 'unknown',
          'Unknown_individual', b'unidentified']


@pytest.mark.parametrize('value', NOBODY, ids=repr)
def test_an_unknown_label_is_nobody_everywhere(value):
    "Parsers number it -1, arrays refuse it, cameras are all known or all unknown."
    for distractors in (True, False): assert encode_identities([3, value, 4], 'pid', distractors).tolist() == [3, -1, 4]
    assert encode_cameras([value, value]).tolist() == [0, 0] and as_cameras([value, value], 2) is None
    with pytest.raises(DatasetError, match='1 of 2 cameras'): encode_cameras([3, value])
    with pytest.raises(ValueError, match='1 of 2 cameras'): as_cameras(['a', value], 2)
    with pytest.raises(ValueError, match='labels: 1 of 2 identities'): as_labels(['a', value])


@pytest.mark.parametrize('value', [
    1.5, '1.5', True, np.bool_(False), float('inf'), 10**30, '2.0E+11', '2.0201E+11', '1e+05', '9007199254740993.0',
    '9'*5000, (1, 2), [3], {}, {4}, object, b'\xff', 1j, 2.**60], ids=lambda v: repr(v)[:20])
def test_what_is_no_label_is_refused_with_its_row(value):
    for read in (encode_identities, encode_cameras):
        with pytest.raises(DatasetError, match='row 2 is') as said: read(['x', value])
        assert len(str(said.value)) < 200 and '\n' not in str(said.value)


def test_people_without_junk():
    assert encode_identities([-1, 0, 5], distractors=False).tolist() == [1, 2, 3]
    assert encode_identities(['0', 'anna', 'unknown'], distractors=False).tolist() == [1, 2, -1]


def as_layout(name, folder, written, camera='0'):
    "Gallery images of people called so, in a layout; the place to load."
    rows = [(f'{who}', i) for i, who in enumerate(written)]
    if name == 'csv':
        for who, i in rows: picture(folder/f'{i}.jpg', i)
        table = pd.DataFrame([dict(path=f'{i}.jpg', pid=who, camid=i % 2, split='gallery') for who, i in rows])
        table.to_csv(folder/'t.csv', index=False)
        return folder/'t.csv'
    if name == 'folder':
        for who, i in rows: picture(folder/'gallery'/who/f'x_c{i % 2}_{i}.jpg', i)
        return folder
    for who, i in rows: picture(folder/'bounding_box_test'/f'{who}_c{1 + i % 2}s1_{i:06d}_00.jpg', i)
    return folder


@pytest.mark.parametrize('layout', ['csv', 'folder', 'market1501', 'cuhk03'])
def test_junk_and_distractors_are_the_same_in_every_layout(tmp_path, layout):
    "By the table of `utils.checks`: junk and unknown rows dropped, distractors of a gallery at 0, three identities."
    unknown = ['unknown', 'Unidentified'] if layout in ('csv', 'folder') else []
    written = ['0005', '-1', '0000', '0007', '0009', '-1', '0000', *unknown]
    place = as_layout(layout, tmp_path/'labeled' if layout == 'cuhk03' else tmp_path, written)
    if layout == 'cuhk03': (tmp_path/'labeled'/'bounding_box_train').mkdir()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        records = load_dataset(layout, tmp_path if layout == 'cuhk03' else place)
    assert any('2 images have no known identity' in str(w.message) for w in said) == bool(unknown)
    assert len(records) == 5 and (records['pid'] == 0).sum() == 2
    assert sorted(records['pid'][records['pid'] > 0]) == [5, 7, 9]


@pytest.mark.parametrize('spelling', [int, float, str, lambda p: 'anna' if p == 20 else str(p),
                                      lambda p: 'anna' if p == 20 else f'{p:04d}'])
def test_a_csv_keeps_junk_and_distractors_however_it_was_saved(tmp_path, spelling):
    numbers = [-1, -1, 0, 0, 0, 20, 20, 21, 22]
    for i in range(len(numbers)): picture(tmp_path/f'{i}.jpg', i)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(len(numbers))], pid=[spelling(n) for n in numbers],
                              camid=0, split='gallery'))
    table.to_csv(tmp_path/'t.csv', index=False)
    records = load_dataset('csv', tmp_path/'t.csv')
    assert len(records) == 7 and (records['pid'] == 0).sum() == 3 and records['pid'][records['pid'] > 0].nunique() == 3


@pytest.mark.parametrize('changes, people', [
    (dict(pid=['NA', 'NA', 'p2']), 2), (dict(pid=['null', 'Nan', 'null']), 2), (dict(domain='NA'), 2),
    (dict(domain=12), 2), (dict(camid=['null', 'x', 'NA']), 2)])
def test_words_that_pandas_takes_for_missing_are_names(tmp_path, changes, people):
    for i in range(3): picture(tmp_path/f'{i}.jpg', i)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(3)], pid=['a', 'a', 'b'], camid=0))
    table = table.assign(**changes)
    table.to_csv(tmp_path/'t.csv', index=False)
    records = load_dataset('csv', tmp_path/'t.csv')
    assert records['pid'].nunique() == people
    if 'domain' in changes: assert records['domain'].unique().tolist() == [str(changes['domain'])]


def test_paths_from_windows(tmp_path):
    picture(tmp_path/'crops'/'a'/'1.jpg')
    (tmp_path/'t.csv').write_text('path,pid\ncrops\\a\\1.jpg,7\n')
    assert load_dataset('csv', tmp_path/'t.csv')['path'][0] == str(tmp_path/'crops'/'a'/'1.jpg')


@pytest.mark.parametrize('text, words', [
    ('', 'is no table'), ('path,pid\n', 'no image found|records are empty'),
    ('path;pid\na.jpg;1\n', 'lacks the column'),
    ('path,pid\na.jpg,\n', 'no image found .*no known identity'), ('path,pid\n,1\n', 'line 2, column path'),
    ('path,label\na.jpg,1\n', 'if label is the pid, call it pid'),
    ('path,pid,camid\na.jpg,1,\na.jpg,1,2\n', '1 of 2 cameras'),
    ('path,pid,split\na.jpg,1,test\n', 'have a split that is none of'),
    ('path,pid,camid\na.jpg,1,-2\n', 'no camera'),
    ('path,pid\na.jpg,1.5\n', 'row 1 is 1.5'), ('path,pid\n"a.jpg,1\n', 'is no table')])
def test_a_damaged_csv_is_one_line(tmp_path, text, words):
    picture(tmp_path/'a.jpg')
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(DatasetError, match=words) as said: load_dataset('csv', tmp_path/'t.csv')
    assert '\n' not in str(said.value)


def test_a_binary_csv_is_one_line(tmp_path):
    (tmp_path/'t.csv').write_bytes(bytes(range(256))*4)
    with pytest.raises(DatasetError, match='is no table') as said: load_dataset('csv', tmp_path/'t.csv')
    assert '\n' not in str(said.value)


def test_a_domain_column_decides(tmp_path):
    "The same number at two sites is two people; another name for all of it would make them one."
    for i in range(4): picture(tmp_path/f'{i}.jpg', i)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(4)], pid=[1, 1, 1, 1], domain=['a', 'a', 'b', 'b']))
    table.to_csv(tmp_path/'t.csv', index=False)
    assert pool(load_dataset('csv', tmp_path/'t.csv'))['label'].nunique() == 2
    with pytest.raises(DatasetError, match='its own column domain .a, b.'):
        load_dataset('csv', tmp_path/'t.csv', domain='x')


@pytest.mark.parametrize('camera, words', [
    ('c(\\d', 'is no regular expression'), ('*', 'is no regular expression'), ('c\\d', 'needs a group'),
    ('_c(9)?', 'finds no camera in'), ('zz(\\d)', 'finds no camera in'), (5, 'is no regular expression')])
def test_a_wrong_expression_for_cameras(tmp_path, camera, words):
    picture(tmp_path/'f'/'anna'/'x_c1_1.jpg')
    with pytest.raises(DatasetError, match=words) as said: load_dataset('folder', tmp_path/'f', camera=camera)
    assert '\n' not in str(said.value)


@pytest.mark.parametrize('name, option', [('market1501', 'camera'), ('viper', 'detected'), ('csv', 'cameras'),
                                          ('folder', 'cache')])
def test_an_option_that_a_set_does_not_have(tmp_path, name, option):
    with pytest.raises(DatasetError, match=f'{name} has no option {option!r}'):
        load_dataset(name, make_tree(name, tmp_path), **{option: 'x'})


def test_folders_of_tools_are_nobody(tmp_path):
    home = make_tree('folder', tmp_path)
    before = load_dataset('folder', home)
    for name in ('.ipynb_checkpoints', '__MACOSX', '@eaDir', '.git'): picture(home/name/'x_door_1.jpg')
    person = next(p for p in home.iterdir() if p.is_dir() and p.name.startswith('J'))
    (person/'._x_door_1.jpg').write_bytes(b'\0')
    (person/'album.jpg').mkdir()
    pd.testing.assert_frame_equal(load_dataset('folder', home), before)


@pytest.mark.parametrize('where', ['val/anna', 'test/bob', 'train/anna/deeper', '.', 'train'])
def test_pictures_that_lie_elsewhere_are_counted(tmp_path, where):
    for split, who in (('train', 'anna'), ('query', 'bob'), ('gallery', 'bob')):
        picture(tmp_path/split/who/f'{split}.jpg')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        before = load_dataset('folder', tmp_path)
    for i in range(3): picture(tmp_path/where/f'more{i}.jpg', i)
    with pytest.warns(UserWarning, match='3 of 6 images .* are left out'): after = load_dataset('folder', tmp_path)
    assert len(after) == len(before)
    assert any('3 of 6' in w for w in check_dataset('folder', tmp_path).warnings)


@pytest.mark.parametrize('name', ['market1501', 'folder', 'viper', 'cuhk02', 'prid', 'ilids'])
def test_endings_that_are_not_read_are_counted(tmp_path, name):
    "An iPhone's .heic beside the others; .jfif is a JPEG like any other."
    root = make_tree(name, tmp_path)
    before = load_dataset(name, root)
    from pathlib import Path
    first, second = before['path'].iloc[0], before['path'].iloc[-1]
    Path(first).rename(Path(first).with_suffix('.heic'))
    Path(second).rename(Path(second).with_suffix('.jfif'))
    with pytest.warns(UserWarning, match='1 file is not read: 1 .heic'): after = load_dataset(name, root)
    assert len(after) == len(before) - 1 and after['path'].str.endswith('.jfif').sum() == 1


def test_a_broken_link_is_said(tmp_path):
    root = make_tree('market1501', tmp_path)
    (root/'query'/'0001_c1s1_000009_00.jpg').symlink_to(tmp_path/'nowhere.jpg')
    with pytest.warns(UserWarning, match='1 broken link'): load_dataset('market1501', root)


def test_a_label_of_somebody_else_is_not_a_pooled_table(tmp_path):
    records = load_dataset('market1501', make_tree('market1501', tmp_path))
    mine = records.assign(label=pd.factorize(records['pid'])[0], cam_label=records['camid'])
    assert not is_pooled(mine) and is_pooled(pool(mine)) and set(pool(mine)['split']) == {'train'}
    pooled = pool(records)
    for broken in (pooled.drop(columns='cam_label'), pooled.assign(label=pooled['label'] + 1), pooled.assign(label=0),
                   pooled.assign(label=pooled['label'].astype(float)), pooled.iloc[:0]): assert not is_pooled(broken)


def test_one_domain_name_for_two_sets_is_said(tmp_path):
    "Two sites in one layout have people and files of the same names."
    tables = [load_dataset('market1501', make_tree('market1501', tmp_path/site)) for site in 'ab']
    with pytest.warns(UserWarning, match='lie in two places'):
        check_records(pd.concat(tables, ignore_index=True))


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


# ---- siblings: each is a way in which pictures or people could be lost, merged or found twice


@pytest.mark.parametrize('written, people', [
    (['Nan', 'NA'], 2), (['NULL', 'null'], 2),
    (['Jürgen', 'Ju\u0308rgen'], 1), ([' anna', 'anna '], 1), (['Anna', 'anna'], 2), (['7', '007', '7.0'], 1),
    (['7', '007', 'x'], 2)])
def test_which_names_are_one_person(written, people):
    assert len(set(encode_identities(written).tolist())) == people


@pytest.mark.parametrize('names', [('7', '007'), ('Jürgen', 'Ju\u0308rgen'), ('7', '7.0')])
def test_two_folders_of_one_identity_are_refused(tmp_path, names):
    for i, name in enumerate(names): picture(tmp_path/'f'/name/f'{i}.jpg', i)
    with pytest.raises(DatasetError, match='are one identity; rename one'): load_dataset('folder', tmp_path/'f')


@pytest.mark.parametrize('split', ['train', 'query', 'gallery'])
@pytest.mark.parametrize('name', ['unknown', 'unknown_individual', 'nan', 'Unidentified'])
def test_images_of_unknown_individuals_are_left_out_with_a_count(tmp_path, name, split):
    for i, who in enumerate((name, name, 'cow 1')): picture(tmp_path/'f'/split/who/f'{i}.jpg', i)
    with pytest.warns(UserWarning, match=f'2 images have no known identity .*{name}'):
        records = load_dataset('folder', tmp_path/'f')
    assert records['identity'].tolist() == ['cow 1'] and records['pid'].tolist() == [1]
    assert any(name in sentence for sentence in check_dataset('folder', tmp_path/'f').warnings)


def test_written_names_are_kept(tmp_path):
    "Identity and camera as the user writes them, from a table, a folder and file names; pool numbers beside them."
    for i in range(3): picture(tmp_path/'cam 1'/'cow 7'/f'{i}_c1.jpg', i)
    rows = [('0012', 'entrance north 2'), ('0012', 'lake'), ('7', 'lake')]
    (tmp_path/'t.csv').write_text('path,pid,camid\n' + ''.join(
        f'cam 1/cow 7/{i}_c1.jpg,{who},{cam}\n' for i, (who, cam) in enumerate(rows)))
    records = load_dataset('csv', tmp_path/'t.csv')
    assert records['identity'].tolist() == ['0012', '0012', '7'] and records['pid'].tolist() == [12, 12, 7]
    assert records['camera'].tolist() == ['entrance north 2', 'lake', 'lake'] and records['camid'].tolist() == [0, 1, 1]
    pooled = pool(records)
    assert pooled['camera'].tolist() == records['camera'].tolist() and pooled['cam_label'].tolist() == [0, 1, 1]
    records.to_csv(tmp_path/'again.csv', index=False)
    pd.testing.assert_frame_equal(load_dataset('csv', tmp_path/'again.csv', domain='t'), records)
    (tmp_path/'names.csv').write_text((tmp_path/'t.csv').read_text().replace('path,pid,camid', 'path,identity,camera'))
    pd.testing.assert_frame_equal(load_dataset('csv', tmp_path/'names.csv', domain='t')[records.columns], records)


@pytest.mark.parametrize('camera, names', [
    ('folder', ['north', 'south']), (r'(north|south)/x_(c\d)', ['north c1', 'south c2']),
    (r'_(c\d)|(never)', ['c1', 'c2'])])
def test_cameras_are_found_in_the_path_below_the_root(tmp_path, camera, names):
    for i, place in enumerate(('north', 'south')): picture(tmp_path/'f'/'anna'/f'{place}_x_c{i + 1}.jpg', i)
    lines = [f'{place}/x_c{i + 1}.jpg,anna' for i, place in enumerate(('north', 'south'))]
    for i, line in enumerate(lines): picture(tmp_path/line.split(',')[0], i)
    (tmp_path/'t.csv').write_text('path,pid\n' + '\n'.join(lines) + '\n')
    records = load_dataset('csv', tmp_path/'t.csv', camera=camera)
    assert records['camera'].tolist() == names and records['camid'].tolist() == [0, 1]


def test_exports_of_annotation_tools_are_read(tmp_path):
    "CVAT and Datumaro: a folder for tasks without subsets, identities written as decimals."
    for i in range(4): picture(tmp_path/'bounding_box_default'/f'{i//2 + 1}.0_c{i%2 + 1}s1_00000{i}_00.jpg', i)
    with pytest.warns(UserWarning) as said: records = load_dataset('market1501', tmp_path)
    assert records['pid'].tolist() == [1, 1, 2, 2] and set(records['split']) == {'train'}
    text = ' '.join(str(w.message) for w in said)
    assert 'bounding_box_default is read as bounding_box_train' in text and '1.0_c1s1_000000_00.jpg' in text


@pytest.mark.parametrize('name, place', [
    ('market1501', 'query/anna_c1.jpg'), ('market1501', 'query/deeper/0001_c1.jpg'),
    ('ilids', 'Persons/x.jpg'), ('cuhk02', 'Dataset/P1/cam1/x.png')])
def test_an_error_says_what_was_there_and_why_it_was_not_taken(tmp_path, name, place):
    picture(tmp_path/name/place)
    with pytest.raises(DatasetError, match=f'no image found .*{os.path.basename(place)}'):
        load_dataset(name, tmp_path/name)
    with pytest.raises(DatasetError, match=os.path.basename(place)): check_dataset(name, tmp_path/name)


@pytest.mark.parametrize('name', ['1.5', '2.0E+11'])
def test_a_folder_that_is_no_label_is_refused(tmp_path, name):
    picture(tmp_path/'f'/name/'a.jpg')
    with pytest.raises(DatasetError, match='pid: row 1 is'): load_dataset('folder', tmp_path/'f')


def test_an_instagram_name_is_a_person(tmp_path):
    for name in ('@anna', 'ben'): picture(tmp_path/'f'/name/'a.jpg')
    assert load_dataset('folder', tmp_path/'f')['pid'].nunique() == 2


@pytest.mark.parametrize('files, cameras', [
    (('a_c1.jpg', 'a_c01.jpg', 'a_c2.jpg', 'a_c10.jpg'), [0, 0, 1, 2]),
    (('a_cx.jpg', 'a_cy.jpg', 'a_cx1.jpg'), [0, 2, 1])])
def test_cameras_of_file_names_follow_the_rule(tmp_path, files, cameras):
    for file in files: picture(tmp_path/'f'/'anna'/file)
    records = load_dataset('folder', tmp_path/'f', camera=r'_c(\w+)')
    assert [records.loc[records['path'].str.endswith(f), 'camid'].iloc[0] for f in files] == cameras


@pytest.mark.parametrize('camera', ['a{99999999999999999999}', b'_c(\\d)', ['_c(1)'], '', '(?P<c>', '('*2000])
def test_no_expression_ends_in_a_traceback(tmp_path, camera):
    picture(tmp_path/'f'/'anna'/'x_c1_1.jpg')
    with pytest.raises(DatasetError, match='^camera=') as said: load_dataset('folder', tmp_path/'f', camera=camera)
    assert '\n' not in str(said.value)


def test_a_csv_finds_cameras_in_file_names(tmp_path):
    for i in (1, 2): picture(tmp_path/'d9'/f'x_c{i}.jpg', i)
    (tmp_path/'t.csv').write_text('path,pid\nd9\\x_c1.jpg,1\nd9/x_c2.jpg,1\n')
    assert load_dataset('csv', tmp_path/'t.csv', camera=r'c(\d)')['camid'].tolist() == [0, 1]


@pytest.mark.parametrize('column, option', [('split', dict(split='query')), ('camid', dict(camera='c(1)')),
                                            ('domain', dict(domain='x'))])
def test_an_option_that_a_column_decides_is_refused(tmp_path, column, option):
    picture(tmp_path/'c1.jpg')
    (tmp_path/'t.csv').write_text(f'path,pid,{column}\nc1.jpg,1,{dict(split="train", camid=0, domain="y")[column]}\n')
    with pytest.raises(DatasetError, match=f'column {column}'): load_dataset('csv', tmp_path/'t.csv', **option)


def test_split_folders_decide_over_the_option(tmp_path):
    picture(tmp_path/'query'/'anna'/'1.jpg')
    with pytest.raises(DatasetError, match="leave split='train' out"):
        load_dataset('folder', tmp_path, split='train')


@pytest.mark.parametrize('header, words', [('path,pid,pid', 'has 2 columns pid'), ('path,pid', 'is no table')])
def test_cells_without_a_column_of_their_own(tmp_path, header, words):
    picture(tmp_path/'a.jpg')
    (tmp_path/'t.csv').write_text(f'{header}\na.jpg,1,2\n')
    with pytest.raises(DatasetError, match=words): load_dataset('csv', tmp_path/'t.csv')


def test_commas_at_the_end_of_rows_mean_nothing(tmp_path):
    picture(tmp_path/'a.jpg')
    (tmp_path/'t.csv').write_text('path,pid\na.jpg,4,\n')
    assert load_dataset('csv', tmp_path/'t.csv')['pid'].tolist() == [4]


@pytest.mark.parametrize('root', [None, 3, '', '~nobody-of-this-name/x', 'a\0b', 'x'*5000])
@pytest.mark.parametrize('name', ['market1501', 'folder', 'csv', 'cuhk_sysu', 'msmt17'])
def test_what_is_no_path(name, root):
    with pytest.raises(DatasetError, match=f'^{name}: ') as said: load_dataset(name, root)
    assert '\n' not in str(said.value)


@pytest.mark.parametrize('where, words', [
    ('bounding_box_train/0002/0002_c1s1_000001_01.jpg', '1 of 33 images .* lie in folders further below'),
    ('bounding_box_val/0002_c1s1_000001_01.jpg', '1 images in .*bounding_box_val are left out'),
    ('val/0002/a.jpg', '1 images in .*val are left out')])
def test_pictures_beside_and_below_the_folders_of_a_set(tmp_path, where, words):
    root = make_tree('market1501', tmp_path)
    before = load_dataset('market1501', root)
    picture(root/where)
    picture(root/'gt_bbox'/'0002_c1s1_000001_01.jpg')       # of the release, not used by anybody
    with pytest.warns(UserWarning, match=words) as said: after = load_dataset('market1501', root)
    assert len(said) == 1 and len(after) == len(before)


def test_a_split_that_is_a_link_to_nowhere(tmp_path):
    root = make_tree('market1501', tmp_path)
    shutil.rmtree(root/'query')
    assert 'query' not in set(load_dataset('market1501', root)['split'])
    (root/'query').symlink_to(tmp_path/'gone')
    with pytest.raises(DatasetError, match='query is not there'): load_dataset('market1501', root)


def test_cameras_counted_from_zero(tmp_path):
    for i in range(3): picture(tmp_path/'own'/'query'/f'0001_c{i}_{i}.jpg')
    assert load_dataset('market1501', tmp_path/'own')['camid'].tolist() == [0, 1, 2]


def test_a_link_to_a_person_that_leads_nowhere_is_said(tmp_path):
    picture(tmp_path/'f'/'anna'/'a.jpg')
    (tmp_path/'f'/'ben').symlink_to(tmp_path/'gone')
    with pytest.warns(UserWarning, match='1 broken link'): load_dataset('folder', tmp_path/'f')


def test_an_empty_file_is_found_without_opening_the_others(tmp_path):
    root = make_tree('folder', tmp_path)
    report = check_dataset('folder', root)
    assert report.ok
    (next(p for p in root.iterdir() if p.is_dir())/'empty.jpg').touch()
    report = check_dataset('folder', root)
    assert [why for _, why in report.unreadable] == ['the file is empty'] and not report.ok


def test_names_with_a_dot(tmp_path):
    for name in ('set.a', 'set.b'): picture(tmp_path/name/'anna'/'1.jpg')
    assert [load_dataset('folder', tmp_path/f'set.{c}')['domain'][0] for c in 'ab'] == ['set.a', 'set.b']


def test_expected_counts_belong_to_the_folder_and_not_to_the_name_given(tmp_path):
    root = make_tree('market1501', tmp_path)
    root.rename(tmp_path/'campus')
    for options in ({}, dict(domain='market1501')):
        assert check_dataset('market1501', tmp_path/'campus', **options).counts['expected_images'].isna().all()


def toy(**columns):
    "Two people of three images, the second in the test."
    table = dict(path=[f'{i}.jpg' for i in range(6)], pid=[1]*3 + [2]*3, camid=[0, 1, 2]*2, domain='toy',
                 split=['train']*3 + ['query'] + ['gallery']*2)
    return pd.DataFrame(table | columns)


def test_categories_are_text():
    "pandas.Categorical, also with categories that no row has."
    kind = pd.CategoricalDtype(['elsewhere', 'toy'])
    table = toy().astype(dict(domain=kind, split='category', path='category'))
    assert check_records(table, files=False) is table and pool(table)['label'].tolist() == [0, 0, 0]
    assert hold_out(table, 0.9)['split'].tolist() == hold_out(toy(), 0.9)['split'].tolist()


@pytest.mark.parametrize('index', [[0]*6, [5, 4, 3, 2, 1, 0], list('aabbcc')])
def test_an_index_with_repeats_moves_nobody(index):
    "`pd.concat` without `ignore_index` leaves such tables."
    held = hold_out(toy().set_axis(index), 0.9)
    assert sorted(held['split'][:3]) == ['gallery', 'gallery', 'query'] and held.index.tolist() == index
    assert held['split'].tolist()[3:] == toy()['split'].tolist()[3:]
    found = find_leakage(None, toy(path=['a', 'b', 'c', 'q', 'q', 'f']).set_axis(index))
    assert found[['kind', 'rows']].values.tolist() == [['own image', 1]]


def test_a_source_too_small_for_the_share_stays_whole():
    many = pd.DataFrame([dict(path=f'{p}_{c}.jpg', pid=p, camid=c, domain='many', split='train')
                         for p in range(1, 21) for c in (0, 1)])
    few = many[many['pid'] < 3].assign(domain='few', path=lambda t: 'few/' + t['path'])
    words, held = said_by(lambda: hold_out(pd.concat([many, few], ignore_index=True), .1))
    assert 'few: nothing is held out' in words and set(held[held['domain'] == 'few']['split']) == {'train'}
    assert held[(held['domain'] == 'many') & (held['split'] == 'query')]['pid'].nunique() == 2
    assert 'none in every domain' in str(said_by(lambda: hold_out(few, .1))[1])


def test_a_check_counts_identities_by_domain(tmp_path):
    rows = [(f'{i}.jpg', pid, i % 2, domain) for i, (pid, domain) in enumerate(
        [(1, 'a'), (1, 'a'), (2, 'a'), (1, 'b'), (1, 'b'), (2, 'b')])]
    for name, *_ in rows: picture(tmp_path/name)
    pd.DataFrame(rows, columns=['path', 'pid', 'camid', 'domain']).to_csv(tmp_path/'t.csv', index=False)
    report = check_dataset('csv', tmp_path/'t.csv')
    assert report.counts.set_index('split')['identities']['train'] == 4
    assert report.cameras.set_index(['domain', 'camera'])['identities'].to_dict() == {
        ('a', '0'): 2, ('a', '1'): 1, ('b', '0'): 1, ('b', '1'): 2}


def test_nothing_to_hold_out_is_said():
    with pytest.raises(DatasetError, match='no training image'): hold_out(toy()[3:])


@pytest.mark.parametrize('spell', [lambda p: p, lambda p: f'./{p}', os.path.abspath, lambda p: f'x/../{p}'])
def test_one_file_in_two_domains_however_it_is_spelt(spell):
    other = toy(domain='other', path=[spell(p) for p in toy()['path']])
    with pytest.raises(DatasetError, match='stand in two domains'): pool([toy(), other])


@pytest.mark.parametrize('places, said', [
    (('a/market/query/{0}.jpg', 'b/market/query/{0}.jpg'), True), (('a/query/{0}.jpg', 'b/query/other{0}.jpg'), True),
    (('a/query/x/{0}.jpg', 'b/query/x/other{0}.jpg'), True), (('a/{0}.jpg', 'a/other{0}.jpg'), False),
    (('P1/cam1/{0}.jpg', 'P1/cam2/other{0}.jpg'), False), (('one/{0}.jpg', 'two/other{0}.jpg'), False)])
def test_what_gives_two_sets_under_one_name_away(places, said):
    tables = [toy(path=[place.format(i) for i in range(6)], split=['query']*6) for place in places]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        check_records(pd.concat(tables), files=False)
    assert len(found) == said and all('lie in two places' in str(w.message) for w in found)


def test_a_person_in_folders_of_cameras_is_one_place():
    "camera/person/0001.jpg, a usual layout: same names, but other cameras."
    check = toy(path=[f'cam{c}/anna/1.jpg' for c in range(3)] + [f'cam{c}/ben/1.jpg' for c in range(3)])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_records(check, files=False)


# ---- damage of every kind: a report or one line, never a traceback


def damage(file, how, noise):
    "Spoil one file or folder of a tree."
    gone = file.with_name(file.name + '.moved')
    if how == 'cut': file.write_bytes(file.read_bytes()[:len(noise)])
    if how == 'noise': file.write_bytes(noise)
    if how == 'text': file.write_text('0000/x.jpg zero\n\n,,,\n')
    if how in ('gone', 'folder', 'link'): file.rename(gone)
    if how == 'folder': file.mkdir()
    if how == 'link': file.symlink_to(file.parent/'nowhere')
    if how == 'renamed': file.rename(file.with_name(f'{file.stem}{noise.hex()[:8]}{file.suffix}'))


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    home = tmp_path_factory.mktemp('trees')
    forms = [('cuhk03', dict(form='mat')), *((name, {}) for name in PARSERS if name != 'cuhk03')]
    return {name: make_tree(name, home/name, ids=3, **form) for name, form in forms}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_one_line(trees, data, tmp_path_factory):
    name = data.draw(st.sampled_from(sorted(trees)))
    home = tmp_path_factory.mktemp('damaged')/'x'
    shutil.copytree(trees[name].parent, home)
    files = sorted(p for p in home.rglob('*') if p.is_file())
    special = [p for p in files if p.suffix.lower() in ('.txt', '.mat', '.csv')] or files
    file = data.draw(st.sampled_from(data.draw(st.sampled_from([special, files]))))
    how = data.draw(st.sampled_from(['cut', 'noise', 'text', 'gone', 'folder', 'link', 'renamed']))
    damage(file, how, data.draw(st.binary(min_size=4, max_size=400)))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: assert 'usable' in str(check_dataset(name, home/trees[name].name, decode=True, progress=False))
        except DatasetError as error: assert str(error) and '\n' not in str(error)


cells = st.one_of(st.sampled_from(['', '0', '-1', '1', '1.0', 'nan', 'a.jpg', 'b.jpg', 'train', 'query', 'Ä']),
                  st.text(max_size=6))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(['path', 'pid', 'camid', 'split', 'domain', 'label', '']), min_size=1, max_size=6),
       st.lists(st.lists(cells, max_size=7), max_size=5), st.sampled_from([',', ';', '\t']))
def test_any_csv_is_a_table_or_one_line(tmp_path_factory, header, rows, comma):
    home = tmp_path_factory.mktemp('csv')
    for file in ('a.jpg', 'b.jpg'): (home/file).touch()
    text = '\n'.join(comma.join(row) for row in [header, *rows])
    (home/'t.csv').write_bytes(text.encode('utf-8', 'surrogatepass'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: records = load_dataset('csv', home/'t.csv')
        except DatasetError as error: assert '\n' not in str(error)
        else: check_records(records)


# ---- said, refused or read, never guessed

def said_by(f):
    "What a call says in warnings, and what it returns or refuses with."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try: found = f()
        except DatasetError as e: found = e
    return ' | '.join(str(w.message) for w in caught), found


def table_of(folder, text, pictures=4):
    for i in range(pictures): picture(folder/f'{i}.jpg', i)
    (folder/'t.csv').write_text(text)
    return said_by(lambda: load_dataset('csv', folder/'t.csv'))


@pytest.mark.parametrize('head', [
    'path,pid,camid,split', 'Path,PID,CamID,Split', 'path, pid, camid, split', '\ufeffpath,pid,camid ,split\t'])
def test_columns_are_known_however_they_are_spelt(tmp_path, head):
    words, records = table_of(tmp_path, f'{head}\n0.jpg,1,3,query\n1.jpg,1,4, gallery \n')
    assert not words and records['camid'].tolist() == [3, 4] and records['split'].tolist() == ['query', 'gallery']


@pytest.mark.parametrize('column, real', [
    ('cams', 'camid'), ('Cam_ID', 'camid'), ('subset', 'split'), ('dataset', 'domain')])
def test_a_column_that_sounds_like_one_is_not_passed_over(tmp_path, column, real):
    words, records = table_of(tmp_path, f'path,pid,{column}\n0.jpg,1,1\n1.jpg,1,2\n')
    assert f'if {column} is the {real}, call it {real}' in words and len(records) == 2


@pytest.mark.parametrize('pids, words', [
    (['007', '7', '8'], "'007' and '7' are one"), (['car_1', 'car_10', 'car_100'], ''),
    (['c10', 'c100', 'c1000'], ''), (['anna', 'Anna', 'b'], "'anna' and 'Anna' are different"),
    (['p7', 'p07', 'q'], "'p7' and 'p07' are different"), (['-2', '1', '2'], 'identity below 0'),
    (['-1', '1', '2'], 'identity below 0'), (['7', '7.0', ' 7'], ''), (['0007', '0008', '10'], ''),
    (['a', 'a ', 'b'], '')])
def test_what_is_a_guess_is_said(tmp_path, pids, words):
    found, records = table_of(tmp_path, 'path,pid\n' + ''.join(f'{i}.jpg,{p}\n' for i, p in enumerate(pids)))
    assert (words in found if words else not found) and isinstance(records, pd.DataFrame)


@pytest.mark.parametrize('name', ['12e5', '3e8', '7E10', '0x1f', '1-2', '2/3'])
def test_a_name_that_looks_like_a_number_is_a_name(tmp_path, name): assert parse_identity(name) == name


@pytest.mark.parametrize('values', [
    np.array([-1, 0, 5, 5]), np.array([-1., 0, 5, 5], np.float16), [np.array(v) for v in (-1, 0, 5, 5)],
    [b'-1', b'0', b'5', b'5'], pd.array([-1, 0, 5, 5], dtype='Int64'), pd.Categorical(['-1', '0', '5', '5'])])
def test_numbers_of_any_kind_are_numbers(values):
    assert encode_identities(values).tolist() == [-1, 0, 5, 5]
    assert encode_identities(torch.tensor([-1, 0, 5])).tolist() == [-1, 0, 5]


def test_cameras_of_two_kinds_are_said(tmp_path):
    words, records = table_of(tmp_path, 'path,pid,camid\n0.jpg,1,c1\n1.jpg,1,1\n')
    assert 'numbers and names stand together' in words and records['camid'].nunique() == 2


def test_domains_are_compared_without_spaces_and_near_ones_are_said(tmp_path):
    words, records = table_of(tmp_path, 'path,pid,domain\n0.jpg,1,a\n1.jpg,1,a \n2.jpg,1,A\n')
    assert records['domain'].tolist() == ['a', 'a', 'A'] and "'a' and 'A' are two" in words
    words, error = table_of(tmp_path, 'path,pid,domain\n0.jpg,1,a\n1.jpg,1, \n')
    assert 'line 3, column domain' in str(error)


def test_junk_of_a_gallery_is_no_news(tmp_path):
    for i, name in enumerate(['-1_c1s1_0.jpg', '0002_c1s1_0.jpg']): picture(tmp_path/'bounding_box_test'/name, i)
    words, records = said_by(lambda: load_dataset('market1501', tmp_path))
    assert not words and len(records) == 1
    picture(tmp_path/'bounding_box_train'/'-1_c1s1_0.jpg')
    picture(tmp_path/'bounding_box_train'/'3_c1s1_0.jpg')
    picture(tmp_path/'bounding_box_train'/'0003_c2s1_0.jpg')
    words, records = said_by(lambda: load_dataset('market1501', tmp_path))
    assert '1 images have an identity below 0' in words and 'are one identity' in words


@pytest.mark.parametrize('how', ['again', 'dot', 'link', 'hard link', 'linked folder'])
def test_one_file_is_one_person(tmp_path, how):
    "However the second name leads to the file."
    picture(tmp_path/'crops'/'a.jpg')
    other = dict(again='crops/a.jpg', dot=f'{tmp_path}/crops/../crops/a.jpg', link='b.jpg').get(how, 'b.jpg')
    if how == 'link': (tmp_path/'b.jpg').symlink_to('crops/a.jpg')
    if how == 'hard link': os.link(tmp_path/'crops'/'a.jpg', tmp_path/'b.jpg')
    if how == 'linked folder':
        (tmp_path/'more').symlink_to('crops')
        other = 'more/a.jpg'
    words, error = table_of(tmp_path, f'path,pid\ncrops/a.jpg,1\n{other},2\n')
    linked = how in ('link', 'hard link', 'linked folder')
    assert ('2 images are links to files that stand under two identities' in words) == linked
    assert linked or 'more than once' in str(error)


def test_two_folders_that_answer_to_a_name_and_folders_that_are_gone(tmp_path):
    for name in ('Market-1501', 'market1501'): picture(tmp_path/name/'bounding_box_train'/'0002_c1s1_0.jpg')
    words, records = said_by(lambda: load_dataset('market1501', tmp_path))
    assert f'{tmp_path}/Market-1501 is read, not {tmp_path}/market1501' in words
    picture(tmp_path/'viper'/'cam_a'/'001_1.bmp')
    assert 'cam_b is not there' in said_by(lambda: load_dataset('viper', tmp_path/'viper'))[0]


def test_one_set_under_two_names(tmp_path):
    for i in range(4): picture(tmp_path/'a'/'x'/f'{i}.jpg', i)
    (tmp_path/'b').symlink_to('a')
    shutil.copytree(tmp_path/'a', tmp_path/'c')
    tables = {name: load_dataset('folder', tmp_path/name, domain=name) for name in 'abc'}
    with pytest.raises(DatasetError, match='stand in two domains'): pool([tables['a'], tables['b']])
    assert 'share 4 images' in said_by(lambda: pool([tables['a'], tables['c']]))[0]


@pytest.mark.parametrize('ending', ['.jpg_', '.JPG~', '.crdownload', '.bak', '.1', ''])
def test_a_picture_under_any_ending_is_counted(tmp_path, ending):
    picture(tmp_path/'ann'/'a.jpg')
    shutil.copy(tmp_path/'ann'/'a.jpg', tmp_path/'ann'/f'b{ending}')
    for other in ('notes.txt', 'boxes.xml', 'sound.wav'): (tmp_path/'ann'/other).write_bytes(b'RIFF\0\0\0\0WAVE')
    words, records = said_by(lambda: load_dataset('folder', tmp_path))
    assert '1 file is not read' in words and len(records) == 1


@pytest.mark.parametrize('camera, said', [(r'_f(\d+)', True), (r'_c(\d)', False)])
def test_a_rule_that_finds_something_else_than_cameras_is_said(tmp_path, camera, said):
    for i in range(24): picture(tmp_path/f'{i // 6}'/f'x_c{i % 2}_f{i:03d}.jpg', i)
    words, records = said_by(lambda: load_dataset('folder', tmp_path, camera=camera, distractors=False))
    assert ('are these cameras?' in words) == said and len(records) == 24


@pytest.mark.parametrize('share', ['.2', None, float('nan'), 0, 1, 1j])
def test_a_share_that_is_none(share):
    with pytest.raises(DatasetError, match='share must lie between 0 and 1'): hold_out(pd.DataFrame(), share)
