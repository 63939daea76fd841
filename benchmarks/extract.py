"""How fast are features extracted on a CPU? Our ONNX files, torch, and the OSNet that trackers use, side by side.

    python benchmarks/extract.py [--images 256] [--batch 16] [--repeats 3] [--threads 1] [--model RUN]

Every row takes the same people as uint8 arrays of 128x64 pixels, as they are cut out of a frame, and ends with
features of unit length: what a tracker waits for, resizing and normalization included. Ours is the small CLIP at
128x64 pixels, or the model that is named; OSNet x0.25 works at 256x128 pixels. Runs alternate and the best of each is
kept, in seconds of the CPU; ratios are of one run on one machine; `cosine` is the least to torch in float32. OSNet's
file, `osnet_x0_25_msmt17.onnx`, is looked for in `CLIP_DFGS_REALDATA`, by default `../shared/realdata`; without it
its row is skipped.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from clip_dfgs.inference.onnx import PRECISIONS, OnnxExtractor, export_onnx
from clip_dfgs.inference.embed import FeatureExtractor
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import captioned_images

MEAN, STD = (np.array(values, np.float32)[:, None, None] for values in ((.485, .456, .406), (.229, .224, .225)))


def osnet_file():
    "Where OSNet's file is, or should be."
    usual = Path(__file__).resolve().parents[2]/'shared'/'realdata'
    return Path(os.environ.get('CLIP_DFGS_REALDATA', usual))/'osnet_x0_25_msmt17.onnx'


def osnet(file, batch, threads):
    "OSNet as an extractor: resized to 256x128 pixels, ImageNet's normalization, features of unit length."
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name

    def pixels(image):
        large = Image.fromarray(image).resize((128, 256), Image.Resampling.BILINEAR)
        return (np.asarray(large, np.float32).transpose(2, 0, 1)/255 - MEAN)/STD

    def extract(images):
        blocks = (images[i:i + batch] for i in range(0, len(images), batch))
        found = np.concatenate([session.run(None, {name: np.stack(list(map(pixels, some)))})[0] for some in blocks])
        return found/np.linalg.norm(found, axis=1, keepdims=True)
    return extract


def extractors(model, folder, batch, threads):
    "name -> (extractor, MB of its file or weights)."
    size = sum(p.numel()*p.element_size() for p in model.clip.visual.parameters())/1e6
    found = {'torch, float32': (FeatureExtractor(model, batch=batch), size)}
    chosen = FeatureExtractor(model, batch=batch, precision='auto')
    if chosen.precision != 'no': found[f'torch, auto: {chosen.precision}'] = chosen, size/2
    for precision in PRECISIONS:
        file = Path(folder)/f'{precision}.onnx'
        try: export_onnx(model, file, precision=precision)
        except ValueError as problem: # a tower without matrix products has no int8
            print(f'skipped: ONNX, {precision}: {problem}')
            continue
        found[f'ONNX, {precision}'] = OnnxExtractor(file, batch=batch, threads=threads), file.stat().st_size/1e6
    file = osnet_file()
    if file.is_file(): found['OSNet x0.25, ONNX, float32'] = osnet(file, batch, threads), file.stat().st_size/1e6
    else: print(f'skipped: OSNet x0.25: {file} is not there; set CLIP_DFGS_REALDATA')
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=256)
    p.add_argument('--batch', type=int, default=16, help='people at a time, as in a frame')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--model', help='a saved model instead of the small CLIP')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model = ReIDModel.load(a.model).eval() if a.model else ReIDModel.create('pedestrians', 'pedestrians').eval()
    people = list(captioned_images(min(a.images, 32), seed=1, workers=1, progress=False)[0])
    people = [people[i % len(people)] for i in range(a.images)]
    print(f'{a.images} people in batches of {a.batch}, {a.threads} of {os.cpu_count()} cores, {model.config["clip"]}, '
          f'torch {torch.__version__}, onnxruntime {onnxruntime.__version__}')
    with tempfile.TemporaryDirectory() as folder:
        found = extractors(model, folder, a.batch, a.threads)
        best = {name: np.inf for name in found}
        for extract, _ in found.values(): extract(people[:a.batch])
        for _ in range(a.repeats):
            for name, (extract, _) in found.items():
                start = time.process_time()
                extract(people)
                best[name] = min(best[name], time.process_time() - start)
    usual = best.get('OSNet x0.25, ONNX, float32')
    exact = np.asarray(found['torch, float32'][0](people))
    print('| extractor | MB | images/s | torch = 1 | OSNet x0.25 = 1 | cosine |')
    print('|---|---|---|---|---|---|')
    for name, (extract, size) in found.items():
        features = np.asarray(extract(people))
        near = f'{(features*exact).sum(1).min():.5f}' if features.shape == exact.shape else ''
        faster, other = best['torch, float32']/best[name], f'{usual/best[name]:.2f}' if usual else ''
        print(f'| {name} | {size:.1f} | {a.images/best[name]:,.0f} | {faster:.2f} | {other} | {near} |')


if __name__ == '__main__': main()
