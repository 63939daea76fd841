"Every layout on a small tree, by hand-written expectations; the traps; pooling as a property."
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_tree, picture

from clip_dfgs.data.datasets import EXPECTED, check_dataset, identity_splits, load_dataset
from clip_dfgs.utils.files import stable_shuffle
from clip_dfgs.data.datasets import PARSERS
from clip_dfgs.data.records import COLUMNS, SPLITS, check_records, hold_out, pool
from clip_dfgs.utils.checks import DatasetError


def counts(records):
    "{split: (identities, images)}, distractors not counted as an identity."
    return {s: (t[t['pid'] > 0].groupby(['domain', 'pid']).ngroups, len(t)) for s, t in records.groupby('split')}


# (name, options of the tree, identities and images by split, cameras), all for ids=8
LAYOUTS = [
    ('market1501', {}, dict(train=(8, 32), query=(4, 8), gallery=(4, 11)), {0, 1, 2}),
    ('msmt17', dict(version=1), dict(train=(8, 32), query=(4, 4), gallery=(4, 8)), {0, 1, 2, 13, 14}),
    ('msmt17', dict(version=2), dict(train=(8, 32), query=(4, 4), gallery=(4, 8)), {0, 1, 2, 13, 14}),
    ('cuhk02', {}, dict(train=(10, 40)), set(range(10))),
    ('cuhk03', dict(form='np'), dict(train=(8, 31), query=(4, 8), gallery=(4, 7)), {0, 1}),
    ('cuhk03', dict(form='images'), dict(train=(8, 31), query=(4, 8), gallery=(4, 7)), {0, 1}),
    ('cuhk03', dict(form='mat'), dict(train=(8, 31), query=(4, 8), gallery=(4, 7)), {0, 1}),
    ('cuhk_sysu', dict(form='jpg'), dict(train=(8, 24)), {0}),
    ('cuhk_sysu', dict(form='png'), dict(train=(8, 24)), {0}),
    ('prid', {}, dict(train=(8, 16), gallery=(3, 3)), {0, 1}),
    ('grid', {}, dict(train=(8, 16), gallery=(0, 3)), {0, 1, 2, 3}),
    ('viper', {}, dict(train=(8, 16)), {0, 1}),
    ('ilids', {}, dict(train=(8, 25)), {0}),
    ('folder', {}, dict(train=(8, 32)), {0}),
    ('csv', {}, dict(train=(8, 32)), {0, 1}), ('coco', {}, dict(train=(8, 48)), {0, 1}),
    ('mot', {}, dict(train=(16, 48)), {0}),
]


OWN = ('folder', 'csv', 'mot', 'coco') # data of one's own, found by no usual name


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('CLIP_DFGS_CACHE', str(tmp_path/'the cache'))


@pytest.mark.parametrize('name,form,expected,cameras', LAYOUTS,
                         ids=[f'{n}-{"-".join(map(str, f.values()))}' for n, f, *_ in LAYOUTS])
def test_counts_and_cameras(tmp_path, name, form, expected, cameras):
    root = make_tree(name, tmp_path/'some données', **form)
    records = load_dataset(name, root)
    assert counts(records) == expected
    assert set(records['camid']) == cameras
    assert {*records.columns} == {*COLUMNS, 'identity', 'camera'} | ({'frame'} if name in ('mot', 'coco') else set())
    if name in OWN: return
    pd.testing.assert_frame_equal(load_dataset(name, tmp_path/'some données'), records)  # found from the folder above
    assert set(records['domain']) == {name}


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    walk, iterdir, shuffle = os.walk, Path.iterdir, random.Random(1).shuffle

    def shuffled_walk(*args, **options):
        for here, folders, files in walk(*args, **options):
            shuffle(folders)
            shuffle(files)
            yield here, folders, files

    def shuffled_paths(self):
        paths = list(iterdir(self))
        shuffle(paths)
        return iter(paths)

    for name in PARSERS:
        root = make_tree(name, tmp_path/name)
        first = load_dataset(name, root)
        with monkeypatch.context() as m:
            m.setattr(os, 'walk', shuffled_walk)
            m.setattr(Path, 'iterdir', shuffled_paths)
            pd.testing.assert_frame_equal(load_dataset(name, root), first)


def test_identities_counted_from_zero(tmp_path):
    "0 marks distractors of a gallery; in train and query it can only be an identity."
    root = make_tree('market1501', tmp_path)
    for file in (root/'bounding_box_test').glob('*'):
        if file.name.startswith(('-1', '0000')): file.unlink()
    before = load_dataset('market1501', root)
    picture(root/'query'/'0000_c1s1_000001_01.jpg')
    after = load_dataset('market1501', root, distractors=False)
    assert len(after) == len(before) + 1 and after['pid'].min() == 1
    assert after['pid'].nunique() == before['pid'].nunique() + 1


def test_listed_but_missing(tmp_path):
    root = make_tree('msmt17', tmp_path)
    (root/'train/0000/0000_000_01_0303morning_0000_0.jpg').unlink()
    words = 'msmt17: 1 of 44 images are missing on the disk, first: .*0000_000_01_0303morning_0000_0.jpg'
    with pytest.raises(DatasetError, match=words): load_dataset('msmt17', root)
    report = check_dataset('msmt17', root)
    assert len(report.missing) == 1 and not report.ok and '1 missing:' in str(report)


def test_cuhk03_mat_is_extracted_once_and_damage_leaves_nothing(tmp_path):
    root, cache = make_tree('cuhk03', tmp_path, form='mat'), tmp_path/'the cache'
    records = load_dataset('cuhk03', root)
    stamp = os.stat(records['path'][0]).st_mtime_ns
    assert str(cache) in records['path'][0] and not list(root.rglob('*.png'))
    assert os.stat(load_dataset('cuhk03', root)['path'][0]).st_mtime_ns == stamp
    shutil.rmtree(cache)
    mat = root/'cuhk03_release'/'cuhk-03.mat'
    mat.write_bytes(mat.read_bytes()[:2000])
    with pytest.raises(DatasetError, match='cuhk-03.mat cannot be read'): load_dataset('cuhk03', root)
    assert not list(cache.rglob('*.png')) and not list(cache.rglob('part-*'))


# ---- splits


@pytest.mark.parametrize('name,tables', [('prid', 10), ('grid', 10), ('viper', 20), ('ilids', 10)])
def test_split_tables(tmp_path, name, tables):
    records = load_dataset(name, make_tree(name, tmp_path, ids=9))
    made = identity_splits(name, records)
    assert [t['partition'].iloc[0] for t in made] == [i for i in range(10) for _ in range(tables//10)]
    for t in made:
        check_records(t)
        train, query, gallery = (t[t['split'] == split] for split in SPLITS)
        assert len(query) == 5 == query['pid'].nunique()
        for asked in query.itertuples():                # exactly one answer, and the camera rule does not remove it
            answer = gallery[gallery['pid'] == asked.pid]
            assert len(answer) == 1
            assert answer['camid'].iloc[0] != asked.camid and answer['path'].iloc[0] != asked.path
        assert set(train['pid']) | set(query['pid']) == set(records.loc[records['split'] == 'train', 'pid'])
    assert len({frozenset(t.loc[t['split'] == 'query', 'path']) for t in made}) > 5
    with pytest.raises(DatasetError, match='already'): identity_splits(name, made[0])


def test_splits_are_pinned_for_ever():
    people = dict(viper=632, prid=200, ilids=119)
    drawn = {n: [stable_shuffle(range(1, many + 1), n, i)[:4] for i in (0, 9)] for n, many in people.items()}
    assert drawn == dict(viper=[[55, 14, 371, 407], [122, 543, 197, 462]],
                         prid=[[104, 163, 169, 7], [147, 67, 137, 124]],
                         ilids=[[66, 86, 104, 96], [54, 89, 119, 96]])


def test_official_grid_partitions_are_followed(tmp_path):
    records = load_dataset('grid', make_tree('grid', tmp_path))
    for p, t in enumerate(identity_splits('grid', records)):
        drawn = np.random.default_rng(p).permutation(np.arange(1, 9))[:4]
        assert set(t.loc[t['split'] == 'train', 'pid']) == set(drawn.tolist())
        assert (t['pid'] == 0).sum() == 3
    (tmp_path/'underground_reid'/'features_and_partitions.mat').unlink()
    with pytest.raises(DatasetError, match='features_and_partitions.mat cannot be read'):
        identity_splits('grid', records)


# ---- errors


@pytest.mark.parametrize('name', sorted({*PARSERS} - {*OWN}))
def test_wrong_layouts_say_what_was_expected_and_found(tmp_path, name):
    (tmp_path/'empty').mkdir()
    (tmp_path/'other'/'pictures').mkdir(parents=True)
    (tmp_path/'file.txt').write_text('x')
    wrong = dict(nowhere='nowhere is not there', empty='expected .*; found an empty folder',
                 other='expected .*; found pictures')
    for root, says in (wrong | {'file.txt': 'is not a folder'}).items():
        with pytest.raises(DatasetError, match=says) as said: load_dataset(name, tmp_path/root)
        assert str(said.value).startswith(name) and '\n' not in str(said.value)


@pytest.mark.parametrize('typed,meant', [
    ('market', 'market1501'), ('Market-1501', 'market1501'), ('MSMT', 'msmt17'), ('cuhk-sysu', 'cuhk_sysu'),
    ('VIPeR', 'viper'), ('i-lids', 'ilids'), ('prid2011', 'prid')])
def test_unknown_names_suggest_the_nearest(typed, meant):
    with pytest.raises(DatasetError, match=f'did you mean {meant!r}'): load_dataset(typed, '.')


def test_a_check_says_what_differs_and_nothing_else(tmp_path, monkeypatch):
    picture(make_tree('market1501', tmp_path/'odd')/'query'/'0099_c1s1_000001_00.jpg', 99)
    report = check_dataset('market1501', tmp_path/'odd')
    for words in ('1 queries have no match in the gallery', 'train: 32 images found, 12,936 expected'):
        assert words in str(report)
    monkeypatch.setitem(EXPECTED, 'market1501', dict(train=(8, 32), query=(4, 8), gallery=(4, 11)))
    report = check_dataset('market1501', make_tree('market1501', tmp_path))
    assert report.warnings == [] and report.ok
    assert report.cameras.query('split == "gallery"')['images'].tolist() == [5, 5, 1]
    monkeypatch.setitem(EXPECTED, 'viper', dict(train=(4, 8), query=(4, 4), gallery=(4, 4)))
    assert check_dataset('viper', make_tree('viper', tmp_path)).warnings == []


# ---- pooling and holding out, as properties


SEEN = st.tuples(st.sampled_from(['train', 'test']), st.lists(st.integers(0, 4), min_size=1, max_size=4))
PEOPLE = st.dictionaries(st.integers(1, 30), SEEN, min_size=1, max_size=6)


@st.composite
def tables(draw):
    "One to three domains of people with some cameras each, in train or in the test, and distractors."
    made = []
    for d in range(draw(st.integers(1, 3))):
        rows = []
        for pid, (part, cameras) in draw(PEOPLE).items():
            for i, cam in enumerate(cameras):
                split = 'train' if part == 'train' else ('query', 'gallery')[i % 2]
                rows.append(dict(path=f'{d}/{pid}_{cam}_{i}.jpg', pid=pid, camid=cam, domain=f'd{d}', split=split))
        for i in range(draw(st.integers(0, 2))):
            rows.append(dict(path=f'{d}/nobody{i}.jpg', pid=0, camid=i, domain=f'd{d}', split='gallery'))
        made.append(pd.DataFrame(draw(st.permutations(rows))))
    return made


@settings(max_examples=15, deadline=None)
@given(tables(), st.booleans())
def test_pool_never_joins_and_never_splits(made, include_test):
    everything = pd.concat(made)
    trains = everything[everything['pid'] > 0] if include_test else everything[everything['split'] == 'train']
    if not len(trains):
        with pytest.raises(DatasetError, match='no training image'): pool(made, include_test)
        return
    pooled = pool(made, include_test)
    assert sorted(pooled['path']) == sorted(trains['path'])
    for number, column in (('label', 'pid'), ('cam_label', 'camid')):
        pairs = set(zip(pooled['domain'], pooled[column], pooled[number]))
        assert len(pairs) == len({p[:2] for p in pairs}) == len({p[2] for p in pairs})
        assert sorted(set(pooled[number])) == list(range(pooled[number].nunique()))
    shuffled = pool([t.sample(frac=1, random_state=1) for t in made], include_test)
    assert dict(zip(shuffled['path'], shuffled['label'])) == dict(zip(pooled['path'], pooled['label']))


@settings(max_examples=15, deadline=None)
@pytest.mark.filterwarnings('ignore:.*nothing is held out')
@given(tables(), st.floats(0.05, 0.95), st.integers(0, 5))
def test_hold_out_keeps_rows_and_every_query_can_be_found(made, share, seed):
    records = pd.concat(made, ignore_index=True)
    train = records['split'] == 'train'
    try: held = hold_out(records, share, seed)
    except DatasetError as error:
        assert 'is none' in str(error) or not train.any()
        return
    check_records(held, files=False)
    assert held['path'].tolist() == records['path'].tolist()
    assert (held['split'] == records['split'])[~train].all()
    for asked in held[train & (held['split'] == 'query')].itertuples():
        domain = held['domain'] == asked.domain
        answers = held[domain & (held['pid'] == asked.pid) & (held['split'] == 'gallery')]
        one_camera = records.loc[domain & train, 'camid'].nunique() == 1
        assert len(answers) if one_camera else (answers['camid'] != asked.camid).any()
