"""What only a GPU can show. `pytest -m cuda` runs it; `make test` hides GPUs, so that it is skipped there.

`CLIP_DFGS_TEST_DEVICE=cpu pytest -m cuda` runs what a CPU can of it, so that a fault of a test is found without a GPU.

Sums are added in varying order on a GPU. Weights of two runs are therefore compared by how far apart they end,
measured by how far training moved them."""
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import runs
import torch
from accelerate.state import AcceleratorState
from runs import config, only, rows_of, weights
from safetensors.torch import load_file

from clip_dfgs.utils.files import TrainError
from clip_dfgs.inference.embed import choose_precision
from clip_dfgs.data.loader import ImageDataset, make_loader
from clip_dfgs.data.transforms import Augment
from clip_dfgs.training.losses import batch_hard_triplet, id_loss, image_text_contrastive
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import captioned_images
from clip_dfgs.training import step
from clip_dfgs.training.trainer import fit

DEVICE = os.environ.get('CLIP_DFGS_TEST_DEVICE', 'cuda')
hidden = DEVICE == 'cuda' and not torch.cuda.is_available()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(hidden, reason='no GPU is visible')]
needs_gpu = pytest.mark.skipif(DEVICE != 'cuda', reason='asks for the GPU itself')
SMALL = dict(pretrained='pedestrians', workers=0)


@pytest.fixture(scope='module', autouse=True)
def one_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CLIP_DFGS_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(autouse=True)
def full_precision_matmul():
    "Single precision is single precision in convolutions too, on a fresh device state."
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), on(DEVICE): yield


@contextmanager
def on(device):
    "accelerate's device is this one."
    with pytest.MonkeyPatch.context() as patch:
        if device == 'cpu': patch.setenv('ACCELERATE_USE_CPU', 'true')
        else: patch.delenv('ACCELERATE_USE_CPU', raising=False)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def apart(one, other, start):
    "Distance of two sets of weights, in units of how far the first is from where it began."
    floats = [name for name in one if one[name].is_floating_point()]           # not the counts of batch norm
    names = [name for name in floats if name in start]
    assert len(names) > .9*len(floats)
    def length(a, b): return sum((a[name].double() - b[name].double()).square().sum() for name in names)**.5
    return (length(one, other)/length(one, start)).item()


def beginning(c): return ReIDModel.create(c.clip, c.pretrained, num_ids=12, image_size=c.image_size).state_dict()


# One batch

def image_loss(model, images, labels):
    "A loss that reads all features and both classifiers."
    f = model.image_features(images)
    return sum(batch_hard_triplet(x, labels) for x in f) + sum(id_loss(scores, labels) for scores in model.heads(f))


@pytest.mark.parametrize('settings', [
    dict(clip='pedestrians', pretrained='pedestrians'),
    dict(clip='timm:resnet10t', pretrained=None, image_size=(64, 32)),
    dict(clip='RN50', pretrained=None, image_size=(64, 32))])
def test_features_and_gradients_are_those_of_the_cpu(settings):
    "Within five parts in a thousand of each tensor's size, in single precision."
    model = ReIDModel.create(**settings, num_ids=6).eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, *model.config['image_size']), dtype=torch.uint8, generator=draw)
    labels, found = torch.arange(12)//2, {}
    for device in ('cpu', DEVICE):
        model.to(device).zero_grad(set_to_none=True)
        model.trainable('finetune')
        x, y = images.to(device), labels.to(device)
        image_loss(model, x, y).backward()
        numbers = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        numbers['features'] = model.embed(x).detach()
        if model.has_text:
            model.trainable('prompts')
            text = model.text_features(y)
            image_text_contrastive(numbers['features'][:, -text.shape[1]:], text, y, y).backward()
            numbers |= {'text': text.detach(), 'context': model.prompts.context.grad}
        found[device] = {name: value.cpu().clone() for name, value in numbers.items()}
    assert found['cpu'].keys() == found[DEVICE].keys()
    largest = max(value.norm() for name, value in found['cpu'].items() if name not in ('features', 'text', 'context'))
    for name, value in found['cpu'].items():
        scale = value.norm() + (1e-3*largest if name not in ('features', 'text') else 0)
        assert (value - found[DEVICE][name]).norm() < 5e-3*scale, name


@needs_gpu # a CPU looks at its labels and refuses them
def test_a_batch_without_an_answer_is_not_a_number():
    f, alike = torch.randn(6, 4, device=DEVICE), torch.zeros(6, dtype=torch.long, device=DEVICE)
    for loss in (batch_hard_triplet(f, alike), batch_hard_triplet(f, alike, mining_temperature=1/3),
                 image_text_contrastive(f, f, alike, alike + 1)): assert loss.isnan()
    model = ReIDModel.create('pedestrians', None, num_ids=4).to(DEVICE)
    found = model.text_features(torch.tensor([2, -1, 4], device=DEVICE)).isnan().all(1)
    assert found.tolist() == [False, True, True]


@needs_gpu
def test_workers_and_pinned_memory_give_equal_bytes():
    people, _ = captioned_images(8, seed=3, workers=1, progress=False)
    batches = [[0, 1, 5], [7, 7, 2], [3, 4, 6]]
    data = ImageDataset(people, np.arange(8), augment=Augment(jitter=.5, gray=.3), seed=4)
    plain = list(make_loader(data, batches, pin=False))
    for workers, pin in ((0, True), (2, False), (2, True)):
        other = list(make_loader(data, batches, workers=workers, pin=pin))
        for a, b in zip(plain, other):
            assert all(torch.equal(x, y) for x, y in zip(a, b)) and all(t.is_pinned() == pin for t in b)
            on_device = [t.to('cuda', non_blocking=True) for t in b]
            assert all(torch.equal(x, y.cpu()) for x, y in zip(a, on_device))


# Whole runs

@needs_gpu
@pytest.mark.parametrize('precision', ['no', 'bf16', 'fp16'])
def test_three_stages_without_a_look_at_the_device(world, tmp_path, monkeypatch, precision):
    "From its second step on, a stage that synchronizes with the device raises an error."
    take = step.take
    def strict(loop, *args):
        torch.cuda.set_sync_debug_mode('error' if loop.step else 'default')
        try: return take(loop, *args)
        finally: torch.cuda.set_sync_debug_mode('default')
    monkeypatch.setattr(step, 'take', strict)
    c = config(precision=precision, cameras=True, augment=Augment(jitter=.5, augmix=.3, gray=.2), **SMALL)
    run = fit(rows_of(world), c, tmp_path/'run')
    assert run.history['stage'].tolist() == ['adapt']*5 + ['prompts']*5 + ['finetune']*7
    assert np.isfinite(run.history['loss']).all() and next(run.model.parameters()).is_cuda


@needs_gpu
def test_an_overflow_skips_one_step(world, tmp_path):
    "fp16's scale is set where every gradient overflows: the next step moves no weight and halves the scale."
    seen = {}
    def watch(done):
        scaler = done.run.accelerator.scaler
        if done.step == 2:
            scaler.update(new_scale=2.**60)
            seen['before'] = {name: p.detach().clone() for name, p in done.run.model.named_parameters()}
        if done.step == 3:
            seen['kept'] = all(torch.equal(seen['before'][n], p) for n, p in done.run.model.named_parameters())
            seen['scale'] = scaler.get_scale()
            scaler.update(new_scale=1024.)
    run = fit(rows_of(world), only(config(precision='fp16', **SMALL), adapt=6), tmp_path/'run', on_step=watch)
    assert seen['kept'] and seen['scale'] == 2.**59
    moved = [n for n, p in run.model.named_parameters() if not torch.equal(seen['before'][n], p)]
    assert len(moved) > 20 and all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_loss_that_is_not_a_number_never_reaches_the_weights(world, tmp_path):
    kept = {}
    def spoil(done):
        if done.step != 3: return # a step without a checkpoint, which would refuse the weights before
        with torch.no_grad(): done.run.model.clip.visual.proj.fill_(torch.nan)
        kept.update(run=done.run, before={n: p.detach().clone() for n, p in done.run.model.named_parameters()})
    with pytest.raises(TrainError, match=r'^adapt, step 3: the loss is nan; batch of 16 images'):
        fit(rows_of(world), only(config(**SMALL), adapt=4), tmp_path/'run', on_step=spoil)
    for name, p in kept['run'].model.named_parameters():
        assert name == 'clip.visual.proj' or torch.equal(p, kept['before'][name]), name


@needs_gpu
def test_the_caller_s_random_streams_stay_where_they_were(world, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.cuda.get_rng_state(), torch.cuda.current_device()
    fit(rows_of(world), only(config(augment=Augment(augmix=.5), **SMALL), adapt=2, finetune=1), tmp_path/'run')
    after = torch.get_rng_state(), torch.cuda.get_rng_state(), torch.cuda.current_device()
    assert all(map(torch.equal, before[:2], after[:2])) and before[2] == after[2]


@pytest.mark.parametrize('first, then', dict.fromkeys([(DEVICE, DEVICE), (DEVICE, 'cpu'), ('cpu', DEVICE)]))
@pytest.mark.parametrize('clip', ['pedestrians', 'timm:resnet10t'])
def test_stopped_and_going_on_across_devices(world, tmp_path, clip, first, then):
    "The end is that of a run that was left alone, within a fifth of what training moved."
    c = config(workers=0, sampler='pk', augment=Augment())                     # equal images and plans on both
    if clip == 'pedestrians': c = replace(only(c, adapt=3, prompts=3, finetune=5), pretrained='pedestrians')
    else: c = replace(only(c, adapt=3, finetune=5), clip=clip, image_size=(64, 32))
    rows = rows_of(world)
    fit(rows, c, tmp_path/'straight')
    def stop(done):
        if (done.stage, done.step) == ('finetune', 3): raise KeyboardInterrupt
    with on(first), pytest.raises(KeyboardInterrupt): fit(rows, c, tmp_path/'run', on_step=stop)
    with on(then): run = fit(rows, c, tmp_path/'run', resume=True)
    assert next(run.model.parameters()).device.type == then
    assert apart(weights(tmp_path/'straight'), weights(tmp_path/'run'), beginning(c)) < .2


@pytest.mark.parametrize('precision, tolerance', [('no', 1e-3), ('bf16', 5e-2)])
def test_less_memory_same_losses(world, tmp_path, precision, tolerance):
    def losses(name, **more):
        c = only(config(precision=precision, **SMALL, **more), adapt=2, prompts=2)
        return fit(rows_of(world), c, tmp_path/name).history['loss']
    assert np.allclose(losses('kept'), losses('again', recompute=True), rtol=tolerance)


@pytest.mark.skipif(not any(map(shutil.which, ('g++', 'clang++'))), reason='no C++ compiler')
@pytest.mark.parametrize('recompute', [False, True])
def test_compiled_gives_the_same_losses(world, tmp_path, recompute):
    "A small tower of convolutions, which compiles in seconds; alone, and with activations computed again."
    c = only(config(clip='timm:resnet10t', image_size=(64, 32), workers=0), adapt=3)
    def losses(name, **more): return fit(rows_of(world), replace(c, **more), tmp_path/name).history['loss']
    assert np.allclose(losses('eager'), losses('compiled', compile=True, recompute=recompute), rtol=1e-2)


@pytest.mark.skipif(not any(map(shutil.which, ('g++', 'clang++'))), reason='no C++ compiler')
def test_compiled_prompts_give_the_same_losses(world, tmp_path):
    c = only(config(**SMALL), prompts=4)
    def losses(name, **more): return fit(rows_of(world), replace(c, **more), tmp_path/name).history['loss']
    assert np.allclose(losses('eager'), losses('compiled', compile=True), rtol=1e-2)


# Several GPUs, by NCCL

@pytest.fixture
def two_gpus(monkeypatch):
    "What starts two processes leaves each its GPU."
    there = runs.addresses
    def addresses(): return [{k: v for k, v in one.items() if k != 'ACCELERATE_USE_CPU'} for one in there()]
    monkeypatch.setattr(runs, 'addresses', addresses)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='fewer than two GPUs')
@pytest.mark.parametrize('change', [dict(graph='text'), dict(gather=True), dict(precision='bf16', graph='dual')])
def test_two_gpus_end_in_one_model(world, tmp_path, two_gpus, change):
    "Weights, batch norm, graph: both processes have the same, and all three stages ran."
    out = tmp_path/'two'
    assert runs.two(world, out, config(**SMALL | change), test=True) == [0, 0], runs.said_by_two(out)
    ends = [load_file(tmp_path/f'two.{rank}.safetensors') for rank in range(2)]
    assert runs.same(*ends) and all(torch.isfinite(v).all() for v in ends[0].values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='fewer than two GPUs')
def test_two_gpus_and_a_feature_that_no_loss_reads(world, tmp_path, two_gpus):
    c = only(config(**SMALL), adapt=3)
    c = replace(c, adapt=replace(c.adapt, id_weight=0., triplet_on=('pooled',)))
    assert runs.two(world, tmp_path/'run', c) == [0, 0], runs.said_by_two(tmp_path/'run')


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='fewer than two GPUs')
def test_a_lost_loss_on_one_of_two_gpus_stops_both(world, tmp_path, two_gpus):
    out = tmp_path/'run'
    assert runs.two(world, out, only(config(**SMALL), adapt=5), poison='1') == [2, 2]
    said = [text.strip().splitlines()[-1] for text in runs.said_by_two(out)]
    assert 'the loss of process 1 is not a number' in said[0] and 'the loss is nan' in said[1]


# The device decides

@pytest.mark.parametrize('capability, chosen', [((7, 5), 'fp16'), ((7, 0), 'fp16'), ((9, 0), 'bf16')])
@needs_gpu
def test_bf16_where_it_is_in_hardware(monkeypatch, capability, chosen):
    major, minor = capability
    properties = SimpleNamespace(major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    assert choose_precision('auto', 'cuda') == chosen


def test_a_run_on_the_cpu_leaves_the_gpu_alone(world, tmp_path):
    c = only(config(precision='auto', clip='timm:resnet10t', image_size=(64, 32), workers=0), adapt=1)
    with on('cpu'):
        run = fit(rows_of(world), c, tmp_path/'run')
        assert run.accelerator.mixed_precision == 'no'
    assert {p.device.type for p in run.model.parameters()} == {'cpu'}
