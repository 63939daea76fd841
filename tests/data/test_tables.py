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

WIDTH, HEIGHT = 16, 32


def paste(frame, place, color):
    "A rendered identity of one color at a place of a frame."
    frame.paste(Image.new('RGB', (WIDTH, HEIGHT), color), place)


def frames_of(folder, n=3, ending='.png'):
    "Frames in which red walks right and blue stands; the boxes of each as (frame, identity, left, top)."
    boxes = []
    folder.mkdir(parents=True)
    for i in range(1, n + 1):
        frame = Image.new('RGB', (120, 80), (90, 90, 90))
        for who, (place, color) in enumerate((((10*i, 20), (250, 0, 0)), ((80, 40), (0, 0, 250))), 1):
            paste(frame, place, color)
            boxes.append((i, who, *place))
        frame.save(folder/f'{i:06d}{ending}')
    return boxes


@pytest.fixture
def sequence(tmp_path, monkeypatch):
    "A MOTChallenge sequence; boxes that do not count: ignored, another class, hidden."
    monkeypatch.setenv('CLIP_DFGS_CACHE', str(tmp_path/'cache'))
    home = tmp_path/'set'/'MOT17-02-DPM'
    lines = [f'{i},{who},{left},{top},{WIDTH},{HEIGHT},1,1,1' for i, who, left, top in frames_of(home/'img1')]
    lines += ['1,5,0,0,9,9,0,1,1', '1,6,0,0,9,9,1,7,1', '1,7,0,0,9,9,1,1,0.1']
    (home/'gt').mkdir()
    (home/'gt'/'gt.txt').write_text('\n'.join(lines))
    (home/'seqinfo.ini').write_text('[Sequence]\nname=MOT17-02-DPM\nimDir=img1\nimExt=.png\n')
    return home


def colors(table):
    return [np.asarray(Image.open(path)).reshape(-1, 3).mean(0).round(-1).tolist() for path in table['path']]


def test_a_sequence_gives_crops_of_those_who_count(sequence):
    table = load_dataset('mot', sequence.parent)
    assert table[['identity', 'camera', 'domain', 'camid', 'pid']].values.tolist() == [
        [who, 'MOT17-02-DPM', 'MOT17-02-DPM', 0, int(who)] for who in ('1', '2')*3]
    assert colors(table) == [[250, 0, 0], [0, 0, 250]]*3
    assert {Image.open(path).size for path in table['path']} == {(WIDTH, HEIGHT)}
    assert load_dataset('mot', sequence, visibility=0.)['identity'].tolist().count('7') == 1
    assert len(load_dataset('mot', sequence, frame_step=2)) == 4
    assert set(hold_out(table, .5)['split']) == {'train', 'query', 'gallery'}


def test_crops_are_cut_once_and_follow_the_annotation(sequence):
    first = load_dataset('mot', sequence)
    stamp = os.stat(first['path'][0]).st_mtime_ns
    assert os.stat(load_dataset('mot', sequence)['path'][0]).st_mtime_ns == stamp
    file = sequence/'gt'/'gt.txt'
    file.write_text(file.read_text().replace('1,1,10,20,16', '1,1,10,20,8'))
    assert Image.open(load_dataset('mot', sequence)['path'][0]).size == (8, HEIGHT)
    assert not [p for p in Path(os.environ['CLIP_DFGS_CACHE']).iterdir() if p.name.startswith('part-')]


def test_identities_of_two_sequences_are_not_one(sequence):
    shutil.copytree(sequence, sequence.with_name('MOT17-04-DPM'))
    (sequence.with_name('MOT17-04-DPM')/'seqinfo.ini').unlink()
    for file in (sequence.with_name('MOT17-04-DPM')/'img1').iterdir():
        Image.open(file).save(file.with_suffix('.jpg'))
    shutil.copytree(sequence, sequence.with_name('MOT17-02-SDP'))
    with pytest.warns(UserWarning, match='1 of 3 sequences are the frames of another detector'):
        table = load_dataset('mot', sequence.parent)
    assert pool(table)['label'].nunique() == 4 and table['domain'].nunique() == 2


@pytest.mark.parametrize('line', ['1,1,5,5,9', 'a,b,c,d,e,f', '1,1,10,20,16,32,1,1,1,1,1', '1,1,,20,16,32,1,1,1', ''])
def test_a_file_of_other_columns_is_one_line(sequence, line):
    (sequence/'gt'/'gt.txt').write_text(line)
    code, _, err = said('check-data', 'mot', sequence)
    assert code == 2 and 'gt.txt' in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize('damage, words', [
    (lambda s: shutil.rmtree(s/'img1'), '3 frames are missing'), (lambda s: shutil.rmtree(s/'gt'), 'gt/gt.txt'),
    (lambda s: (s/'seqinfo.ini').write_text('name=1'), 'seqinfo.ini'),
    (lambda s: (s/'img1'/'000002.png').write_bytes(b'no image'), '000002.png'),
    (lambda s: (s/'gt'/'gt.txt').write_text('1,-1,10,20,16,32,.9'), 'no visible pedestrian'),
    (lambda s: (s/'gt'/'gt.txt').write_text('1,1,10,20,0,32,1'), 'no width or height'),
    (lambda s: (s/'gt'/'gt.txt').write_text('1,1,500,20,16,32,1'), 'lies outside')])
def test_a_damaged_sequence_is_one_line(sequence, damage, words):
    damage(sequence)
    code, _, err = said('train', '--source', f'mot:{sequence}', '--out', sequence/'run', '--batch', '16')
    assert code == 2 and words in err.splitlines()[-1] and not (sequence/'run').exists()


@pytest.fixture
def coco(sequence):
    "A COCO file as CVAT exports it: tracks among the attributes, frames in `images` beside the folder of annotations."
    home = sequence.parent.parent/'coco'
    boxes = frames_of(home/'images'/'gate')
    notes = [dict(id=j, image_id=i, category_id=1, bbox=[left, top, WIDTH, HEIGHT], iscrowd=0,
                  attributes=dict(track_id=10 + who, occluded=False)) for j, (i, who, left, top) in enumerate(boxes)]
    told = dict(images=[dict(id=i, file_name=f'gate/{i:06d}.png') for i in (1, 2, 3)], annotations=notes,
                categories=[dict(id=1, name='person'), dict(id=2, name='bag')])
    told['annotations'] += [dict(notes[0], category_id=2), dict(notes[0], iscrowd=1)]
    (home/'annotations').mkdir()
    (home/'annotations'/'default.json').write_text(json.dumps(told))
    return home/'annotations'/'default.json'


def test_tracks_of_a_coco_file(coco):
    table = load_dataset('coco', coco, camera='(gate)/')
    assert table['identity'].tolist() == ['11', '12']*3 and set(table['camera']) == {'gate'}
    assert colors(table) == [[250, 0, 0], [0, 0, 250]]*3 and set(table['domain']) == {'default'}
    told = json.loads(coco.read_text())
    del told['annotations'][0]['attributes']['track_id']
    coco.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match='1 images have no known identity'): assert len(load_dataset('coco', coco)) == 5


@pytest.mark.parametrize('change', [
    dict(annotations=[dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4])]), dict(annotations=3), dict(images=[{}]),
    dict(annotations=[dict(image_id=9, category_id=1, bbox=[1, 2, 3, 4], track_id=1)]), dict(annotations=[]),
    dict(annotations=[dict(image_id=1, category_id=1, bbox=[1, 2, 3], track_id=1)])])
def test_a_damaged_coco_file_is_one_line(coco, change):
    coco.write_text(json.dumps(json.loads(coco.read_text()) | change))
    code, _, err = said('check-data', 'coco', coco)
    assert code == 2 and 'default.json' in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize('columns', [('x1', 'y1', 'x2', 'y2'), ('XMin', 'YMin', 'XMax', 'YMax'),
                                     ('left', 'top', 'right', 'bottom'), ('bbox',)])
def test_boxes_in_a_table(sequence, columns):
    rows = [(f'img1/{i:06d}.png', f'p{who}', 'gate 2', left, top, left + WIDTH, top + HEIGHT)
            for i, who, left, top in frames_of(sequence/'more')]
    table = pd.DataFrame(rows, columns=['path', 'identity', 'camera', *'abcd'])
    boxes = table[[*'abcd']].to_numpy()
    if len(columns) > 1: table[list(columns)] = boxes
    else: table['bbox'] = [str(box.tolist()) for box in boxes]
    table.drop(columns=[*'abcd']).to_csv(sequence/'t.csv', index=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = load_dataset('csv', sequence/'t.csv')
    assert colors(found) == [[250, 0, 0], [0, 0, 250]]*3
    assert set(found['identity']) == {'p1', 'p2'} and set(found['camera']) == {'gate 2'}


def test_boxes_of_left_top_width_height_are_refused(sequence):
    (sequence/'t.csv').write_text('path,pid,bbox\nimg1/000001.png,1,80 40 16 32\n')
    code, _, err = said('check-data', 'csv', sequence/'t.csv')
    assert code == 2 and 'left, top, right, bottom are needed' in err


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
    line = ['test', 'pedestrians', '--target', f'csv:{walks}', '--precision', 'no']
    plain, grouped = (done(*line, *more)[0] for more in ([], ['--exclude', 'walk']))
    assert plain != grouped
    code, _, err = said(*line, '--exclude', 'wlak')
    assert code == 2 and "no column 'wlak'" in err
    code, _, err = said(*line, '--exclude', 'gap')
    assert code == 2 and 'cells of gap are empty' in err


def test_excluded_groups_are_those_of_evaluate(walks):
    "The junk of `evaluate_records` is what the definition says, query by query."
    from clip_dfgs import load_model
    from clip_dfgs.inference.evaluator import evaluate_records
    rows = load_dataset('csv', walks)
    result, = evaluate_records(load_model('pedestrians', 'cpu'), rows, exclude=['walk']).values()
    query, gallery = (rows[rows['split'] == side] for side in ('query', 'gallery'))
    matches = [((gallery['pid'] == q.pid) & (gallery['camid'] != q.camid) & (gallery['walk'] != q.walk)).sum()
               for q in query.itertuples()]
    assert result.queries == sum(n > 0 for n in matches) and result.unmatched == sum(n == 0 for n in matches)
