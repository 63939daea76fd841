"""Metrics against slow references written from their definitions, labels and features of any kind, and precision.

Cases computed by hand, re-ranking by its definition, and intervals are asserted by the notebooks.
"""
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_dfgs.evaluation.bootstrap import _bootstrap_means, bootstrap_intervals, compare
from clip_dfgs.evaluation.distances import distance_blocks
from clip_dfgs.evaluation.matching import matches_and_junk
from clip_dfgs.evaluation.metrics import evaluate, nearest_gallery, verification
from clip_dfgs.evaluation.reranking import k_reciprocal_distances
from clip_dfgs.sampling.graph import nearest_identities
from clip_dfgs.utils.tensors import full_precision_matmul

# small integer features are often equal, which evaluate warns about
pytestmark = pytest.mark.filterwarnings('ignore:.*queries have a gallery image:UserWarning')


def by_definition(query, gallery, qi, gi, qc=None, gc=None, distances=None):
    "Gallery positions of each query without junk, by squared distance and then position; places of its matches."
    for i, x in enumerate(query):
        d = ((x - gallery)**2).sum(1) if distances is None else distances[i]
        order = [j for j in np.argsort(d, kind='stable') if qc is None or gi[j] != qi[i] or gc[j] != qc[i]]
        yield order, [place for place, j in enumerate(order, 1) if gi[j] == qi[i]]


def mean_AP(cases):
    return np.mean([np.mean([n/place for n, place in enumerate(places, 1)]) for _, places in cases if places])


@st.composite
def retrieval(draw):
    "Small integer features (exact, full of ties), few identities and cameras"
    seed, Q, G = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 6)), draw(st.integers(1, 14))
    width, levels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    identities, cameras = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(seed)
    q, g = (rng.integers(0, levels, (n, width)).astype(float) for n in (Q, G))
    labels = [rng.integers(0, most, n) for most in (identities, cameras) for n in (Q, G)]
    return q, g, *(labels if draw(st.booleans()) else [*labels[:2], None, None])


@settings(max_examples=60, deadline=None)
@given(retrieval(), st.integers(1, 7), st.sampled_from([np.float32, np.float64]))
def test_metrics_equal_the_definition(case, block, dtype):
    q, g, *labels = case
    if not matches_and_junk(*labels)[0].size:
        with pytest.raises(ValueError, match='no query has a match left'): evaluate(q, g, *labels)
        return
    got = evaluate(q.astype(dtype), g.astype(dtype), *labels, metric='euclidean', block=block)
    want = list(by_definition(q, g, *labels))
    scored = [places for _, places in want if places]
    assert got.mAP == pytest.approx(mean_AP(want), abs=1e-12)
    assert got.mINP == pytest.approx(np.mean([len(places)/places[-1] for places in scored]), abs=1e-12)
    assert got.cmc == pytest.approx({r: np.mean([places[0] <= r for places in scored]) for r in (1, 5, 10)})
    assert (got.queries, got.unmatched) == (len(scored), len(q) - len(scored))
    top = nearest_gallery(q, g, *labels, k=len(g), metric='euclidean', block=block)
    assert [row[row >= 0].tolist() for row in top] == [order for order, _ in want]
    for x, qi, (order, places), row in zip(q, labels[0], want, got.per_query.itertuples()):
        right, wrong = ([j for j in order if (labels[1][j] == qi) == same] or [-1] for same in (True, False))
        assert (row.matches, row.first_hit) == (len(places), places[0] if places else 0)
        assert (row.best_match, row.best_wrong) == (right[0], wrong[0])
        assert np.isnan([row.AP, row.INP, row.match_distance]).all() == (not places)
        for j, distance in ((right[0], row.match_distance), (wrong[0], row.wrong_distance)):
            if j >= 0: assert distance == pytest.approx(np.linalg.norm(x - g[j]))


def test_ties_go_to_the_lower_position_wherever_the_duplicate_lies():
    rng = np.random.default_rng(0)
    for G in (3, 17, 100, 1003):
        g = rng.normal(size=(G, 37)).astype(np.float32)
        g[-1] = g[G//2] = g[0]
        q = rng.normal(size=(9, 37)).astype(np.float32)
        for metric in ('cosine', 'euclidean'):
            blocks = np.concatenate([d.copy() for _, d in distance_blocks(q, g, metric, 4)])
            assert (blocks[:, [0]] == blocks[:, [G//2, -1]]).all()
        last = evaluate(g[:1], g, ['me'], ['you']*(G - 1) + ['me'], metric='cosine', ranks=(1, 2, 3))
        assert last.per_query.first_hit[0] == 3


KINDS = [np.float16, np.float32, torch.tensor, np.ndarray.tolist, pd.DataFrame, lambda x: list(torch.tensor(x)),
         lambda x: np.repeat(x, 2, 1)[::-1, ::2][::-1], lambda x: torch.tensor(x).bfloat16(),
         lambda x: torch.tensor(x).double().requires_grad_()]


def test_features_of_any_kind_and_precision():
    rng = np.random.default_rng(0)
    q, g, qi, gi = rng.integers(0, 9, (5, 3)), rng.integers(0, 9, (20, 3)), np.arange(5) % 3, np.arange(20) % 3
    want = evaluate(q.astype(float), g.astype(float), qi, gi, metric='euclidean')
    for cast in KINDS:
        got = evaluate(cast(q), cast(g), qi, gi, metric='euclidean')
        assert got.mAP == want.mAP and got.cmc == want.cmc


def test_scale_and_a_common_offset_change_nothing():
    rng, ids = np.random.default_rng(0), np.repeat(np.arange(50), 4)
    x = rng.normal(size=(50, 64))[ids] + 2*rng.normal(size=(200, 64))
    q, g, qi, gi = x[::4], np.delete(x, np.s_[::4], 0), ids[::4], np.delete(ids, np.s_[::4])
    scaled = evaluate(1e6*q, g*rng.uniform(.1, 10, (150, 1)), qi, gi)
    assert scaled.mAP == pytest.approx(evaluate(q, g, qi, gi).mAP)
    for offset, dtype in ((0, np.float32), (100, np.float32), (1e4, np.float32), (1e4, np.float64)):
        far = [(side + offset).astype(dtype) for side in (q, g)]
        far[1][0] = 0  # the row that is subtracted from all must not be this one
        d = ((far[0][:, None].astype(float) - far[1][None])**2).sum(-1)
        got = evaluate(*far, qi, gi, metric='euclidean', block=7)
        assert got.mAP == pytest.approx(mean_AP(by_definition(*far, qi, gi, distances=d)), abs=1e-6)
        near = nearest_gallery(*far, k=5, metric='euclidean')
        assert (near == d.argsort(1, kind='stable')[:, :5]).mean() > .99


BAD = [
    ('query features', dict(query=np.zeros((0, 3)))), ('query features', dict(query=np.full((2, 3), np.nan))),
    ('query features', dict(gallery=np.zeros((4, 2)))), ('gallery features', dict(gallery=np.zeros(3))),
    ('gallery features', dict(gallery=np.full((4, 3), 1e30, np.float32))), ('query_ids', dict(query_ids=[1])),
    ('query_ids', dict(query_ids='12')), ('query_ids', dict(query_ids={1, 2})), ('gallery_ids', dict(gallery_ids=None)),
    ('query_cams', dict(query_cams=[1], gallery_cams=[1]*4)), ('query_cams', dict(query_cams=[1, 1])),
    ('query_scene', dict(exclude_groups=dict(scene=([1], [1]*4)))),
    ('query_scene', dict(exclude_groups=dict(scene=([1, 2], ['a']*4)))), ('metric', dict(metric='l2')),
    ('metric', dict(metric='l2', rerank=True)), ('ranks', dict(ranks=())), ('ranks', dict(ranks='15')),
    ('block', dict(block=2.5)), ('bootstrap', dict(bootstrap=True)), ('rerank', dict(rerank='yes')),
    ('lambda_value', dict(rerank=dict(lambda_value=np.nan))),
    ('identities', dict(query_ids=['a', 'b'], gallery_ids=['c']*4))]


@pytest.mark.parametrize('name, change', BAD)
def test_bad_input_raises_one_line_that_names_it(name, change):
    rng = np.random.default_rng(0)
    good = dict(query=rng.normal(size=(2, 3)), gallery=rng.normal(size=(4, 3)))
    with pytest.raises(ValueError, match=name) as e:
        evaluate(**(good | dict(query_ids=[1, 2], gallery_ids=[1, 2, 1, 2]) | change))
    assert '\n' not in str(e.value)


# Cameras and other groups

def test_one_camera_and_no_camera():
    q, g, qi, gi = np.array([[0.], [5.]]), np.array([[0.], [1.], [5.]]), [1, 2], [1, 3, 2]
    with pytest.raises(ValueError, match=r'query cameras 1 \(4\), gallery cameras 1 \(4\)'):
        evaluate(q, g, qi, gi, [4, 4], [4, 4, 4])
    off = evaluate(q, g, qi, gi, metric='euclidean', ranks=1)
    assert off.cmc == {1: 1.} and off.camera_rule is False and 'no camera rule' in repr(off)


def test_shared_groups_are_left_out_beside_the_camera_rule():
    "A query at 0, identity 5, camera 1, red; matches at 3 (blue) and 6 (green)."
    line = np.arange(1., 7.)[:, None]
    given = [[0.]], line, [5], [5, 5, 5, 6, 9, 5], [1], [1, 2, 2, 1, 2, 3]
    color, clip = (['red'], ['red', 'red', 'blue', 'red', 'red', 'green']), ([7], [1, 1, 1, 7, 7, 7])
    plain = evaluate(*given, metric='euclidean')
    apart = evaluate(*given, metric='euclidean', exclude_groups=dict(color=color))
    assert apart.mAP == pytest.approx((1/1 + 2/4)/2) and apart.per_query.best_wrong[0] == 3  # red, but another identity
    assert apart.excluded == ('color',) and 'without a shared color' in repr(apart)
    both = evaluate(*given, metric='euclidean', exclude_groups=dict(color=color, clip=clip))
    assert both.mAP == 1 and both.per_query.matches[0] == 1
    with pytest.raises(ValueError, match='share the color'):
        evaluate(*given, exclude_groups=dict(color=(['red'], ['red']*6)))
    with pytest.raises(ValueError, match='differ'): compare(plain, apart)
    roc = verification(*given, metric='euclidean', exclude_groups=dict(color=color))
    assert roc.thresholds.tolist() == [3, 6] and roc.fpr.tolist() == [0, 1]


# Labels

IDS, CAMERAS = [0, 1, 2, 0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1, 2, 2, 0]


def measured(ids, cameras=None, other_ids=None):
    "An evaluation of fixed features; the first three rows are the queries."
    x, cams = np.random.default_rng(3).normal(size=(9, 4)) + np.eye(4)[IDS], [None, None]
    if cameras is not None: cams = cameras[:3], cameras[3:]
    return evaluate(x[:3], x[3:], ids[:3], ids[3:] if other_ids is None else other_ids, *cams)


def test_labels_of_any_type_are_the_same_labels():
    want = measured(IDS, CAMERAS)
    for cast in (np.uint64, np.float64, torch.tensor, lambda x: list(torch.tensor(x)), pd.Categorical,
                 lambda x: pd.Series(x, dtype='Int64', index=range(90, 81, -1)).iloc):
        got = measured(cast(IDS), cast(CAMERAS))
        pd.testing.assert_frame_equal(got.per_query, want.per_query)
        assert (got.query_digest, got.gallery_digest) == (want.query_digest, want.gallery_digest)
    for cast in (list, lambda x: np.array(x, 'S9'), lambda x: pd.Series(x, dtype='string').iloc):
        got = measured(*(cast([f'{letter}{v}' for v in x]) for letter, x in (('p', IDS), ('c', CAMERAS))))
        assert got.summary().equals(want.summary()) and got.per_query.pid.tolist() == ['p0', 'p1', 'p2']


@pytest.mark.parametrize('one, other', [(int, str), (str, float), (lambda v: str(v).encode(), int)])
@pytest.mark.parametrize('what', ['ids', 'cams'])
def test_kinds_that_cannot_be_compared_raise(what, one, other):
    x, labels = np.zeros((9, 4)), dict(ids=IDS, cams=CAMERAS)[what]
    mixed = list(map(one, labels[:3])), list(map(other, labels[3:]))
    given = (*mixed, CAMERAS[:3], CAMERAS[3:]) if what == 'ids' else (IDS[:3], IDS[3:], *mixed)
    for function in (evaluate, nearest_gallery, verification):
        with pytest.raises(ValueError, match=f'query_{what} are .*gallery_{what} are '): function(x[:3], x[3:], *given)


@pytest.mark.parametrize('none', [None, np.nan, -1], ids=repr)
def test_missing_labels_are_named_or_mean_unknown(none):
    for row, side, at in ((1, 'query', 1), (5, 'gallery', 2)):
        ids, cameras = ([none if i == row else v for i, v in enumerate(labels)] for labels in (IDS, CAMERAS))
        with pytest.raises(ValueError, match=fr'{side}_ids: 1 of .*first row {at}'): measured(ids, CAMERAS)
        with pytest.raises(ValueError, match=fr'{side}_cams: 1 of .*first row {at}'): measured(IDS, cameras)
    with pytest.raises(ValueError, match='query_cams are all unknown'): measured(IDS, [none]*3 + CAMERAS[3:])
    with pytest.warns(UserWarning, match='unknown: the camera rule is off'): unknown = measured(IDS, [none]*9)
    plain = measured(IDS)
    assert unknown.summary().equals(plain.summary()) and unknown.camera_rule is plain.camera_rule is False


def test_large_identities_are_kept_apart():
    ids, want = [2**53 + v for v in IDS], measured(IDS).per_query.matches.tolist()
    for query, gallery in ((np.uint64, np.int64), (np.int64, np.uint64), (list, torch.tensor)):
        got = measured(query(ids), other_ids=gallery(ids[3:])).per_query
        assert got.matches.tolist() == want and got.pid.tolist() == ids[:3]


def test_text_that_differs_in_spelling_only_is_pointed_out():
    with pytest.warns(UserWarning, match="query_ids have '0000' and gallery_ids have '0'"):
        with pytest.raises(ValueError): measured(['0000', '0001', '0002'], None, '0 1 2 0 1 2'.split())
    with pytest.warns(UserWarning, match="query_cams have 'C0' and gallery_cams have 'c0'"):
        measured(IDS, ['C0']*3 + [f'c{v}' for v in CAMERAS[3:]])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        measured([str(v) for v in IDS], [f'c{v}' for v in CAMERAS])


# The query in its own gallery

@pytest.mark.parametrize('metric, rerank', [('cosine', False), ('euclidean', False), ('cosine', True)])
def test_queries_in_their_own_gallery_are_counted(metric, rerank):
    q, g, qi, gi = made_up(1.)
    options = dict(metric=metric, rerank=rerank)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert evaluate(q, g, qi, gi, **options).self_matches == 0
    both, ids = np.concatenate([g, q[:7]]), np.concatenate([gi, qi[:7]])
    with pytest.warns(UserWarning, match='7 of 120 queries have a gallery image with their own identity'):
        found = evaluate(q, both, qi, ids, **options)
    assert found.self_matches == 7 and '7 with their own image' in repr(found)
    again = q*(1 + 1e-7*np.random.default_rng(0).normal(size=q.shape))  # embedded once more, in other batches
    with pytest.warns(UserWarning, match='120 of 120'): assert evaluate(again, q, qi, qi, **options).self_matches == 120
    cams = [0]*len(q), [1]*len(g) + [0]*7
    with warnings.catch_warnings():  # the camera rule leaves them out
        warnings.simplefilter('error')
        assert evaluate(q, both, qi, ids, *cams, **options).self_matches == 0
        distractor = np.concatenate([gi, np.full(7, 999)])
        assert evaluate(q, both, qi, distractor, **options).self_matches == 0


# Comparisons

def test_only_results_of_one_test_set_are_compared():
    q, g, qi, gi = made_up(1.)
    qc, gc = np.zeros(len(qi), int), np.arange(len(gi)) % 3 + 1
    first = evaluate(q, g, qi, gi, qc, gc)
    turn = np.random.default_rng(0).permutation(len(gi))
    for same in (evaluate(q, g[turn], qi, gi[turn], qc, gc[turn]), evaluate(q, g, qi, gi, qc, gc, metric='euclidean'),
                 evaluate(q, g, torch.tensor(qi), gi.astype(float), qc.tolist(), pd.Series(gc), rerank=True)):
        assert np.isfinite(compare(first, same).to_numpy()).all()
    distractor = np.concatenate([gi, [999]])
    others = {
        'differ in their queries': [evaluate(q[1:], g, qi[1:], gi, qc[1:], gc),
                                    evaluate(q[::-1], g, qi[::-1], gi, qc, gc), evaluate(q, g, qi, gi, qc + 9, gc)],
        'differ in their gallery': [
            evaluate(q, g[:-1], qi, gi[:-1], qc, gc[:-1]), evaluate(q, g, qi, gi, qc, gc + 1),
            evaluate(q, np.concatenate([g, g[:1]]), qi, distractor, qc, np.concatenate([gc, [1]]))],
        'camera rule': [evaluate(q, g, qi, gi)]}
    for message, results in others.items():
        for other in results:
            with pytest.raises(ValueError, match=message): compare(first, other)
            with pytest.raises(ValueError, match=message): compare(other, first)


# Re-ranking

def test_reranking_a_handful_of_images_and_duplicates():
    assert k_reciprocal_distances([[0., 1.]], [[0., 1.]]).shape == (1, 1)
    d = k_reciprocal_distances(np.ones((2, 3)), np.ones((5, 3)))
    assert d.shape == (2, 5) and d.isfinite().all() and (d >= -1e-6).all()


# Verification

@settings(max_examples=60, deadline=None)
@given(retrieval(), st.integers(1, 7))
def test_verification_equals_counting_pairs(case, block):
    q, g, qi, gi, qc, gc = case
    d = np.sqrt(((q[:, None] - g[None])**2).sum(-1))
    same = qi[:, None] == gi
    counts = np.ones_like(same) if qc is None else ~(same & (qc[:, None] == gc))
    right, wrong = d[same & counts], d[~same]
    if not right.size or not wrong.size:
        with pytest.raises(ValueError, match='both kinds'):
            verification(q, g, qi, gi, qc, gc, metric='euclidean')
        return
    r = verification(q, g, qi, gi, qc, gc, metric='euclidean', block=block)
    assert r.auc == pytest.approx(((right[:, None] < wrong) + .5*(right[:, None] == wrong)).mean())
    for t, tpr, fpr in zip(np.sort(right), r.tpr, r.fpr):
        assert (tpr, fpr) == ((right <= t).mean(), (wrong <= t).mean())
    for f in (0, .1, .5, 1):
        allowed = [(right <= t).mean() for t in right if (wrong <= t).mean() <= f]
        assert r.tpr_at(f) == max(allowed, default=0)


# Intervals

def made_up(noise, seed=0, identities=60):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(identities), 5)
    x = np.random.default_rng(1).normal(size=(identities, 12))[ids] + noise*rng.normal(size=(len(ids), 12))
    q = np.arange(len(ids)) % 5 < 2
    return x[q], x[~q], ids[q], ids[~q]


def test_bootstrap_resamples_identities_not_queries():
    values, ids = np.repeat(np.random.default_rng(0).random(40), 25), np.repeat(np.arange(40), 25)
    spread = _bootstrap_means(values[:, None], ids, 2000).std()
    assert spread == pytest.approx(values.std()/np.sqrt(40), rel=.1)  # not sqrt(1000)


@pytest.mark.slow
def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        per = np.repeat(rng.random(50), 4)
        table = pd.DataFrame(dict(pid=np.repeat(np.arange(50), 4), matches=1, AP=per, INP=per, first_hit=1))
        low, high = bootstrap_intervals(table, resamples=300, seed=trial).loc['mAP']
        inside += low <= .5 <= high
    assert .89 <= inside/200 <= .99


# The nearest images

def test_nearest_images_with_some_labels_only():
    q, g, qi, gi = made_up(1.)
    cams = [0]*len(qi), [0]*len(gi)
    assert (nearest_gallery(q, g, qi, gi) == nearest_gallery(q, g)).all()  # no cameras: nothing is left out
    for labels, message in (((qi, None), 'gallery_ids'), ((qi, gi, cams[0], None), 'or neither'),
                            ((None, None, *cams), 'query_ids')):
        with pytest.raises(ValueError, match=message): nearest_gallery(q, g, *labels)
    with pytest.raises(ValueError, match='k='): nearest_gallery(q, g, k=0)


# Products

SETTINGS = {
    'medium': lambda: torch.set_float32_matmul_precision('medium'),
    'of the backend': lambda: setattr(torch.backends.mkldnn.matmul, 'fp32_precision', 'bf16')}


@pytest.fixture
def products():
    "The switches of float32 products, put back after the test."
    owners = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [owner.fp32_precision for owner in owners]
    yield lambda: [owner.fp32_precision for owner in owners]
    torch.set_float32_matmul_precision('highest')
    for owner, value in zip(owners, before): owner.fp32_precision = value


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    "Notes the precision in which every matrix product is asked for."
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in func.name() for name in ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm')):
            self.seen.append((torch.backends.cuda.matmul.fp32_precision, args[-1].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, 'fp32_precision'), reason='switches of torch 2.9')
@pytest.mark.parametrize('caller', SETTINGS)
def test_products_are_exact_whatever_the_caller_allows(caller, products):
    SETTINGS[caller]()
    before, x = products(), torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(40) % 8
    with Products() as noted, torch.autocast('cpu', dtype=torch.bfloat16):
        for metric in ('cosine', 'euclidean'):
            for start, _ in distance_blocks(x, x, metric, 16): assert products() == before  # the caller's turn
            k_reciprocal_distances(x[:8], x[8:], metric=metric)
            nearest_identities(x, 5, metric=metric)
            evaluate(x[:8], x[8:], ids[:8], ids[8:], metric=metric)
        assert torch.is_autocast_enabled('cpu')
    assert len(noted.seen) > 10 and set(noted.seen) == {('ieee', torch.float32)}
    assert products() == before


def test_an_error_inside_puts_the_switches_back(products):
    torch.set_float32_matmul_precision('high')
    with pytest.raises(RuntimeError), full_precision_matmul(): raise RuntimeError
    assert torch.get_float32_matmul_precision() == 'high'


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_memory_stays_far_below_the_matrix():
    code = textwrap.dedent("""
        import numpy as np, torch
        from clip_dfgs.evaluation.metrics import evaluate
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
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150, 'MB; the matrix would be 640 MB'


# Warnings

def warned(*arguments, **options):
    "What an evaluation warns of."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        evaluate(*arguments, **options)
    return ' | '.join(str(w.message) for w in caught)


def test_constant_features_are_warned_about():
    x = np.random.default_rng(0).normal(size=(9, 4))
    ids = IDS[:3], IDS[3:]
    assert not warned(x[:3], x[3:], *ids)
    zero = np.r_[np.zeros((2, 4)), x[2:3]], x[3:], *ids
    assert '2 of 3 query features are zero' in warned(*zero)
    assert not warned(*zero, metric='euclidean')  # there a zero is a point like any other
    assert '1 of 6 gallery features are zero' in warned(x[:3], np.r_[x[3:8], np.zeros((1, 4))], *ids)
    assert 'all gallery features are equal' in warned(x[:3], np.ones((6, 4)), *ids)


@pytest.mark.parametrize('query, gallery, expected', [
    ('c1', ['1', '2'], True), ('cam01', ['1', '2'], True), ('1', ['c1', 'c2'], True), ('c1', ['c2', 'c3'], False),
    ('c1', ['c1', '1'], False), ('door', ['gate', 'yard'], False)])
def test_cameras_of_one_number_under_two_names_are_warned_about(query, gallery, expected):
    x = np.random.default_rng(0).normal(size=(9, 4))
    messages = warned(x[:3], x[3:], IDS[:3], IDS[3:], [query]*3, gallery*3)
    assert ('letter by letter' in messages) == expected
