"The run folder: what it holds, what is refused, and that no kill spoils it."
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from runs import config, only, rows_of

from clip_dfgs.training import trainer
from clip_dfgs.training.checkpoints import checkpoints
from clip_dfgs.training.config import config_from
from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.data.records import pool
from clip_dfgs.training.run import check_folder
from clip_dfgs.training.trainer import fit

begin = trainer._begin


@pytest.fixture
def copied(whole, tmp_path):
    "A copy of it."
    shutil.copytree(whole, tmp_path/'run')
    return tmp_path/'run'


def contents(folder): return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_what_a_run_leaves(whole):
    assert {p.name for p in whole.iterdir()} == {
        'config.json', 'records.csv', 'history.csv', 'sampler.csv', 'epoch.csv', 'checkpoint', 'model'}
    history = pd.read_csv(whole/'history.csv')
    assert history.groupby('stage', sort=False)['step'].max().to_dict() == dict(adapt=5, prompts=5, finetune=7)
    parts = history[['id', 'triplet', 'image_to_text', 'i2t', 't2i']].sum(axis=1)
    assert len(history) == 17 and np.allclose(parts, history['loss'], atol=1e-5)
    assert pd.read_csv(whole/'sampler.csv').images.eq(1).all()
    assert config_from(json.loads((whole/'config.json').read_text())) == config()
    for checkpoint in checkpoints(whole/'checkpoint'):
        assert config_from(json.loads((checkpoint/'state.json').read_text())['config']) == config()


def test_resume_refuses_another_run(world, whole, tmp_path):
    rows, before = rows_of(world), contents(whole)
    some = rows[rows['label'] < 11].reset_index(drop=True)
    with pytest.raises(ValueError, match='another sampler'): fit(rows, config(sampler='gs'), whole, resume=True)
    with pytest.raises(ValueError, match='not empty'): fit(rows, config(), whole)
    with pytest.raises(ValueError, match='other images'): fit(some, config(), whole, resume=True)
    bf16 = config(precision='bf16')
    with pytest.raises(ValueError, match='precision=no, not bf16'): fit(rows, bf16, whole, resume=True)
    (tmp_path/'mine').write_text('precious')
    for how in ('resume', 'overwrite'):
        with pytest.raises(ValueError, match='holds no run'): fit(rows, config(), tmp_path, **{how: True})
    assert contents(whole) == before and (tmp_path/'mine').exists()


@pytest.mark.parametrize('name', ['0012', 'NA', 'a,"b'])
def test_domains_with_awkward_names_are_resumed(world, tmp_path, name):
    rows = pool(load_dataset('market1501', world, domain=name))
    begin(rows, config(), tmp_path/'run')
    begin(rows, config(), tmp_path/'run', resume=True)
    with pytest.raises(ValueError, match='other images'):
        begin(rows.assign(domain='12'), config(), tmp_path/'run', resume=True)


@pytest.mark.parametrize('name, text, words', [
    ('config.json', '{', 'config.json cannot be read'), ('config.json', '{"clip": 3}', 'config.json cannot be read'),
    ('records.csv', '', 'records.csv cannot be read'), ('records.csv', 'path', 'other images'),
    ('records.csv', None, 'records.csv cannot be read.*No such file')])
def test_damaged_files(world, copied, name, text, words):
    if text is None: (copied/name).unlink()
    else: (copied/name).write_text(text)
    with pytest.raises(ValueError, match=words): begin(rows_of(world), config(), copied, resume=True)


def test_relative_paths_are_kept_as_absolute_ones(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world.parent)
    begin(rows_of(Path(world.name)), config(cache=tmp_path/'cache'), tmp_path/'run')
    records = pd.read_csv(tmp_path/'run'/'records.csv')
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in records['path'])
    assert config_from(json.loads((tmp_path/'run'/'config.json').read_text())).cache == str(tmp_path/'cache')
    (tmp_path/'run'/'records.csv').unlink()                                    # killed before there were records
    begin(rows_of(world), config(cache=tmp_path/'cache'), tmp_path/'run', resume=True)
    assert (tmp_path/'run'/'records.csv').exists()


def test_killed_before_there_was_a_config(world, tmp_path):
    "It counts as empty."
    out = tmp_path/'run'
    out.mkdir()
    (out/'.config.json.1a2b3c4d.part').write_text('{')
    begin(rows_of(world), config(), out)
    assert {p.name for p in out.iterdir()} == {'config.json', 'records.csv'}


@pytest.mark.parametrize('deletions', [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 3, 4, 5))])
def test_killed_while_an_old_run_is_replaced(world, copied, deletions):
    "After any number of deletions: other images are never given the old weights, and overwriting works."
    rows = rows_of(world)
    other = rows[rows['label'] < 8].reset_index(drop=True)
    c = only(config(), adapt=1, prompts=1, finetune=1)
    left = deletions
    def counted(delete):
        def one_less(path, *args, **options):
            nonlocal left
            if copied in Path(path).parents and not Path(path).name.startswith('.'): left -= 1
            if left < 0: raise KeyboardInterrupt
            return delete(path, *args, **options)
        return one_less
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, 'unlink', counted(Path.unlink))
        patch.setattr(shutil, 'rmtree', counted(shutil.rmtree))
        begin(other, c, copied, overwrite=True)
    if deletions: assert not checkpoints(copied/'checkpoint')
    try: assert begin(other, config(), copied, resume=True).restored is None
    except ValueError as error: assert 'other images' in str(error)
    begin(other, c, copied, overwrite=True)


def test_what_a_killed_run_was_writing_is_cleared_away(world, copied):
    leftovers = '.history.csv.77', '.results.csv.1a2b3c4d.part', 'model/.model.safetensors.77.part'
    for name in leftovers: (copied/name).write_text('x')
    begin(rows_of(world), config(), copied, resume=True)
    assert not list(copied.rglob('.*'))


def test_collapse_is_said_once(world, tmp_path, capfd):
    "A tower whose features are all alike: everybody is at one point."
    c = only(config(), adapt=3)
    c = replace(c, adapt=replace(c.adapt, lr=0., head_lr=0.))
    def flatten(done):
        done.run.model.clip.visual.ln_post.weight.data.zero_()
    fit(rows_of(world), c, tmp_path/'run', on_step=flatten)
    assert capfd.readouterr().err.count('the embeddings are collapsing') == 1


@pytest.mark.slow
def test_tensorboard(world, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = fit(rows_of(world), only(config(track='tensorboard'), adapt=3), tmp_path/'run')
    found = []
    for file in (tmp_path/'run').rglob('events*'):
        events = EventAccumulator(str(file))
        events.Reload()
        if 'adapt/loss' in events.Tags()['scalars']: found += [e.value for e in events.Scalars('adapt/loss')]
    assert np.allclose(found, run.history['loss'])


@pytest.mark.slow
def test_weights_and_biases(world, tmp_path, monkeypatch):
    "A run that is resumed goes on under its name, one that is replaced has a new one."
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.chdir(tmp_path)
    c, out = only(config(track='wandb'), adapt=2), tmp_path/'run'
    def names(): return {p.stem for p in out.rglob('*.wandb')}
    fit(rows_of(world), c, out)
    first = names()
    assert len(first) == 1 and not (tmp_path/'wandb').exists()
    log, patience = next(out.rglob('*.wandb')), time.time() + 60
    while b'adapt/loss' not in log.read_bytes() and time.time() < patience: time.sleep(.1) # another process writes it
    assert b'adapt/loss' in log.read_bytes()
    fit(rows_of(world), c, out, resume=True)
    assert names() == first
    fit(rows_of(world), c, out, overwrite=True)
    assert len(names()) == 1 and not names() & first


def test_overwriting_keeps_what_no_run_wrote(world, copied):
    "Data and notes that lie in a run folder are not the run's, nor is what a link leads to."
    (copied/'data').mkdir()
    shutil.copytree(world, copied/'data'/'town')
    (copied/'link').symlink_to(world)
    (copied/'notes.txt').write_text('mine')
    before = contents(copied/'data')
    rows = pool(load_dataset('market1501', copied/'data'/'town'))
    with pytest.warns(UserWarning, match='keeps it: data, notes.txt$'): begin(rows, config(), copied, overwrite=True)
    assert contents(copied/'data') == before and (copied/'notes.txt').read_text() == 'mine'
    assert {p.name for p in copied.iterdir()} == {'config.json', 'records.csv', 'data', 'notes.txt'}


def test_a_run_does_not_delete_what_it_starts_from(world, copied):
    before = contents(copied)
    for name in ('model', 'model/model.safetensors'):
        with pytest.raises(ValueError, match='lies in .*which would be overwritten'):
            check_folder(copied, config(init=str(copied/name)), False, True)
    assert contents(copied) == before
    check_folder(copied, config(init=str(copied)+'2/model'), False, True)


def test_another_set_with_the_same_names_and_sizes_is_refused(world, tmp_path):
    "Uncompressed pictures have one size; two sites number their people alike."
    for site, seed in (('here', 0), ('there', 1)):
        for i in range(32):
            (tmp_path/site/f'{i // 4:03d}').mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([seed, i]).integers(0, 256, (16, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path/site/f'{i // 4:03d}'/f'{i}.bmp')
    def rows(site): return pool(load_dataset('folder', tmp_path/site, domain='x', distractors=False))
    here, there = rows('here'), rows('there')
    c = only(config(), adapt=1)
    run = fit(here, c, tmp_path/'run')
    run.model.save(tmp_path/'model')
    with pytest.raises(ValueError, match='other images'): begin(there, c, tmp_path/'run', resume=True)
    with pytest.raises(ValueError, match='other images'):
        begin(there, replace(c, init=str(tmp_path/'model')), tmp_path/'new')
    begin(here.sample(frac=1., random_state=0), replace(c, init=str(tmp_path/'model')), tmp_path/'new')
