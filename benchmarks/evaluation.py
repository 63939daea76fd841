"""Time and memory of `evaluate` and re-ranking against the usual way, each case in a process of its own.

    python benchmarks/evaluation.py              # about two minutes
    python benchmarks/evaluation.py --dense      # also dense re-ranking at Market-1501 size (minutes, 9 GB)
    python benchmarks/evaluation.py --device cuda  # on a GPU: the same way there, and its memory (a minute)

The usual way is the distance matrix, a full argsort and a Python loop over queries. With a stable
argsort it gives the same answer as `evaluate`, ties included, and is the one to compare with; the
default argsort is faster where the processor has AVX-512, and leaves the order of ties to chance.
Extra memory is the peak above what the process held once the features were made; total is the
whole process. Times are the best of several runs.

On a GPU the usual way is the matrix and a stable argsort there, all in single precision, and its loop over
queries is replaced by sums over blocks of rows, so that nobody waits for Python. Times are synchronized; memory
is the peak of what torch allocated, features included.
"""
import argparse
import json
import subprocess
import sys
import time

MARKET, MSMT17, WIDTH = (3368, 15913, 750), (11659, 82161, 3060), 1280
TARGET_SPEED, TARGET_EXTRA, TARGET_TOTAL, TARGET_SECONDS = 4, .5, 2, 60


def features(Q, G, identities, seed=0):
    "Made-up features around one center an identity, noisy enough for a middling mAP, with ids and cameras"
    import numpy as np
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((identities, WIDTH), dtype=np.float32)
    out = []
    for n in (Q, G):
        ids = rng.integers(0, identities, n)
        x = rng.standard_normal((n, WIDTH), dtype=np.float32)
        x *= 3
        for start in range(0, n, 1024): x[start:start + 1024] += centers[ids[start:start + 1024]]
        out.append((x, ids, rng.integers(0, 6, n)))
    (q, qi, qc), (g, gi, gc) = out
    return q, g, qi, gi, qc, gc


def usual(q, g, qi, gi, qc, gc, kind='stable'):
    "Distance matrix, full argsort, Python loop"
    import numpy as np, torch
    q, g = (torch.nn.functional.normalize(torch.from_numpy(x), dim=1) for x in (q, g))
    order = np.argsort((1 - q @ g.T).numpy(), axis=1, kind=kind)
    right = gi[order] == qi[:, None]
    scores = []
    for i in range(len(qi)):
        hits = right[i][~(right[i] & (gc[order[i]] == qc[i]))]
        if not hits.any(): continue
        hits = hits.astype(np.int32)
        scores.append((hits.cumsum() / np.arange(1, len(hits) + 1) * hits).sum() / hits.sum())
    return float(np.mean(scores))


def usual_unstable(*data): return usual(*data, kind=None)


def ours(*data):
    from clip_dfgs.evaluation.metrics import evaluate
    return evaluate(*data).mAP


def reranked(q, g, *_):
    from clip_dfgs.evaluation.reranking import k_reciprocal_distances
    return float(k_reciprocal_distances(q, g).double().mean())


def reranked_dense(q, g, *_, k1=20, k2=6, share=.3):
    "The definition with N x N matrices, a full argsort and Python sets"
    import numpy as np, torch
    x, Q = torch.nn.functional.normalize(torch.from_numpy(np.concatenate([q, g])), dim=1), len(q)
    d = (x @ x.T).mul_(-2).add_(2).clamp_min_(0).numpy()
    d /= d.max(1, keepdims=True)
    rank = np.argsort(d, axis=1).astype(np.int32)
    def mutual(i, k):
        ahead = rank[i, :k + 1]
        return ahead[(rank[ahead, :k + 1] == i).any(1)]
    V = np.zeros_like(d)
    for i in range(len(x)):
        own = members = mutual(i, k1)
        for j in own:
            wide = mutual(j, round(k1 / 2))
            if len(np.intersect1d(wide, own)) > 2 / 3 * len(wide): members = np.append(members, wide)
        members = np.unique(members)
        V[i, members] = np.exp(-d[i, members])
        V[i] /= V[i].sum()
    V = np.stack([V[rank[i, :k2]].mean(0) for i in range(len(x))])
    pointing = [np.flatnonzero(column) for column in V.T]
    out = np.empty((Q, len(g)), np.float32)
    for i in range(Q):
        shared = np.zeros(len(x), np.float32)
        for j in np.flatnonzero(V[i]): shared[pointing[j]] += np.minimum(V[i, j], V[pointing[j], j])
        out[i] = ((1 - share) * (1 - shared / (2 - shared)) + share * d[i])[Q:]
    return float(out.mean(dtype=np.float64))


def resident(name):
    "A line of /proc/self/status in GB: VmRSS (now) or VmHWM (peak)"
    with open('/proc/self/status') as f: return next(int(line.split()[1]) for line in f if line.startswith(name)) / 1e6


def child(case, Q, G, identities, repeats):
    "Runs one case and prints its figures as JSON"
    data, best = features(Q, G, identities), float('inf')
    import clip_dfgs.evaluation.metrics  # noqa: F401  imports are not part of the extra memory
    import clip_dfgs.evaluation.reranking  # noqa: F401
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')  # forget the peak of making the features
    before = resident('VmRSS')
    for _ in range(repeats):
        start = time.perf_counter()
        value = globals()[case](*data)
        best = min(best, time.perf_counter() - start)
    print(json.dumps(dict(seconds=best, extra=resident('VmHWM') - before, total=resident('VmHWM'), value=value)))


def run(case, Q, G, identities, repeats=1):
    "The figures of one case, from a process of its own"
    command = [sys.executable, __file__, '--child', case, *map(str, (Q, G, identities, repeats))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'{case} at {Q} x {G} failed: {done.stderr.strip().splitlines()[-1:]}')
    return json.loads(done.stdout)


def show(name, size, r, note=''):
    "One line of the table"
    figures = f"{r['seconds']:>7.2f} s {r['extra']:>6.2f} GB {r['total']:>6.2f} GB  {r['value']:.6f}"
    print(f'{name:<34} {size[0]:>7,} x {size[1]:>6,}  {figures}  {note}', flush=True)


def compare_ranking():
    "Both ways at three sizes; the last figures, and times by size for the growth"
    grown = []
    for part in (4, 2, 1):
        size = tuple(n//part for n in MARKET)
        slow, loose = run('usual', *size, repeats=2), run('usual_unstable', *size, repeats=2)
        fast = run('ours', *size, repeats=3)
        ratios = [other['seconds']/fast['seconds'] for other in (slow, loose)]
        grown.append((size[0]*size[1], slow['seconds'], fast['seconds']))
        show('matrix + stable argsort + loop', size, slow)
        show('matrix + default argsort + loop', size, loose)
        note = f"{ratios[0]:.1f}x and {ratios[1]:.1f}x faster, mAP differs by {abs(slow['value'] - fast['value']):.1e}"
        show('evaluate', size, fast, note)
    return fast, ratios[0], grown


def compare_reranking(dense):
    "Sparse against dense re-ranking, at Market-1501 size only if asked for"
    for part in (8, 4) + (1,)*dense:
        size = tuple(n//part for n in MARKET)
        slow, sparse = run('reranked_dense', *size), run('reranked', *size)
        show('re-ranking, dense', size, slow)
        ratio, gap = slow['seconds']/sparse['seconds'], abs(slow['value'] - sparse['value'])
        show('k_reciprocal_distances', size, sparse, f'{ratio:.1f}x faster, mean differs by {gap:.1e}')
    if not dense: show('k_reciprocal_distances', MARKET, run('reranked', *MARKET))


def usual_there(q, g, qi, gi, qc, gc):
    "Distance matrix and a stable argsort on a device, and average precision there, 512 queries at a time"
    import torch
    q, g = (torch.nn.functional.normalize(x, dim=1) for x in (q, g))
    order, found = (1 - q @ g.T).argsort(dim=1, stable=True), []
    for rows, i, c in zip(order.split(512), qi[:, None].split(512), qc[:, None].split(512)):
        right = gi[rows] == i
        junk = right & (gc[rows] == c)
        hits = right & ~junk
        precision = hits.cumsum(1)/(~junk).cumsum(1).clamp_min(1)
        found.append((precision*hits).sum(1)/hits.sum(1))
    return torch.cat(found).double().nanmean().item()


def measured(case, device, repeats):
    "Seconds, peak memory in GB and result of one case on a device"
    import torch
    gpu, best = device.type == 'cuda', float('inf')
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        if gpu: torch.cuda.synchronize(device)
        start = time.perf_counter()
        value = case()
        if gpu: torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best, torch.cuda.max_memory_allocated(device)/1e9 if gpu else float('nan'), value


def cases_there(size, device):
    "Name and function of each way to rank features of one size on a device"
    import torch
    data = [torch.from_numpy(x).to(device) for x in features(*size)]
    labels = [x.cpu().numpy() for x in data[2:]]
    few = [x[:9] if side == 0 else x for x, side in zip((*data[:2], *labels), (0, 1)*3)]
    ours(*few)                                                                 # the device's kernels are loaded
    return {'evaluate': lambda: ours(*data[:2], *labels),
            'evaluate, re-ranked': lambda: reranked_ranks(*data[:2], *labels),
            'matrix + stable argsort': lambda: usual_there(*data)}


def on_device(name, part):
    "Ours and the usual way on one device, at two sizes, and re-ranking"
    import torch
    device = torch.device(name)
    card = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{torch.get_num_threads()} threads'
    print(f'{device}: {card}, torch {torch.__version__}, {WIDTH}-d float32')
    print(f"{'case':<34} {'queries x gallery':>16}  {'time':>9} {'memory':>9}  mAP")
    for whole in (MARKET, MSMT17):
        size, found = tuple(n//part for n in whole), {}
        for what, case in cases_there(size, device).items():
            place = f'{what:<34} {size[0]:>7,} x {size[1]:>6,}'
            try: found[what] = measured(case, device, 1 if 're-ranked' in what else 2)
            except torch.OutOfMemoryError: print(f'{place}  does not fit', flush=True)
            else: print('{}  {:>7.2f} s {:>6.2f} GB  {:.6f}'.format(place, *found[what]), flush=True)
        if len(found) < 3: continue
        (fast, _, a), _, (slow, _, b) = found.values()
        print(f'evaluate is {slow/fast:.1f}x faster than matrix and argsort, mAP differs by {abs(a - b):.1e}')
    for what in ('evaluate', 'evaluate, re-ranked') if part == 1 and device.type == 'cuda' else ():
        seconds, memory, _ = found.get(what, (float('inf'),)*3)
        good = seconds < TARGET_SECONDS and not memory > TARGET_TOTAL
        print('met   ' if good else 'MISSED', f'{what} at MSMT17 size under {TARGET_TOTAL} GB and {TARGET_SECONDS} s: '
              f'{memory:.2f} GB, {seconds:.1f} s')


def reranked_ranks(*data):
    from clip_dfgs.evaluation.metrics import evaluate
    return evaluate(*data, rerank=True).mAP


def main(dense):
    "The table, how time grows, and whether the targets are met"
    import numpy as np
    import torch
    print(f'{torch.get_num_threads()} threads, {WIDTH}-d float32')
    print(f"{'case':<34} {'queries x gallery':>16}  {'time':>9} {'extra':>9} {'total':>9}  mAP (or mean distance)")
    fast, ratio, grown = compare_ranking()
    big = run('ours', *MSMT17)
    show('evaluate', MSMT17, big, f'the matrix and its argsort alone: {MSMT17[0]*MSMT17[1]*12/1e9:.1f} GB')
    compare_reranking(dense)
    whole, usual_time, our_time = np.log(grown).T
    exponents = [np.polyfit(whole, times, 1)[0] for times in (usual_time, our_time)]
    print('growth with queries x gallery: the usual way ^{:.2f}, evaluate ^{:.2f}'.format(*exponents))
    for what, good in (
            (f'Market-1501 size at least {TARGET_SPEED}x faster: {ratio:.1f}x', ratio >= TARGET_SPEED),
            (f"Market-1501 size under {TARGET_EXTRA} GB extra: {fast['extra']:.2f} GB", fast['extra'] < TARGET_EXTRA),
            (f"MSMT17 size under {TARGET_TOTAL} GB in all: {big['total']:.2f} GB", big['total'] < TARGET_TOTAL)):
        print('met   ' if good else 'MISSED', what)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dense', action='store_true', help='also dense re-ranking at Market-1501 size')
    parser.add_argument('--device', help='evaluate there, for example cuda')
    parser.add_argument('--part', type=int, default=1, help='with --device: sizes divided by this')
    parser.add_argument('--child', nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: child(args.child[0], *map(int, args.child[1:]))
    elif args.device: on_device(args.device, args.part)
    else: main(args.dense)
