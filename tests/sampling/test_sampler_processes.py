"The samplers where they are used: loader workers, two processes on gloo, accelerate."
import os
import socket
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import processes
from torch.utils.data import DataLoader, Dataset

from clip_dfgs.sampling.graph import nearest_identities
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler, update_graph

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(30), RNG.integers(3, 12, 30))
CAMERAS = RNG.integers(0, 3, len(LABELS))
PLACES = RNG.normal(size=(30, 6))[LABELS] + .3 * RNG.normal(size=(len(LABELS), 6))
IMAGES = torch.as_tensor(PLACES, dtype=torch.float32)
GRAPH = nearest_identities(torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), 5)


class Rows(Dataset):
    def __len__(self): return len(LABELS)
    def __getitem__(self, i): return IMAGES[i], int(LABELS[i]), i


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 30))


def sampler(**options): return DepthFirstGraphSampler(LABELS, CAMERAS, batch=16, instances=2, seed=4, **options)


@pytest.mark.parametrize('kind', [PKSampler, GraphSampler, DepthFirstGraphSampler])
def test_loader_with_workers_gives_the_planned_batches(kind):
    options = {} if kind is PKSampler else dict(neighbors=nearest_identities(torch.randn(30, 3), 7))
    s = kind(LABELS, CAMERAS, batch=16, instances=2, **options)
    planned = s.planned().tolist()
    loader = DataLoader(Rows(), batch_sampler=s, num_workers=2)
    assert len(loader) == len(planned)
    assert [rows.tolist() for _, _, rows in loader] == planned


def test_going_on_behind_a_loader_that_fetches_ahead():
    "The sampler is ahead of the training; the trainer's own count of batches is what has to be saved."
    s = sampler(neighbors=GRAPH)
    planned, found = s.planned().tolist(), []
    for _, _, rows in DataLoader(Rows(), batch_sampler=s, num_workers=1, prefetch_factor=4):
        found.append(rows.tolist())
        if len(found) == 5: break
    assert s.state_dict()['position'] > 5
    again = sampler(neighbors=GRAPH)
    again.load_state_dict(s.state_dict() | dict(position=5))
    assert found + seen(DataLoader(Rows(), batch_sampler=again)) == planned


@pytest.mark.parametrize('kind', [PKSampler, GraphSampler, DepthFirstGraphSampler])
@pytest.mark.parametrize('workers', [0, 2])
def test_stateful_loader_goes_on_where_it_stood(kind, workers):
    "torchdata's loader asks each pass for its state as it fetches; looks in between change nothing."
    stateful = pytest.importorskip('torchdata.stateful_dataloader')
    def loader(): return stateful.StatefulDataLoader(Rows(), batch_sampler=kind(LABELS, batch=16), num_workers=workers)
    first, found = loader(), []
    first.batch_sampler.set_epoch(1)
    for _, _, rows in first:
        found.append(rows.tolist())
        if len(found) == 4: break
        next(iter(first.batch_sampler))
    again = loader()
    again.load_state_dict(first.state_dict())
    again.batch_sampler.set_epoch(1)
    alone = kind(LABELS, batch=16)
    alone.set_epoch(1)
    assert found + seen(again) == alone.planned().tolist()


def train(s, batches, model, epochs=2):
    "Losses of a short training with a graph that is renewed before every epoch, and the graphs."
    losses, graphs, optimizer = [], [], torch.optim.SGD(model.parameters(), .1)
    module = getattr(model, 'module', model)
    for epoch in range(epochs):
        s.set_epoch(epoch)
        graphs.append(update_graph(s, lambda rows: module(IMAGES[rows]), k=4, model=module).tolist())
        for rows in batches(s):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(IMAGES[rows]), torch.as_tensor(LABELS[rows]))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses), graphs


def seen(loader): return [rows.tolist() for _, _, rows in loader]


def said_of(s):
    "Warnings of a pass."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        return list(s), [str(w.message) for w in said]


def one_of_two(rank, folder, port):
    "What one of two processes trains, is dealt by accelerate, and is warned of."
    ranks = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ |= ranks | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    torch.set_num_threads(1)
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    found = dict(alone=said_of(sampler()), share=said_of(sampler(rank=rank, world=2)))
    model = torch.nn.parallel.DistributedDataParallel(network())
    losses, found['graphs'] = train(sampler(rank=rank, world=2), list, model)
    dist.all_reduce(losses)
    found['losses'] = losses/2
    dealt = accelerator.prepare(DataLoader(Rows(), batch_sampler=sampler(neighbors=GRAPH)))       # accelerate deals
    own = DataLoader(Rows(), batch_sampler=sampler(neighbors=GRAPH, rank=rank, world=2))
    try: accelerator.prepare(own)
    except ValueError as error: found['refused'] = str(error)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found |= dict(dealt=seen(dealt), own=seen(own))
        dealt.set_epoch(1)
        found['next'] = seen(dealt)
    torch.save(found, f'{folder}/{rank}.pt')
    accelerator.wait_for_everyone()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    "What two processes found."
    folder = tmp_path_factory.mktemp('two')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    method = processes.get_start_method() # forked from a server that has imported everything
    mp.start_processes(one_of_two, args=(str(folder), port), nprocs=2, start_method=method)
    return [torch.load(folder/f'{r}.pt', weights_only=True) for r in range(2)]


def test_two_processes_are_one_with_twice_the_batch(ranks):
    one, other = ranks
    assert torch.equal(one['losses'], other['losses']) and one['graphs'] == other['graphs']
    def pairs(s):                                               # the same plan, two batches at a time
        both = sampler(world=2, neighbors=s.neighbors)
        both.set_epoch(s.epoch)
        return both.planned().reshape(-1, 32).tolist()
    losses, graphs = train(sampler(), pairs, network())
    assert one['graphs'] == graphs and losses[-1] < losses[0]
    torch.testing.assert_close(one['losses'], losses, atol=1e-5, rtol=0)


def test_accelerate_does_not_share_a_second_time(ranks):
    alone = sampler(neighbors=GRAPH)
    for epoch, ways in enumerate((('dealt', 'own'), ('next',))):            # the next epoch by the loader's set_epoch
        alone.set_epoch(epoch)
        whole = alone.planned().tolist()
        for way in ways:
            merged = [b for step in zip(*(r[way] for r in ranks)) for b in step]
            assert merged[:len(whole)] == whole and len(merged) - len(whole) < 2
    assert all('shared among 2 ranks already' in r['refused'] for r in ranks)


def test_several_processes_with_the_same_batches_are_said(ranks):
    (batches, said), (others, _) = (r['alone'] for r in ranks)
    assert batches == others and len(said) == 1 and 'rank and world' in said[0]
    (batches, said), (others, _) = (r['share'] for r in ranks)
    assert batches != others and not said
