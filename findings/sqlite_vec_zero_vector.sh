#!/usr/bin/env bash
# sqlite-vec 0.1.9: the distance by cosine to a zero vector, such as the feature of an empty crop, is no number, and
# whether the row is among the k nearest depends on when it was stored. Stored first it is the nearest neighbor of every
# query, and with k = 1 the only answer; stored second it pushes out a real answer; stored last it is not found. Where
# it is found, `order by distance` puts it first. One match, one other image and one zero vector, stored in three orders;
# the nearest one and the nearest two.
# Seen: "first: blank / blank, match", "second: match / blank, match", "last: match / match, other".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check sqlite-vec==0.1.9 apsw==3.54.1.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import apsw
import sqlite_vec

seen = []
for place, when in enumerate(('first', 'second', 'last')):
    rows = [('match', [1, .1]), ('other', [0, 1])]
    rows.insert(place, ('blank', [0, 0]))
    base = apsw.Connection(':memory:')
    base.enable_load_extension(True)
    base.load_extension(sqlite_vec.loadable_path())
    base.execute('create virtual table images using vec0(feature float[2] distance_metric=cosine)')
    for number, (_, feature) in enumerate(rows):
        base.execute('insert into images(rowid, feature) values (?, ?)', (number, sqlite_vec.serialize_float32(feature)))
    query, found = sqlite_vec.serialize_float32([1, 0]), []
    for k in (1, 2):
        answer = base.execute('select rowid from images where feature match ? and k = ? order by distance', (query, k))
        found.append(', '.join(rows[number][0] for number, in answer))
    seen.append(f'{when}: {" / ".join(found)}')
    print(seen[-1])
assert seen == ['first: blank / blank, match', 'second: match / blank, match', 'last: match / match, other'], seen
PYTHON
