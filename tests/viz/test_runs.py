"What is read from a run folder: its models, distances, planes and prompts - each against its definition."
import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.viz import runs as views
from clip_dfgs.viz.runs import run_models


# ---- figures of arrays

def test_pairs_at_the_ends_and_of_one_camera():
    "The same direction and the opposite one, where rounding leaves the range; the query's own camera does not count."
    x = torch.nn.functional.normalize(torch.rand(1, 50, generator=torch.Generator().manual_seed(0))) - .5
    same, other = views.pair_distances(torch.cat([x, x]), torch.cat([x, -x]), [1, 2], [1, 2])
    assert sorted(same) == pytest.approx([0, 2], abs=1e-6) == sorted(other)
    same, other = views.pair_distances(np.eye(3), np.eye(3), [0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0])
    assert (len(same), len(other)) == (2, 4)


def test_each_row_of_a_plane_has_its_own_legend():
    points = np.arange(24.).reshape(12, 2)
    groups = dict(identity=np.repeat(range(10, 16), 2), domain=['sea', 'town']*6)
    fig = views.plot_points(dict(start=points, end=points), groups, most=4)
    legends = [ax.get_legend() for ax in fig.axes]
    assert [legend is not None for legend in legends] == [False, True, False, True]
    upper, lower = ([text.get_text() for text in legend.get_texts()] for legend in legends[1::2])
    assert upper == ['10', '11', '12', '13', 'all others'] and lower == ['sea', 'town']
    assert [legend.get_title().get_text() for legend in legends[1::2]] == ['identity', 'domain']


def test_panels_of_distances_can_be_compared():
    pairs = {name: views.pair_distances(np.eye(3)*scale + 1, np.eye(3) + 1, range(3), [0, 1, 1])
             for name, scale in (('start', 1), ('end', 9))}
    first, second = views.plot_histograms(pairs).axes
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()


def test_images_in_rows_are_at_least_60_pixels_wide():
    images = np.zeros((3, 128, 64, 3), np.uint8)
    fig = views.plot_image_rows({'a sentence that is longer than its row': images}, 'a title')
    fig.draw_without_rendering()
    assert all(ax.get_window_extent().width >= 60 for ax in fig.axes)
    name = fig.axes[0].yaxis.label.get_window_extent()
    assert name.height <= fig.axes[0].get_window_extent().height


# ---- a run

def test_models_of_a_run_are_its_stages(whole_run, tmp_path):
    "Without those whose checkpoints are damaged."
    models = dict(run_models(whole_run))
    assert [*models] == ['start', 'after prompts', 'end']
    first = ReIDModel.create('pedestrians', 'pedestrians', image_size=(64, 32)).clip.state_dict()
    assert all(torch.equal(v, first[k]) for k, v in models['start'].clip.state_dict().items())
    assert torch.equal(models['after prompts'].prompts.context, models['end'].prompts.context)
    assert not torch.equal(models['start'].prompts.context, models['end'].prompts.context)
    shutil.copytree(whole_run, tmp_path/'run')
    for file in (tmp_path/'run'/'checkpoint').glob('*/tensors.safetensors'): file.write_bytes(b'cut')
    assert [name for name, _ in run_models(tmp_path/'run')] == ['start', 'end']


def test_the_start_of_a_run_that_went_on_from_another(runs, whole_run, tmp_path):
    shutil.copytree(runs/'again', tmp_path/'later')
    file = tmp_path/'later'/'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(init=str(whole_run/'model'))))
    start, end = next(run_models(tmp_path/'later'))[1], ReIDModel.load(whole_run/'model')
    assert torch.equal(start.clip.visual.proj.cpu(), end.clip.visual.proj)


def test_tables_of_prompts(whole_run):
    model = ReIDModel.load(whole_run/'model')
    words = views.prompt_words(whole_run, [3, 0])
    assert words.index.tolist() == [3, 0] and words.shape == (2, 4)
    table = views.prompt_captions(whole_run, ['a man', 'a woman in red', 'a man'], labels=[2], k=9)
    texts = model.encode_captions(['a man', 'a woman in red'])
    with torch.no_grad(): cosine = F.cosine_similarity(model.text_features(torch.tensor([2])), texts)
    assert sorted(table['caption']) == ['a man', 'a woman in red']
    assert table['cosine'].tolist() == pytest.approx(cosine.sort(descending=True).values.tolist(), abs=1e-3)


def test_a_run_without_text_or_targets_or_model_is_named(runs, tmp_path):
    run = tmp_path/'run'
    shutil.copytree(runs/'blind', run)
    (run/'targets.csv').unlink()
    for part, words in ((views.prompt_words, 'has no text encoder'), (views.plot_pair_distances, 'has no targets'),
                        (lambda run: views.plot_text_matches(run, ['a man']), 'has no text encoder')):
        with pytest.raises(views.Absent, match=words): part(run)
    views.plot_attention(run, identities=2)
    views.plot_space(run)
    assert plt.get_fignums() == []
    for folder, words in ((runs/'cut', 'training has not ended'), (tmp_path, 'no run found')):
        with pytest.raises(ValueError, match=words): views.plot_attention(folder)
