#!/usr/bin/env bash
# torchinfo 1.8.0 with torch 2.14.1: "mult-adds" of a linear layer don't know the tokens. The layer that widens 129
# tokens of ViT-B/16 (768 to 3,072) is said to have 2.36 million, as many as for one token; it has 304. A convolution is
# counted at each of its places. So a ViT seems 80 times cheaper than it is, beside a CNN that is counted right.
# Seen: "linear: 2.36 million for 1 token, 2.36 million for 129 tokens" and "the same as a 1x1 convolution: 304.75".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 torchinfo==1.8.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from torch import nn
from torchinfo import summary

def millions(layer, shape): return summary(layer, input_size=shape, verbose=0).total_mult_adds/1e6

one, all_tokens = (millions(nn.Linear(768, 3072), (1, n, 768)) for n in (1, 129))
convolution = millions(nn.Conv1d(768, 3072, 1), (1, 768, 129))     # the same numbers from the same weights
print(f'linear: {one:.2f} million for 1 token, {all_tokens:.2f} million for 129 tokens')
print(f'the same as a 1x1 convolution: {convolution:.2f}')
assert one == all_tokens and 2.3 < one < 2.4 and convolution > 128*one
PYTHON
