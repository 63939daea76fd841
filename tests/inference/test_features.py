"Features of many images and the ranks of record tables."
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clip_dfgs.inference import evaluator as features
from clip_dfgs.data.datasets import load_dataset
from clip_dfgs.utils.checks import DatasetError
from clip_dfgs.evaluation.metrics import evaluate
from clip_dfgs.inference.embed import make_accelerator, choose_precision, embed_images, embed_together
from clip_dfgs.inference.evaluator import check_targets
from clip_dfgs.data.leakage import find_leakage
from clip_dfgs.inference.evaluator import evaluate_records, results_table
from clip_dfgs.data.loader import cached_images
from clip_dfgs.models.reid_model import ReIDModel


class Numbers(torch.nn.Module):
    "A model whose feature of an image is the number that its pixels are painted with; it remembers its batches."
    def __init__(self):
        super().__init__()
        self.weight, self.batches = torch.nn.Parameter(torch.ones(1)), []

    def embed(self, images):
        numbers = images[:, 0, 0, 0].float()
        self.batches.append(tuple(int(n) for n in numbers))
        return numbers[:, None]*self.weight


def painted(n):
    "Images, each painted with its number."
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 2, 3))


@pytest.mark.parametrize('n, batch, world', [(10, 4, 2), (10, 4, 3), (3, 4, 2), (8, 4, 2), (9, 2, 4)])
def test_images_are_embedded_once_and_come_back_in_order(n, batch, world):
    "Threads stand in for processes; each batch holds the images that it would hold alone."
    sent, meet = {}, threading.Barrier(world)

    class Peer:
        num_processes, device, mixed_precision = world, torch.device('cpu'), 'no'
        def __init__(self, rank): self.process_index = rank
        def autocast(self): return torch.autocast('cpu', enabled=False)
        def exchanged(self, features):
            sent[self.process_index] = features
            meet.wait(60)
            parts = [sent[r] for r in range(world)]
            meet.wait(60)
            return parts
        def pad_across_processes(self, features):
            longest = max(map(len, self.exchanged(features)))
            return torch.cat([features, torch.zeros(longest - len(features), 1)])
        def gather(self, features): return torch.cat(self.exchanged(features))

    models = [Numbers() for _ in range(world)]
    def features(rank): return embed_together(models[rank], painted(n), Peer(rank), batch=batch)[:, 0].tolist()
    with ThreadPoolExecutor(world) as peers: found = list(peers.map(features, range(world)))
    assert found == [list(range(n))]*world
    alone = {tuple(range(i, min(i + batch, n))) for i in range(0, n, batch)}
    busy = -(-n//batch)
    assert {b for model in models[:busy] for b in model.batches} == alone
    assert sum(len(b) for model in models[:busy] for b in model.batches) == n
    assert all(model.batches == [(0,)] for model in models[busy:])             # nothing to do: one image for nothing


def test_half_precision_is_near():
    model = ReIDModel.create('pedestrians', 'pedestrians')
    pixels = np.random.default_rng(0).integers(0, 256, (30, 128, 64, 3), dtype=np.uint8)
    exact, loose = (embed_images(model, pixels, accelerator=make_accelerator(p), batch=16) for p in ('no', 'bf16'))
    assert torch.equal(exact, embed_images(model, pixels, batch=16)) and loose.dtype == torch.float32
    near = torch.nn.functional.cosine_similarity(exact, loose)
    assert near.min() > .998 and near.max() < 1 - 1e-7


@pytest.mark.parametrize('capability, chosen', [((7, 0), 'fp16'), ((7, 5), 'fp16'), ((8, 0), 'bf16'), ((9, 0), 'bf16')])
def test_precision_by_what_a_gpu_multiplies_in_hardware(monkeypatch, capability, chosen):
    "V100 and T4 would emulate bf16."
    properties = type('Properties', (), dict(major=capability[0], minor=capability[1]))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    assert choose_precision('auto', 'cuda') == chosen


def test_precision_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch):
    "The device that is used decides, not what else is there."
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for unit in ('amx_tile', 'avx512_bf16'): monkeypatch.setattr(torch.cpu, f'_is_{unit}_supported', lambda: False)
    assert choose_precision('auto', 'cpu') == 'no'
    with pytest.raises(ValueError, match='fp16 needs a GPU'): choose_precision('fp16', 'cpu')
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True)
    assert choose_precision('auto', 'cpu') == 'bf16' and choose_precision('auto', 'cpu', convolutions=True) == 'no'


def table(rows):
    "A record table of (split, pid, camid)."
    split, pid, camid = zip(*rows)
    path = [f'{i}.jpg' for i in range(len(rows))]
    return pd.DataFrame(dict(path=path, pid=pid, camid=camid, domain='d', split=split))


@pytest.mark.parametrize('rows, words', [
    ([('train', 1, 0)], 'no query or gallery row'),
    ([('query', 1, 0)], 'd: no gallery image'),
    ([('gallery', 1, 0)], 'd: no query image'),
    ([('query', 1, 0), ('gallery', 2, 1)], '^d: '),
    ([('query', 1, 0), ('gallery', 1, 0), ('gallery', 2, 1)], '^d: '),         # only by the query's own camera
])
def test_targets_without_an_answer(rows, words):
    with pytest.raises(ValueError, match=words): check_targets(table(rows))


def test_records_are_ranked_as_evaluate_ranks(world, tmp_path):
    "By hand: features, identities and cameras of both sides."
    model = ReIDModel.create('pedestrians', 'pedestrians')
    records = load_dataset('market1501', world)
    found = evaluate_records(model, records, cache=tmp_path)['town']
    sides = []
    for side in ('query', 'gallery'):
        rows = records[records['split'] == side]
        pixels = cached_images(rows['path'].tolist(), (128, 64), tmp_path)
        sides.append((embed_images(model, pixels), rows['pid'].to_numpy(), rows['camid'].to_numpy()))
    (q, q_ids, q_cams), (g, g_ids, g_cams) = sides
    assert found.mAP == pytest.approx(evaluate(q, g, q_ids, g_ids, q_cams, g_cams).mAP)


def together(world, monkeypatch, job):
    "What `job` of a stand-in for accelerate returns or raises in each of several threads that stand in for processes."
    box, meet = [], threading.Barrier(world)

    class Peer:
        num_processes, device, mixed_precision = world, torch.device('cpu'), 'no'
        def __init__(self, rank): self.process_index, self.is_main_process = rank, rank == 0

    def broadcast(objects):
        if threading.current_thread() in mains: box[:] = objects
        meet.wait(60)
        objects[:] = box

    def outcome(rank):
        if rank == 0: mains.append(threading.current_thread())
        try: return job(Peer(rank))
        except Exception as error: return error

    mains = []
    monkeypatch.setattr(features, 'broadcast_object_list', broadcast)
    with ThreadPoolExecutor(world) as peers: return list(peers.map(outcome, range(world)))


def test_the_main_process_ranks_for_all(world, tmp_path, monkeypatch):
    model, records = ReIDModel.create('pedestrians', 'pedestrians'), load_dataset('market1501', world)
    alone, asked = evaluate_records(model, records, cache=tmp_path)['town'], []
    def counted(*args, **options):
        asked.append(threading.current_thread())
        return evaluate(*args, **options)
    paths = records.loc[records['split'] != 'train', 'path'].tolist()
    known = embed_images(model, cached_images(paths, (128, 64), tmp_path))
    monkeypatch.setattr(features, 'embed_together', lambda *args, **options: known)
    monkeypatch.setattr(features, 'evaluate', counted)
    found = together(3, monkeypatch, lambda peer: evaluate_records(model, records, peer, cache=tmp_path)['town'])
    assert len(asked) == 1 and all(one.per_query.equals(alone.per_query) for one in found)
    def refused(peer): return evaluate_records(model, records, peer, cache=tmp_path, ranks=(0,))
    assert [str(error)[:9] for error in together(2, monkeypatch, refused)] == ['ranks=(0,']*2


# What has to be known of a result

@pytest.fixture
def one_camera(world):
    "Queries of the rendered domain, its cameras not known, with the gallery that they were taken for: themselves too."
    records = load_dataset('market1501', world).assign(camid=0)
    records = records[records['split'] != 'train']
    queries = records[records['split'] == 'query']
    return pd.concat([records, queries.assign(split='gallery')], ignore_index=True)


def copy_of(path, folder):
    "The same bytes under another path."
    return str(shutil.copy(path, folder/f'copy of {Path(path).name}'))


def link_to(path, folder):
    "The same file under another path."
    link = folder/f'link to {Path(path).name}'
    link.symlink_to(path)
    return str(link)


def itself(path, folder): return path


@pytest.mark.parametrize('again', [itself, copy_of, link_to])
def test_with_one_camera_no_picture_is_its_own_answer(one_camera, tmp_path, again):
    "The ranks are those without the query in the gallery, in the gallery as it was."
    model = ReIDModel.create('pedestrians', 'pedestrians')
    own = one_camera.index >= len(one_camera) - (one_camera['split'] == 'query').sum()
    moved = one_camera.assign(path=[again(path, tmp_path) if copied else path
                                    for path, copied in zip(one_camera['path'], own)])
    with pytest.warns(UserWarning, match='36 of 36 queries are in the gallery too'):
        found = evaluate_records(model, moved, cache=tmp_path/'cache')
    features = embed_images(model, cached_images(one_camera['path'].tolist(), (128, 64), tmp_path/'cache')).numpy()
    rows, aps = one_camera, []
    gallery = np.flatnonzero(rows['split'] == 'gallery')
    for i in np.flatnonzero(rows['split'] == 'query'):
        others = gallery[rows['path'].iloc[gallery] != rows['path'].iloc[i]]
        near = others[np.argsort(-features[others] @ features[i]/np.linalg.norm(features[others], axis=1))]
        hits = np.flatnonzero(rows['pid'].iloc[near].to_numpy() == rows['pid'].iloc[i])
        aps.append(np.mean((np.arange(len(hits)) + 1)/(hits + 1)))
    assert found['town'].mAP == pytest.approx(np.mean(aps), abs=1e-6)
    assert 'in the gallery too' in results_table(found).loc['town', 'note']


def test_one_camera_is_said(one_camera):
    apart = one_camera.drop_duplicates('path')
    assert find_leakage(None, apart)['kind'].tolist() == ['one camera']


@pytest.mark.parametrize('change, images, identities', [
    (dict(), '72 of 72 test images', '12 of its 12 identities'),
    (dict(domain='elsewhere'), '72 of 72 test images', None),                  # one set under two names
    (dict(path='{town}/bounding_box_train/{i}.jpg'), None, '12 of its 12 identities'),
    (dict(path='{copy}/{name}'), None, '12 of its 12 identities'),                  # the same pictures somewhere else
    (dict(path='{copy}/{i}.jpg'), None, None),                                  # another data set of the same name
    (dict(path='{town}/bounding_box_train/{i}.jpg', domain='elsewhere'), None, None)])
def test_what_was_trained_on_is_said(world, tmp_path, change, images, identities):
    targets = load_dataset('market1501', world)
    targets = targets[targets['split'] != 'train']
    if 'path' in change:
        for path in targets['path']: shutil.copy(path, tmp_path)
        paths = [change['path'].format(town=world, copy=tmp_path, i=i, name=Path(path).name)
                 for i, path in enumerate(targets['path'])]
        change = change | dict(path=paths)
    notes = find_leakage(targets.assign(split='train', **change), targets, content=False)['sentence'].tolist()
    expected = [words for words in (images, identities) if words]
    assert len(notes) == len(expected) and all(words in note for words, note in zip(expected, notes))


def test_targets_that_are_all_right_have_no_note(world):
    records = load_dataset('market1501', world)
    assert find_leakage(records[records['split'] == 'train'], records).empty


@pytest.mark.parametrize('pid', [np.nan, 1.5, 'a', None])
def test_a_table_is_checked_before_it_is_ranked(world, pid):
    records = load_dataset('market1501', world)
    records['pid'] = records['pid'].astype(object)
    records.loc[records.index[-1], 'pid'] = pid
    with pytest.raises(DatasetError, match='pid'): evaluate_records(None, records)


def test_two_tables_of_one_domain(world, tmp_path):
    "As a list each is ranked by itself, or refused for its name; one under the other they are refused or named."
    model = ReIDModel.create('pedestrians', None)
    copies = [Path(shutil.copytree(world, tmp_path/site/'town')) for site in 'ab']
    tables = [load_dataset('market1501', folder) for folder in copies]
    with pytest.raises(DatasetError, match="two tables are of the domain 'town'"): evaluate_records(model, tables)
    for two in (pd.concat(tables), pd.concat(tables).iloc[::-1]):
        with pytest.raises(DatasetError, match='in two places'): evaluate_records(model, two)
    assert 'two places' in set(find_leakage(None, pd.concat(tables, ignore_index=True), content=False)['kind'])
    named = [table.assign(domain=name) for table, name in zip(tables, 'ab')]
    assert list(evaluate_records(model, named, cache=tmp_path/'cache')) == ['a', 'b']


def test_results_with_intervals():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(6, 4)), rng.normal(size=(18, 4))
    one = evaluate(query, gallery, np.arange(6), np.repeat(np.arange(6), 3), bootstrap=200)
    two = replace(one, mAP=one.mAP/2, intervals=None)
    both = results_table(dict(one=one, two=two))
    assert both.loc['one', 'mAP low'] == pytest.approx(100*one.intervals.loc['mAP', 'low'])
    assert both.loc['one', 'mAP low'] < both.loc['one', 'mAP'] < both.loc['one', 'mAP high']
    assert both.loc['mean', 'mAP'] == pytest.approx(75*one.mAP)
    assert both.loc[['two', 'mean'], ['mAP low', 'R1 high']].isna().all().all()
    assert not any('low' in c for c in results_table(dict(two=two)))


@pytest.mark.parametrize('spoil', [
    lambda x: x/255, lambda x: x.astype(np.float32), lambda x: x.transpose(0, 3, 1, 2), lambda x: x[0], list,
    lambda x: x.astype(int), lambda x: x[..., 0]])
def test_pixels_of_another_kind_are_refused(spoil):
    "Floats would be taken for normalized pictures."
    with pytest.raises(ValueError, match=r'give uint8 \[n,H,W,3\]'): embed_images(Numbers(), spoil(painted(3).copy()))


def test_no_images_have_no_features():
    model = ReIDModel.create('pedestrians', None)
    pixels = np.zeros((2, *model.config['image_size'], 3), np.uint8)
    assert embed_images(model, pixels[:0]).shape == embed_images(model, pixels, []).shape == (0, model.width)
