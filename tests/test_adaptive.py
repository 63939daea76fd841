"A share of random batches that falls as they become easy: measured by the run itself, and as exact as the rest of it."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from runs import one_thread_one_cache # noqa: F401, a fixture for the whole file
from runs import config, only, rows_of, same, two, weights

from clip_dfgs.training.losses import triplet_health
from clip_dfgs.training.trainer import fit


def adaptive(steps=16, **more): return only(config(pk_ratio='adaptive', k=3, **more), finetune=steps)


def test_the_share_of_an_epoch_is_what_the_one_before_has_shown(world, tmp_path):
    "By the definition, from the features of every step: the first epoch random, then the mean violated share."
    seen = {}
    def look(done):
        health = triplet_health(done.features.detach(), done.labels, normalize=True)
        seen.setdefault(done.epoch, []).append((done.rows, health['violated_triplets']))
    run = fit(rows_of(world), adaptive(), tmp_path/'run', on_step=look)
    table = pd.read_csv(tmp_path/'run'/'sampler.csv').set_index('epoch')
    assert table['pk_ratio'].iloc[0] == 1 and len(table) >= 3
    batches = len(seen[0])
    for epoch in range(1, len(table)):
        share = table['pk_ratio'][epoch - 1]
        random = np.floor((np.arange(batches) + 1)*share) > np.floor(np.arange(batches)*share)
        violated = [v for (_, v), chosen in zip(seen[epoch - 1], random) if chosen]
        assert table['pk_ratio'][epoch] == pytest.approx(min(1, max(np.mean(violated), .1, 1/batches)))
    assert table['pk_ratio'].nunique() > 1 and run.history['epoch'].max() == len(table) - 1


EVERY_STEP = replace(adaptive(), checkpoint_steps=1)

@pytest.fixture(scope='module')
def straight(world, tmp_path_factory):
    out = tmp_path_factory.mktemp('adaptive')/'straight'
    fit(rows_of(world), EVERY_STEP, out)
    return out


@pytest.mark.parametrize('at', [8, 11])
def test_a_run_that_stopped_has_the_same_shares(world, straight, tmp_path, at):
    "At the end and in the middle of an epoch; what was seen so far is in the checkpoint."
    def stop(done):
        if done.step == at: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(rows_of(world), EVERY_STEP, tmp_path/'run', on_step=stop)
    fit(rows_of(world), EVERY_STEP, tmp_path/'run', resume=True)
    assert same(weights(tmp_path/'run'), weights(straight))
    assert (tmp_path/'run'/'sampler.csv').read_text() == (straight/'sampler.csv').read_text()


@pytest.mark.parametrize('gather', [False, True])
def test_two_processes_have_one_share(world, tmp_path, gather):
    "Each measures its own batches; together they plan one epoch, and end in the same weights."
    assert two(world, tmp_path/'run', adaptive(9, gather=gather), test=True) == [0, 0]
    table = pd.read_csv(tmp_path/'run'/'sampler.csv')
    assert len(table) >= 2 and table['pk_ratio'].between(.1, 1).all()
    from safetensors.torch import load_file
    assert same(*(load_file(tmp_path/f'run.{r}.safetensors') for r in range(2)))
