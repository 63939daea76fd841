"The identity graph against its definition."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from clip_dfgs.graph import graph_recall, identity_features, load_graph, nearest_identities, save_graph


def definition(x, k, skip=0, metric="euclidean", second=None, weight=1.):
    "Sorted by (distance, index), one identity at a time, in double precision."
    def distances(x):
        x = x.double().numpy()
        if metric == "cosine": x = x / np.linalg.norm(x, axis=1, keepdims=True); return 1 - x @ x.T
        return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    d = distances(x) + (0 if second is None else weight * distances(second))
    return [sorted((j for j in range(len(x)) if j != i), key=lambda j: (d[i, j], j))[skip:skip + k] for i in range(len(x))]


def cloud(n, width, seed): return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(1, 70), st.sampled_from(["euclidean", "cosine"]), st.integers(0, 99))
def test_graph_is_its_definition(n, k, skip, block, metric, seed):
    x = cloud(n, 5, seed)
    assert nearest_identities(x, k, skip, metric, block=block).tolist() == definition(x, k, skip, metric)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 50), st.integers(1, 6), st.integers(0, 3), st.integers(1, 60), st.integers(0, 99))
def test_ties_go_to_the_lower_index(n, k, skip, block, seed):
    x = torch.randint(0, 3, (n, 2), generator=torch.Generator().manual_seed(seed)).float()     # whole numbers: distances are exact
    assert nearest_identities(x, k, skip, block=block).tolist() == definition(x, k, skip)


@pytest.mark.parametrize("n", [1, 2, 40, 700])
def test_all_identities_coincide(n):
    assert nearest_identities(torch.ones(n, 4), 3, block=64).tolist() == [[j for j in range(min(n, 4)) if j != i][:min(3, n - 1)] for i in range(n)]


def test_far_from_the_origin():
    "The product formula loses all its digits here; the direct distances do not."
    x = cloud(300, 4, 0).double() + 5000
    assert nearest_identities(x.float(), 5).tolist() == definition(x.float(), 5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_dual_distance(metric):
    x, t = cloud(80, 6, 1), cloud(80, 3, 2)
    assert nearest_identities(x, 7, 1, metric, second=t, weight=0.7, block=32).tolist() == definition(x, 7, 1, metric, t, 0.7)


@pytest.mark.parametrize("second", [False, True])
def test_faiss_candidates_get_the_exact_second_look(second):
    pytest.importorskip("faiss")
    centre = cloud(60, 16, 3).repeat_interleave(50, 0) * 4
    x, t = centre + cloud(3000, 16, 4), cloud(3000, 8, 5)
    options = dict(second=t, weight=0.1) if second else {}
    exact, found = nearest_identities(x, 10, method="exact", **options), nearest_identities(x, 10, method="faiss", recall=0.9, **options)
    recall = (exact[:, :, None] == found[:, None]).any(2).float().mean()
    assert recall > 0.85 and abs(graph_recall(found, x, sample=1000, **options) - recall) < 0.05
    assert graph_recall(exact, x, **options) == 1
    assert all(len(set(r)) == 10 and i not in r for i, r in enumerate(found.tolist()))


def test_impossible_requests():
    x = cloud(5, 2, 0)
    with pytest.raises(ValueError, match="k=-1"): nearest_identities(x, -1)
    with pytest.raises(ValueError, match="metric='l1'"): nearest_identities(x, 1, metric="l1")
    with pytest.raises(ValueError, match="method='fast'"): nearest_identities(x, 1, method="fast")
    with pytest.raises(ValueError, match="5 and 4 identities"): nearest_identities(x, 1, second=x[:4])
    with pytest.raises(ValueError, match="1 of 5 features are not finite"): nearest_identities(x.where(torch.arange(5)[:, None] != 2, torch.nan), 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=40), st.integers(0, 99))
def test_identity_features_are_means(labels, seed):
    labels = np.array(labels + [0, 1, 2, 3, 4])
    x = cloud(len(labels), 3, seed)
    expected = torch.stack([x[labels == v].mean(0) for v in range(5)])
    assert torch.allclose(identity_features(x, labels), expected, atol=1e-6)
    one = identity_features(x, labels, reduce="random", rng=np.random.default_rng(seed))
    assert all(any(torch.equal(one[v], f) for f in x[labels == v]) for v in range(5))


def test_saved_graph_comes_back(tmp_path):
    graph = nearest_identities(cloud(30, 4, 0), 5)
    save_graph(tmp_path / "g.npz", graph, k=5, skip=0, side="text")
    again, parameters = load_graph(tmp_path / "g.npz")
    assert torch.equal(again, graph) and parameters == dict(k=5, skip=0, side="text")
    assert [p.name for p in tmp_path.iterdir()] == ["g.npz"]
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="bad.npz"): load_graph(tmp_path / "bad.npz")
