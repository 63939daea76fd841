"""Every number with an interval in README and in the paper notebooks, computed again from the stored tables.

    python benchmarks/claims.py              # says what differs (then it ends with 1) and writes CLAIMS.md
    python benchmarks/claims.py --facts      # the facts behind the text: looks, corrections, noise

Nothing of `clip_dfgs` is used here: csv, numpy and scipy alone. A line "where: A − B: mean points (low to high, n
seeds)" is computed from its own words. A number in running text is looked up among all differences that the tables
hold; one that is not found among them is an error as well.
"""
import argparse
import csv
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parent.parent
DATA = next(place for place in (ROOT/'results', ROOT/'nbs'/'paper') if (place/'wide').exists()) # the stored tables
PLANTED, RIVALS, LENGTH, ONE = (ROOT/'results'/study/'rows.csv' for study in
                                ('planted', 'rivals', 'run_length', 'one_domain'))
MAPS, SCHEDULE = ROOT/'results'/'photographs'/'study.csv', ROOT/'results'/'schedule'/'rows.csv'
DOCUMENTS = [ROOT/'README.md', *sorted((ROOT/'nbs'/'paper').glob('*.ipynb'))]
FOUR, CAMPUS = ('viper', 'prid', 'grid', 'ilids'), ('col780',)
PLACES = {'the four targets': ('confirm', FOUR), 'COL780': ('confirm', CAMPUS),
          'two sources, the four targets': ('two', FOUR), 'two sources, COL780': ('two', CAMPUS),
          'CUHK03 to Market-1501': ('to_market', ('market',)), 'Market-1501 to CUHK03': ('to_cuhk03', ('cuhk03',)),
          'CLIP, the four targets': ('eyes', FOUR), 'CLIP, COL780': ('eyes', CAMPUS)}
SHORT = {'DFGS image complete': 'DFGS', 'DFGS, random adaptive': 'adaptive', 'k=10 m=0': 'DFGS',
         'DFGS text complete': 'DFGS text', 'DFGS image released': 'DFGS released order', 'DFGS, half random': 'DFGS'}
RENDERED = 'python benchmarks/study_rendered.py '
MADE = {'short': (RENDERED + 'samplers orders tables --scale short', '0.5 to 1.5 h, two cores'),
        'long': (RENDERED + 'samplers --scale long', '0.5 to 1.5 h, two cores'),
        'wide': (RENDERED + 'samplers orders --scale wide', '0.5 to 1.5 h, two cores'),
        'fresh': (RENDERED + 'confirm --scale wide', '0.5 to 1.5 h, two cores'),
        'tower': ('python benchmarks/study_photographs.py', '7 minutes, one H200'),
        'head': ('python benchmarks/study_photographs_head.py', '4 to 6 s a run, two cores'),
        'matrix': ('CLIP_DFGS_FULL=1 jupyter execute nbs/paper/tables.ipynb', '7 minutes, one thread'),
        'planted': ('python benchmarks/study_planted.py', 'two to three hours, two cores'),
        'rivals': ('python benchmarks/study_planted.py --study B', 'an hour, two cores'),
        'half': ('python benchmarks/study_planted.py --study L', '70 minutes, one core'),
        'one': ('python benchmarks/study_planted.py --study E', 'an hour, two cores'),
        'schedule': ('python benchmarks/study_schedule.py', '70 minutes, two cores'),
        'maps': ('python benchmarks/study_photographs_maps.py', 'three hours, two cores')}


def rows_of(file):
    "A table as a list of dictionaries; empty where the file is not there."
    return list(csv.DictReader(open(file, encoding='utf-8'))) if file.exists() else []


def named(variant):
    "A variant by its present name: `fair` and `published` are now `complete` and `released`."
    variant = variant.replace(' fair', ' complete').replace('published', 'released')
    return SHORT.get(variant, variant)


def means(rows, value, keep, by=('seed', 'variant')):
    "{variant: {seed: mean}} of the rows that are kept."
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if keep(row): found[named(row[by[1]])][int(row[by[0]])].append(float(row[value]))
    return {name: {seed: np.mean(values) for seed, values in seeds.items()} for name, seeds in found.items()}


def at_end(file, part, scale=100., domain='domain', world='seed', more=lambda row: True):
    "mAP in points at the last step, and of the starts, mean over unseen domains (t) or of held-out identities (h)."
    rows = [row for row in rows_of(file) if more(row)]
    last = max((int(row['step']) for row in rows), default=0)
    for row in rows: row['points'] = scale*float(row['mAP'])
    ended = {(row[world], row['variant']) for row in rows if int(row['step']) == last}
    def keep(row):
        if row[domain][0] != part: return False
        return row['variant'] == 'start' or int(row['step']) == last and (row[world], row['variant']) in ended
    return means(rows, 'points', keep, (world, 'variant'))


def tables():
    "{name: (scores by variant and seed, file, study)} of all that is stored."
    found = {}
    def add(name, scores, file, study):
        if scores: found[name] = scores, str(file.relative_to(ROOT)), study
    for scale, file in (('short', 'short/study_samplers'), ('long', 'long/study_samplers'),
                        ('wide', 'wide/study_samplers'), ('fresh', 'wide/study_confirm'),
                        ('parts', 'short/study_ablation'), ('grid', 'short/study_parameters')):
        file, study = DATA/f'{file}.csv', scale if scale in MADE else 'short'
        add(scale, at_end(file, 't'), file, study)
        add(f'{scale}, held-out', at_end(file, 'h'), file, study)
    fresh = found['fresh'][0]
    for name, seeds in (('planned', range(220, 226)), ('added', range(226, 232))):
        part = {variant: {s: value for s, value in of.items() if s in seeds} for variant, of in fresh.items()}
        add(f'fresh, {name}', part, DATA/'wide'/'study_confirm.csv', 'fresh')
    both = {name: found['wide'][0][name] | fresh[name] for name in ('PK', 'DFGS', 'start')}
    add('wide and fresh', both, DATA/'wide'/'study_confirm.csv', 'fresh')
    history = [row for row in rows_of(DATA/'short'/'study_history.csv') if row['study'] == 'samplers']
    late = max(int(row['step']) for row in history)/2
    for row in history: row['points'] = 100*float(row.get('violated_triplets') or row['violated'])
    hard = means(history, 'points', lambda row: int(row['step']) > late)
    add('violated anchors', {name: {s: v for s, v in of.items() if s < 3} for name, of in hard.items()},
        DATA/'short'/'study_history.csv', 'short')
    for study in ('tower', 'head'):
        file = DATA/study/'photographs.csv'
        for place, (phase, targets) in PLACES.items():
            keep = lambda row, phase=phase, targets=targets: row['phase'] == phase and row['target'] in targets
            add(f'{study}, {place}', means(rows_of(file), 'mAP', keep), file, study)
    for n, groups in (('1', 'no planted groups'), ('4', 'planted groups')):
        for part, name in (('t', ''), ('h', ', held-out')):
            scores = at_end(PLANTED, part, 100., 'target', 'world', lambda row, n=n: row['look_alikes'] == n)
            add(groups + name, scores, PLANTED, 'planted')
    for place, file, n, study in (('rivals', RIVALS, '1', 'rivals'), ('half the steps', LENGTH, '1', 'half'),
                                  ('half the steps, planted groups', LENGTH, '4', 'half'),
                                  ('one domain', ONE, '1', 'one'), ('one domain, planted groups', ONE, '4', 'one')):
        ended = [row | dict(points=100*float(row['mAP'])) for row in rows_of(file)
                 if row['last'] == 'True' and row['look_alikes'] == n]
        for part, name in (('t', ''), ('h', ', held-out')):
            scores = means(ended, 'points', lambda row, part=part: row['target'][0] == part, ('world', 'variant'))
            add(place + name, scores, file, study)
    add('schedule', at_end(SCHEDULE, 't', 100., 'target', 'world'), SCHEDULE, 'schedule')
    for place, targets in (('the four targets', FOUR), ('COL780', CAMPUS)):
        scores = means(rows_of(MAPS), 'mAP', lambda row, targets=targets: row['target'] in targets)
        add(f'maps, {place}', scores, MAPS, 'maps')
    return found


def gains(scores, name, to):
    "Paired differences, in the order of the seeds."
    names = named(name), named(to)
    seeds = sorted(set(scores[names[0]]) & set(scores[names[1]]))
    return np.array([scores[names[0]][seed] - scores[names[1]][seed] for seed in seeds])


def interval(gain, level=.95):
    "Mean and the ends of the t interval."
    half = stats.t.ppf((1 + level)/2, len(gain) - 1)*gain.std(ddof=1)/np.sqrt(len(gain))
    return gain.mean(), gain.mean() - half, gain.mean() + half


def printed(gain, level=.95): return tuple(f'{value:+.2f}' for value in interval(gain, level))


NUMBER = r'([+-]\d+\.\d\d)'
INTERVAL = re.compile(NUMBER + r'(?: points)?(?: \(|, corrected interval )' + NUMBER + ' to ' + NUMBER +
                      r'(?:, (\d+) (?:seeds|worlds)|, two looks)?')
LINE = re.compile(r'^- (.+?)(?:: |, )([A-Zk][^:]*?) − ([^:]+?): $')
ALIASES = {'with all parts': 'parts', 'without a part': 'parts', 'six seeds': 'short', 'GS': 'short', 'DFGS': 'short',
           'photographs, the tower learns': 'tower, the four targets',
           'photographs, a head learns': 'head, the four targets'}


def meant(text, start, header):
    "(table, variant, variant) that the words before a number mean, by its line or its column; or None."
    line, place = LINE.match(text[:start]), text.split('|')[1].strip() if text.startswith('|') else ''
    column = header[text[:start].count('|')].split(' - ') if place else ('', '')
    place, name, to = line.groups() if line else (place, *column)
    place = ALIASES.get(place, place).removeprefix('rendered, ')
    return 'short' if place == 'unseen' else place, name, to


def texts(document):
    "Lines of a document; of a notebook those of its outputs and of its prose."
    if document.suffix == '.md': return document.read_text(encoding='utf-8').splitlines()
    lines = []
    for cell in json.loads(document.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'markdown': lines += ''.join(cell['source']).splitlines()
        for output in cell.get('outputs', []):
            lines += ''.join(output.get('data', {}).get('text/markdown', [])).splitlines()
            lines += ''.join(output.get('text', [])).splitlines()
    return lines


def everything(found):
    "{(mean, low, high): what} of all differences at the last step, with the usual and the special intervals."
    known = {}
    for place, (scores, file, study) in found.items():
        for name in scores:
            for to in scores:
                gain = gains(scores, name, to) if name != to else []
                if len(gain) > 1: known.setdefault(printed(gain), []).append((place, name, to, file, study, len(gain)))
    scores, file, study = found['fresh']
    for name in ('DFGS', 'adaptive'):
        gain = gains(scores, name, 'PK')
        known[printed(gain, 1 - .0294)] = [('fresh, two looks', name, 'PK', file, study, len(gain))]
        known[printed(gain, 1 - .05/13)] = [('fresh, corrected over 13', name, 'PK', file, study, len(gain))]
    scores, file, study = found['wide']
    for name in scores:
        gain = gains(scores, name, 'PK') if name != 'PK' else []
        if len(gain) > 1: known[printed(gain, 1 - .05/13)] = [('wide, corrected over 13', name, 'PK', file, study, 6)]
    for place in ('short', 'long', 'wide', 'fresh'): known |= on_the_way(found, place)
    return known


def on_the_way(found, place):
    "DFGS - PK at each ranked step of a scale, and from the first to the last."
    file = ROOT/found[place][1]
    rows, known, steps = rows_of(file), {}, {}
    for row in rows: row['points'] = 100*float(row['mAP'])
    for step in sorted({int(row['step']) for row in rows} - {0}):
        keep = lambda row, step=step: row['domain'][0] == 't' and int(row['step']) == step
        steps[step] = gains(means(rows, 'points', keep), 'DFGS', 'PK')
        known[printed(steps[step])] = [(f'{place}, step {step}', 'DFGS', 'PK', *found[place][1:], len(steps[step]))]
    first, *_, last = steps.values()
    known[printed(last - first)] = [(f'{place}, change over the run', 'DFGS', 'PK', *found[place][1:], len(last))]
    return known


def check(found, documents=DOCUMENTS):
    "All claims of the documents: (claim, number, file, command, time), and what is wrong."
    known, claims, wrong = everything(found), [], []
    for document in documents:
        header = []
        for text in texts(document):
            if text.startswith('|') and ' - ' in text and not INTERVAL.search(text):
                header = [part.strip() for part in text.split('|')]
            for match in INTERVAL.finditer(text):
                number, n = match.groups()[:3], match.group(4)
                hits, (where, name, to) = known.get(number, []), meant(text, match.start(), header)
                if where in found and 'corrected' not in match.group():
                    gain = gains(found[where][0], name, to)
                    hits = [(where, name, to, *found[where][1:], len(gain))] if printed(gain) == number else []
                hits = [hit for hit in hits if not n or int(n) == hit[-1]]
                if not hits:
                    wrong.append(f'{document.name}: {match.group()} is not what the tables hold: {text[:120]}')
                    continue
                place, name, to, file, study, n = hits[0]
                claims.append((f'{place}: {name} - {to}', f'{number[0]} ({number[1]} to {number[2]}), n = {n}',
                               document.name, file, *MADE[study]))
    for name, words, claim, file, study in plain(found):
        document = next((document for document in documents if document.stem == name), None)
        if document is None: continue
        if not any(words in text for text in texts(document)): wrong.append(f'{document.name}: says nowhere "{words}"')
        else:
            words, file = words.strip('| ').replace('|', 'to'), str((DATA/file).relative_to(ROOT))
            claims.append((claim, words, document.name, file, *MADE[study]))
    return claims, wrong


def plain(found):
    "Sentences and rows with numbers that have no sign or no interval: (document, words, claim, file, study)."
    rows = [row for row in rows_of(DATA/'matrix.csv') if row[''] == 'mAP' and row['source'] != 'zero-shot']
    square = np.array([[float(row[other['source']]) for other in rows] for row in rows])
    own, other = np.diag(square).mean(), square[~np.eye(len(rows), dtype=bool)].mean()
    words = f'trained on the same domain {own:.1f}; on another {other:.1f}; domain gap {own - other:.1f}'
    yield 'tables', words, 'own, other domain, gap', 'matrix.csv', 'matrix'
    theirs = np.mean([float(row['mAP']) for row in rows_of(DATA/'photographs_osnet.csv') if row['target'] in FOUR])
    for study in ('tower', 'head'):
        scores = {name: np.mean([*of.values()]) for name, of in found[f'{study}, the four targets'][0].items()}
        best = max(scores.keys() - {'start'}, key=scores.get)
        words = f'{best}, has {scores[best]:.1f} mAP; OSNet has {theirs:.1f}, {theirs - scores[best]:.1f} points more'
        yield 'real_images', words, f'{study}: best variant and OSNet', f'{study}/photographs.csv', study
    for name in ('GS', 'DFGS'):
        ends = printed(gains(found['short'][0], name, 'PK'))[1:]
        yield 'README', f'| {ends[0]} | {ends[1]} |', f'demo: {name} - PK, short', 'short/study_samplers.csv', 'short'


    steps, leads = leads_of(SCHEDULE)
    drawn = np.random.default_rng(0).integers(0, len(leads[0]), (10_000, len(leads[0])))
    low, high = np.quantile([crossing(leads[1][d].mean(0), steps) - crossing(leads[0][d].mean(0), steps)
                             for d in drawn], (.025, .975))
    cosine, constant = (crossing(lead.mean(0), steps) for lead in leads)
    words = f'{constant:.0f} with a constant rate, {cosine:.0f} with the cosine; difference {constant - cosine:+.0f} ' \
            f'steps ({low:+.0f} to {high:+.0f}), {len(drawn[0])} worlds'
    yield 'samplers_compared', words, 'step at which DFGS passes PK', 'schedule/rows.csv', 'schedule'


def leads_of(file):
    "Steps, and DFGS - PK at each (a row a world) with the cosine and with a constant rate, of worlds that have both."
    rows = [row for row in rows_of(file) if row['target'][0] == 't' and int(row['step'])]
    steps, found = sorted({int(row['step']) for row in rows}), []
    for row in rows: row['points'] = 100*float(row['mAP'])
    def at_step(step): return means(rows, 'points', lambda row: int(row['step']) == step, ('world', 'variant'))
    at = [at_step(step) for step in steps]
    four = ('DFGS', 'PK', 'DFGS constant', 'PK constant')
    worlds = sorted(set.intersection(*(set(at[-1][name]) for name in four)))
    for walk, to in (four[:2], four[2:]):
        found.append(np.array([[scores[walk][world] - scores[to][world] for scores in at] for world in worlds]))
    return steps, found


def crossing(lead, steps):
    "Step at which a lead passes zero for good, on a straight line between two ranks; the last where it never does."
    behind = [i for i, value in enumerate(lead) if value <= 0]
    if not behind or behind[-1] == len(lead) - 1: return float(steps[-1]) if behind else 0.
    return float(np.interp(0, lead[behind[-1]:behind[-1] + 2], steps[behind[-1]:behind[-1] + 2]))


def two_looks(level, draws=400_000):
    "Type-I error of: test six worlds; where nothing is shown add six, and test the twelve as if they were planned."
    x = np.random.default_rng(0).standard_normal((draws, 12))
    six, twelve = (np.abs(stats.ttest_1samp(part, 0, axis=1).pvalue) < level for part in (x[:, :6], x))
    return float((six | twelve).mean())


def facts(found):
    "What the text says beside the tables."
    fresh, tower = found['fresh'][0], found['tower, the four targets'][0]
    for level in (.05, .0294):
        yield f'six worlds, and six more where nothing is shown, {level} each: type-I error {two_looks(level):.3f}'
    for place, name, to in [(f'fresh{p}', name, 'PK') for p in ('', ', planned', ', added') for name in
                            ('DFGS', 'adaptive')] + [('wide', 'DFGS text fair', 'DFGS'), ('wide', 'PK soft', 'PK'),
                            ('wide', 'DFGS', 'DFGS image published'), ('wide', 'DFGS soft', 'PK soft'),
                            ('head, the four targets', 'DFGS', 'PK'), ('head, the four targets', 'DFGS', 'PK as DFGS')]:
        gain = gains(found[place][0], name, to)
        mean, low, high = printed(gain)
        yield f'{place}: {name} - {to}: {mean} ({low} to {high}, {len(gain)} seeds), p = ' \
              f'{stats.ttest_1samp(gain, 0).pvalue:.4f}, sd {gain.std(ddof=1):.2f}'
    for name in ('DFGS', 'adaptive'):
        gain = gains(fresh, name, 'PK')
        p = stats.ttest_1samp(gain, 0).pvalue
        yield f'fresh, two looks: {name} - PK: %s (%s to %s), p = {two_looks(p):.3f}' % printed(gain, 1 - .0294)
        yield f'fresh, corrected over 13: {name} - PK: %s (%s to %s)' % printed(gain, 1 - .05/13)
    noise = gains(tower, 'PK as DFGS', 'PK')
    yield f'tower: PK as DFGS - PK, the same settings twice: sd {noise.std(ddof=1):.2f}, of one run ' \
          f'{noise.std(ddof=1)/np.sqrt(2):.2f}'


def main(given=None):
    "Check, and write CLAIMS.md; 1 where a number differs."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--facts', action='store_true', help='print the facts behind the text')
    p.add_argument('documents', nargs='*', type=Path, help='check these alone, and write nothing')
    a = p.parse_args(given)
    found = tables()
    if a.facts: return print('\n'.join(facts(found)))
    claims, wrong = check(found, a.documents or DOCUMENTS)
    lines = ['# Claims', '', 'Every number with an interval in README and the paper notebooks, computed again from the '
             'stored tables by `benchmarks/claims.py`, which fails where one differs. Points of mAP, paired within a '
             'seed or world, 95 % t intervals unless the claim says otherwise.', '',
             '| claim | number | said in | from | command | time |', '|---|---|---|---|---|---|']
    lines += ['| ' + ' | '.join(f'`{part}`' if i in (3, 4) else part for i, part in enumerate(claim)) + ' |'
              for claim in dict.fromkeys(claims)]
    if not a.documents: (ROOT/'CLAIMS.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    print('\n'.join(wrong + [f'{len(claims)} numbers agree, {len(wrong)} differ']))
    return 1 if wrong else 0


if __name__ == '__main__': sys.exit(main())
