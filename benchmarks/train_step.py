"""What a training step costs: the plain way against ours, side by side in one run.

    python benchmarks/train_step.py                      # both models
    python benchmarks/train_step.py --models small       # seconds

Plain: open_clip's own modules, every text padded to 77 tokens and encoded once an image, every block computed for
every token. Ours: 12 tokens, each identity once, fused attention, and of the final block only the token that is read.
The weights are random; both sides use the same. Runs alternate and the best of each counts, so that other work on the
machine disturbs both alike. `difference` is the largest one between the two sides' features, in units of their size.
"""
import argparse
import time

import torch

from clip_dfgs.models import ReIDModel, tower_features
from clip_dfgs.prompt_learner import PROMPT, all_text_features

MODELS = {'small': dict(clip='pedestrians', pretrained=None), 'ViT-B-16': dict(clip='ViT-B-16', pretrained=None)}


def padded_text(model, labels):
    "Text features of one prompt a row, all 77 positions, through open_clip's blocks."
    from clip_dfgs.models import tokenizer_of
    clip, ids = model.clip, tokenizer_of(model.config['clip'])([PROMPT])
    x = clip.token_embedding(ids).expand(len(labels), -1, -1)
    x = torch.cat([x[:, :5], model.prompts.context[labels], x[:, 9:]], 1) + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    return x[:, ids.argmax()] @ clip.text_projection


def plain_image(visual, x):
    "last, pooled and projected features through open_clip's blocks, every token to the end."
    x = visual._embeds(x)
    *first, final = visual.transformer.resblocks
    for block in first: x = block(x)
    pooled = visual.ln_post(final(x)[:, 0])
    return x[:, 0], pooled, pooled @ visual.proj


def compare(plain, ours, repeats):
    "Best seconds of each, run in turn, and the relative difference of what they return."
    best, out = [float('inf')] * 2, [None, None]
    for _ in range(repeats):
        for i, f in enumerate((plain, ours)):
            start = time.perf_counter(); out[i] = f(); best[i] = min(best[i], time.perf_counter() - start)
    a, b = (torch.cat([t.flatten() for t in o]).float() for o in out)
    return *best, ((a - b).abs().max() / a.abs().max()).item()


def step(features, loss):
    "Forward and backward; returns the features."
    def run():
        out = features(); loss(out).backward()
        return [t.detach() for t in out]
    return run


def cases(model, batch, ids):
    "Name, plain and ours of each thing that is compared."
    rows = torch.arange(batch) % ids
    model.trainable('prompts'); square = lambda out: sum(t.square().mean() for t in out)
    for name, labels in ((f'stage 1 step, {batch} images of {batch} identities', rows), (f'stage 1 step, {batch} images of {batch // 4} identities', rows // 4)):
        yield name, step(lambda: [padded_text(model, labels)], square), step(lambda: [model.text_features(labels)], square)
    def plain_all():
        with torch.no_grad(): return [torch.cat([padded_text(model, part) for part in torch.arange(ids).split(batch)])]
    yield f'texts of all {ids} identities (i2tce, text graph)', plain_all, lambda: [all_text_features(model, batch)]
    model.trainable('finetune')
    images = torch.randn(batch // 2, 3, *model.config['image_size'], generator=torch.Generator().manual_seed(0)); visual = model.clip.visual
    yield f'image encoder, forward and backward, {batch // 2} images', step(lambda: plain_image(visual, images), square), step(lambda: tower_features(visual, images), square)
    def plain_features():
        with torch.no_grad(): return plain_image(visual, images)
    def our_features():
        with torch.inference_mode(): return tower_features(visual, images)
    yield f'image features for mining, {batch // 2} images', plain_features, our_features


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--models', nargs='+', default=list(MODELS), choices=list(MODELS)); p.add_argument('--batch', type=int, default=64)
    p.add_argument('--ids', type=int, default=256); p.add_argument('--repeats', type=int, default=3)
    a = p.parse_args()
    print(f'{torch.get_num_threads()} threads, batch {a.batch}\n{"model":10}{"what":55}{"plain ms":>10}{"ours ms":>10}{"faster":>9}{"difference":>12}')
    for name in a.models:
        model = ReIDModel.create(**MODELS[name], num_ids=a.ids)
        for what, plain, ours in cases(model, a.batch, a.ids):
            t_plain, t_ours, difference = compare(plain, ours, a.repeats)
            print(f'{name:10}{what:55}{1000 * t_plain:10.1f}{1000 * t_ours:10.1f}{t_plain / t_ours:8.1f}x{difference:12.1e}', flush=True)


if __name__ == '__main__': main()
