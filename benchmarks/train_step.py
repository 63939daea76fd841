"""What a training step costs: the plain way against ours, side by side in one run.

    python benchmarks/train_step.py                      # both models, about six minutes
    python benchmarks/train_step.py --models small       # a minute
    python benchmarks/train_step.py --compile            # also with torch.compile, which takes minutes to compile
    python benchmarks/train_step.py --device cuda        # steps and loading on a GPU, beside a plain loop there
    python benchmarks/train_step.py --device cpu --quick # the same in a minute, on the CPU

Stage 1 and the encoders. Plain: open_clip's own modules, every text padded to 77 tokens and encoded once an image,
every block computed for every token. Ours: each identity once, 7 tokens of its own behind 5 that all share, fused
attention, and of the final block only the token that is read. The weights are random; both sides use the same. Runs
alternate and the best of each counts, so that other work on the machine disturbs both alike. `difference` is the
largest one between the two sides' features, in units of their size.

Stage 2. Plain: a loop as it is usually written, where PIL decodes, resizes and augments each image for each step, and
the encoder is open_clip's, eager, in single precision. Ours: `fit` itself, and below it the trainer's step alone, on
one batch that is there already. All have the same images, identities, losses and batch size, each case a process of
its own; `GB` is the process's peak in all.

With `--device` both sides train on that device, one step over and over on one batch, and loading is timed by itself:
the larger of the two decides. `launches` are the kernels that one step starts (on the CPU: torch's operations),
`waits` how often it makes the CPU wait for the device (on the CPU: how often it looks at a number of a tensor). The
plain step is the usual one: float32, open_clip's blocks, a look at the loss.
"""
import argparse
import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from loading import Plain
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from clip_dfgs.training.config import Stage, TrainConfig
from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.inference.embed import make_accelerator
from clip_dfgs.data.loader import cached_images, ImageDataset, make_loader, workers_for
from clip_dfgs.data.transforms import Augment
from clip_dfgs.models.reid_model import normalize
from clip_dfgs.training.losses import batch_hard_triplet, id_loss, image_text_contrastive, image_to_text_ce
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import render_domain
from clip_dfgs.models.prompts import PROMPT, all_text_features
from clip_dfgs.data.records import pool
from clip_dfgs.training.run import Run
from clip_dfgs.models.towers import ImageFeatures, tower_features, vit_tokens
from clip_dfgs.training.trainer import fit, new_model, stage_loop
from clip_dfgs.models.weights import tokenizer_of

MODELS = {'small': dict(clip='pedestrians', pretrained=None), 'ViT-B-16': dict(clip='ViT-B-16', pretrained=None)}
BATCH = {'small': 64, 'ViT-B-16': 16}                                      # of stage 2
TARGET = 5                                                                 # of stage 1 and of loading


def one_step(run, name):
    "The step of `fit`'s stage on one of its batches, which is loaded already; ready to be repeated."
    loop = stage_loop(name, run.model, run.records, run.pixels, run.config, run.accelerator)
    rows = loop.batches.epoch(0, 0, 0)[0]
    batch = loop.data.__getitems__(rows)
    return lambda: loop.take(rows, batch).loss


def padded_text(model, labels):
    "Text features of one prompt a row, all 77 positions, through its plain blocks, which are open_clip's."
    clip, ids = model.clip, tokenizer_of(model.config['clip'])([PROMPT]).to(labels.device)
    x = clip.token_embedding(ids).expand(len(labels), -1, -1)
    x = torch.cat([x[:, :5], model.prompts.context[labels], x[:, 9:]], 1) + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    return x[:, ids.argmax()] @ clip.text_projection


def plain_image(visual, images):
    "last, pooled and projected features through its plain blocks, which are open_clip's, every token to the end."
    x = vit_tokens(visual, images, None)
    *first, final = visual.transformer.resblocks
    for block in first: x = block(x)
    pooled = visual.ln_post(final(x)[:, 0])
    return x[:, 0], pooled, pooled @ visual.proj


def compare(plain, ours, repeats):
    "Best seconds of each, run in turn, and the relative difference of what they return."
    best, out = [float('inf')]*2, [None, None]
    for _ in range(repeats):
        for i, job in enumerate((plain, ours)):
            start = time.perf_counter()
            out[i] = job()
            best[i] = min(best[i], time.perf_counter() - start)
    a, b = (torch.cat([t.flatten() for t in found]).float() for found in out)
    return *best, ((a - b).abs().max()/a.abs().max()).item()


def step(features):
    "Forward and backward; returns the features."
    def run():
        out = features()
        sum(t.square().mean() for t in out).backward()
        return [t.detach() for t in out]
    return run


def cases(model, batch, ids):
    "Name, plain and ours of each thing that is compared."
    rows = torch.arange(batch) % ids
    model.trainable('prompts')
    for people, labels in ((batch, rows), (batch//4, rows//4)):
        name = f'stage 1 step, {batch} images of {people} identities'
        yield (name, step(lambda labels=labels: [padded_text(model, labels)]),
               step(lambda labels=labels: [model.text_features(labels)]))
    def plain_texts():
        with torch.no_grad(): parts = [padded_text(model, part) for part in torch.arange(ids).split(batch)]
        return [torch.cat(parts)]
    yield f'texts of all {ids} identities (i2tce, text graph)', plain_texts, lambda: [all_text_features(model, batch)]
    model.trainable('finetune')
    draw = torch.Generator().manual_seed(0)
    images, visual = torch.randn(batch//2, 3, *model.config['image_size'], generator=draw), model.clip.visual
    yield (f'image encoder, forward and backward, {batch//2} images', step(lambda: plain_image(visual, images)),
           step(lambda: tower_features(visual, images)))
    def plain_features():
        with torch.no_grad(): return plain_image(visual, images)
    def our_features():
        with torch.inference_mode(): return tower_features(visual, images)
    yield f'image features for mining, {batch//2} images', plain_features, our_features


def domain(folder):
    "Pooled training rows of a rendered domain."
    if not Path(folder).exists(): render_domain(folder, seed=0, identities=40, cameras=4, progress=False)
    return pool([load_dataset('market1501', folder)])


def plain_loop(name, rows, steps):
    "Seconds of each step of a loop as it is usually written."
    model = ReIDModel.create(**MODELS[name], num_ids=rows['label'].nunique(), normalization='half')
    parameters = [p for _, p in model.trainable('finetune')]
    text = all_text_features(model)
    optimizer = torch.optim.Adam(parameters, lr=5e-6, weight_decay=1e-4)
    people = rows.groupby('label').indices
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(0)).tolist()
    order, n = order*(steps + 1), BATCH[name]//4
    batches = [[i for person in order[s*n:s*n + n] for i in people[person][:4]] for s in range(steps)]
    labels = [torch.as_tensor(rows['label'].to_numpy(copy=True)[batch]) for batch in batches]
    loader = DataLoader(Plain(rows['path'].tolist(), tuple(model.config['image_size'])), batch_sampler=batches)
    seconds, start = [], time.perf_counter()
    for images, y in zip(loader, labels):
        f = ImageFeatures(*plain_image(model.clip.visual, images))
        loss = .25*sum(id_loss(scores, y) for scores in model.heads(f))
        loss = loss + sum(batch_hard_triplet(x, y) for x in f) + image_to_text_ce(f.projected, text, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    return seconds


def our_loop(name, rows, steps, folder, alone=False, **options):
    "Seconds of each step of stage 2: of `fit`, or of the trainer's step alone."
    c = TrainConfig(
        **MODELS[name], normalization='half', adapt=None, prompts=Stage(steps=1, batch=16),
        finetune=Stage(steps=steps, batch=BATCH[name], lr=5e-6, decoupled=False), sampler='pk', temperature=None,
        augment=Augment(), log_steps=1, cache=str(Path(folder)/'cache'), **dict(precision='no') | options)
    times = []
    def clock(done):
        if done.stage == 'finetune': times.append(time.perf_counter())
        else: times[:] = [time.perf_counter()]
    run = fit(rows, c, Path(folder)/f'run{os.getpid()}', on_step=clock)
    if alone:
        again = one_step(run, 'finetune')
        times = [time.perf_counter()]
        for _ in range(steps):
            again().item()
            times.append(time.perf_counter())
    return [after - before for before, after in zip(times, times[1:])]


OURS = {'ours': {}, 'ours, on a batch that is there': dict(alone=True),
        'ours, activations recomputed': dict(recompute=True), 'ours, bf16': dict(precision='bf16'),
        'ours, compiled': dict(compile=True)}


def child(name, case, folder, steps):
    "Runs one case of stage 2 and prints its figures as JSON."
    rows = domain(Path(folder)/'town')
    seconds = plain_loop(name, rows, steps) if case == 'plain' else our_loop(name, rows, steps, folder, **OURS[case])
    with open('/proc/self/status') as f: peak = next(int(line.split()[1]) for line in f if line.startswith('VmHWM'))
    print(json.dumps(dict(first=seconds[0], best=min(seconds[1:]), peak=peak/1e6)))


def stage2(name, folder, steps, repeats, cases):
    "The figures of every case of stage 2; runs take turns, and the best of each counts."
    found = {}
    for case in [case for _ in range(repeats) for case in cases]:
        command = [sys.executable, __file__, '--child', name, case, folder, str(steps)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode: raise SystemExit(f'{name}, {case}: {done.stderr.strip().splitlines()[-1:]}')
        new = json.loads(done.stdout.splitlines()[-1])
        old = found.get(case, new)
        found[case] = dict(first=new['first'], best=min(new['best'], old['best']), peak=max(new['peak'], old['peak']))
    for case, r in found.items():
        what = f'stage 2 step, {BATCH[name]} images: {case}'
        ratio = found['plain']['best']/r['best']
        print(f'{name:10}{what:60}{1000*r["best"]:10.1f} ms{ratio:8.2f}x{r["peak"]:8.2f} GB'
              f'   first step {r["first"]:.1f} s', flush=True)


def loading(name, size, folder, repeats):
    "How many times faster one pass over the training images is from the cache than with PIL."
    rows = domain(Path(folder)/'town')
    paths = rows['path'].tolist()
    pixels = cached_images(paths, size, Path(folder)/'cache', progress=False)
    index = [list(range(i, min(i + 64, len(rows)))) for i in range(0, len(rows), 64)]
    plain = DataLoader(Plain(paths, size), batch_sampler=index)
    ours = make_loader(ImageDataset(pixels, augment=Augment()), index)
    def all_plain(): return [sum(images.mean() for images in plain)[None]]
    def all_ours(): return [sum(normalize(batch[0]).mean() for batch in ours)[None]]
    t_plain, t_ours, _ = compare(all_plain, all_ours, repeats)
    what = f'loading at {"x".join(map(str, size))}, images/s: PIL, ours'
    print(f'{name:10}{what:60}{len(rows)/t_plain:10.0f}{len(rows)/t_ours:10.0f}{t_plain/t_ours:8.1f}x', flush=True)
    return t_plain/t_ours


# On one device

ON_DEVICE = MODELS | {'resnet50': dict(clip='timm:resnet50', pretrained=None, image_size=(256, 128))}
LOOKS = ('_local_scalar_dense', 'nonzero', '_unique2', 'equal')
LAUNCHES = ('cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernel', 'cuLaunchKernelEx', 'cudaGraphLaunch')


class Operations(TorchDispatchMode):
    "Counts torch's operations by name."
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.name().split('::')[1].split('.')[0]] += 1
        return function(*args, **kwargs or {})


def counted(job, device):
    "Launches and waits of one call."
    if device == 'cpu':
        with Operations() as seen: job()
        return sum(seen.counts.values()), sum(seen.counts[name] for name in LOOKS)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        job()
        torch.cuda.synchronize()
    launches = sum(event.count for event in profile.key_averages() if event.key in LAUNCHES)
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            job()
    finally: torch.cuda.set_sync_debug_mode('default')
    return launches, sum('synchronizing' in str(warning.message) for warning in said)


def timed(job, device, steps):
    "Seconds a call after three that warm up, what a call launches and waits for, and the peak of memory in GB."
    def finished():
        if device != 'cpu': torch.cuda.synchronize()
        return time.perf_counter()
    gc.collect()
    if device != 'cpu': torch.cuda.reset_peak_memory_stats()
    for _ in range(3): job()
    begun = finished()
    for _ in range(steps): job()
    seconds = (finished() - begun)/steps
    memory = torch.cuda.max_memory_allocated()/1e9 if device != 'cpu' else float('nan')
    return seconds, *counted(job, device), memory


def plain_features(model, images):
    "The three features as they are usually computed."
    visual = model.clip.visual
    if hasattr(visual, 'transformer'): return ImageFeatures(*plain_image(visual, images))
    return tower_features(visual, images)


def plain_step(run, name, batch):
    "One step of a stage as it is usually written, on the run's device."
    model, device, (images, labels) = run.model, run.accelerator.device, batch
    model.clip.visual.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam([p for _, p in model.trainable(name)], lr=0.)
    text = all_text_features(model) if model.has_text else None
    if name == 'prompts':
        with torch.no_grad(): features = model.image_features(images.to(device)).projected.cpu()
    def image_loss(y):
        mean, std = (torch.tensor([.5]*3, device=device)[:, None, None] for _ in 'ab')
        f = plain_features(model, (images.to(device).float()/255 - mean)/std)
        loss = .25*sum(id_loss(scores, y) for scores in model.heads(f)) + sum(batch_hard_triplet(x, y) for x in f)
        return loss if text is None else loss + image_to_text_ce(f.projected, text, y)
    def prompt_loss(y):
        image, words = features.to(device), padded_text(model, y)
        return image_text_contrastive(image, words, y, y) + image_text_contrastive(words, image, y, y)
    def step():
        y = labels.to(device)
        loss = prompt_loss(y) if name == 'prompts' else image_loss(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return step


MADE = {} # name -> model; making one takes longer than measuring it


def device_run(name, rows, batch, folder, **options):
    "A run on accelerate's device that is ready for single steps."
    words = Stage(steps=1, batch=batch) if name != 'resnet50' else None
    c = TrainConfig(**ON_DEVICE[name], normalization='half', adapt=None, prompts=words, temperature=None, sampler='pk',
                    finetune=Stage(steps=1, batch=batch, lr=5e-6, decoupled=False), augment=Augment(), **options)
    if name not in MADE: MADE[name] = new_model(rows, c)
    model = copy.deepcopy(MADE[name])
    a = make_accelerator(c.precision, convolutions=model.convolutional)
    size = tuple(model.config['image_size'])
    pixels = cached_images(rows['path'].tolist(), size, Path(folder)/'cache', progress=False)
    return Run(None, c, rows, model.to(a.device), pixels, a)


WAYS = {'ours': {}, 'ours, float32': dict(precision='no'), 'ours, recompute': dict(recompute=True),
        'ours, compiled': dict(compile=True)}


def device_steps(name, rows, folder, device, batch, steps, ways):
    "Prints what a step costs, plain and ours, stage by stage."
    pixels = device_run(name, rows, batch, folder).pixels
    some = rows.groupby('label').head(4).index[:batch].to_numpy()
    labels = torch.as_tensor(rows['label'][some].to_numpy(copy=True))
    fixed = torch.from_numpy(pixels[some]).permute(0, 3, 1, 2).contiguous(), labels
    for stage in ('prompts', 'finetune') if name != 'resnet50' else ('finetune',):
        before = None
        for way in ('plain', *ways, *(['ours, channels last'] if name == 'resnet50' else [])):
            run = device_run(name, rows, batch, folder, **WAYS.get(way, {}))
            if way == 'ours, channels last': run.model.clip.visual.to(memory_format=torch.channels_last)
            job = plain_step(run, stage, fixed) if way == 'plain' else one_step(run, stage)
            precision = 'no' if way == 'plain' else run.accelerator.mixed_precision
            seconds, launches, waits, memory = timed(job, device, steps)
            before = before or seconds
            what = f'{stage}: {way} ({precision})'
            print(f'{name:10}{what:36}{batch/seconds:10.0f}{1000*seconds:9.1f}{before/seconds:8.2f}x{launches:9}{waits:7}'
                  f'{memory:8.2f}', flush=True)
            del run, job


def device_loading(name, rows, folder, device, batch, passes):
    "Prints how many images a second arrive augmented on the device, for two recipes."
    pixels = device_run(name, rows, batch, folder).pixels
    order = torch.randperm(passes*len(rows), generator=torch.Generator().manual_seed(0))%len(rows)
    index = order[:len(order)//batch*batch].view(-1, batch).tolist()
    recipes = dict(clip_reid=Augment(), jitter=replace(Augment(), jitter=.5),
                   follow_up=Augment(flip=.4, pad=10, erase=0., jitter=.1, gray=.1, augmix=.6))
    workers = workers_for(torch.device(device))
    plain = DataLoader(Plain(rows['path'].tolist(), pixels.shape[1:3]), batch_sampler=index, num_workers=workers)
    labels = rows['label'].to_numpy(copy=True)
    loaders = dict(plain=(plain, None)) | {
        recipe: (make_loader(ImageDataset(pixels, labels, labels, augment), index, workers=workers,
                             pin=device != 'cpu'), augment) for recipe, augment in recipes.items()}
    for what, (loader, augment) in loaders.items():
        begun, seen = None, 0
        for loaded in loader:
            if augment is None: x = loaded.to(device)
            else:
                x = normalize(loaded[0].to(device, non_blocking=True))
            if begun is None: begun = time.perf_counter()                       # the first batch starts the workers
            else: seen += len(x)
        if device != 'cpu': torch.cuda.synchronize()
        rate = seen/(time.perf_counter() - begun)
        print(f'{name:10}{f"loading: {what}, {workers} workers":36}{rate:10.0f}', flush=True)


def on_device(a):
    "Steps and loading on one device."
    if a.device == 'cpu': os.environ['ACCELERATE_USE_CPU'] = 'true'
    where = torch.cuda.get_device_name() if a.device != 'cpu' else f'{torch.get_num_threads()} threads'
    batch, steps = (16, 3) if a.quick else (64, 20)
    models = a.models or (['small'] if a.quick else list(ON_DEVICE))
    print(f'{a.device}: {where}, torch {torch.__version__}, batch {batch}; TF32 as torch has it')
    print(f'{"model":10}{"what":36}{"images/s":>10}{"ms":>9}{"faster":>9}{"launches":>9}{"waits":>7}{"GB":>8}')
    ways = [way for way in WAYS if (a.compile or way != 'ours, compiled') and not (a.quick and 'recompute' in way)]
    with tempfile.TemporaryDirectory() as folder:
        rows = domain(Path(folder)/'town')
        for name in models:
            device_steps(name, rows, folder, a.device, batch, steps, ways)
            device_loading(name, rows, folder, a.device, batch, passes=4 if a.quick else 40)


def arguments():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--models', nargs='+', choices=list(ON_DEVICE), help='resnet50 with --device only')
    p.add_argument('--batch', type=int, default=64, help='of stage 1')
    p.add_argument('--ids', type=int, default=256)
    p.add_argument('--repeats', type=int, default=2)
    p.add_argument('--steps', type=int, default=4, help='of stage 2, the first is not counted')
    p.add_argument('--compile', action='store_true', help='also with torch.compile')
    p.add_argument('--device', choices=['cpu', 'cuda'], help='steps and loading on one device')
    p.add_argument('--quick', action='store_true', help='with --device: the small model, few steps')
    p.add_argument('--child', nargs=4, help=argparse.SUPPRESS)
    return p.parse_args()


def main():
    a = arguments()
    if a.child: return child(*a.child[:3], int(a.child[3]))
    if a.device: return on_device(a)
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, batch of stage 1: {a.batch}')
    print(f'{"model":10}{"what":60}{"plain ms":>10}{"ours ms":>10}{"faster":>9}{"difference":>12}')
    verdicts = []
    for name in a.models or MODELS:
        model = ReIDModel.create(**MODELS[name], num_ids=a.ids)
        for i, (what, plain, ours) in enumerate(cases(model, a.batch, a.ids)):
            t_plain, t_ours, difference = compare(plain, ours, a.repeats)
            print(f'{name:10}{what:60}{1000*t_plain:10.1f}{1000*t_ours:10.1f}{t_plain/t_ours:8.1f}x{difference:12.1e}',
                  flush=True)
            if i < 3: verdicts.append((t_plain/t_ours, difference, f'{name}: {what}'))
        size = tuple(model.config['image_size'])
        del model
        with tempfile.TemporaryDirectory() as folder:
            verdicts.append((loading(name, size, folder, a.repeats), 0., f'{name}: images/s from the cache'))
            ours = [case for case in OURS if a.compile or case != 'ours, compiled']
            stage2(name, folder, a.steps, a.repeats, ['plain', *ours])
    for ratio, difference, what in verdicts:
        met = ratio >= TARGET and difference < 1e-5
        print('met   ' if met else 'MISSED', f'at least {TARGET}x, equal results: {ratio:.1f}x, {what}')


if __name__ == '__main__': main()
