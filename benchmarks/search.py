"""Search of a large gallery: queries a second, memory and recall, beside a plain matrix product.

    python benchmarks/search.py                  # a million features of 512 numbers, under three minutes
    python benchmarks/search.py --n 100000       # smaller
    python benchmarks/search.py --csv search.csv # the table as a file too

Features are made up: groups around random centers, as identities are, in half precision and in a file that is mapped
into memory, as in a gallery on the disk. Each way answers in a process of its own. What is compared:

- plain: the whole table in single precision in memory, one matrix product, `topk`;
- exact: `nearest_rows`, block by block from the file, ties in order, scores in double precision;
- faiss: an inverted file of faiss over the same table in memory (with the time it takes to make), its recall printed.

Memory is the peak of a process above what it held before the table was opened; of a mapped file only those pages
count that are the process's own. Ratios are within one run.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = ('plain', 'exact', 'faiss')


def make(folder, n, width, queries, seed=0):
    "Write a table of features in groups of about twenty, and queries from the same groups."
    draw = np.random.default_rng(seed)
    groups = max(1, n//20)
    centers = draw.standard_normal((groups, width), dtype=np.float32)
    rows = np.lib.format.open_memmap(folder/'table.npy', 'w+', 'float16', (n, width))

    def some(count):
        x = draw.standard_normal((count, width), dtype=np.float32)
        x += centers[draw.integers(0, groups, count)]
        return x/np.linalg.norm(x, axis=1, keepdims=True)

    for start in range(0, n, 50_000): rows[start:start + 50_000] = some(min(50_000, n - start))
    rows.flush()
    np.save(folder/'queries.npy', some(queries))


def own_memory():
    "Memory of this process in GB that is not a mapped file's."
    with open('/proc/self/status') as lines:
        sizes = {line.split(':')[0]: int(line.split()[1])/1e6 for line in lines if line.startswith('Rss')}
    return sizes['RssAnon']


class Watch:
    "The largest memory of this process, looked at by a thread."
    def __enter__(self):
        import threading
        self.peak, self.on = own_memory(), True
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while self.on:
            self.peak = max(self.peak, own_memory())
            time.sleep(.01)

    def __exit__(self, *error):
        self.on = False
        self.thread.join()


def timed(ask, queries):
    "Seconds of one query alone (median of several), and queries a second of all together."
    alone = []
    for i in range(min(7, len(queries))):
        begin = time.perf_counter()
        ask(queries[i:i + 1])
        alone.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    found = ask(queries)
    return float(np.median(alone)), len(queries)/(time.perf_counter() - begin), found


def way(name, folder, k, threads):
    "Answer in this process; prints JSON."
    import torch
    from clip_dfgs.gallery.index import nearest_rows
    torch.set_num_threads(threads)
    queries, before, more = np.load(folder/'queries.npy'), own_memory(), {}
    table = np.load(folder/'table.npy', mmap_mode='c')
    with Watch() as watch:
        if name == 'plain':
            whole = torch.empty(table.shape)
            for part in torch.arange(len(table)).split(50_000): whole[part] = torch.from_numpy(table[part]).float()
            def ask(q): return (torch.from_numpy(q) @ whole.T).topk(k).indices.numpy()
        elif name == 'exact':
            def ask(q): return nearest_rows(q, table, k)[0]
        else:
            import faiss
            faiss.omp_set_num_threads(threads)
            begin = time.perf_counter()
            cells = max(1, min(4096, int(2*len(table)**.5), len(table)//39))
            index = faiss.index_factory(table.shape[1], f'IVF{cells},SQ8', faiss.METRIC_INNER_PRODUCT)
            index.train(table[:40*cells].astype(np.float32)) # the rows are drawn at random
            for start in range(0, len(table), 50_000): index.add(table[start:start + 50_000].astype(np.float32))
            index.nprobe = max(1, cells//32)
            more = {'cells': cells, 'visited': index.nprobe, 'minutes to make': (time.perf_counter() - begin)/60}
            def ask(q): return index.search(q, k)[1]
        seconds, rate, found = timed(ask, queries)
    np.save(folder/f'{name}.npy', found)
    said = {'seconds of one query': seconds, 'queries a second': rate, 'memory GB': watch.peak - before}
    print(json.dumps(said | more))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=1_000_000, help='features in the gallery')
    p.add_argument('--width', type=int, default=512, help='numbers in a feature')
    p.add_argument('--queries', type=int, default=256, help='asked together; the plain way keeps all their scores')
    p.add_argument('--k', type=int, default=10, help='answers to each')
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--ways', nargs='+', choices=WAYS, default=WAYS)
    p.add_argument('--csv', type=Path)
    p.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        way(a.child[0], Path(a.child[1]), a.k, a.threads)
        return
    import pandas as pd
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        begin = time.perf_counter()
        make(folder, a.n, a.width, a.queries)
        size = (folder/'table.npy').stat().st_size/1e9
        print(f'{a.n:,} features of {a.width}, {size:.2f} GB, made in {time.perf_counter() - begin:.0f} s', flush=True)
        rows = {}
        for name in a.ways:
            words = ['--child', name, str(folder), '--k', str(a.k), '--threads', str(a.threads)]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
            if done.returncode: raise SystemExit(f'{name} failed: {done.stderr.strip().splitlines()[-1:]}')
            rows[name] = json.loads(done.stdout)
            print(name, {k: round(v, 4) for k, v in rows[name].items()}, flush=True)
        found = {name: np.load(folder/f'{name}.npy').tolist() for name in a.ways}
        for name in a.ways if 'exact' in a.ways else ():
            rows[name]['recall'] = np.mean([len({*f} & {*t})/a.k for f, t in zip(found[name], found['exact'])])
    table = pd.DataFrame(rows).T
    table.insert(1, 'times plain', table['queries a second']/table['queries a second'].iloc[0])
    table.insert(0, 'features', a.n)
    print(table.round(3).to_string())
    if a.csv: table.round(4).to_csv(a.csv, index_label='way')


if __name__ == '__main__': main()
