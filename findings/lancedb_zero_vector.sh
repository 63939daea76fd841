#!/usr/bin/env bash
# lancedb 0.40.0: a row whose vector is all zeros is never among the results of a search by cosine, however many are
# asked for, and no filter brings it back; the table still counts it. By Euclidean distance or dot product it is
# found.
# Seen: "rows 3; l2 finds [2, 1, 0], dot finds [0, 1, 2], cosine finds [0, 1]", "cosine, only number 2: []".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check lancedb==0.40.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import lancedb

vectors = [[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]
table = lancedb.connect('gallery').create_table('images', [dict(number=i, vector=v) for i, v in enumerate(vectors)])

def found(metric, only=None):
    search = table.search([2.0, 0.0]).distance_type(metric).limit(10)
    if only is not None: search = search.where(f'number = {only}')
    return [row['number'] for row in search.to_list()]

metrics = ', '.join(f'{metric} finds {found(metric)}' for metric in ('l2', 'dot', 'cosine'))
print(f'rows {table.count_rows()}; {metrics}')
print(f'cosine, only number 2: {found("cosine", 2)}')
assert table.count_rows() == 3 and sorted(found('l2')) == sorted(found('dot')) == [0, 1, 2]
assert found('cosine') == [0, 1] and found('cosine', 2) == []
PYTHON
