"""The exact graph of hard negatives beside faiss's flat index and one matrix product, in one process.

    python benchmarks/graph.py                     # 751, 5,000, 10,000 and 20,000 identities, a minute
    python benchmarks/graph.py --sizes 751 --width 512

Features are made up: groups of twenty look-alikes. The product alone is what nobody can go below who looks at every
pair; faiss takes single precision as it comes, `nearest_identities` gives the neighbors of double precision.
"""
import argparse

import torch
from beside import beside, installed
from clip_dfgs.sampling.graph import nearest_identities


def main(sizes, width, k, threads):
    faiss = installed('faiss')
    torch.set_num_threads(threads)
    if faiss: faiss.omp_set_num_threads(threads)
    for n in sizes:
        draw = torch.Generator().manual_seed(0)
        centers = 1.5*torch.randn(n//20 + 1, width, generator=draw)
        x = centers.repeat_interleave(20, 0)[:n] + torch.randn(n, width, generator=draw)

        def flat(x=x):
            index = faiss.IndexFlatL2(width)
            index.add(x.numpy())
            return torch.from_numpy(index.search(x.numpy(), k + 1)[1][:, 1:])

        ways = {'nearest_identities': lambda x=x: nearest_identities(x, k, method='exact'),
                'product': lambda x=x: x @ x.T}
        if faiss: ways['faiss IndexFlatL2'] = flat
        found = beside(f'graph, {n:,} x {width}', ways, 9 if n < 8000 else 3)
        if faiss:
            same = (found['nearest_identities'] == found['faiss IndexFlatL2']).float().mean()
            print(f'the same neighbors: {same:.4%}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', type=int, nargs='+', default=[751, 5000, 10_000, 20_000])
    parser.add_argument('--width', type=int, default=128)
    parser.add_argument('--k', type=int, default=10)
    parser.add_argument('--threads', type=int, default=1)
    main(**vars(parser.parse_args()))
