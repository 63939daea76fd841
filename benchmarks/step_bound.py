"""How near a fine-tuning step of the small CLIP is to its matrix products, on one core.

    python benchmarks/step_bound.py

Side by side in one process, CPU seconds, minima of alternating repeats, one thread, batches of 64: the whole step
(forward, losses, backward, AdamW), and only the products that it cannot do without: of every linear layer of the image
tower forward, backward to its input and backward to its weights, in the same precision. The profile below says where
the rest goes.
"""
import time

import torch
from torch.nn.attention import sdpa_kernel, SDPBackend
from torch.profiler import profile, ProfilerActivity

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.training.losses import batch_hard_triplet, id_loss, image_to_text_ce

BATCH, PRECISIONS = 64, {'float32': torch.float32, 'bf16': torch.bfloat16}


def whole_step(dtype):
    "A function that does one step, as the trainer does it in this precision."
    model = ReIDModel.create('pedestrians', num_ids=100).train()
    optimizer = torch.optim.AdamW([p for _, p in model.trainable('finetune')], lr=1e-5, fused=True)
    made = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 128, 64), dtype=torch.uint8, generator=made)
    labels, text = torch.arange(BATCH//4).repeat_interleave(4), torch.randn(100, 128, generator=made)
    kernel = SDPBackend.MATH if dtype == torch.bfloat16 else SDPBackend.FLASH_ATTENTION
    def step():
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16), sdpa_kernel(kernel):
            features = model.image_features(model.normalize(images))
            loss = sum(id_loss(logits, labels) for logits in model.heads(features))
            loss = loss + sum(batch_hard_triplet(part, labels, .3) for part in features)
            loss = loss + image_to_text_ce(features.projected, text, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        optimizer.step()
    return step


def products(dtype, layers=6, width=192, tokens=33):
    "A function that does the products of the tower's linear layers: forward, and both backward."
    rows, made = BATCH*tokens, torch.Generator().manual_seed(0)
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


if __name__ == '__main__':
    torch.set_num_threads(1)
    work = {f'{what}, {name}': make(dtype) for name, dtype in PRECISIONS.items()
            for what, make in (('step', whole_step), ('products', products))}
    for function in work.values(): function()
    best = {name: min(timed(function) for _ in range(1)) for name, function in work.items()}
    for _ in range(5): best = {name: min(best[name], timed(function)) for name, function in work.items()}
    for name in PRECISIONS:
        step, bound = best[f'step, {name}'], best[f'products, {name}']
        print(f'{name}: step {step:.3f} s, its products {bound:.3f} s: {step/bound:.2f} times')
    for name in PRECISIONS:
        with profile(activities=[ProfilerActivity.CPU]) as seen: work[f'step, {name}']()
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in rows)
        print(name, ', '.join(f'{row.key.removeprefix("aten::")[:40]} {row.self_cpu_time_total/total:.0%}'
                              for row in rows[:8]))
