"What a GPU asks of the trainer, seen without one: no look at the device, one loader a stage, memory as it was."
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import one_thread_one_cache # noqa: F401, a fixture for the whole file
from runs import config, only, rows_of, same, weights

from clip_dfgs.training import step as stages
from clip_dfgs.training.config import Stage
from clip_dfgs.inference.embed import make_accelerator, autocast

from clip_dfgs.training.losses import batch_hard_triplet, image_text_contrastive
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.data.loader import FeatureDataset, workers_for
from clip_dfgs.models.prompts import rows_of as table_rows
from clip_dfgs.training.step import ImageLosses, PromptLosses, Trainee
from clip_dfgs.training.trainer import fit


# No look at the device. A tensor on `meta` has a shape and no numbers: whoever looks at one gets an error.

def without_numbers(**change):
    "Settings, and a model without numbers."
    c = replace(config(), **change)
    model = ReIDModel.create('pedestrians', None, num_ids=12, cameras=3 if c.cameras else 0).to('meta')
    return c, model, make_accelerator('no')


@pytest.mark.parametrize('change', [{}, dict(cameras=True), dict(mining_temperature=.2), dict(margin=None)])
def test_an_image_step_never_looks(change):
    stage = {k: v for k, v in change.items() if k in Stage.__dataclass_fields__}
    c, model, accelerator = without_numbers(**{k: v for k, v in change.items() if k not in stage})
    c = replace(c, finetune=replace(c.finetune, **stage))
    net, size = Trainee(model, c), model.config['image_size']
    batch = [torch.zeros(16, 3, *size, dtype=torch.uint8), torch.arange(16)//4, torch.arange(16) % 3, torch.arange(16)]
    text = torch.zeros(12, model.widths.projected, device='meta')
    parts, _ = ImageLosses(model, c, 'finetune', accelerator, text)(net, [t.to('meta') for t in batch])
    assert set(parts) == {'id', 'triplet', 'image_to_text'}
    sum(parts.values()).backward()
    with pytest.raises(RuntimeError): sum(parts.values()).item()               # a look would be seen


@pytest.mark.parametrize('once_a_stage', [True, False])
def test_a_prompt_step_never_looks(once_a_stage):
    c, model, accelerator = without_numbers()
    net = Trainee(model, c)
    if once_a_stage: net.keep_front(accelerator)
    data = FeatureDataset(torch.zeros(40, model.widths.projected), np.arange(40) % 12, 'meta')
    parts, _ = PromptLosses(c, accelerator)(net, data.__getitems__(range(16)))
    sum(parts.values()).backward()
    assert model.prompts.context.grad.shape == model.prompts.context.shape


# What the CPU says with an error, a GPU says with NaN

class NotOfTheCPU(torch.Tensor):
    "A tensor that takes the way of a GPU's."
    is_cpu = False


@pytest.mark.parametrize('loss', [
    lambda f, y: batch_hard_triplet(f, y), lambda f, y: batch_hard_triplet(f, y, None),
    lambda f, y: batch_hard_triplet(f, y, mining_temperature=1/3), lambda f, y: image_text_contrastive(f, f, y, y + 1)])
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


# One loader a stage

@pytest.mark.slow
def test_the_processes_that_load_stay_for_the_stage(world, tmp_path, monkeypatch):
    made = []
    def counted(*args, **options):
        made.append(make(*args, **options))
        return made[-1]
    make = stages.make_loader
    monkeypatch.setattr(stages, 'make_loader', counted)
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


@pytest.mark.slow
def test_a_stopped_run_of_convolutions_ends_in_the_same_weights(world, tmp_path):
    "An optimizer's moments come back in the order of their parameters, which fused kernels take for granted."
    c = only(config(clip='timm:resnet10t', image_size=(64, 32), checkpoint_steps=2), adapt=5)
    fit(rows_of(world), c, tmp_path/'straight')
    def stop(done):
        if done.step == 3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(rows_of(world), c, tmp_path/'run', on_step=stop)
    fit(rows_of(world), c, tmp_path/'run', resume=True)
    assert same(weights(tmp_path/'run'), weights(tmp_path/'straight'))
