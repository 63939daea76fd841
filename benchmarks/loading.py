"""How fast are images loaded? A plain PIL pipeline against the mapped cache, side by side, for one training epoch.

    python benchmarks/loading.py [--images 1024] [--workers 0] [--repeats 3]

Both give the same kind of batch: float32 [64,3,H,W], flipped, padded and cropped, erased, normalized. The plain
pipeline decodes and resizes every image in every epoch; ours does so once (the column "cache made" says how long
that took) and afterwards reads bytes. Runs alternate and the best of each is kept. Without workers the clock is the
CPU time of the process, which other work on the machine disturbs little; with workers it is the wall clock.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from clip_dfgs.data.loader import cached_images, ImageDataset, make_loader
from clip_dfgs.data.transforms import Augment
from clip_dfgs.models.reid_model import normalize


class Plain(Dataset):
    "What most code does: open, resize, augment and normalize one image at a time."
    def __init__(self, paths, size):
        self.paths = paths
        self.transform = v2.Compose([
            v2.Resize(size, v2.InterpolationMode.BICUBIC), v2.RandomHorizontalFlip(0.5), v2.Pad(10),
            v2.RandomCrop(size), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5]*3, [0.5]*3),
            v2.RandomErasing(0.5, (0.02, 0.4), value='random')])
    def __len__(self): return len(self.paths)
    def __getitem__(self, i): return self.transform(Image.open(self.paths[i]).convert('RGB'))


def write_pictures(folder, n, size=(64, 128)):
    "JPEG pictures with the frequencies of photographs: smooth noise, so that decoding costs what it costs."
    rng = np.random.default_rng(0)
    paths = []
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 255, (16, 8, 3), dtype=np.uint8))
        coarse = coarse.resize(size, Image.Resampling.BICUBIC)
        noise = rng.integers(-12, 12, (size[1], size[0], 3))
        paths.append(str(Path(folder)/f'{i:05d}.jpg'))
        Image.fromarray((np.array(coarse) + noise).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def seconds(batches, clock):
    "Time for one pass, and the number of images."
    start, n = clock(), 0
    for x in batches:
        if x.dtype != torch.float32: raise TypeError(f'a batch of {x.dtype}')
        n += len(x)
    return clock() - start, n


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=1024)
    p.add_argument('--workers', type=int, default=0)
    p.add_argument('--repeats', type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', torch.get_num_threads())))
    print(f'{a.images} JPEG files of 128x64 pixels, batches of 64, {a.workers} workers, {os.cpu_count()} cores, '
          f'torch {torch.__version__}')
    print('| size | plain, images/s | cache made, s | cached, images/s | ratio | cached without erasing, images/s |')
    print('|---|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as tmp:
        paths = write_pictures(tmp, a.images)
        for size in ((256, 128), (128, 64)):
            start = time.perf_counter()
            pixels = cached_images(paths, size, cache=Path(tmp)/'cache', progress=False)
            made = time.perf_counter() - start
            index = [list(range(i, min(i + 64, a.images))) for i in range(0, a.images, 64)]
            plain = DataLoader(Plain(paths, size), batch_sampler=index, num_workers=a.workers,
                               persistent_workers=a.workers > 0)
            ours, light = (make_loader(ImageDataset(pixels, augment=augment), index, workers=a.workers)
                           for augment in (Augment(), Augment(erase=0)))
            runs = dict(plain=lambda: plain, ours=lambda: (normalize(b[0]) for b in ours),
                        light=lambda: (normalize(b[0]) for b in light))
            best = {k: 0. for k in runs}
            for _ in range(a.repeats + 1):
                for k, make in runs.items():
                    s, n = seconds(make(), time.perf_counter if a.workers else time.process_time)
                    best[k] = max(best[k], n/s)
            print(f'| {size[0]}x{size[1]} | {best["plain"]:,.0f} | {made:.2f} | {best["ours"]:,.0f} '
                  f'| {best["ours"]/best["plain"]:.1f} | {best["light"]:,.0f} |', flush=True)


if __name__ == '__main__': main()
