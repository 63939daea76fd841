"What an epoch holds: worked by hand, for any kind of batches and labels."
import numpy as np
import pytest
import torch

from clip_dfgs.sampling.diagnostics import epoch_statistics, batch_hardness, pair_repetition

LABELS = np.array([0, 0, 1, 1, 2, 2])


def test_report_of_any_batches():
    assert epoch_statistics([], LABELS)['images'] == 0
    ragged = epoch_statistics([[0, 1], [2, 3, 4]], LABELS, [0, 1, 0, 0, 1, 1], torch.arange(6.)[:, None])
    assert ragged['batches'] == 2 and ragged['identities'] == 1 and ragged['images'] == pytest.approx(5 / 6)
    assert ragged['ids_per_batch'] == 1.5 and ragged['cameras_per_tuplet'] == pytest.approx(4 / 3)
    per_identity = epoch_statistics([[0, 2, 4]], LABELS, features=torch.tensor([[0.], [1.], [5.]]))
    assert per_identity['hardness'] == 1 and 'active' not in per_identity


def test_active_triplets_by_hand():
    "d(a, p) - d(a, n) + margin > 0 for anchor 0 of [0, 1 | 2, 3] at 0, 2 | 1, 4: 2-1, 2-4; likewise for the others."
    active = batch_hardness([[0, 1, 2, 3]], LABELS[:4], torch.tensor([[0.], [2.], [1.], [4.]]), margin=.3)['active']
    assert active == pytest.approx(np.mean([.5, 1, 1, .5]))


def test_meetings_by_hand():
    met = pair_repetition([[[0, 2]], [[0, 2]], [[0, 4]]], LABELS)
    assert met == dict(partners=pytest.approx(2 / 3), again=.5, met=pytest.approx(4 / 3))


@pytest.mark.parametrize('labels', [list('aabbcc'), [10, 10, 20, 20, 30, 30], [5., 5., 6., 6., 7., 7.]], ids=str)
def test_any_kind_of_labels_and_batches(labels):
    x, batches = torch.arange(6.)[:, None], torch.tensor([[0, 1, 2], [2, 3, 4]])
    expected = epoch_statistics([[0, 1, 2], [2, 3, 4]], LABELS, LABELS % 2, x)
    assert epoch_statistics(batches, labels, ['even', 'even', 'odd', 'odd', 'even', 'even'], x) == expected
    assert epoch_statistics(iter(batches), labels, features=x)['hardness'] == expected['hardness']
    assert pair_repetition([batches], labels) == pair_repetition([[[0, 1, 2], [2, 3, 4]]], LABELS)


@pytest.mark.parametrize('call, words', [
    (lambda: epoch_statistics([[0, 6]], LABELS), 'batch 0 holds int64 0 to 6; rows are 0..5'),
    (lambda: pair_repetition([[[9]]], LABELS), '9 to 9'),
    (lambda: epoch_statistics([[0]], LABELS, [0, 1]), 'cameras'),
    (lambda: epoch_statistics([[0.5]], LABELS), 'batch 0 holds float64'),
    (lambda: epoch_statistics([[0]], [0, None]), 'labels.* row 1'),
    (lambda: epoch_statistics([[0, 2]], LABELS, features=torch.zeros(4, 2)),
     r'shape \[4, 2\]; \[6, D\] of images or \[3, D\]')])
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words): call()
