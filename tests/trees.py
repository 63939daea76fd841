"""Small data sets with the real file names of every layout, for tests.

`make_tree(name, root, ids=8)` writes one under `root` and returns its folder. Each has what real copies have:
strays, hidden files, upper-case endings, gaps in the numbering, and the traps of its layout.
"""
import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path, pid=0, size=(16, 32)):
    "A small noisy picture whose two colors belong to an identity; the suffix decides the format."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    top, bottom = np.random.default_rng([7, pid]).integers(20, 235, (2, 3))
    noise = np.random.default_rng(list(path.name.encode())).integers(-20, 20, (size[1], size[0], 3))
    pixels = np.where(np.arange(size[1])[:, None, None] < size[1]//2, top, bottom) + noise
    kind = 'JPEG' if path.suffix.lower() in ('.jpg', '.jpeg') else None
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, format=kind)
    return path


def strays(folder):
    "What lies about in unpacked archives."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('Thumbs.db', '.DS_Store', '._0002_c1s1_000451_03.jpg'): (folder/name).write_bytes(b'\0\1')
    (folder/'readme.txt').write_text('not an image')


def market1501(root, ids=8):
    "Training identities 2, 4, ... at cameras 1 and 2; test identities 1, 3, ...; junk and distractors in the gallery."
    folder = Path(root)/'Market-1501-v15.09.15'
    train, query, gallery = (folder/name for name in ('bounding_box_train', 'query', 'bounding_box_test'))
    for i in range(ids):
        pid, ending = 2*i + 2, 'jpg' if i else 'JPG'
        for cam in (1, 2):
            for k in (1, 2): picture(train/f'{pid:04d}_c{cam}s1_{k:06d}_0{k}.{ending}', pid)
    for i in range(max(2, ids//2)):
        pid = 2*i + 1
        for cam in (1, 2):
            picture(query/f'{pid:04d}_c{cam}s1_000001_00.jpg', pid)
            picture(gallery/f'{pid:04d}_c{cam}s1_000002_01.jpg', pid)
    for k in range(3):
        picture(gallery/f'-1_c{k + 1}s1_{k:06d}_01.jpg', 900 + k)
        picture(gallery/f'0000_c{k + 1}s1_{k:06d}_01.jpg', 910 + k)
    strays(train)
    return folder


def msmt17(root, ids=8, version=1):
    "Train, val and test parts, each numbered from 0; lists with Windows line ends."
    folder = Path(root)/f'MSMT17_V{version}'
    part = dict(train='train', val='train', query='test', gallery='test')
    if version == 2: part = {split: f'mask_{name}_v2' for split, name in part.items()}
    lists = {split: [] for split in part}

    def put(split, i, k, cam):
        name = f'{i:04d}/{i:04d}_{k:03d}_{cam:02d}_0303morning_{k:04d}_0.jpg'
        picture(folder/part[split]/name, i + (100 if split in ('query', 'gallery') else 0))
        lists[split].append(f'{name} {i}')

    for i in range(ids):
        for k, cam in enumerate((1, 1, 14)): put('train', i, k, cam)
        put('val', i, 3, 15)
    for i in range(max(2, ids//2)):
        put('query', i, 0, 2)
        for k, cam in ((1, 3), (2, 2)): put('gallery', i, k, cam)
    for split, lines in lists.items():
        (folder/f'list_{split}.txt').write_bytes(''.join(f'{line}\r\n' for line in lines).encode())
    return folder


def cuhk02(root, ids=8):
    "Five pairs, each numbered from 1; two images a camera."
    home = Path(root)/'cuhk02'/'Dataset'
    for pair in range(1, 6):
        for i in range(1, max(2, -(-ids//5)) + 1):
            for cam in (1, 2):
                for k in (1, 2): picture(home/f'P{pair}'/f'cam{cam}'/f'{i:03d}_{cam}{k:03d}001.png', 100*pair + i)
    strays(home/'P1'/'cam1')
    return home.parent


def cuhk03_people(ids):
    "{image number: uint8 [H,W,3]} for each of `ids` people; images 1..5 are view 1, 6..10 view 2; one is absent."
    r = np.random.default_rng(3)
    return [{i: r.integers(0, 255, (32, 16, 3), dtype=np.uint8) for i in (1, 5, 6, 7) if (p, i) != (0, 5)}
            for p in range(ids)]


def cuhk03_mat(file, pairs, kinds=('labeled',)):
    "`cuhk-03.mat` as MATLAB writes it: references, axes reversed, absent images as empty cells; `pairs` lists people."
    import h5py
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, 'w') as f:
        refs = f.create_group('#refs#')
        def cell(array): return refs.create_dataset(str(len(refs)), data=array).ref
        empty = cell(np.zeros(2, np.uint64))
        for kind in kinds:
            tables = []
            for people in pairs:
                rows = [[cell(p[i].transpose(2, 1, 0)) if i in p else empty for p in people] for i in range(1, 11)]
                tables.append(np.array(rows, dtype=h5py.ref_dtype).reshape(10, len(people)))
            f[kind] = np.array([[cell(table) for table in tables]], dtype=h5py.ref_dtype)


def cuhk03(root, ids=8, form='np'):
    "`np`: the CUHK03-NP folders; `images`: extracted images with the `.mat` split; `mat`: the official `.mat` with it."
    from scipy.io import savemat
    folder = Path(root)/('cuhk03-np' if form == 'np' else 'cuhk03')
    pairs = [cuhk03_people(ids), cuhk03_people(max(2, ids//2)), [], [], []]     # pair 1 trains, pair 2 is the test
    images = []                                                                 # (split, pid, view, number, pixels)
    names = []
    for pair, people in enumerate(pairs):
        for i, person in enumerate(people):
            for k, pixels in person.items():
                split, view = 'train' if pair == 0 else 'query' if k in (1, 6) else 'gallery', 1 if k <= 5 else 2
                images.append((split, i + 1 + pair*ids, view, k, pixels))
                names.append(f'{pair + 1}_{i + 1:03d}_{view}_{k:02d}.png')
    if form == 'np':
        into = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
        for split, pid, view, k, _ in images:
            for kind in ('labeled', 'detected'): picture(folder/kind/into[split]/f'{pid:04d}_c{view}_{k}.png', pid)
        return folder
    folder.mkdir(parents=True)
    def column(values): return np.array(values)[:, None]
    index = {f'{s}_idx': column([j for j, image in enumerate(images, 1) if image[0] == s])
             for s in ('train', 'query', 'gallery')}
    listed = dict(filelist=column(np.array(names, dtype=object)), labels=column([image[1] for image in images]),
                  camId=column([image[2] for image in images]))
    savemat(folder/'cuhk03_new_protocol_config_labeled.mat', listed | index)
    if form == 'mat': cuhk03_mat(folder/'cuhk03_release'/'cuhk-03.mat', pairs)
    else:
        (folder/'images_labeled').mkdir()
        for name, image in zip(names, images): Image.fromarray(image[4]).save(folder/'images_labeled'/name)
    return folder


def cuhk_sysu(root, ids=8, form='jpg'):
    "Crops in either naming, with unlabeled boxes."
    home = Path(root)/'CUHK-SYSU'/'cropped_images'
    for i in range(ids):
        for s in range(3):
            scene = f'_s{10*i + s}_1.jpg' if form == 'jpg' else f'_n3_s{10*i + s}_hard{s % 2}.png'
            picture(home/f'p{11*i + 1}{scene}', i)
    picture(home/('p-1_s7_1.jpg' if form == 'jpg' else 'p-1_n1_s7_hard0.png'), 99)
    return home.parent


def prid(root, ids=8):
    "Identities 1..ids in both cameras, people of one camera only above 200."
    folder = Path(root)/'prid_2011'
    for cam, others in (('a', (201, 385)), ('b', (201, 205, 749))):
        for i in (*range(1, ids + 1), *others):
            somebody_else = 1000 if i > 200 and cam == 'a' else 0
            picture(folder/'single_shot'/f'cam_{cam}'/f'person_{i:04d}.png', i + somebody_else)
    (folder/'multi_shot'/'cam_a').mkdir(parents=True)
    strays(folder/'single_shot'/'cam_a')
    return folder


def grid(root, ids=8):
    "Probe and gallery with distractors 0, and the `.mat` with ten partitions."
    from scipy.io import savemat
    folder = Path(root)/'underground_reid'
    for i in range(1, ids + 1):
        picture(folder/'probe'/f'{i:04d}_{1 + i % 2}_25004_107_32_106_221.jpeg', i)
        picture(folder/'gallery'/f'{i:04d}_{3 + i % 2}_25023_116_134_128_330.jpeg', i)
    for k in range(3): picture(folder/'gallery'/f'0000_{1 + k}_2501{k}_102_137_117_331.jpeg', 900 + k)
    cells = []
    for p in range(10):
        drawn = np.random.default_rng(p).permutation(np.arange(1, ids + 1))[:ids//2]
        cells.append(dict(idx_all=np.arange(3), n=ids//2, train_ids=sorted(drawn.tolist())))
    partitions = dict(features=np.zeros((2, 2)), trainIdxAll=np.array(cells, dtype=object)[None])
    savemat(folder/'features_and_partitions.mat', partitions)
    return folder


def viper(root, ids=8):
    "Numbered from 0 with gaps; one image a camera."
    folder = Path(root)/'VIPeR'
    for i in range(ids):
        for cam, angle in (('a', 45), ('b', 135)): picture(folder/f'cam_{cam}'/f'{3*i:03d}_{angle}.bmp', i)
    strays(folder/'cam_b')
    return folder


def ilids(root, ids=8):
    "Two to four images a person."
    folder = Path(root)/'i-LIDS_Pedestrian'
    for i in range(1, ids + 1):
        for k in range(1, 3 + i % 3): picture(folder/'Persons'/f'{i:04d}{k:03d}.jpg', i)
    return folder


def folder(root, ids=8):
    "A folder per person, names with spaces and letters from elsewhere, the camera in the file name."
    home = Path(root)/'own data'
    for i in range(ids):
        for cam in ('door', 'gate'):
            for k in (1, 2): picture(home/f'Jürgen {i}'/f'x_{cam}_{k}.jpg', i)
    return home


def csv(root, ids=8):
    "A table with relative paths beside the folders, as Windows saves it."
    lines = ['path,pid,camid']
    for file in sorted(folder(root, ids).rglob('*.jpg')):
        person, camera = file.parent.name, file.name.split('_')[1]
        lines.append(f'own data/{person}/{file.name},{person},{camera}')
    table = Path(root)/'own.csv'
    table.write_bytes(''.join(f'{line}\r\n' for line in lines).encode('utf-8-sig'))
    return table


def frames(folder, ids, ending):
    "Three frames in which everybody stands; (frame, identity, left, top) of each 16x32 box."
    folder.mkdir(parents=True)
    boxes = [(i, who, 20*who, 5 + i) for i in (1, 2, 3) for who in range(1, ids + 1)]
    for i in (1, 2, 3):
        pixels = np.full((64, 20*ids + 60, 3), 90, np.uint8)
        for _, who, left, top in boxes[(i - 1)*ids:i*ids]: pixels[top:top + 32, left:left + 16] = (25*who, 200, 40)
        Image.fromarray(pixels).save(folder/f'{i:06d}{ending}')
    return boxes


def mot(root, ids=8):
    "Two MOTChallenge sequences with the same numbers, boxes of another class and boxes that do not count."
    home = Path(root)/'mot'
    for name, ending in (('street', '.png'), ('square', '.jpg')):
        boxes = frames(home/name/'img1', ids, ending)
        lines = [f'{i},{who},{left},{top},16,32,1,1,1' for i, who, left, top in boxes]
        (home/name/'gt').mkdir()
        (home/name/'gt'/'gt.txt').write_text('\n'.join([*lines, '1,90,5,5,9,9,0,1,1', '1,91,5,5,9,9,1,3,1']))
        (home/name/'seqinfo.ini').write_text(f'[Sequence]\nname={name}\nimDir=img1\nimExt={ending}\n')
    return home


def coco(root, ids=8):
    "A COCO file with tracks as CVAT exports it, of two videos."
    home, told = Path(root)/'coco', dict(categories=[dict(id=1, name='person')], images=[], annotations=[], videos=[])
    for v, name in enumerate(('door', 'gate')):
        told['videos'].append(dict(id=v, name=name))
        for i, who, left, top in frames(home/'images'/name, ids, '.png'):
            image = 10*v + i
            if who == 1: told['images'].append(dict(id=image, video_id=v, file_name=f'{name}/{i:06d}.png'))
            told['annotations'].append(dict(image_id=image, category_id=1, bbox=[left, top, 16, 32],
                                            attributes=dict(track_id=who)))
    (home/'tracks.json').write_text(json.dumps(told))
    return home/'tracks.json'


MAKERS = dict(market1501=market1501, msmt17=msmt17, cuhk02=cuhk02, cuhk03=cuhk03, cuhk_sysu=cuhk_sysu, prid=prid,
              grid=grid, viper=viper, ilids=ilids, folder=folder, csv=csv, mot=mot, coco=coco)


def make_tree(name, root, ids=8, **options):
    "Write the small tree of one data set under `root`; return the folder (or file) to give to `load_dataset`."
    return MAKERS[name](root, ids, **options)
