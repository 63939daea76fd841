"""How near a fine-tuning step is to its matrix products, and how far from a plain loop, on one core.

    python benchmarks/step_bound.py                                   # small CLIP, batches of 64, half a minute
    python benchmarks/step_bound.py --model ViT-B-16 --batch 8        # 256x128 pixels, random weights, five minutes

Side by side in one process, CPU seconds, minima of alternating repeats, one thread: the whole step (forward, losses,
backward, AdamW); the same as it is usually written, with open_clip's blocks, in the same precision; and only the
products that it cannot do without: of every linear layer of the image tower forward, backward to its input and backward
to its weights. The profile below says where the rest goes.
"""
import argparse
import time

import torch
from torch.nn.attention import sdpa_kernel, SDPBackend
from torch.profiler import profile, ProfilerActivity
from train_step import MODELS, plain_features

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.training.losses import batch_hard_triplet, id_loss, image_to_text_ce

PRECISIONS = {'float32': torch.float32, 'bf16': torch.bfloat16}


def whole_step(dtype, name, batch, plain=False):
    "A function that does one step, as the trainer does it in this precision, or as a plain loop does."
    model = ReIDModel.create(**MODELS[name], num_ids=100).train()
    optimizer = torch.optim.AdamW([p for _, p in model.trainable('finetune')], lr=1e-5, fused=not plain)
    made, (high, wide) = torch.Generator().manual_seed(0), model.config['image_size']
    images = torch.randint(0, 256, (batch, 3, high, wide), dtype=torch.uint8, generator=made)
    labels = torch.arange(batch//4).repeat_interleave(4)
    text = torch.randn(100, model.clip.visual.proj.shape[1], generator=made)
    kernel = SDPBackend.MATH if dtype == torch.bfloat16 and not plain else SDPBackend.FLASH_ATTENTION
    def step():
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16), sdpa_kernel(kernel):
            pixels = model.normalize(images)
            features = plain_features(model, pixels) if plain else model.image_features(pixels)
            loss = sum(id_loss(logits, labels) for logits in model.heads(features))
            loss = loss + sum(batch_hard_triplet(part, labels, .3) for part in features)
            loss = loss + image_to_text_ce(features.projected, text, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        optimizer.step()
    return step


def products(dtype, name, batch):
    "A function that does the products of the tower's linear layers: forward, and both backward."
    layers, width, tokens = dict(small=(6, 192, 33), **{'ViT-B-16': (12, 768, 129)})[name]
    rows, made = batch*tokens, torch.Generator().manual_seed(0)
    shapes = [(width, 3*width), (width, width), (width, 4*width), (4*width, width)]
    tensors = [[torch.randn(*size, generator=made).to(dtype) for size in ((rows, a), (a, b), (rows, b))]
               for a, b in shapes]
    def work():
        for _ in range(layers):
            for x, w, g in tensors: x @ w, g @ w.T, x.T @ g
    return work


def timed(function):
    "CPU seconds of one call."
    began = time.process_time()
    function()
    return time.process_time() - began


def main(model, batch):
    "Prints the seconds of all ways, and the largest parts of the profile of ours."
    torch.set_num_threads(1)
    work = {}
    for name, dtype in PRECISIONS.items():
        work[f'step, {name}'] = whole_step(dtype, model, batch)
        work[f'plain, {name}'] = whole_step(dtype, model, batch, plain=True)
        work[f'products, {name}'] = products(dtype, model, batch)
    for function in work.values(): function()
    best = {name: timed(function) for name, function in work.items()}
    for _ in range(5): best = {name: min(best[name], timed(function)) for name, function in work.items()}
    for name in PRECISIONS:
        step, plain, bound = (best[f'{what}, {name}'] for what in ('step', 'plain', 'products'))
        print(f'{name}: step {step:.3f} s, plain {plain:.3f} s ({plain/step:.2f} times ours), '
              f'products {bound:.3f} s (ours {step/bound:.2f} times)')
    for name in PRECISIONS:
        with profile(activities=[ProfilerActivity.CPU]) as seen: work[f'step, {name}']()
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in rows)
        print(name, ', '.join(f'{row.key.removeprefix("aten::")[:40]} {row.self_cpu_time_total/total:.0%}'
                              for row in rows[:8]))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', choices=list(MODELS), default='small')
    parser.add_argument('--batch', type=int, default=64)
    main(**vars(parser.parse_args()))
