#!/usr/bin/env bash
# torch 2.14.1: making a module on the meta device, which is meant to save the time of filling weights, can cost more
# than it saves. `nn.Linear` skips its initialization there and imports next to nothing; the first `nn.Embedding` (or
# any `normal_` of a meta tensor) runs a Python reference of the operator, and that imports sympy and mpmath: some 890
# modules. For a CLIP of 10 million parameters this takes ten times as long as filling them on the CPU would.
# Modules that are imported by making each, and whether sympy is among them.
# Seen: "Linear: 1 modules, sympy: False", "Embedding: 891 modules, sympy: True".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
import torch

def imported(make):
    before = set(sys.modules)
    with torch.device('meta'): make()
    new = set(sys.modules) - before
    return len(new), 'sympy' in new

for kind, few in ((torch.nn.Linear, True), (torch.nn.Embedding, False)):
    count, algebra = imported(lambda: kind(4, 4))
    print(f'{kind.__name__}: {count} modules, sympy: {algebra}')
    assert (count < 50 and not algebra) if few else (count > 300 and algebra)
PYTHON
