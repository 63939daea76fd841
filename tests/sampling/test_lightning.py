"Two processes of Lightning are given one plan of the sampler, each batch once, also after a checkpoint."
import json
import subprocess
import sys

import numpy as np
import pytest

from clip_dfgs.sampling.samplers import DepthFirstGraphSampler

pytest.importorskip('lightning')
pytestmark = pytest.mark.slow
LABELS = np.repeat(np.arange(24), 6)
CAMERAS = np.tile(np.arange(3), 48)
GRAPH = (np.arange(24)[:, None] + np.arange(1, 6)) % 24

SCRIPT = """import json, sys
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset
sys.path.insert(0, {tests!r})
from test_lightning import made

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []
    def train_dataloader(self):
        self.sampler = made(self.trainer.global_rank, self.trainer.world_size)
        self.sampler.set_epoch(self.begin)
        return DataLoader(TensorDataset(torch.arange(144.)[:, None]), batch_sampler=self.sampler)
    begin = 0
    def on_load_checkpoint(self, checkpoint): self.begin = checkpoint['next_epoch']
    def on_save_checkpoint(self, checkpoint): checkpoint['next_epoch'] = self.sampler.epoch + 1
    def training_step(self, batch, index):
        self.seen.append([self.current_epoch, batch[0].flatten().int().tolist()])
        return self.layer(batch[0]).mean()
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 1e-6)

module = Module()
trainer = lightning.Trainer(max_epochs={epochs}, accelerator='cpu', devices=2, strategy='ddp', logger=False,
                            use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
                            enable_model_summary=False)
trainer.fit(module, ckpt_path={go_on!r})
trainer.save_checkpoint({out!r} + '.ckpt')
with open({out!r} + f'.{{trainer.global_rank}}.json', 'w') as file: json.dump(module.seen, file)
"""


def made(rank=0, world=1):
    "The sampler of one process."
    import torch
    return DepthFirstGraphSampler(LABELS, CAMERAS, torch.as_tensor(GRAPH), batch=16, instances=4, seed=3, rank=rank,
                                  world=world)


def seen(folder, name, epochs, go_on=None):
    "What each of two processes was given: (epoch, rows of a batch)."
    from pathlib import Path
    text = SCRIPT.format(tests=str(Path(__file__).parent), epochs=epochs, go_on=go_on, out=str(folder/name))
    (folder/'job.py').write_text(text)
    done = subprocess.run([sys.executable, 'job.py'], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder/f'{name}.{rank}.json').read_text()) for rank in range(2)]


def planned(epochs):
    "The same from the plan itself: batch b of an epoch belongs to process b mod 2."
    sampler, found = made(), [[], []]
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for b, rows in enumerate(sampler): found[b % 2].append([epoch, rows])
    return found


def test_two_processes_share_one_plan(tmp_path):
    whole = seen(tmp_path, 'whole', 2)
    assert whole == planned((0, 1)) and whole[0][0] != whole[1][0]
    assert seen(tmp_path, 'rest', 3, go_on=str(tmp_path/'whole.ckpt')) == planned((2,))
