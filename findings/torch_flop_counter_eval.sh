#!/usr/bin/env bash
# torch 2.14.1, on a CPU: the counter of torch.utils.flop_counter gives two numbers for one attention layer on one input.
# With gradients an attention layer of ViT-B/16 (128 patches of a 256x128 image and the class token) has 304 million
# multiplications, those of its four projections; in eval() under no_grad(), as one counts before publishing, it has
# none. nn.MultiheadAttention takes another, fused way there, for which the counter has no rule. A whole image tower of
# CLIP loses a third (11.0 to 7.4 billion). Linear layers are counted alike both ways.
# Seen: "attention, with gradients 304.3 million, under no_grad 0.0 million" and "linear, with gradients 304.3 million,
# under no_grad 304.3 million".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode

tokens = torch.zeros(1, 129, 768)
attention = torch.nn.MultiheadAttention(768, 12, batch_first=True).eval()
linear = torch.nn.Linear(768, 3072).eval()

def millions(of):
    with FlopCounterMode(display=False) as counter: of()
    return counter.get_total_flops()/2e6                  # a multiplication and an addition are two operations

for name, of in (('attention', lambda: attention(tokens, tokens, tokens, need_weights=False)),
                 ('linear', lambda: linear(tokens))):
    graded = millions(of)
    with torch.no_grad(): plain = millions(of)
    print(f'{name}, with gradients {graded:.1f} million, under no_grad {plain:.1f} million')
    if name == 'attention': assert plain == 0 and round(graded, 1) == 304.3
    else: assert plain == graded
PYTHON
