"Figures: what they show, from their artists; that they can be saved and leave nothing behind."
import io
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from clip_dfgs.data.image_io import ImageError
from clip_dfgs.evaluation.metrics import evaluate, nearest_gallery
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, PKSampler
from clip_dfgs.viz import charts
from clip_dfgs.viz import images as plots
from clip_dfgs.viz.runs import plot_points


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert plt.get_fignums() == []


def saved(fig):
    "The figure drawn; its size in pixels."
    assert isinstance(fig, Figure)
    file = io.BytesIO()
    fig.savefig(file, format='png')
    return Image.open(file).size


def gallery(seed=0, people=5, views=4):
    "Features, images and identities; the queries are junk in their own gallery."
    rng = np.random.default_rng(seed)
    ids, cams = np.repeat(np.arange(people), views), np.tile(np.arange(views) % 3, people)
    x = rng.normal(size=(people, 6))[ids] + .8 * rng.normal(size=(len(ids), 6))
    images = rng.integers(0, 255, (len(ids), 12, 6, 3), dtype=np.uint8)
    q = np.arange(len(ids)) % views == 0
    known = dict(query_ids=ids[q], gallery_ids=ids, query_cams=cams[q], gallery_cams=cams)
    return x[q], x, known, dict(query_images=images[q], gallery_images=images)


def every_figure():
    "Name -> a function that draws it."
    x, g, known, images = gallery()
    result = evaluate(x, g, **known)
    labels = known['gallery_ids']
    epoch = list(PKSampler(labels, batch=8))
    scores = pd.DataFrame(np.ones((2, 3)), index=['a', 'b'], columns=list('xyz'))
    history = pd.DataFrame(dict(stage=['a'] * 3 + ['b'] * 2, step=[1, 2, 3, 1, 2], epoch=0, loss=1., rate=.1))
    history['note'] = 'text'
    history['triplet'] = [np.nan] * 3 + [1, 2]
    distances = torch.cdist(torch.tensor(g), torch.tensor(g))
    tiles = images['gallery_images']
    return dict(
        batches=lambda: plots.plot_batches(g[:, :2], labels, {'a': epoch, 'b': epoch[:1]}),
        epoch=lambda: plots.plot_epoch(epoch, labels, g),
        coverage=lambda: plots.plot_epoch({'PK': epoch}, labels),
        batch=lambda: plots.plot_batch_images(tiles, epoch[0], labels, known['gallery_cams']),
        ranked=lambda: plots.plot_ranked_gallery(x, g, **known, **images),
        history=lambda: charts.plot_history(history),
        cmc=lambda: charts.plot_cmc({'one': result, 'two': result}),
        distances=lambda: charts.plot_distances(distances, groups=labels, title='distances'),
        results=lambda: charts.plot_results(scores, scores, title='scores'),
        differences=lambda: charts.plot_differences(scores.T, to='a'),
        space=lambda: plot_points(dict(start=g[:, :2], end=g[:, 1:3]), dict(identity=labels), most=2))


FIGURES = every_figure()


@pytest.mark.parametrize('name', FIGURES)
def test_every_figure_can_be_saved_and_read(name):
    "Titles and large enough text and tiles; no legend lies over a panel."
    fig = FIGURES[name]()
    width, height = saved(fig)
    assert 60 < width < 1500 and 60 < height < 1500
    assert fig.get_suptitle() or any(ax.get_title() for ax in fig.axes)
    assert fig.dpi >= 100 and all(text.get_fontsize() >= 8 for text in fig.findobj(Text) if text.get_text())
    for legend in [*fig.legends, *filter(None, (ax.get_legend() for ax in fig.axes))]:
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in fig.axes if ax.get_visible())
    if name in ('batch', 'ranked'):
        for ax in fig.axes:
            for image in ax.images:
                left, right, *_ = image.get_extent()
                ends = ax.transData.transform([(left, 0), (right, 0)])
                assert ends[1, 0] - ends[0, 0] >= 60


def test_ranked_gallery_follows_the_rule_of_the_camera():
    x, g, known, images = gallery()
    fig = plots.plot_ranked_gallery(x, g, **known, **images, rows=[3, 1], k=6)
    near = nearest_gallery(x, g, **known, k=6)
    assert len(fig.axes) == 2
    for ax, q in zip(fig.axes, (3, 1)):
        want = [images['query_images'][q], *images['gallery_images'][near[q]]]
        for shown, image in zip(ax.images, want, strict=True):
            assert (shown.get_array() == plots.tile(image[None], 0)).all()
        right = known['gallery_ids'][near[q]] == known['query_ids'][q]
        for frame, good in zip(ax.patches[1:], right):
            assert to_hex(frame.get_edgecolor()) == (charts.RIGHT if good else charts.WRONG).lower()
            assert (frame.get_linestyle() in ('-', 'solid')) == good
        junk = (known['gallery_ids'] == known['query_ids'][q]) & (known['gallery_cams'] == known['query_cams'][q])
        assert junk.any() and not set(near[q]) & set(np.flatnonzero(junk))


def test_short_galleries_and_identities_as_text():
    pixels, cameras = np.zeros((3, 8, 4, 3), np.uint8), (['c1'], ['c1', 'c2', 'c1'])
    fig = plots.plot_ranked_gallery([[0.]], [[1.], [2.], [0.]], ['ann'], ['bob', 'ann', 'ann'], *cameras, pixels,
                                    pixels, k=8, metric='euclidean')
    assert len(fig.axes[0].images) == 3
    assert [p.get_linestyle() in ('-', 'solid') for p in fig.axes[0].patches] == [True, False, True]


def test_only_shown_files_are_read(tmp_path):
    x, g, known, images = gallery()
    first = {name: v[:1] if name.startswith('query') else v for name, v in known.items()}
    near = set(nearest_gallery(x[:1], g, **first, k=3)[0])
    files = [str(tmp_path/f'{i}.png') for i in range(len(g))]
    paths = pd.Series(files, index=range(100, 100 + len(g))) # positions count, not the index
    for i in near: Image.fromarray(images['gallery_images'][i]).save(files[i])
    shown = dict(query_images=images['query_images'], gallery_images=paths, rows=1)
    assert len(plots.plot_ranked_gallery(x, g, **known, **shown, k=3).axes[0].images) == 4
    with pytest.raises(ImageError, match='is missing'): plots.plot_ranked_gallery(x, g, **known, **shown, k=10)


def test_batch_columns_are_identities_in_order():
    _, g, known, images = gallery()
    labels, cameras, pixels = known['gallery_ids'], known['gallery_cams'], images['gallery_images']
    batch = [9, 8, 11, 10, 0, 1, 2, 3]
    ax = plots.plot_batch_images(pixels, batch, labels, cameras).axes[0]
    assert [t.get_text() for t in ax.texts if t.get_color() != 'white'] == ['2', '0']
    assert [t.get_text() for t in ax.texts if t.get_color() == 'white'] == [str(cameras[row]) for row in batch]
    for image, row in zip(ax.images, batch): assert (image.get_array() == plots.tile(pixels, row)).all()


def test_batches_shape_is_identity_and_color_is_batch():
    labels, points = np.array([0, 0, 1, 1, 2]), np.arange(10.).reshape(5, 2)
    ax = plots.plot_batches(points, labels, [[0, 1, 2], [2, 3]]).axes[0]
    drawn = {}
    for dots in ax.collections:
        color = (dots.get_facecolor() if len(dots.get_facecolor()) else dots.get_edgecolor())[0] # a ring has no face
        shape = len(dots.get_paths()[0])
        drawn.setdefault(tuple(dots.get_offsets()[0]), []).append((shape, to_hex(color)))
    blue, orange = (c.lower() for c in charts.PALETTE[:2])
    assert [c for _, c in drawn[0., 1.]] == [blue] and [c for _, c in drawn[6., 7.]] == [orange]
    assert [c for _, c in drawn[4., 5.]] == [blue, orange] # in both batches: a ring in the second color
    assert drawn[8., 9.][0][1] not in (blue, orange) # in none: gray
    assert drawn[0., 1.][0][0] == drawn[2., 3.][0][0] != drawn[6., 7.][0][0]


def test_epoch_curve_counts_distinct_images():
    labels = np.array([0, 0, 1, 1, 2, 2])
    fig = plots.plot_epoch([[0, 1, 2, 3], [0, 1, 4, 4]], labels, torch.tensor([[0.], [2.], [5.]]))
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [0, 4/6, 5/6])
    np.testing.assert_allclose(fig.axes[1].lines[0].get_ydata(), [2, 5])
    labels = np.repeat(np.arange(30), 4)
    ring = torch.stack([(torch.arange(30) + s) % 30 for s in (1, 2)], 1)
    sampler = DepthFirstGraphSampler(labels, neighbors=ring, batch=16)
    assert plots.plot_epoch(sampler, labels).axes[0].lines[0].get_ydata()[-1] == 1


def test_history_ignores_empty_parts_hides_empty_panels_and_has_one_color_a_part():
    history = pd.DataFrame(dict(stage=['a']*3 + ['b']*3, step=[1, 2, 3]*2, loss=1., triplet=3.))
    history['i2t'], history['violated_triplets'] = [1.]*3 + [np.nan]*3, [np.nan]*3 + [.5]*3
    fig = charts.plot_history(history, smooth=1)
    top, bottom = fig.axes[:2], fig.axes[2:]
    assert [[line.get_label() for line in ax.lines] for ax in top] == [['loss', 'triplet', 'i2t'], ['loss', 'triplet']]
    assert [ax.get_visible() for ax in bottom] == [False, True]
    first, second = ([line.get_color() for line in ax.lines] for ax in top)
    assert first[:2] == second and len(set(first)) == 3


def test_running_mean_is_the_mean_of_the_last_rows():
    history = pd.DataFrame(dict(stage='a', step=range(1, 6), loss=[5., 1, 3, 2, 4]))
    faint, bold = charts.plot_history(history, smooth=2).axes[0].lines
    np.testing.assert_allclose(faint.get_ydata(), [5, 1, 3, 2, 4])
    np.testing.assert_allclose(bold.get_ydata(), [5, 3, 2, 2.5, 3])


def test_bars_have_their_intervals():
    scores = pd.DataFrame([[10., 20], [30, 40]], index=['PK', 'DFGS'], columns=['x', 'y'])
    ax = charts.plot_results(scores, (scores - 1, scores + 3)).axes[0]
    ends = [tuple(segment[:, 1]) for c in ax.collections for segment in c.get_segments()]
    assert ends == [(9, 13), (19, 23), (29, 33), (39, 43)] and {p.get_hatch() for p in ax.patches} == {'', '//'}


def test_distances_are_sorted_by_group():
    groups = np.array([1, 0, 1, 0])
    d = np.arange(16.).reshape(4, 4)
    shown = charts.plot_distances(d, groups=groups).axes[0].images[0].get_array()
    order = [1, 3, 0, 2]
    np.testing.assert_array_equal(shown, d[order][:, order])


def test_missing_pairs_are_left_out_of_the_count():
    scores = pd.DataFrame(dict(PK=[1., 2, 3, 4], GS=[2., 3, np.nan, 5.5]))
    row = charts.paired_differences(scores).loc['GS']
    want = stats.t.interval(.95, 2, 3.5 / 3, np.std([1, 1, 1.5], ddof=1) / 3**.5)
    assert row.n == 3
    np.testing.assert_allclose([row.low, row.high], want)


@pytest.mark.slow
def test_works_without_a_display_and_leaves_the_backend_alone(tmp_path):
    file = tmp_path/'x.png'
    code = f"""import matplotlib.pyplot as plt
from clip_dfgs.viz.charts import plot_distances
plot_distances([[0., 1.], [1., 0.]]).savefig({str(file)!r})
print(plt.get_backend().lower())"""
    env = {name: v for name, v in os.environ.items() if name not in ('DISPLAY', 'MPLBACKEND', 'WAYLAND_DISPLAY')}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == 'agg' and file.stat().st_size > 1000
