"The samplers: every promise of the chapter, over random layouts."
import json
from collections import Counter
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from clip_dfgs.graph import nearest_identities
from clip_dfgs.samplers import (DepthFirstGraphSampler, GraphSampler, PKSampler, batch_count, camera_tuplets,
    depth_first_batches, epoch_report, meetings, occurrence, refresh_neighbours, tuplet_table)

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


def literal_published(graph, tuplets, p, start):
    "The published rule, word by word, with nothing kept between steps that could be counted again."
    left, stack, batch, batches = list(tuplets), [start], [], []
    unfinished = lambda: sum(t > 0 for t in left)
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


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 30), st.integers(0, 6), st.integers(0, 2**20), st.integers(1, 8))
def test_published_order_is_the_published_rule(n, k, seed, p):
    rng = np.random.default_rng(seed)
    graph = nearest_identities(torch.as_tensor(rng.normal(size=(n, 2))), k).numpy()
    tuplets, start, p = rng.integers(1, 6, n), int(rng.integers(n)), min(p, n)
    assert depth_first_batches(graph, tuplets, p, start, published=True).tolist() == literal_published(graph.tolist(), tuplets, p, start)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 30), st.integers(0, 6), st.booleans(), st.floats(0, 1), st.integers(0, 2**20))
def test_plan_is_complete_distinct_and_as_short_as_can_be(tuplets, p, k, fair, share, seed):
    n, rng = len(tuplets), np.random.default_rng(seed)
    if sum(tuplets) == 0: tuplets[0] = 1
    p = min(p, n)
    graph = rng.integers(0, n, (n, k))                          # any graph, own neighbours and repeated ones too
    plan = depth_first_batches(graph, tuplets, p, rng=rng, fair=fair, random_share=share)
    assert plan.shape == (max(-(-sum(tuplets) // p), max(tuplets)), p)
    assert all(len(set(row)) == p for row in plan.tolist())
    assert (np.bincount(plan.ravel(), minlength=n) >= tuplets).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 25), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**20))
def test_walk_follows_edges(n, k, p, seed):
    "Within a batch whoever comes after the first is joined by an arrow to somebody taken before, unless the walk had to restart."
    rng = np.random.default_rng(seed)
    graph = nearest_identities(torch.as_tensor(rng.normal(size=(n, 2))), k).numpy()
    tally = {}
    plan = depth_first_batches(graph, np.ones(n, int), min(p, n), rng=rng, tally=tally)
    taken, strangers = [], 0
    for v in plan.ravel().tolist():
        strangers += bool(taken) and not any(v in graph[u] or u in graph[v] for u in taken)
        taken.append(v)
    assert strangers <= tally["restarts"] + p                   # the last batch is taken because it is due


def grouped(groups, each, images, seed=0):
    "labels in random order, and identity features in far-apart groups."
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(groups * each), images))
    group = rng.permutation(np.repeat(np.arange(groups), each))
    return labels, group, torch.as_tensor(np.eye(groups)[group] * 50 + rng.normal(size=(groups * each, groups)), dtype=torch.float32)


@pytest.mark.parametrize("fair", [False, True])
def test_neighbours_are_read_in_the_order_they_were_computed(fair):
    "Published defect: distances in one identity order, read in another, which mines at chance level."
    labels, group, features = grouped(10, 8, 8)
    s = DepthFirstGraphSampler(labels, neighbours=nearest_identities(features, 7), batch=32, fair=fair)
    together = [len(set(group[labels[b]])) == 1 for b in s]     # batches of 8 from groups of 8
    assert np.mean(together) > .8
    pk = [len(set(group[labels[b]])) == 1 for b in PKSampler(labels, batch=32)]
    assert np.mean(pk) < .1


@pytest.mark.parametrize("kind", KINDS)
def test_few_images_few_identities(kind):
    "Published defects: crashes with one image of an identity, N <= k, N < batch."
    for counts, batch, k in [([1, 1, 1], 8, 4), ([1], 4, 4), ([1, 7, 2], 12, 4), ([3, 1], 2, 1)]:
        labels = np.repeat(np.arange(len(counts)), counts)
        extra = {} if kind is PKSampler else dict(neighbours=nearest_identities(torch.randn(len(counts), 2), 10))
        batches = list(kind(labels, batch=batch, instances=k, **extra))
        assert {len(b) for b in batches} == {batch} and all(len(set(labels[b])) == batch // k for b in batches)


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_requests_name_the_numbers(kind):
    labels = np.repeat(np.arange(5), 4)
    for options, words in [(dict(batch=10, instances=4), "batch=10 is not a multiple of instances=4"), (dict(batch=4, instances=0), "instances=0"),
            (dict(batch=24, instances=4), "needs 6 identities; there are 5"), (dict(batch=8, rank=2, world=2), "rank=2 of world=2"),
            (dict(batch=8, cameras=[0]), "20 labels but 1 cameras"), (dict(batch=2, instances=4), "batch=2")]:
        with pytest.raises(ValueError, match=words): kind(labels, **options)
    for bad, words in [(labels + 1, "0..4 for 5 identities; they run from 1 to 5"), (np.repeat([0, 1, 7], 4), "0..2 for 3 identities; they run from 0 to 7"),
            (labels - 1, "run from -1 to 3"), (labels / 2, "whole numbers"), ([], "shape")]:
        with pytest.raises(ValueError, match=words): kind(bad, batch=4)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_graph_of_another_data_set(kind):
    s = kind(np.repeat(np.arange(5), 4), batch=8)
    for graph, words in [(torch.zeros(6, 4, dtype=torch.long), r"\[6, 4\]; \[5, k\] is needed"), (torch.full((5, 4), 5), "from 5 to 5; 0..4"),
            (torch.full((5, 4), -1), "from -1"), (torch.zeros(5, 4), "whole numbers"), (torch.zeros(5, dtype=torch.long), r"\[5\]")]:
        with pytest.raises(ValueError, match=words): s.neighbours = graph
    assert s.neighbours is None and len(list(s)) == len(s)      # nothing half-done


def test_cameras_are_not_skipped_images_not_dropped_none_shown_too_often():
    "Published defects of the dealing, each on the smallest case that shows it."
    cameras = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    assert all(sorted(cameras[t]) == [0, 1, 2, 3] for t in camera_tuplets([0] * 8, cameras, 4)[0])
    cameras = np.array([0, 1, 1, 1, 2, 2, 2, 3])                # 0 and 3 are used up at once
    assert all(len(set(cameras[t])) >= 3 for t in camera_tuplets([0] * 8, cameras, 4)[0])
    for seed in range(30):
        dealt = Counter(np.ravel(camera_tuplets([0] * 9, None, 4, np.random.default_rng(seed))[0]).tolist())
        assert set(dealt) == set(range(9)) and set(dealt.values()) == {1, 2}
        assert max(Counter(camera_tuplets([0] * 3, None, 4, np.random.default_rng(seed))[0][0]).values()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_length_before_and_after(kind):
    labels, group, features = grouped(4, 5, 7)
    s = kind(labels, batch=16) if kind is PKSampler else kind(labels, neighbours=nearest_identities(features, 3), batch=16)
    before = len(s)
    for epoch in range(4):
        s.set_epoch(epoch)
        assert len(list(s)) == len(s) == before


def test_global_random_state_is_neither_used_nor_touched():
    labels, group, features = grouped(4, 5, 7)
    def epoch(): return [list(kind(labels, batch=16, seed=1)) for kind in KINDS] + [list(DepthFirstGraphSampler(labels, neighbours=nearest_identities(features, 3), batch=16))]
    np.random.seed(0); torch.manual_seed(0)
    first = epoch()
    after = np.random.random(), torch.rand(1).item()
    np.random.seed(0); torch.manual_seed(0)
    assert after == (np.random.random(), torch.rand(1).item())
    np.random.seed(7); torch.manual_seed(7)
    assert epoch() == first


def test_seeds_and_epochs_differ():
    labels, group, features = grouped(4, 5, 7)
    make = lambda seed, epoch: (s := DepthFirstGraphSampler(labels, neighbours=nearest_identities(features, 3), batch=16, seed=seed), s.set_epoch(epoch), list(s))[-1]
    assert len({str(make(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_batches_of_gs_have_the_size_asked_for():
    "Published defect: a batch of 128 whatever was asked for."
    labels, group, features = grouped(4, 10, 6)
    for p, k in [(2, 2), (5, 3), (16, 4)]:
        s = GraphSampler(labels, neighbours=nearest_identities(features, p - 1), batch=p * k, instances=k)
        assert all(sorted(Counter(labels[b]).values()) == [k] * p for b in s)


def test_gs_shows_every_image_in_time():
    labels, group, features = grouped(4, 5, 9)
    s, seen = GraphSampler(labels, neighbours=nearest_identities(features, 3), batch=8, instances=2), set()
    for epoch in range(5):                                      # 9 images are 5 tuplets, and everybody is an anchor once an epoch
        s.set_epoch(epoch)
        seen |= {i for b in s for i in b}
    assert seen == set(range(len(labels)))


@settings(max_examples=30, deadline=None)
@given(layouts(), st.sampled_from(KINDS), st.integers(0, 3), st.floats(0, 1))
def test_state_goes_through_json(layout, kind, epoch, share):
    s = make(kind, layout)
    for e in range(epoch + 1): s.set_epoch(e); whole = list(s)
    s, stop = make(kind, layout), int(share * (len(whole) - 1))
    for e in range(epoch): s.set_epoch(e); list(s)
    s.set_epoch(epoch)
    iterator = iter(s)
    seen = [next(iterator) for _ in range(stop)]
    again = make(kind, layout)
    again.load_state_dict(json.loads(json.dumps(s.state_dict())))
    again.set_epoch(epoch)                                      # as a training loop does
    assert seen + list(again) == whole
    with pytest.raises(ValueError, match="this sampler has seed"): again.load_state_dict(s.state_dict() | dict(seed=-1))


class NeverCopied(torch.nn.Linear):
    def __deepcopy__(self, memo): raise AssertionError("the model was copied")


def test_refresh_copies_no_model_and_restores_every_mode():
    labels, group, features = grouped(4, 5, 6)
    images = features[torch.as_tensor(labels)]
    model = torch.nn.Sequential(NeverCopied(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(.9))
    model[1].eval()
    statistics = model[1].running_mean.clone()
    def embed(rows):
        assert not torch.is_grad_enabled() and not any(m.training for m in model.modules())
        return model(images[rows])
    s = DepthFirstGraphSampler(labels, batch=16)
    refresh_neighbours(s, embed, k=4, model=model, how="all")
    assert [m.training for m in model] == [True, False, True] and torch.equal(statistics, model[1].running_mean)
    with torch.no_grad(): expected = nearest_identities(torch.stack([model.eval()(images)[labels == v].double().mean(0) for v in range(20)]).float(), 4)
    assert torch.equal(s.neighbours, expected)


def test_refresh_every_n_epochs_and_one_image_per_camera():
    labels, cameras, seen = np.repeat(np.arange(6), 8), np.tile([0, 0, 1, 1, 2, 2, 2, 2], 6), []
    s = DepthFirstGraphSampler(labels, cameras, batch=8)
    for epoch in range(1, 7):
        s.set_epoch(epoch)
        refresh_neighbours(s, lambda rows: (seen.append(rows), torch.randn(len(rows), 3))[1], every=3)
    assert len(seen) == 3                                       # at the first call, and in epochs 3 and 6
    for rows in seen: assert sorted(zip(labels[rows], cameras[rows])) == [(v, c) for v in range(6) for c in range(3)]
    assert len({tuple(rows) for rows in seen}) == 3             # other images each time


def test_options_keep_the_promises():
    labels, group, features = grouped(6, 6, 9)
    for options in [dict(random_share=.3), dict(random_share=1.), dict(curriculum=(4, 3)), dict(fair=False), dict(shuffle_neighbours=False)]:
        s = DepthFirstGraphSampler(labels, neighbours=nearest_identities(features, 12), batch=24, **options)
        for epoch in range(4):
            s.set_epoch(epoch)
            assert {i for b in s for i in b} == set(range(len(labels)))
    with pytest.raises(ValueError, match="random_share=1.5"): list(DepthFirstGraphSampler(labels, neighbours=nearest_identities(features, 3), batch=24, random_share=1.5))


def test_report_of_any_batches():
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert epoch_report([], labels)["images"] == 0
    ragged = epoch_report([[0, 1], [2, 3, 4]], labels, [0, 1, 0, 0, 1, 1], torch.arange(6.)[:, None])
    assert ragged["batches"] == 2 and ragged["identities"] == 1 and ragged["images"] == pytest.approx(5 / 6)
    assert ragged["ids_per_batch"] == 1.5 and ragged["cameras_per_tuplet"] == pytest.approx(4 / 3)
    per_identity = epoch_report([[0, 2, 4]], labels, features=torch.tensor([[0.], [1.], [5.]]))
    assert per_identity["hardness"] == 1 and "active" not in per_identity
    # d(a, p) - d(a, n) + margin > 0 for anchor 0 of [0, 1 | 2, 3] at 0, 2 | 1, 4: 2-1, 2-4; by hand for all anchors
    assert epoch_report([[0, 1, 2, 3]], labels[:4], features=torch.tensor([[0.], [2.], [1.], [4.]]), margin=.3)["active"] == pytest.approx(np.mean([.5, 1, 1, .5]))
    assert meetings([[[0, 2]], [[0, 2]], [[0, 4]]], labels) == dict(partners=pytest.approx(2 / 3), again=.5, met=pytest.approx(4 / 3))
    assert occurrence([2, 2, 0, 2]).tolist() == [0, 1, 0, 2] and batch_count([1, 1, 5], 3) == 5
    assert tuplet_table([0, 0, 1], None, 2)[1].tolist() == [0, 1, 2]
