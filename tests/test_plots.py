"""Pictures: what they show, from their artists; that they can be saved, leave nothing behind, and read no more files than they show."""
import io, os, subprocess, sys

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from clip_dfgs import plots
from clip_dfgs.evaluation import evaluate, nearest_gallery, verification
from clip_dfgs.samplers import DepthFirstGraphSampler, PKSampler


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert plt.get_fignums() == []


def saved(fig):
    "The figure drawn; its size in pixels"
    assert isinstance(fig, Figure)
    file = io.BytesIO()
    fig.savefig(file, format="png")
    return Image.open(file).size


def gallery(seed=0, people=5, views=4):
    rng = np.random.default_rng(seed)
    ids, cams = np.repeat(np.arange(people), views), np.tile(np.arange(views) % 3, people)
    x, images = rng.normal(size=(people, 6))[ids] + .8 * rng.normal(size=(len(ids), 6)), rng.integers(0, 255, (len(ids), 12, 6, 3), dtype=np.uint8)
    q = np.arange(len(ids)) % views == 0
    known = dict(query_ids=ids[q], gallery_ids=ids, query_cams=cams[q], gallery_cams=cams)  # the queries are junk in their own gallery
    return x[q], x, known, dict(query_images=images[q], gallery_images=images)


def test_every_figure_can_be_saved():
    x, g, known, images = gallery()
    r, v = evaluate(x, g, **known), verification(x, g, **known)
    labels = known["gallery_ids"]
    epoch = list(PKSampler(labels, batch=8))
    scores = pd.DataFrame(np.ones((2, 3)), index=["a", "b"], columns=list("xyz"))
    history = pd.DataFrame(dict(stage=["a"] * 3 + ["b"] * 2, step=[1, 2, 3, 1, 2], epoch=0, loss=1., triplet=[np.nan] * 3 + [1, 2], rate=.1, note="text"))
    for fig in (plots.plot_batches(g[:, :2], labels, {"a": epoch, "b": epoch[:1]}), plots.plot_epoch(epoch, labels, g), plots.plot_epoch({"PK": epoch}, labels),
                plots.plot_batch_images(images["gallery_images"], epoch[0], labels, known["gallery_cams"]), plots.plot_ranked_gallery(x, g, **known, **images),
                plots.plot_history(history), plots.plot_cmc({"one": r, "two": r}), plots.plot_roc(v), plots.plot_queries(r),
                plots.plot_distances(torch.cdist(torch.tensor(g), torch.tensor(g)), groups=labels, names=labels), plots.plot_results(scores, scores)):
        width, height = saved(fig)
        assert 60 < width < 1500 and 60 < height < 1500


def test_ranked_gallery_follows_the_rule_of_the_camera():
    x, g, known, images = gallery()
    fig = plots.plot_ranked_gallery(x, g, **known, **images, rows=[3, 1], k=6)
    near = nearest_gallery(x, g, **known, k=6)
    assert len(fig.axes) == 2
    for ax, q in zip(fig.axes, (3, 1)):
        tiles = [im.get_array() for im in ax.images]
        assert len(tiles) == 7
        want = [images["query_images"][q], *images["gallery_images"][near[q]]]
        for tile, image in zip(tiles, want): assert (tile == plots._tile(image)).all()
        right = known["gallery_ids"][near[q]] == known["query_ids"][q]
        for frame, good in zip(ax.patches[1:], right):
            assert to_hex(frame.get_edgecolor()) == (plots.RIGHT if good else plots.WRONG).lower()
            assert (frame.get_linestyle() in ("-", "solid")) == good
        same_camera = (known["gallery_ids"] == known["query_ids"][q]) & (known["gallery_cams"] == known["query_cams"][q])
        assert same_camera.any() and not set(near[q]) & set(np.flatnonzero(same_camera))


def test_short_galleries_and_string_ids():
    pixels = np.zeros((3, 8, 4, 3), np.uint8)
    fig = plots.plot_ranked_gallery([[0.]], [[1.], [2.], [0.]], ["ann"], ["bob", "ann", "ann"], ["c1"], ["c1", "c2", "c1"], pixels, pixels, k=8, metric="euclidean")
    assert len(fig.axes[0].images) == 3 and [p.get_linestyle() in ("-", "solid") for p in fig.axes[0].patches] == [True, False, True]


def test_only_shown_files_are_read(tmp_path):
    x, g, known, images = gallery()
    near = set(nearest_gallery(x[:1], g, *(v[:1] if k.startswith("query") else v for k, v in known.items()), k=3)[0])
    paths = pd.Series([str(tmp_path / f"{i}.png") for i in range(len(g))], index=range(100, 100 + len(g)))  # positions count, not the index
    for i in near: Image.fromarray(images["gallery_images"][i]).save(paths.iloc[i])
    fig = plots.plot_ranked_gallery(x, g, **known, query_images=images["query_images"], gallery_images=paths, rows=1, k=3)
    assert len(fig.axes[0].images) == 4
    with pytest.raises(FileNotFoundError): plots.plot_ranked_gallery(x, g, **known, query_images=images["query_images"], gallery_images=paths, rows=1, k=10)


def test_batch_columns_are_identities_in_order():
    _, g, known, images = gallery()
    labels, batch = known["gallery_ids"], [9, 8, 11, 10, 0, 1, 2, 3]
    fig = plots.plot_batch_images(images["gallery_images"], batch, labels, known["gallery_cams"])
    assert [t.get_text() for t in fig.axes[0].texts if t.get_color() != "white"] == ["2", "0"]
    assert [t.get_text() for t in fig.axes[0].texts if t.get_color() == "white"] == [str(known["gallery_cams"][r]) for r in batch]
    for im, row in zip(fig.axes[0].images, batch): assert (im.get_array() == plots._tile(images["gallery_images"][row])).all()


def test_batches_shape_is_identity_and_colour_is_batch():
    labels, points = np.array([0, 0, 1, 1, 2]), np.arange(10.).reshape(5, 2)
    ax = plots.plot_batches(points, labels, [[0, 1, 2], [2, 3]]).axes[0]
    drawn = {}
    for dots in ax.collections:
        colour = (dots.get_facecolor() if len(dots.get_facecolor()) else dots.get_edgecolor())[0]  # a ring has no face
        drawn.setdefault(tuple(dots.get_offsets()[0]), []).append((len(dots.get_paths()[0]), to_hex(colour)))
    blue, orange = (c.lower() for c in plots.COLOURS[:2])
    assert [c for _, c in drawn[0., 1.]] == [blue] and [c for _, c in drawn[6., 7.]] == [orange]
    assert [c for _, c in drawn[4., 5.]] == [blue, orange]  # in both batches: a ring in the second colour
    assert drawn[8., 9.][0][1] not in (blue, orange)  # in none: grey
    assert drawn[0., 1.][0][0] == drawn[2., 3.][0][0] != drawn[6., 7.][0][0]


def test_epoch_curve_counts_distinct_images():
    labels = np.array([0, 0, 1, 1, 2, 2])
    fig = plots.plot_epoch([[0, 1, 2, 3], [0, 1, 4, 4]], labels, torch.tensor([[0.], [2.], [5.]]))
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [0, 4/6, 5/6])
    np.testing.assert_allclose(fig.axes[1].lines[0].get_ydata(), [2, 5])
    labels = np.repeat(np.arange(30), 4)
    sampler = DepthFirstGraphSampler(labels, neighbours=torch.stack([(torch.arange(30) + s) % 30 for s in (1, 2)], 1), batch=16)
    assert plots.plot_epoch(sampler, labels).axes[0].lines[0].get_ydata()[-1] == 1


def test_history_ignores_empty_parts_and_hides_empty_panels():
    history = pd.DataFrame(dict(stage=["a"] * 3 + ["b"] * 3, step=[1, 2, 3] * 2, loss=1., i2t=[1.] * 3 + [np.nan] * 3, violated=[np.nan] * 3 + [.5] * 3))
    fig = plots.plot_history(history, smooth=1)
    top, bottom = fig.axes[:2], fig.axes[2:]
    assert [[t.get_text() for t in ax.get_legend().get_texts()] for ax in top] == [["loss", "i2t"], ["loss"]] and [ax.get_visible() for ax in bottom] == [False, True]
    assert len(plots.plot_history(history, below=(), parts=[]).axes) == 2
    with pytest.raises(ValueError, match="no column stage, step"): plots.plot_history(history[["loss"]])
    with pytest.raises(ValueError, match="history is empty"): plots.plot_history(history[:0])


def test_running_mean_is_the_mean_of_the_last_rows():
    history = pd.DataFrame(dict(stage="a", step=range(1, 6), loss=[5., 1, 3, 2, 4]))
    faint, bold = plots.plot_history(history, smooth=2).axes[0].lines
    np.testing.assert_allclose(faint.get_ydata(), [5, 1, 3, 2, 4])
    np.testing.assert_allclose(bold.get_ydata(), [5, 3, 2, 2.5, 3])


def test_queries_without_a_match_and_without_a_wrong_image():
    r = evaluate([[0.], [1.]], [[.5], [2.]], [1, 9], [1, 1], metric="euclidean")
    assert r.unmatched == 1 and saved(plots.plot_queries(r))
    assert plots.plot_cmc(r).axes[0].lines[0].get_ydata()[0] == 1


def test_bars_and_error_bars():
    scores = pd.DataFrame([[10., 20], [30, 40]], index=["PK", "DFGS"], columns=["x", "y"])
    ax = plots.plot_results(scores, (scores - 1, scores + 3)).axes[0]
    assert [p.get_height() for p in ax.patches] == [10, 20, 30, 40]
    ends = [segment[:, 1] for c in ax.collections for segment in c.get_segments()]
    assert [tuple(e) for e in ends] == [(9, 13), (19, 23), (29, 33), (39, 43)]
    assert {p.get_hatch() for p in ax.patches} == {"", "//"}
    with pytest.raises(ValueError, match="rows and columns of scores"): plots.plot_results(scores, scores.rename(index={"PK": "pk"}))


def test_distances_are_sorted_by_group():
    groups = np.array([1, 0, 1, 0])
    d = np.arange(16.).reshape(4, 4)
    shown = plots.plot_distances(d, groups=groups).axes[0].images[0].get_array()
    order = [1, 3, 0, 2]
    np.testing.assert_array_equal(shown, d[order][:, order])
    with pytest.raises(ValueError, match="square matrix"): plots.plot_distances(d[:2], groups=groups)


def test_works_without_a_display_and_leaves_the_backend_alone(tmp_path):
    code = f"import matplotlib.pyplot as plt; from clip_dfgs.plots import plot_distances; plot_distances([[0., 1.], [1., 0.]]).savefig({str(tmp_path / 'x.png')!r}); print(plt.get_backend().lower())"
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND", "WAYLAND_DISPLAY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "agg" and (tmp_path / "x.png").stat().st_size > 1000
