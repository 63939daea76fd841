"Epochs handed out: passes, ranks, and going on from where one stood."
import json
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import KINDS, grouped, layouts, make, small
from torch.utils.data import DataLoader

from clip_dfgs.sampling.graph import load_graph, nearest_identities, save_graph
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler

kinds = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)


def loader(sampler, **options): return DataLoader(range(140), batch_sampler=sampler, **options)


@kinds
@pytest.mark.filterwarnings('ignore:.*begins again')
def test_passes_do_not_disturb_each_other(kind):
    s, whole = small(kind), list(small(kind))
    assert list(zip(iter(s), iter(s))) == list(zip(whole, whole))
    assert [rows.tolist() for rows in loader(s, num_workers=2)] == whole
    s, given = small(kind), []
    for rows in iter(s):
        given.append(rows)
        next(iter(s))                                           # looks from inside
        s.plan(3), len(s), repr(s), s.set_epoch(s.epoch)
    assert given == whole


@kinds
def test_a_pass_keeps_to_the_epoch_and_graph_it_began_with(kind):
    s, whole = small(kind), list(small(kind))
    running = iter(s)
    first = next(running)
    s.set_epoch(1)
    if kind is not PKSampler: s.neighbors = None
    again = small(kind)
    again.load_state_dict(running.state_dict())
    assert list(again) == whole[1:]
    assert [first, *running] == whole and list(s) != whole


@kinds
def test_each_pass_knows_its_position(kind):
    s, whole = small(kind), list(small(kind))
    slow, fast = iter(s), iter(s)
    next(slow)
    for _ in range(4): next(fast)
    assert s.state_dict() == fast.state_dict()                  # begun last
    for one, left in ((slow, whole[1:]), (fast, whole[4:])):
        again = small(kind)
        again.load_state_dict(json.loads(json.dumps(one.state_dict())))
        assert list(again) == left
        straight = iter(small(kind))
        straight.load_state_dict(one.state_dict())
        assert list(straight) == left


@settings(max_examples=15, deadline=None)
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


@kinds
def test_a_look_does_not_use_a_loaded_state_up(kind):
    s, whole = small(kind), list(small(kind))
    s.load_state_dict(small(kind).state_dict() | dict(position=3))
    assert next(iter(loader(s))).tolist() == whole[3] and s.state_dict()['position'] == 4
    assert list(s) == whole[3:]
    assert list(s) == whole                                     # and the pass after that is whole


@pytest.mark.filterwarnings('ignore:.*begins again')
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
    assert not stopped.pointers.any()                           # an epoch that was left does not count


def test_state_survives_another_integer_width(tmp_path):
    graph, whole = small(DepthFirstGraphSampler).neighbors, list(small(DepthFirstGraphSampler))
    for other in (graph.tolist(), graph.int()): assert list(small(DepthFirstGraphSampler, neighbors=other)) == whole
    s = small(DepthFirstGraphSampler, neighbors=graph.numpy().astype(np.uint64))
    iterator = iter(s)
    next(iterator)
    save_graph(tmp_path/'graph.npz', s.neighbors)
    again = small(DepthFirstGraphSampler, neighbors=load_graph(tmp_path/'graph.npz')[0])
    again.load_state_dict(iterator.state_dict())
    assert list(again) == whole[1:] and s.neighbors.dtype == torch.int64


def test_a_state_of_another_epoch_is_refused():
    "In the middle of an epoch; at its beginning and its end there is nothing to go wrong."
    labels, group, features = grouped(4, 5, 7)
    graph = nearest_identities(features, 3)
    state = DepthFirstGraphSampler(labels, None, graph, batch=16).state_dict() | dict(position=3)
    for options, words in [(dict(neighbors=nearest_identities(features, 4)), 'another graph'),
                           (dict(neighbors=None), 'another graph'), (dict(order='paper'), 'another epoch'),
                           (dict(instances=2), 'another epoch'), (dict(cameras=labels % 3), 'another epoch'),
                           (dict(batch=80), 'another epoch')]:
        other = DepthFirstGraphSampler(labels, **dict(neighbors=graph, batch=16) | options)
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=words): list(other)
    s = DepthFirstGraphSampler(labels, None, graph, batch=16)
    for wrong, words in [({}, 'not the state'), (state | dict(position=-1), 'position'), (state | dict(seed=5), 'seed'),
                         (state | dict(epoch=None), 'epoch')]:
        with pytest.raises(ValueError, match=words): s.load_state_dict(wrong)
    s.load_state_dict(state | dict(position=99))
    with pytest.raises(ValueError, match='99'): list(s)
    with pytest.raises(ValueError, match='not the state'): small(GraphSampler).load_state_dict(state)


@kinds
@pytest.mark.parametrize('saved, loaded', [(2, 1), (2, 4)])
def test_a_state_of_another_number_of_ranks_is_refused(kind, saved, loaded):
    sampler, other = small(kind, world=saved), small(kind, world=loaded)
    batches = iter(sampler)
    next(batches)
    other.load_state_dict(batches.state_dict())
    with pytest.raises(ValueError, match='the number of ranks'): list(other)


@kinds
def test_state_is_plain_whatever_was_passed(kind):
    s = small(kind, seed=np.int64(3), rank=np.int8(0), world=torch.tensor(2))
    s.set_epoch(torch.tensor(1))
    next(iter(s))
    state = s.state_dict()
    assert json.loads(json.dumps(state)) == state and state['seed'] == 3 and state['epoch'] == 1


@kinds
def test_a_repeated_epoch_is_said(kind):
    s = small(kind)
    with pytest.warns(UserWarning, match='call set_epoch'):
        for _ in range(2): deque(loader(s), 0)
    with pytest.warns(UserWarning, match='after 2 of'):         # broken off, and begun again
        s = small(kind)
        for number, _ in enumerate(s):
            if number == 1: break
        list(s)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        told = small(kind)
        for epoch in range(2):
            told.set_epoch(epoch)
            for _ in range(2): list(told)                       # a report, and the training


@kinds
def test_wrong_epochs_are_named(kind):
    for epoch in (None, -1, 1.5):
        with pytest.raises(ValueError, match='epoch='): small(kind).set_epoch(epoch)
