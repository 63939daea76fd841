"The samplers: every promise of the chapter, over random layouts."
from collections import Counter
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from clip_dfgs.graph import nearest_identities
from clip_dfgs.samplers import (DepthFirstGraphSampler, GraphSampler, PKSampler, batch_count, camera_tuplets,
    depth_first_batches, epoch_report, occurrence, tuplet_table)

KINDS = [PKSampler, GraphSampler, DepthFirstGraphSampler]


@st.composite
def layouts(draw):
    "labels, cameras, P, K, graph and seed of a random data set."
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=25))
    seed = draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    cameras = rng.integers(0, draw(st.integers(1, 5)), len(labels))
    p, k = draw(st.integers(1, len(counts))), draw(st.integers(1, 6))
    graph = nearest_identities(torch.as_tensor(rng.normal(size=(len(counts), 3))), max(p - 1, draw(st.integers(0, 6))))
    return labels, cameras, p, k, graph, seed


def make(kind, layout, **options):
    labels, cameras, p, k, graph, seed = layout
    if kind is not PKSampler: options = dict(neighbours=graph) | options
    return kind(labels, cameras, batch=p * k, instances=k, seed=seed, **options)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from(KINDS), st.integers(0, 5))
def test_every_batch_is_p_times_k_and_every_image_appears(layout, kind, epoch):
    labels, cameras, p, k, graph, seed = layout
    s = make(kind, layout)
    s.set_epoch(epoch)
    expected = len(s)
    batches = list(s)
    assert len(batches) == expected == len(s)
    for b in batches:
        assert sorted(Counter(labels[b]).values()) == [k] * p
    if kind is not GraphSampler: assert set(np.concatenate(batches)) == set(range(len(labels)))
    again = make(kind, layout)
    again.set_epoch(epoch)
    assert list(again) == batches


@settings(max_examples=40, deadline=None)
@given(layouts(), st.sampled_from(KINDS), st.integers(1, 5))
def test_ranks_share_the_epoch(layout, kind, world):
    whole = list(make(kind, layout))
    ranks = [list(make(kind, layout, rank=r, world=world)) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1 and len(ranks[0]) == -(-len(whole) // world)
    merged = [b for step in zip(*ranks) for b in step]
    assert merged[:len(whole)] == whole and len(merged) - len(whole) < world


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
        # no deal of these images can do better: a camera with c images is in at most min(c, t) tuplets, a repeated image may add one
        of_camera = Counter(cameras[rows])
        bare, t = sum(min(c, len(own)) for c in of_camera.values()), len(own)
        extra = min(t * k - len(rows), sum(min(c, t - c) for c in of_camera.values() if c < t))
        assert sum(len(set(cameras[list(x)])) for x in own) == (bare + extra if len(rows) >= k else len(of_camera))
