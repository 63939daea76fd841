"""Every architecture of open_clip and a small backbone of every family of timm, at 256x128, beside the originals.

    python benchmarks/towers.py                            # some minutes on one core; a second call goes on
    python benchmarks/towers.py --again ViT-B-16 resnet    # these rows anew

Two blocks, random weights, in memory. Compared with open_clip's and timm's own forward pass: features of images, of
sentences, and of a prompt, whose learned tokens open_clip reads from its token table. `works`: they differ by rounding;
`refused`: `ReIDModel` says in a line why it does not take the tower. Beside it: what a tower sees of 256x128, how its
pixels are normalized, where its text is read, and whether padding counts (cosine of a text with padding and without).
A row is written to `results/towers.csv` as soon as it is known.
"""
import argparse
import contextlib
import copy
import json
import os
import tempfile
import warnings
from pathlib import Path

os.environ['WANDB_MODE'] = 'disabled'
import open_clip
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from clip_dfgs.models.prompts import PROMPT, PromptLearner
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.models.towers import encode_embeddings, encode_tokens, fit_tower, PlainCLIP, text_positions, text_tower

TABLE = Path(__file__).resolve().parent.parent/'results'/'towers.csv'
SIZE, TOLERANCE = (256, 128), 1e-4
COLUMNS = ('library name tower result reason image text prompt grid prefix lost_rows lost_columns stride mean std '
           'tokenizer context causal read padding').split()
SMALL = 'test_ atto femto pico nano xxt xxs zepto zero xtiny _xt tiny _t 050 lite xs 18 small _s b0 _0 m0 s0'.split()


@contextlib.contextmanager
def few_blocks():
    "timm's backbones with two blocks, or one in each stage, where their constructors can be told so."
    whole = timm.create_model
    def cut(name, *args, **options):
        stages = (1,)*(5 if name.endswith(('mci3', 'mci4')) else 4)
        for fewer in (dict(depth=2), dict(depths=stages), dict(layers=stages)):
            with contextlib.suppress(Exception): return whole(name, *args, **(options | fewer))
        return whole(name, *args, **options)
    timm.create_model = cut
    try: yield
    finally: timm.create_model = whole


def fewer(config):
    "An architecture with two blocks on either side and a small table of tokens."
    cfg = copy.deepcopy(config)
    vision, text = cfg['vision_cfg'], cfg['text_cfg']
    if isinstance(vision.get('layers'), list): vision['layers'] = [1, 1, 1, 1]
    elif not vision.get('timm_model_name'): vision['layers'] = 2
    if 'hf_model_name' not in text: text |= dict(layers=2, vocab_size=200)
    return cfg


class Words:
    "Stands for any tokenizer: a start, a number a word, an end, padding."
    def __init__(self, tower):
        self.length, self.pad = tower.context_length, getattr(tower, 'pad_id', 0)
        self.end = getattr(tower, 'eos_id', getattr(tower, 'text_eos_id', 2)) if read_at(tower) == 'eos' else 199

    def __call__(self, texts):
        def ids(text): return [3, *(10 + sum(map(ord, word)) % 80 for word in text.split()), self.end]
        return torch.tensor([(ids(text) + [self.pad]*self.length)[:self.length] for text in texts])


def read_at(tower):
    "Where the feature of a text is read."
    return getattr(tower, 'pool_type', None) or getattr(tower, 'text_pool_type', 'argmax')


def apart(found, expected):
    "Largest distance between rows, as a share of their length."
    return float(((found - expected).norm(dim=1)/expected.norm(dim=1)).max())


def sentences(clip, original):
    "Sentences and a prompt beside open_clip's own encoder."
    tower, words = text_tower(clip), Words(text_tower(clip))
    ids, prompts = words(['a man in a red coat', 'somebody']), PromptLearner.for_clip(clip, words, 2)
    hole, asked = len(prompts.prefix), words([PROMPT])
    asked[0, hole:hole + 4] = torch.arange(100, 104)
    learned = encode_embeddings(tower, prompts(torch.tensor([1]))[:, hole:], prompts.at, prompts.prefix)
    expected, cut = original.encode_text(ids), ids[:, :8]
    short = encode_embeddings(tower, tower.token_embedding(cut), text_positions(tower, cut))
    padding = f'{float(F.cosine_similarity(short, expected).min()):.2f}'
    text_tower(original).token_embedding.weight.data[100:104] = prompts.context.data[1]
    return dict(text=apart(encode_tokens(tower, ids), expected), prompt=apart(learned, original.encode_text(asked)),
                context=tower.context_length, causal=tower.attn_mask is not None, read=read_at(tower), padding=padding)


def seen(visual, pooled):
    "What a tower sees of an image: grid and stride of the last map, tokens ahead of it, pixels no feature depends on."
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.enable_grad(): gradient, = torch.autograd.grad(pooled(x).square().sum(), x)
    unseen, trunk = gradient.abs().sum((0, 1)) == 0, getattr(visual, 'trunk', None)
    if trunk is not None: grid = trunk.forward_intermediates(x, indices=1, intermediates_only=True)[-1].shape[2:]
    else: grid = getattr(visual, 'fitted_grid', None) or visual.grid_size
    ahead = getattr(trunk, 'num_prefix_tokens', 0) if trunk is not None else int(hasattr(visual, 'class_embedding'))
    strides = sorted({f'{s/g:.4g}' for s, g in zip(SIZE, grid)})
    return dict(grid='x'.join(map(str, grid)), prefix=ahead, stride=' '.join(strides),
                lost_rows=int(unseen.all(1).sum()), lost_columns=int(unseen.all(0).sum()))


def normalization(configs):
    "Mean and standard deviation of all published weights, the commonest first."
    def shown(values): return ' '.join(f'{v:.4g}' for v in values)
    pairs = pd.Series([(shown(c['mean']), shown(c['std'])) for c in configs], dtype=object).value_counts().index
    return dict(zip(('mean', 'std'), (', '.join(values) for values in zip(*pairs))))


@torch.no_grad()
def open_clip_row(name):
    "One architecture of open_clip, through a folder with its config."
    config = open_clip.get_model_config(name)
    vision, text = config['vision_cfg'], config['text_cfg']
    row = dict(tower=vision.get('timm_model_name') or ('ResNet' if isinstance(vision.get('layers'), list) else 'ViT'),
               tokenizer=text.get('hf_tokenizer_name', 'clip'))
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    usual = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    row |= normalization([usual | {k: v for k, v in tag.items() if k in usual} for tag in tags])
    with tempfile.TemporaryDirectory() as folder, few_blocks():
        (Path(folder)/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=fewer(config))))
        try: model = ReIDModel.create(f'local-dir:{folder}', None, image_size=SIZE).eval()
        except ValueError as e: return row | dict(result='refused', reason=str(e).replace(f'local-dir:{folder}', name))
    x, original = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1)), model.clip
    if isinstance(original, PlainCLIP):
        original = open_clip.CLIP(**model.config['model_cfg']).eval()
        fit_tower(original.visual, SIZE)
        original.load_state_dict(model.clip.state_dict())
    row['image'] = apart(model.image_features(x).projected, original.visual(x))
    row |= sentences(model.clip, copy.deepcopy(original))
    return row | seen(model.clip.visual, lambda x: model.image_features(x).pooled)


def smallest(family):
    "The backbone of a family whose name says that it is small; else that of the shortest name."
    names = timm.list_models(module=family)
    places = {name: min([i for i, word in enumerate(SMALL) if word in name], default=len(SMALL)) for name in names}
    return min(names, key=lambda name: (places[name], len(name), name))


@torch.no_grad()
def timm_row(family):
    "One backbone of a family of timm."
    name = smallest(family)
    configs = [timm.models.get_pretrained_cfg(one) for one in timm.list_models(module=family, pretrained=True)]
    row = dict(tower=name) | normalization([dict(mean=c.mean, std=c.std) for c in configs if c])
    try:
        with few_blocks(): model = ReIDModel.create(f'timm:{name}', None, image_size=SIZE).eval()
    except ValueError as e: return row | dict(result='refused', reason=str(e))
    x, visual = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1)), model.clip.visual
    row['image'] = apart(model.image_features(x).pooled, visual.trunk(x))
    return row | seen(visual, lambda x: model.image_features(x).pooled)


def judged(library, name):
    "A row of the table."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: row = dict(open_clip=open_clip_row, timm=timm_row)[library](name)
        except Exception as e: row = dict(result='raw error', reason=f'{type(e).__name__}: {e}')
    apart = [row[what] for what in ('image', 'text', 'prompt') if what in row]
    row = dict(result='works' if max(apart, default=1) < TOLERANCE else 'wrong') | row
    row['reason'] = ' '.join(row.get('reason', '').split())[:300]
    return dict(library=library, name=name) | {k: f'{v:.0e}' if isinstance(v, float) else v
                                               for k, v in row.items()}


def main(again=(), file=TABLE):
    names = [('open_clip', name) for name in open_clip.list_models()] + [('timm', name) for name in timm.list_modules()]
    done = pd.read_csv(file, dtype=str) if file.exists() else pd.DataFrame(columns=COLUMNS)
    done = done[~done['name'].isin(again)]
    done.to_csv(file, index=False)
    for library, name in names:
        if ((done['library'] == library) & (done['name'] == name)).any(): continue
        row = pd.DataFrame([judged(library, name)], columns=COLUMNS)
        row.to_csv(file, mode='a', header=False, index=False)
        print(*row.iloc[0][['library', 'name', 'result', 'reason']], flush=True)
    table = pd.read_csv(file, dtype=str)
    place = {one: i for i, one in enumerate(names)}
    table['place'] = [place.get(one, -1) for one in zip(table['library'], table['name'])]
    table[table['place'] >= 0].sort_values('place')[COLUMNS].to_csv(file, index=False)
    print(table.groupby('library')['result'].value_counts().to_string())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--again', nargs='+', default=(), help='names of rows to make anew')
    main(**vars(parser.parse_args()))
