"The walk: tuplets and the depth-first plan, over random layouts."
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import layouts

from clip_dfgs.sampling.graph import nearest_identities
from clip_dfgs.sampling.depth_first import camera_tuplets, depth_first_batches


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_tuplets_hold_as_many_cameras_as_can_be(layout):
    labels, cameras, p, k, graph, seed = layout
    tuplets = camera_tuplets(labels, cameras, k, np.random.default_rng(seed))
    for v, own in enumerate(tuplets):
        rows = np.flatnonzero(labels == v)
        assert len(own) == -(-len(rows) // k) and all(len(t) == k for t in own)
        times = Counter(i for t in own for i in t)
        assert set(times) == set(rows) and max(times.values()) - min(times.values()) <= 1
        if len(rows) >= k: assert all(len(set(t)) == k for t in own)
        # no deal can do better: a camera with c images is in at most min(c, t) tuplets, a repeated image may add one
        of_camera = Counter(cameras[rows])
        bare, t = sum(min(c, len(own)) for c in of_camera.values()), len(own)
        extra = min(t * k - len(rows), sum(min(c, t - c) for c in of_camera.values() if c < t))
        most = bare + extra if len(rows) >= k else len(of_camera)
        assert sum(len(set(cameras[list(x)])) for x in own) == most


def test_cameras_are_not_skipped_images_not_dropped_none_shown_too_often():
    "Published defects of the dealing, each on the smallest case that shows it."
    cameras = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    assert all(sorted(cameras[t]) == [0, 1, 2, 3] for t in camera_tuplets([0] * 8, cameras, 4)[0])
    cameras = np.array([0, 1, 1, 1, 2, 2, 2, 3])                # 0 and 3 are used up at once
    assert all(len(set(cameras[t])) >= 3 for t in camera_tuplets([0] * 8, cameras, 4)[0])
    for seed in range(30):
        dealt = Counter(np.ravel(camera_tuplets([0] * 9, None, 4, np.random.default_rng(seed))[0]).tolist())
        assert set(dealt) == set(range(9)) and set(dealt.values()) == {1, 2}
        three = camera_tuplets([0] * 3, None, 4, np.random.default_rng(seed))[0][0]
        assert max(Counter(three).values()) == 2


def literal_released(graph, tuplets, p, start):
    "The released rule, word by word, with nothing kept between steps that could be counted again."
    left, stack, batch, batches = list(tuplets), [start], [], []
    def unfinished(): return sum(t > 0 for t in left)
    counter = unfinished()
    while counter != 0 and len(stack) != 0:
        v = stack.pop()
        if left[v] == 0: continue
        if v in batch:
            stack.insert(0, v)
            counter = counter - 1
            continue
        counter = unfinished()
        left[v] = left[v] - 1
        batch.append(v)
        for u in list(graph[v])[::-1]:
            if left[u] > 0: stack.append(u)
        if len(batch) == p:
            batches.append(batch)
            batch = []
    return batches


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 6), st.integers(0, 2**20), st.integers(1, 8))
def test_released_order_is_the_released_rule(n, k, seed, p):
    rng = np.random.default_rng(seed)
    graph = nearest_identities(torch.as_tensor(rng.normal(size=(n, 2))), k).numpy()
    tuplets, start, p = rng.integers(1, 6, n), int(rng.integers(n)), min(p, n)
    plan = depth_first_batches(graph, tuplets, p, start, order='released').tolist()
    assert plan == literal_released(graph.tolist(), tuplets, p, start)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(1, 6), st.sampled_from(['complete', 'paper']),
       st.integers(0, 2**20))
def test_walk_follows_edges(n, k, p, order, seed):
    """An identity that is taken is joined by an edge to one taken before, but for the start and the restarts.
    (In the last batch everybody left is due.) Of the complete order no restart is needless: it is to a stranger."""
    rng, tally = np.random.default_rng(seed), {}
    graph = nearest_identities(torch.as_tensor(rng.normal(size=(n, 2))), k).numpy()
    plan = depth_first_batches(graph, np.ones(n, int), min(p, n), rng=rng, order=order, tally=tally)
    taken, strangers = [], 0
    for v in plan[:-1].ravel().tolist():
        strangers += bool(taken) and not any(v in graph[u] or u in graph[v] for u in taken)
        taken.append(v)
    assert strangers == tally['restarts'] if order == 'complete' else strangers <= tally['restarts']


one, ring = np.ones(7, int), np.stack([np.roll(np.arange(7), -i)[1:4] for i in range(7)])


@pytest.mark.parametrize('options, words', [
    (dict(order='papers'), "unknown order 'papers'; did you mean 'paper'"), (dict(order=True), 'unknown order True'),
    (dict(pk_ratio=1.5), 'pk_ratio=1.5'), (dict(pk_ratio=float('nan')), 'pk_ratio=nan'),
    (dict(order='released', pk_ratio=.5), '0 in the released'), (dict(start=-1), 'start=-1'),
    (dict(ids_per_batch=8), 'batch of 8 identities'), (dict(ids_per_batch=3.), 'ids_per_batch=3.0'),
    (dict(tuplets=one / 2), 'tuplets'), (dict(tuplets=one * 0), 'not all 0'), (dict(tuplets=-one), 'tuplets'),
    (dict(neighbors=ring + 1), 'from 1 to 7'), (dict(neighbors=ring / 1), 'whole numbers'),
    (dict(neighbors=ring[:5]), r'\[7, k\]'), (dict(neighbors=[[1], [2, 3]]), 'rows of equal length')])
def test_what_does_not_fit_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        depth_first_batches(**dict(neighbors=ring, tuplets=one, ids_per_batch=3) | options)


def test_other_kinds_of_arguments_give_the_same_plan():
    plan = depth_first_batches(ring, one * 2, 3, start=2).tolist()
    for graph in (ring.astype(np.uint8), ring.tolist(), torch.as_tensor(ring)):
        assert depth_first_batches(graph, [[[0], [1]]] * 7, np.int64(3), start=torch.tensor(2)).tolist() == plan
