"Who is who, in every layout and however it is written; which pictures a folder holds; what a table must not be."
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import make_tree, picture

from clip_dfgs.datasets import check_dataset, load_dataset
from clip_dfgs.records import (DatasetError, check_records, found_again, is_pooled, number_cameras, number_people, pool,
                               whole_number)

SPELLINGS = [int, float, str, lambda n: f'{n}.0', lambda n: f' {n} ', np.int64, np.float32,
             lambda n: f'{n:04d}' if n >= 0 else f'-{-n:03d}']


@given(st.lists(st.integers(-3, 9999), min_size=1, max_size=30), st.data())
def test_a_whole_number_is_a_number_however_it_is_written(numbers, data):
    written = [data.draw(st.sampled_from(SPELLINGS))(n) for n in numbers]
    assert number_people(written).tolist() == numbers


@given(st.lists(st.sampled_from(['anna', 'Bö b', 'NA', 'None', 'x1', 7, '0007', -1, '-1', 0, '0000']), min_size=1))
def test_names_and_numbers_together(written):
    "Junk and distractors keep their meaning; equal people get equal numbers from 1 on, different ones different."
    found = number_people([*written, 'zoe']).tolist()
    for value, number in zip(written, found):
        if value in (-1, '-1'): assert number == -1
        elif value in (0, '0000'): assert number == 0
        else: assert number >= 1
    people = [('7' if v in (7, '0007') else v, n) for v, n in zip(written, found) if n > 0]
    assert len({v for v, _ in people}) == len({n for _, n in people}) == len(set(people))


@pytest.mark.parametrize('value, words', [
    (None, 'is missing'), (float('nan'), 'is missing'), (pd.NA, 'is missing'), (pd.NaT, 'is missing'),
    ('', 'is missing'), ('  ', 'is missing'), (1.5, 'is 1.5, not a whole number'), ('1.5', 'not a whole number'),
    (True, 'neither'),
    (np.bool_(False), 'neither'), (float('inf'), 'not a whole number'), (10**30, 'too large')])
def test_what_is_no_identity_is_refused_with_its_row(value, words):
    for read in (number_people, number_cameras):
        with pytest.raises(DatasetError, match=f'row 2 .*{words}'): read([3, value, 4])


def test_people_without_junk():
    assert number_people([-1, 0, 5], distractors=False).tolist() == [1, 2, 3]
    assert number_people(['0', 'anna'], distractors=False).tolist() == [1, 2]


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


@pytest.mark.parametrize('layout', ['csv', 'folder', 'market1501'])
def test_junk_and_distractors_are_the_same_in_every_layout(tmp_path, layout):
    "Two junk rows dropped, two distractors at 0, three people."
    place = as_layout(layout, tmp_path, ['0005', '-1', '0000', '0007', '0009', '-1', '0000'])
    records = load_dataset(layout, place)
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
    (dict(pid=['NA', 'NA', 'p2']), 2), (dict(pid=['null', 'None', 'nan ']), None), (dict(domain='NA'), 2),
    (dict(domain=12), 2), (dict(camid=['None', 'x', 'None']), 2)])
def test_words_that_pandas_takes_for_missing_are_names(tmp_path, changes, people):
    for i in range(3): picture(tmp_path/f'{i}.jpg', i)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(3)], pid=['a', 'a', 'b'], camid=0))
    table = table.assign(**changes)
    table.to_csv(tmp_path/'t.csv', index=False)
    if people is None:
        with pytest.raises(DatasetError, match='row 3 is missing'): load_dataset('csv', tmp_path/'t.csv')
    else:
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
    ('path,pid\na.jpg,\n', 'line 2, column pid'), ('path,pid\n,1\n', 'line 2, column path'),
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
    mine = records.assign(label=pd.factorize(records['pid'])[0], camera=records['camid'])
    assert not is_pooled(mine) and is_pooled(pool(mine)) and set(pool(mine)['split']) == {'train'}
    pooled = pool(records)
    for broken in (pooled.drop(columns='camera'), pooled.assign(label=pooled['label'] + 1), pooled.assign(label=0),
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
    def table(gallery, camera, cameras=1):
        paths, cams = [str(one), str(gallery), str(other)], [0, camera, cameras - 1]
        return pd.DataFrame(dict(path=paths, pid=[1, 1, 2], camid=cams, domain='x',
                                 split=['query', 'gallery', 'gallery']))
    assert found_again(table(one, 0), content).tolist() == [True]
    assert found_again(table(copy, 0), content).tolist() == [content]
    assert found_again(table(copy, 1, 2), content).tolist() == [content]
    assert found_again(table(one, 0, 2), content).tolist() == [False]      # the camera rule leaves it out


def test_whole_numbers_by_hand():
    assert [whole_number(v) for v in ('007', 7., '-1', 'a1', '1e3')] == [7, 7, -1, None, None]
