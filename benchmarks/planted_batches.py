"""What the batches of study A hold: domains and planted groups, in the first epoch of every run that is there.

    python benchmarks/planted_batches.py --work FOLDER                          # that of study_planted.py

Written to results/planted/batches.csv: the share of pairs of identities in a batch that are of one domain, and the
share of identities with another one of the same caption in their batch. The adaptive share begins with random batches,
so its first epoch is one of PK.
"""
import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

OUT = Path(__file__).parent.parent/'results'/'planted'/'batches.csv'


def captions(world):
    "{(domain, identity): caption} of a world's sources."
    tables = {folder.name: pd.read_csv(folder/'captions.csv') for folder in world.glob('s*')}
    return {(domain, row.pid): row.caption for domain, table in tables.items() for row in table.itertuples()}


def shares(run, said):
    "Share of pairs of one domain, and of identities with a namesake in caption, in a run's first epoch."
    records, epoch = pd.read_csv(run/'records.csv'), pd.read_csv(run/'epoch.csv')
    same, twin = [], []
    for _, part in epoch.groupby('batch'):
        who = sorted(set(records.iloc[part['row']][['domain', 'pid']].itertuples(index=False, name=None)))
        same += [a[0] == b[0] for a, b in itertools.combinations(who, 2)]
        words = [said[one] for one in who]
        twin += [words.count(word) > 1 for word in words]
    return np.mean(same), np.mean(twin)


def main(given=None):
    "Write the table."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, required=True)
    work, lines = p.parse_args(given).work, []
    for run in sorted(work.glob('look_alikes-*/seed-*/*/epoch.csv')):
        run, look_alikes, world = run.parent, run.parts[-4].split('-')[1], run.parts[-3].split('-')[1]
        said = captions(next(f for f in (work/'worlds').glob(f'{world}-*') if f.is_dir()))
        same, twin = shares(run, said)
        lines.append(dict(world=world, look_alikes=look_alikes, variant=run.name, same_domain=same, same_caption=twin))
    table = pd.DataFrame(lines)
    table.round(4).to_csv(OUT, index=False)
    print(table.groupby(['look_alikes', 'variant'])[['same_domain', 'same_caption']].mean().round(3).to_string())


if __name__ == '__main__': main()
