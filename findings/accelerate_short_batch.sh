#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.13.0, two processes: a batch sampler of fixed batches, one of which is short and not
# the last (an identity with few images), loses that batch and the full batch before it. No process gets them. It
# happens only if the sampler has an attribute `batch_size`, which says nothing about how the batches are divided;
# without the attribute every batch arrives. Batches of rows 0-3, 4-5, 6-9 and 10-13.
# Seen: "with batch_size: process 0 [[6, 7, 8, 9]], process 1 [[10, 11, 12, 13]]"; "without: process 0 [[0, 1, 2, 3],
# [6, 7, 8, 9]], process 1 [[4, 5], [10, 11, 12, 13]]". even_batches=False, named in the documentation for batches of
# several sizes, changes nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

class Identities:
    batches = [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12, 13]]
    def __iter__(self): return iter(self.batches)
    def __len__(self): return len(self.batches)

class IdentitiesWithSize(Identities):
    batch_size = 4

def arriving(sampler, even):
    loader = DataLoader(torch.arange(14), batch_sampler=sampler)
    return [[batch.tolist() for batch in prepare_data_loader(
        loader, num_processes=2, process_index=process, put_on_device=False, even_batches=even)] for process in (0, 1)]

for even in (True, False):
    whole, lost = arriving(Identities(), even), arriving(IdentitiesWithSize(), even)
    print(f'even_batches={even}, without batch_size: process 0 {whole[0]}, process 1 {whole[1]}')
    print(f'even_batches={even}, with batch_size:    process 0 {lost[0]}, process 1 {lost[1]}')
    assert whole == [[[0, 1, 2, 3], [6, 7, 8, 9]], [[4, 5], [10, 11, 12, 13]]]
    assert lost == [[[6, 7, 8, 9]], [[10, 11, 12, 13]]]
PYTHON
