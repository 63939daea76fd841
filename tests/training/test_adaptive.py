"A share of random batches that falls as they become easy: measured by the run itself, and as exact as the rest of it."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from runs import one_thread_one_cache # noqa: F401, a fixture for the whole file
from runs import config, only, rows_of, same, stopped, two
from safetensors.torch import load_file

from clip_dfgs.training.losses import triplet_health
from clip_dfgs.training.trainer import fit


def adaptive(steps=13, **more): return only(config(pk_ratio='adaptive', k=3, **more), finetune=steps)


@pytest.fixture(scope='module')
def straight(world, tmp_path_factory):
    "A run of several epochs, and of each step its epoch, rows and violated share."
    seen = {}
    def look(done):
        health = triplet_health(done.features.detach(), done.labels, normalize=True)
        seen.setdefault(done.epoch, []).append((done.rows, health['violated_triplets']))
    return fit(rows_of(world), adaptive(), tmp_path_factory.mktemp('adaptive')/'run', on_step=look), seen


def test_the_share_of_an_epoch_is_what_the_one_before_has_shown(straight):
    "By the definition, from the features of every step: the first epoch random, then the mean violated share."
    run, seen = straight
    table = pd.read_csv(run.out/'sampler.csv').set_index('epoch')
    assert table['pk_ratio'].iloc[0] == 1 and len(table) >= 3
    batches = len(seen[0])
    for epoch in range(1, len(table)):
        share = table['pk_ratio'][epoch - 1]
        random = np.floor((np.arange(batches) + 1)*share) > np.floor(np.arange(batches)*share)
        violated = [v for (_, v), chosen in zip(seen[epoch - 1], random) if chosen]
        assert table['pk_ratio'][epoch] == pytest.approx(min(1, max(np.mean(violated), .1, 1/batches)))
    assert table['pk_ratio'].nunique() > 1 and run.history['epoch'].max() == len(table) - 1


@pytest.mark.parametrize('at', [pytest.param(6, marks=pytest.mark.slow), 8])
def test_a_run_that_stopped_has_the_same_shares(world, straight, tmp_path, at):
    "At the end and in the middle of an epoch; what was seen so far is in the checkpoint."
    again = stopped(rows_of(world), replace(adaptive(), checkpoint_steps=at), tmp_path/'run', at)
    assert same(again.model.state_dict(), straight[0].model.state_dict())
    assert (tmp_path/'run'/'sampler.csv').read_text() == (straight[0].out/'sampler.csv').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('gather', [False, True])
def test_two_processes_have_one_share(world, tmp_path, gather):
    "Each measures its own batches; together they plan one epoch, and end in the same weights."
    assert two(world, tmp_path/'run', adaptive(5, gather=gather), test=True) == [0, 0]
    table = pd.read_csv(tmp_path/'run'/'sampler.csv')
    assert len(table) >= 2 and table['pk_ratio'].between(.1, 1).all()
    assert same(*(load_file(tmp_path/f'run.{r}.safetensors') for r in range(2)))
