"Every kind of weight file: read right, or refused in one line; which activation; which name goes with which weights."
import json
import os
import pathlib
import shutil
import warnings
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings, strategies as st
from openai_layout import CONFIG, SMALL, archive, image_features, marked, openai_state
from safetensors.torch import save_file
from torch import nn

from clip_dfgs.inference.embed import load_model
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.models.towers import new_clip
from clip_dfgs.models.weights import guess_architecture, load_timm, read_weights

STATE = {'visual.conv1.weight': torch.ones(1), 'token_embedding.weight': torch.zeros(2), 'logit_scale': torch.ones(())}


def close(a, b, tol=1e-3): torch.testing.assert_close(a, b, atol=tol, rtol=tol)


@pytest.fixture()
def home(tmp_path, monkeypatch):
    "An open_clip architecture named `Small-Test`, and a folder for weights."
    configs = tmp_path/'configs'
    configs.mkdir()
    (configs/'Small-Test.json').write_text(json.dumps(CONFIG))
    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIG_PATHS', [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIGS', dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(configs)
    return tmp_path


def create(pretrained, **options): return ReIDModel.create('Small-Test', pretrained, image_size=(64, 32), **options)


def check_features(model, state, quick):
    "The model's features are those of the definition, with this activation."
    assert model.config['model_cfg']['quick_gelu'] is quick
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = image_features(images, state, heads=1, layers=2, patch=8, stride=8, side=4, quick=quick)
    with torch.inference_mode(): found = model.eval().image_features(images)
    for a, b in zip(found, expected): close(a, b, 1e-4)


# ---------------------------------------------------------------- which activation
@pytest.mark.parametrize('kind', ['plain half', 'plain float', 'marked', 'archive', 'safetensors'])
@pytest.mark.filterwarnings('ignore:.*taken for OpenAI')
def test_openai_files_of_every_kind_get_quick_gelu(home, kind):
    state = openai_state(**SMALL, half=kind != 'plain float')
    path = home/'w.pt'                                                           # known by what it holds
    if kind == 'archive': archive(marked(state), path)
    elif kind == 'safetensors': save_file(state, path)
    else: torch.save(marked(state) if kind == 'marked' else state, path)
    check_features(create(str(path)), state, quick=True)


def test_a_checkpoint_keeps_the_architectures_activation_and_says_so(home):
    state = openai_state(**SMALL, half=False)
    torch.save(dict(epoch=3, name='run', state_dict={'module.' + k: v for k, v in state.items()}), home/'epoch_3.pt')
    with pytest.warns(UserWarning, match='taken for .*GELU.*; pass quick_gelu=True') as said:
        model = create(home/'epoch_3.pt')
    assert len(said) == 1
    check_features(model, state, quick=False)
    check_features(create(home/'epoch_3.pt', quick_gelu=True), state, quick=True)


@pytest.mark.parametrize('quick', [False, True])
def test_a_config_beside_the_file_decides(home, quick):
    folder = home/'bundle'
    folder.mkdir()
    save_file(openai_state(**SMALL, half=False), folder/'open_clip_model.safetensors')
    said = dict(model_cfg=CONFIG | dict(quick_gelu=quick), preprocess_cfg=dict(mean=[.4]*3, std=[.2]*3))
    (folder/'open_clip_config.json').write_text(json.dumps(said))
    by_file = create(folder/'open_clip_model.safetensors')
    by_folder = ReIDModel.create(f'local-dir:{folder}', image_size=(64, 32))
    for model in (by_file, by_folder):
        check_features(model, openai_state(**SMALL, half=False), quick)
        assert model.config['normalization'] == dict(mean=[.4]*3, std=[.2]*3)
    with pytest.raises(ValueError, match='was trained with'):
        create(folder/'open_clip_model.safetensors', quick_gelu=not quick)


@pytest.mark.parametrize('quick', [False, True])
def test_the_callers_word_settles_an_open_case_and_is_kept(home, quick):
    torch.save(openai_state(**SMALL, half=False), home/'bare.pt')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = create(home/'bare.pt', quick_gelu=quick)
    check_features(model, openai_state(**SMALL, half=False), quick)
    model.save(home/'kept')
    check_features(ReIDModel.load(home/'kept'), openai_state(**SMALL, half=False), quick)


# ---------------------------------------------------------------- files as other programs leave them
WRAPPERS = st.lists(st.sampled_from(['module', '_orig_mod', 'model', 'net', 'clip', 'backbone']), max_size=4)
HOLDERS = st.sampled_from([(), ('state_dict',), ('model',), ('model_state_dict',), ('state_dict_ema',), ('net',),
                           ('model', 'state_dict')])
EXTRAS = st.sampled_from([{}, dict(epoch=3), dict(best=np.float64(.5), optimizer=dict(state={}, lr=1e-3))])


@settings(max_examples=6, deadline=None)
@given(wrappers=WRAPPERS, holders=HOLDERS, extras=EXTRAS, ordered=st.booleans(), old=st.booleans())
def test_wrappers_and_keys_are_taken_away(tmp_path_factory, wrappers, holders, extras, ordered, old):
    path = tmp_path_factory.mktemp('w')/'run.pth'
    prefix = ''.join(f'{w}.' for w in wrappers)
    found = {prefix + k: v for k, v in STATE.items()}
    if ordered: found = OrderedDict(found)
    for holder in reversed(holders): found = {holder: found} | extras
    torch.save(found, path, _use_new_zipfile_serialization=not old)
    state, origin = read_weights(path)
    assert state.keys() == STATE.keys() and all(torch.equal(v, STATE[k]) for k, v in state.items())
    assert origin == ('checkpoint' if holders else 'bare')


def test_two_states_are_named(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1)), state_dict_ema=dict(a=torch.zeros(1))), tmp_path/'ema.pt')
    with pytest.warns(UserWarning, match='holds state_dict and state_dict_ema; state_dict is read'):
        assert read_weights(tmp_path/'ema.pt')[0]['a'] == 1


class Bomb:
    def __reduce__(self): return os.system, ('touch exploded',)


@pytest.mark.parametrize('extra,kind', [
    (Namespace(lr=1), 'argparse.Namespace'), (pathlib.PurePosixPath('x'), 'PurePosixPath'), (nn.Linear(1, 1), 'Linear'),
    (Bomb(), 'system')])
def test_nothing_is_unpickled_and_the_way_out_is_named(tmp_path, monkeypatch, extra, kind):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=STATE, args=extra), 'run.pt')
    message = f'run.pt: .*{kind}.*save its tensors alone: torch.save'
    with pytest.raises(ValueError, match=message) as e: read_weights('run.pt')
    assert '\n' not in str(e.value) and '\x1b' not in str(e.value)
    assert not (tmp_path/'exploded').exists()


@pytest.mark.parametrize('name,content,reason', [
    ('w.pt', b'', 'it is empty'), ('w.pt', b'<!DOCTYPE html><html>403</html>', 'it is a web page'),
    ('w.bin', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'a pointer, not the file'),
    ('w.safetensors', b'half a file', 'neither torch.save nor safetensors'), ('w.pt', -99, 'damaged, cut short'),
    ('w.safetensors', -3, 'damaged, cut short'), ('w.safetensors', 12, 'damaged, cut short'),
    ('w-00001-of-00002.safetensors', b'x', 'one part of weights in several files'), ('folder', None, 'it is a folder'),
    ('none.pt', None, 'there is no such file')])
def test_what_is_no_weight_file_is_named_in_one_line(home, name, content, reason):
    "Bytes, or so many of a whole file."
    path = home/name
    (home/'folder').mkdir()
    if isinstance(content, int):
        save_file(STATE, path) if name.endswith('safetensors') else torch.save(STATE, path)
        content = path.read_bytes()[:content]
    if content is not None: path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as e: create(path)
    message = str(e.value)
    assert name in message and '\n' not in message and '\x1b' not in message


# ---------------------------------------------------------------- into the model
@pytest.mark.parametrize('damage,message', [
    (lambda s: s.update({'visual.more': torch.zeros(1)}), '1 unknown, first visual.more'),
    (lambda s: s.update({'ln_final.weight': torch.zeros(9)}), '1 misshapen, first ln_final.weight'),
    (lambda s: s.update({'ln_final.weight': torch.zeros(64).to(torch.float8_e4m3fn)}), '1 quantized, first ln_final')])
def test_weights_that_do_not_fit_say_so(home, damage, message):
    state = openai_state(**SMALL)
    damage(state)
    torch.save(marked(state), home/'w.pt')
    with pytest.raises(ValueError, match=message): create(home/'w.pt')


@pytest.mark.parametrize('name', ['timm:resnet18', pytest.param('RN50', marks=pytest.mark.slow)])
def test_batch_norms_without_counters_load(tmp_path, name):
    model = ReIDModel.create(name, None, image_size=(64, 64), seed=5)
    tower = model.clip.visual.trunk if name == 'timm:resnet18' else new_clip(model.config['model_cfg'], seed=5)
    state = {k: v for k, v in tower.state_dict().items() if not k.endswith('num_batches_tracked')}
    assert len(state) < len(tower.state_dict())
    torch.save(state, tmp_path/'w.pt')
    options = dict(quick_gelu=True) if name == 'RN50' else {}
    back = ReIDModel.create(name, tmp_path/'w.pt', image_size=(64, 64), **options)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(): close(back.eval().embed(pictures), model.eval().embed(pictures), 1e-6)


# ---------------------------------------------------------------- names, tags and weights
@pytest.mark.parametrize('call,message', [
    (dict(clip='zzzz'), 'unknown model'),
    (dict(clip='timm:resnet5', pretrained=None), 'did you mean'),
    (dict(pretrained='nofile.pt'), "has no weights 'nofile.pt', and no such file exists; tags: openai"),
    (dict(clip='timm:resnet18', pretrained='pedestrians'), "'timm:resnet18' cannot have the weights 'pedestrians'"),
    (dict(clip='pedestrians', pretrained='nofile.pt'), "clip 'pedestrians' cannot have the weights 'nofile.pt'"),
    (dict(clip='pedestrians', quick_gelu=True), 'pedestrians: was trained with GELU'),
    (dict(clip='timm:resnet18', pretrained=None, quick_gelu=True), 'only a CLIP has the choice of quick_gelu'),
    (dict(clip='ViT-B-16', pretrained=True), 'ViT-B-16 has no weights True'),
    (dict(clip='pedestrians', pretrained=None, image_size=(8, 8)), 'does not suit patches of 16'),
    (dict(clip='pedestrians', pretrained=None, stride=17), 'stride 17'),
    (dict(clip='pedestrians', pretrained=None, normalization='imagenet'), 'unknown normalization'),
    (dict(clip='pedestrians', pretrained=None, normalization=([.5]*3, [0.]*3)), 'is no pair'),
    (dict(clip='timm:resnet18', pretrained=None, stride=12), 'stride can be chosen'),
    (dict(clip='timm:resnet18', pretrained=None, cameras=2), 'camera embedding needs')])
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message) as e: ReIDModel.create(**call)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('damage', ['{', '[]', '{"model_cfg": 3}'])
def test_a_damaged_config_beside_weights_is_named(home, damage):
    (home/'open_clip_config.json').write_text(damage)
    save_file(openai_state(**SMALL), home/'w.safetensors')
    for call in (lambda: create(home/'w.safetensors'), lambda: ReIDModel.create(f'local-dir:{home}')):
        with pytest.raises(ValueError, match='open_clip_config.json: '): call()


def test_tags_and_hub_models_go_through_open_clips_own_download(home, monkeypatch):
    state, folder = openai_state(**SMALL, half=False), home/'hub'
    folder.mkdir()
    weights = folder/'open_clip_model.safetensors'
    save_file(state, weights)
    record = dict(url='', hf_hub='x/y/', mean=(.1, .2, .3), std=(.4, .5, .6), quick_gelu=True)
    known = {('Small-Test', 'mine'): record}
    monkeypatch.setattr(open_clip, 'get_pretrained_cfg', lambda name, tag: known.get((name, tag), {}))
    monkeypatch.setattr(open_clip, 'download_pretrained', lambda r: {id(record): str(weights)}[id(r)])
    model = create('mine')
    assert model.config['model_cfg']['quick_gelu']
    assert model.config['normalization'] == dict(mean=[.1, .2, .3], std=[.4, .5, .6])

    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=CONFIG, preprocess_cfg=dict(mean=[.4]*3))))
    monkeypatch.setattr(open_clip.pretrained, 'download_pretrained_from_hf',
                        lambda repo, filename='open_clip_model.safetensors': str(folder/filename))
    hub = ReIDModel.create('hf-hub:x/y', image_size=(64, 32))
    assert hub.config['model_cfg'].get('quick_gelu') is False and hub.config['normalization']['mean'] == [.4]*3
    assert torch.equal(hub.clip.visual.proj, model.clip.visual.proj)


def test_a_failed_download_is_one_line(home, monkeypatch):
    def offline(*args, **options): raise OSError('\n\x1b[31mno\x1b[0m network\nmore')
    monkeypatch.setattr(open_clip, 'get_pretrained_cfg', lambda name, tag: dict(url='x'))
    monkeypatch.setattr(open_clip, 'download_pretrained', offline)
    monkeypatch.setattr(open_clip.pretrained, 'download_pretrained_from_hf', offline)
    with pytest.raises(ValueError, match=r"the weights 'mine' could not be had; pass a file \(no network\)"):
        create('mine')
    with pytest.raises(ValueError, match=r'hf-hub:x/y: could not be fetched \(no network\)'):
        ReIDModel.create('hf-hub:x/y')


# ---------------------------------------------------------------- backbones of timm
def test_leftovers_of_a_backbones_file_are_said_but_for_the_classifier(tmp_path):
    state = load_timm('resnet18')[0].visual.trunk.state_dict()
    torch.save(state | {'fc.weight': torch.zeros(1000, 512)}, tmp_path/'head.pt')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_timm('resnet18', tmp_path/'head.pt')
    ordered = {f'_part{i}.{k.rsplit(".", 1)[-1]}': v for i, (k, v) in enumerate(state.items())}
    torch.save(ordered | {next(iter(ordered)): torch.zeros(1)}, tmp_path/'wrong.pt')     # not all shapes
    with pytest.raises(ValueError, match='does not fit the model: .* missing'):
        load_timm('resnet18', tmp_path/'wrong.pt')
    torch.save(state | {'layer5.weight': torch.zeros(3)}, tmp_path/'more.pt')
    with pytest.warns(UserWarning, match='1 tensors are not of the backbone and left out, first layer5.weight'):
        load_timm('resnet18', tmp_path/'more.pt')


# ---------------------------------------------------------------- files of other code bases
def published(monkeypatch, *mean_std):
    "Let `Small-Test` have published weights with these normalizations."
    tags = {f'tag{i}': dict(mean=mean, std=std) for i, (mean, std) in enumerate(mean_std)}
    monkeypatch.setattr(open_clip, 'list_pretrained_tags_by_model', lambda name: list(tags))
    monkeypatch.setattr(open_clip, 'get_pretrained_cfg', lambda name, tag: tags.get(tag, {}))


def test_a_file_has_the_normalization_of_its_architectures_published_weights(home, monkeypatch):
    torch.save(openai_state(**SMALL, half=False), home/'w.pt')
    half, zero = ([.5]*3, [.5]*3), ([0.]*3, [1.]*3)
    published(monkeypatch, half, half)
    assert create(home/'w.pt', quick_gelu=True).config['normalization'] == dict(mean=half[0], std=half[1])
    published(monkeypatch, half, zero, half)
    with pytest.warns(UserWarning, match='pass normalization'):
        assert create(home/'w.pt', quick_gelu=True).config['normalization']['mean'] == half[0]


def timm_folder(folder, **config):
    "A backbone as timm and the hub keep it."
    folder.mkdir()
    tower = load_timm('resnet10t', seed=3)[0].visual.trunk
    save_file(tower.state_dict(), folder/'model.safetensors')
    said = dict(input_size=[3, 64, 64], mean=[.4]*3, std=[.3]*3, num_classes=0, first_conv='conv1.0', classifier='fc')
    (folder/'config.json').write_text(json.dumps(dict(architecture='resnet10t', num_classes=0, pretrained_cfg=said)))
    return tower


def test_a_timm_config_beside_a_file_says_the_normalization(tmp_path):
    timm_folder(tmp_path/'hub')
    by_file = ReIDModel.create('timm:resnet10t', tmp_path/'hub'/'model.safetensors', image_size=(64, 32))
    by_folder = ReIDModel.create(f'timm:local-dir:{tmp_path/"hub"}', image_size=(64, 32))
    for model in (by_file, by_folder):
        assert model.config['normalization'] == dict(mean=[.4]*3, std=[.3]*3)
    by_folder.save(tmp_path/'run')
    shutil.rmtree(tmp_path/'hub')
    x = torch.rand(2, 3, 64, 32)
    with torch.inference_mode():
        want = by_file.eval().embed(x)
        for model in (by_folder, ReIDModel.load(tmp_path/'run')): close(model.eval().embed(x), want, 0)


@pytest.mark.parametrize('layout', [
    lambda s: {f'base.{k}': v for k, v in s.items()}, lambda s: {f'module.base.{k}': v for k, v in s.items()},
    lambda s: dict(model={f'backbone.{k}': v for k, v in s.items()}), lambda s: dict(student=s),
    lambda s: dict(teacher={f'module.backbone.{k}': v for k, v in s.items()}, epoch=3)])
@pytest.mark.filterwarnings('ignore:.*not of the backbone')
def test_backbones_of_re_id_code_bases(layout, tmp_path):
    tower = load_timm('resnet10t', seed=3)[0].visual.trunk
    head = {'bottleneck.weight': torch.ones(512), 'classifier.weight': torch.ones(9, 512)}
    torch.save(layout(tower.state_dict() | head), tmp_path/'w.pth')
    model = ReIDModel.create('timm:resnet10t', tmp_path/'w.pth', image_size=(64, 32))
    assert torch.equal(model.clip.visual.trunk.layer4[0].conv1.weight, tower.layer4[0].conv1.weight)


@pytest.mark.filterwarnings('ignore:.*not of the backbone')
def test_fast_reids_pixels(tmp_path):
    state = {f'backbone.{k}': v for k, v in load_timm('resnet10t')[0].visual.trunk.state_dict().items()}
    pixels = dict(pixel_mean=torch.full((1, 3, 1, 1), 51.), pixel_std=torch.full((1, 3, 1, 1), 102.))
    torch.save(dict(model=state | pixels), tmp_path/'w.pth')
    found = ReIDModel.create('timm:resnet10t', tmp_path/'w.pth', image_size=(64, 32)).config['normalization']
    assert found == dict(mean=pytest.approx([.2]*3), std=pytest.approx([.4]*3))


@pytest.mark.parametrize('stride', [16, 12])
@pytest.mark.filterwarnings('ignore:.*reach no feature')
def test_clip_reids_checkpoints(home, stride):
    "Its image tower at its size; camera vectors at their mean, on the class token."
    vision = dict(image_size=64, patch_size=16, layers=2, width=64)
    text = CONFIG['text_cfg']
    (home/'configs'/'Small-16.json').write_text(json.dumps(dict(embed_dim=32, vision_cfg=vision, text_cfg=text)))
    open_clip.add_model_config(home/'configs')
    made = ReIDModel.create('Small-16', None, quick_gelu=True, image_size=(256, 128), stride=stride, seed=2).eval()
    state = {f'image_encoder.{k}': v.clone() for k, v in made.clip.visual.state_dict().items()}
    others = {'text_encoder.ln_final.bias': torch.ones(64), 'classifier.weight': torch.ones(9, 64)}
    torch.save(state | others, home/'w.pth')
    found = ReIDModel.create('Small-16', home/'w.pth').eval()
    assert found.config['image_size'] == [256, 128] and found.config['stride'] == stride and not found.has_text
    assert found.config['normalization'] == dict(mean=[.5]*3, std=[.5]*3)
    x = torch.randn(2, 3, 256, 128)
    with torch.inference_mode(): close(found.embed(x), made.embed(x), 1e-5)
    found.save(home/'kept')
    with torch.inference_mode(): close(ReIDModel.load(home/'kept').eval().embed(x), made.embed(x), 1e-5)
    torch.save(state | dict(cv_embed=torch.stack([torch.ones(64), torch.zeros(64)])), home/'cameras.pth')
    table = ReIDModel.create('Small-16', home/'cameras.pth').clip.visual.positional_embedding
    shift = table - made.clip.visual.positional_embedding
    close(shift[0], torch.full((64,), 1.5), 1e-5)
    assert not shift[1:].any()


@pytest.mark.parametrize('stride', [12])
@pytest.mark.filterwarnings('ignore:.*(not of the backbone|reach no feature|pass normalization)')
def test_transreids_checkpoints(stride, tmp_path):
    made = ReIDModel.create('timm:vit_tiny_patch16_224', None, image_size=(256, 128), stride=stride, seed=2).eval()
    state = {f'base.{k}': v.clone() for k, v in made.clip.visual.trunk.state_dict().items()}
    torch.save(state | {'bottleneck.weight': torch.ones(192)}, tmp_path/'w.pth')
    found = load_model(tmp_path/'w.pth', 'cpu')
    assert found.config['clip'] == 'timm:vit_tiny_patch16_224' and found.config['stride'] == stride
    x = torch.randn(2, 3, 256, 128)
    with torch.inference_mode(): close(found.embed(x), made.embed(x), 1e-5)
    torch.save(state | {'base.sie_embed': torch.stack([torch.ones(1, 192), torch.zeros(1, 192)])}, tmp_path/'w.pth')
    close(load_model(tmp_path/'w.pth', 'cpu').clip.visual.trunk.pos_embed - made.clip.visual.trunk.pos_embed,
          torch.full((1, 1, 192), 1.5).expand_as(made.clip.visual.trunk.pos_embed), 1e-5)


def test_architectures_are_known_by_their_tensors():
    def like(name): return load_timm(name)[0].visual.trunk.state_dict()
    assert guess_architecture(like('resnet18'), 'x') == dict(clip='timm:resnet18', stride=None)
    assert guess_architecture(like('resnet50') | {'bottleneck.weight': 0}, 'x') == dict(clip='timm:resnet50', stride=16)
    ibn = like('resnet18') | {'layer1.0.IN.bias': 0}
    for strange in (dict(a=1), like('convnext_atto'), {'b1.0.norm1.weight': 1}, ibn):
        with pytest.raises(ValueError, match='w.pth'): guess_architecture(strange, 'w.pth')
