"What a GPU asks of the trainer, seen without one: no look at the device, one loader a stage, memory as it was."
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from running import one_thread_one_cache # noqa: F401, a fixture for the whole file
from running import config, only, rows_of, same, weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as f

from clip_dfgs.training import trainer
from clip_dfgs.training.config import Stage
from clip_dfgs.inference.embed import make_accelerator, autocast
from clip_dfgs.data.loader import ImageDataset
from clip_dfgs.data.transforms import Augment, augmix, jitter_colors
from clip_dfgs.training.losses import batch_hard_triplet, image_text_contrastive
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.data.loader import _OPERATIONS, AUGMIX_DRAWS, FeatureDataset, HalfAugmented, _blended, _looked_up
from clip_dfgs.data.loader import _moved
from clip_dfgs.data.loader import augment_rest, augmix_batch, jitter_batch, training_images, workers_for
from clip_dfgs.synthetic.domain import everyday_pictures
from clip_dfgs.models.prompts import rows_of as table_rows
from clip_dfgs.training.run import Run
from clip_dfgs.training.step import image_losses_of, prompt_losses_of, Trainee
from clip_dfgs.models.towers import encode_front, text_tower
from clip_dfgs.training.trainer import fit


# No look at the device. A tensor on `meta` has a shape and no numbers: whoever looks at one gets an error.

def without_numbers(**change):
    "A run whose model has no numbers."
    c = replace(config(), **change)
    model = ReIDModel.create('pedestrians', None, num_ids=12, cameras=3 if c.cameras else 0).to('meta')
    return Run(None, c, None, model, None, make_accelerator('no'))


@pytest.mark.parametrize('change', [{}, dict(cameras=True), dict(sharpness=5.), dict(margin=None)])
def test_an_image_step_never_looks(change):
    stage = {k: v for k, v in change.items() if k in Stage.__dataclass_fields__}
    run = without_numbers(**{k: v for k, v in change.items() if k not in stage})
    run.config = replace(run.config, finetune=replace(run.config.finetune, **stage))
    net, size = Trainee(run.model, run.config), run.model.config['image_size']
    batch = [torch.zeros(16, 3, *size, dtype=torch.uint8), torch.arange(16)//4, torch.arange(16) % 3, torch.arange(16)]
    text = torch.zeros(12, run.model.widths.projected, device='meta')
    parts, _ = image_losses_of(run, 'finetune', text)(net, [t.to('meta') for t in batch])
    assert set(parts) == {'id', 'triplet', 'image_to_text'}
    sum(parts.values()).backward()
    with pytest.raises(RuntimeError): sum(parts.values()).item()               # a look would be seen


@pytest.mark.parametrize('once_a_stage', [True, False])
def test_a_prompt_step_never_looks(once_a_stage):
    run = without_numbers()
    net = Trainee(run.model, run.config)
    if once_a_stage: net.keep_front(run.accelerator)
    data = FeatureDataset(torch.zeros(40, run.model.widths.projected), np.arange(40) % 12, 'meta')
    parts, _ = prompt_losses_of(run)(net, data.__getitems__(range(16)))
    sum(parts.values()).backward()
    assert run.model.prompts.context.grad.shape == run.model.prompts.context.shape


# What the CPU says with an error, a GPU says with NaN

class NotOfTheCPU(torch.Tensor):
    "A tensor that takes the way of a GPU's."
    is_cpu = False


@pytest.mark.parametrize('loss', [
    lambda f, y: batch_hard_triplet(f, y), lambda f, y: batch_hard_triplet(f, y, None),
    lambda f, y: batch_hard_triplet(f, y, sharpness=3.), lambda f, y: image_text_contrastive(f, f, y, y + 1)])
def test_a_batch_without_an_answer_is_not_a_number(loss):
    f = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    alike = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError): loss(f, alike)
    assert loss(f, alike.as_subclass(NotOfTheCPU)).isnan()


def test_a_batch_with_an_answer_has_the_same_on_either_way():
    f, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    for loss in (batch_hard_triplet, lambda f, y: image_text_contrastive(f, f, y, y)):
        assert torch.equal(loss(f, y), loss(f, y.as_subclass(NotOfTheCPU)).as_subclass(torch.Tensor))


def test_rows_that_are_not_there():
    table, asked = torch.arange(6.).reshape(3, 2), torch.tensor([2, -1, 3, 0])
    found = table_rows(table, asked.as_subclass(NotOfTheCPU)).as_subclass(torch.Tensor)
    assert found.isnan().all(1).tolist() == [False, True, True, False]
    assert torch.equal(found[[0, 3]], table[[2, 0]])


def test_every_image_is_encoded_where_nobody_counts_identities():
    model, labels = ReIDModel.create('pedestrians', None, num_ids=12).eval(), torch.tensor([3, 3, 0, 11])
    there = model.text_features(labels.as_subclass(NotOfTheCPU)).as_subclass(torch.Tensor)
    torch.testing.assert_close(there, model.text_features(labels))


# The frozen beginning of all prompts

@pytest.mark.parametrize('precision', ['no', 'bf16'])
def test_the_beginning_of_prompts_computed_once_changes_nothing(precision):
    model, labels = ReIDModel.create('pedestrians', None, num_ids=12), torch.tensor([3, 5, 3, 0])
    model.trainable('prompts')
    accelerator, net = make_accelerator(precision), None
    found = []
    for once in (False, True):
        net = Trainee(model, config())
        if once: net.keep_front(accelerator)
        model.prompts.context.grad = None
        with autocast(accelerator): text = net(labels=labels)
        text.float().square().sum().backward()
        found.append((text.detach(), model.prompts.context.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_a_tower_that_looks_both_ways_shares_no_beginning():
    tower = text_tower(ReIDModel.create('pedestrians', None, num_ids=2).clip)
    assert encode_front(tower, torch.zeros(5, 128)) is not None
    tower.attn_mask = None
    assert encode_front(tower, torch.zeros(5, 128)) is None


# One loader a stage

def test_the_processes_that_load_stay_for_the_stage(world, tmp_path, monkeypatch):
    made = []
    def counted(*args, **options):
        made.append(make(*args, **options))
        return made[-1]
    make = trainer.make_loader
    monkeypatch.setattr(trainer, 'make_loader', counted)
    c = only(config(workers=2, sampler='pk'), finetune=16)
    run = fit(rows_of(world), c, tmp_path/'two')
    assert run.history['epoch'].max() >= 2 and len(made) == 1
    fit(rows_of(world), replace(c, workers=None), tmp_path/'none')
    assert same(weights(tmp_path/'two'), weights(tmp_path/'none')) and made[-1].num_workers == 0


def test_workers_follow_the_cores(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(16)), raising=False)
    assert workers_for('cuda') == 8 and workers_for('cpu') == 0 and workers_for('cuda', 0) == 0
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert workers_for('cuda') == 3
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0}, raising=False)
    assert workers_for('cuda') == 1


def test_a_stopped_run_of_convolutions_ends_in_the_same_weights(world, tmp_path):
    "An optimizer's moments come back in the order of their parameters, which fused kernels take for granted."
    c = only(config(clip='timm:resnet10t', image_size=(64, 32), checkpoint_steps=2), adapt=5)
    fit(rows_of(world), c, tmp_path/'straight')
    def stop(done):
        if done.step == 3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(rows_of(world), c, tmp_path/'run', on_step=stop)
    fit(rows_of(world), c, tmp_path/'run', resume=True)
    assert same(weights(tmp_path/'run'), weights(tmp_path/'straight'))


def test_a_batch_of_features_is_a_gather():
    data = FeatureDataset(torch.eye(5), np.arange(5)//2)
    features, labels = data.__getitems__([4, 0])
    assert torch.equal(features, torch.eye(5)[[4, 0]]) and labels.tolist() == [2, 0]
    images = ImageDataset(np.zeros((5, 4, 2, 3), np.uint8), np.arange(5)//2)
    assert len(images) == len(data)


# The rest of the augmentation, for a whole batch. What torchvision does to one image is the reference.

@pytest.fixture(scope='module')
def people():
    "Six rendered pedestrians, uint8 [6,H,W,3]."
    return everyday_pictures(6, seed=3, workers=1, progress=False)[0]


def channels_first(pixels): return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)


def test_gray_and_boxes_are_equal_to_the_bit(people):
    augment = Augment(gray=.5, erase=.6)
    whole, half = (kind(people, augment=augment, seed=5) for kind in (ImageDataset, HalfAugmented))
    for epoch in range(3):
        for data in (whole, half): data.set_epoch(epoch)
        rows = [*range(6)]*4
        images, *_, numbers = half.__getitems__(rows)
        assert torch.equal(augment_rest(images, numbers, augment), whole.__getitems__(rows)[0])


def test_jitter_is_torchvision_s_to_two_levels(people):
    draw = np.random.default_rng(0)
    amounts = (2*draw.random((6, 4)) - 1)*(.25, .25, .2, .1)
    ours = jitter_batch(channels_first(people), torch.from_numpy(amounts))
    theirs = channels_first(np.stack([jitter_colors(image, a) for image, a in zip(people, amounts)]))
    apart = (ours.int() - theirs.int()).abs()
    assert apart.max() <= 2 and (apart > 0).float().mean() < .02
    unchanged = jitter_batch(channels_first(people), torch.zeros(6, 4)).int() - channels_first(people).int()
    assert unchanged.abs().max() <= 1


def by_torchvision(x, name, step, sign):
    "One operation of AugMix at one of its strengths, as torchvision's class calls it."
    height, width = x.shape[2:]
    bilinear = dict(interpolation=InterpolationMode.BILINEAR)
    slope, turn, factor = math.degrees(math.atan(sign*.3*step/9)), sign*30*step/9, 1 + .1*sign*step
    def move(translate, shear, **more): return f.affine(x, 0., translate, 1., shear, **bilinear, **more)
    return dict(
        shear_x=lambda: move([0, 0], [slope, 0.], center=[0, 0]),
        shear_y=lambda: move([0, 0], [0., slope], center=[0, 0]),
        translate_x=lambda: move([int(sign*width/3*step/9), 0], [0., 0.]),
        translate_y=lambda: move([0, int(sign*height/3*step/9)], [0., 0.]),
        rotate=lambda: f.rotate(x, turn, **bilinear),
        posterize=lambda: f.posterize(x, [4, 4, 3][step]), solarize=lambda: f.solarize(x, 255*(1 - step/9)),
        autocontrast=lambda: f.autocontrast(x), equalize=lambda: f.equalize(x),
        brightness=lambda: f.adjust_brightness(x, factor), color=lambda: f.adjust_saturation(x, factor),
        contrast=lambda: f.adjust_contrast(x, factor), sharpness=lambda: f.adjust_sharpness(x, factor),
    )[name]()


@pytest.mark.parametrize('name', _OPERATIONS)
def test_every_operation_is_torchvision_s(people, name):
    x, operation = channels_first(people), torch.full((6,), _OPERATIONS.index(name))
    for step, sign in ((0, 1), (1, 1), (1, -1), (2, 1), (2, -1)):
        strength = torch.full((6,), step/9)
        ours = _looked_up(_moved(x.float(), operation, sign*strength), operation, strength)
        ours = _blended(ours, operation, sign*strength)
        apart = (ours - by_torchvision(x, name, step, sign)).abs()
        assert apart.max() <= 1 and apart.mean() < .15


def test_augmix_of_a_batch_is_augmix_of_its_images(people):
    "Number by number: a slow mix by torchvision's operations, chain by chain."
    draw, x = torch.Generator().manual_seed(1), channels_first(people)
    u = torch.rand(6, AUGMIX_DRAWS, generator=draw, dtype=torch.float64)
    ours = augmix_batch(x, u)
    for image, numbers, mine in zip(x, u, ours):
        own = numbers[33].item()
        shares = -torch.log1p(-numbers[30:33])
        mix = own*image.float()
        for chain, share in zip(numbers[:30].view(3, 10), shares/shares.sum()):
            out = image[None]
            for i in range(1 + int(3*chain[0])):
                which, step, sign = chain[1 + 3*i:4 + 3*i].tolist()
                out = by_torchvision(out, _OPERATIONS[int(13*which)], int(3*step), -1 if sign < .5 else 1)
            mix = mix + (1 - own)*share*out[0]
        apart = (mine.float() - mix.floor()).abs()
        assert apart.mean() < .6 and apart.max() <= 12


def test_augmix_has_the_distribution_of_torchvision_s(people):
    "How far an image is moved, and how bright it is, over many draws of both: means within four standard errors."
    n, x = 250, channels_first(people[:1])
    draw = torch.Generator().manual_seed(2)
    ours = augmix_batch(x.expand(n, -1, -1, -1), torch.rand(n, AUGMIX_DRAWS, generator=draw, dtype=torch.float64))
    theirs = channels_first(np.stack([augmix(people[0], seed) for seed in range(n)]))
    def measures(images):
        images = images.float()
        each = (1, 2, 3)
        return [(images - x).abs().mean(each), images.mean(each), images.std(each), images[:, :, :4].mean(each)]
    for one, other in zip(measures(ours), measures(theirs)):
        error = ((one.var() + other.var())/n).sqrt()
        assert abs(one.mean() - other.mean()) < 4*error
        assert .6 < one.std()/other.std() < 1.6


def test_shares_of_augmentation(people):
    "As many images are changed as were asked for."
    n = 600
    plain = HalfAugmented(np.repeat(people[:1], n, 0), augment=Augment(flip=0, pad=0, erase=0.))
    images, *_, numbers = plain.__getitems__(range(n))
    for field, share in (('gray', .3), ('jitter', .5), ('augmix', .2)):
        augment = Augment(flip=0, pad=0, erase=0., **{field: share})
        changed = (augment_rest(images, numbers, augment) != images).flatten(1).any(1).float().mean().item()
        assert changed == pytest.approx(share, abs=.08)


def test_the_rest_of_the_augmentation_never_looks(people):
    augment = Augment(gray=.1, jitter=.5, augmix=.6, erase=.5)
    images, *_, numbers = HalfAugmented(people, augment=augment).__getitems__(range(6))
    assert augment_rest(images.to('meta'), numbers.to('meta'), augment).shape == images.shape


def test_a_run_on_a_gpu_gets_half_augmented_images(people):
    options = people, np.arange(6), np.zeros(6, int), Augment(), 0
    assert type(training_images(*options, device='cuda')) is HalfAugmented
    assert type(training_images(*options, device='cpu')) is ImageDataset


def test_a_run_with_the_rest_on_its_device_learns_alike(world, tmp_path, monkeypatch):
    "On the CPU a stand-in: with gray and boxes only, the two ways end in the same weights, with two workers too."
    c = only(config(augment=Augment(gray=.3, erase=.5)), adapt=3)
    fit(rows_of(world), c, tmp_path/'whole')
    monkeypatch.setattr(trainer, 'training_images', lambda *options, device: HalfAugmented(*options))
    fit(rows_of(world), replace(c, workers=2), tmp_path/'half')
    assert same(weights(tmp_path/'half'), weights(tmp_path/'whole'))
