"""Features, ranks and graphs on a GPU are those of the CPU: `pytest -m cuda` on a machine that has one.

Each test runs on the CPU too, where it takes the GPU's way through evaluation, so that what it asks stays right.
"""
import warnings

import numpy as np
import pytest
import torch

from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.data.records import pool
from clip_dfgs.evaluation import metrics as evaluation
from clip_dfgs.evaluation.distances import distance_blocks
from clip_dfgs.evaluation.metrics import evaluate, nearest_gallery
from clip_dfgs.evaluation.reranking import k_reciprocal_distances
from clip_dfgs.experiments.protocols import seconds_per_step
from clip_dfgs.inference.embed import embed_images, FeatureExtractor
from clip_dfgs.inference.evaluator import evaluate_records
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.sampling.graph import identity_features, nearest_identities
from runs import config


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    if request.param == 'cuda' and not torch.cuda.is_available(): pytest.skip('no GPU')
    monkeypatch.setattr(evaluation, '_ranks_there', lambda device: True)
    return torch.device(request.param)


@pytest.fixture
def cpu_way(monkeypatch):
    "A function that lets `evaluate` and `nearest_gallery` rank as on a CPU from then on."
    return lambda: monkeypatch.setattr(evaluation, '_ranks_there', lambda device: False)


def images(n, size=(128, 64)):
    return np.random.default_rng(0).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def apart(a, b):
    "Largest distance between two features of one image, in units of their length."
    return (torch.linalg.vector_norm(a - b, dim=1)/torch.linalg.vector_norm(b, dim=1)).max().item()


# Features

class Numbers(torch.nn.Module):
    "A model whose feature of an image is the number that its pixels are painted with, found after some work."
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def embed(self, images):
        if images.is_cuda: torch.cuda._sleep(2_000_000)                        # about a millisecond
        return images[:, 0, 0, :1].float()*self.weight


@pytest.mark.parametrize('batch', [1, 3, 64])
def test_blocks_come_back_in_order(device, batch):
    "Reading, copies and autocast overlap; no block is read or handed over before its copy has ended."
    numbers = np.arange(256, dtype=np.uint8)
    painted = np.broadcast_to(numbers[:, None, None, None], (256, 4, 2, 3))
    assert embed_images(Numbers().to(device), painted, batch=batch)[:, 0].tolist() == numbers.tolist()


@pytest.fixture
def exact_convolutions():
    "No TF32 in the convolution of the patches, which torch allows and which is about a thousandth."
    convolutions = getattr(torch.backends.cudnn, 'conv', None)
    if convolutions is None: pytest.skip('switches of torch 2.9')
    before = convolutions.fp32_precision
    convolutions.fp32_precision = 'ieee'
    yield
    convolutions.fp32_precision = before


@pytest.mark.parametrize('part', ['embed', 'last', 'projected'])
def test_features_are_the_cpus(device, part, exact_convolutions):
    model, pixels = ReIDModel.create('pedestrians', 'pedestrians'), images(40)
    want = embed_images(model, pixels, part=part)
    found = embed_images(model.to(device), pixels, part=part, batch=16)
    assert found.device.type == 'cpu' and found.dtype == torch.float32 and not found.is_pinned()
    assert apart(found, want) < 1e-4


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_is_near(device, precision):
    if precision == 'fp16' and device.type == 'cpu': pytest.skip('needs a GPU')
    model = ReIDModel.create('pedestrians', 'pedestrians').to(device)
    some = list(images(40))
    exact, loose = (FeatureExtractor(model, batch=16, precision=p)(some) for p in ('no', precision))
    assert loose.dtype == torch.float32 and 0 < apart(loose, exact) < .05
    assert (loose*exact).sum(1).min() > .998


def test_an_extractor_knows_its_device(device):
    model = ReIDModel.create('pedestrians', None).to(device)
    for name in (None, device, device.type):
        assert FeatureExtractor(model, name).model is model                    # no second copy of the weights
    away = FeatureExtractor(model, 'cpu')
    assert away.device.type == 'cpu' and next(model.parameters()).device.type == device.type


def test_export_moves_nothing(device, tmp_path):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    from clip_dfgs.inference.onnx import export_onnx
    model, some = ReIDModel.create('pedestrians', None).to(device).train(), list(images(5))
    extract = FeatureExtractor(model)
    before = extract(some)
    assert export_onnx(model, tmp_path/'m.onnx') < 1e-3
    assert {t.device.type for t in model.state_dict().values()} == {device.type} and model.training
    assert apart(extract(some), before) < 1e-5


# Ranks

def counted(seed, Q=70, G=900, width=4, identities=30):
    "Whole numbers as features, whose distances are exact and often equal, with identities and cameras."
    rng = np.random.default_rng(seed)
    sides = [rng.integers(-2, 3, (n, width)).astype(np.float32) for n in (Q, G)]
    return sides, [rng.integers(0, identities, n) for n in (Q, G)] + [rng.integers(0, 3, n) for n in (Q, G)]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('block', [16, 512])
@pytest.mark.filterwarnings('ignore:.* queries have a gallery image')
def test_ranks_are_the_cpus_ties_included(device, cpu_way, seed, block):
    sides, labels = counted(seed)
    options = dict(metric='euclidean', block=block)
    there = [torch.from_numpy(x).to(device) for x in sides]
    found, near = evaluate(*there, *labels, **options), nearest_gallery(*there, *labels, k=50, **options)
    cpu_way()
    want = evaluate(*sides, *labels, **options)
    np.testing.assert_array_equal(found.per_query.to_numpy(float), want.per_query.to_numpy(float))
    assert found.self_matches == want.self_matches > 0
    assert (near == nearest_gallery(*sides, *labels, k=50, **options)).all()


def test_queries_without_a_match_and_galleries_without_a_negative(device, cpu_way):
    sides, labels = counted(0, Q=8, G=30, identities=2)
    labels[0][:3] = 7                                                          # of no gallery image
    def ranked(*sides, rows): return evaluate(sides[0], sides[1][rows], labels[0], labels[1][rows], metric='euclidean')
    every, one = np.arange(30), np.flatnonzero(labels[1] == 0)
    there = [torch.from_numpy(x).to(device) for x in sides]
    found = [ranked(*there, rows=rows) for rows in (every, one)]
    cpu_way()
    for got, want in zip(found, [ranked(*sides, rows=rows) for rows in (every, one)]):
        np.testing.assert_array_equal(got.per_query.to_numpy(float), want.per_query.to_numpy(float))
        assert got.unmatched == want.unmatched >= 3


def test_copies_tie(device):
    "An image that is twice in the gallery is as far both times, to the last bit."
    draw = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(n, 33, generator=draw) for n in (20, 3000))
    gallery[2999], gallery[1500] = gallery[0], gallery[7]
    for metric in ('cosine', 'euclidean'):
        for _, rows in distance_blocks(query.to(device), gallery.to(device), metric, 8):
            assert (rows[:, 2999] == rows[:, 0]).all() and (rows[:, 1500] == rows[:, 7]).all()


def made_up(Q=120, G=1500, width=64, identities=40):
    "Features around one center an identity, with identities and cameras."
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((identities, width))
    ids = [rng.integers(0, identities, n) for n in (Q, G)]
    sides = [torch.from_numpy(centers[i] + 1.5*rng.standard_normal((len(i), width))).float() for i in ids]
    return sides, ids + [rng.integers(0, 4, n) for n in (Q, G)]


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_reranking_is_the_cpus(device, cpu_way, metric):
    sides, labels = made_up()
    there = [x.to(device) for x in sides]
    near = k_reciprocal_distances(*there, metric=metric)
    again = evaluate(*there, *labels, metric=metric, rerank=True)
    cpu_way()
    want = k_reciprocal_distances(*sides, metric=metric)
    assert near.device.type == 'cpu'
    assert ((near - want).abs() > 1e-4).float().mean() < 1e-3                  # rounding may swap two neighbors
    assert again.mAP == pytest.approx(evaluate(*sides, *labels, metric=metric, rerank=True).mAP, abs=1e-4)


def test_records_are_ranked_alike(device, cpu_way, world, tmp_path):
    records, model = load_dataset('market1501', world), ReIDModel.create('pedestrians', 'pedestrians')
    found = evaluate_records(model.to(device), records, cache=tmp_path, rerank=True)['town']
    cpu_way()
    want = evaluate_records(model.cpu(), records, cache=tmp_path, rerank=True)['town']
    assert found.mAP == pytest.approx(want.mAP, abs=.01) and found.query_digest == want.query_digest


# Full precision

TF32 = {
    'by matmul.allow_tf32': lambda: setattr(torch.backends.cuda.matmul, 'allow_tf32', True),
    'by matmul.fp32_precision': lambda: setattr(torch.backends.cuda.matmul, 'fp32_precision', 'tf32'),
    'by set_float32_matmul_precision': lambda: torch.set_float32_matmul_precision('high')}


@pytest.fixture(params=TF32)
def tf32(request):
    "TF32 on, everywhere, for the length of a test."
    owners = [owner for owner in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
              if hasattr(owner, 'fp32_precision')]
    if not owners and 'fp32' in request.param: pytest.skip('switches of torch 2.9')
    before = [owner.fp32_precision for owner in owners]
    TF32[request.param]()
    yield
    torch.set_float32_matmul_precision('highest')
    for owner, value in zip(owners, before): owner.fp32_precision = value


def test_distances_are_exact_with_tf32_on(device, tf32):
    sides, _ = made_up()
    truth = torch.cdist(*(x.double() for x in sides)).square()
    there = [x.to(device) for x in sides]
    loose = (-2*(there[0] @ there[1].T).cpu().double() + sides[0].double().square().sum(1, keepdim=True)
             + sides[1].double().square().sum(1))
    if device.type == 'cuda' and torch.cuda.get_device_capability(device)[0] >= 8:
        assert (loose - truth).abs().max() > 1e-2                              # it is really on
    for start, rows in distance_blocks(*there, 'euclidean', 50):
        assert np.abs(rows - truth[start:start + len(rows)].numpy()).max() < 1e-3


@pytest.mark.filterwarnings('ignore:.* queries have a gallery image')
def test_ranks_are_exact_with_tf32_on(device, tf32, cpu_way):
    "Numbers of 12 bits, which TF32 would shorten to 11."
    rng = np.random.default_rng(0)
    sides = [rng.integers(2049, 2800, (n, 1)).astype(np.float32) for n in (40, 300)]
    ids = [rng.integers(0, 9, n) for n in (40, 300)]
    found = evaluate(*(torch.from_numpy(x).to(device) for x in sides), *ids, metric='euclidean')
    cpu_way()
    want = evaluate(*(x.astype(float) for x in sides), *ids, metric='euclidean')
    for name in ('AP', 'first_hit', 'last_hit', 'best_match', 'best_wrong'):
        np.testing.assert_array_equal(found.per_query[name], want.per_query[name])


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_graphs_are_exact_with_tf32_on(device, tf32, metric):
    "And so are the CPU's, whatever its products round."
    sides, labels = made_up(identities=200)
    identities = identity_features(sides[1].to(device), labels[1])
    torch.testing.assert_close(identities.cpu(), identity_features(sides[1], labels[1]))
    found = nearest_identities(identities, 10, skip_nearest=2, metric=metric, block=64)
    assert torch.equal(found, nearest_identities(identities.cpu(), 10, skip_nearest=2, metric=metric))


# Memory and time

@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_plan_measures_the_device(world):
    rows = pool([load_dataset('market1501', world)])
    assert min(seconds_per_step(rows, config(), steps=3).values()) > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_msmt17_fits():
    "11,659 queries and 82,161 gallery images, features included, in 2 GB; the distances alone would be 3.8 GB."
    rng, identities = np.random.default_rng(0), 3060
    ids = [rng.integers(0, identities, n) for n in (11659, 82161)]
    cams = [rng.integers(0, 15, n) for n in (11659, 82161)]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    draw = torch.Generator('cuda').manual_seed(0)
    query, gallery = (torch.randn(len(i), 1280, device='cuda', generator=draw) for i in ids)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        result = evaluate(query, gallery, *ids, *cams)
    assert torch.cuda.max_memory_allocated() - base < 2e9
    assert result.queries > 11000 and .0001 < result.mAP < .01                 # features by chance
