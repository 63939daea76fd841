"""One gallery of three vectors in eleven vector stores: what the score of a neighbor means, as one table.

The query is (2, 0), the gallery (3, 4), (0, 2) and the zero vector, stored under the numbers 10, 11 and 12. The first
three columns name the measure that the score of (3, 4) is; the fourth has the score of the zero vector by cosine
(and its place among the three where the score is not a number); the last what five neighbors of three come to.

    python benchmarks/peers/stores.py [--out results/peers/stores.md]

Prints a markdown table; exits 1 and names the cell where a value is not the expected one. Stores that are not
installed are named and not checked. `benchmarks/peers/README.md` tells how to install them.
"""
import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

import numpy as np

QUERY = [2.0, 0.0]
GALLERY = {10: [3.0, 4.0], 11: [0.0, 2.0], 12: [0.0, 0.0]}
MEASURES = {'squared': 17, 'root': 17**.5, 'cos': 0.6, '1-cos': 0.4, 'root of 2-2cos': 0.8**.5,
            'dot': 6, '1-dot': -5, '-dot': -6}

# Every store is a function (metric: 'euclid', 'cosine' or 'dot', gallery, k) -> [(number, score), ...], best first;
# None where the store has no such metric.


def faiss(metric, gallery, k):
    import faiss
    kinds = {'euclid': faiss.METRIC_L2, 'dot': faiss.METRIC_INNER_PRODUCT}
    if metric not in kinds: return None
    index = faiss.IndexIDMap(faiss.IndexFlat(2, kinds[metric]))
    index.add_with_ids(matrix(gallery), np.array(list(gallery)))
    scores, numbers = index.search(matrix({0: QUERY}), k)
    return pairs(numbers[0], scores[0])


def usearch(metric, gallery, k, queries=None):
    from usearch.index import Index
    index = Index(ndim=2, metric={'euclid': 'l2sq', 'cosine': 'cos', 'dot': 'ip'}[metric], dtype='f32')
    index.add(np.array(list(gallery)), matrix(gallery))
    found = index.search(np.array(QUERY, 'f4') if queries is None else queries, k)
    return pairs(np.atleast_2d(found.keys)[0], np.atleast_2d(found.distances)[0])


def usearch_batch(metric, gallery, k): return usearch(metric, gallery, k, np.array([QUERY, QUERY], 'f4'))


def hnswlib(metric, gallery, k):
    import hnswlib
    index = hnswlib.Index({'euclid': 'l2', 'cosine': 'cosine', 'dot': 'ip'}[metric], 2)
    index.init_index(len(gallery), random_seed=0)
    index.add_items(matrix(gallery), list(gallery))
    numbers, scores = index.knn_query(matrix({0: QUERY}), k)
    return pairs(numbers[0], scores[0])


def voyager(metric, gallery, k):
    import voyager
    space = {'euclid': 'Euclidean', 'cosine': 'Cosine', 'dot': 'InnerProduct'}[metric]
    index = voyager.Index(getattr(voyager.Space, space), 2)
    index.add_items(matrix(gallery), list(gallery))
    return pairs(*index.query(np.array(QUERY, 'f4'), k))


def annoy(metric, gallery, k):
    from annoy import AnnoyIndex
    index = AnnoyIndex(2, {'euclid': 'euclidean', 'cosine': 'angular', 'dot': 'dot'}[metric])
    for number, vector in enumerate(gallery.values()): index.add_item(number, vector)
    index.build(10)
    rows, scores = index.get_nns_by_vector(QUERY, k, include_distances=True)
    return pairs(np.array(list(gallery))[rows], scores)


def lancedb(metric, gallery, k):
    import lancedb
    rows = [dict(number=number, vector=vector) for number, vector in gallery.items()]
    with tempfile.TemporaryDirectory() as folder:
        table = lancedb.connect(folder).create_table('gallery', rows)
        search = table.search(QUERY).distance_type({'euclid': 'l2'}.get(metric, metric)).limit(k)
        return [(row['number'], row['_distance']) for row in search.to_list()]


def qdrant(metric, gallery, k):
    from qdrant_client import QdrantClient, models
    client, distance = QdrantClient(':memory:'), models.Distance[metric.upper()]
    client.create_collection('gallery', vectors_config=models.VectorParams(size=2, distance=distance))
    client.upsert('gallery', [models.PointStruct(id=number, vector=vector) for number, vector in gallery.items()])
    return [(point.id, point.score) for point in client.query_points('gallery', query=QUERY, limit=k).points]


def milvus(metric, gallery, k):
    import milvus_lite # noqa: F401  the engine behind a client of a file
    from pymilvus import MilvusClient
    kind = {'euclid': 'L2', 'cosine': 'COSINE', 'dot': 'IP'}[metric]
    with tempfile.TemporaryDirectory() as folder:
        client = MilvusClient(f'{folder}/gallery.db')
        client.create_collection('gallery', dimension=2, metric_type=kind)
        client.insert('gallery', [dict(id=number, vector=vector) for number, vector in gallery.items()])
        found = client.search('gallery', data=[QUERY], limit=k)[0]
        client.close()
    return [(hit['id'], hit['distance']) for hit in found]


def chroma(metric, gallery, k):
    import chromadb
    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    space = {'euclid': 'l2', 'cosine': 'cosine', 'dot': 'ip'}[metric]
    collection = client.create_collection('gallery', configuration={'hnsw': {'space': space}})
    collection.add(ids=[str(number) for number in gallery], embeddings=list(gallery.values()))
    found = collection.query(query_embeddings=[QUERY], n_results=k)
    client.delete_collection('gallery')
    return pairs(map(int, found['ids'][0]), found['distances'][0])


def duckdb(metric, gallery, k, order='asc'):
    import duckdb
    names = {'asc': {'euclid': 'distance', 'cosine': 'cosine_distance', 'dot': 'negative_inner_product'},
             'desc': {'cosine': 'cosine_similarity', 'dot': 'inner_product'}}[order]
    if metric not in names: return None
    database = duckdb.connect()
    database.execute('create table gallery(number int, vector float[2])')
    database.executemany('insert into gallery values (?, ?)', list(gallery.items()))
    return database.execute(f'select number, array_{names[metric]}(vector, ?::float[2]) as score from gallery '
                            f'order by score {order} limit {k}', [QUERY]).fetchall()


def duckdb_similarity(metric, gallery, k): return duckdb(metric, gallery, k, 'desc')


def sqlite_vec(metric, gallery, k):
    import apsw
    import sqlite_vec
    if metric == 'dot': return None
    database = apsw.Connection(':memory:')
    database.enable_load_extension(True)
    database.load_extension(sqlite_vec.loadable_path())
    kind = {'euclid': 'l2', 'cosine': 'cosine'}[metric]
    database.execute(f'create virtual table gallery using vec0(vector float[2] distance_metric={kind})')
    packed = [sqlite_vec.serialize_float32(vector) for vector in gallery.values()]
    database.executemany('insert into gallery(rowid, vector) values (?, ?)', list(enumerate(packed)))
    rows = database.execute('select rowid, distance from gallery where vector match ? and k = ?',
                            (sqlite_vec.serialize_float32(QUERY), k))
    return [(list(gallery)[row], score) for row, score in rows]


def matrix(gallery)->np.ndarray: return np.array(list(gallery.values()), 'f4')


def pairs(numbers, scores)->list: return list(zip(map(int, numbers), map(float, scores)))


COLUMNS = ('Euclid', 'cosine', 'inner product', 'zero vector by cosine', 'five neighbors of three')
ROWS = {  # name in the table: (function, distribution, expected cells)
    'faiss': (faiss, 'faiss-cpu', ('squared', '-', 'dot', '-', 'number -1, score 3.4e+38')),
    'usearch, one query': (usearch, 'usearch', ('squared', '1-cos', '1-dot', '1', 'fewer')),
    'usearch, a batch': (usearch_batch, 'usearch', ('squared', '1-cos', '1-dot', '1', 'number 0, score nan')),
    'hnswlib': (hnswlib, 'hnswlib', ('squared', '1-cos', '1-dot', '1', 'RuntimeError')),
    'voyager': (voyager, 'voyager', ('squared', '1-cos', '1-dot', '1', 'RecallError')),
    'annoy': (annoy, 'annoy', ('root', 'root of 2-2cos', 'dot', '1.414', 'fewer')),
    'lancedb': (lancedb, 'lancedb', ('squared', '1-cos', '1-dot', 'row missing', 'fewer')),
    'qdrant, local': (qdrant, 'qdrant-client', ('root', 'cos', 'dot', '0', 'fewer')),
    'milvus-lite': (milvus, 'milvus-lite', ('squared', 'cos', 'dot', '0', 'fewer')),
    'chromadb': (chroma, 'chromadb', ('squared', '1-cos', '1-dot', '1', 'fewer')),
    'duckdb, ascending': (duckdb, 'duckdb', ('root', '1-cos', '-dot', 'nan, last; stored first: last', 'fewer')),
    'duckdb, descending': (duckdb_similarity, 'duckdb', ('-', 'cos', 'dot', 'nan, first; stored first: first', '-')),
    'sqlite-vec': (sqlite_vec, 'sqlite-vec', ('root', '1-cos', '-', 'None, last; stored first: first', 'fewer')),
}


def measure_of(found)->str: # name
    "The measure that the score of (3, 4) is."
    if found is None: return '-'
    score = dict(found)[10]
    return next((name for name, value in MEASURES.items() if abs(value - score) < 1e-4), f'{score:.3f}')


def zero_of(store)->str: # its score, or where it comes
    "What the zero vector gets by cosine, stored last and stored first."
    last = store('cosine', GALLERY, 3)
    if last is None: return '-'
    if 12 not in dict(last): return 'row missing'
    score = dict(last)[12]
    if score is not None and score == score: return f'{score + 0.0:.4g}'
    first = store('cosine', dict(reversed(GALLERY.items())), 3)
    return f'{score}, {place(last)}; stored first: {place(first)}'


def place(found)->str: return ('first', 'second', 'last')[[number for number, _ in found].index(12)]


def surplus_of(store)->str: # 'fewer', the filling, or the error's name
    "What comes of asking for more neighbors than there are."
    try: found = store('euclid', GALLERY, 5)
    except Exception as error: return type(error).__name__ # every store has a class of its own
    if found is None: return '-'
    if len(found) == 3: return 'fewer'
    return f'number {found[-1][0]}, score {found[-1][1]:.2g}'


def row(store)->list: # of cells, or None where the store is not installed
    try: measures = [measure_of(store(metric, GALLERY, 3)) for metric in ('euclid', 'cosine', 'dot')]
    except ImportError: return None
    return [*measures, zero_of(store), surplus_of(store)]


def label(name, distribution)->str: # 'duckdb 2.0.1, ascending'
    head, *rest = name.split(', ')
    return ', '.join([f'{head} {importlib.metadata.version(distribution)}', *rest])


def measure()->tuple: # lines of the table, cells that differ
    "All rows, each checked against its expected cells."
    lines, wrong = [f'| store | {" | ".join(COLUMNS)} |', '|---'*(1 + len(COLUMNS)) + '|'], []
    for name, (store, distribution, expected) in ROWS.items():
        cells = row(store)
        if cells is None:
            lines.append(f'| {name} | not installed' + ' |'*len(COLUMNS))
            continue
        lines.append(f'| {label(name, distribution)} | {" | ".join(cells)} |')
        wrong += [f'{name}, {column}: {got}, expected {want}'
                  for column, got, want in zip(COLUMNS, cells, expected) if got != want]
    return lines, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', help='also write the table to this file')
    out = parser.parse_args().out
    lines, wrong = measure()
    print('\n'.join(lines))
    if out: Path(out).write_text('\n'.join(lines) + '\n')
    for difference in wrong: print(f'not as expected: {difference}', file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == '__main__': main()
