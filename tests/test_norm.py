"Batch norm of the image tower in a stage: live, frozen, or estimated anew on random batches."
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import one_thread_one_cache # noqa: F401, a fixture for the whole file
from runs import config, only, rows_of, same, weights

from clip_dfgs.inference.embed import embed_images
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.training.trainer import fit


def resnet(norm, steps=3, **more):
    "A few steps of fine-tuning of a tower with batch norm."
    c = only(config(clip='timm:resnet18', image_size=(64, 32), checkpoint_steps=1, **more), finetune=steps)
    return replace(c, finetune=replace(c.finetune, norm=norm))


def averages(state):
    "Running means and variances of the image tower, and the count of batches."
    return {k: v for k, v in state.items() if k.startswith('clip.visual.') and ('running_' in k or 'tracked' in k)}


def start(world): return ReIDModel.create('timm:resnet18', None, num_ids=12, image_size=(64, 32)).state_dict()


def test_frozen_averages_stay_to_the_bit_and_the_layers_learn(world, tmp_path):
    def disturb(done): done.run.model.train()
    before = start(world)
    after = fit(rows_of(world), resnet('frozen'), tmp_path/'run', on_step=disturb).model.state_dict()
    assert len(averages(before)) == 3*20 and same(averages(before), averages(after))
    learned = [k for k in before if '.bn' in k and k.endswith(('weight', 'bias'))]
    assert len(learned) == 2*17 and all(not torch.equal(before[k], after[k]) for k in learned)
    assert not torch.equal(before['neck_pooled.norm.running_mean'], after['neck_pooled.norm.running_mean'])


def test_live_averages_move(world, tmp_path):
    after = fit(rows_of(world), resnet('live'), tmp_path/'run').model.state_dict()
    assert all(not torch.equal(v, after[k]) for k, v in averages(start(world)).items())


def test_a_run_that_stopped_stays_frozen(world, tmp_path):
    def stop(done):
        if done.step == 2: raise KeyboardInterrupt
    straight = fit(rows_of(world), resnet('frozen'), tmp_path/'straight')
    with pytest.raises(KeyboardInterrupt): fit(rows_of(world), resnet('frozen'), tmp_path/'run', on_step=stop)
    resumed = fit(rows_of(world), resnet('frozen'), tmp_path/'run', resume=True)
    assert same(weights(tmp_path/'run'), weights(tmp_path/'straight'))
    assert same(averages(resumed.model.state_dict()), averages(start(world)))
    assert straight.model.state_dict().keys() == resumed.model.state_dict().keys()


@pytest.mark.parametrize('norm', ['frozen', 'random'])
def test_a_tower_without_batch_norm_is_trained_as_ever(world, tmp_path, norm):
    c = only(config(), finetune=2)
    fit(rows_of(world), c, tmp_path/'live')
    fit(rows_of(world), replace(c, finetune=replace(c.finetune, norm=norm)), tmp_path/norm)
    assert same(weights(tmp_path/'live'), weights(tmp_path/norm))


def test_random_averages_are_those_of_random_pictures(world, tmp_path):
    "The first layer's: means and variances of what it sees; what is learned is that of usual training."
    seen = []
    live = fit(rows_of(world), resnet('live'), tmp_path/'live').model.state_dict()
    def last(done):
        if done.step == done.steps: seen.append(done.run.model.clip.visual.trunk.bn1.running_mean.clone())
    run = fit(rows_of(world), resnet('random'), tmp_path/'random', on_step=last)
    after = run.model.state_dict()
    assert same(*({k: v for k, v in s.items() if k not in averages(s)} for s in (live, after)))
    trunk, pixels = run.model.clip.visual.trunk, torch.from_numpy(np.array(run.pixels)).permute(0, 3, 1, 2)
    with torch.no_grad(): inputs = trunk.conv1(run.model.normalize(pixels))
    assert torch.allclose(trunk.bn1.running_mean, inputs.mean((0, 2, 3)), atol=.02*inputs.std())
    assert torch.allclose(trunk.bn1.running_var, inputs.var((0, 2, 3)), rtol=.05)
    assert torch.equal(seen[0], trunk.bn1.running_mean)                        # `on_step` sees them at the last step
    assert trunk.bn1.momentum == .1 and not run.model.training
    again = fit(rows_of(world), resnet('random'), tmp_path/'again')
    assert same(weights(tmp_path/'again'), weights(tmp_path/'random'))
    assert torch.equal(embed_images(again.model, run.pixels), embed_images(run.model, run.pixels))
