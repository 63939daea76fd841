"Runs that the tests of figures and reports read and none changes."
import shutil
from dataclasses import replace

import pytest


@pytest.fixture(scope='session')
def runs(world, tmp_path_factory):
    "A folder of runs of one step a stage: whole; images only and one camera; another seed; cut off; not begun."
    from clip_dfgs.data.datasets import load_dataset
    from clip_dfgs.training.config import TrainConfig
    from clip_dfgs.training.trainer import fit
    folder = tmp_path_factory.mktemp('reports')
    rows = load_dataset('market1501', world, domain='0012')
    c = TrainConfig(log_steps=1, precision='no', image_size=(64, 32))
    few = replace(c, cache=str(folder/'.cache'), adapt=replace(c.adapt, steps=1, batch=8),
                  prompts=replace(c.prompts, steps=1, batch=64), finetune=replace(c.finetune, steps=1, batch=8))
    fit(rows, few, folder/'whole').evaluate(rows)
    blind = replace(few, prompts=None, clip='timm:test_resnet', pretrained=None)
    fit(rows.assign(camid=0), blind, folder/'blind').evaluate(rows.assign(camid=0))
    fit(rows, replace(few, adapt=None, prompts=None, seed=1), folder/'again').evaluate(rows)
    shutil.copytree(folder/'whole', folder/'cut')
    shutil.rmtree(folder/'cut'/'model')
    for name in ('targets.csv', 'results.csv', 'epoch.csv', 'sampler.csv'): (folder/'cut'/name).unlink()
    (folder/'new').mkdir()
    shutil.copy(folder/'whole'/'config.json', folder/'new')
    return folder


@pytest.fixture
def whole_run(runs): return runs/'whole'
