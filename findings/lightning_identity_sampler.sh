#!/usr/bin/env bash
# lightning 2.6.6 with torch 2.14.1 and pytorch-metric-learning 2.9.0: in more than one process the trainer shuffles what
# a sampler of indices gives, before it divides it (the documentation of the wrapper says that its shuffling has no
# effect). An identity sampler, two images each of four identities a batch, lays them side by side for nothing: batches
# are random ones, two thirds of the images have no positive in theirs, and nothing is said. In one process all have.
# Seen: "process 0: 0 of 1024 images alone of their identity" with one process; "process 0: 336 of 512 ..." and
# "process 1: 319 of 512 ..." with two. Random batches of 8 out of 16 identities would have 64 %.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 lightning==2.6.6 \
    pytorch-metric-learning==2.9.0
cd "$folder"
cat > train.py <<'PYTHON'
import logging
import sys
import warnings
from collections import Counter
import lightning
import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from torch.utils.data import DataLoader

warnings.filterwarnings('ignore')
logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
lightning.seed_everything(0, verbose=False)
labels = torch.arange(16).repeat_interleave(8)

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.alone = self.seen = 0
    def training_step(self, batch, step):
        self.seen += len(batch)
        self.alone += sum(n == 1 for n in Counter(batch.tolist()).values())
        return self.weight.sum()
    def on_train_epoch_end(self):
        print(f'process {self.global_rank}: {self.alone} of {self.seen} images alone of their identity\n', end='',
              flush=True)
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), .1)

processes = int(sys.argv[1])
loader = DataLoader(labels, batch_size=8, sampler=MPerClassSampler(labels, m=2, length_before_new_iter=1024))
lightning.Trainer(accelerator='cpu', devices=processes, strategy='ddp' if processes > 1 else 'auto', max_epochs=1,
                  logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  enable_model_summary=False).fit(Model(), loader)
PYTHON
for processes in 1 2; do
    echo "with $processes process(es):"
    "$folder/venv/bin/python" train.py $processes 2> /dev/null | grep '^process' | sort | tee "seen$processes"
done
grep -Fqx 'process 0: 0 of 1024 images alone of their identity' seen1
test "$(awk '$3 > 256 && $5 == 512' seen2 | wc -l)" = 2
