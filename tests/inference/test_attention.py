"Maps of what a model looks at: rollout and activation of any tower, places among words - each against its definition."
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from clip_dfgs.inference.attention import attention_maps, attention_rollout, patch_features, patch_similarity
from clip_dfgs.models.reid_model import ReIDEncoder, ReIDModel
from clip_dfgs.models.towers import vit_tokens
from clip_dfgs.models.weights import new_clip


def close(a, b, tol=1e-4): torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def noise(*shape, seed=0): return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(n, height, width): return (255*noise(n, height, width, 3)).byte().numpy()


def model_of(size=(32, 32), **vision):
    "A small CLIP with an image tower of any kind."
    cfg = dict(embed_dim=24, vision_cfg=dict(image_size=32, **vision), text_cfg=dict(width=32, heads=2, layers=1))
    if 'timm_model_name' in vision: cfg |= dict(custom_text=True)
    said = dict(format=2, clip='ViT-B-16', model_cfg=cfg, token_seed=None, image_size=list(size), stride=None,
                cameras=0, num_ids=0, seed=0, normalization=dict(mean=[.5]*3, std=[.5]*3))
    return ReIDEncoder(new_clip(cfg), said).eval()


# ---- attention rollout

@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 99), st.floats(0, .9))
@settings(max_examples=10, deadline=None)
def test_rollout_is_all_paths_weighted(blocks, tokens, seed, residual):
    "Rows sum to 1; each entry is the sum over paths through the blocks of the product of their shares."
    attentions = [noise(1, 2, tokens, tokens, seed=seed + i).softmax(-1) for i in range(blocks)]
    flow = attention_rollout(attentions, residual)
    close(flow.sum(2), torch.ones(1, tokens))
    steps = [(1 - residual)*a.mean(1)[0] + residual*torch.eye(tokens) for a in attentions]
    def share(block, to, source): # of token `to` behind a block that comes from `source`
        if block < 0: return float(to == source)
        return sum(steps[block][to, via].item()*share(block - 1, via, source) for via in range(tokens))
    assert abs(flow[0, 0, 1].item() - share(blocks - 1, 0, 1)) < 1e-4
    last = [*attentions[:-1], attentions[-1][:, :, :1]]
    close(attention_rollout(last, residual), flow[:, :1])


def attention_of(block, tokens):
    "The attention of a timm block by the definition."
    a, x = block.attn, block.norm1(tokens)
    q, k, _ = a.qkv(x).reshape(*x.shape[:2], 3, a.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (a.q_norm(q) @ a.k_norm(k).mT*a.scale).softmax(-1)


@pytest.mark.parametrize('name', ['test_vit', 'test_vit2', 'test_vit3'])
def test_rollout_of_timms_towers(name):
    "Class token, mean and registers: the rollout of attention that is computed by hand in each block."
    model = ReIDModel.create(f'timm:{name}', None, image_size=(64, 32)).eval()
    trunk, seen, handles = model.clip.visual.trunk, [], []
    for block in trunk.blocks:
        handles.append(block.register_forward_pre_hook(lambda b, args: seen.append(attention_of(b, args[0]))))
    found, kind = attention_maps(model, pictures(2, 64, 32))
    for handle in handles: handle.remove()
    grid, ahead = trunk.patch_embed.grid_size, trunk.num_prefix_tokens
    flow = attention_rollout(seen)
    row = flow[:, 0] if trunk.global_pool == 'token' else flow[:, ahead:].mean(1)
    assert kind == 'attention rollout' and found.shape == (2, *grid) and trunk.global_pool in ('token', 'avg', 'map')
    if trunk.global_pool != 'map': close(found, row[:, ahead:].reshape(2, *grid))


def test_rollout_of_clips_tower():
    "open_clip's own attention module hands out the weights."
    model = model_of((64, 32), layers=2, width=64, head_width=32, patch_size=16)
    visual, weights = model.clip.visual, []
    images = torch.from_numpy(pictures(3, 64, 32)).permute(0, 3, 1, 2)
    def keep(block, args):
        x = block.ln_1(args[0])
        weights.append(block.attn(x, x, x, need_weights=True, average_attn_weights=False)[1])
    for block in visual.transformer.resblocks: block.register_forward_pre_hook(keep)
    with torch.no_grad(): visual(model.normalize(images))
    found, kind = attention_maps(model, pictures(3, 64, 32))
    close(found, attention_rollout(weights)[:, 0, 1:].reshape(3, 4, 2))


# ---- towers of every kind

RESNET = dict(layers=[1, 1, 1, 1], width=16, head_width=32)
KINDS = [(dict(layers=1, width=64, head_width=32, patch_size=16), 'attention rollout'), (RESNET, 'activation'),
         (dict(layers=2, width=64, head_width=32, patch_size=16, pool_type='avg'), 'attention rollout'),
         (dict(timm_model_name='test_vit', timm_pool='token', timm_proj='linear', timm_model_pretrained=False),
          'attention rollout'),
         (dict(timm_model_name='test_convnext', timm_pool='avg', timm_proj='linear', timm_model_pretrained=False),
          'activation')]


@pytest.mark.parametrize('vision, expected', KINDS, ids=['vit', 'resnet', 'mean', 'timm_vit', 'convnext'])
def test_every_tower_has_a_map_and_places_among_words(vision, expected):
    model, pixels = model_of((64, 64), **vision), pictures(3, 64, 64)
    maps, kind = attention_maps(model, pixels)
    assert kind == expected and maps.isfinite().all() and (maps >= 0).all() and maps.std() > 0
    close(attention_maps(model, pixels, batch=2)[0], maps)
    places, words = patch_features(model, pixels), model.encode_captions(['a man', 'a red coat'])
    agree = patch_similarity(places, words)
    assert agree.shape == (3, 2, *places.shape[1:3]) and agree.abs().max() <= 1 + 1e-5
    close(agree[1, 1, 0, 1], F.cosine_similarity(places[1, 0, 1], words[1], dim=0))
    close(patch_similarity(places, words, words)[2, 0, 1, 0],
          F.cosine_similarity(places[2, 1, 0], (words[0] - words[1])/2, dim=0))


def test_a_place_is_what_the_head_makes_of_it_alone():
    "A ResNet's attention pool over one place that is everywhere; the projected token of a ViT's patch."
    model, pixels = model_of((64, 64), **RESNET), pictures(2, 64, 64)
    visual, images = model.clip.visual, model.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.no_grad():
        grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        visual.attnpool.positional_embedding.zero_()
        alone = visual.attnpool(grid[:1, :, 1:2, :1].expand(1, -1, *grid.shape[2:]))
    close(patch_features(model, pixels)[0, 1, 0], alone[0])
    vit = model_of((64, 32), layers=2, width=64, head_width=32, patch_size=16)
    images = vit.normalize(torch.from_numpy(pictures(2, 64, 32)).permute(0, 3, 1, 2))
    with torch.no_grad():
        visual = vit.clip.visual
        projected = visual.ln_post(visual.transformer(vit_tokens(visual, images, None)))[:, 1:] @ visual.proj
    close(patch_features(vit, pictures(2, 64, 32), mixed=True).flatten(1, 2), projected.detach())


def test_an_activation_map_is_the_length_of_the_last_features():
    model, pixels = ReIDModel.create('timm:test_resnet', None, image_size=(64, 32)).eval(), pictures(2, 64, 32)
    images = model.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.no_grad(): last = model.clip.visual.trunk.forward_features(images)
    close(attention_maps(model, pixels)[0], (last**2).sum(1).sqrt())


def test_a_tower_that_shows_nothing_is_named():
    class Sealed(torch.nn.Module): pass
    model = model_of((32, 32), layers=1, width=64, head_width=32, patch_size=16)
    model.clip.visual = Sealed()
    with pytest.raises(ValueError, match='Sealed shows neither attention nor a feature map'):
        attention_maps(model, pictures(1, 32, 32))
    with pytest.raises(ValueError, match='no picture'): attention_maps(model, pictures(0, 32, 32))


def test_a_map_leaves_the_model_as_it_was():
    model = ReIDModel.create('pedestrians', None).train()
    attention_maps(model, pictures(1, 128, 64))
    assert model.training and all(p.grad is None for p in model.parameters())
