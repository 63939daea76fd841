"""Exact search of a gallery beside one matrix product and faiss's half-precision index, in one process.

    python benchmarks/search.py                    # 100,000 features of 256 numbers, half a minute

Features are made up: groups of twenty, as identities are.
"""
import argparse

import numpy as np
import torch
from beside import beside, installed
from clip_dfgs.gallery.search import nearest_rows


def main(n, width, k, threads):
    faiss, draw = installed('faiss'), np.random.default_rng(0)
    torch.set_num_threads(threads)
    if faiss: faiss.omp_set_num_threads(threads)
    table = draw.standard_normal((n, width), dtype=np.float32)
    table += np.repeat(draw.standard_normal((-(-n//20), width), dtype=np.float32), 20, 0)[:n]
    half, whole = table.astype(np.float16), torch.from_numpy(table)
    if faiss:
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index.train(table[:100])
        index.add(table/np.linalg.norm(table, axis=1, keepdims=True))
    for many in (1, 64):
        q = table[:many] + .5*draw.standard_normal((many, width), dtype=np.float32)
        ways = {'nearest_rows': lambda q=q: nearest_rows(q, table, k)[0],
                'nearest_rows, float16': lambda q=q: nearest_rows(q, half, k)[0],
                'product': lambda q=q: torch.from_numpy(q) @ whole.T,
                'product and topk': lambda q=q: (torch.from_numpy(q) @ whole.T).topk(k)}
        if faiss: ways['faiss float16'] = lambda q=q: index.search(q, k)
        beside(f'{many} of {n:,} x {width}', ways, 9 if many == 1 else 3)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n', type=int, default=100_000, help='features in the gallery')
    parser.add_argument('--width', type=int, default=256)
    parser.add_argument('--k', type=int, default=10)
    parser.add_argument('--threads', type=int, default=1)
    main(**vars(parser.parse_args()))
