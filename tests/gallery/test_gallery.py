"Features of images in any form (beside the chapters on images and embedding), folders, and galleries in memory."
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from clip_dfgs.data.image_io import crops, ImageError
from clip_dfgs.gallery.gallery import Gallery
from clip_dfgs.gallery.search import text_features
from clip_dfgs.inference.embed import FeatureExtractor
from clip_dfgs.models.reid_model import Embedder, ReIDModel

H, W = 128, 64


def picture(seed=0, height=H, width=W): # uint8 [H,W,3]
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def first(values): return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)


close = torch.testing.assert_close
OPAQUE = np.full((H, W, 1), 255, np.uint8)
SAME = { # one image in many forms
    'array': lambda x: x,
    'array with a stride': lambda x: np.repeat(x, 2, 1)[:, ::2],
    'read-only array': lambda x: np.frombuffer(x.tobytes(), np.uint8).reshape(x.shape),
    'array uint16': lambda x: x.astype(np.uint16) * 257,
    'array float64': lambda x: x / 255,
    'array float32': lambda x: (x / 255).astype(np.float32),
    'array RGBA': lambda x: np.dstack([x, OPAQUE]),
    'PIL': Image.fromarray,
    'PIL RGBA': lambda x: Image.fromarray(x).convert('RGBA'),
    'tensor': first,
    'tensor RGBA': lambda x: first(np.dstack([x, OPAQUE])),
    'tensor float64': lambda x: first(x).double() / 255,
    'tensor float16': lambda x: (first(x) / 255).half(),
    'tensor with a gradient': lambda x: (first(x) / 255).requires_grad_(),
}


def test_an_image_has_one_feature_in_every_form(extract):
    want = extract([picture(0), picture(1)])
    assert want.shape == (2, 320)
    close(want.norm(dim=1), torch.ones(2))
    for name, form in SAME.items():
        one, two = form(picture(0)), form(picture(1))
        close(extract(one), want[:1], msg=name)
        close(extract([two, one]), want.flip(0), msg=name)
        if not name.startswith('PIL'):
            close(extract(torch.stack([one, two]) if torch.is_tensor(one) else np.stack([one, two])), want, msg=name)
            swapped = form(np.ascontiguousarray(picture(0)[..., ::-1]))
            close(extract(swapped, channels='bgr'), want[:1], msg=name)
    assert not torch.allclose(extract(picture()[..., ::-1]), want[:1], atol=.01)
    of_opencv = FeatureExtractor(extract.model, channels='bgr')
    close(of_opencv(picture()[..., ::-1]), want[:1])
    close(of_opencv(Image.fromarray(picture())), want[:1]) # channels are those of arrays
    grey = picture()[..., 0].copy()
    want = extract(np.dstack([grey]*3))
    for form in (grey, grey[:, :, None], grey/255, Image.fromarray(grey), torch.from_numpy(grey)[None],
                 grey[None, :, :, None]): close(extract(form), want)


def test_paths_in_every_form(extract, tmp_path):
    files = [tmp_path/f'{i}.png' for i in range(2)]
    for i, file in enumerate(files): Image.fromarray(picture(i)).save(file)
    want, names = extract([picture(0), picture(1)]), [str(file) for file in files]
    for paths in (files, names, tuple(names), np.array(names), pd.Series(names, index=[7, 9]), iter(names),
                  [files[0], picture(1)]): close(extract(paths), want) # several kinds in one list
    close(extract(files[0], channels='bgr'), want[:1])


def test_no_images_have_no_features(extract):
    for none in (np.zeros((0, H, W, 3), np.uint8), torch.zeros(0, 3, H, W), np.array([])):
        assert extract(none).shape == (0, 320) and extract(none, bad='none') == []


NOT_IMAGES = { # what is passed, and what the message has to name
    'channels first in an array': (np.zeros((3, H, W), np.uint8), r'array uint8 \[3,128,64\]'),
    'five channels': (np.zeros((1, H, W, 5), np.uint8), r'array uint8 \[128,64,5\]'),
    'bytes': (b'abc', 'not bytes'), 'an open file': (io.BytesIO(b'x'), 'not BytesIO'),
    'nothing in a list': ([picture(), None], '1 of 2.*not NoneType'),
    'a mask': (np.zeros((H, W), bool), r'array bool \[128,64\]'),
    'floats up to 255': (torch.full((3, H, W), 200.), r'tensor float32 \[3,128,64\].* 200'),
    'normalized floats': (torch.linspace(-2, 2, 3 * H * W).view(3, H, W), 'between 0 and 1'),
    'NaN': (np.full((H, W, 3), np.nan), 'nan'),
}


@pytest.mark.parametrize('what', NOT_IMAGES)
def test_a_mistake_is_named_with_the_shape_that_was_passed(what, extract):
    images, message = NOT_IMAGES[what]
    for bad in ('raise', 'none'):
        with pytest.raises(ValueError, match=message) as problem: extract(images, bad=bad)
        assert '\n' not in str(problem.value)


def test_broken_files_and_empty_images_are_named_or_none(extract, tmp_path):
    Image.fromarray(picture()).save(tmp_path/'good.jpg')
    (tmp_path/'half.jpg').write_bytes((tmp_path/'good.jpg').read_bytes()[:3000])
    for broken, words in ((Image.fromarray(picture()).crop((5, 5, 5, 50)), 'is empty'),
                          (tmp_path/'half.jpg', 'half.jpg'), (Image.open(tmp_path/'half.jpg'), 'cannot be read')):
        with pytest.raises(ImageError, match=words): extract([picture(1), broken, picture(2)])
        left, none, right = extract([picture(1), broken, picture(2)], bad='none')
        assert none is None and extract(broken, bad='none') == [None]
        close(torch.stack([left, right]), extract([picture(1), picture(2)]))


def test_the_callers_model_stays_as_it_was():
    model = ReIDModel.create('pedestrians', None).train()
    model.clip.visual.eval()
    next(model.parameters()).requires_grad_(False)
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    extract = FeatureExtractor(model)
    feature = extract(picture())
    extract.text('a man')
    with pytest.raises(ValueError): extract(picture()[:0])
    Embedder(model)
    assert before == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    (feature * torch.ones(320, requires_grad=True)).sum().backward() # others may learn on top of the features
    assert {p.device.type for p in FeatureExtractor(model, device='meta').model.parameters()} == {'meta'}
    assert {p.device.type for p in model.parameters()} == {'cpu'} and FeatureExtractor(model).model is model


ODD = { # how an image is turned into one that is stored otherwise
    '16 bits': lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257),
    'half transparent': lambda x: Image.fromarray(np.dstack([x, OPAQUE * (x[..., :1] > 127)])),
    'palette': lambda x: Image.fromarray(x).quantize(64),
    'two colors': lambda x: Image.fromarray(x).convert('1'),
}


def test_one_rule_of_pixels_for_files_and_pil_images(extract, tmp_path):
    for form, turned in ODD.items():
        turned(picture()).save(tmp_path/'x.png')
        close(extract(turned(picture())), extract(tmp_path/'x.png'), msg=form)
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(picture()).transpose(Image.Transpose.ROTATE_90).save(tmp_path/'x.png', exif=tag)
    for x in (Image.open(tmp_path/'x.png'), tmp_path/'x.png'): close(extract(x), extract(picture()))


@pytest.mark.parametrize('call, name', [
    (lambda e: FeatureExtractor(e.model, channels='gbr'), "'gbr'"), (lambda e: e(picture(), channels='BGR'), "'BGR'"),
    (lambda e: e(picture(), bad='skip'), "'skip'"), (lambda e: e(picture()/255/255), 'divided by 255 twice'),
    (lambda e: e.text(7), 'captions'), (lambda e: e.text(['a', 7]), 'captions'),
    (lambda e: FeatureExtractor(torch.nn.Linear(1, 1)), 'Linear'),
    (lambda e: crops(picture(), [[.1, .2, .3, .9]]), 'shares of the frame'), # they would be crops of one pixel
    *((lambda e, n=n: FeatureExtractor(e.model, batch=n), 'batch=') for n in (0, -1, 1.5, '3', None, True))])
def test_options_that_are_none(call, name, extract):
    with pytest.raises(ValueError, match=name): call(extract)


def test_long_sentences_say_that_they_are_cut(extract):
    with pytest.warns(UserWarning, match='1 of 2 sentences are longer than the 77 tokens'):
        extract.text(['a man', 'a man with a hat ' * 40])


def test_features_that_are_no_numbers_are_an_error():
    spoilt = FeatureExtractor(ReIDModel.create('pedestrians', None), device='cpu')
    with torch.no_grad(): spoilt.model.clip.visual.proj[:] = float('inf')
    with pytest.raises(ValueError, match='2 of 2 features of pedestrians are not numbers'):
        spoilt([picture(), picture(1)])


# ---- folders

def in_folder(folder):
    "Two good images; the bytes of one."
    folder.mkdir(parents=True)
    for i in range(2): Image.fromarray(picture(i)).save(folder/f'{i}.jpg')
    return (folder/'0.jpg').read_bytes()


def test_a_gallery_reads_what_data_sets_read(extract, tmp_path):
    "Images of all kinds, and nothing of what tools and systems leave in folders."
    g, data = tmp_path/'g', in_folder(tmp_path/'g')
    for name in ('.0.jpg', '.thumbs/0.jpg', '@eaDir/0.jpg', '__MACOSX/0.jpg', '._0.jpg', 'album.jpg/.notes'):
        (g/name).parent.mkdir(exist_ok=True)
        (g/name).write_bytes(data)
    formats, names = {'.jfif': 'JPEG', '.JPG': 'JPEG', '.tif': 'TIFF'}, []
    (g/'deep').mkdir()
    for i, suffix in enumerate(['.tif', '.ppm', '.gif', '.jfif', '.JPG', '.webp', '.bmp']):
        names.append(f'x{i}{suffix}')
        Image.fromarray(picture(5)).save(g/'deep'/names[-1], format=formats.get(suffix))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        gallery = Gallery.from_folder(g, extract)
    assert sorted(Path(p).name for p in gallery.records['path']) == ['0.jpg', '1.jpg', *names]


def test_links_that_lead_nowhere_and_folders_without_images(extract, tmp_path):
    data = in_folder(tmp_path/'g')
    (tmp_path/'g'/'0.heic').write_bytes(data)
    (tmp_path/'g'/'gone.jpg').symlink_to(tmp_path/'nowhere.jpg')
    with pytest.warns(UserWarning, match='2 files are not read: 1 .heic, 1 broken link'):
        gallery = Gallery.from_folder(tmp_path/'g', extract)
    np.testing.assert_allclose(gallery.features, extract(gallery.records['path']), atol=1e-6)
    for name in ('0.jpg', '1.jpg'): (tmp_path/'g'/name).write_bytes(data[:300])
    for folder, words in (('g', 'none of 2 images'), ('absent', 'absent is not a folder')):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=words):
            warnings.simplefilter('ignore')
            Gallery.from_folder(tmp_path/folder, extract, broken='skip')


# ---- galleries in memory

KINDS = {'float64': lambda f: f.double().numpy(), 'float16': lambda f: f.half(), 'bfloat16': lambda f: f.bfloat16(),
         'numpy float16': lambda f: f.numpy().astype(np.float16), 'longer': lambda f: f*3, 'memory map': lambda f: f}


@pytest.mark.parametrize('kind', KINDS)
def test_a_search_is_a_sorted_product_for_features_of_any_kind(kind, extract, tmp_path):
    x = [picture(i) for i in range(9)]
    features = KINDS[kind](extract(x))
    if kind == 'memory map':
        np.save(tmp_path/'f.npy', features)
        features = np.load(tmp_path/'f.npy', mmap_mode='r+')
    gallery = Gallery([f'{i}' for i in range(9)], features, extract)
    found, scores = gallery.search(x[:2], k=4), extract(x[:2]) @ extract(x).T
    for q in range(2):
        rows = found[found['query'] == f'image {q}']
        assert rows.path.tolist() == [str(i) for i in scores[q].argsort(descending=True)[:4].tolist()]
        np.testing.assert_allclose(rows.score, scores[q].sort(descending=True).values[:4], atol=.01)
    projected = torch.nn.functional.normalize(extract(x)[:, -128:], dim=1).double()
    whole = torch.from_numpy(text_features(extract, ['a man in a red shirt'])[0])
    text = gallery.search(text='a man in a red shirt', k=9)
    np.testing.assert_allclose(text.score, (projected @ whole).sort(descending=True).values, atol=.01)


def test_a_gallery_is_small_or_asked_for_nothing(extract):
    gallery = Gallery(['a'], extract(picture()), extract)
    assert len(gallery.search(picture(), k=5)) == 1 and len(gallery.search([])) == 0
    assert list(gallery.search(picture())) == ['query', 'rank', 'score', 'path', 'row']
    assert repr(gallery) == 'Gallery(1 images, 320 columns)'
    for features, name in ((torch.ones(1, 320), '2 images'), (torch.full((2, 320), torch.nan), 'not a number')):
        with pytest.raises(ValueError, match=name): Gallery(['a', 'b'], features, extract).search(picture())


OTHERS = dict(
    weights=dict(clip='pedestrians', pretrained=None, seed=3),
    size=dict(clip='pedestrians', pretrained='pedestrians', image_size=(96, 48)),
    tower=dict(clip='timm:test_resnet', pretrained=None, image_size=(64, 32)),
    normalization=dict(clip='pedestrians', pretrained='pedestrians', normalization='instance'))


def test_a_gallery_of_another_model_is_an_error(extract, tmp_path):
    Gallery(['a.jpg', 'b c.jpg', 'ü.jpg'], extract([picture(i) for i in range(3)]), extract).save(tmp_path/'g')
    for options in ({}, dict(normalize=False), dict(channels='bgr')):
        assert len(Gallery.load(tmp_path/'g', FeatureExtractor(extract.model, **options))) == 3
    for options in OTHERS.values():
        with pytest.raises(ValueError, match='made by another model'):
            Gallery.load(tmp_path/'g', FeatureExtractor(ReIDModel.create(**options)))
