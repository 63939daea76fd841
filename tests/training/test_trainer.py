"The trainer from outside: whole runs, learning, kills, several processes, and what goes wrong on the way."
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from runs import one_thread_one_cache # noqa: F401, a fixture for the whole file
from runs import begin_two, config, ended, held, killed_at, only, rows_of, said_by_two, same, started, stopped, two
from runs import watched, weights
from safetensors.torch import load_file

from clip_dfgs.training import trainer
from clip_dfgs.training.checkpoints import checkpoints
from clip_dfgs.utils.files import TrainError
from clip_dfgs.training.config import TrainConfig
from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.inference.evaluator import evaluate_records, results_table
from clip_dfgs.data.loader import make_loader
from clip_dfgs.inference.embed import make_accelerator
from clip_dfgs.data.transforms import Augment
from clip_dfgs.data.image_io import ImageError
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import render_domain
from clip_dfgs.training.run import read_rows
from clip_dfgs.training.losses import triplet_health
from clip_dfgs.training.step import image_losses, loaded
from clip_dfgs.training.trainer import fit


# Learning

@pytest.mark.slow
def test_each_stage_learns_what_it_is_for(tmp_path):
    "Sixty rendered people, half of them unseen: adapting helps, prompts fit their people, fine-tuning loses nothing."
    records = render_domain(tmp_path/'town', seed=7, identities=60, cameras=4, progress=False)
    cache = tmp_path/'cache'
    def percent(model): return 100*evaluate_records(model, records, cache=cache)['town'].mAP
    c = TrainConfig(precision='no', cache=str(cache))
    c = replace(c, adapt=replace(c.adapt, steps=60, batch=32), prompts=replace(c.prompts, steps=100, batch=64),
                finetune=replace(c.finetune, steps=40, batch=32))
    after, fitted = {}, []
    def watch(done):
        if done.step == done.steps: after[done.stage] = percent(done.run.model)
        if done.stage == 'prompts': fitted.append(done.parts['i2t'].item())
    fit(records, c, tmp_path/'run', on_step=watch)
    assert after['adapt'] >= percent(ReIDModel.create('pedestrians', 'pedestrians')) + 4
    assert np.mean(fitted[-10:]) < .7*np.mean(fitted[:3])
    assert after['prompts'] == after['adapt'] and after['finetune'] >= after['adapt']


def part(name): return 'clip.visual' if name.startswith('clip.visual') else name.split('.')[0]


def test_what_on_step_sees(world, whole, tmp_path):
    "Every step; what a stage does not train stays as it was; the caller's random stream too; watching changes nothing."
    seen, states, stream = [], [ReIDModel.create('pedestrians', None, num_ids=12).state_dict()], torch.get_rng_state()
    def watch(done):
        seen.append(done)
        if done.step == done.steps: states.append({k: v.clone() for k, v in done.run.model.state_dict().items()})
    run = fit(rows_of(world), config(), tmp_path/'run', on_step=watch)
    assert [(s.stage, s.step) for s in seen] == [*zip(run.history['stage'], run.history['step'])]
    assert [s.loss.item() for s in seen] == pytest.approx(run.history['loss'])
    for s in seen:
        if s.stage != 'prompts': assert s.labels.tolist() == run.records['label'].iloc[s.rows].tolist()
    moved = [{part(name) for name in a if not torch.equal(a[name], b[name])} for a, b in zip(states, states[1:])]
    image = {'clip.visual', 'neck_pooled', 'neck_projected'}
    assert moved == [image, {'prompts'}, image]
    assert torch.equal(stream, torch.get_rng_state()) and same(weights(tmp_path/'run'), weights(whole))


def test_the_history_keeps_means_by_kind_of_batch(world, tmp_path):
    "By the definition, from the features of every step; the logged batches alone would be of one kind."
    seen = []
    def watch(done):
        violated = triplet_health(done.features.detach(), done.labels, normalize=True)['violated_triplets']
        seen.append((done.kind, violated, done.loss.item()))
    c = only(config(log_steps=4, pk_ratio=.5, k=3), finetune=8)
    history = fit(rows_of(world), c, tmp_path/'run', on_step=watch).history
    assert {kind for kind, *_ in seen} == {'random', 'walked'}
    for row, part in zip(history.to_dict('records'), (seen[:4], seen[4:])):
        for kind in ('random', 'walked'):
            found = [violated for k, violated, _ in part if k == kind]
            if found: assert row[f'violated_{kind}'] == pytest.approx(np.mean(found), abs=1e-6)
        assert row['mean_loss'] == pytest.approx(np.mean([loss for *_, loss in part]), rel=1e-5)
        assert row['loss'] == pytest.approx(part[-1][2], rel=1e-6)


@pytest.mark.parametrize('sampler, every, stop_at', [('gs', 3, 4), *(
    pytest.param(*case, marks=pytest.mark.slow) for case in (('gs', 3, 3), ('dfgs', 3, 4), ('dfgs', None, 4)))])
def test_graphs_are_renewed_by_steps(world, tmp_path, monkeypatch, sampler, every, stop_at):
    "And a run that stopped where a graph is renewed, or in the middle of its time, ends in the same weights."
    made, at = [], []
    def counted(*args, **options):
        made.append(at[-1] if at else 0)
        return update(*args, **options)
    update = trainer.update_graph
    monkeypatch.setattr(trainer, 'update_graph', counted)
    c, rows = only(config(sampler=sampler, graph_every_steps=every, k=3), finetune=8), rows_of(world)
    run = fit(rows, c, tmp_path/'straight', on_step=lambda done: at.append(done.step))
    assert made == [0, 3, 6] if every else len(made) == run.history['epoch'].nunique()
    again = stopped(rows, replace(c, checkpoint_steps=stop_at), tmp_path/'run', stop_at)
    assert same(again.model.state_dict(), run.model.state_dict())


@pytest.mark.parametrize('change', [
    dict(order='paper'), dict(order='released'), dict(shuffle_neighbors=False), dict(curriculum=(2, 3)),
    dict(pk_ratio=.5)])
def test_settings_reach_the_sampler(world, change):
    "The plan is another one than that of the defaults."
    graph, plans = torch.tensor([[(i + j) % 12 for j in range(1, 7)] for i in range(12)]), []
    for told in (config(), config(**change)):
        sampler = trainer.make_sampler('dfgs', told, 'finetune', rows_of(world), make_accelerator('no'))
        sampler.neighbors = graph
        plans.append([list(rows) for rows in sampler])
    assert plans[0] != plans[1]


@pytest.mark.parametrize('graph, rule', [('image', 'within'), ('text', 'across')])
def test_a_rule_about_source_domains_reaches_every_graph(world, tmp_path, monkeypatch, graph, rule):
    tables = [load_dataset('market1501', world, domain='a')]
    tables.append(render_domain(tmp_path/'b', seed=5, identities=8, cameras=2, test_share=0., progress=False))
    graphs = []
    monkeypatch.setattr(trainer, '_describe_epoch', lambda *given: graphs.append(given[2].neighbors))
    told = only(config(graph=graph, neighbors_from=rule, k=4), prompts=1, finetune=1)
    records = fit(tables, told, tmp_path/'run').records
    domain = records.groupby('label')['domain'].first().to_numpy()
    assert graphs and (graphs[0].numpy() != -1).all() and set(domain) == {'a', 'b'}
    same = domain[graphs[0]] == domain[:, None]
    assert same.all() if rule == 'within' else not same.any()


def test_batches_of_one_source_domain(world, tmp_path):
    "In the last stage, not in the first; at every step, seen by the images that were loaded."
    tables = [load_dataset('market1501', world, domain='a')]
    tables.append(render_domain(tmp_path/'b', seed=5, identities=8, cameras=2, test_share=0., progress=False))
    told = only(config(sampler='pk', one_domain=True), adapt=8, finetune=8)
    seen = dict(adapt=[], finetune=[])
    run = fit(tables, told, tmp_path/'run', on_step=lambda done: seen[done.stage].append(done.rows))
    domain = run.records['domain'].to_numpy()
    mixed = {stage: [len(set(domain[rows])) for rows in all_rows] for stage, all_rows in seen.items()}
    assert set(mixed['finetune']) == {1} and {domain[rows[0]] for rows in seen['finetune']} == {'a', 'b'}
    assert 2 in mixed['adapt']


def test_one_camera_and_a_tower_without_words(world, tmp_path):
    rows = rows_of(world)
    rows = rows[rows['cam_label'] == 0].reset_index(drop=True)
    c = config(clip='timm:resnet18', image_size=(64, 32))
    assert len(fit(rows, only(c, adapt=1, finetune=1), tmp_path/'run').history) == 2
    with pytest.raises(ValueError, match='no text encoder'): fit(rows, replace(c, graph='text'), tmp_path/'no')


@pytest.mark.parametrize('label', [lambda r: pd.factorize(r['pid'])[0], lambda r: 0, lambda r: r['pid'].astype(str)])
def test_a_column_of_the_user_s_own_called_label(world, label):
    "Only `pool` makes a pooled table: the train rows are trained on, as they are without the column."
    records, gaps = load_dataset('market1501', world), rows_of(world).assign(label=lambda r: 2*r['label'])
    with pytest.raises(ValueError, match='of the domain'): trainer._training_rows([records]*2)
    own = trainer._training_rows(records.assign(label=label(records), cam_label=records['camid']))
    bare = rows_of(world)
    assert set(own['split']) == {'train'}
    assert own['label'].tolist() == bare['label'].tolist() == trainer._training_rows(gaps)['label'].tolist()


# A model to start from

@pytest.fixture(scope='module')
def first(world, tmp_path_factory):
    "A run of one step on the rendered domain; its model is one to start from."
    out = tmp_path_factory.mktemp('first')/'run'
    fit(rows_of(world), only(config(), adapt=1), out)
    return out


@pytest.fixture
def saved(first): return first/'model'


def other_people(rows): return rows.assign(pid=rows['pid'] + 1000)
def other_domain(rows): return rows.assign(domain='elsewhere')
def other_order(rows): return rows.assign(label=(rows['label'] + 1) % 12)
def fewer(rows): return rows[rows['label'] < 11].reset_index(drop=True)


@pytest.mark.parametrize('change, words', [
    (other_people, 'other identities'), (other_domain, 'other identities'), (other_order, 'other identities'),
    (fewer, 'other identities')])
def test_a_saved_model_of_other_people_is_refused(world, saved, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        fit(change(rows_of(world)), only(config(init=str(saved)), finetune=1), tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_other_people_of_the_same_numbers_are_refused(world, first, saved, tmp_path):
    "Another rendered domain under the same name: the same numbers, cameras and names of files."
    render_domain(tmp_path/'town', seed=401, identities=24, cameras=3, progress=False)
    others = rows_of(tmp_path/'town')
    assert others.drop(columns='path').equals(rows_of(world).drop(columns='path'))
    with pytest.raises(ValueError, match='other images'):
        fit(others, only(config(init=str(saved)), finetune=1), tmp_path/'run')
    with pytest.raises(ValueError, match='other images'):
        fit(others, only(config(), adapt=1), first, resume=True)


def test_a_saved_model_is_the_one_that_was_asked_for(world, saved, tmp_path):
    for asked in (dict(clip='ViT-B-32', pretrained='openai'), dict(image_size=(128, 64)), dict(cameras=True)):
        name = next(iter(asked))
        with pytest.raises(ValueError, match=f'has {name} .*, not'):
            fit(rows_of(world), only(config(init=str(saved), **asked), finetune=1), tmp_path/'run')


def test_a_saved_model_that_does_not_say_on_whom(world, tmp_path):
    ReIDModel.create('pedestrians', None, num_ids=12, image_size=(64, 32)).save(tmp_path/'saved')
    with pytest.warns(UserWarning, match='does not say what it was trained on'):
        fit(rows_of(world), only(config(init=str(tmp_path/'saved')), finetune=1), tmp_path/'run')


# Precision, memory, compiling

def test_losses_are_float32(world, tmp_path):
    "In bf16 the network computes in bf16; what it returns and the loss are float32."
    seen = []
    c = only(config(precision='bf16'), adapt=1)
    c = replace(c, adapt=replace(c.adapt, id_weight=0., triplet_on=('projected',)))
    fit(rows_of(world), c, tmp_path/'run', on_step=seen.append)
    features, loss = seen[0].features.detach(), seen[0].loss.detach()
    assert features.dtype == loss.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())
    class Last: projected = features
    again = image_losses(Last, None, seen[0].labels, c.adapt)
    assert loss.item() == pytest.approx(sum(again.values()).item(), rel=1e-6)


@pytest.mark.parametrize('precision, tolerance', [('no', 1e-5), pytest.param('bf16', 1e-2, marks=pytest.mark.slow)])
def test_less_memory_same_numbers(world, tmp_path, precision, tolerance):
    def losses(name, **more):
        c = only(config(precision=precision, **more), adapt=2, prompts=1)
        return fit(rows_of(world), c, tmp_path/name).history['loss']
    assert np.allclose(losses('kept'), losses('again', recompute=True), rtol=tolerance)


@pytest.mark.slow
def test_compiled_gives_the_same_losses(world, tmp_path):
    def losses(name, **more): return fit(rows_of(world), only(config(**more), adapt=3), tmp_path/name).history['loss']
    assert np.allclose(losses('eager'), losses('compiled', compile=True), rtol=1e-4) # rounding grows


# Killed, and going on

def compared(out, whole):
    "The weights, and what the history says of steps, are the same to the bit."
    assert same(weights(out), weights(whole)) and not any(out.rglob('.*'))
    columns = ['stage', 'epoch', 'step', 'loss', 'embedding_std']
    a, b = (pd.read_csv(folder/'history.csv')[columns] for folder in (out, whole))
    pd.testing.assert_frame_equal(a, b)


def test_killed_run_ends_in_the_same_weights(resumed, whole): compared(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['adapt', 'prompts', 'part'])
def test_killed_in_every_stage(world, whole, tmp_path, stage):
    "And during the writing of a checkpoint."
    def part(out): return any((out/'checkpoint').glob('.part*')) and any((out/'checkpoint').glob('[0-9]*'))
    killed_at(world, tmp_path/'run', config(), stage, 3, part if stage == 'part' else None)
    fit(rows_of(world), config(), tmp_path/'run', resume=True)
    compared(tmp_path/'run', whole)


@pytest.mark.slow
def test_stopped_in_a_later_epoch(world, tmp_path):
    "GS carries pointers across epochs; they are in the checkpoint."
    c, rows = only(config(sampler='gs'), finetune=15), rows_of(world)
    straight = fit(rows, c, tmp_path/'straight')
    assert straight.history['epoch'].max() >= 1
    again = stopped(rows, replace(c, checkpoint_steps=13), tmp_path/'run', 13)
    assert same(again.model.state_dict(), straight.model.state_dict())


def test_damaged_and_going_on(world, whole, tmp_path, capsys):
    "The newest checkpoint is cut off; the one before it leads to the same weights."
    out = tmp_path/'run'
    shutil.copytree(whole, out)
    shutil.rmtree(out/'model')
    newest, before = checkpoints(out/'checkpoint')
    (newest/'tensors.safetensors').write_bytes((newest/'tensors.safetensors').read_bytes()[:1000])
    fit(rows_of(world), config(), out, resume=True)
    assert same(weights(out), weights(whole)) and 'falling back to the one before it' in capsys.readouterr().err
    assert {p.name for p in (out/'checkpoint').iterdir()} == {before.name, newest.name, f'damaged-{newest.name}'}


# What goes wrong on the way

def test_a_loss_that_is_not_a_number_stops_with_the_place(world, tmp_path):
    c = only(config(), adapt=5)
    c = replace(c, adapt=replace(c.adapt, lr=1e30, head_lr=1e30, clip_norm=0.))
    words = (r'^adapt, step \d+: the loss is \S+; batch of 16 images, first \S+town\S+, all in \S+bad_batch.csv; '
             r'last good checkpoint: \S+; try a lower learning rate$')
    seen = []
    with pytest.raises(TrainError, match=words): fit(rows_of(world), c, tmp_path/'run', on_step=seen.append)
    bad = pd.read_csv(tmp_path/'run'/'bad_batch.csv')
    assert len(bad) == 16 and len(seen) < 5


def test_gradients_that_no_loss_scale_helps(world, tmp_path):
    "The loss stays finite, every step is skipped, nothing is learned: fp16's scaler on the CPU stands in for a GPU's."
    run = trainer._begin(rows_of(world), only(config(), adapt=5), tmp_path/'run')
    run.accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=4.)
    run.model.clip.visual.proj.register_hook(lambda gradient: gradient*float('inf'))
    words = (r'^adapt, step 3: the gradients overflow whatever the loss scale \(now 5.0e-01\).*'
             r'last good checkpoint: \S+; use precision bf16')
    with pytest.raises(TrainError, match=words): trainer._train(run, 'adapt')
    run.accelerator.scaler = None


def test_full_disk(world, tmp_path):
    out, err = tmp_path/'run', tmp_path/'err'
    assert ended(started(world, out, config(), err=err, largest=20_000_000)) == 2
    last = err.read_text().strip().splitlines()[-1]
    words = r'TrainError: checkpoint in \S+ could not be written \(.*File too large.*\); the last good one is none'
    assert re.search(words, last) and not list((out/'checkpoint').iterdir())   # nothing half-written


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_images_lost_on_the_way(world, tmp_path, workers):
    "Nothing is cached, and the images go away while the run goes on."
    town = tmp_path/'town'
    shutil.copytree(world, town)
    rows = rows_of(town)
    def lose(done):
        for path in rows['path']: Path(path).unlink(missing_ok=True)
    c = only(config(cache='off', workers=workers), adapt=40)
    with pytest.raises(ImageError, match=r'^image \S+\.jpg is missing$'):
        fit(rows, c, tmp_path/'run', on_step=lose)


def test_a_worker_that_dies():
    class Dying(torch.utils.data.Dataset):
        def __len__(self): return 2
        def __getitems__(self, rows): os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(TrainError, match='a process that loads images ended'):
        list(loaded(make_loader(Dying(), [[0, 1]], workers=1)))


# Several processes

def test_two_processes_evaluate_like_one(world, pair):
    "Features are embedded by both; every process has the results that one has alone, and one table is written."
    records = load_dataset('market1501', world)
    alone = results_table(evaluate_records(ReIDModel.load(pair/'model'), records, ranks=(1, 5)))
    for r in range(2):
        found = pd.read_csv(pair.with_name(f'pair.{r}.csv'), index_col='domain')
        pd.testing.assert_frame_equal(found, alone, check_exact=False, rtol=1e-12)
    table = pd.read_csv(pair/'validation.csv')
    assert not table.duplicated(['stage', 'step', 'domain']).any() and len(table) == 4


@pytest.mark.slow
def test_two_killed_processes_go_on(world, pair, tmp_path):
    out, c = tmp_path/'run', watched(select='best', checkpoint_steps=4)
    both = begin_two(world, out, c, validate=True)
    def reached(): return any(r['stage'] == 'finetune' and r['step'] >= 3 for r in read_rows(out/'history.csv'))
    while not reached():
        assert all(p.is_alive() for p in both)
        time.sleep(.002)
    for p in both:
        p.kill()
        p.join()
    assert not (out/'model').exists()
    assert two(world, out, c, resume=True, validate=True) == [0, 0], said_by_two(out)
    assert same(weights(out), weights(pair))


def test_two_processes_learn_what_one_learns_with_twice_the_batch(world, tmp_path):
    "Losses over the gathered batch, no batch norm in the way: the same numbers but for rounding."
    c = only(config(gather=True, augment=Augment(flip=0, pad=0, erase=0), sampler='pk'), prompts=3, finetune=3)
    c = replace(c, prompts=replace(c.prompts, batch=12), finetune=replace(c.finetune, id_weight=0., batch=8))
    out = tmp_path/'two'
    assert two(world, out, c) == [0, 0], said_by_two(out)
    one = replace(c, gather=False, sampler='double_batches:DoubleBatches', prompts=replace(c.prompts, batch=24))
    fit(rows_of(world), one, tmp_path/'one')
    a, b = (pd.read_csv(tmp_path/name/'history.csv') for name in ('one', 'two'))
    assert len(a) == len(b) == 6
    assert np.allclose(a[['loss', 'embedding_std']], b[['loss', 'embedding_std']], atol=1e-3, equal_nan=True)
    a, b = weights(tmp_path/'one'), weights(out)
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=2e-3) for k in a if 'neck' not in k)
    assert pd.read_csv(out/'sampler.csv').images.eq(1).all() and not any(out.rglob('.*'))


def test_two_processes_are_refused_together(world, pair):
    "The folder exists: neither waits for the other, nothing is touched, and one process alone cannot go on."
    c, out = watched(select='best'), pair
    def contents(): return {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    before = contents()
    assert two(world, out, c, validate=True) == [2, 2] and all('not empty' in said for said in said_by_two(out))
    rows, validate = held(world)
    with pytest.raises(ValueError, match='processes=2, not 1'): fit(rows, c, out, validate=validate, resume=True)
    assert before == contents()


@pytest.mark.slow
def test_two_processes_stop_together(world, tmp_path):
    "A loss that is not a number on one of them: one line from each."
    assert two(world, tmp_path/'nan', config(checkpoint_steps=2), poison='1') == [2, 2]
    of_zero, of_one = (said.strip().splitlines()[-1] for said in said_by_two(tmp_path/'nan'))
    place = r'TrainError: adapt, step 2: the loss '
    assert re.match(place + r'of process 1 is not a number.*last good checkpoint: \S+000000', of_zero)
    assert re.match(place + r'is nan; batch of 16 images.*bad_batch.csv', of_one)
    assert (tmp_path/'nan'/'bad_batch.csv').exists()


@pytest.mark.slow
def test_two_processes_stop_together_where_the_disk_is_full(world, tmp_path):
    assert two(world, tmp_path/'full', config(), largest=20_000_000) == [2, 2]
    for said in said_by_two(tmp_path/'full'):
        assert re.match(r'TrainError: checkpoint in \S+ could not be written', said.strip().splitlines()[-1])


@pytest.mark.slow
def test_two_processes_and_a_feature_that_no_loss_reads(world, tmp_path):
    c = only(config(), adapt=3)
    c = replace(c, adapt=replace(c.adapt, id_weight=0., triplet_on=('pooled',)))
    assert two(world, tmp_path/'run', c) == [0, 0], said_by_two(tmp_path/'run')
    start = ReIDModel.create('pedestrians', None, num_ids=12).state_dict()
    end = weights(tmp_path/'run')
    assert torch.equal(start['clip.visual.proj'], end['clip.visual.proj'])
    assert not torch.equal(start['clip.visual.conv1.weight'], end['clip.visual.conv1.weight'])


@pytest.mark.slow
def test_batch_norm_on_two_processes(world, tmp_path):
    "Each sees other images, so its statistics are its own until they agree: graph, results and model need one set."
    c, out = only(config(clip='timm:resnet10t', image_size=(64, 32)), adapt=3, finetune=3), tmp_path/'two'
    assert two(world, out, c, test=True) == [0, 0], said_by_two(out)
    start = ReIDModel.create('timm:resnet10t', None, num_ids=12, image_size=(64, 32)).state_dict()
    for r in range(2): assert same(load_file(tmp_path/f'two.{r}.safetensors'), weights(out))
    assert any('running_mean' in k and not torch.equal(start[k], v) for k, v in weights(out).items())


# Photographs

@pytest.mark.slow
def test_real_images(real, tmp_path):
    "A minute on photographs: train on a few identities of CUHK03, test on COL780."
    def tree(word):
        name = next(folder.name for folder in real.iterdir() if word in folder.name)
        return next(p.parent for p in (real/name).rglob('query'))
    rows = load_dataset('market1501', tree('cuhk'))
    train = rows[rows['split'] == 'train']
    train = train[train['pid'].isin(sorted(train['pid'].unique())[:60])].reset_index(drop=True)
    c = TrainConfig(precision='no', cache=str(tmp_path/'cache'))
    c = replace(c, adapt=replace(c.adapt, steps=10), prompts=replace(c.prompts, steps=5),
                finetune=replace(c.finetune, steps=5))
    result = next(iter(fit(train, c, tmp_path/'run').evaluate(load_dataset('market1501', tree('col'))).values()))
    assert result.queries == 148 and result.mAP > 3*8/1184                     # three times chance
