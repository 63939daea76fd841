"Decoding, the cache with several writers and with accidents, augmentation that belongs to the image, loaders."
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import warnings
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import kstest
from trees import picture

from clip_dfgs.data import loader
from clip_dfgs.data.datasets import check_dataset, load_dataset, open_images
from clip_dfgs.data.image_io import ImageError, load_image, to_rgb
from clip_dfgs.data.loader import cache_key, cached_images, ImageDataset, make_loader
from clip_dfgs.data.transforms import Augment, crop_and_flip, random_table
from clip_dfgs.models.reid_model import normalize


@pytest.fixture
def paths(tmp_path): return [str(picture(tmp_path/'données 1'/f'{i:03d} é.jpg', i, (20, 40))) for i in range(10)]


def person(size=(64, 128)):
    "An image whose four quarters have different colors."
    quarters = np.array([[[200, 30, 40], [20, 160, 60]], [[40, 60, 190], [220, 200, 90]]], np.uint8)
    return Image.fromarray(quarters).resize(size, Image.Resampling.NEAREST)


# ---- one image

UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # tag -> Pillow's operation, inverted


@pytest.mark.parametrize('suffix, mode', [
    *((suffix, 'RGB') for suffix in ('jpg', 'png', 'webp', 'tif')), ('tif', 'L'), ('tif', 'I;16'), ('png', 'I;16'),
    ('tif', 'CMYK'), ('png', 'P'), ('tif', 'P')])
def test_a_tagged_image_is_turned_as_viewers_turn_it(tmp_path, suffix, mode):
    "Whatever the tag says, what is read is what the image shows."
    upright = person()
    deep = Image.fromarray(np.asarray(upright.convert('L')).astype('u2')*257)
    expected = np.asarray(upright.convert('L' if mode == 'I;16' else mode).convert('RGB')).astype(int)
    options = dict(jpg=dict(quality=95, subsampling=0), webp=dict(lossless=True)).get(suffix, {})
    for tag in range(1, 9):
        stored = deep if mode == 'I;16' else upright.convert(mode)
        if tag in UNDO: stored = stored.transpose(UNDO[tag])
        exif = Image.Exif()
        exif[274] = tag
        stored.save(tmp_path/f'a.{suffix}', exif=exif, **options)
        seen = load_image(tmp_path/f'a.{suffix}', None)
        assert seen.shape == (128, 64, 3) and np.abs(seen - expected).mean() < (4 if suffix == 'jpg' else .01), tag


@pytest.mark.parametrize('bits', [10, 12, 16])
def test_sixteen_bit_gray_has_one_range(tmp_path, bits):
    "The full range of 16 bits is that of 8, whatever part of it a camera uses."
    values = np.linspace(0, 2**bits - 1, 64).astype('u2').reshape(8, 8)
    for name in ('a.png', 'a.tif'): Image.fromarray(values).save(tmp_path/name)
    (tmp_path/'a.pgm').write_bytes(b'P5 8 8 65535\n' + values.astype('>u2').tobytes())
    for name in ('a.png', 'a.tif', 'a.pgm'):
        assert (load_image(tmp_path/name, None)[..., 0] == np.round(values/257)).all()


@pytest.mark.parametrize('top, level', [(0, 0), (1, None), (257, None), (386, 2), (65535, 255)])
def test_deep_gray_of_which_nothing_would_be_left_is_refused(tmp_path, top, level):
    "Mostly 8-bit numbers in a 16-bit file. What is really black stays black."
    Image.fromarray(np.array([[0, top]], 'u2')).save(tmp_path/'a.png')
    if level is not None: assert load_image(tmp_path/'a.png', None).max() == level
    else:
        with pytest.raises(ImageError, match=f'a.png would be black.* up to {top} where 65,535 is white'):
            load_image(tmp_path/'a.png')


def tiff(path, values, bits, white_is_zero=False):
    "Write gray levels as an uncompressed TIFF file; two numbers of 12 bits share three bytes."
    height, width = values.shape
    data = values.astype('<u2').tobytes()
    if bits == 12: data = bytes.fromhex(''.join(f'{v:03x}' for v in values.ravel()))
    short, long = 3, 4
    tags = [(256, short, width), (257, short, height), (258, short, bits), (259, short, 1),
            (262, short, 0 if white_is_zero else 1), (273, long, 8 + 2 + 9*12 + 4), (277, short, 1),
            (278, short, height), (279, long, len(data))]
    entries = b''.join(struct.pack('<HHII', tag, kind, 1, value) for tag, kind, value in tags)
    path.write_bytes(b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + bytes(4) + data)


@pytest.mark.parametrize('bits, white_is_zero', [(12, False), (16, False), (16, True)]) # Pillow reads no 12 with True
def test_gray_in_tiff_files_is_what_their_tags_say(tmp_path, bits, white_is_zero):
    gray = np.linspace(0, 255, 64).round().astype(int).reshape(8, 8)
    full = 2**bits - 1
    values = np.round(gray*(full/255)).astype(int)
    tiff(tmp_path/'a.tif', full - values if white_is_zero else values, bits, white_is_zero)
    assert (load_image(tmp_path/'a.tif', None) == gray[..., None]).all()


@pytest.mark.parametrize('form', ['RGBA', 'LA', 'palette', 'key', 'RGBa', 'La', 'deep'])
def test_what_lies_under_transparent_pixels_does_not_matter(tmp_path, form):
    "A transparent half is gray 128, the opaque one as it was; also in modes that no file has."
    if form == 'deep':
        Image.fromarray(np.array([[0, 30000, 65535]], 'u2')).save(tmp_path/'a.png', transparency=30000)
        assert load_image(tmp_path/'a.png', None)[0, :, 0].tolist() == [0, 128, 255]
        return
    image, mask = person(), Image.fromarray(np.repeat([[255]*32 + [0]*32], 128, 0).astype(np.uint8))
    if form == 'key':
        pixels = np.asarray(image).copy()
        pixels[:, 32:] = (1, 2, 3)
        image = Image.fromarray(pixels)
        image.info['transparency'] = (1, 2, 3)
    else: image.putalpha(mask)
    if form == 'palette': image = image.quantize(16)
    if form in ('LA', 'La'): image = image.convert('LA')
    if form in ('RGBa', 'La'): image = image.convert(form)
    else:
        image.save(tmp_path/'a.png')
        image = Image.open(tmp_path/'a.png')
    seen = np.asarray(to_rgb(image))
    assert (seen[:, 32:] == 128).all() and (seen[:, :32] != 128).any()


@pytest.mark.parametrize('suffix', ['gif', 'png', 'tif', 'webp'])
def test_the_first_of_several_images_is_taken(tmp_path, suffix):
    options = dict(lossless=True) if suffix == 'webp' else {}
    person().save(tmp_path/f'a.{suffix}', save_all=True, append_images=[Image.new('RGB', (64, 128))], **options)
    assert np.abs(load_image(tmp_path/f'a.{suffix}', None).astype(int) - np.asarray(person())).mean() < 3


FORMATS = dict(jpg='JPEG', png='PNG', gif='GIF', bmp='BMP', tif='TIFF', webp='WEBP', ppm='PPM', tga='TGA',
               jp2='JPEG2000', avif='AVIF')


@pytest.mark.parametrize('suffix', FORMATS)
def test_cut_files_are_refused_and_damaged_ones_are_read_or_refused(tmp_path, suffix):
    "Half an image is never read as a whole one; random bytes end in one line, whatever a decoder raises."
    if FORMATS[suffix] not in Image.registered_extensions().values(): pytest.skip(f'this Pillow cannot read {suffix}')
    file, draw = tmp_path/f'the one.{suffix}', np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    person().save(file, FORMATS[suffix], **dict(exif=exif) if suffix in ('jpg', 'png', 'webp', 'avif') else {})
    whole = file.read_bytes()
    for share in (0, .3, .6, .9):
        file.write_bytes(whole[:int(len(whole)*share)])
        with pytest.raises(ImageError, match='the one'): load_image(file)
    for _ in range(30):
        damaged = bytearray(whole)
        for place in draw.integers(0, min(len(whole), 400), draw.integers(1, 6)): damaged[place] = draw.integers(256)
        file.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: assert load_image(file, (8, 8)).shape == (8, 8, 3)
            except ImageError as problem: assert 'the one' in str(problem) and '\n' not in str(problem)


BAD = dict(fractions=np.full((8, 8), .5, 'f4'), whole=np.full((8, 8), 5, 'i4'), black=np.full((8, 8), 5, 'u2'),
           half=person(), empty=b'', text=b'hello', absent=None, folder='folder')


@pytest.mark.parametrize('spoil', BAD)
def test_a_check_finds_what_loading_refuses(tmp_path, spoil):
    "`check-data --decode` reads by the same rule as training does; one line with the name of the file."
    good, bad, content = tmp_path/'good.tif', tmp_path/'the bad one.tif', BAD[spoil]
    person().save(good)
    if spoil == 'half': bad.write_bytes(good.read_bytes()[:2000])
    elif spoil == 'folder': bad.mkdir()
    elif isinstance(content, bytes): bad.write_bytes(content)
    elif content is not None: Image.fromarray(content).save(bad)
    with pytest.raises(ImageError, match='the bad one.tif') as loading: load_image(bad)
    found, _ = open_images([good, bad], progress=False)
    assert [file for file, _ in found] == [bad] and str(loading.value) == f'image {bad} {found[0][1]}'
    assert '\n' not in str(loading.value)


# ---- the cache

def test_an_image_is_decoded_once_and_read_again_only_where_its_file_changed(tmp_path, paths, monkeypatch):
    decoded, digests = [], []
    monkeypatch.setattr(loader, 'load_image', lambda p, s: decoded.append(p) or load_image(p, s))
    monkeypatch.setattr(loader, 'cache_key', lambda *a, **o: digests.append(o or a) or cache_key(*a, **o))
    def load(some, size=(16, 8)):
        digests.clear()
        decoded.clear()
        pixels = cached_images(some, size, cache=tmp_path/'c')
        return np.array(pixels), len(decoded), sum(not isinstance(d, dict) for d in digests)

    first, *counts = load(paths)
    assert counts == [10, 1] and load(paths)[1:] == (0, 0)      # neither decoded nor read again
    assert load(paths, (8, 16))[1] == 10
    (tmp_path/'moved').mkdir()
    moved, *counts = load([str(shutil.copy(p, tmp_path/'moved')) for p in paths])
    assert (moved == first).all() and counts == [0, 1]          # one cache serves both
    picture(paths[4], 77, (20, 40))
    os.utime(paths[4], ns=(1, 1))
    changed, *counts = load(paths)
    assert counts == [10, 1] and (changed != first).any((1, 2, 3)).nonzero()[0].tolist() == [4]


@pytest.mark.filterwarnings('ignore:.*of one color')
@pytest.mark.parametrize('how', ['replace', 'rewrite'])
def test_an_image_replaced_under_its_name_is_seen(tmp_path, how):
    "Uncompressed images have one length, and archives set the time of change."
    file, found = tmp_path/'000_45.bmp', []
    for value in (0, 200, 0):
        if how == 'replace': file.unlink(missing_ok=True)
        Image.new('RGB', (48, 128), (value,)*3).save(file)
        os.utime(file, (1e9, 1e9))
        found.append(int(cached_images([file], (128, 64), tmp_path/'cache')[0].max()))
    assert found == [0, 200, 0]


def fill(cache, paths, pause, begun, out):
    "A process that fills the cache, slowly: the digest of what it got, and how many images it decoded."
    decoded = []
    def slow(path, size):
        begun.set()
        decoded.append(path)
        time.sleep(pause)
        return load_image(path, size)

    loader.load_image = slow
    pixels = cached_images(paths, (64, 32), cache=cache, workers=2)
    out.put((hashlib.sha256(pixels.tobytes()).hexdigest(), len(decoded)))


def test_several_writers_share_one_decoding_and_a_killed_one_blocks_nobody(tmp_path):
    paths = [str(picture(tmp_path/'many'/f'{i}.jpg', i, (64, 128))) for i in range(60)]
    fork, cache = get_context('fork'), tmp_path/'c'
    begun, out = fork.Event(), fork.Queue()
    killed = fork.Process(target=fill, args=(cache, paths, 60, begun, out))
    killed.start()
    assert begun.wait(60)
    killed.kill()
    killed.join()
    assert list(cache.glob('*.part'))
    jobs = [fork.Process(target=fill, args=(cache, paths, .01, begun, out)) for _ in range(2)]
    for job in jobs: job.start()
    digests, counts = zip(*(out.get(timeout=300) for _ in jobs))
    assert len(set(digests)) == 1 and sorted(counts) == [0, 60]
    assert len(list(cache.glob('*.npy'))) == 1 and not list(cache.glob('*.part'))

@pytest.mark.parametrize('damage', [b'', b'rubbish', 'half', 'objects'])
def test_a_damaged_cache_file_is_made_again(tmp_path, paths, damage):
    first = np.array(cached_images(paths, (16, 8), cache=tmp_path))
    file = next(tmp_path.glob('*.npy'))
    if damage == 'objects': np.save(file, np.array([{'a': 1}], dtype=object), allow_pickle=True) # never unpickled
    else: file.write_bytes(file.read_bytes()[:file.stat().st_size//2] if damage == 'half' else damage)
    assert (cached_images(paths, (16, 8), cache=tmp_path) == first).all()


def raising(error):
    def refuse(*_, **__): raise error
    return refuse


@pytest.mark.parametrize('what, error, words', [
    ('file', None, 'cannot be written'), ('shutil.disk_usage', None, 'has 0.00 GB free.*cache="off"'),
    ('os.posix_fallocate', OSError(28, 'No space left on device'), 'No space left on device.*cache="off"'),
    ('FileLock', PermissionError(13, 'Permission denied'), 'Permission denied'),
    ('image', None, '005 é.jpg'), ('missing', None, 'missing'), ('none', None, 'empty')])
def test_what_stops_a_cache_is_one_line_and_leaves_nothing(tmp_path, paths, monkeypatch, what, error, words):
    folder = tmp_path/'c'
    if what == 'file':
        (tmp_path/'file').write_text('')
        folder = tmp_path/'file'/'c'
    if what == 'image': Path(paths[5]).write_bytes(Path(paths[5]).read_bytes()[:100])
    if what == 'missing': paths.append(tmp_path/'none.jpg')
    if what == 'none': paths.clear()
    if what == 'shutil.disk_usage':
        monkeypatch.setattr(loader.shutil, 'disk_usage', lambda p: type('U', (), dict(free=100))())
    if error: monkeypatch.setattr(f'clip_dfgs.data.loader.{what}', raising(error))
    with pytest.raises(ImageError, match=words): cached_images(paths, (16, 8), cache=folder)
    assert {p.suffix for p in folder.glob('*')} <= {'.lock'}


def test_a_folder_one_may_only_read_is_enough_once_the_cache_is_there(tmp_path, paths, monkeypatch):
    first = np.array(cached_images(paths, (16, 8), cache=tmp_path/'c'))
    monkeypatch.setattr(loader, 'FileLock', raising(PermissionError(13, 'Permission denied')))
    assert (cached_images(paths, (16, 8), cache=tmp_path/'c') == first).all()


def test_a_large_cache_is_announced_before_it_is_made(tmp_path, paths, capsys, monkeypatch):
    monkeypatch.setattr(loader, '_decode_all', raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): cached_images(paths*40, (1024, 512), cache=tmp_path/'c')
    assert 'caching 400 images: 0.63 GB in' in capsys.readouterr().err
    assert {p.suffix for p in (tmp_path/'c').iterdir()} == {'.lock'}


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ('fcntl', 'resource'): raise ImportError(name)
sys.meta_path.insert(0, Absent())
from dataclasses import replace
from clip_dfgs import fit, load_dataset, pool, TrainConfig
from clip_dfgs.data.loader import cached_images
from clip_dfgs.gallery.gallery import find_images, Gallery
from clip_dfgs.gallery.store import embed_gallery
home, world = sys.argv[1:]
rows = load_dataset('market1501', world)
for _ in range(2): assert cached_images(rows['path'][:5], (16, 8), f'{home}/cache').shape == (5, 16, 8, 3)
config = TrainConfig(precision='no')
config = replace(config, adapt=None, prompts=None, finetune=replace(config.finetune, steps=1, batch=16))
fit(pool(rows), config, f'{home}/run')
embed_gallery(find_images([f'{world}/query']), 'pedestrians', f'{home}/gallery', progress=False)
assert len(Gallery.load(f'{home}/gallery').search(text='a woman', k=3)) == 3
assert not {'fcntl', 'resource'} & set(sys.modules)
"""


@pytest.mark.slow
def test_cache_run_and_gallery_where_there_is_no_fcntl(world, tmp_path):
    "As on Windows: locks by `filelock` alone."
    env = {**os.environ, 'CLIP_DFGS_CACHE': str(tmp_path/'cache')}
    job = [sys.executable, '-W', 'ignore', '-c', WITHOUT, str(tmp_path), str(world)]
    done = subprocess.run(job, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path/'run'/'model').is_dir() and (tmp_path/'gallery'/'gallery.json').is_file()


# ---- augmentation

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 6), st.integers(3, 9), st.integers(2, 7), st.data())
def test_crop_and_flip_is_pad_then_slice(pad, H, W, data):
    pixels = np.random.default_rng(H*W).integers(1, 255, (2, H, W, 3), dtype=np.uint8)
    dy, dx, i = (data.draw(st.integers(0, top)) for top in (2*pad, 2*pad, 1))
    flip = data.draw(st.booleans())
    image = pixels[i][:, ::-1] if flip else pixels[i]
    expected = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[dy:dy + H, dx:dx + W]
    assert (crop_and_flip(pixels, [i], [dy], [dx], [flip], pad)[0] == expected).all()


def test_random_numbers_are_pinned():
    "Written out with Python integers from the definition of SplitMix64's finalizer."
    step, M = 0x9E3779B97F4A7C15, 2**64

    def mix(x):
        x = (x ^ x >> 30)*0xBF58476D1CE4E5B9 % M
        x = (x ^ x >> 27)*0x94D049BB133111EB % M
        return x ^ x >> 31

    def number(seed, *parts):
        x = mix((seed + step) % M)
        for part in parts: x = mix((x + step*(part + 1)) % M)
        return (x >> 11)/2**53

    got = random_table(-3, 7, [4, 100_000], [0, 2], 3)
    assert got.tolist() == [[number(-3 % M, 7, i, c, d) for d in range(3)] for i, c in ((4, 0), (100_000, 2))]


def noise(n=40, H=24, W=12): return np.random.default_rng(1).integers(1, 255, (n, H, W, 3), dtype=np.uint8)


@pytest.mark.slow
def test_shares_are_what_was_asked_for():
    index = np.arange(5000)
    tables = [random_table(0, epoch, index, 0*index, 4) for epoch in (0, 1)]
    assert all(kstest(tables[0][:, j], 'uniform').pvalue > 1e-3 for j in range(4))
    pixels, index = noise(2000, 8, 6), np.arange(2000)
    for share in (0, 0.3, 1):
        for name in ('flip', 'erase', 'gray'):
            out = Augment(**dict(flip=0, pad=0, erase=0) | {name: share})(pixels, index).permute(0, 2, 3, 1).numpy()
            assert abs((out != pixels).any((1, 2, 3)).mean() - share) < 0.04


EVERYTHING = Augment(flip=0.4, pad=3, erase=0.5, gray=0.3, jitter=0.4, augmix=0.4)


def test_the_cache_is_never_written_to(tmp_path, paths):
    pixels = cached_images(paths, (16, 8), cache=tmp_path)
    before = np.array(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        EVERYTHING(pixels, np.arange(10))
        next(iter(make_loader(ImageDataset(pixels))))
    assert (pixels == before).all()


# ---- data set and loader

@pytest.mark.parametrize('context, workers', [('fork', 2), pytest.param('spawn', 1, marks=pytest.mark.slow)])
def test_workers_do_not_change_batches(tmp_path, paths, context, workers):
    pixels = cached_images(paths, (16, 8), cache=tmp_path)

    def run(workers):
        data = ImageDataset(pixels, range(10), None, EVERYTHING, seed=2)
        loader = make_loader(data, [[1, 1, 5], [9, 0], [3, 4, 6]], workers=workers)
        if workers: loader.multiprocessing_context = context
        out = []
        for epoch in (0, 1, 5):
            data.set_epoch(epoch)
            out += [[t.clone() for t in b] for b in loader]
        return out

    alone, helped = run(0), run(workers)
    assert len(alone) == 9 and all((a == b).all() for x, y in zip(alone, helped) for a, b in zip(x, y))
    assert (alone[0][0] != alone[3][0]).any()


@pytest.mark.parametrize('part', [slice(3, 7), slice(None, None, -1), slice(None, None, 2), slice(None)])
def test_a_worker_gets_a_path_and_the_same_part_of_the_cache(tmp_path, paths, part):
    pixels = cached_images(paths*20, (64, 32), cache=tmp_path)
    assert len(ForkingPickler.dumps(ImageDataset(pixels))) < 20_000 < pixels.nbytes
    data = ImageDataset(pixels[part])
    sent = pickle.loads(pickle.dumps({**data.__getstate__(), '_epoch': None}))
    other = ImageDataset.__new__(ImageDataset)
    other.__setstate__(sent)
    assert (other.pixels == data.pixels).all()


PIXELS = np.zeros((3, 8, 4, 3), np.uint8)
WRONG = [dict(labels=v) for v in ([.5, 1, 2], [None, 1, 2], ['a', 'b', 'c'], [[0], [1], [2]], [0, 1])]
WRONG += [dict(pixels=v) for v in (PIXELS/255, PIXELS.astype(int), PIXELS.transpose(0, 3, 1, 2), list(PIXELS))]


@pytest.mark.parametrize('given', [*WRONG, dict(cameras=[True, False, True])])
def test_what_is_no_label_and_no_image_is_refused(given):
    "Floats of 0 to 1 would become black."
    name, = given
    words = r'pixels are .*give uint8 \[n,H,W,3\]' if name == 'pixels' else f'ImageDataset: {name}'
    with pytest.raises(ValueError, match=words): ImageDataset(**dict(pixels=PIXELS) | given)


def test_images_that_show_nothing_are_counted(tmp_path):
    files = [picture(tmp_path/f'{i}.png', i, (16, 32)) for i in range(3)]
    for name, shade in (('white', 255), ('black', 0)): Image.new('L', (16, 32), shade).save(tmp_path/f'{name}.png')
    dark = (np.asarray(Image.open(files[0]).convert('L')).astype('u2')*16) # 12 bits in 16
    Image.fromarray(dark).save(tmp_path/'dark.png')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        cached_images([*files, *(tmp_path/f'{n}.png' for n in ('white', 'black', 'dark'))], (32, 16), tmp_path/'c')
        cached_images(files, (32, 16), tmp_path/'c')
    assert [str(w.message) for w in said] == [f'3 of 6 images are nearly of one color, first: {tmp_path/"white.png"}']


def test_normalize_by_hand():
    x = torch.tensor([[[[0, 255]], [[51, 102]], [[255, 0]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-.1, .9]], [[0., .2]], [[.7, -.3]]]])/torch.tensor([.5, .25, 1.]).view(3, 1, 1)
    torch.testing.assert_close(normalize(x, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)), expected)
    own = normalize(torch.from_numpy(noise(2, 9, 7)).permute(0, 3, 1, 2), None)
    torch.testing.assert_close(own.mean((2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(own.var((2, 3), unbiased=False), torch.ones(2, 3), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_real_photographs_load_and_check(real, tmp_path):
    folder, = (place.parent for place in (real/'col780').rglob('query'))
    records = load_dataset('market1501', folder)
    assert {s: (t['pid'].nunique(), len(t)) for s, t in records.groupby('split')} == dict(
        query=(74, 148), gallery=(74, 1184)) and set(records['camid']) == {0, 1}
    assert check_dataset('market1501', folder, decode=True, progress=False).ok
    pixels = cached_images(records['path'], (128, 64), cache=tmp_path/'c', progress=False)
    assert pixels.shape == (1332, 128, 64, 3) and (pixels[700] == load_image(records['path'][700], (128, 64))).all()
