"""Small data sets with the real file names of every layout, for tests.

`make_tree(name, root, ids=8)` writes one under `root` and returns its folder. Each has what real copies have:
strays, hidden files, upper-case extensions, gaps in the numbering, and the traps of its layout.
"""

from pathlib import Path
import numpy as np
from PIL import Image


def picture(path, pid=0, size=(16, 32)):
    "A small noisy picture whose two colours belong to an identity; the suffix decides the format."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    top, bottom = np.random.default_rng([7, pid]).integers(20, 235, (2, 3))
    noise = np.random.default_rng(list(path.name.encode())).integers(-20, 20, (size[1], size[0], 3))
    pixels = np.where(np.arange(size[1])[:, None, None] < size[1] // 2, top, bottom) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
        path, format='JPEG' if path.suffix.lower() in ('.jpg', '.jpeg') else None
    )
    return path


def strays(folder):
    "What lies about in unpacked archives."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'Thumbs.db').write_bytes(b'\0\1')
    (folder / '.DS_Store').write_bytes(b'\0\1')
    (folder / '._0002_c1s1_000451_03.jpg').write_bytes(b'\0\1')
    (folder / 'readme.txt').write_text('not an image')


def market1501(root, ids=8):
    "Training identities 2, 4, ... at cameras 1 and 2; test identities 1, 3, ...; junk and distractors in the gallery."
    folder = Path(root) / 'Market-1501-v15.09.15'
    for i in range(ids):
        for cam in (1, 2):
            for k in (1, 2):
                picture(
                    folder
                    / 'bounding_box_train'
                    / f'{2 * i + 2:04d}_c{cam}s1_{k:06d}_0{k}.{"JPG" if i == 0 else "jpg"}',
                    2 * i + 2,
                )
    for i in range(max(2, ids // 2)):
        for cam in (1, 2):
            picture(folder / 'query' / f'{2 * i + 1:04d}_c{cam}s1_000001_00.jpg', 2 * i + 1)
            picture(folder / 'bounding_box_test' / f'{2 * i + 1:04d}_c{cam}s1_000002_01.jpg', 2 * i + 1)
    for k in range(3):
        picture(folder / 'bounding_box_test' / f'-1_c{k + 1}s1_{k:06d}_01.jpg', 900 + k)
        picture(folder / 'bounding_box_test' / f'0000_c{k + 1}s1_{k:06d}_01.jpg', 910 + k)
    strays(folder / 'bounding_box_train')
    return folder


def msmt17(root, ids=8, version=1):
    "Train, val and test parts, each numbered from 0; lists with Windows line ends."
    folder = Path(root) / f'MSMT17_V{version}'
    part = dict(train='train', val='train', query='test', gallery='test')
    if version == 2:
        part = {k: f'mask_{v}_v2' for k, v in part.items()}
    lists = {k: [] for k in part}

    def put(split, i, k, cam):
        name = f'{i:04d}/{i:04d}_{k:03d}_{cam:02d}_0303morning_{k:04d}_0.jpg'
        picture(folder / part[split] / name, i + (100 if split in ('query', 'gallery') else 0))
        lists[split].append(f'{name} {i}')

    for i in range(ids):
        for k, cam in enumerate((1, 1, 14)):
            put('train', i, k, cam)
        put('val', i, 3, 15)
    for i in range(max(2, ids // 2)):
        put('query', i, 0, 2)
        for k, cam in ((1, 3), (2, 2)):
            put('gallery', i, k, cam)
    for k, lines in lists.items():
        (folder / f'list_{k}.txt').write_bytes(''.join(f'{x}\r\n' for x in lines).encode())
    return folder


def cuhk02(root, ids=8):
    "Five pairs, each numbered from 1; two images a camera."
    folder = Path(root) / 'cuhk02'
    for pair in range(1, 6):
        for i in range(1, max(2, -(-ids // 5)) + 1):
            for cam in (1, 2):
                for k in (1, 2):
                    picture(
                        folder / 'Dataset' / f'P{pair}' / f'cam{cam}' / f'{i:03d}_{cam}{k:03d}001.png', 100 * pair + i
                    )
    strays(folder / 'Dataset' / 'P1' / 'cam1')
    return folder


def cuhk03_people(ids):
    "A dict {image number: uint8 [H,W,3]} a person; images 1..5 are view 1, 6..10 view 2; one is absent."
    r = np.random.default_rng(3)
    return [
        {i: r.integers(0, 255, (32, 16, 3), dtype=np.uint8) for i in (1, 5, 6, 7) if (p, i) != (0, 5)}
        for p in range(ids)
    ]


def cuhk03_mat(file, pairs, kinds=('labeled',)):
    "`cuhk-03.mat` as MATLAB writes it: references, axes reversed, absent images as empty cells; `pairs` lists people."
    import h5py

    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, 'w') as f:
        refs = f.create_group('#refs#')
        cell = lambda a: refs.create_dataset(str(len(refs)), data=a).ref
        empty = cell(np.zeros(2, np.uint64))
        for kind in kinds:
            tables = [
                np.array(
                    [[cell(p[i].transpose(2, 1, 0)) if i in p else empty for p in people] for i in range(1, 11)],
                    dtype=h5py.ref_dtype,
                ).reshape(10, len(people))
                for people in pairs
            ]
            f[kind] = np.array([[cell(t) for t in tables]], dtype=h5py.ref_dtype)


def cuhk03(root, ids=8, form='np'):
    "`np`: the CUHK03-NP folders; `images`: extracted images with the `.mat` split; `mat`: the official `.mat` with it."
    from scipy.io import savemat

    folder = Path(root) / ('cuhk03-np' if form == 'np' else 'cuhk03')
    half = max(2, ids // 2)
    pairs = [cuhk03_people(ids), cuhk03_people(half), [], [], []]  # pair 1 trains, pair 2 is the test
    names = [
        (f'{p + 1}_{i + 1:03d}_{1 if k <= 5 else 2}_{k:02d}.png', i + 1 + p * ids, p, k, person[k])
        for p, people in enumerate(pairs)
        for i, person in enumerate(people)
        for k in person
    ]
    split = lambda p, k: 'train' if p == 0 else 'query' if k in (1, 6) else 'gallery'
    if form == 'np':
        into = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
        for n, pid, p, k, _ in names:
            for kind in ('labeled', 'detected'):
                picture(folder / kind / into[split(p, k)] / f'{pid:04d}_c{1 if k <= 5 else 2}_{k}.png', pid)
        return folder
    folder.mkdir(parents=True)
    index = {
        f'{s}_idx': np.array([[j + 1] for j, (_, _, p, k, _) in enumerate(names) if split(p, k) == s])
        for s in ('train', 'query', 'gallery')
    }
    savemat(
        folder / 'cuhk03_new_protocol_config_labeled.mat',
        dict(
            filelist=np.array([n[0] for n in names], dtype=object)[:, None],
            labels=np.array([[n[1]] for n in names]),
            camId=np.array([[int(n[0].split('_')[2])] for n in names]),
            **index,
        ),
    )
    if form == 'mat':
        cuhk03_mat(folder / 'cuhk03_release' / 'cuhk-03.mat', pairs)
    else:
        (folder / 'images_labeled').mkdir()
        for n in names:
            Image.fromarray(n[4]).save(folder / 'images_labeled' / n[0])
    return folder


def cuhk_sysu(root, ids=8, form='jpg'):
    "Crops in either naming, with unlabelled boxes."
    folder = Path(root) / 'CUHK-SYSU'
    for i in range(ids):
        for s in range(3):
            picture(
                folder
                / 'cropped_images'
                / (
                    f'p{11 * i + 1}_s{10 * i + s}_1.jpg'
                    if form == 'jpg'
                    else f'p{11 * i + 1}_n3_s{10 * i + s}_hard{s % 2}.png'
                ),
                i,
            )
    picture(folder / 'cropped_images' / ('p-1_s7_1.jpg' if form == 'jpg' else 'p-1_n1_s7_hard0.png'), 99)
    return folder


def prid(root, ids=8):
    "Identities 1..ids in both cameras, people of one camera only above 200."
    folder = Path(root) / 'prid_2011'
    for cam in 'ab':
        for i in (*range(1, ids + 1), *((201, 385) if cam == 'a' else (201, 205, 749))):
            picture(
                folder / 'single_shot' / f'cam_{cam}' / f'person_{i:04d}.png',
                i + (1000 if i > 200 and cam == 'a' else 0),
            )
    (folder / 'multi_shot' / 'cam_a').mkdir(parents=True)
    strays(folder / 'single_shot' / 'cam_a')
    return folder


def grid(root, ids=8):
    "Probe and gallery with distractors 0, and the `.mat` with ten partitions."
    from scipy.io import savemat

    folder = Path(root) / 'underground_reid'
    for i in range(1, ids + 1):
        picture(folder / 'probe' / f'{i:04d}_{1 + i % 2}_25004_107_32_106_221.jpeg', i)
        picture(folder / 'gallery' / f'{i:04d}_{3 + i % 2}_25023_116_134_128_330.jpeg', i)
    for k in range(3):
        picture(folder / 'gallery' / f'0000_{1 + k}_2501{k}_102_137_117_331.jpeg', 900 + k)
    train = [
        sorted(int(i) for i in np.random.default_rng(p).permutation(np.arange(1, ids + 1))[: ids // 2])
        for p in range(10)
    ]
    savemat(
        folder / 'features_and_partitions.mat',
        dict(
            features=np.zeros((2, 2)),
            trainIdxAll=np.array([dict(idx_all=np.arange(3), n=ids // 2, train_ids=t) for t in train], dtype=object)[
                None
            ],
        ),
    )
    return folder


def viper(root, ids=8):
    "Numbered from 0 with gaps; one image a camera."
    folder = Path(root) / 'VIPeR'
    for i in range(ids):
        for cam, angle in (('a', 45), ('b', 135)):
            picture(folder / f'cam_{cam}' / f'{3 * i:03d}_{angle}.bmp', i)
    strays(folder / 'cam_b')
    return folder


def ilids(root, ids=8):
    "Two to four images a person."
    folder = Path(root) / 'i-LIDS_Pedestrian'
    for i in range(1, ids + 1):
        for k in range(1, 3 + i % 3):
            picture(folder / 'Persons' / f'{i:04d}{k:03d}.jpg', i)
    return folder


def folder(root, ids=8):
    "A folder per person, names with spaces and letters from elsewhere, the camera in the file name."
    home = Path(root) / 'own data'
    for i in range(ids):
        for cam in ('door', 'gate'):
            for k in (1, 2):
                picture(home / f'Jürgen {i}' / f'x_{cam}_{k}.jpg', i)
    return home


def csv(root, ids=8):
    "A table with relative paths beside the folders."
    home = folder(root, ids)
    lines = [
        f'own data/{f.parent.name}/{f.name},{f.parent.name},{f.name.split("_")[1]}' for f in sorted(home.rglob('*.jpg'))
    ]
    (Path(root) / 'own.csv').write_bytes(
        ('path,pid,camid\r\n' + ''.join(f'{x}\r\n' for x in lines)).encode('utf-8-sig')
    )
    return Path(root) / 'own.csv'


MAKERS = dict(
    market1501=market1501,
    msmt17=msmt17,
    cuhk02=cuhk02,
    cuhk03=cuhk03,
    cuhk_sysu=cuhk_sysu,
    prid=prid,
    grid=grid,
    viper=viper,
    ilids=ilids,
    folder=folder,
    csv=csv,
)


def make_tree(name, root, ids=8, **options):
    "Write the small tree of one data set under `root`; return the folder (or file) to give to `load_dataset`."
    return MAKERS[name](root, ids, **options)
