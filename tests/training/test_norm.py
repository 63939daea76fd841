"Batch norm of the image tower in a stage: live, frozen, or estimated anew on random batches."
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import one_thread_one_cache # noqa: F401, a fixture for the whole file
from runs import config, only, rows_of, same, stopped

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.training.trainer import fit


def resnet(norm, steps=3, **more):
    "A few steps of fine-tuning of a tower with batch norm."
    c = only(config(clip='timm:resnet10t', checkpoint_steps=0, **more), finetune=steps)
    return replace(c, finetune=replace(c.finetune, norm=norm))


def averages(state):
    "Running means and variances of the image tower, and the count of batches."
    return {k: v for k, v in state.items() if k.startswith('clip.visual.') and ('running_' in k or 'tracked' in k)}


@pytest.fixture(scope='module')
def start(): return ReIDModel.create('timm:resnet10t', None, num_ids=12, image_size=(64, 32)).state_dict()


@pytest.fixture(scope='module')
def live(world, tmp_path_factory): return fit(rows_of(world), resnet('live'), tmp_path_factory.mktemp('norm')/'live')


def test_live_averages_move_and_frozen_ones_stay_while_their_layers_learn(world, start, live, tmp_path):
    "Whatever modes others set; and a run that stopped stays frozen."
    def disturb(done): done.run.model.train()
    assert all(not torch.equal(v, live.model.state_dict()[k]) for k, v in averages(start).items())
    after = fit(rows_of(world), resnet('frozen'), tmp_path/'run', on_step=disturb).model.state_dict()
    assert len(averages(start)) > 30 and same(averages(start), averages(after))
    learned = [k for k in start if '.bn' in k and k.endswith(('weight', 'bias'))]
    assert len(learned) == 18 and all(not torch.equal(start[k], after[k]) for k in learned)
    assert not torch.equal(start['neck_pooled.norm.running_mean'], after['neck_pooled.norm.running_mean'])
    again = stopped(rows_of(world), replace(resnet('frozen'), checkpoint_steps=1), tmp_path/'stopped', 1)
    assert same(after, again.model.state_dict())


def test_a_tower_without_batch_norm_is_trained_as_ever(world, tmp_path):
    c = only(config(), finetune=1)
    live, frozen, random = (fit(rows_of(world), replace(c, finetune=replace(c.finetune, norm=norm)), tmp_path/norm)
                            for norm in ('live', 'frozen', 'random'))
    for run in (frozen, random): assert same(live.model.state_dict(), run.model.state_dict())


def test_random_averages_are_those_of_random_images(world, live, tmp_path):
    "The first layer's: means and variances of what it sees; what is learned is that of usual training."
    seen = []
    def last(done):
        if done.step == done.steps: seen.append(done.run.model.clip.visual.trunk.bn1.running_mean.clone())
    run = fit(rows_of(world), resnet('random'), tmp_path/'run', on_step=last)
    after = run.model.state_dict()
    assert same(*({k: v for k, v in s.items() if k not in averages(s)} for s in (live.model.state_dict(), after)))
    trunk, pixels = run.model.clip.visual.trunk, torch.from_numpy(np.array(run.pixels)).permute(0, 3, 1, 2)
    with torch.no_grad(): inputs = trunk.conv1(run.model.normalize(pixels))
    assert torch.allclose(trunk.bn1.running_mean, inputs.mean((0, 2, 3)), atol=.02*inputs.std())
    assert torch.allclose(trunk.bn1.running_var, inputs.var((0, 2, 3)), rtol=.05)
    assert torch.equal(seen[0], trunk.bn1.running_mean)                        # `on_step` sees them at the last step
    assert trunk.bn1.momentum == .1 and not run.model.training
