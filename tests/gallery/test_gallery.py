"Features of pictures in any form, folders as people have them, saved galleries, and a model that is only read."
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from clip_dfgs.gallery.gallery import Gallery
from clip_dfgs.inference.extractor import FeatureExtractor
from clip_dfgs.models.encoder import Embedder
from clip_dfgs.data.image_io import crops
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.data.image_io import ImageError, load_image

H, W = 128, 64


@pytest.fixture(scope='module')
def extract(): return FeatureExtractor(ReIDModel.create('pedestrians', 'pedestrians'), device='cpu')


def picture(seed=0, height=H, width=W): # uint8 [H,W,3]
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def first(values): return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)


OPAQUE = np.full((H, W, 1), 255, np.uint8)
SAME = { # one picture in many forms
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
    'tensor float32': lambda x: first(x) / 255,
    'tensor float64': lambda x: first(x).double() / 255,
    'tensor float16': lambda x: (first(x) / 255).half(),
    'tensor with a gradient': lambda x: (first(x) / 255).requires_grad_(),
}


@pytest.mark.parametrize('form', SAME)
def test_a_picture_has_one_feature_in_every_form(form, extract):
    x = picture()
    want = extract(x)
    assert want.shape == (1, 320) and torch.isclose(want.norm(), torch.tensor(1.))
    torch.testing.assert_close(extract(SAME[form](x)), want)
    torch.testing.assert_close(extract([SAME[form](x)]), want)
    torch.testing.assert_close(extract([SAME[form](picture(1)), SAME[form](x)])[1:], want)


@pytest.mark.parametrize('form', ['array', 'array RGBA', 'tensor', 'tensor float16'])
def test_a_batch_is_its_pictures(form, extract):
    one, two = SAME[form](picture(1)), SAME[form](picture(2))
    stacked = torch.stack([one, two]) if torch.is_tensor(one) else np.stack([one, two])
    torch.testing.assert_close(extract(stacked), extract([one, two]))


def test_paths_in_every_form(extract, tmp_path):
    files = [tmp_path/f'{i}.png' for i in range(2)]
    for i, file in enumerate(files): Image.fromarray(picture(i)).save(file)
    want = extract([picture(0), picture(1)])
    names = [str(file) for file in files]
    for paths in (files, names, tuple(names), np.array(names), pd.Series(names, index=[7, 9]), iter(names)):
        torch.testing.assert_close(extract(paths), want)
    torch.testing.assert_close(extract(files[0]), want[:1])
    torch.testing.assert_close(extract([files[0], picture(1)]), want) # several kinds in one list


GREY = {
    'array [H,W]': lambda g: g,
    'array [H,W,1]': lambda g: g[:, :, None],
    'array float': lambda g: g / 255,
    'PIL L': Image.fromarray,
    'tensor [H,W]': torch.from_numpy,
    'tensor [1,H,W]': lambda g: torch.from_numpy(g)[None],
    'batch [1,H,W,1]': lambda g: g[None, :, :, None],
}


@pytest.mark.parametrize('form', GREY)
def test_grey_is_three_equal_channels(form, extract):
    grey = picture()[..., 0].copy()
    torch.testing.assert_close(extract(GREY[form](grey)), extract(np.dstack([grey] * 3)))


@pytest.mark.parametrize('form', ['array', 'array float64', 'array RGBA', 'tensor', 'tensor float32', 'tensor RGBA'])
def test_bgr_is_turned_round(form, extract):
    x = picture()
    swapped = SAME[form](x[..., ::-1])
    torch.testing.assert_close(extract(swapped, channels='bgr'), extract(x))
    of_opencv = FeatureExtractor(extract.model, channels='bgr')
    torch.testing.assert_close(of_opencv(swapped), extract(x))
    torch.testing.assert_close(of_opencv(SAME[form](x), channels='rgb'), extract(x))
    assert not torch.allclose(extract(swapped), extract(x), atol=.01)


def test_bgr_leaves_files_and_pil_images_alone(extract, tmp_path):
    x = picture()
    Image.fromarray(x).save(tmp_path/'x.png')
    torch.testing.assert_close(extract([tmp_path/'x.png', Image.fromarray(x)], channels='bgr'), extract([x, x]))


@pytest.mark.parametrize('none', [[], (), np.zeros((0, H, W, 3), np.uint8), torch.zeros(0, 3, H, W), np.array([])],
                         ids=['list', 'tuple', 'array', 'tensor', 'flat array'])
def test_no_pictures_have_no_features(none, extract):
    assert extract(none).shape == (0, 320) and extract(none).dtype == torch.float32
    assert extract(none, bad='none') == []


def test_the_width_of_nothing_is_the_width_of_something():
    extract = FeatureExtractor(ReIDModel.create('timm:resnet18', None, image_size=(64, 32)))
    assert extract([]).shape[1] == extract(picture()).shape[1]


NOT_PICTURES = { # what is passed, and what the message has to name
    'channels last in a tensor': (torch.zeros(H, W, 3, dtype=torch.uint8), r'tensor uint8 \[128,64,3\]'),
    'channels first in an array': (np.zeros((3, H, W), np.uint8), r'array uint8 \[3,128,64\]'),
    'two channels': (np.zeros((H, W, 2), np.uint8), r'array uint8 \[128,64,2\]'),
    'five channels': (np.zeros((1, H, W, 5), np.uint8), r'array uint8 \[128,64,5\]'),
    'five axes': (np.zeros((1, 1, H, W, 3), np.uint8), r'array uint8 \[1,1,128,64,3\]'),
    'a number': (7, 'not int'),
    'numbers': ([7, 8], 'not int'),
    'nothing': (None, 'not NoneType'),
    'nothing in a list': ([picture(), None], 'image 1 of 2.*not NoneType'),
    'bytes': (b'abc', 'not bytes'),
    'a scalar': (np.float32(1), 'not float32'),
    'integers': (np.zeros((H, W, 3), int), r'array int64 \[128,64,3\].*uint8, or floats between 0 and 1'),
    'a mask': (np.zeros((H, W), bool), r'array bool \[128,64\]'),
    'floats up to 255': (torch.full((3, H, W), 200.), r'tensor float32 \[3,128,64\].*from 200 to 200'),
    'normalized floats': (torch.linspace(-2, 2, 3 * H * W).view(3, H, W), 'between 0 and 1, these are from -2 to 2'),
    'NaN': (np.full((H, W, 3), np.nan), 'from nan to nan'),
    'a table': (pd.DataFrame(dict(path=['a'])), 'or a list or column of these; not DataFrame'),
}


@pytest.mark.parametrize('what', NOT_PICTURES)
@pytest.mark.parametrize('bad', ['raise', 'none'])
def test_a_mistake_is_named_with_the_shape_that_was_passed(what, bad, extract):
    images, message = NOT_PICTURES[what]
    with pytest.raises(ValueError, match=message) as problem: extract(images, bad=bad)
    assert '\n' not in str(problem.value)


EMPTY = {
    'array of no width': picture()[:, 70:],
    'array of no height': picture()[130:],
    'grey': picture()[130:, :, 0],
    'PIL': Image.fromarray(picture()).crop((5, 5, 5, 50)),
    'tensor': first(picture())[:, :0],
}


@pytest.mark.parametrize('what', EMPTY)
def test_empty_crops_are_named_or_none(what, extract):
    crops = [picture(1), EMPTY[what], picture(2)]
    with pytest.raises(ValueError, match='image 1 of 3, counted from 0: .* is empty'): extract(crops)
    with pytest.raises(ValueError, match='is empty'): extract(EMPTY[what])
    left, none, right = extract(crops, bad='none')
    assert none is None
    torch.testing.assert_close(torch.stack([left, right]), extract([picture(1), picture(2)]))
    assert extract(EMPTY[what], bad='none') == [None]


def test_broken_files_are_named_or_none(extract, tmp_path):
    Image.fromarray(picture()).save(tmp_path/'good.jpg')
    whole = (tmp_path/'good.jpg').read_bytes()
    (tmp_path/'half.jpg').write_bytes(whole[:len(whole)//2])
    for name in ('half.jpg', 'absent.jpg'):
        with pytest.raises(ImageError, match=name): extract([tmp_path/'good.jpg', tmp_path/name])
        good, none = extract([tmp_path/'good.jpg', tmp_path/name], bad='none')
        assert none is None and good.shape == (320,)
    with pytest.raises(ImageError, match='image 1 of 2.*cannot be read'):
        extract([picture(), Image.open(tmp_path/'half.jpg')])


@given(st.lists(st.booleans(), max_size=7), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_none_stands_where_the_empty_crop_was(extract, good, batch):
    extract = FeatureExtractor(extract.model, batch=batch)
    crops = [picture(i, 16, 8) if fine else picture(i)[:0] for i, fine in enumerate(good)]
    found = extract(crops, bad='none')
    assert [f is not None for f in found] == good
    want = extract([crop for crop in crops if crop.size])
    kept = [feature for feature in found if feature is not None]
    if kept: torch.testing.assert_close(torch.stack(kept), want)


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
    assert {p.device.type for p in model.parameters()} == {'cpu'}
    (feature * torch.ones(320, requires_grad=True)).sum().backward() # others may learn on top of the features


def test_another_device_gets_a_copy():
    model = ReIDModel.create('pedestrians', None)
    extract = FeatureExtractor(model, device='meta')
    assert {p.device.type for p in model.parameters()} == {'cpu'}
    assert {p.device.type for p in extract.model.parameters()} == {'meta'}
    assert FeatureExtractor(model).model is model


def test_unknown_words_are_refused(extract):
    with pytest.raises(ValueError, match="unknown channels 'gbr'"): FeatureExtractor(extract.model, channels='gbr')
    with pytest.raises(ValueError, match="unknown channels 'BGR'; did you mean 'bgr'|unknown channels 'BGR'"):
        extract(picture(), channels='BGR')
    with pytest.raises(ValueError, match="unknown bad 'skip'"): extract(picture(), bad='skip')


ODD = { # how a picture is turned into one that is stored otherwise
    '16 bits': lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257),
    'half transparent': lambda x: Image.fromarray(np.dstack([x, OPAQUE * (x[..., :1] > 127)])),
    'palette': lambda x: Image.fromarray(x).quantize(64),
    'two colors': lambda x: Image.fromarray(x).convert('1'),
}


@pytest.mark.parametrize('form', ODD)
def test_one_rule_of_pixels_for_files_and_pil_images(form, extract, tmp_path):
    image = ODD[form](picture())
    image.save(tmp_path/'x.png')
    want = extract(load_image(tmp_path/'x.png', None))
    torch.testing.assert_close(extract(tmp_path/'x.png'), want)
    torch.testing.assert_close(extract(image), want)
    with Image.open(tmp_path/'x.png') as again: torch.testing.assert_close(extract(again), want)
    if form == 'half transparent': torch.testing.assert_close(extract(np.array(image)), want)


def test_pil_images_with_an_orientation_are_turned(extract, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(picture()).transpose(Image.Transpose.ROTATE_90).save(tmp_path/'x.png', exif=tag)
    torch.testing.assert_close(extract(Image.open(tmp_path/'x.png')), extract(picture()))
    torch.testing.assert_close(extract(tmp_path/'x.png'), extract(picture()))


@pytest.mark.parametrize('texts', [7, None, ['a', 7]])
def test_sentences_are_texts(texts, extract):
    with pytest.raises(ValueError, match='not int|not NoneType'): extract.text(texts)


def test_long_sentences_say_that_they_are_cut(extract):
    with pytest.warns(UserWarning, match='1 of 2 sentences are longer than the 77 tokens'):
        extract.text(['a man', 'a man with a hat ' * 40])


def in_folder(folder):
    "Two good pictures; the bytes of one."
    folder.mkdir(parents=True)
    for i in range(2): Image.fromarray(picture(i)).save(folder/f'{i}.jpg')
    return (folder/'0.jpg').read_bytes()


LITTER = { # what tools and systems leave in folders, and people who name folders
    'resource fork': lambda g, data: (g/'._0.jpg').write_bytes(b'\0\5\x16\7'),
    'hidden file': lambda g, data: (g/'.0.jpg').write_bytes(data),
    'hidden folder': lambda g, data: ((g/'.thumbs').mkdir(), (g/'.thumbs'/'0.jpg').write_bytes(data)),
    'system folder': lambda g, data: ((g/'@eaDir').mkdir(), (g/'@eaDir'/'0.jpg').write_bytes(data)),
    'zip of a Mac': lambda g, data: ((g/'__MACOSX').mkdir(), (g/'__MACOSX'/'0.jpg').write_bytes(data)),
    'folder named like a picture': lambda g, data: (g/'album.jpg').mkdir(),
    'text': lambda g, data: (g/'notes.txt').write_text('x'),
}


@pytest.mark.parametrize('what', LITTER)
def test_what_is_no_picture_is_no_part_of_a_gallery(what, extract, tmp_path):
    LITTER[what](tmp_path/'g', in_folder(tmp_path/'g'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        gallery = Gallery.from_folder(tmp_path/'g', extract)
    assert [Path(p).name for p in gallery.records['path']] == ['0.jpg', '1.jpg']


def test_a_gallery_reads_what_data_sets_read(extract, tmp_path):
    in_folder(tmp_path/'g')
    formats, names = {'.jfif': 'JPEG', '.JPG': 'JPEG', '.tif': 'TIFF'}, []
    (tmp_path/'g'/'deep').mkdir()
    for i, suffix in enumerate(['.tif', '.tiff', '.ppm', '.gif', '.jfif', '.JPG', '.webp', '.bmp']):
        names.append(f'x{i}{suffix}')
        Image.fromarray(picture(5)).save(tmp_path/'g'/'deep'/names[-1], format=formats.get(suffix))
    gallery = Gallery.from_folder(tmp_path/'g', extract)
    assert sorted(Path(p).name for p in gallery.records['path']) == ['0.jpg', '1.jpg', *names]


def test_other_endings_are_counted(extract, tmp_path):
    data = in_folder(tmp_path/'g')
    for i in range(3): (tmp_path/'g'/f'{i}.heic').write_bytes(data)
    (tmp_path/'g'/'gone.jpg').symlink_to(tmp_path/'nowhere.jpg')
    with pytest.warns(UserWarning, match='4 files are not read: 3 .heic, 1 broken link'):
        gallery = Gallery.from_folder(tmp_path/'g', extract)
    assert len(gallery) == 2


def test_broken_files_stop_a_gallery_or_are_counted(extract, tmp_path):
    data = in_folder(tmp_path/'g')
    for name in ('a.jpg', 'b.jpg'): (tmp_path/'g'/name).write_bytes(data[:300])
    with pytest.raises(ImageError, match=r'a\.jpg cannot be read'): Gallery.from_folder(tmp_path/'g', extract)
    with pytest.warns(UserWarning, match=r'2 of 4 images .* left out, first .*a\.jpg'):
        gallery = Gallery.from_folder(tmp_path/'g', extract, broken='skip')
    assert [Path(p).name for p in gallery.records['path']] == ['0.jpg', '1.jpg']
    np.testing.assert_allclose(gallery.features, extract(gallery.records['path']), atol=1e-6)
    for name in ('0.jpg', '1.jpg'): (tmp_path/'g'/name).unlink()
    with pytest.raises(ValueError, match='none of 2 images'): Gallery.from_folder(tmp_path/'g', extract, broken='skip')


def test_folders_without_images(extract, tmp_path):
    with pytest.raises(ValueError, match='absent is not a folder'): Gallery.from_folder(tmp_path/'absent', extract)
    (tmp_path/'x.heic').write_bytes(b'x')
    with pytest.raises(ValueError, match='no images there.*1 .heic'): Gallery.from_folder(tmp_path, extract)


KINDS = {'float64': lambda f: f.double().numpy(), 'float16': lambda f: f.half(), 'bfloat16': lambda f: f.bfloat16(),
         'three times as long': lambda f: f*3, 'a memory map': lambda f: f}


@pytest.mark.parametrize('kind', KINDS)
def test_a_search_is_a_sorted_product_for_features_of_any_kind(kind, extract, tmp_path):
    x = [picture(i) for i in range(9)]
    features = KINDS[kind](extract(x))
    if kind == 'a memory map':
        np.save(tmp_path/'f.npy', features)
        features = np.load(tmp_path/'f.npy', mmap_mode='r+')
    gallery = Gallery([f'{i}' for i in range(9)], features, extract)
    found, scores = gallery.search(x[:2], k=4), extract(x[:2]) @ extract(x).T
    for q in range(2):
        rows = found[found['query'] == f'image {q}']
        assert rows.path.tolist() == [str(i) for i in scores[q].argsort(descending=True)[:4].tolist()]
        np.testing.assert_allclose(rows.score, scores[q].sort(descending=True).values[:4], atol=.01)
    whole = captions_of_the_small_clip(extract, 'a man in a red shirt')
    projected = torch.nn.functional.normalize(extract(x)[:, -128:], dim=1)
    text = gallery.search(text='a man in a red shirt', k=9)
    np.testing.assert_allclose(text.score, (projected.double() @ whole).sort(descending=True).values, atol=.01)


def captions_of_the_small_clip(extract, text):
    from clip_dfgs.gallery.search import text_features
    return torch.from_numpy(text_features(extract, [text])[0])


def test_a_gallery_is_small_or_asked_for_nothing(extract):
    gallery = Gallery(['a'], extract(picture()), extract)
    assert len(gallery.search(picture(), k=5)) == 1 and len(gallery.search([])) == 0
    assert list(gallery.search(picture())) == ['query', 'rank', 'score', 'path', 'row']
    assert repr(gallery) == 'Gallery(1 images, 320 columns)'
    with pytest.raises(ValueError, match='images, text or rows'): gallery.search()


@pytest.mark.parametrize('features, name', [
    (torch.ones(1, 320), '2 images'), (torch.ones(2, 3), r'\(2, 3\)'),
    (torch.full((2, 320), torch.nan), 'not a number')])
def test_features_that_do_not_fit(features, name, extract):
    with pytest.raises(ValueError, match=name): Gallery(['a', 'b'], features, extract)


OTHERS = dict(
    weights=dict(clip='pedestrians', pretrained=None, seed=3),
    size=dict(clip='pedestrians', pretrained='pedestrians', image_size=(96, 48)),
    tower=dict(clip='timm:resnet18', pretrained=None, image_size=(64, 32)),
    normalization=dict(clip='pedestrians', pretrained='pedestrians', normalization='instance'))


def test_a_gallery_of_another_model_is_refused(extract, tmp_path):
    Gallery(['a.jpg', 'b c.jpg', 'ü.jpg'], extract([picture(i) for i in range(3)]), extract).save(tmp_path/'g')
    for options in ({}, dict(normalize=False), dict(channels='bgr')):
        assert len(Gallery.load(tmp_path/'g', FeatureExtractor(extract.model, **options))) == 3
    for options in OTHERS.values():
        with pytest.raises(ValueError, match='made by another model'):
            Gallery.load(tmp_path/'g', FeatureExtractor(ReIDModel.create(**options)))


@pytest.mark.parametrize('images, words', [
    (lambda x, file: {file, 'b.jpg'}, 'these; not set'), (lambda x, file: open(file, 'rb'), 'these; not'),
    (lambda x, file: x/255/255, 'divided by 255 twice'), (lambda x, file: io.BytesIO(b'x'), 'these; not')])
def test_what_would_give_features_of_something_else_is_refused(images, words, extract, tmp_path):
    Image.fromarray(picture()).save(tmp_path/'a.png')
    with pytest.raises(ValueError, match=words): extract(images(picture(), str(tmp_path/'a.png')))


def test_features_that_are_no_numbers_are_refused(extract):
    spoilt = FeatureExtractor(ReIDModel.create('pedestrians', None), device='cpu')
    with torch.no_grad(): spoilt.model.clip.visual.proj[:] = float('inf')
    with pytest.raises(ValueError, match='2 of 2 features of pedestrians are not numbers'):
        spoilt([picture(), picture(1)])


@pytest.mark.parametrize('boxes', [[[0, 0, 1, 1]], [[.1, .2, .3, .9]], torch.tensor([[0., 0., .5, 1.]])])
def test_boxes_in_shares_of_the_frame_are_refused(boxes):
    "They would be crops of one pixel."
    with pytest.raises(ValueError, match='shares of the frame'): crops(picture(), boxes)
    assert crops(picture()[:2, :2], [[0, 0, 1, 1]])[0].shape == (1, 1, 3)


@pytest.mark.parametrize('number', [0, -1, 1.5, '3', None, True])
def test_counts_that_are_none(number, extract):
    "A block of -1 images would give no feature at all, in silence."
    with pytest.raises(ValueError, match='batch='): FeatureExtractor(extract.model, batch=number)


def test_what_is_no_model_is_named():
    with pytest.raises(ValueError, match='model is a Linear'): FeatureExtractor(torch.nn.Linear(1, 1))


@pytest.mark.parametrize('kind', [np.float64, np.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_gallery_of_features_of_any_floating_kind(kind, extract):
    pictures = [picture(i) for i in range(4)]
    features = extract(pictures)
    given = features.to(kind) if isinstance(kind, torch.dtype) else features.numpy().astype(kind)
    found = Gallery(list('abcd'), given, extract).search(pictures, k=2)
    assert found['path'][found['rank'] == 1].tolist() == list('abcd')
    np.testing.assert_allclose(found['score'], Gallery(list('abcd'), features, extract).search(pictures, k=2)['score'],
                               atol=1e-2)
