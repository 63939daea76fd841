"Held-out identities of the sources: evaluated on the way, whatever happens to the run, and the best model kept."
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from runs import one_thread_one_cache # noqa: F401, a fixture for the whole file
from runs import config, held, killed_at, only, rows_of, same, watched, weights

from clip_dfgs.training.checkpoints import checkpoints
from clip_dfgs.utils.files import TrainError
from clip_dfgs.inference.evaluator import evaluate_records
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.training.run import best_step, read_rows
from clip_dfgs.training.trainer import fit


@pytest.fixture(scope='module')
def seen(world, tmp_path_factory):
    "A run with held-out identities that keeps the best model; what was found, and the weights, at each step."
    rows, validate = held(world)
    found, states = [], {}
    def look(done):
        if done.stage == 'finetune': states[done.step] = {k: v.clone() for k, v in done.run.model.state_dict().items()}
        if done.stage == 'prompts' or done.step % 3 and done.step != done.steps: return
        for domain, r in evaluate_records(done.run.model, validate).items():
            found.append((done.stage, done.step, domain, r.mAP, r.cmc[1], r.mINP, r.queries))
    out = tmp_path_factory.mktemp('held')/'run'
    return fit(rows, watched(select='best'), out, on_step=look, validate=validate), found, states


@pytest.fixture
def held_run(seen): return seen[0].out


def test_ranks_are_those_of_the_model_at_that_step(seen):
    "Every third step and at the end of both image stages; by `evaluate_records` on the model as it is then."
    run, found, _ = seen
    table = pd.read_csv(run.out/'validation.csv')
    pd.testing.assert_frame_equal(table, pd.DataFrame(found, columns=table.columns), rtol=1e-12)
    assert [*zip(table['stage'], table['step'])] == [('adapt', 3)] + [('finetune', n) for n in (3, 6, 9)]
    assert run.validation.to_dict('records') == read_rows(run.out/'validation.csv')
    assert table['queries'].eq(3).all() and set(table['domain']) == {'town'}


def test_the_best_is_the_model_of_the_best_rank(seen, world):
    run, _, states = seen
    table = run.validation[run.validation['stage'] == 'finetune']
    best = table['step'].iloc[np.argmax(table['mAP'])]                         # the earliest of equals
    assert best != 9                                                           # or the test shows nothing
    kept = ReIDModel.load(run.out/'model').state_dict()
    assert same(kept, run.model.state_dict()) and all(torch.equal(kept[k], states[best][k]) for k in kept)
    result = next(iter(evaluate_records(run.model, held(world)[1]).values()))
    assert result.mAP == pytest.approx(table['mAP'].max())


def test_ranking_changes_nothing_of_the_training(world, seen, tmp_path):
    "The last weights are those of a run that nobody evaluates; without `best` no model is kept beside them."
    alone = fit(held(world)[0], watched(validate_steps=0), tmp_path/'alone')
    assert same(alone.model.state_dict(), seen[2][9]) and not (tmp_path/'alone'/'validation.csv').exists()
    assert alone.history['loss'].equals(seen[0].history['loss']) and not (tmp_path/'alone'/'best').exists()


@pytest.mark.parametrize('norm', [pytest.param('live', marks=pytest.mark.slow), 'frozen'])
def test_batch_norm_and_modes_are_left_alone(world, tmp_path, norm):
    "Averages of batch norm do not see held-out identities, and a frozen tower stays frozen."
    c = only(config(clip='timm:resnet10t', validate_steps=1, checkpoint_steps=0), finetune=2)
    c = replace(c, finetune=replace(c.finetune, norm=norm))
    ranked = fit(held(world)[0], c, tmp_path/'ranked', validate=held(world)[1])
    alone = fit(held(world)[0], replace(c, validate_steps=0), tmp_path/'alone')
    assert same(ranked.model.state_dict(), alone.model.state_dict())


LATER = [pytest.param(at, marks=pytest.mark.slow) for at in ('adapt', 'best')]

@pytest.mark.parametrize('moment', ['finetune', *LATER])
def test_killed_run_ends_in_the_same_ranks_and_weights(world, held_run, tmp_path, moment):
    "Killed really, anywhere, also while the best model is being written; no rank twice, none lost."
    out, c = tmp_path/'run', watched(select='best', checkpoint_steps=4)
    def writes_the_best(out): return any((out/'best').glob('.part*'))
    reached = writes_the_best if moment == 'best' else None
    killed_at(world, out, c, moment, 5 if moment == 'finetune' else 2, reached, validate=True)
    fit(held(world)[0], c, out, resume=True, validate=held(world)[1])
    assert same(weights(out), weights(held_run)) and not any(out.rglob('.*'))
    assert (out/'validation.csv').read_bytes() == (held_run/'validation.csv').read_bytes()
    fit(held(world)[0], c, out, resume=True, validate=held(world)[1])          # finished: the same once more
    assert same(weights(out), weights(held_run))


@pytest.mark.slow
@pytest.mark.parametrize('damaged', [False, True])
def test_the_best_at_each_checkpoint_is_not_lost(world, held_run, tmp_path, damaged):
    "A better model is found after the checkpoint; the run is cut off there, and the newer checkpoint may be damaged."
    rows, validate = held(world)
    c, out = watched(select='best', checkpoint_steps=2), tmp_path/'run'
    def stop(done):
        if (done.stage, done.step) == ('finetune', 7): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(rows, c, out, on_step=stop, validate=validate)
    ranks = read_rows(out/'validation.csv')
    assert best_step(ranks, last=4) != best_step(ranks)                        # or the test shows nothing
    assert {int(p.name) for p in (out/'best').iterdir()} == {best_step(ranks, last=4), best_step(ranks)}
    if damaged: (checkpoints(out/'checkpoint')[0]/'tensors.safetensors').write_bytes(b'')
    fit(rows, c, out, resume=True, validate=validate)
    assert same(weights(out), weights(held_run))
    assert (out/'validation.csv').read_bytes() == (held_run/'validation.csv').read_bytes()


def test_a_best_model_that_is_gone_is_told(world, held_run, tmp_path):
    rows, validate = held(world)
    shutil.copytree(held_run, tmp_path/'run')
    shutil.rmtree(tmp_path/'run'/'best')
    with pytest.raises(TrainError, match='is missing, the model of the best'):
        fit(rows, watched(select='best'), tmp_path/'run', resume=True, validate=validate)


def test_what_is_trained_on_is_refused(world, tmp_path):
    rows, validate = held(world)
    for table, words in ((rows_of(world).assign(split=['query', 'gallery']*36), 'of its identities are trained on'),
                         (validate.assign(domain='elsewhere', path=rows['path'].iloc[:len(validate)].to_numpy()),
                          'are trained on too')):
        with pytest.raises(ValueError, match=words) as error:
            fit(rows, config(), tmp_path/'run', validate=table)
        assert '\n' not in str(error.value) and str(error.value).startswith('validate: ')
    for change, words in ((dict(select='best'), "select 'best' needs validate"), (dict(validate_steps=2), 'needs val'),
                          (dict(select='bst'), "did you mean 'best'"), (dict(validate_steps=-1), 'at least 0'),
                          (dict(select='best', finetune=None), 'left out')):
        with pytest.raises(ValueError, match=words): fit(rows, replace(config(), **change), tmp_path/'run')
    with pytest.raises(ValueError, match='no query or gallery row'): fit(rows, config(), tmp_path/'run', validate=rows)
    assert not (tmp_path/'run').exists()


def test_a_run_goes_on_with_the_same_held_out_images(world, tmp_path):
    (rows, validate), c = held(world), only(config(), adapt=1)
    fit(rows, c, tmp_path/'with', validate=validate)
    fit(rows, c, tmp_path/'without')
    for name, given, words in (('with', None, 'made with validate'), ('without', validate, 'made without validate'),
                               ('with', validate.assign(camid=validate['camid'] + 1), 'other images')):
        with pytest.raises(ValueError, match=words): fit(rows, c, tmp_path/name, validate=given, resume=True)
