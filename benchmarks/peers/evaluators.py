"""The same small rankings scored by ten evaluators of re-identification and retrieval, as one table.

All features are points in the plane, all queries lie at (0, 0) in camera 0, distances are Euclidean. An evaluator that
wants a similarity gets minus the distance, or 10 minus the distance. Every cell is a mean average precision.

    python benchmarks/peers/evaluators.py [--out results/peers/evaluators.md]

Prints a markdown table; exits 1 and names the cell where a value is not the expected one. Evaluators that are not
installed are named and not checked. `benchmarks/peers/README.md` tells how to install them.
"""
import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Example:
    "One or more queries at the origin, all in camera 0, and a gallery."
    queries:tuple   # their identities
    points:tuple    # of the gallery, in the plane
    ids:tuple       # of the gallery
    cameras:tuple   # of the gallery
    top:int = None  # depth of a MAP@k, None for the whole ranking

    @property
    def distances(self)->np.ndarray: # shape [queries, gallery]
        return np.tile(np.hypot(*np.array(self.points, float).T), (len(self.queries), 1))

    @property
    def hits(self)->np.ndarray:      # shape [queries, gallery]
        return np.array(self.queries)[:, None] == np.array(self.ids)


LINE, IDS = tuple((x, 0) for x in range(1, 7)), (1, 2, 2, 1, 1, 2)
EXAMPLES = {
    'E1':         Example((1,), LINE, IDS, (1,)*6),
    'E1, MAP@2':  Example((1,), LINE, IDS, (1,)*6, top=2),
    'E2 ties':    Example((1,), ((1, 0), (0, 1), (-1, 0), (0, -1)), (2, 2, 1, 2), (1,)*4),
    'E3 stranger': Example((1, 9), LINE, IDS, (1,)*6),
    'E4 camera':  Example((1,), LINE, IDS, (0, 1, 0, 1, 1, 1)),
    'only strangers': Example((9,), LINE, IDS, (1,)*6),
}


def module_of(package:str, path:str): # one file of an installed package, without running the package's __init__
    "fastreid 1.4.0 needs an older Python for its __init__, eereid 0.1.1 imports TensorFlow in its own."
    found = importlib.util.find_spec(package)
    if found is None: raise ImportError(package)
    spec = importlib.util.spec_from_file_location(f'{package}_{Path(path).stem}', Path(found.origin).parent/path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(e:Example):
    from clip_dfgs.evaluation import evaluate
    if e.top: return None
    Q = len(e.queries)
    return evaluate(np.zeros((Q, 2)), np.array(e.points, float), np.array(e.queries), np.array(e.ids),
                    np.zeros(Q, int), np.array(e.cameras), metric='euclidean').mAP


def arrays(e:Example):
    "What the evaluators that descend from Open-ReID take."
    return (e.distances, np.array(e.queries), np.array(e.ids), np.zeros(len(e.queries), int), np.array(e.cameras))


def torchreid(e:Example):
    from torchreid.reid.metrics.rank import evaluate_rank
    return None if e.top else evaluate_rank(*arrays(e), max_rank=4, use_cython=False)[1]


def fastreid(e:Example):
    rank = module_of('fastreid', 'evaluation/rank.py')
    return None if e.top else np.mean(rank.evaluate_rank(*arrays(e), max_rank=4, use_cython=False)[1])


def eereid(e:Example):
    tools = module_of('eereid', 'tools.py')
    euclid = types.SimpleNamespace(multi_distance=lambda many, one: np.linalg.norm(many - one, axis=-1))
    queries, gallery = np.zeros((len(e.queries), 2)), np.array(e.points, float)
    return None if e.top else tools.rankN(queries, np.array(e.queries), gallery, np.array(e.ids), euclid)('mAP')


def metric_learning(e:Example):
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    calculator = AccuracyCalculator(include=('mean_average_precision',), k=e.top)
    found = calculator.get_accuracy(torch.zeros(len(e.queries), 2), torch.tensor(e.queries),
                                    torch.tensor(e.points, dtype=torch.float32), torch.tensor(e.ids))
    return found['mean_average_precision']


def torchmetrics(e:Example, offset:float=10):
    import torch
    from torchmetrics.retrieval import RetrievalMAP
    query = np.arange(len(e.queries)).repeat(len(e.ids))
    scores, hits = torch.tensor(offset - e.distances.ravel()), torch.tensor(e.hits.ravel())
    return RetrievalMAP(top_k=e.top)(scores, hits, indexes=torch.tensor(query)).item()


def torchmetrics_minus(e:Example): return torchmetrics(e, 0)


def open_metric_learning(e:Example):
    import torch
    from oml.functional.metrics import calc_retrieval_metrics
    ranked = torch.tensor(e.distances.argsort(1, kind='stable'))
    return oml_mean(calc_retrieval_metrics, e, list(ranked), [torch.tensor(row).nonzero().ravel() for row in e.hits])


def oml_mean(metrics, e:Example, ranked, truth):
    k = e.top or len(e.ids)
    found = metrics(ranked, truth, map_top_k=(k,), cmc_top_k=(), precision_top_k=(), verbose=False)
    return float(found['map'][k])


def oml_neighbors(e:Example, sequence:bool=False):
    import torch
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics
    Q, extra = len(e.queries), {}
    if sequence:
        extra = dict(sequence_ids_query=torch.zeros(Q, dtype=torch.long), sequence_ids_gallery=torch.tensor(e.cameras))
    _, ranked, truth = batched_knn_qg(
        torch.zeros(Q, 2), torch.tensor(e.points, dtype=torch.float32), top_n=len(e.ids),
        labels_query=torch.tensor(e.queries), labels_gallery=torch.tensor(e.ids), **extra)
    return oml_mean(calc_retrieval_metrics, e, ranked, truth)


def oml_sequence(e:Example): return oml_neighbors(e, sequence=True)


def judged(e:Example):
    "Judgments (matches only) and runs as dicts of names, as the tools of TREC take them."
    names = [f'g{i}' for i in range(len(e.ids))]
    matches = {f'q{q}': {n: 1 for n, hit in zip(names, row) if hit} for q, row in enumerate(e.hits)}
    return matches, {f'q{q}': dict(zip(names, (10 - row).tolist())) for q, row in enumerate(e.distances)}


def pytrec_eval(e:Example):
    import pytrec_eval
    matches, run = judged(e)
    name = f'map_cut.{e.top}' if e.top else 'map'
    found = pytrec_eval.RelevanceEvaluator(matches, {name}).evaluate(run)
    values = [query[name.replace('.', '_')] for query in found.values()]
    return np.mean(values) if values else 'empty'


def ranx(e:Example):
    import ranx
    matches, run = judged(e)
    matches = {query: rows or {'nobody': 1} for query, rows in matches.items()} # it refuses a query without judgments
    return ranx.evaluate(ranx.Qrels(matches), ranx.Run(run), f'map@{e.top}' if e.top else 'map')


def scikit_learn(e:Example):
    from sklearn.metrics import average_precision_score
    return None if e.top else np.mean([average_precision_score(*row) for row in zip(e.hits, -e.distances)])


def scikit_learn_labels(e:Example):
    from sklearn.metrics import label_ranking_average_precision_score
    return None if e.top else label_ranking_average_precision_score(e.hits, -e.distances)


ROWS = {  # name in the table: (function, distribution, one expected cell for each example)
    'ours': (ours, None, '0.700 - 0.333 0.700 0.417 error'),
    'torchreid': (torchreid, 'torchreid', '0.700 - 0.333 0.700 0.417 error'),
    'fastreid': (fastreid, 'fastreid', '0.700 - 0.333 0.700 0.417 error'),
    'eereid': (eereid, 'eereid', '0.700 - 0.333 0.700 0.700 NaN'),
    'pytorch-metric-learning': (metric_learning, 'pytorch-metric-learning', '0.700 0.333 0.333 0.700 0.700 NaN'),
    'torchmetrics, 10 - distance': (torchmetrics, 'torchmetrics', '0.700 1.000 1.000 0.350 0.700 0.000'),
    'torchmetrics, -distance': (torchmetrics_minus, 'torchmetrics', '0.000 0.000 0.000 0.000 0.000 0.000'),
    'OML, ranked lists': (open_metric_learning, 'open-metric-learning', '0.700 1.000 0.333 0.350 0.700 0.000'),
    'OML, embeddings': (oml_neighbors, 'open-metric-learning', '0.700 1.000 1.000 0.350 0.700 0.000'),
    'OML, sequence = camera': (oml_sequence, 'open-metric-learning', '0.700 1.000 1.000 0.350 0.583 0.000'),
    'pytrec_eval': (pytrec_eval, 'pytrec_eval-terrier', '0.700 0.333 0.500 0.700 0.700 empty'),
    'ranx': (ranx, 'ranx', '0.700 0.333 0.333 0.350 0.700 0.000'),
    'scikit-learn, mean of AP': (scikit_learn, 'scikit-learn', '0.700 - 0.250 0.350 0.700 0.000'),
    'scikit-learn, label ranking AP': (scikit_learn_labels, 'scikit-learn', '0.700 - 0.250 0.850 0.700 1.000'),
}
BY_PROCESSOR = {'torchreid', 'fastreid', 'eereid', 'pytorch-metric-learning', 'torchmetrics, 10 - distance',
                'OML, embeddings', 'OML, sequence = camera'} # their sorts do not promise an order among equals


def cell(function, e:Example)->str:
    "One value as text; what an evaluator refuses is 'error'."
    try: value = function(e)
    except (ValueError, AssertionError): return 'error'
    if value is None: return '-'
    if isinstance(value, str): return value
    return 'NaN' if np.isnan(value) else f'{value:.3f}'


def label(name, distribution)->str: # 'torchmetrics 1.9.0, -distance'
    head, *rest = name.split(', ')
    version = f' {importlib.metadata.version(distribution)}' if distribution else ''
    return ', '.join([head + version, *rest])


def row(function)->list: # of cells, or None where the evaluator is not installed
    try: return [cell(function, e) for e in EXAMPLES.values()]
    except ImportError: return None


def measure()->tuple: # lines of the table, cells that differ, remarks
    "All rows, each checked against its expected cells."
    lines = [f'| evaluator | {" | ".join(EXAMPLES)} |', '|---'*(1 + len(EXAMPLES)) + '|']
    wrong, remarks = [], []
    for name, (function, distribution, expected) in ROWS.items():
        cells = row(function)
        if cells is None:
            lines.append(f'| {name} | not installed' + ' |'*len(EXAMPLES))
            continue
        lines.append(f'| {label(name, distribution)} | {" | ".join(cells)} |')
        for example, got, want in zip(EXAMPLES, cells, expected.split()):
            if got == want: continue
            by_processor = example == 'E2 ties' and name in BY_PROCESSOR
            (remarks if by_processor else wrong).append(f'{name}, {example}: {got}, expected {want}')
    return lines, wrong, remarks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', help='also write the table to this file')
    out = parser.parse_args().out
    warnings.simplefilter('ignore')
    logging.disable()
    with contextlib.redirect_stderr(io.StringIO()): lines, wrong, remarks = measure() # progress bars
    print('\n'.join(lines))
    if out: Path(out).write_text('\n'.join(lines) + '\n')
    for remark in remarks: print(f'ties in another order on this processor: {remark}')
    for difference in wrong: print(f'not as expected: {difference}', file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == '__main__': main()
