"Short runs for the tests: settings, weights, and processes that are really killed."
import gc
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_dfgs.training.config import TrainConfig
from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.data.records import pool
from clip_dfgs.inference.evaluator import results_table
from clip_dfgs.data.records import hold_out
from clip_dfgs.utils.files import TrainError
from clip_dfgs.training.run import read_rows
from clip_dfgs.training.trainer import fit

SMALL_BATCH = dict(batch=16, instances=4)
gc.freeze() # what is imported stays, and is not searched at the end of each stage


@pytest.fixture(scope='module', autouse=True)
def one_thread_one_cache(tmp_path_factory):
    "For files that train: sums in one order, and a cache of their own. A file that imports it uses it."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CLIP_DFGS_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield
    torch.set_num_threads(threads)


def config(**more):
    "Seventeen steps of training with random weights on small images, a checkpoint every fourth step."
    usual = dict(pretrained=None, image_size=(64, 32), checkpoint_steps=4, log_steps=1, precision='no')
    c = TrainConfig(**usual | more)
    return replace(c, adapt=replace(c.adapt, steps=5, **SMALL_BATCH), prompts=replace(c.prompts, steps=5, batch=24),
                   finetune=replace(c.finetune, steps=7, **SMALL_BATCH))


def watched(**more):
    "The short run, held-out identities evaluated every third step; rates so high that it does not always get better."
    c = config(**dict(validate_steps=3, seed=1) | more)
    return replace(c, adapt=replace(c.adapt, steps=3), finetune=replace(c.finetune, lr=1e-2, steps=9))


def only(c, **steps):
    "The same settings with these stages alone, each of so many steps."
    stages = {name: replace(getattr(c, name), steps=n) for name, n in steps.items()}
    return replace(c, **dict(adapt=None, prompts=None, finetune=None) | stages)


def rows_of(world): return pool(load_dataset('market1501', world))


def held(world, share=.25):
    "Training rows of three quarters of the people, and query and gallery rows of the others."
    records = load_dataset('market1501', world)
    table = hold_out(records[records['split'] == 'train'], share)
    return pool(table), table[table['split'] != 'train']


def weights(out): return load_file(Path(out)/'model'/'model.safetensors')


def stopped(rows, c, out, at, stage='finetune', **options):
    "A run that is interrupted behind a step, and goes on."
    def stop(done):
        if (done.stage, done.step) == (stage, at + 1): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match='resume=True'): fit(rows, c, out, on_step=stop, **options)
    return fit(rows, c, out, resume=True, **options)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Processes are forked from a server that has imported everything and computed nothing: real processes, without a new
# interpreter for each.
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['clip_dfgs.training.trainer', 'clip_dfgs.cli.parser'])


def into(file):
    "Send stderr to a file."
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)


def job(world, out, c, resume=False, err=None, env={}, largest=None, test=False, poison=None, validate=False):
    "Train, in a process of its own; exit code 2 for an error of one line."
    os.environ.update(env)
    torch.set_num_threads(1)
    if err: into(err)
    rank = os.environ.get('RANK')
    if largest and rank in (None, '0'): resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)) # a full disk
    def spoil(done): # after its second step a process has a weight that is not a number
        if poison is not None and poison == rank and done.step == 2:
            with torch.no_grad(): done.run.model.clip.visual.proj.fill_(float('nan'))
    rows, held_out = held(world) if validate else (rows_of(world), None)
    try:
        run = fit(rows, c, out, resume=resume, on_step=spoil, validate=held_out)
        if test:
            state = {k: v.contiguous() for k, v in run.model.state_dict().items()}
            save_file(state, out.with_name(f'{out.name}.{rank}.safetensors'))
            results = run.evaluate(load_dataset('market1501', world), ranks=(1, 5))
            results_table(results).to_csv(out.with_name(f'{out.name}.{rank}.csv'))
    except (ValueError, TrainError) as e:
        print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True)
        os._exit(2)


def started(*args, **options):
    "A process that trains."
    p = processes.Process(target=job, args=args, kwargs=options)
    p.start()
    return p


def ended(p, seconds=600):
    "Its exit code."
    p.join(seconds)
    code = p.exitcode
    p.kill()
    p.join()
    return code


def killed_at(world, out, c, stage='finetune', step=5, reached=None, **options):
    "A process that is killed as soon as a step is in the history, or something else is so."
    def there():
        if reached: return reached(out)
        return any(r['stage'] == stage and r['step'] >= step for r in read_rows(out/'history.csv'))
    p, deadline = started(world, out, c, **options), time.monotonic() + 600
    while p.is_alive() and time.monotonic() < deadline:
        time.sleep(.002)
        if not there(): continue
        os.kill(p.pid, signal.SIGSTOP)                                         # hold still: what we saw is still so
        if there(): break
        os.kill(p.pid, signal.SIGCONT)
    assert there()
    p.kill()
    p.join()
    assert p.exitcode == -signal.SIGKILL and not (out/'model').exists()


def addresses():
    "What a launcher tells each of two processes."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    both = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                ACCELERATE_USE_CPU='true')
    return [both | dict(RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]


def begin_two(world, out, c, **options):
    "Two processes that train together; what they say goes to two files beside the run folder."
    return [started(world, out, c, err=out.with_name(f'{out.name}{r}'), env=env, **options)
            for r, env in enumerate(addresses())]


def two(world, out, c, **options):
    "Exit codes of two processes that train together."
    return [ended(p) for p in begin_two(world, out, c, **options)]


def said_by_two(out):
    "What each of two processes said."
    return [out.with_name(f'{out.name}{r}').read_text() for r in range(2)]
