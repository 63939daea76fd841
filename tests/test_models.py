"The real architecture in OpenAI's key layout against a forward pass written out here; every kind of weight file; other towers."
import json
import math
import os
import subprocess
import sys
import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from clip_dfgs import models
from clip_dfgs.models import (OPENAI_PIXELS, PEDESTRIANS, ReIDModel, encode_tokens, load_small_clip, new_clip, new_small_clip, read_weights,
                              resize_grid, run_blocks, save_small_clip, text_tower, tower_features)


# ---------------------------------------------------------------- OpenAI's layout, spelled out
def openai_state(seed=0, width=768, layers=12, patch=16, side=14, embed=512, text_width=512, text_layers=12, vocab=49408, context=77, half=True):
    "Random weights with the names, shapes and precisions of OpenAI's ViT files, of a trained model's size."
    g = torch.Generator().manual_seed(seed)
    def draw(*shape, std): return torch.randn(*shape, generator=g) * std
    def blocks(prefix, w, n):
        out = {}
        for i in range(n):
            b = f'{prefix}.resblocks.{i}.'
            out |= {b + 'ln_1.weight': 1 + draw(w, std=.1), b + 'ln_1.bias': draw(w, std=.1), b + 'ln_2.weight': 1 + draw(w, std=.1), b + 'ln_2.bias': draw(w, std=.1),
                    b + 'attn.in_proj_weight': draw(3 * w, w, std=1.5 * w ** -.5), b + 'attn.in_proj_bias': draw(3 * w, std=.1),
                    b + 'attn.out_proj.weight': draw(w, w, std=.5 * w ** -.5), b + 'attn.out_proj.bias': draw(w, std=.1),
                    b + 'mlp.c_fc.weight': draw(4 * w, w, std=3 * w ** -.5), b + 'mlp.c_fc.bias': draw(4 * w, std=.2),
                    b + 'mlp.c_proj.weight': draw(w, 4 * w, std=.4 * w ** -.5), b + 'mlp.c_proj.bias': draw(w, std=.1)}
        return out
    state = {'visual.class_embedding': draw(width, std=.3), 'visual.positional_embedding': draw(side * side + 1, width, std=.3),
             'visual.proj': draw(width, embed, std=width ** -.5), 'visual.conv1.weight': draw(width, 3, patch, patch, std=.05),
             'visual.ln_pre.weight': 1 + draw(width, std=.1), 'visual.ln_pre.bias': draw(width, std=.1),
             'visual.ln_post.weight': 1 + draw(width, std=.1), 'visual.ln_post.bias': draw(width, std=.1),
             'positional_embedding': draw(context, text_width, std=.05), 'text_projection': draw(text_width, embed, std=text_width ** -.5),
             'logit_scale': torch.tensor(4.6), 'token_embedding.weight': draw(vocab, text_width, std=.05),
             'ln_final.weight': 1 + draw(text_width, std=.1), 'ln_final.bias': draw(text_width, std=.1)}
    state |= blocks('visual.transformer', width, layers) | blocks('transformer', text_width, text_layers)
    if half:                                                               # linear maps in fp16; norms, embeddings and scale in fp32
        for k in state:
            if any(part in k for part in ('attn.', 'mlp.', 'conv1', 'proj')): state[k] = state[k].half()
    return state


# ---------------------------------------------------------------- the definition, in plain operations
def layer_norm(x, s, name):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * s[name + '.weight'] + s[name + '.bias']


def block(x, s, b, heads, causal=False, quick=True):
    n, l, w = x.shape
    q, k, v = (layer_norm(x, s, b + 'ln_1') @ s[b + 'attn.in_proj_weight'].T + s[b + 'attn.in_proj_bias']).split(w, 2)
    out = []
    for h in range(heads):
        cut = slice(h * w // heads, (h + 1) * w // heads)
        logits = q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(w // heads)
        if causal: logits = logits + torch.full((l, l), -torch.inf).triu(1)
        out.append(logits.softmax(-1) @ v[..., cut])
    x = x + torch.cat(out, 2) @ s[b + 'attn.out_proj.weight'].T + s[b + 'attn.out_proj.bias']
    h = layer_norm(x, s, b + 'ln_2') @ s[b + 'mlp.c_fc.weight'].T + s[b + 'mlp.c_fc.bias']
    h = h * torch.sigmoid(1.702 * h) if quick else F.gelu(h)
    return x + h @ s[b + 'mlp.c_proj.weight'].T + s[b + 'mlp.c_proj.bias']


def slow_resize(grid, new_h, new_w):
    "Bilinear, half-pixel centres, edges clamped; grid [h,w,D], one output at a time."
    h, w, _ = grid.shape
    out = torch.empty(new_h, new_w, grid.shape[2])
    for i in range(new_h):
        for j in range(new_w):
            y, x = max((i + .5) * h / new_h - .5, 0), max((j + .5) * w / new_w - .5, 0)
            y0, x0 = min(int(y), h - 1), min(int(x), w - 1); y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            a, b = y - y0, x - x0
            out[i, j] = (1 - a) * (1 - b) * grid[y0, x0] + (1 - a) * b * grid[y0, x1] + a * (1 - b) * grid[y1, x0] + a * b * grid[y1, x1]
    return out


def image_features(images, s, heads, layers, patch=16, stride=16, side=14, quick=True):
    s = {k.removeprefix('visual.'): v.float() for k, v in s.items() if k.startswith('visual.')}
    n, _, height, width = images.shape
    grid = [(height - patch) // stride + 1, (width - patch) // stride + 1]
    tokens = torch.stack([(images[:, :, i * stride:i * stride + patch, j * stride:j * stride + patch].reshape(n, -1) @ s['conv1.weight'].flatten(1).T)
                          for i in range(grid[0]) for j in range(grid[1])], 1)
    table = s['positional_embedding']
    positions = torch.cat([table[:1], slow_resize(table[1:].view(side, side, -1), *grid).flatten(0, 1)])
    x = layer_norm(torch.cat([s['class_embedding'].expand(n, 1, -1), tokens], 1) + positions, s, 'ln_pre')
    for i in range(layers):
        last = x[:, 0]
        x = block(x, s, f'transformer.resblocks.{i}.', heads, quick=quick)
    pooled = layer_norm(x[:, 0], s, 'ln_post')
    return last, pooled, pooled @ s['proj']


def text_feature(ids, s, heads, layers):
    "All 77 positions, read at the largest id."
    s = {k: v.float() for k, v in s.items() if not k.startswith('visual.')}
    x = s['token_embedding.weight'][ids] + s['positional_embedding']
    for i in range(layers): x = block(x, s, f'transformer.resblocks.{i}.', heads, causal=True)
    return layer_norm(x, s, 'ln_final')[torch.arange(len(ids)), ids.argmax(1)] @ s['text_projection']


def close(a, b, tol=1e-3): torch.testing.assert_close(a, b, atol=tol, rtol=tol)


@pytest.fixture(scope='module')
def full_size(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights')/'ViT-B-16.pt'
    state = openai_state()
    torch.save(state, path)
    return path, state


@torch.inference_mode()
def test_vit_b16_from_openai_weights_is_the_definition(full_size):
    path, state = full_size
    model = ReIDModel.create('ViT-B-16', pretrained=path, num_ids=3, normalisation='half').eval()
    assert model.config['model_cfg']['quick_gelu'] and model.widths == (768, 768, 512)
    images = torch.randint(0, 256, (2, 3, 256, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = image_features((images / 255 - .5) / .5, state, heads=12, layers=12)
    found = model.image_features(images)
    for a, b in zip(found, expected): close(a, b)
    close(model.embed(images), torch.cat(expected[1:], 1))
    gelu = image_features((images / 255 - .5) / .5, state, heads=12, layers=12, quick=False)
    with pytest.raises(AssertionError): close(found.projected, gelu[2])     # the wrong activation would be noticed
    ids = open_clip.tokenize(['a photo of a tall person.', 'someone in a red coat'])
    close(encode_tokens(model.clip, ids), text_feature(ids, state, heads=8, layers=12))
    close(model.encode_captions(['a photo of a tall person.']), text_feature(ids[:1], state, heads=8, layers=12))
    context = model.prompts.context[2]
    ids = open_clip.tokenize(['A photo of a X X X X person.'])
    poked = dict(state); poked['token_embedding.weight'] = torch.cat([state['token_embedding.weight'], context])
    ids = ids.clone(); end = int(ids.argmax()); ids[0, 5:9] = torch.arange(4) + len(state['token_embedding.weight'])
    x = poked['token_embedding.weight'][ids] + state['positional_embedding']
    s = {k: v.float() for k, v in state.items() if not k.startswith('visual.')}
    for i in range(12): x = block(x, s, f'transformer.resblocks.{i}.', 8, causal=True)
    close(model.text_features(torch.tensor([2])), layer_norm(x, s, 'ln_final')[:, end] @ s['text_projection'])


# ---------------------------------------------------------------- every kind of file, on a small architecture
SMALL = dict(width=64, layers=2, patch=8, side=4, embed=32, text_width=64, text_layers=2, vocab=49408)
CONFIG = dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=64, patch_size=8), text_cfg=dict(width=64, heads=1, layers=2))


class Node(nn.Module):
    def forward(self, x): return x


def archive(state, path):
    "A TorchScript archive whose state dict is `state`."
    root = Node()
    for key, value in state.items():
        *parts, leaf = key.split('.'); node = root
        for part in parts:
            if part not in node._modules: node.add_module(part, Node())
            node = node._modules[part]
        if value.is_floating_point(): node.register_parameter(leaf, nn.Parameter(value))
        else: node.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(root, torch.zeros(1)), str(path))


@pytest.fixture()
def home(tmp_path, monkeypatch):
    "An open_clip architecture named `Small-Test`, and a folder for weights."
    configs = tmp_path/'configs'; configs.mkdir(); (configs/'Small-Test.json').write_text(json.dumps(CONFIG))
    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIG_PATHS', [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIGS', dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(configs)
    return tmp_path


def features(model, seed=0):
    with torch.inference_mode(): return model.eval().image_features(torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(seed)))


def marks(state): return state | dict(input_resolution=torch.tensor(32), context_length=torch.tensor(77), vocab_size=torch.tensor(49408))


@pytest.mark.parametrize('kind', ['plain half', 'plain float', 'marked', 'archive', 'safetensors'])
@pytest.mark.filterwarnings('ignore:.*taken for OpenAI')
def test_openai_files_of_every_kind_get_quick_gelu(home, kind):
    state = openai_state(**SMALL, half=kind != 'plain float'); path = home/('w.safetensors' if kind == 'safetensors' else 'w.pt')
    if kind == 'archive': archive(marks(state), path)
    elif kind == 'safetensors': save_file(state, path)
    else: torch.save(marks(state) if kind == 'marked' else state, path)
    model = ReIDModel.create('Small-Test', pretrained=str(path), image_size=(64, 32))
    assert model.config['model_cfg']['quick_gelu']
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    for a, b in zip(features(model), image_features(images, state, heads=1, layers=2, patch=8, stride=8, side=4)): close(a, b, 1e-4)


@pytest.mark.parametrize('stride,size', [(6, (64, 32)), (5, (61, 47)), (8, (32, 32))])
def test_overlapping_patches_and_other_sizes(home, stride, size):
    state = openai_state(**SMALL); torch.save(state, home/'w.pt')
    model = ReIDModel.create('Small-Test', pretrained=home/'w.pt', image_size=size, stride=stride).eval()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for a, b in zip(model.image_features(images), image_features(images, state, heads=1, layers=2, patch=8, stride=stride, side=4)): close(a, b, 1e-4)


def test_open_clip_training_checkpoints_keep_the_architectures_gelu(home):
    state = openai_state(**SMALL, half=False)
    torch.save(dict(epoch=3, name='run', state_dict={'module.' + k: v for k, v in state.items()}), home/'epoch_3.pt')
    model = ReIDModel.create('Small-Test', pretrained=home/'epoch_3.pt', image_size=(64, 32))
    assert not model.config['model_cfg']['quick_gelu']
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    for a, b in zip(features(model), image_features(images, state, heads=1, layers=2, patch=8, stride=8, side=4, quick=False)): close(a, b, 1e-4)


@pytest.mark.parametrize('quick', [False, True])
def test_a_config_beside_the_file_decides(home, quick):
    folder = home/'bundle'; folder.mkdir()
    save_file(openai_state(**SMALL, half=False), folder/'open_clip_model.safetensors')
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=CONFIG | dict(quick_gelu=quick), preprocess_cfg=dict(mean=[.4] * 3, std=[.2] * 3))))
    by_file = ReIDModel.create('Small-Test', pretrained=folder/'open_clip_model.safetensors', image_size=(64, 32))
    by_folder = ReIDModel.create(f'local-dir:{folder}', image_size=(64, 32))
    for model in (by_file, by_folder):
        assert model.config['model_cfg']['quick_gelu'] is quick and model.config['pixels'] == dict(mean=[.4] * 3, std=[.2] * 3)
    for a, b in zip(features(by_file), features(by_folder)): close(a, b, 0)
    with pytest.raises(ValueError, match='was trained with'):
        ReIDModel.create('Small-Test', pretrained=folder/'open_clip_model.safetensors', quick_gelu=not quick)


def test_a_contradicted_claim_is_refused_and_an_open_case_warns(home):
    torch.save(marks(openai_state(**SMALL)), home/'openai.pt'); torch.save(openai_state(**SMALL, half=False), home/'bare.pt')
    with pytest.raises(ValueError, match=r'openai.pt: was trained with QuickGELU, not GELU'):
        ReIDModel.create('Small-Test', pretrained=home/'openai.pt', quick_gelu=False)
    with pytest.warns(UserWarning, match='taken for OpenAI weights'): ReIDModel.create('Small-Test', pretrained=home/'bare.pt')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not ReIDModel.create('Small-Test', pretrained=home/'bare.pt', quick_gelu=False).config['model_cfg']['quick_gelu']
    with pytest.raises(ValueError, match='laion2b_s34b_b88k: was trained with GELU, not QuickGELU'):
        ReIDModel.create('ViT-B-16', pretrained='laion2b_s34b_b88k', quick_gelu=True)


def test_random_weights_of_an_openai_architecture_use_its_activation():
    for name, quick in (('RN50', True), ('ViT-B-16-SigLIP-256', False)):
        tag = open_clip.get_pretrained_cfg(name, 'openai')
        assert models.choose_quick_gelu('tag', None, tag.get('quick_gelu', False) if tag else None, name) is quick


class Bomb:
    def __reduce__(self): return os.system, ('touch exploded',)


def test_nothing_is_unpickled(home, monkeypatch):
    monkeypatch.chdir(home)
    torch.save(dict(state_dict=openai_state(**SMALL), extra=Bomb()), home/'bomb.pt')
    with pytest.raises(ValueError, match='bomb.pt: not a weight file'): read_weights(home/'bomb.pt')
    assert not (home/'exploded').exists()


@pytest.mark.parametrize('damage,message', [
    (lambda s: s.pop('visual.proj'), '1 missing, first visual.proj'),
    (lambda s: s.update({'visual.more': torch.zeros(1)}), '1 unknown, first visual.more'),
    (lambda s: s.update({'ln_final.weight': torch.zeros(9)}), '1 misshapen, first ln_final.weight')])
def test_weights_that_do_not_fit_say_so(home, damage, message):
    state = openai_state(**SMALL); damage(state); torch.save(marks(state), home/'w.pt')
    with pytest.raises(ValueError, match=message): ReIDModel.create('Small-Test', pretrained=home/'w.pt')


@pytest.mark.parametrize('call,message', [
    (dict(clip='ViT-B-61'), 'did you mean'), (dict(clip='zzzz'), 'unknown model'), (dict(clip='timm:resnet5', pretrained=None), 'did you mean'),
    (dict(pretrained='nofile.pt'), "has no weights 'nofile.pt', and no such file exists; tags: openai"),
    (dict(clip='coca_ViT-B-32', pretrained=None), 'CoCa'), (dict(clip='roberta-ViT-B-32', pretrained=None), 'roberta-base'),
    (dict(clip='pedestrians', pretrained=None, image_size=(8, 8)), 'does not suit patches of 16'),
    (dict(clip='pedestrians', pretrained=None, stride=17), 'stride 17'), (dict(clip='pedestrians', pretrained=None, normalisation='imagenet'), 'unknown normalisation'),
    (dict(clip='timm:resnet18', pretrained=None, stride=12), 'stride can be chosen'), (dict(clip='timm:resnet18', pretrained=None, cameras=2), 'camera embedding needs')])
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message) as e: ReIDModel.create(**call)
    assert '\n' not in str(e.value)


# ---------------------------------------------------------------- other towers
@settings(max_examples=25, deadline=None)
@given(old=st.tuples(st.integers(1, 6), st.integers(1, 6)), new=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_resized_positions_are_bilinear(old, new, seed):
    table = torch.randn(1 + old[0] * old[1], 3, generator=torch.Generator().manual_seed(seed))
    expected = torch.cat([table[:1], slow_resize(table[1:].view(*old, 3), *new).flatten(0, 1)])
    close(resize_grid(table, old, new), expected, 1e-5)


def small_custom(**vision):
    return dict(embed_dim=24, custom_text=True, vision_cfg=dict(image_size=64, timm_model_pretrained=False, **vision), text_cfg=dict(width=32, heads=2, layers=2))


@pytest.mark.parametrize('vision', [dict(timm_model_name='vit_tiny_patch16_224', timm_pool='token', timm_proj=None),
                                    dict(timm_model_name='eva02_tiny_patch14_224', timm_pool='token', timm_proj='linear'),
                                    dict(timm_model_name='resnet18', timm_pool='avg', timm_proj='mlp'),
                                    dict(timm_model_name='test_vit2', timm_pool='map', timm_proj='none')])
def test_timm_towers_inside_clip_give_open_clips_features(vision):
    model = new_clip(small_custom(**vision)); models.fit_tower(model.visual, (128, 64)); model.eval()
    x = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(): close(tower_features(model.visual, x).projected, model.visual(x), 1e-5)


def test_resnet_tower_and_its_attention_pool():
    cfg = dict(embed_dim=32, vision_cfg=dict(image_size=64, layers=[1, 1, 1, 1], width=16, head_width=32, patch_size=None), text_cfg=dict(width=32, heads=2, layers=1))
    for stride, grid in ((None, (4, 2)), (16, (8, 4))):
        visual = models.fit_tower(new_clip(cfg).visual, (128, 64), stride).eval()
        assert len(visual.attnpool.positional_embedding) == 1 + grid[0] * grid[1]
        x = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            f = tower_features(visual, x)
            maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
            assert tuple(maps.shape[2:]) == grid
            close(f.projected, visual(x)); close(f.pooled, maps.mean((2, 3)))
            # the pool from its definition: the mean token asks, all tokens answer
            p = visual.attnpool; t = torch.cat([maps.flatten(2).mean(2)[:, None], maps.flatten(2).transpose(1, 2)], 1) + p.positional_embedding
            q, k, v = p.q_proj(t[:, :1]), p.k_proj(t), p.v_proj(t); out = []
            for h in range(p.num_heads):
                cut = slice(h * q.shape[2] // p.num_heads, (h + 1) * q.shape[2] // p.num_heads)
                out.append((q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(cut.stop - cut.start)).softmax(-1) @ v[..., cut])
            close(f.projected, p.c_proj(torch.cat(out, 2))[:, 0])


def test_towers_that_pool_by_the_mean_or_have_other_blocks():
    for vision in (dict(pool_type='avg'), dict(pool_type='avg', final_ln_after_pool=True), dict(qk_norm=True), dict(ls_init_value=.1), dict(no_ln_pre=True)):
        cfg = dict(CONFIG, vision_cfg=dict(CONFIG['vision_cfg'], **vision)); visual = new_clip(cfg).visual.eval()
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(): close(tower_features(visual, x).projected, visual(x), 1e-5)


def test_a_tower_that_looks_both_ways_is_run_at_full_length():
    cfg = dict(CONFIG, custom_text=True, text_cfg=dict(CONFIG['text_cfg'], no_causal_mask=True))
    clip = new_clip(cfg).eval(); ids = open_clip.tokenize(['a person', 'another person in a long grey coat'])
    with torch.inference_mode():
        close(encode_tokens(text_tower(clip), ids), clip.encode_text(ids), 1e-5)
        assert (encode_tokens(text_tower(clip), ids[:, :20]) - clip.encode_text(ids)).abs().max() > 1e-3


def test_tags_and_hub_models_go_through_open_clips_own_download(home, monkeypatch):
    state = openai_state(**SMALL, half=False); folder = home/'hub'; folder.mkdir(); save_file(state, folder/'open_clip_model.safetensors')
    record = dict(url='', hf_hub='x/y/', mean=(.1, .2, .3), std=(.4, .5, .6), quick_gelu=True)
    monkeypatch.setattr(open_clip, 'get_pretrained_cfg', lambda name, tag: record if (name, tag) == ('Small-Test', 'mine') else {})
    monkeypatch.setattr(open_clip, 'download_pretrained', lambda r: str(folder/'open_clip_model.safetensors') if r is record else 1 / 0)
    model = ReIDModel.create('Small-Test', pretrained='mine', image_size=(64, 32))
    assert model.config['model_cfg']['quick_gelu'] and model.config['pixels'] == dict(mean=[.1, .2, .3], std=[.4, .5, .6])
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=CONFIG, preprocess_cfg=dict(mean=[.4] * 3))))
    monkeypatch.setattr(open_clip.pretrained, 'download_pretrained_from_hf', lambda repo, filename='open_clip_model.safetensors': str(folder/filename))
    hub = ReIDModel.create('hf-hub:x/y', image_size=(64, 32))
    assert hub.config['model_cfg'].get('quick_gelu') is False and hub.config['pixels']['mean'] == [.4] * 3
    assert torch.equal(hub.clip.visual.proj, model.clip.visual.proj)
    def offline(*args, **kw): raise OSError('no network')
    monkeypatch.setattr(open_clip, 'download_pretrained', offline); monkeypatch.setattr(open_clip.pretrained, 'download_pretrained_from_hf', offline)
    with pytest.raises(ValueError, match=r"the weights 'mine' could not be downloaded \(no network\); pass a file"): ReIDModel.create('Small-Test', pretrained='mine')
    with pytest.raises(ValueError, match='hf-hub:x/y: could not be fetched'): ReIDModel.create('hf-hub:x/y')


def test_half_precision_autocast_stays_close():
    model = ReIDModel.create('pedestrians', pretrained=None, num_ids=4).eval()
    images = torch.randint(0, 256, (4, 3, 128, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)); labels = torch.arange(4)
    with torch.inference_mode():
        exact = [*model.image_features(images), model.text_features(labels)]
        with torch.autocast('cpu', dtype=torch.bfloat16): rough = [*model.image_features(images), model.text_features(labels)]
    for a, b in zip(rough, exact): assert (a.float() - b).norm() < .05 * b.norm()


# ---------------------------------------------------------------- gradients and memory
def test_checkpointed_blocks_have_the_same_gradients():
    clip = new_small_clip(); x = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0)); grads = []
    for again in (False, True):
        clip.visual.set_grad_checkpointing(again); clip.zero_grad()
        sum(t.square().sum() for t in tower_features(clip.visual, x)).backward()
        grads.append([p.grad.clone() for p in clip.visual.parameters()])
    for a, b in zip(*grads): close(a, b, 1e-4)


@pytest.mark.parametrize('quick', [False, True])
def test_gradients_are_those_of_open_clips_blocks(quick):
    t = new_clip(PEDESTRIANS['model_cfg'] | dict(quick_gelu=quick)).visual.transformer.double(); x = torch.randn(2, 9, 192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grads = []
    for f in (lambda: t(x)[:, 0], lambda: run_blocks(t, x, take=lambda y: y[:, :1])[1][:, 0]):
        t.zero_grad(); f().pow(3).sum().backward(); grads.append([p.grad.clone() for p in t.parameters()])
    for a, b in zip(*grads): close(a, b, 1e-9)


def test_stages_train_what_they_should():
    model = ReIDModel.create('pedestrians', pretrained=None, num_ids=4, cameras=2)
    images = torch.randint(0, 256, (4, 3, 128, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    for stage in ('adapt', 'prompts', 'finetune'):
        names = {n for n, _ in model.trainable(stage)}; model.zero_grad(set_to_none=True)
        f = model.image_features(images, labels % 2)
        loss = sum(h.square().sum() for h in model.heads(f)) + (f.projected @ model.text_features(labels).T).square().sum() + f.last.square().sum()
        loss.backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == names
        assert names == {'prompts.context'} if stage == 'prompts' else not any(n.startswith(('clip.t', 'clip.p', 'clip.l', 'prompts')) for n in names)
    with pytest.raises(ValueError, match='unknown stage'): model.trainable('two')


# ---------------------------------------------------------------- folders
def test_save_and_load_give_the_same_model_and_touch_no_global_state(tmp_path):
    torch.manual_seed(5); before = torch.random.get_rng_state()
    model = ReIDModel.create('pedestrians', pretrained=None, num_ids=6, cameras=3, stride=12, image_size=(96, 48), normalisation='instance', seed=4)
    with torch.no_grad(): model.neck_pooled.norm.running_mean += 1; model.prompts.context += 1
    model.save(tmp_path/'m'); back = ReIDModel.load(tmp_path/'m')
    assert torch.equal(before, torch.random.get_rng_state())
    assert back.config == model.config and sorted(p.name for p in (tmp_path/'m').iterdir()) == ['config.json', 'model.safetensors']
    images = torch.randint(0, 256, (2, 3, 96, 48), dtype=torch.uint8); cams = torch.tensor([0, 2])
    with torch.inference_mode():
        for m in (model, back): m.eval()
        assert torch.equal(model.embed(images, cams), back.embed(images, cams)) and torch.equal(model.text_features(cams), back.text_features(cams))
    assert 'clip.token_embedding.weight' not in load_file(tmp_path/'m'/'model.safetensors')
    model.save(tmp_path/'m')                                               # over an existing one
    assert (tmp_path/'m'/'config.json').exists()


def test_saved_model_loads_in_a_fresh_process(tmp_path):
    model = ReIDModel.create('pedestrians', pretrained=None, num_ids=2).eval(); model.save(tmp_path)
    out = subprocess.run([sys.executable, '-c', f'import torch; from clip_dfgs.models import ReIDModel; m = ReIDModel.load({str(tmp_path)!r}).eval(); '
                          'print(m.embed(torch.ones(1, 3, 128, 64)).double().sum().item())'], capture_output=True, text=True, check=True)
    with torch.inference_mode(): assert float(out.stdout) == pytest.approx(model.embed(torch.ones(1, 3, 128, 64)).double().sum().item(), abs=1e-3)


@pytest.mark.parametrize('break_it,message', [
    (lambda d: (d/'config.json').unlink(), 'config.json: no such file'), (lambda d: (d/'model.safetensors').unlink(), 'model.safetensors: no such file'),
    (lambda d: (d/'model.safetensors').write_bytes(b'\0' * 99), 'the model is damaged'), (lambda d: (d/'config.json').write_text('{'), 'the model is damaged'),
    (lambda d: (d/'config.json').write_text('{"format": 99}'), 'model format 99 is unknown')])
def test_broken_folders_are_named(tmp_path, break_it, message):
    ReIDModel.create('pedestrians', pretrained=None).save(tmp_path); break_it(tmp_path)
    with pytest.raises(ValueError, match=message): ReIDModel.load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    models._write(tmp_path/'a.json', lambda p: p.write_text('old'))
    def fail(p): p.write_text('ne'); raise OSError('No space left on device')
    with pytest.raises(OSError): models._write(tmp_path/'a.json', fail)
    assert [p.name for p in tmp_path.iterdir()] == ['a.json'] and (tmp_path/'a.json').read_text() == 'old'


def test_image_only_backbone_has_no_words(tmp_path):
    model = ReIDModel.create('timm:test_vit2', pretrained=None, num_ids=3, image_size=(64, 32)); model.save(tmp_path)
    back = ReIDModel.load(tmp_path).eval(); x = torch.ones(2, 3, 64, 32)
    with torch.inference_mode(): close(back.embed(x), model.eval().embed(x), 0)
    assert [h.shape for h in model.heads(model.image_features(x))] == [(2, 3), (2, 3)]
    for call in (lambda: model.text_features(torch.tensor([0])), lambda: model.encode_captions(['x']), lambda: model.trainable('prompts')):
        with pytest.raises(ValueError, match='timm:test_vit2 has no text encoder'): call()


# ---------------------------------------------------------------- the small CLIP
def test_small_clip_is_stored_small_and_comes_back(tmp_path):
    model = new_small_clip(seed=3)
    with torch.no_grad(): model.token_embedding.weight.mul_(1.01)          # weight decay moves every row; only the touched ones count
    size = save_small_clip(model, PEDESTRIANS, touched_rows=[320, 1125, 49406], path=tmp_path/'s')
    back, config = load_small_clip(tmp_path/'s')
    assert size < 8e6 and config == PEDESTRIANS
    assert torch.equal(back.token_embedding.weight[7], new_small_clip().token_embedding.weight[7])
    close(back.token_embedding.weight[320], model.token_embedding.weight[320])
    via = ReIDModel.create('pedestrians', pretrained=tmp_path/'s', num_ids=2)
    assert torch.equal(via.clip.visual.proj, back.visual.proj) and via.config['image_size'] == [128, 64]
    via.save(tmp_path/'m')
    assert len(load_file(tmp_path/'m'/'model.safetensors')['token_rows']) == 3


def test_another_small_architecture_can_be_shipped(tmp_path):
    config = dict(PEDESTRIANS, model_cfg=dict(PEDESTRIANS['model_cfg'], vision_cfg=dict(image_size=[64, 32], patch_size=8, layers=2, width=64, head_width=32)), token_seed=9)
    save_small_clip(new_small_clip(config, seed=1), config, path=tmp_path/'s')
    model = ReIDModel.create('pedestrians', pretrained=tmp_path/'s')
    assert model.embed(torch.zeros(1, 3, 64, 32)).shape == (1, 64 + 128)


def test_the_shipped_weights_are_small_and_know_their_words():
    file = models.WEIGHTS.with_suffix('.safetensors')
    assert file.stat().st_size < 16e6
    model = ReIDModel.create('ViT-B-16', pretrained='pedestrians', num_ids=2).eval()
    assert model.config['clip'] == 'pedestrians' and len(load_file(file)['token_rows']) < 1000
    from clip_dfgs.pedestrians import everyday_pictures
    people, captions = everyday_pictures(40, seed=77, size=tuple(model.config['image_size']), workers=1, progress=False)
    with torch.inference_mode():
        image = F.normalize(model.image_features(torch.from_numpy(people).permute(0, 3, 1, 2)).projected, dim=1)
        cosines = F.normalize(model.encode_captions(captions), dim=1) @ image.T
    assert (cosines.argmax(1) == torch.arange(40)).float().mean() > .3      # chance is 0.025
