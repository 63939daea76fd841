"`ReIDModel`: the real architecture against the definition, what each stage trains, sentences, folders."
import json
import re
import shutil
import warnings

import numpy as np
import open_clip
import pytest
import torch
from openai_layout import image_features, openai_state, text_feature
from safetensors.torch import load_file

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.models.towers import encode_tokens, memory_order
from clip_dfgs.models.weights import _tokenizer


def close(a, b, tol=1e-3): torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def pictures(n, height=128, width=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=draw)


# ---------------------------------------------------------------- the paper's model
@pytest.fixture(scope='module')
def full_size(tmp_path_factory):
    "ViT-B/16 with weights in OpenAI's layout, and the weights."
    path, state = tmp_path_factory.mktemp('weights')/'ViT-B-16.pt', openai_state()
    torch.save(state, path)
    return ReIDModel.create('ViT-B-16', pretrained=path, num_ids=3, normalization='half').eval(), state


@pytest.mark.slow
@torch.inference_mode()
def test_images_through_vit_b16_are_the_definition(full_size):
    model, state = full_size
    assert model.config['model_cfg']['quick_gelu'] and model.widths == (768, 768, 512) and model.width == 1280
    images = pictures(2, 256, 128, seed=1)
    pixels = (images/255 - .5)/.5
    expected, found = image_features(pixels, state, heads=12, layers=12), model.image_features(images)
    for a, b in zip(found, expected): close(a, b)
    close(model.embed(images), torch.cat(expected[1:], 1))
    gelu = image_features(pixels, state, heads=12, layers=12, quick=False)[2]
    assert (found.projected - gelu).abs().max() > 1e-2  # the wrong activation would be noticed


@pytest.mark.slow
@torch.inference_mode()
def test_texts_through_vit_b16_are_the_definition(full_size):
    model, state = full_size
    sentences = ['a photo of a tall person.', 'someone in a red coat']
    expected = text_feature(open_clip.tokenize(sentences), state, heads=8, layers=12)
    close(encode_tokens(model.clip, open_clip.tokenize(sentences)), expected)
    close(model.encode_captions(sentences[:1]), expected[:1])


@pytest.mark.slow
@torch.inference_mode()
def test_prompts_through_vit_b16_are_the_definition(full_size):
    model, state = full_size
    ids = open_clip.tokenize(['A photo of a X X X X person.'])
    table = torch.cat([state['token_embedding.weight'].float(), model.prompts.context[2]])
    ids[0, 5:9] = torch.arange(4) + len(state['token_embedding.weight'])  # the learned tokens, behind the known ones
    close(model.text_features(torch.tensor([2])), text_feature(ids, state, heads=8, layers=12, table=table))


# ---------------------------------------------------------------- what is trained, and for whom
def test_stages_train_what_they_should():
    model, labels = ReIDModel.create('pedestrians', pretrained=None, num_ids=4, cameras=2), torch.arange(4)
    frozen = 'clip.t', 'clip.p', 'clip.l', 'prompts'
    for stage in ('adapt', 'prompts', 'finetune'):
        names = {n for n, _ in model.trainable(stage)}
        model.zero_grad(set_to_none=True)
        f = model.image_features(pictures(4), labels % 2)
        scores = [*model.heads(f), f.projected @ model.text_features(labels).T, f.last]
        sum(s.square().sum() for s in scores).backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == names
        if stage == 'prompts': assert names == {'prompts.context'}
        else: assert 'neck_pooled.classifier.weight' in names and not any(n.startswith(frozen) for n in names)


def test_image_only_backbone_has_no_text(tmp_path):
    model = ReIDModel.create('timm:test_vit2', pretrained=None, num_ids=3, image_size=(64, 32)).eval()
    model.save(tmp_path)
    back, images = ReIDModel.load(tmp_path).eval(), torch.ones(2, 3, 64, 32)
    with torch.inference_mode():
        close(back.embed(images), model.embed(images), 0)
        assert [h.shape for h in model.heads(model.image_features(images))] == [(2, 3), (2, 3)]
        assert model.embed(images).shape == (2, model.width)
    for call in (lambda: model.text_features(torch.tensor([0])), lambda: model.encode_captions(['x']),
                 lambda: model.trainable('prompts')):
        with pytest.raises(ValueError, match='timm:test_vit2 has no text encoder'): call()


REFUSED = {
    'label -1 was met, the model has labels 0 to 3': lambda m: m.text_features(torch.tensor([-1])),
    'label 4 was met': lambda m: m.text_features(torch.tensor([0, 4])),
    'camera -1 was met, the model has cameras 0 to 1': lambda m: m.embed(pictures(2), torch.tensor([0, -1])),
    'camera 2 was met': lambda m: m.embed(pictures(2), torch.tensor([2, 0])),
    r'images are .* .2, 128, 64, 3., the model takes .* .B, 3, 128, 64': lambda m: m.embed(torch.zeros(2, 128, 64, 3)),
    'images are torch.int64': lambda m: m.embed(torch.zeros(1, 3, 128, 64, dtype=torch.int64)),
    'captions are a list of texts, not {': lambda m: m.encode_captions({'a', 'b'}),
    "captions are a list of texts, not b'a'": lambda m: m.encode_captions(b'a'),
    'captions are a list of texts, not .*None': lambda m: m.encode_captions(['a', None]),
    'unknown stage': lambda m: m.trainable('two')}


@pytest.mark.parametrize('message', REFUSED)
def test_what_a_model_does_not_take(people, message):
    with pytest.raises(ValueError, match=message): REFUSED[message](people)


@pytest.fixture(scope='module')
def people(): return ReIDModel.create('pedestrians', pretrained=None, num_ids=4, cameras=2)


@pytest.mark.parametrize('wrong', [
    dict(image_size=(128., 64)), dict(stride=0), dict(num_ids=True), dict(cameras='two'), dict(seed=None)])
def test_settings_that_are_no_whole_numbers_are_named(wrong):
    name, = wrong
    with pytest.raises(ValueError, match=f'^{name}.*whole number') as e:
        ReIDModel.create('pedestrians', None, **wrong)
    assert '\n' not in str(e.value)


def test_numpy_numbers_are_settings_and_are_saved(tmp_path):
    settings = dict(num_ids=np.int64(3), cameras=np.int32(2), stride=np.int64(12), image_size=np.array([96, 48]))
    model = ReIDModel.create('pedestrians', None, **settings, seed=np.uint8(1))
    model.save(tmp_path)
    back = ReIDModel.load(tmp_path)
    assert back.config == model.config and back.config['image_size'] == [96, 48] and back.num_ids == 3


# ---------------------------------------------------------------- sentences
@pytest.fixture(scope='module')
def small(): return ReIDModel.create('pedestrians', pretrained=None)


@pytest.mark.parametrize('words,cut', [(0, False), (75, False), (76, True), (300, True)])
def test_sentences_longer_than_the_context_are_said(small, words, cut):
    texts = ['a person', 'person '*words]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert small.encode_captions(texts).shape == (2, 128)
    messages = [str(w.message) for w in said if 'longer than' in str(w.message)]
    assert len(messages) == cut
    expected = "1 of 2 sentences are longer than the 77 tokens that pedestrians reads and are cut, first: 'person"
    assert all(expected in message for message in messages)
    assert any('captions are empty' in str(w.message) for w in said) == (words == 0)


# ---------------------------------------------------------------- folders
def test_save_and_load_give_the_same_model_and_touch_no_global_state(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model = ReIDModel.create('pedestrians', pretrained=None, num_ids=6, cameras=3, stride=12, image_size=(96, 48),
                             normalization='instance', seed=4).eval()
    with torch.no_grad():
        model.neck_pooled.norm.running_mean += 1
        model.prompts.context += 1
    model.save(tmp_path/'m')
    back = ReIDModel.load(tmp_path/'m').eval()
    assert torch.equal(before, torch.random.get_rng_state())
    assert back.config == model.config
    assert sorted(p.name for p in (tmp_path/'m').iterdir()) == ['config.json', 'model.safetensors']
    images, cameras = pictures(2, 96, 48), torch.tensor([0, 2])
    with torch.inference_mode():
        assert torch.equal(model.embed(images, cameras), back.embed(images, cameras))
        assert torch.equal(model.text_features(cameras), back.text_features(cameras))
    assert 'clip.token_embedding.weight' not in load_file(tmp_path/'m'/'model.safetensors')
    with torch.no_grad(): model.neck_pooled.norm.running_mean += 1
    model.save(tmp_path/'m')  # over an existing one
    assert torch.equal(ReIDModel.load(tmp_path/'m').neck_pooled.norm.running_mean, model.neck_pooled.norm.running_mean)


def change(folder, without='', **entries):
    "Other entries in a saved config, and one taken away."
    config = json.loads((folder/'config.json').read_text()) | entries
    config.pop(without, None)
    (folder/'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize('damage,message', [
    (lambda d: (d/'config.json').unlink(), 'config.json: no such file'),
    (lambda d: (d/'model.safetensors').unlink(), 'model.safetensors: no such file'),
    (lambda d: (d/'model.safetensors').write_bytes((d/'model.safetensors').read_bytes()[:-9]), 'the model is damaged'),
    (lambda d: (d/'config.json').write_text('[]'), 'the model is damaged'),
    (lambda d: change(d, format=99), 'format 99 is unknown'),
    (lambda d: change(d, without='image_size'), 'damaged .*image_size'),
    (lambda d: change(d, image_size='tall'), 'the model is damaged'),
    (lambda d: change(d, model_cfg=dict(embed_dim=3)), 'the model is damaged'),
    (lambda d: change(d, num_ids=5), 'does not fit the model'),
    (lambda d: change(d, token_seed='x'), 'the model is damaged|does not describe')])
def test_broken_folders_are_named(tmp_path, damage, message):
    ReIDModel.create('pedestrians', pretrained=None).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as e: ReIDModel.load(tmp_path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('mean_std', [
    ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]), ([float('nan')]*3, [1.]*3), ([.5]*3, [0.]*3), ([.5]*2, [.5]*3), 3,
    'imagenet', (.5, .5)])
def test_a_normalization_that_is_none(mean_std, tmp_path):
    "Means of 0 to 255 would make every picture black."
    with pytest.raises(ValueError, match='normalization'):
        ReIDModel.create('pedestrians', None, normalization=mean_std)


def test_a_normalization_of_any_type_and_a_saved_one_that_was_spoilt(tmp_path):
    model = ReIDModel.create('pedestrians', None, normalization=np.array([[.4, .4, .4], [.2, .2, .2]]))
    assert model.config['normalization'] == dict(mean=[.4]*3, std=[.2]*3)
    model.save(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    for spoilt in (dict(mean=[124., 116., 104.], std=[58.]*3), dict(mean=[.5], std=[.5])):
        (tmp_path/'config.json').write_text(json.dumps(config | dict(normalization=spoilt)))
        with pytest.raises(ValueError, match='normalization'): ReIDModel.load(tmp_path)


# ---------------------------------------------------------------- towers and sizes
@pytest.mark.parametrize('clip,settings,lost,better', [
    ('timm:vit_tiny_patch16_224', dict(image_size=(250, 120)), '10 rows and 8 columns', '(240, 112)'),
    ('pedestrians', dict(stride=12), '4 rows and 0 columns', '(124, 64)'),
    ('timm:convnext_atto', dict(image_size=(66, 64)), '2 rows and 0 columns', '(64, 64)'),
    ('pedestrians', dict(), None, None), ('timm:resnet10t', dict(image_size=(65, 63)), None, None)])
def test_pixels_that_reach_no_feature_are_said(clip, settings, lost, better):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        model = ReIDModel.create(clip, None, **settings).eval()
    x = torch.randn(2, 3, *model.config['image_size'], requires_grad=True)
    model.image_features(x).pooled.square().sum().backward()
    unseen = x.grad.abs().sum((0, 1)) == 0
    assert (int(unseen.all(1).sum()), int(unseen.all(0).sum())) == tuple(map(int, re.findall(r'\d+', lost or '0 0')))
    assert [lost in str(w.message) and better in str(w.message) for w in said] == ([True] if lost else [])


@pytest.mark.parametrize('name', ['cait_xxs24_224', 'levit_128s', 'pit_ti_224'])
def test_a_tower_of_one_size_names_it(name):
    with pytest.raises(ValueError, match=r'cannot take 256x128 images; .*\(224, 224\)') as said:
        ReIDModel.create(f'timm:{name}', None)
    assert '\n' not in str(said.value)


def test_windows_stay_as_trained():
    trunk = ReIDModel.create('timm:swin_tiny_patch4_window7_224', None).clip.visual.trunk
    assert trunk.layers[0].blocks[0].window_size == (7, 7)


@pytest.mark.parametrize('clip,stride', [('timm:resnet10t', 16), ('timm:vit_tiny_patch16_224', 12)])
def test_strides_of_timm_towers_survive_saving(clip, stride, tmp_path):
    model = ReIDModel.create(clip, None, image_size=(64, 40), stride=stride).eval()
    model.save(tmp_path)
    x = torch.randn(2, 3, 64, 40)
    with torch.no_grad(): close(ReIDModel.load(tmp_path).eval().embed(x), model.embed(x), 0)
    grid = model.clip.visual.trunk.forward_intermediates(x, indices=1, intermediates_only=True)[0].shape[2:]
    assert tuple(grid) == ((4, 3) if stride == 16 else (5, 3))


@pytest.mark.parametrize('clip,on_cpu', [
    ('timm:resnet10t', True), ('timm:efficientnet_lite0', True), ('timm:mobilenetv3_small_050', False),
    ('timm:convnext_atto', False), ('pedestrians', False)])
def test_the_order_in_memory_follows_family_and_device(clip, on_cpu):
    "Only what was measured faster and safe lies channels last, on a CPU alone."
    model = ReIDModel.create(clip, None, image_size=(64, 32))
    def order(device): return memory_order(model.clip.visual, device)
    assert order('cpu') is (torch.channels_last if on_cpu else torch.contiguous_format)
    assert order('cuda') is torch.contiguous_format
    wide = [p for p in model.clip.visual.parameters() if p.ndim == 4 and min(p.shape[1:3]) > 1]
    assert all(p.is_contiguous(memory_format=order('cpu')) for p in wide)
    images = torch.randint(0, 256, (2, 64, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert model.normalize(images).is_contiguous(memory_format=order('cpu'))
    assert all(p.is_contiguous() for p in model.to('meta').clip.visual.parameters())


@pytest.mark.parametrize('clip, dtype', [('pedestrians', torch.bfloat16), ('pedestrians', torch.float64),
                                         ('timm:resnet10t', torch.float16)])
def test_models_of_other_precisions_give_features(clip, dtype):
    model = ReIDModel.create(clip, None, image_size=(128, 64)).eval()
    images = torch.randint(0, 256, (4, 3, 128, 64), dtype=torch.uint8)
    with torch.no_grad():
        want, found = model.embed(images), model.to(dtype).embed(images)
        if clip == 'pedestrians': assert model.encode_captions(['a man']).isfinite().all()
    assert torch.nn.functional.cosine_similarity(found.float(), want).min() > .999


# ---------------------------------------------------------------- a tokenizer of its own
class Tokens:
    "Stands for a tokenizer of another kind: a word a token, an end, padding with 3."
    def __call__(self, texts, context_length=16):
        rows = []
        for text in texts:
            words = [9 if word == 'X' else 5 + len(word) % 3 for word in text.replace('.', '').split()]
            rows.append([1, *words, 2, *[3]*context_length][:context_length])
        return torch.tensor(rows)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    "A saved model whose tokenizer is not CLIP's, and whose folder of origin is gone."
    text = dict(context_length=16, vocab_size=50, layers=1, width=64, heads=1, no_causal_mask=True, pool_type='last',
                hf_tokenizer_name='some/tokenizer')
    vision = dict(image_size=64, layers=1, width=64, patch_size=32)
    cfg = dict(embed_dim=64, custom_text=True, vision_cfg=vision, text_cfg=text)
    (tmp_path/'source').mkdir()
    (tmp_path/'source'/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg)))
    monkeypatch.setattr(open_clip, 'get_tokenizer', lambda *args, **options: Tokens())
    _tokenizer.cache_clear()
    model = ReIDModel.create(f'local-dir:{tmp_path/"source"}', None, num_ids=3, image_size=(64, 32)).eval()
    model.save(tmp_path/'run')
    shutil.rmtree(tmp_path/'source')
    yield model, tmp_path/'run'
    _tokenizer.cache_clear()


def test_glued_words_are_said(foreign):
    "SigLIP's tokenizers delete punctuation, also inside a word."
    model = foreign[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.encode_captions(['a t-shirt'])
        model.config['model_cfg']['text_cfg']['tokenizer_kwargs'] = dict(clean='canonicalize')
        model.encode_captions(['a man, in a red coat.'])
    with pytest.warns(UserWarning, match="reads 't-shirt' as 'tshirt'; write 't shirt' .so with 1 more"):
        model.encode_captions(['a t-shirt', 'a white/blue bag'])


def test_a_run_loads_without_its_tokenizer(foreign, monkeypatch):
    model, folder = foreign
    def gone(*args, **options): raise OSError('no such tokenizer')
    monkeypatch.setattr(open_clip, 'get_tokenizer', gone)
    _tokenizer.cache_clear()
    back = ReIDModel.load(folder).eval()
    with torch.no_grad(): close(back.text_features(torch.arange(3)), model.text_features(torch.arange(3)), 0)
    with pytest.raises(ValueError, match='tokenizer could not be loaded'): back.encode_captions(['a man'])


def test_long_sentences_are_said_whatever_the_tokenizer(foreign):
    with pytest.warns(UserWarning, match='1 of 2 sentences are longer than the 16 tokens'):
        foreign[0].encode_captions(['a '*14, 'a '*15])
