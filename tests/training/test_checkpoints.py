"Checkpoints: whole, or known to be damaged; where a run goes on."
import json
import re
from types import SimpleNamespace

import pytest
import torch
from runs import config, rows_of

from clip_dfgs.training import trainer
from clip_dfgs.training.checkpoints import checkpoints, last_good, read_checkpoint, restore
from clip_dfgs.utils.files import TrainError
from clip_dfgs.training.checkpoints import resume_point, save_point, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    "Two checkpoints, of steps 6 and 7."
    for step in (5, 6, 7):
        write_checkpoint(tmp_path/'checkpoint', dict(w=torch.full((99,), float(step))), dict(step=step))
    return tmp_path/'checkpoint'


def test_the_last_two_stay(folder):
    assert [p.name for p in checkpoints(folder)] == ['000002', '000001']
    tensors, state = read_checkpoint(folder)
    assert state['step'] == 7 and tensors['w'].eq(7).all() and list(tensors) == ['w']
    assert {p.name for p in checkpoints(folder)[0].iterdir()} == {'state.json', 'tensors.safetensors'}


def cut(f): f.write_bytes(f.read_bytes()[:50])
def flip(f): f.write_bytes(f.read_bytes()[:200] + bytes([f.read_bytes()[200] ^ 1]) + f.read_bytes()[201:])
def gone(f): f.unlink()
def another_step(f): f.write_text(f.read_text().replace('"step": 7', '"step": 5'))
def another_key(f): f.write_text(f.read_text().replace('"step": 7', '"stop": 7'))

@pytest.mark.parametrize('file, damage', [
    ('tensors.safetensors', cut), ('tensors.safetensors', flip), ('tensors.safetensors', gone),
    ('state.json', cut), ('state.json', gone), ('state.json', another_step), ('state.json', another_key)])
def test_damage_is_found_and_the_one_before_is_taken(folder, capsys, file, damage):
    newest = checkpoints(folder)[0]
    damage(newest/file)
    tensors, state = read_checkpoint(folder)
    assert state['step'] == 6 and tensors['w'].eq(6).all()
    said = capsys.readouterr().err
    assert len(re.findall(r'checkpoint \S+ is damaged \(.*falling back', said)) == 1
    assert sorted(p.name for p in folder.iterdir()) == ['000001', 'damaged-000002'] # set aside, not counted any more
    assert read_checkpoint(folder)[1] == state and not capsys.readouterr().err


def test_nothing_but_damage_starts_over(folder, capsys):
    for p in checkpoints(folder): (p/'state.json').write_text('[]')
    assert read_checkpoint(folder) is None and 'starting over' in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_read_now_is_left_alone(folder):
    "Not damage: the disk or the system refuses."
    f = checkpoints(folder)[0]/'tensors.safetensors'
    f.unlink()
    f.mkdir()
    before = sorted(folder.rglob('*'))
    with pytest.raises(TrainError, match=r'checkpoint \S+ cannot be read \(Is a directory\); it was left as it is'):
        read_checkpoint(folder)
    assert sorted(folder.rglob('*')) == before


def test_every_process_reads_the_checkpoint_the_main_one_found(folder):
    "Also where a damaged one is newer, or two hold the same tensors."
    first, second = (json.loads((folder/n/'state.json').read_text()) for n in ('000001', '000002'))
    for state in (first, second): assert read_checkpoint(folder, state)[1] == state
    (folder/'000002'/'tensors.safetensors').write_bytes(b'')
    assert read_checkpoint(folder, second) is None and (folder/'000002').exists()
    assert read_checkpoint(folder, first)[1] == first


def test_what_a_killed_run_was_writing_is_cleared_away(folder):
    (folder/'.part77').mkdir()
    write_checkpoint(folder, dict(w=torch.ones(1)), dict(step=8))
    assert sorted(p.name for p in folder.iterdir()) == ['000002', '000003']


@pytest.fixture
def run(world, tmp_path):
    "A run that has only begun."
    return trainer._begin(rows_of(world), config(), tmp_path/'run')


def saved(run, name, step, epoch, position, kept={}, done=False):
    "A checkpoint of a stage that stands there, read again."
    loop = SimpleNamespace(name=name, step=step, epoch=epoch, position=position, accelerator=run.accelerator,
                           model=run.model, config=run.config, batches=SimpleNamespace(state=kept),
                           optimizer=torch.optim.AdamW(run.model.parameters()))
    save_point(run.out, loop, done)
    return restore(run.out, run.model, run.accelerator)


def test_a_loss_scale_goes_on_also_into_the_next_stage(run):
    "A scaler on the CPU stands in for a GPU's."
    run.accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=512.)
    restored = saved(run, 'adapt', 1, 0, 1)
    run.accelerator.scaler = None
    assert [resume_point(restored, name)['scaler']['scale'] for name in ('adapt', 'finetune')] == [512., 512.]


def test_weights_that_are_not_finite_are_never_saved(run):
    saved(run, 'adapt', 1, 0, 1)
    with torch.no_grad(): run.model.clip.visual.proj[0, 0] = float('inf')
    with pytest.raises(TrainError, match=r'step 2: 1 tensors .*clip.visual.proj.* last good checkpoint: \S+000000'):
        saved(run, 'adapt', 2, 0, 2)
    assert read_checkpoint(run.out/'checkpoint')[1]['step'] == 1 and last_good(run.out).endswith('000000')
