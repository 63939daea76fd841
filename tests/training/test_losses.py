"Losses against their written-out definitions, and their gradients against finite differences."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.autograd import gradcheck

from clip_dfgs.training.losses import batch_hard_triplet, id_loss, image_text_contrastive
from clip_dfgs.training.losses import image_to_text_ce, triplet_health


def batch(seed, ids=4, instances=3, dim=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(ids).repeat_interleave(instances)
    return torch.randn(len(labels), dim, generator=g, dtype=dtype), labels[torch.randperm(len(labels), generator=g)]


def log_softmax(scores):
    "Of a list of numbers."
    most = max(scores)
    log_sum = most + math.log(sum(math.exp(s - most) for s in scores))
    return [s - log_sum for s in scores]


def slow_contrastive(a, b, a_labels, b_labels, temperature):
    total = 0.
    for i in range(len(a)):
        scores = [sum(x*z for x, z in zip(a[i].tolist(), row.tolist()))/temperature for row in b]
        positives = [c for c in range(len(b)) if b_labels[c] == a_labels[i]]
        log_p = log_softmax(scores)
        total -= sum(log_p[c] for c in positives)/len(positives)
    return total/len(a)


def slow_triplet(f, labels, margin):
    def distance(i, j): return math.dist(f[i].tolist(), f[j].tolist())
    n, total = len(f), 0.
    for i in range(n):
        farthest = max(distance(i, j) for j in range(n) if labels[j] == labels[i])
        nearest = min(distance(i, j) for j in range(n) if labels[j] != labels[i])
        gap = farthest - nearest
        total += math.log1p(math.exp(gap)) if margin is None else max(0., margin + gap)
    return total/n


def slow_cross_entropy(logits, labels, smoothing):
    total, n = 0., logits.shape[1]
    for row, label in zip(logits.tolist(), labels.tolist()):
        log_p = log_softmax(row)
        total -= sum(((1 - smoothing)*(c == label) + smoothing/n)*log_p[c] for c in range(n))
    return total/len(logits)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ids=st.integers(2, 5), instances=st.integers(1, 4),
       temperature=st.sampled_from([.07, 1., 3.]))
def test_contrastive_is_its_formula_in_both_directions(seed, ids, instances, temperature):
    images, labels = batch(seed, ids, instances)
    texts, text_labels = batch(seed + 1, ids, 1)
    for sides in ((images, texts, labels, text_labels), (texts, images, text_labels, labels)):
        expected = slow_contrastive(*sides, temperature)
        assert image_text_contrastive(*sides, temperature).item() == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ids=st.integers(2, 5), instances=st.integers(1, 4),
       margin=st.sampled_from([None, 0., .3, 2.]))
def test_triplet_is_its_formula(seed, ids, instances, margin):
    f, y = batch(seed, ids, instances)
    assert batch_hard_triplet(f, y, margin).item() == pytest.approx(slow_triplet(f, y, margin), rel=1e-9, abs=1e-12)
    on_sphere = slow_triplet(f/f.norm(dim=1, keepdim=True), y, margin)
    assert batch_hard_triplet(f, y, margin, normalize=True).item() == pytest.approx(on_sphere, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('eps', [0., .1, .5])
def test_cross_entropies_are_their_formula(eps):
    (f, y), (text, _) = batch(0), batch(1, ids=6, instances=1)
    assert id_loss(f @ text.T, y, eps).item() == pytest.approx(slow_cross_entropy(f @ text.T, y, eps))
    assert image_to_text_ce(f, text, y, eps).item() == pytest.approx(slow_cross_entropy(f @ text.T, y, eps))


OTHER, OTHER_LABELS = batch(11)


@pytest.mark.parametrize('loss', [
    lambda f, y: image_text_contrastive(f, OTHER, y, OTHER_LABELS),
    lambda f, y: image_text_contrastive(OTHER, f, OTHER_LABELS, y),
    lambda f, y: id_loss(f, y),
    lambda f, y: image_to_text_ce(f, OTHER[:5], y),
    lambda f, y: batch_hard_triplet(f, y),
    lambda f, y: batch_hard_triplet(f, y, None),
    lambda f, y: batch_hard_triplet(f, y, normalize=True)])
def test_gradients(loss):
    f, y = batch(3)
    assert gradcheck(lambda x: loss(x, y), f.requires_grad_(), eps=1e-6, atol=1e-6)


def test_sharpness_lies_between_the_mean_and_the_hardest():
    f, y = batch(5)
    losses = [batch_hard_triplet(f, y, 5., mining_temperature=t).item() for t in (torch.inf, 1., .25, 1e-4)]
    assert losses == sorted(losses) and losses[-1] == pytest.approx(batch_hard_triplet(f, y, 5.).item())


@pytest.mark.parametrize('kw', [{}, dict(margin=None), dict(mining_temperature=1.), dict(normalize=True)])
def test_repeated_images_and_lonely_anchors_keep_gradients_finite(kw):
    f = torch.tensor([[1., 2.], [1., 2.], [1., 2.], [3., 4.]]).requires_grad_()
    batch_hard_triplet(f, torch.tensor([0, 0, 1, 2]), **kw).backward()
    assert f.grad.isfinite().all()


def test_order_of_the_batch_does_not_matter():
    f, y = batch(7)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    for loss in (batch_hard_triplet, lambda a, b: image_text_contrastive(a, a, b, b)):
        assert loss(f, y).item() == pytest.approx(loss(f[order], y[order]).item(), rel=1e-12)


def test_half_precision_and_bfloat16_give_finite_losses():
    f, y = batch(2, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert batch_hard_triplet(f.to(dtype), y).item() == pytest.approx(batch_hard_triplet(f, y).item(), rel=.05)


def test_health_tells_a_collapse_from_life():
    draw, y = torch.Generator().manual_seed(0), torch.arange(8).repeat_interleave(4)
    center, noise = torch.randn(8, 16, generator=draw), torch.randn(32, 16, generator=draw)
    alive, dead = triplet_health(center[y] + .1 * noise, y), triplet_health(100 + .01 * noise, y)
    assert alive['violated_triplets'] == 0 and alive['embedding_std'] > .8
    assert dead['violated_triplets'] > .5 and dead['embedding_std'] < 1e-3
    scaled = triplet_health(1000 * (center[y] + .1 * noise), y)
    assert scaled['embedding_std'] == pytest.approx(alive['embedding_std'], rel=1e-5)


def test_errors_name_what_is_missing():
    f, y = batch(0)
    for options in ({}, dict(mining_temperature=1.)):
        with pytest.raises(ValueError, match='12 rows have the same label'):
            batch_hard_triplet(f, torch.zeros(12), **options)
    with pytest.raises(ValueError, match='no positive on the other side'): image_text_contrastive(f, f, y, y + 4)


@pytest.mark.parametrize('wrong', [lambda t: t[:, None], lambda t: t[None], lambda t: torch.stack([t, t], 1)])
def test_labels_of_another_shape_are_refused(wrong):
    "A column of labels would be compared with itself and give another loss."
    features, labels = batch(0)
    for loss in (lambda at: batch_hard_triplet(features, at),
                 lambda at: batch_hard_triplet(features, at, mining_temperature=.2),
                 lambda at: image_text_contrastive(features, features, at, labels),
                 lambda at: image_text_contrastive(features, features, labels, at)):
        with pytest.raises(ValueError, match='labels have shape'): loss(wrong(labels))
