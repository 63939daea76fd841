"Boxes in frames: tables, MOTChallenge and COCO files, whole and damaged."
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.data.records import hold_out, pool
from command import done, said
from trees import make_tree


@pytest.fixture
def sequence(tmp_path, monkeypatch):
    "A MOTChallenge sequence of three frames with two identities, beside another; some boxes do not count."
    monkeypatch.setenv('CLIP_DFGS_CACHE', str(tmp_path/'cache'))
    return make_tree('mot', tmp_path, ids=2)/'street'


def colors(table):
    return [np.asarray(Image.open(path)).reshape(-1, 3).mean(0).round(-1).tolist() for path in table['path']]


ONE, TWO = [20, 200, 40], [50, 200, 40]


def test_crops_are_cut_once_and_follow_the_annotation(sequence):
    first = load_dataset('mot', sequence)
    assert colors(first) == [ONE, TWO]*3 and first['identity'].tolist() == ['1', '2']*3
    assert set(hold_out(first, .5)['split']) == {'train', 'query', 'gallery'}
    stamp = os.stat(first['path'][0]).st_mtime_ns
    assert os.stat(load_dataset('mot', sequence)['path'][0]).st_mtime_ns == stamp
    file = sequence/'gt'/'gt.txt'
    file.write_text(file.read_text().replace('1,1,20,6,16', '1,1,20,6,8'))
    assert Image.open(load_dataset('mot', sequence)['path'][0]).size == (8, 32)
    assert not [p for p in Path(os.environ['CLIP_DFGS_CACHE']).iterdir() if p.name.startswith('part-')]


def test_identities_of_two_sequences_are_not_one(sequence):
    for detector in ('DPM', 'SDP'): shutil.copytree(sequence, sequence.with_name(f'MOT17-02-{detector}'))
    shutil.rmtree(sequence)
    with pytest.warns(UserWarning, match='1 of 3 sequences are the frames of another detector'):
        table = load_dataset('mot', sequence.parent)
    assert pool(table)['label'].nunique() == 4 and table['domain'].nunique() == 2


DAMAGE = [
    (lambda s: shutil.rmtree(s/'img1'), '3 frames are missing'), (lambda s: shutil.rmtree(s/'gt'), 'gt/gt.txt'),
    (lambda s: (s/'seqinfo.ini').write_text('name=1'), 'seqinfo.ini'),
    (lambda s: (s/'img1'/'000002.png').write_bytes(b'no image'), '000002.png'),
    *((lambda s, line=line: (s/'gt'/'gt.txt').write_text(line), words) for line, words in (
        ('1,-1,10,20,16,32,.9', 'no visible pedestrian'), ('1,1,10,20,0,32,1', 'no width or height'),
        ('1,1,500,20,16,32,1', 'lies outside'), ('1,1,5,5,9', 'gt.txt'), ('a,b,c,d,e,f', 'gt.txt'), ('', 'gt.txt'),
        ('1,1,10,20,16,32,1,1,1,1,1', 'gt.txt'), ('1,1,,20,16,32,1,1,1', 'line 1 is not')))]


@pytest.mark.parametrize('damage, words', DAMAGE)
def test_a_damaged_sequence_is_one_line(sequence, damage, words):
    damage(sequence)
    with pytest.raises(ValueError, match=words) as error: load_dataset('mot', sequence)
    assert '\n' not in str(error.value)


def test_on_the_command_line_too(sequence):
    (sequence/'t.csv').write_text('path,pid,bbox\nimg1/000001.png,1,80 40 16 32\n')
    code, _, err = said('train', '--source', f'csv:{sequence}/t.csv', '--out', sequence/'run', '--batch', '16')
    assert code == 2 and 'left, top, right, bottom are needed' in err and not (sequence/'run').exists()


@pytest.fixture
def coco(sequence): return make_tree('coco', sequence.parent.parent, ids=2)


def test_tracks_of_a_coco_file(coco):
    table = load_dataset('coco', coco, camera='(door|gate)/')
    assert table['identity'].tolist() == ['1', '2']*6 and colors(table) == [ONE, TWO]*6
    told = json.loads(coco.read_text())
    del told['annotations'][0]['attributes']['track_id']
    coco.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match='1 images have no known identity'): table = load_dataset('coco', coco)
    assert len(table) == 11


@pytest.mark.parametrize('change', [
    dict(annotations=[dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4])]), dict(annotations=3), dict(images=[{}]),
    dict(annotations=[dict(image_id=9, category_id=1, bbox=[1, 2, 3, 4], track_id=1)]), dict(annotations=[]),
    dict(annotations=[dict(image_id=1, category_id=1, bbox=[1, 2, 3], track_id=1)])])
def test_a_damaged_coco_file_is_one_line(coco, change):
    coco.write_text(json.dumps(json.loads(coco.read_text()) | change))
    with pytest.raises(ValueError, match='tracks.json') as error: load_dataset('coco', coco)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('columns', [['XMin', 'YMin', 'XMax', 'YMax'], ['bbox']])
def test_boxes_in_a_table(sequence, columns):
    boxes = pd.read_csv(sequence/'gt'/'gt.txt', header=None)[:6]
    table = pd.DataFrame(dict(path=[f'img1/{frame:06d}.png' for frame in boxes[0]], camera='gate 2'))
    table['identity'] = 'p' + boxes[1].astype(str)
    corners = np.stack([boxes[2], boxes[3], boxes[2] + 16, boxes[3] + 32], 1)
    table[columns] = corners if len(columns) > 1 else [[str(corner.tolist())] for corner in corners]
    table.to_csv(sequence/'t.csv', index=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = load_dataset('csv', sequence/'t.csv')
    assert colors(found) == [ONE, TWO]*3 and found['identity'].tolist() == ['p1', 'p2']*3
    assert set(found['camera']) == {'gate 2'}


# ---- groups
@pytest.fixture(scope='module')
def walks(world, tmp_path_factory):
    "A domain as a table with a column of walks: each query shares one with its answers of camera 2."
    table = load_dataset('market1501', world)
    table = table[table['split'] != 'train']
    file = tmp_path_factory.mktemp('walks')/'walks.csv'
    walk = (table['camid'] == 1).map({True: 'second', False: ''})
    walk[table['split'] == 'query'] = 'second'
    table.assign(walk=walk.mask(walk == '', 'other'), gap=walk).to_csv(file, index=False)
    return file


def test_images_that_share_a_group_do_not_count(walks):
    "The junk of `evaluate_records` is what the definition says, query by query; the command line asks for the same."
    from clip_dfgs import load_model
    from clip_dfgs.inference.evaluator import check_targets, evaluate_records
    rows = load_dataset('csv', walks)
    result, = evaluate_records(load_model('pedestrians', 'cpu'), rows, exclude=['walk']).values()
    query, gallery = (rows[rows['split'] == side] for side in ('query', 'gallery'))
    matches = [((gallery['pid'] == q.pid) & (gallery['camid'] != q.camid) & (gallery['walk'] != q.walk)).sum()
               for q in query.itertuples()]
    assert result.queries == sum(n > 0 for n in matches) and result.unmatched == sum(n == 0 for n in matches)
    out, _ = done('test', 'pedestrians', '--target', f'csv:{walks}', '--precision', 'no', '--exclude', 'walk')
    assert f'{100*result.mAP:.1f}' in out
    for name, words in (('wlak', "no column 'wlak'"), ('gap', 'cells of gap are empty')):
        with pytest.raises(ValueError, match=words): check_targets(rows, [name])
