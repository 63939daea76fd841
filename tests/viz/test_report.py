"Reports: one page for runs in any state, that loads nothing and says what is missing; two runs query by query."
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from clip_dfgs.viz import runs as views
from clip_dfgs.viz import report
from clip_dfgs.viz.runs import Absent
from clip_dfgs.inference.embed import embed_images
from clip_dfgs.models.reid_model import ReIDModel
from command import said


@pytest.fixture(scope='module')
def found(runs): return views.evaluate_run(runs/'whole')


class Page(HTMLParser):
    "What a page loads, and its words."
    def __init__(self, text):
        super().__init__()
        self.loads, self.words, self.kinds = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.kinds.add(tag)
        self.loads += [value for name, value in attributes if name in ('src', 'href') and value]

    def handle_data(self, data): self.words.append(data)


def page_of(file):
    page = Page(file.read_text('utf-8'))
    assert all(link.startswith('data:image/') for link in page.loads), [link[:60] for link in page.loads]
    assert 'script' not in page.kinds and '@import' not in file.read_text('utf-8')
    return ' '.join(page.words), page.loads


@pytest.fixture(scope='module')
def page(runs): return page_of(report.write_report(runs/'whole', 'All of <it>'))


def test_one_page_of_a_run(page):
    words, images = page
    assert 'All of <it>' in words and 'contains images of people' in words and len(images) >= 10
    assert all(part in words for part in ('R1', 'token 1', 'What the sampler did', 'Feature space', 'Settings'))


def test_a_page_without_images(runs, page, tmp_path):
    "By the command: charts alone, which are small, and the page says so."
    code, out, err = said('report', runs/'whole', '--no-images', '--out', tmp_path/'plain.html')
    assert code == 0 and out == f'report: {tmp_path/"plain.html"}\n' and err == ''
    words, charts = page_of(tmp_path/'plain.html')
    assert 'contains images' not in words and 'Images are left out' in words and 3 <= len(charts) < len(page[1]) - 4
    assert all(chart.startswith('data:image/png') and len(chart) < 200_000 for chart in charts)
    assert any(image.startswith('data:image/jpeg') for image in page[1])


def test_runs_in_every_state(runs, tmp_path):
    "Each run's part is there, or the line that says why not; damage is one line."
    shutil.copytree(runs/'whole', tmp_path/'moved')
    for name in ('targets.csv', 'records.csv'):
        file = tmp_path/'moved'/name
        file.write_text(re.sub(r'/[^,\n]*/world', '/nowhere', file.read_text()))
    for name in ('blind', 'cut', 'new'): shutil.copytree(runs/name, tmp_path/name)
    words, _ = page_of(report.write_report(tmp_path))
    for line in ('The training has not ended', 'No step has been made yet', 'No step has been written',
                 'has no model yet', 'has no text encoder', 'one camera only', '/nowhere',
                 'No identities were held out', 'There are no results', 'moved', 'blind', 'cut', 'new'):
        assert line in words, line
    (tmp_path/'cut'/'history.csv').write_text('other,table\n1,2\n')
    with pytest.raises(ValueError, match='report cannot be made'): report.write_report(tmp_path/'cut')
    assert not (tmp_path/'cut'/'report.html').exists()


def test_two_runs_query_by_query(runs, found):
    "The interval is that of whole identities, drawn with replacement."
    file = report.write_comparison(runs/'whole', runs/'again')
    words, images = page_of(file)
    assert file == (runs/'again'/'against_whole.html').resolve() and 'seed' in words and len(images) >= 5
    other = views.evaluate_run(runs/'again')
    a, b = (side['0012'].result.per_query for side in (found, other))
    of, rng = [g.to_numpy() for _, g in (100*(b['AP'] - a['AP'])).groupby(a['pid'])], np.random.default_rng(0)
    means = [np.concatenate([of[i] for i in rng.integers(0, len(of), len(of))]).mean() for _ in range(2000)]
    low, high = np.quantile(means, [.025, .975])
    interval = views.paired_table(found, other).loc[('0012', 'mAP'), ['low', 'high']].astype(float)
    assert np.allclose(interval, [low, high], atol=.15*(high - low) + .01)


@pytest.mark.parametrize('change, message', [
    (dict(domain='other'), r'different images \(0012 and other\)'), (dict(camid=5), 'different images'),
    (None, 'has no results yet')])
def test_runs_of_other_targets_are_refused(runs, tmp_path, change, message):
    shutil.copytree(runs/'again', tmp_path/'other')
    file = tmp_path/'other'/'targets.csv'
    if change: views.run_table(tmp_path/'other', 'targets').assign(**change).to_csv(file, index=False)
    else: file.unlink()
    page = tmp_path/'page.html'
    with pytest.raises(ValueError, match=message): report.write_comparison(runs/'whole', tmp_path/'other', out=page)
    assert not page.exists()


def test_results_need_a_model(runs, found):
    assert [*found] == ['0012'] and views.as_written(runs/'whole', found) == ''
    for name in ('cut', 'new'):
        with pytest.raises(Absent, match='no model yet'): views.evaluate_run(runs/name)


def test_published_splits_are_one_target(found):
    "Mean and deviation over splits, intervals over identities of all of them, one split in figures."
    one = found['0012']
    half = replace(one, result=replace(one.result, mAP=one.result.mAP - .1))
    splits = {'viper/0': one, 'viper/1': half, 'campus': one}
    table = views.scores_table(splits, bootstrap=50)
    mean = 100*(one.result.mAP - .05)
    assert [*table.index] == ['viper', 'campus', 'mean'] and table.loc['viper', 'mAP'].startswith(f'{mean:.1f} (')
    assert table.loc['viper', 'mAP std'] == f'{10/2**.5:.1f}' and table.loc['campus', 'mAP std'] == ''
    assert [*views.first_splits(splits)] == ['viper/0', 'campus']
    paired = views.paired_table(splits, splits)
    assert [*paired.index.unique('domain')] == ['viper', 'campus'] and not paired['difference'].any()


def test_queries_are_drawn_as_they_are_ranked(runs, found):
    "The first images of a drawn query are those nearest to it by the definition."
    one = found['0012']
    model = ReIDModel.load(runs/'whole'/'model').eval()
    assert np.allclose(embed_images(model, one.pixels[0]), one.features[0], atol=1e-4)
    fig = one.plot([0], k=3)
    q, g = (f/f.norm(dim=1, keepdim=True) for f in one.features)
    counts = ~((one.gallery['pid'] == one.query['pid'][0]) & (one.gallery['camid'] == one.query['camid'][0]))
    order = [i for i in (-(g @ q[0])).argsort().tolist() if counts[i]][:3]
    right = [one.gallery['pid'][i] == one.query['pid'][0] for i in order]
    assert [patch.get_linestyle() in ('-', 'solid') for patch in fig.axes[0].patches][1:] == right


@pytest.mark.parametrize('name', ['whole', 'blind'])
def test_a_whole_gallery_shows_every_right_answer(runs, name):
    "One solid frame for each image that counts: with one camera all of an identity, else those of other cameras."
    target, = views.evaluate_run(runs/name).values()
    pairs = target.query.iloc[:2].merge(target.gallery, on='pid')
    right = len(pairs) if name == 'blind' else int((pairs['camid_x'] != pairs['camid_y']).sum())
    frames = [patch for ax in target.plot([0, 1], k=len(target.gallery)).axes for patch in ax.patches]
    assert right and sum(f.get_linestyle() in ('-', 'solid') for f in frames) == right + 2 # and the queries' own


def test_tables_of_samplers(runs):
    table = report.sampler_table([runs/'whole', runs/'new'])
    assert table.index.names == ['run', 'epoch'] and 0 < table['images, %'].iloc[0] <= 100
    with pytest.raises(Absent): report.sampler_table([runs/'new'])
    assert report.plot_epochs([runs/'cut']) == []


def test_runs_on_other_pictures_have_figures_of_their_own(runs, tmp_path):
    "Row numbers of one run mean nothing in the table of another."
    fewer = tmp_path/'fewer'
    shutil.copytree(runs/'whole', fewer)
    epoch, records = views.run_table(fewer, 'epoch'), views.run_table(fewer, 'records')
    records.iloc[:len(records)//2].to_csv(fewer/'records.csv', index=False)
    epoch[epoch['row'] < len(records)//2].to_csv(fewer/'epoch.csv', index=False)
    for folders in ([fewer, runs/'whole', runs/'again'], [runs/'whole', fewer, runs/'again']):
        figures = report.plot_epochs([runs/'new', *folders])
        shown = [[line.get_label().split(' ')[0] for line in fig.axes[0].lines] for fig in figures]
        assert sorted(shown) == [['fewer'], ['whole', 'again']]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    for day, name in (('monday', 'whole'), ('tuesday', 'again')): shutil.copytree(runs/name, tmp_path/day/'run')
    folders = [tmp_path/'monday'/'run', tmp_path/'tuesday'/'run']
    assert report.settings(folders).loc['seed'].to_dict() == {'monday/run': 0, 'tuesday/run': 1}
    assert {run for run, _ in report.sampler_table(folders).index} == {'monday/run', 'tuesday/run'}
    with pytest.raises(ValueError, match='holds 5 runs; name one'): report.write_comparison(runs, runs/'whole')
