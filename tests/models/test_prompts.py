"Prompts: the short encoding against the padded one, which identities get gradients, and what a seed decides."
import open_clip
import pytest
import torch
from hypothesis import given, settings, strategies as st

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.models.prompts import PROMPT, PromptLearner
from clip_dfgs.models.towers import encode_embeddings, new_clip, text_tower
from clip_dfgs.models.weights import tokenizer_of


def close(a, b, tol=1e-4): torch.testing.assert_close(a, b, atol=tol, rtol=tol)


@pytest.fixture(scope='module')
def model(): return ReIDModel.create('pedestrians', pretrained=None, num_ids=30)


def read_by_open_clip(clip, x):
    "Features at position 11 of sentences of 77 embeddings, by open_clip's blocks with the same weights."
    blocks = clip.transformer.resblocks
    settings = dict(heads=blocks[0].attn.num_heads, act_layer=type(blocks[0].mlp.gelu))
    theirs = open_clip.transformer.Transformer(x.shape[2], len(blocks), **settings)
    theirs.load_state_dict(clip.transformer.state_dict())
    x = clip.ln_final(theirs(x + clip.positional_embedding, attn_mask=clip.attn_mask))
    return x[:, 11] @ clip.text_projection


def padded_features(model, labels):
    "All 77 positions through open_clip's own blocks and mask, one row a label."
    x = model.clip.token_embedding(open_clip.tokenize([PROMPT])).expand(len(labels), -1, -1).clone()
    x[:, 5:9] = model.prompts.context[labels]
    return read_by_open_clip(model.clip, x)


@settings(max_examples=5, deadline=None)
@given(labels=st.lists(st.integers(0, 29), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_twelve_tokens_are_as_good_as_seventy_seven(model, labels, seed):
    labels = torch.tensor(labels)
    draw = torch.randn(model.prompts.context.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(): model.prompts.context.copy_(.1*draw)
    ours, theirs = model.text_features(labels), padded_features(model, labels)
    close(ours, theirs)
    ours_grad, = torch.autograd.grad(ours.pow(2).sum(), model.prompts.context)
    theirs_grad, = torch.autograd.grad(theirs.pow(2).sum(), model.prompts.context)
    close(ours_grad, theirs_grad, 1e-3)
    others = torch.ones(30, dtype=torch.bool)
    others[labels] = False
    assert (ours_grad[others] == 0).all() and (ours_grad[labels] != 0).any()


@pytest.mark.slow
def test_the_papers_text_tower_gives_the_same_from_twelve_tokens():
    vision = dict(image_size=32, layers=1, width=64, patch_size=16)
    clip = new_clip(open_clip.get_model_config('ViT-B-16') | dict(quick_gelu=True, vision_cfg=vision)).eval()
    prompts = PromptLearner.for_clip(clip, tokenizer_of('ViT-B-16'), 3, seed=1)
    assert prompts.context.shape == (3, 4, 512) and prompts(torch.arange(3)).shape == (3, 12, 512)
    ids = open_clip.tokenize([PROMPT]).expand(3, -1)
    with torch.inference_mode():
        x = clip.token_embedding(ids).clone()
        x[:, 5:9] = prompts.context
        found = encode_embeddings(clip, prompts(torch.arange(3)), prompts.at.expand(3))
        close(found, read_by_open_clip(clip, x))


def test_seed_decides_the_context_and_nothing_else():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b, c = (PromptLearner(2000, torch.zeros(5, 16), torch.zeros(3, 16), 11, seed=seed).context for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.random.get_rng_state())
    assert abs(a.std().item() - .02) < 2e-4 and abs(a.mean().item()) < 2e-4


def test_loaded_prompts_have_the_same_text_features(model, tmp_path):
    with torch.no_grad():  # "person", as if it had been trained
        model.clip.token_embedding.weight[2533] += 1
        model.prompts.suffix[0] += 1
    model.save(tmp_path)
    close(ReIDModel.load(tmp_path).text_features(torch.arange(30)), model.text_features(torch.arange(30)), 1e-6)


def test_a_tower_that_looks_both_ways_gets_the_whole_sentence():
    clip = new_clip(dict(embed_dim=16, custom_text=True,
                         vision_cfg=dict(image_size=32, layers=1, width=64, patch_size=16),
                         text_cfg=dict(width=32, heads=2, layers=2, no_causal_mask=True))).eval()
    prompts = PromptLearner.for_clip(clip, tokenizer_of('pedestrians'), 2)
    assert prompts(torch.arange(2)).shape == (2, 77, 32)
    ids = open_clip.tokenize([PROMPT])
    with torch.inference_mode():
        prompts.context[0] = clip.text.token_embedding(ids[0, 5:9])
        close(encode_embeddings(text_tower(clip), prompts(torch.tensor([0])), prompts.at), clip.encode_text(ids))
