"The identity graph against its definition."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_dfgs.sampling.graph import choose_images, identity_features, nearest_across_domains, nearest_identities


def distances(x, metric):
    "The whole matrix, in double precision."
    x = x.double().numpy()
    if metric == 'euclidean': return np.sqrt(((x[:, None] - x[None])**2).sum(-1))
    x = x/np.linalg.norm(x, axis=1, keepdims=True)
    return 1 - x @ x.T


def definition(x, k, skip_nearest=0, metric='euclidean', second=None, weight=1.):
    "Sorted by (distance, index), one identity at a time."
    d = distances(x, metric) + (0 if second is None else weight*distances(second, metric))
    def others(i): return sorted((j for j in range(len(x)) if j != i), key=lambda j: (d[i, j], j))
    return [others(i)[skip_nearest:skip_nearest + k] for i in range(len(x))]


def cloud(n, width, seed): return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(1, 70),
       st.sampled_from(['euclidean', 'cosine']), st.integers(0, 99))
def test_graph_is_its_definition(n, k, skip_nearest, block, metric, seed):
    x = cloud(n, 5, seed)
    found = nearest_identities(x, k, skip_nearest, metric, block=block).tolist()
    assert found == definition(x, k, skip_nearest, metric)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 50), st.integers(1, 6), st.integers(0, 3), st.integers(1, 60), st.integers(0, 99))
def test_ties_go_to_the_lower_index(n, k, skip_nearest, block, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 3, (n, 2), generator=draw).float()  # whole numbers: distances are exact
    assert nearest_identities(x, k, skip_nearest, block=block).tolist() == definition(x, k, skip_nearest)


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_dual_distance(metric):
    x, t = cloud(80, 6, 1), cloud(80, 3, 2)
    got = nearest_identities(x, 7, 1, metric, second=t, weight=0.7, block=32)
    assert got.tolist() == definition(x, 7, 1, metric, t, 0.7)


@pytest.mark.parametrize('second', [False, True])
def test_cells_are_searched_exactly(second):
    "Few neighbors are missed, as few as were asked for; with all cells the graph is the exact one."
    center = cloud(60, 16, 3).repeat_interleave(50, 0)*4
    x, t = center + cloud(3000, 16, 4), cloud(3000, 8, 5)
    options = dict(second=t, weight=0.1) if second else {}
    exact = nearest_identities(x, 10, method='exact', **options)
    found = nearest_identities(x, 10, method='cells', recall=0.9, **options)
    recall = (exact[:, :, None] == found[:, None]).any(2).float().mean()
    assert recall > 0.85 and all(len(set(r)) == 10 and i not in r for i, r in enumerate(found.tolist()))


@pytest.mark.parametrize('x', [torch.ones(50, 3), cloud(50, 3, 0), cloud(3, 2, 0)])
def test_cells_of_few_or_equal_identities(x):
    "Cells with fewer identities than neighbors are joined by the next ones."
    assert torch.equal(nearest_identities(x, 40, method='cells', recall=1), nearest_identities(x, 40))


@pytest.mark.parametrize('change, message', [
    (dict(k=1.5), 'k=1.5'), (dict(skip_nearest=-1), 'skip_nearest=-1'), (dict(block=0), 'block=0'),
    (dict(metric='l1'), "unknown metric 'l1'"), (dict(method='fast'), "unknown method 'fast'"),
    (dict(second=torch.ones(4, 2)), '5 and 4 identities'), (dict(second=torch.ones(5, 2), weight=np.nan), 'weight=nan'),
    (dict(features=[[1.], [2.], [np.nan], [3.], [4.]]), '1 of 5 features are not finite, first row 2')])
def test_impossible_requests(change, message):
    with pytest.raises(ValueError, match=message): nearest_identities(**dict(features=cloud(5, 2, 0), k=1) | change)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=40), st.integers(0, 99))
def test_identity_features_are_means(labels, seed):
    labels = np.array(labels + [0, 1, 2, 3, 4])
    x = cloud(len(labels), 3, seed)
    expected = torch.stack([x[labels == v].mean(0) for v in range(5)])
    assert torch.allclose(identity_features(x, labels), expected, atol=1e-6)
    one = identity_features(x, labels, reduce='random', rng=np.random.default_rng(seed))
    assert all(any(torch.equal(one[v], f) for f in x[labels == v]) for v in range(5))


WHO, WHERE = [0, 0, 0, 1, 1, 2], [0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize('cast', [torch.tensor, np.float32, pd.Categorical])
def test_labels_of_any_type_are_the_same_labels(cast):
    x = cloud(6, 3, 0)
    for how in ('camera', 'random', 'all'):
        assert choose_images(cast(WHO), cast(WHERE), how).tolist() == choose_images(WHO, WHERE, how).tolist()
    got = identity_features(x, cast(WHO), reduce='camera', cameras=[f'c{v}' for v in WHERE])
    assert torch.equal(got, identity_features(x, WHO, reduce='camera', cameras=WHERE))


def test_unknown_cameras_are_one_camera():
    plain = choose_images(WHO).tolist()
    for unknown in ([None]*6, np.full(6, np.nan), [-1]*6): assert choose_images(WHO, unknown).tolist() == plain


@pytest.mark.parametrize('labels, cameras, message', [
    ([0, 0, 0, 1, 1, -1], WHERE, 'labels: 1 of 6 .* missing .* first row 5'),
    (WHO, [0, 0, 0, 1, 1, np.nan], 'cameras: 1 of 6 .* unknown, first row 5'), (WHO, WHERE[:5], 'cameras has shape')])
def test_labels_that_cannot_be_understood_are_refused(labels, cameras, message):
    with pytest.raises(ValueError, match=message): choose_images(labels, cameras)


@pytest.mark.parametrize('labels', [['a']*6, [0, 0, 0, 1, 1, -2], [0, 0, 0, 1, 1, 3], WHO[:5]])
def test_identity_features_need_labels_from_zero(labels):
    with pytest.raises((ValueError, RuntimeError), match='label|negative'): identity_features(cloud(6, 3, 0), labels)


def test_domains_may_have_names():
    x, domains = cloud(30, 4, 0), np.arange(30) % 3
    want = nearest_across_domains(x, domains, 4, 'across')
    for named in ([f'd{v}' for v in domains], torch.tensor(domains)):
        assert torch.equal(nearest_across_domains(x, named, 4, 'across'), want)
    with pytest.raises(ValueError, match='domains'): nearest_across_domains(x, domains[1:], 4)


@pytest.mark.parametrize('how', ['within', 'across', 'balanced'])
@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_rules_about_domains_by_their_definition(how, metric):
    "Sort everybody who is allowed by the dual distance; balanced takes turns among the domains."
    x, words, domains = cloud(24, 4, 1), cloud(24, 3, 2), np.arange(24) % 3
    got = nearest_across_domains(x, domains, 4, how, skip_nearest=1, metric=metric, second=words, weight=.7)
    def gap(x, i, j):
        a, b = (v.double() for v in (x[i], x[j]))
        if metric == 'euclidean': return float((a - b).norm())
        return 1 - float(a @ b/(a.norm()*b.norm()))
    for i in range(24):
        order = sorted((j for j in range(24) if j != i), key=lambda j: gap(x, i, j) + .7*gap(words, i, j))
        own = [j for j in order if domains[j] == domains[i]]
        other = [j for j in order if domains[j] != domains[i]]
        turns = zip(*([j for j in order if domains[j] == domain][1:3] for domain in range(3)))
        want = dict(within=own[1:5], across=other[1:5], balanced=[j for turn in turns for j in turn][:4])[how]
        assert got[i].tolist() == want


KINDS = [torch.float16, torch.float64]


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
@pytest.mark.parametrize('dtype', KINDS, ids=str)
@pytest.mark.parametrize('case', ['cloud', 'copies', 'offset', 'zeros', 'outlier', 'near copies'])
def test_hard_cases_are_the_definition_in_double_precision(case, dtype, metric):
    "More rows than groups are worth, so that both ways of choosing candidates are met."
    x = cloud(700, 8, 7)
    if case == 'copies': x = x[torch.arange(700) % 90]
    if case == 'offset': x = x + 1e4
    if case == 'zeros': x[::7] = 0
    if case == 'outlier': x[5] *= 1e3
    if case == 'near copies': x = x[torch.arange(700) % 90] + 1e-6*x
    x = x.to(dtype)
    view = x.float() if metric == 'euclidean' else torch.nn.functional.normalize(x.float(), dim=1)
    d = (view.double()[:, None] - view.double()[None]).square().sum(-1)
    d = d.sqrt() if metric == 'euclidean' else d/2
    want = d.fill_diagonal_(torch.inf).argsort(dim=1, stable=True)[:, 1:8]
    for block in (64, 1024): assert torch.equal(nearest_identities(x, 7, 1, metric, block=block), want)
