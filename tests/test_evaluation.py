"""Metrics against hand-computed cases and slow references written from their definitions."""
import subprocess, sys, textwrap

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st

from clip_dfgs.evaluation import (bootstrap_intervals, bootstrap_means, compare, distance_blocks, evaluate, k_reciprocal_distances,
                                  match_ranks, matches_and_junk, nearest_gallery, verification)


def slow(query, gallery, qi, gi, qc=None, gc=None, ranks=(1, 5, 10), distances=None):
    "The definition, one query and one rank at a time"
    AP, INP, first, junk_free = [], [], [], []
    for i in range(len(qi)):
        rows = []
        for j in range(len(gi)):
            if qc is not None and gi[j] == qi[i] and gc[j] == qc[i]: continue
            d = distances[i, j] if distances is not None else float(((query[i] - gallery[j]) ** 2).sum())
            rows.append((d, j))
        rows.sort()  # by distance, then position
        junk_free.append([j for _, j in rows])
        hits, precision = 0, []
        for place, (_, j) in enumerate(rows, 1):
            if gi[j] == qi[i]:
                hits += 1
                precision.append(hits / place)
                if hits == 1: first.append(place)
                last = place
        if hits: AP.append(sum(precision) / hits), INP.append(hits / last)
    return dict(mAP=np.mean(AP), mINP=np.mean(INP), cmc={r: np.mean(np.array(first) <= r) for r in ranks}, n=len(AP), order=junk_free)


@st.composite
def retrieval(draw):
    "Small integer features (exact, full of ties), few identities and cameras"
    seed, Q, G, D = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 6)), draw(st.integers(1, 14)), draw(st.integers(1, 3))
    people, cameras, levels = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)
    q, g = rng.integers(0, levels, (Q, D)).astype(float), rng.integers(0, levels, (G, D)).astype(float)
    qi, gi, qc, gc = rng.integers(0, people, Q), rng.integers(0, people, G), rng.integers(0, cameras, Q), rng.integers(0, cameras, G)
    return q, g, qi, gi, *((qc, gc) if draw(st.booleans()) else (None, None))


@settings(max_examples=300, deadline=None)
@given(retrieval(), st.integers(1, 7), st.sampled_from([np.float32, np.float64]))
def test_metrics_equal_the_definition(case, block, dtype):
    q, g, *labels = case
    if not matches_and_junk(*labels)[0].size:
        with pytest.raises(ValueError, match="no query has a match left"): evaluate(q, g, *labels)
        return
    got, want = evaluate(q.astype(dtype), g.astype(dtype), *labels, metric="euclidean", block=block), slow(q, g, *labels)
    assert got.mAP == pytest.approx(want["mAP"], abs=1e-12) and got.mINP == pytest.approx(want["mINP"], abs=1e-12)
    assert got.cmc == pytest.approx(want["cmc"]) and (got.queries, got.unmatched) == (want["n"], len(q) - want["n"])
    top = nearest_gallery(q, g, *labels, k=len(g), metric="euclidean", block=block)
    assert [row[row >= 0].tolist() for row in top] == want["order"]


@settings(max_examples=100, deadline=None)
@given(retrieval(), st.integers(1, 7))
def test_per_query_rows_say_which_images(case, block):
    q, g, qi, gi, qc, gc = case
    if not matches_and_junk(qi, gi, qc, gc)[0].size: return
    want = slow(q, g, qi, gi, qc, gc)
    for i, row in evaluate(q, g, qi, gi, qc, gc, metric="euclidean", block=block).per_query.iterrows():
        right = [j for j in want["order"][i] if gi[j] == qi[i]]
        wrong = [j for j in want["order"][i] if gi[j] != qi[i]]
        assert row.matches == len(right) and row.best_match == (right or [-1])[0] and row.best_wrong == (wrong or [-1])[0]
        if right: assert row.first_hit == 1 + want["order"][i].index(right[0]) and row.match_distance == pytest.approx(np.linalg.norm(q[i] - g[right[0]]))
        else: assert np.isnan(row.AP) and np.isnan(row.INP) and row.first_hit == 0 and np.isnan(row.match_distance)
        if wrong: assert row.wrong_distance == pytest.approx(np.linalg.norm(q[i] - g[wrong[0]]))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 30), st.integers(1, 6))
def test_ranks_equal_a_stable_argsort(seed, b, G, levels):
    rng = np.random.default_rng(seed)
    d = rng.integers(0, levels, (b, G)).astype(np.float32)
    row, column = np.nonzero(rng.random((b, G)) < .5)
    want = d.argsort(1, kind="stable").argsort(1) + 1
    assert (match_ranks(d, row, column) == want[row, column]).all()


def test_hand_computed():
    line, ids, cams = np.arange(1., 7.)[:, None], [7, 7, 1, 7, 0, 7], [2, 0, 0, 1, 1, 1]
    r = evaluate([[0.]], line, [7], ids, [2], cams, metric="euclidean", ranks=(1, 3))
    assert r.mAP == pytest.approx((1 + 2/3 + 3/5) / 3) and r.mINP == pytest.approx(3/5) and r.cmc == {1: 1., 3: 1.}
    r = evaluate([[0.]], line, [1], ids, metric="euclidean", ranks=(1, 2, 3))  # one match, third place
    assert r.mAP == r.mINP == pytest.approx(1/3) and r.cmc == {1: 0., 2: 0., 3: 1.} and r.curve(4).tolist() == [0, 0, 1, 1]
    assert evaluate([[0.]], [[3.]], [1], [1], ranks=(1,)).mAP == 1  # a single gallery image


def test_one_camera_and_no_camera():
    q, g, qi, gi = np.array([[0.], [5.]]), np.array([[0.], [1.], [5.]]), [1, 2], [1, 3, 2]
    with pytest.raises(ValueError, match=r"query cameras 1 \(4\), gallery cameras 1 \(4\)"): evaluate(q, g, qi, gi, [4, 4], [4, 4, 4])
    assert evaluate(q, g, qi, gi, metric="euclidean").mAP == 1  # the rule of the camera is off
    with pytest.raises(ValueError, match="or neither"): evaluate(q, g, qi, gi, [4, 4])


def test_ties_go_to_the_lower_position_wherever_the_duplicate_lies():
    rng = np.random.default_rng(0)
    for G in (3, 17, 100, 1003):
        g = rng.normal(size=(G, 37)).astype(np.float32)
        g[-1] = g[G // 2] = g[0]
        for metric in ("cosine", "euclidean"):
            blocks = np.concatenate([d.copy() for _, d in distance_blocks(rng.normal(size=(9, 37)).astype(np.float32), g, metric, 4)])
            assert (blocks[:, [0]] == blocks[:, [G // 2, -1]]).all()
        last = evaluate(g[:1], g, ["me"], ["you"] * (G - 1) + ["me"], metric="cosine", ranks=(1, 2, 3))
        assert last.per_query.first_hit[0] == 3


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, torch.float64, "list", "strided"])
def test_arrays_and_tensors_of_any_precision(kind):
    rng = np.random.default_rng(0)
    q, g, qi, gi = rng.integers(0, 9, (5, 3)), rng.integers(0, 9, (20, 3)), np.arange(5) % 3, np.arange(20) % 3
    want = evaluate(q.astype(float), g.astype(float), qi, gi, metric="euclidean")
    def cast(x): return x.tolist() if kind == "list" else np.repeat(x, 2, 1)[::-1, ::2][::-1] if kind == "strided" else torch.tensor(x).to(kind) if isinstance(kind, torch.dtype) else x.astype(kind)
    for ids in (list, torch.tensor, pd.Series, lambda x: np.array([f"p{v}" for v in x])):
        got = evaluate(cast(q), cast(g), ids(qi), ids(gi), metric="euclidean")
        assert got.mAP == want.mAP and got.cmc == want.cmc


def test_features_with_gradient_are_accepted_and_untouched():
    q, g = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4)
    before = q.detach().clone(), g.clone()
    for rerank in (False, True): evaluate(q, g, [0, 1, 2], [0, 1, 2] * 2, rerank=rerank)
    assert torch.equal(q.detach(), before[0]) and torch.equal(g, before[1])


def test_scale_does_not_matter_for_cosine_and_a_zero_vector_is_far_from_none():
    rng = np.random.default_rng(0)
    q, g, ids = rng.normal(size=(6, 8)), rng.normal(size=(30, 8)), np.arange(30) % 6
    g[7] = 0
    a, b = evaluate(q, g, ids[:6], ids), evaluate(1e6 * q, g * rng.uniform(.1, 10, (30, 1)), ids[:6], ids)
    assert a.mAP == pytest.approx(b.mAP) and np.isfinite(a.per_query.match_distance).all()


@pytest.mark.parametrize("change, message", [
    (dict(query=np.zeros((0, 3))), r"query features have shape \(0, 3\)"),
    (dict(gallery=np.zeros(3)), r"gallery features have shape \(3,\)"),
    (dict(gallery=np.zeros((4, 2))), "query features are 3 wide, gallery features 2"),
    (dict(query=np.full((2, 3), np.nan)), "query features are not finite in 2 of 2 rows, first row 0"),
    (dict(gallery=np.full((4, 3), np.inf)), "gallery features are not finite"),
    (dict(query_ids=[1]), r"query_ids has shape \(1,\), but there are 2 query images"),
    (dict(gallery_ids=np.zeros((4, 1))), "gallery_ids has shape"),
    (dict(query_cams=[1], gallery_cams=[1] * 4), "query_cams has shape"),
    (dict(metric="l2"), "metric 'l2' is unknown"), (dict(metric="l2", rerank=True), "metric 'l2' is unknown"),
    (dict(ranks=()), "give at least one"), (dict(ranks=(0, 1)), "counting from 1"), (dict(block=0), "at least one query per block"),
    (dict(query_ids=["a", "b"], gallery_ids=["c"] * 4), "0 in both"),
])
def test_bad_input_is_one_line(change, message):
    rng = np.random.default_rng(0)
    good = dict(query=rng.normal(size=(2, 3)), gallery=rng.normal(size=(4, 3)), query_ids=[1, 2], gallery_ids=[1, 2, 1, 2])
    with pytest.raises(ValueError, match=message) as e: evaluate(**(good | change))
    assert "\n" not in str(e.value)


def slow_k_reciprocal(x, Q, k1, k2, share):
    "Sets and dense rows, as [k-reciprocal] words it"
    N = len(x)
    d = ((x[:, None] - x[None]) ** 2).sum(-1)
    d /= d.max(1, keepdims=True)
    order = np.stack([sorted(range(N), key=lambda j: (j != i, d[i, j], j)) for i in range(N)])
    def near(i, k): return set(order[i, :k + 1])
    def mutual(i, k): return {j for j in near(i, k) if i in near(j, k)}
    V = np.zeros((N, N))
    for i in range(N):
        own = mutual(i, k1)
        members = own.union(*(w for w in (mutual(j, round(k1 / 2)) for j in own) if len(w & own) > 2 / 3 * len(w)))
        for j in members: V[i, j] = np.exp(-d[i, j])
        V[i] /= V[i].sum()
    V = np.stack([V[order[i, :k2]].mean(0) for i in range(N)])
    out = np.empty((Q, N - Q))
    for i in range(Q):
        for j in range(Q, N): out[i, j - Q] = (1 - share) * (1 - np.minimum(V[i], V[j]).sum() / np.maximum(V[i], V[j]).sum()) + share * d[i, j]
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 30), st.integers(1, 8), st.integers(1, 5), st.sampled_from([0., .3, 1.]), st.integers(1, 9))
def test_reranking_equals_the_definition(seed, Q, G, k1, k2, share, block):
    x = np.random.default_rng(seed).normal(size=(Q + G, 5))
    k1, k2 = min(k1, Q + G - 1), min(k2, k1 + 1, Q + G)
    got = k_reciprocal_distances(x[:Q], x[Q:], k1, k2, share, metric="euclidean", block=block)
    np.testing.assert_allclose(got.numpy(), slow_k_reciprocal(x, Q, k1, k2, share), atol=1e-6)


def test_reranked_metrics_are_those_of_the_reranked_distances():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(8), 6)
    x = (rng.normal(size=(8, 6))[ids] + rng.normal(size=(48, 6)))
    q = np.arange(48) % 6 == 0
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    want = slow(None, None, ids[q], ids[~q], distances=slow_k_reciprocal(np.concatenate([unit[q], unit[~q]]), 8, 20, 6, .3))
    for block in (3, 512):
        got = evaluate(x[q], x[~q], ids[q], ids[~q], rerank=True, block=block)
        assert got.mAP == pytest.approx(want["mAP"]) and got.mINP == pytest.approx(want["mINP"])
    want = slow(None, None, ids[q], ids[~q], distances=slow_k_reciprocal(np.concatenate([unit[q], unit[~q]]), 8, 7, 3, .1))
    assert evaluate(x[q], x[~q], ids[q], ids[~q], rerank=dict(k1=7, k2=3, lambda_value=.1)).mAP == pytest.approx(want["mAP"])
    assert evaluate(x[q], x[~q], ids[q], ids[~q], rerank={}).mAP == got.mAP != evaluate(x[q], x[~q], ids[q], ids[~q]).mAP


def test_reranking_a_handful_of_images_and_duplicates():
    assert k_reciprocal_distances([[0., 1.]], [[0., 1.]]).shape == (1, 1)
    d = k_reciprocal_distances(np.ones((2, 3)), np.ones((5, 3)))
    assert d.shape == (2, 5) and d.isfinite().all() and (d >= -1e-6).all()
    for bad in (dict(k1=0), dict(k2=0), dict(lambda_value=1.5)):
        with pytest.raises(ValueError, match="re-ranking with"): k_reciprocal_distances([[0., 1.]], [[0., 1.]], **bad)


@settings(max_examples=60, deadline=None)
@given(retrieval(), st.integers(1, 7))
def test_verification_equals_counting_pairs(case, block):
    q, g, qi, gi, qc, gc = case
    d = np.sqrt(((q[:, None] - g[None]) ** 2).sum(-1))
    same = qi[:, None] == gi
    counts = np.ones_like(same) if qc is None else ~(same & (qc[:, None] == gc))
    right, wrong = d[same & counts], d[~same]
    if not right.size or not wrong.size:
        with pytest.raises(ValueError, match="pairs of both kinds"): verification(q, g, qi, gi, qc, gc, metric="euclidean")
        return
    r = verification(q, g, qi, gi, qc, gc, metric="euclidean", block=block)
    assert r.auc == pytest.approx(((right[:, None] < wrong) + .5 * (right[:, None] == wrong)).mean())
    for t, tpr, fpr in zip(np.sort(right), r.tpr, r.fpr): assert (tpr, fpr) == ((right <= t).mean(), (wrong <= t).mean())
    for f in (0, .1, .5, 1): assert r.tpr_at(f) == max([(right <= t).mean() for t in right if (wrong <= t).mean() <= f], default=0)


def made_up(noise, seed=0, people=60):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(people), 5)
    x = np.random.default_rng(1).normal(size=(people, 12))[ids] + noise * rng.normal(size=(len(ids), 12))
    q = np.arange(len(ids)) % 5 < 2
    return x[q], x[~q], ids[q], ids[~q]


def test_bootstrap_is_seeded_and_brackets_the_mean():
    a, b, c = (evaluate(*made_up(1.), bootstrap=500, seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(a.intervals, b.intervals)
    assert not a.intervals.equals(c.intervals) and list(a.intervals.index) == ["mAP", "R1", "R5", "R10", "mINP"]
    assert (a.intervals.low <= a.summary()).all() and (a.summary() <= a.intervals.high).all()
    assert evaluate(*made_up(1.)).intervals is None and "(" in repr(a)


def test_bootstrap_resamples_identities_not_queries():
    values, ids = np.repeat(np.random.default_rng(0).random(40), 25), np.repeat(np.arange(40), 25)
    spread = bootstrap_means(values[:, None], ids, 2000).std()
    assert spread == pytest.approx(values.std() / np.sqrt(40), rel=.1)  # not sqrt(1000)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        per = rng.random(50)
        AP = np.clip(np.repeat(per, 4), 0, 1)
        table = pd.DataFrame(dict(pid=np.repeat(np.arange(50), 4), matches=1, AP=AP, INP=AP, first_hit=1))
        low, high = bootstrap_intervals(table, resamples=300, seed=trial).loc["mAP"]
        inside += low <= .5 <= high
    assert .89 <= inside / 200 <= .99


def test_paired_comparison():
    q, g, qi, gi = made_up(1.)
    good, poor = evaluate(q, g, qi, gi), evaluate(q + .5 * np.random.default_rng(3).normal(size=q.shape), g, qi, gi)
    table = compare(poor, good)
    assert table.loc["mAP", "difference"] == pytest.approx(good.mAP - poor.mAP) and table.loc["mAP", "low"] > 0 and table.loc["mAP", "better"] == 1
    pd.testing.assert_series_equal(compare(good, poor)["difference"], -table["difference"])
    apart = [evaluate(*made_up(1.), bootstrap=1000).intervals.loc["mAP"] for _ in range(1)][0]
    assert table.loc["mAP", "high"] - table.loc["mAP", "low"] < apart.high - apart.low
    with pytest.raises(ValueError, match="differ in their queries"): compare(good, evaluate(q[1:], g, qi[1:], gi))
    assert (compare(good, good)["better"] == .5).all()                     # nobody is ahead
    with pytest.raises(ValueError, match="differ in their queries"): compare(good, evaluate(q, g[:-1], qi, gi[:-1]))


def test_import_is_light():
    done = subprocess.run([sys.executable, "-c", "import sys, clip_dfgs.evaluation; print([m for m in ('torchvision','open_clip','timm','matplotlib','scipy','sklearn') if m in sys.modules])"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_far_below_the_matrix():
    code = textwrap.dedent("""
        import numpy as np, torch
        from clip_dfgs.evaluation import evaluate, k_reciprocal_distances
        def line(name): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) / 1e3
        rng = np.random.default_rng(0)
        q, g = rng.standard_normal((4000, 32), dtype=np.float32), rng.standard_normal((40000, 32), dtype=np.float32)
        qi, gi = rng.integers(0, 2000, 4000), rng.integers(0, 2000, 40000)
        evaluate(q[:50], g[:50], qi[:50] * 0, gi[:50] * 0)
        open("/proc/self/clear_refs", "w").write("5")
        before = line("VmRSS")
        evaluate(q, g, qi, gi, block=128)
        print(line("VmHWM") - before)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150, "MB; the matrix would be 640 MB"

@pytest.mark.parametrize('bootstrap', [-1, -1000])
def test_negative_bootstrap_is_refused(bootstrap):
    with pytest.raises(ValueError, match=f'bootstrap={bootstrap}: give the number'): evaluate(np.eye(2), np.eye(2), [0, 1], [0, 1], bootstrap=bootstrap)
    with pytest.raises(ValueError, match='resamples=0: intervals need at least 1'): bootstrap_means(np.ones((2, 1)), [0, 1], 0)
