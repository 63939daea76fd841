"""Search by words, measured: precision at 10 for every attribute of a caption, beside chance.

    python benchmarks/words.py --csv results/words.csv       # some minutes on one core
    python benchmarks/words.py --model RUN                      # another model with a text encoder
    python benchmarks/words.py --no-market                      # rendered people only

A word of an attribute ("red" of the upper garment's color), or of two, is asked for in a gallery, and the first ten
pictures are looked at: how many are of people who have it? Chance is the share of pictures that have it; best is what a
perfect ranking would reach. Words that fewer than one picture in fifty shows are left out. Galleries are rendered
street cameras of domains that no weights have seen, and, where CLIP_DFGS_REALDATA has them, the queries of Market-1501
with its attributes (numbers only). Three ways to ask:

- plain: one sentence, "A photo of a person wearing a red coat.";
- typed: the words alone, "wearing a red coat";
- several: the mean feature of six sentences around the same words.
"""
import argparse
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from clip_dfgs.inference.embed import FeatureExtractor, load_model
from clip_dfgs.synthetic.domain import domain_cast, render_domain

DOMAINS = (88101, 88102, 88103)
PHRASES = dict( # attribute -> what is said of a word
    sex='who is a {}', hair='with {} hair', hair_length='with {} hair', upper_color='wearing a {} top',
    upper='wearing a {}', pattern='wearing {} clothes', lower='wearing {}', lower_color='wearing {} trousers',
    shoes='wearing {} shoes', bag='carrying a {}', hat='with a {}')
PAIRS = { # of words
    'upper_color and upper': 'wearing a {} {}', 'upper_color and lower_color': 'wearing a {} top and {} trousers',
    'upper_color and bag': 'wearing a {} top, carrying a {}', 'sex and upper_color': 'who is a {} wearing a {} top'}
PHRASES |= PAIRS
AROUND = ('A photo of a person {}.', 'A photo of a man {}.', 'A photo of a woman {}.', 'a person {}',
          'a pedestrian {}, seen by a street camera', 'somebody {}')
MARKET = dict( # attribute -> {word: (column, value)} of market_attribute.mat
    sex=dict(man=('gender', 1), woman=('gender', 2)), hair_length=dict(short=('hair', 1), long=('hair', 2)),
    upper_color={c: (f'up{w}', 2) for c, w in dict(black='black', white='white', red='red', purple='purple',
                  yellow='yellow', grey='gray', blue='blue', green='green').items()},
    lower_color={c: (f'down{w}', 2) for c, w in dict(black='black', white='white', pink='pink', grey='gray',
                  blue='blue', green='green', brown='brown').items()},
    bag={'backpack': ('backpack', 2), 'shoulder bag': ('bag', 2), 'handbag': ('handbag', 2)}, hat=dict(cap=('hat', 2)))


def unit(x): return x/np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Asked(dict):
    "(attribute, word or two) -> way -> feature; each is computed once."
    def __init__(self, extract):
        super().__init__()
        self.extract = extract

    def mean(self, texts): return unit(self.extract.text(list(texts)).numpy().mean(0))

    def __missing__(self, key):
        attribute, word = key
        phrase = PHRASES[attribute].format(*(word if isinstance(word, tuple) else [word]))
        self[key] = dict(plain=self.mean([AROUND[0].format(phrase)]), typed=self.mean([phrase]),
                         several=self.mean([a.format(phrase) for a in AROUND]))
        return self[key]


def scores(features, shows, asked, k=10):
    "A row for each word of each attribute; `shows` is attribute -> word -> bool [pictures]."
    rows = []
    for attribute, words in shows.items():
        for word, mine in words.items():
            if mine.mean() < .02: continue
            row = dict(attribute=attribute, word=str(word), chance=mine.mean(), best=min(1, mine.sum()/k))
            for way, text in asked[attribute, word].items():
                row[way] = mine[np.argsort(-(features @ text), kind='stable')[:k]].mean()
            rows.append(row)
    return pd.DataFrame(rows)


def rendered(seed, folder, identities):
    "Pictures of a domain, and who shows what."
    render_domain(folder, seed, identities, 3, 1, look_alikes=1, test_share=1., workers=1, progress=False)
    people, _ = domain_cast(seed, identities, 3, 1)
    files = sorted(p for part in ('query', 'bounding_box_test') for p in (folder/part).iterdir())
    looks = pd.DataFrame([people[int(p.name[:4]) - 1].look for p in files])
    shows = {a: {w: (looks[a] == w).to_numpy() for w in sorted(set(looks[a])) if not w.startswith('no ')
                 and w != 'plain'} for a in PHRASES if a not in PAIRS}
    return files, shows | {a: pairs(shows, *a.split(' and ')) for a in PAIRS}


def pairs(shows, first, second):
    "Who shows a word of one attribute and a word of another."
    return {(a, b): mine & others for a, mine in shows[first].items() for b, others in shows[second].items()}


def market(root, folder):
    "Queries of Market-1501, and who shows what; None where the files are not."
    if not ((root/'market1501.tar').is_file() and (root/'protocol_files.tar.gz').is_file()): return None
    from scipy.io import loadmat
    with tarfile.open(root/'protocol_files.tar.gz') as archive: archive.extractall(folder, filter='data')
    with tarfile.open(root/'market1501.tar') as archive:
        archive.extractall(folder, filter='data', members=[m for m in archive if '/query/' in m.name])
    table = loadmat(next(folder.rglob('market_attribute.mat')), simplify_cells=True)['market_attribute']['test']
    people = pd.DataFrame({k: np.asarray(v) for k, v in table.items()}).set_index('image_index')
    people.index = people.index.astype(int)
    files = sorted(next(folder.rglob('query')).glob('*.jpg'))
    rows = people.loc[[int(p.name[:4]) for p in files]]
    shows = {a: {w: (rows[c] == value).to_numpy() for w, (c, value) in words.items()} for a, words in MARKET.items()}
    return files, shows | {a: pairs(shows, *a.split(' and ')) for a in PAIRS if {*a.split(' and ')} <= {*MARKET}}


def features_of(extract, files):
    "The part of picture features that lies where sentences lie, of unit length."
    width = extract.model.widths.projected
    return unit(extract(files, progress=True)[:, -width:].numpy())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='pedestrians', help='RUN, a saved model, or pedestrians')
    p.add_argument('--identities', type=int, default=200, help='in each rendered domain')
    p.add_argument('--no-market', action='store_true')
    p.add_argument('--csv', type=Path)
    a = p.parse_args()
    extract, rows = FeatureExtractor(load_model(a.model)), []
    asked = Asked(extract)
    with tempfile.TemporaryDirectory() as home:
        for seed in DOMAINS:
            files, shows = rendered(seed, Path(home)/str(seed), a.identities)
            print(f'domain {seed}', flush=True)
            rows.append(scores(features_of(extract, files), shows, asked).assign(pictures='rendered', domain=seed))
        root = Path(os.environ.get('CLIP_DFGS_REALDATA', Path(__file__).resolve().parents[2]/'shared'/'realdata'))
        found = None if a.no_market else market(root, Path(home)/'market')
        if found is None and not a.no_market: print(f'no Market-1501 in {root}; set CLIP_DFGS_REALDATA')
        if found:
            own = scores(features_of(extract, found[0]), found[1], asked)
            rows.append(own.assign(pictures='Market-1501', domain=0))
    every = pd.concat(rows)
    by_word = every.drop(columns='domain').groupby(['pictures', 'attribute', 'word'], sort=False).mean()
    table = by_word.groupby(['pictures', 'attribute'], sort=False).mean()
    table.insert(0, 'words', by_word.groupby(['pictures', 'attribute'], sort=False).size())
    means = table.groupby(level=0, sort=False).mean()
    means.index = pd.MultiIndex.from_product([means.index, ['mean']], names=table.index.names)
    table = pd.concat([table.astype(float), means]).sort_index(level=0, sort_remaining=False, ascending=False)
    print(table.round(2).to_string())
    if a.csv: table.round(3).to_csv(a.csv)


if __name__ == '__main__': main()
