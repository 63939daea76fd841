"Two processes of Lightning are given one plan of the sampler, each batch once, also after a checkpoint."
import json
import subprocess
import sys

import numpy as np
import pytest

from clip_dfgs.sampling.samplers import DepthFirstGraphSampler

pytest.importorskip('lightning')
pytestmark = pytest.mark.slow

SCRIPT = """import json, sys
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset
tests, epochs, out, go_on = sys.argv[1:]
sys.path.insert(0, tests)
from test_lightning import made

class Module(lightning.LightningModule):
    begin = 0
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []
    def train_dataloader(self):
        self.sampler = made(self.trainer.global_rank, self.trainer.world_size)
        self.sampler.set_epoch(self.begin)
        return DataLoader(TensorDataset(torch.arange(144.)[:, None]), batch_sampler=self.sampler)
    def on_load_checkpoint(self, checkpoint): self.begin = checkpoint['next_epoch']
    def on_save_checkpoint(self, checkpoint): checkpoint['next_epoch'] = self.sampler.epoch + 1
    def training_step(self, batch, index):
        self.seen.append([self.current_epoch, batch[0].flatten().int().tolist()])
        return self.layer(batch[0]).mean()
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 1e-6)

module = Module()
trainer = lightning.Trainer(max_epochs=int(epochs), accelerator='cpu', devices=2, strategy='ddp', logger=False,
                            use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
                            enable_model_summary=False)
trainer.fit(module, ckpt_path=go_on or None)
trainer.save_checkpoint(out + '.ckpt')
with open(f'{out}.{trainer.global_rank}.json', 'w') as file: json.dump(module.seen, file)
"""


def made(rank=0, world=1):
    "The sampler of one process."
    graph = (np.arange(24)[:, None] + np.arange(1, 6)) % 24
    return DepthFirstGraphSampler(np.repeat(np.arange(24), 6), np.tile(np.arange(3), 48), graph, batch=16, seed=3,
                                  rank=rank, world=world)


def test_two_processes_share_one_plan(tmp_path):
    "Batch b of an epoch belongs to process b mod 2."
    (tmp_path/'job.py').write_text(SCRIPT)
    folder, sampler = __file__.rpartition('/')[0], made()
    for out, go_on, epochs in (('whole', '', (0, 1)), ('rest', 'whole.ckpt', (2,))):
        command = [sys.executable, 'job.py', folder, str(epochs[-1] + 1), out, go_on]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        planned = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            planned += [[epoch, rows] for rows in sampler]
        for rank in (0, 1): assert json.loads((tmp_path/f'{out}.{rank}.json').read_text()) == planned[rank::2]
