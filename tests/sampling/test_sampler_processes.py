"The samplers where they are used: loader workers, two processes on gloo, accelerate."
import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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
    planned, seen = s.planned().tolist(), []
    for x, y, rows in DataLoader(Rows(), batch_sampler=s, num_workers=1, prefetch_factor=4):
        seen.append(rows.tolist())
        if len(seen) == 5: break
    assert s.state_dict()['position'] > 5
    again = sampler(neighbors=s.neighbors)
    again.load_state_dict(s.state_dict(position=5))
    assert seen + [rows.tolist() for _, _, rows in DataLoader(Rows(), batch_sampler=again)] == planned


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


def train(s, step, model, optimizer, epochs=2):
    "Losses of a short training with a graph that is refreshed before every epoch; `step(model, batches)` is one step."
    losses, graphs = [], []
    for epoch in range(epochs):
        s.set_epoch(epoch)
        module = getattr(model, 'module', model)
        graphs.append(update_graph(s, lambda rows: module(IMAGES[rows]), k=4, model=module).tolist())
        for rows in step['loader'](s):
            optimizer.zero_grad()
            losses.append(step['loss'](model, rows))
            optimizer.step()
    return losses, graphs


def cross_entropy(model, rows):
    return torch.nn.functional.cross_entropy(model(IMAGES[rows]), torch.as_tensor(LABELS[rows]))


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(network())
    def loss(model, rows):
        value = cross_entropy(model, rows)
        value.backward()
        total = value.detach().clone()
        dist.all_reduce(total)
        return float(total) / 2
    step = dict(loader=list, loss=loss)
    result = train(sampler(rank=rank, world=2), step, model, torch.optim.SGD(model.parameters(), .1))
    torch.save(result, f'{folder}/rank{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    torch.set_num_threads(1)
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f'rank{r}.pt', weights_only=True) for r in range(2)]
    (losses, graphs), (other, other_graphs) = ranks
    assert losses == other and graphs == other_graphs
    def pairs(s):                                               # the same plan, two batches at a time
        both = sampler(world=2, neighbors=s.neighbors)
        both.set_epoch(s.epoch)
        return both.planned().reshape(-1, 32).tolist()
    def loss(model, rows):
        value = cross_entropy(model, rows)
        value.backward()
        return float(value.detach())
    model = network()
    step = dict(loader=pairs, loss=loss)
    alone, alone_graphs = train(sampler(), step, model, torch.optim.SGD(model.parameters(), .1))
    assert graphs == alone_graphs and len(losses) == len(alone)
    assert np.allclose(losses, alone, atol=1e-5) and losses[-1] < losses[0]


def seen(loader): return [rows.tolist() for _, _, rows in loader]


def accelerated(rank, folder, port):
    ranks = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ |= ranks | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    dealt = accelerator.prepare(DataLoader(Rows(), batch_sampler=sampler(neighbors=GRAPH)))       # accelerate deals
    place = dict(rank=accelerator.process_index, world=accelerator.num_processes)
    own = DataLoader(Rows(), batch_sampler=sampler(neighbors=GRAPH, **place))
    try: accelerator.prepare(own)
    except ValueError as error: refused = 'shared among 2 ranks already' in str(error)
    else: refused = False
    result = dict(refused=refused, dealt=seen(dealt), own=seen(own))
    dealt.set_epoch(1)
    result['next'] = seen(dealt)
    torch.save(result, f'{folder}/accelerate{rank}.pt')
    accelerator.wait_for_everyone()
    dist.destroy_process_group()


def test_accelerate_does_not_share_a_second_time(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(accelerated, args=(str(tmp_path), port), nprocs=2)
    ranks = [torch.load(tmp_path / f'accelerate{r}.pt', weights_only=True) for r in range(2)]
    alone = sampler(neighbors=GRAPH)
    for epoch, ways in enumerate((('dealt', 'own'), ('next',))):            # the next epoch by the loader's set_epoch
        alone.set_epoch(epoch)
        whole = alone.planned().tolist()
        for way in ways:
            merged = [b for step in zip(*(r[way] for r in ranks)) for b in step]
            assert merged[:len(whole)] == whole and len(merged) - len(whole) < 2
    assert all(r['refused'] for r in ranks)
