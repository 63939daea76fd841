"Passes over a sampler: each independent of every other, and going on from where one stood."
import copy
import gc
import itertools
import json
import pickle
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import KINDS, grouped, layouts, make, small
from torch.utils.data import DataLoader, Dataset

from clip_dfgs.sampling.diagnostics import epoch_statistics
from clip_dfgs.sampling.graph import load_graph, nearest_identities, save_graph
from clip_dfgs.sampling.stateful import StatefulBatchSampler
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler

kinds = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)


class Rows(Dataset):
    def __len__(self): return 140
    def __getitem__(self, i): return i


def loader(sampler, **options): return DataLoader(Rows(), batch_sampler=sampler, **options)
def lists(batches): return [torch.as_tensor(rows).tolist() for rows in batches]


def epochs_of(kind, look=lambda sampler, batches: None, epochs=3):
    "Every batch of some epochs, with a look at the sampler after each batch."
    sampler, found = small(kind), []
    batches = loader(sampler)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for rows in batches:
            found.append(rows.tolist())
            look(sampler, batches)
    return found


LOOKS = dict(
    first=lambda sampler, batches: next(iter(batches)),
    three=lambda sampler, batches: list(itertools.islice(sampler, 3)),
    whole=lambda sampler, batches: list(sampler),
    report=lambda sampler, batches: epoch_statistics(sampler, sampler.labels),
    plan=lambda sampler, batches: sampler.plan(),
    length=lambda sampler, batches: len(batches),
    state=lambda sampler, batches: sampler.state_dict(),
    same_epoch=lambda sampler, batches: sampler.set_epoch(sampler.epoch),
    copied=lambda sampler, batches: list(copy.deepcopy(sampler)),
    pickled=lambda sampler, batches: list(pickle.loads(pickle.dumps(sampler))),
    other_loader=lambda sampler, batches: list(loader(sampler)),
    printed=lambda sampler, batches: repr(sampler))


@kinds
@pytest.mark.parametrize('look', LOOKS)
def test_a_look_changes_no_epoch(kind, look):
    assert epochs_of(kind, LOOKS[look]) == epochs_of(kind)


@kinds
def test_a_look_that_is_kept_changes_no_epoch(kind):
    kept, places = [], []

    def look(sampler, batches):
        kept.append(iter(sampler))
        next(kept[-1])
        places.append(sampler.state_dict()['position'])

    with warnings.catch_warnings(record=True): assert epochs_of(kind, look) == epochs_of(kind)
    assert places == 3 * list(range(1, len(small(kind)) + 1))   # the state is the loop's


@kinds
def test_two_passes_at_once(kind):
    s = small(kind)
    whole = list(small(kind))
    assert list(zip(s, s)) == list(zip(whole, whole))
    one, two = loader(s), loader(s)
    assert [(a.tolist(), b.tolist()) for a, b in zip(one, two)] == list(zip(whole, whole))
    assert [rows.tolist() for rows in loader(s, num_workers=2)] == whole


@kinds
def test_a_pass_keeps_to_the_epoch_it_was_begun_in(kind):
    s = small(kind)
    whole, running = list(small(kind)), iter(s)
    first = next(running)
    s.set_epoch(1)
    if kind is not PKSampler: s.neighbors = None
    assert [first, *running] == whole
    assert s.position == 0 and list(s) != whole


@kinds
def test_the_state_is_that_of_the_running_loop(kind):
    "Whatever was looked at before and from inside."
    s, other = small(kind), small(kind)
    next(iter(s))                                               # a look before
    for steps, rows in enumerate(s, 1):
        next(iter(s))
        list(s)
        s.set_epoch(0)
        assert s.state_dict()['position'] == s.position == steps
    next(iter(s))                                               # and after
    assert s.position == len(s)
    for steps, rows in enumerate(other, 1):
        if steps == 5: break
    gc.collect()
    next(iter(other))
    assert other.position == 5                                  # of a loop that was left


@kinds
def test_each_pass_knows_its_place(kind):
    s, whole = small(kind), list(small(kind))
    slow, fast = iter(s), iter(s)
    next(slow)
    for _ in range(4): next(fast)
    with pytest.warns(UserWarning, match=r'passes are running at batches \[1, 4\]; the state is of the first'):
        assert s.state_dict() == slow.state_dict()
    for one, left in ((slow, whole[1:]), (fast, whole[4:])):
        again = small(kind)
        again.load_state_dict(json.loads(json.dumps(one.state_dict())))
        assert list(again) == left
        straight = iter(small(kind))
        straight.load_state_dict(one.state_dict())
        assert list(straight) == left
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert s.state_dict(position=2)['position'] == 2        # who counts is not in doubt


@settings(max_examples=30, deadline=None)
@given(layouts(), st.sampled_from(KINDS), st.integers(0, 3), st.floats(0, 1))
def test_state_goes_through_json(layout, kind, epoch, share):
    s, fresh = make(kind, layout), make(kind, layout)
    for e in range(epoch + 1):
        fresh.set_epoch(e)
        whole = list(fresh)
    for e in range(epoch):
        s.set_epoch(e)
        deque(s, 0)
    s.set_epoch(epoch)
    iterator = iter(s)
    seen = [next(iterator) for _ in range(round(share * len(whole)))]
    again = make(kind, layout)
    again.load_state_dict(json.loads(json.dumps(s.state_dict())))
    assert again.state_dict() == s.state_dict()
    again.set_epoch(epoch)                                      # as a training loop does
    assert seen + list(again) == whole
    for sampler in (again, fresh): sampler.set_epoch(epoch + 1)
    assert list(again) == list(fresh)
    with pytest.raises(ValueError, match='this sampler has seed'): again.load_state_dict(s.state_dict() | dict(seed=-1))


@kinds
def test_a_look_does_not_use_a_loaded_state_up(kind):
    s, whole = small(kind), list(small(kind))
    s.load_state_dict(small(kind).state_dict(position=3))
    assert next(iter(loader(s))).tolist() == whole[3] and s.position == 4
    assert list(s) == whole[3:]
    assert list(s) == whole                                     # and the pass after that is whole


def test_pointers_move_once_an_epoch_however_often_it_is_looked_at():
    s, calm = small(GraphSampler), small(GraphSampler)
    for epoch in range(3):
        for sampler in (s, calm): sampler.set_epoch(epoch)
        for _ in range(3): assert list(s) == list(calm)
        assert (s.pointers == calm.pointers).all()
    assert s.pointers.sum() == 3 * len(s) * s.ids_per_batch
    stopped = small(GraphSampler)
    next(iter(stopped))
    stopped.set_epoch(1)
    assert not stopped.pointers.any()                           # as before: an epoch that was left does not count


@pytest.mark.parametrize('kind', KINDS[1:])
@pytest.mark.parametrize('width', [np.int32, np.int16, np.uint8, np.uint64, torch.int32, list])
def test_state_survives_another_integer_width(kind, width, tmp_path):
    graph = small(kind).neighbors
    if width is list: given = graph.tolist()
    else: given = graph.to(width) if width is torch.int32 else graph.numpy().astype(width)
    s, whole = small(kind, neighbors=given), list(small(kind))
    iterator = iter(s)
    next(iterator)
    save_graph(tmp_path/'graph.npz', s.neighbors)
    again = small(kind, neighbors=load_graph(tmp_path/'graph.npz')[0])
    again.load_state_dict(iterator.state_dict())
    assert list(again) == whole[1:] and s.neighbors.dtype == torch.int64


def test_a_state_of_another_epoch_is_refused():
    "In the middle of an epoch; at its beginning and its end there is nothing to go wrong."
    labels, group, features = grouped(4, 5, 7)
    graph = nearest_identities(features, 3)
    state = DepthFirstGraphSampler(labels, None, graph, batch=16).state_dict(position=3)
    for options, words in [(dict(neighbors=nearest_identities(features, 4)), 'another graph'),
                           (dict(neighbors=None), 'another graph'),
                           (dict(order='paper'), 'another epoch'), (dict(batch=8), 'another epoch'),
                           (dict(instances=2), 'another epoch'),
                           (dict(cameras=labels % 3), 'another epoch'), (dict(batch=80), 'batch 3|another epoch')]:
        other = DepthFirstGraphSampler(labels, **dict(neighbors=graph, batch=16) | options)
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=words): list(other)
    s = DepthFirstGraphSampler(labels, None, graph, batch=16)
    s.load_state_dict(state | dict(position=99))
    with pytest.raises(ValueError, match='stands at batch 99'): list(s)
    for wrong, words in [({}, "no 'seed'"), (state | dict(position=-1), 'position=-1'),
                         (state | dict(epoch=None), 'epoch=None'),
                         (state | dict(position=1.5), 'position=1.5')]:
        with pytest.raises(ValueError, match=words): s.load_state_dict(wrong)
    of_pk = small(PKSampler).state_dict()
    with pytest.raises(ValueError, match='no pointers'): small(GraphSampler).load_state_dict(of_pk)
    with pytest.raises(ValueError, match='this epoch has'): s.state_dict(position=1000)


def test_the_state_is_of_the_graph_that_was_planned():
    "A new graph, assigned while a pass is running, does not change what the pass says of itself."
    s, whole = small(DepthFirstGraphSampler), list(small(DepthFirstGraphSampler))
    graph = s.neighbors
    iterator = iter(s)
    next(iterator)
    s.neighbors = graph.flip(0)
    again = small(DepthFirstGraphSampler)
    again.load_state_dict(s.state_dict())
    assert list(again) == whole[1:]


@kinds
def test_state_is_plain_whatever_was_passed(kind):
    s = small(kind, seed=np.int64(3), rank=np.int8(0), world=torch.tensor(2))
    s.set_epoch(torch.tensor(1))
    next(iter(s))
    state = s.state_dict()
    assert json.loads(json.dumps(state)) == state and state['seed'] == 3 and state['epoch'] == 1
    assert json.dumps(s.state_dict(position=np.int64(2)))


@kinds
def test_other_frameworks_reach_set_epoch(kind):
    "The rule of Lightning's and accelerate's loaders: batch_sampler.sampler.set_epoch."
    s = small(kind)
    batches, seen = loader(s), []
    for epoch in range(3):
        batches.batch_sampler.sampler.set_epoch(epoch)
        seen.append(str(lists(batches)))
    assert len(set(seen)) == 3


@kinds
def test_a_repeated_epoch_is_said_once(kind):
    s = small(kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(4): deque(loader(s), 0)
    assert len(caught) == 1 and 'call set_epoch(epoch) before each epoch' in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        epochs_of(kind, LOOKS['whole'])                         # looks and epochs in their order say nothing
        told = small(kind)
        told.set_epoch(0)
        for _ in range(2): list(told)                           # a report, and the training
    with pytest.warns(UserWarning, match='epoch 0 is handed out again'): list(told)


@kinds
@pytest.mark.parametrize('epoch', [None, -1, 1.5, '1', True, float('nan'), [1], torch.tensor(1.)], ids=str)
def test_wrong_epochs_are_named(kind, epoch):
    with pytest.raises(ValueError, match='epoch='): small(kind).set_epoch(epoch)


def test_a_sampler_of_your_own():
    class Pairs(StatefulBatchSampler):
        def plan(self): return np.random.default_rng([self.seed, self.epoch]).permutation(10).reshape(5, 2)
    whole = list(Pairs())
    assert len(Pairs()) == 5 and sorted(i for rows in whole for i in rows) == list(range(10))
    assert [list(Pairs(rank=r, world=5)) for r in range(5)] == [[rows] for rows in whole]
    s = Pairs()
    s.load_state_dict(Pairs().state_dict(position=2))
    assert list(s) == whole[2:]


@kinds
@pytest.mark.parametrize('saved, loaded', [(2, 1), (1, 2), (2, 4)])
def test_a_place_among_other_ranks_is_refused(kind, saved, loaded):
    "Batches of a rank count differently; the first of an epoch is the first for all."
    sampler = small(kind, world=saved)
    batches = iter(sampler)
    start = sampler.state_dict()
    next(batches)
    other = small(kind, world=loaded)
    other.load_state_dict(batches.state_dict())
    with pytest.raises(ValueError, match='the number of ranks'): list(other)
    other.load_state_dict(start)
    assert len(list(other)) == len(other)


@kinds
@pytest.mark.parametrize('state', [None, [], 'state', 3])
def test_what_is_no_state_is_refused(kind, state):
    with pytest.raises(ValueError, match='state'): small(kind).load_state_dict(state)
