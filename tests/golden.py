"""What must not change when code is moved: plans, features, losses, gradients, weights, ranks and tables, as numbers.

`python tests/golden.py --record` writes them to tests/golden.json; `test_golden.py` compares. A change of a number
on purpose is recorded again and named in the commit.
"""
import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

FILE = Path(__file__).with_name('golden.json')


def digest(array):
    "SHA-256 of whole numbers, the same on every machine."
    values = np.ascontiguousarray(np.asarray(array), dtype='<i8')
    return f'{values.shape} {hashlib.sha256(values.tobytes()).hexdigest()[:16]}'


def summary(tensor):
    "A tensor's mean, size and a projection on fixed random directions: numbers that say whether it is the same."
    flat = torch.as_tensor(tensor).detach().double().flatten().numpy()
    directions = np.random.default_rng(0).normal(size=(4, len(flat))) if len(flat) < 2e6 else np.ones((1, len(flat)))
    return [float(flat.mean()), float(np.sqrt((flat**2).mean())), *(directions @ flat/np.sqrt(len(flat)))]


def world():
    "Labels and cameras of uneven identities, and features of them."
    draw = np.random.default_rng(5)
    labels = draw.permutation(np.repeat(np.arange(40), draw.integers(1, 14, 40)))
    cameras = draw.integers(0, 4, len(labels))
    features = torch.from_numpy(draw.normal(size=(40, 16))[labels] + .5*draw.normal(size=(len(labels), 16))).float()
    return labels, cameras, features


def graphs():
    "Nearest identities by every metric and offset."
    from clip_dfgs.sampling.graph import nearest_across_domains, identity_features, nearest_identities
    labels, cameras, features = world()
    means = identity_features(features, torch.from_numpy(labels))
    out = {'identity features': summary(means)}
    for metric in ('euclidean', 'cosine'):
        for skip in (0, 2): out[f'nearest {metric} {skip}'] = digest(nearest_identities(means, 8, skip, metric))
    out['nearest dual'] = digest(nearest_identities(means, 8, second=means.flip(1), weight=.5))
    out['nearest in blocks'] = digest(nearest_identities(means, 5, block=7))
    domains = np.arange(40)//14
    for rule in ('within', 'across', 'balanced'):
        out[f'domains {rule}'] = digest(nearest_across_domains(means, domains, 6, rule))
    return out


def plans():
    "Every sampler, several seeds, epochs and ranks."
    from clip_dfgs.sampling.graph import identity_features, nearest_identities
    from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler
    labels, cameras, features = world()
    graph = nearest_identities(identity_features(features, torch.from_numpy(labels)), 8)
    deep = nearest_identities(identity_features(features, torch.from_numpy(labels)), 20)
    makers = dict(
        pk=lambda **o: PKSampler(labels, cameras, batch=32, **o),
        gs=lambda **o: GraphSampler(labels, cameras, graph, batch=32, **o),
        shared=lambda **o: DepthFirstGraphSampler(labels, cameras, graph, batch=32, pk_ratio=.3, **o),
        curriculum=lambda **o: DepthFirstGraphSampler(labels, cameras, deep, batch=32, curriculum=(5, 3), **o),
        unshuffled=lambda **o: DepthFirstGraphSampler(labels, None, graph, batch=32, shuffle_neighbors=False, **o))
    for order in ('complete', 'paper', 'released'):
        options = dict(order=order)
        makers[f'dfgs {order}'] = lambda options=options, **o: DepthFirstGraphSampler(
            labels, cameras, graph, batch=32, **options, **o)
    out = {}
    for name, make in makers.items():
        for seed in range(3):
            for rank, ranks in ((0, 1), (1, 2)):
                sampler = make(seed=seed, rank=rank, world=ranks)
                for epoch in range(2):
                    sampler.set_epoch(epoch)
                    batches = [list(map(int, batch)) for batch in sampler]
                    out[f'{name} seed {seed} rank {rank}/{ranks} epoch {epoch}'] = digest(batches)
    return out


def epochs():
    "What an epoch holds."
    from clip_dfgs.sampling.diagnostics import epoch_statistics, pair_repetition
    from clip_dfgs.sampling.samplers import PKSampler
    labels, cameras, features = world()
    sampler = PKSampler(labels, cameras, batch=32)
    batches = list(sampler)
    report = epoch_statistics(batches, labels, cameras, features)
    met = pair_repetition([batches], labels)
    values = {k: float(v) for k, v in report.items() if np.ndim(v) == 0}
    met = {k: float(v) for k, v in met.items() if np.ndim(v) == 0}
    return {'epoch report': [values[k] for k in sorted(values)], 'pair_repetition': [met[k] for k in sorted(met)]}


def losses():
    "Every loss and its gradient."
    from clip_dfgs.training import losses
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(24, 12, generator=draw)
    labels = torch.arange(24)//4
    other = torch.randn(24, 12, generator=draw)
    logits = torch.randn(24, 9, generator=draw)
    text = torch.randn(9, 12, generator=draw)
    tries = dict(
        i2t=lambda x: losses.image_text_contrastive(x, other, labels, labels),
        i2t_warm=lambda x: losses.image_text_contrastive(x, other, labels, labels, .07),
        hard=lambda x: losses.batch_hard_triplet(x, labels),
        soft_margin=lambda x: losses.batch_hard_triplet(x, labels, None),
        unit=lambda x: losses.batch_hard_triplet(x, labels, .3, True),
        sharp=lambda x: losses.batch_hard_triplet(x, labels, .3, True, .1),
        i2tce=lambda x: losses.image_to_text_ce(x, text, labels))
    out = {}
    for name, loss in tries.items():
        x = features.clone().requires_grad_()
        value = loss(x)
        value.backward()
        out[f'loss {name}'] = [value.item(), *summary(x.grad)]
    x = logits.clone().requires_grad_()
    value = losses.id_loss(x, labels)
    value.backward()
    out['loss id'] = [value.item(), *summary(x.grad)]
    health = losses.triplet_health(features, labels)
    out['triplet health'] = [float(health[k]) for k in sorted(health)]
    return out


def model_numbers(model, images, labels):
    "Features, texts, and gradients of one image loss and one text loss."
    model.eval()
    out = {}
    features = model.image_features(images)
    for part in features._fields: out[part] = summary(getattr(features, part))
    heads = model.heads(features)
    loss = sum(h.square().mean() for h in heads) + sum(f.square().mean() for f in features)
    if model.has_text:
        text = model.text_features(labels)
        out['text'] = summary(text)
        loss = loss + (features.projected*text).sum(1).mean()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, [parameters[n] for n in names], allow_unused=True)
    norms = {n: float(g.double().norm()) for n, g in zip(names, grads) if g is not None}
    out['loss'] = [loss.item()]
    out['gradients'] = [float(np.sqrt(sum(v**2 for v in norms.values()))), float(len(norms))]
    for name in sorted(norms)[::17]: out[f'gradient {name}'] = [norms[name]]
    return out


def models(full_size=True):
    "Small and full-size models, or small ones alone."
    from clip_dfgs.models.reid_model import ReIDModel
    draw = torch.Generator().manual_seed(2)
    cases = {
        'small': dict(clip='pedestrians', pretrained='pedestrians', num_ids=6),
        'small cameras': dict(clip='pedestrians', pretrained=None, num_ids=6, cameras=3),
        'ViT-B-16': dict(clip='ViT-B-16', pretrained=None, num_ids=4, image_size=(256, 128)),
        'ViT-B-16 stride 12': dict(clip='ViT-B-16', pretrained=None, num_ids=4, image_size=(256, 128), stride=12),
        'RN50': dict(clip='RN50', pretrained=None, num_ids=4, image_size=(128, 64)),
        'resnet18': dict(clip='timm:resnet18', pretrained=None, num_ids=4, image_size=(64, 32))}
    out = {}
    for name, settings in cases.items():
        height, width = settings.get('image_size', (128, 64))
        images = torch.rand(2, 3, height, width, generator=draw)
        if not full_size and name.startswith(('ViT', 'RN')): continue
        model = ReIDModel.create(**settings)
        for p in model.parameters(): p.requires_grad_(True)
        for key, value in model_numbers(model, images, torch.tensor([0, 3])).items(): out[f'{name}: {key}'] = value
    return out


def ranks():
    "Evaluation, re-ranking, verification, intervals."
    from clip_dfgs.evaluation.metrics import evaluate
    from clip_dfgs.evaluation.bootstrap import compare
    from clip_dfgs.evaluation.reranking import k_reciprocal_distances
    from clip_dfgs.evaluation.metrics import verification
    draw = np.random.default_rng(8)
    people = draw.normal(size=(30, 10))
    query_ids, gallery_ids = draw.integers(0, 30, 50), draw.integers(0, 32, 160)
    query_cams, gallery_cams = draw.integers(0, 3, 50), draw.integers(0, 3, 160)
    query = people[query_ids] + .9*draw.normal(size=(50, 10))
    gallery = np.concatenate([people, draw.normal(size=(2, 10))])[gallery_ids] + .9*draw.normal(size=(160, 10))
    everything = query_ids, gallery_ids, query_cams, gallery_cams
    out = {}
    for name, options in dict(cosine={}, euclidean=dict(metric='euclidean'), rerank=dict(rerank=True),
                              blocks=dict(block=7), intervals=dict(bootstrap=50)).items():
        result = evaluate(query, gallery, *everything, **options)
        out[f'evaluate {name}'] = [*result.summary().tolist(), float(result.queries), float(result.unmatched)]
        if result.intervals is not None: out['intervals'] = result.intervals.to_numpy(float).flatten().tolist()
    out['without cameras'] = evaluate(query, gallery, query_ids, gallery_ids).summary().tolist()
    out['re-ranked distances'] = summary(k_reciprocal_distances(query, gallery))
    one, two = evaluate(query, gallery, *everything), evaluate(query, gallery, *everything, rerank=True)
    out['compare'] = compare(one, two).drop(columns='better', errors='ignore').to_numpy(float).flatten().tolist()
    pairs = verification(query, gallery, *everything)
    out['verification'] = [float(v) for v in vars(pairs).values() if np.ndim(v) == 0 and not isinstance(v, str)]
    return out


def tables():
    "The parsed tables of all made trees, and what they pool to."
    from clip_dfgs.data.datasets import load_dataset
    from clip_dfgs.data.records import pool
    from trees import MAKERS, make_tree
    out = {}
    for name in sorted(MAKERS.keys() - {'mot', 'coco'}):                        # their images are cut into the cache
        with tempfile.TemporaryDirectory() as root:
            rows = load_dataset(name, make_tree(name, root))
            rows = rows.assign(path=[str(Path(p).resolve().relative_to(Path(root).resolve())) for p in rows['path']])
            text = rows[['path', 'pid', 'camid', 'split']].to_csv(index=False, lineterminator='\n')
            out[f'table {name}'] = f'{len(rows)} {hashlib.sha256(text.encode()).hexdigest()[:16]}'
            if not (rows['split'] == 'train').any(): continue
            pooled = pool([load_dataset(name, make_tree(name, Path(root)/'again', ids=6))])
            out[f'labels {name}'] = digest(pooled['label'])
    return out


def pictures():
    "Rendered people, their captions, and how training sees them."
    from clip_dfgs.data.loader import ImageDataset
    from clip_dfgs.data.transforms import Augment
    from clip_dfgs.models.reid_model import normalize
    from clip_dfgs.synthetic.domain import captioned_images
    people, looks = captioned_images(4, seed=3, workers=1, progress=False)
    said = '\n'.join(looks['caption']).encode()
    out = {'rendered': digest(people), 'captions': hashlib.sha256(said).hexdigest()[:16]}
    augments = dict(plain=None, usual=Augment(), jitter=Augment(erase=.5, jitter=.5),
                    augmix=Augment(augmix=.9, gray=.5))
    for name, augment in augments.items():
        data = ImageDataset(people, np.arange(4), np.zeros(4, int), augment, 7)
        data.set_epoch(2)
        images = data.__getitems__([0, 1, 2, 3, 1])[0]
        out[f'augmented {name}'] = summary(images)
    out['normalized'] = summary(normalize(torch.from_numpy(people).permute(0, 3, 1, 2), (.5, .4, .3), (.2, .3, .4)))
    return out


def training():
    "A short run of all stages, to its weights."
    from clip_dfgs.data.records import pool
    from clip_dfgs.synthetic.domain import render_domain
    from clip_dfgs.training.config import TrainConfig
    from clip_dfgs.training.trainer import fit
    out = {}
    with tempfile.TemporaryDirectory() as tmp:
        records = render_domain(Path(tmp)/'town', seed=600, identities=32, cameras=3, progress=False)
        config = TrainConfig(log_steps=2, precision='no', cache=str(Path(tmp)/'cache'), graph='dual')
        config = replace(config, adapt=replace(config.adapt, steps=6, batch=32),
                         prompts=replace(config.prompts, steps=6, batch=48),
                         finetune=replace(config.finetune, steps=6, batch=32))
        run = fit(pool([records]), config, Path(tmp)/'run')
        state = {k: v for k, v in run.model.state_dict().items() if v.is_floating_point()}
        for name in sorted(state)[::11]: out[f'weights {name}'] = summary(state[name])
        everything = hashlib.sha256(b''.join(state[k].numpy().tobytes() for k in sorted(state)))
        out['exact: weights'] = everything.hexdigest()[:16]
        for column in ('loss', 'rate', 'violated_triplets'):
            out[f'history {column}'] = run.history[column].dropna().tolist()
        result = next(iter(run.evaluate(records).values()))
        out['results'] = result.summary().tolist()
    return out


PARTS = dict(graphs=graphs, plans=plans, epochs=epochs, losses=losses, models=models, ranks=ranks, tables=tables,
             pictures=pictures, training=training)


def measured(part, **options):
    "The numbers of one part."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: return json.loads(json.dumps(PARTS[part](**options)))
    finally: torch.set_num_threads(threads)


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    found = {part: measured(part) for part in PARTS}
    if '--record' in sys.argv:
        FILE.write_text(json.dumps(found, indent=0, sort_keys=True) + '\n')
    else:
        known = json.loads(FILE.read_text())
        wrong = [f'{part}: {k}: {known[part].get(k)} -> {v}' for part in PARTS for k, v in found[part].items()
                 if known[part].get(k) != v]
        print('\n'.join(wrong) or 'every number is the same to the bit')
