"""What two trackers feed an ONNX file of this project as their re-ID model, and whether they get its features.

Four rendered identities cross each other, in two sizes. The small CLIP is written by `clip-dfgs export --input ...
--size 256x128`, and BoxMOT's and Ultralytics' BoT-SORT run the file, each in an environment of its own. What they feed
is compared with every combination of crop, resizing, order of colors and normalization that is listed below. The
features that their tracks hold are compared with ours three times: of the pixels that were fed, of the same crops read
by `FeatureExtractor`, and of the boxes as they are.

    python benchmarks/peers/trackers.py --boxmot boxmot/bin/python --ultralytics ultralytics/bin/python \\
        [--out results/peers/trackers.md]

Prints a markdown table; exits 1 if no combination is what a tracker feeds, or a cosine for the same pixels is below
0.999.
`benchmarks/peers/README.md` tells how to install the trackers.
"""
import argparse
import importlib.metadata
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FRAMES, HEIGHT, WIDTH = 8, 460, 900
INPUTS = dict(boxmot='imagenet', ultralytics='float')


def scene(folder):
    "Frames uint8 [FRAMES,HEIGHT,WIDTH,3], RGB, and boxes [FRAMES,4,4]: two pairs of identities that cross."
    from clip_dfgs.data.image_io import load_image
    from clip_dfgs.synthetic.domain import render_domain
    rows = render_domain(folder, 5, 4, cameras=1, look_alikes=1, test_share=0., workers=1, progress=False)
    rng = np.random.default_rng(0)
    street = rng.integers(90, 140, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames, boxes = np.repeat(street[None], FRAMES, 0), np.zeros((FRAMES, 4, 4))
    for i, (_, mine) in enumerate(rows.groupby('pid')):
        height = 120 if i < 2 else 400
        person = load_image(mine['path'].iloc[0], (height, height//2))
        for t in range(FRAMES):
            left, top = (60 + 40*t if i % 2 else 400 - 40*t) + 300*(i//2), 20 + 10*i
            frames[t, top:top + height, left:left + height//2] = person
            boxes[t, i] = np.array([left, top, left + height//2, top + height]) + rng.uniform(-.9, .9, 4)
    return frames, boxes


# ---------------------------------------------------------------- in the environment of a tracker
def spied():
    "A list that is filled with what onnxruntime is fed."
    import onnxruntime
    fed, run = [], onnxruntime.InferenceSession.run
    def noted(session, names, feed, *more, **options):
        fed.append(np.array(next(iter(feed.values()))))
        return run(session, names, feed, *more, **options)
    onnxruntime.InferenceSession.run = noted
    return fed


def boxmot(file, frames, boxes):
    "(place of the box, feature) of the tracks of each frame."
    from boxmot.trackers.box.botsort.tracker import BotSort
    tracker = BotSort(reid_weights=Path(file), device='cpu', half=False)
    for frame, some in zip(frames, boxes):
        tracker.update(np.hstack([some, np.tile([.9, 0], (len(some), 1))]), frame[..., ::-1].copy())
        yield [(int(track.det_ind), track.curr_feat) for track in tracker.active_tracks]


def ultralytics(file, frames, boxes):
    "As `boxmot`."
    from ultralytics.engine.results import Boxes
    from ultralytics.trackers.bot_sort import BOTSORT
    from ultralytics.utils import IterableSimpleNamespace, YAML
    from ultralytics.utils.checks import check_yaml
    settings = YAML.load(check_yaml('botsort.yaml')) | dict(with_reid=True, model=str(file), device='cpu')
    tracker = BOTSORT(IterableSimpleNamespace(**settings))
    for frame, some in zip(frames, boxes):
        found = Boxes(np.hstack([some, np.tile([.9, 0], (len(some), 1))]), frame.shape[:2])
        tracker.update(found, frame[..., ::-1].copy())
        yield [(int(track.idx), track.curr_feat) for track in tracker.tracked_stracks
               if track.frame_id == tracker.frame_id]


def margin(box, gain=1.02, more=10):
    "A box of gain times width and height, and more pixels."
    center, size = (box[:2] + box[2:])/2, (box[2:] - box[:2])*gain + more
    return np.concatenate([center - size/2, center + size/2])


def bilinear(crop, size):
    import cv2
    return cv2.resize(crop, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)


def unrounded(crop, size):
    import torch
    pixels = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(pixels, size, mode='bilinear')[0].permute(1, 2, 0).numpy()


def pil(crop, size):
    from PIL import Image
    return np.asarray(Image.fromarray(crop).resize(size[::-1], Image.Resampling.BILINEAR), np.float32)


MEAN, STD = np.float32([.485, .456, .406]), np.float32([.229, .224, .225])
CHOICES = dict(
    crop={'box, rounded': lambda b: b.round(), 'box, cut off': np.trunc,
          'box + 2 % + 10 pixels, cut off': lambda b: np.trunc(margin(b))},
    resize={'bilinear, to bytes': bilinear, 'bilinear': unrounded, 'bilinear, antialiased': pil},
    colors={'RGB': lambda p: p, 'BGR': lambda p: p[..., ::-1]},
    normalization={'0 to 1': lambda p: p/255, 'ImageNet': lambda p: (p/255 - MEAN)/STD})


def fed_as(fed, frame, boxes):
    "The combination that gives what was fed, and the largest difference from it."
    def difference(names):
        crop, resize, colors, normal = (CHOICES[step][name] for step, name in zip(CHOICES, names))
        worst = 0
        for image, box in zip(fed, boxes):
            left, top, right, bottom = np.clip(crop(box), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(int)
            made = normal(colors(resize(frame[top:bottom, left:right], fed.shape[2:]))).transpose(2, 0, 1)
            worst = max(worst, abs(made - image).max())
        return worst
    best = min(itertools.product(*CHOICES.values()), key=difference)
    return [*best, float(difference(best))]


def track(name, folder):
    "Run one tracker on the scene; writes what it fed and the features of its tracks."
    stored = np.load(folder/'scene.npz')
    frames, boxes, fed = stored['frames'], stored['boxes'], spied()
    tracks = list(globals()[name](folder/f'{INPUTS[name]}.onnx', frames, boxes))
    assert len(fed) == FRAMES and all(len(one) == 4 for one in fed), 'not one batch of four boxes a frame'
    told = fed_as(fed[0], frames[0], boxes[0])
    rows = [(t, place, feature) for t, some in enumerate(tracks) for place, feature in some]
    np.savez(folder/f'{name}.npz', told=np.array(told, object), version=importlib.metadata.version(name),
             runtime=importlib.metadata.version('onnxruntime'), fed=np.array(fed), frame=[t for t, _, _ in rows],
             place=[i for _, i, _ in rows], features=[feature for _, _, feature in rows])


# ---------------------------------------------------------------- in the environment of this project
def cosines(folder, name, frames, boxes):
    "The least cosine of the tracks' features with ours: of the same pixels, of the same crops, of the boxes."
    from clip_dfgs.data.image_io import crops
    from clip_dfgs.inference.embed import FeatureExtractor
    from clip_dfgs.inference.onnx import OnnxExtractor
    found, extract = np.load(folder/f'{name}.npz', allow_pickle=True), FeatureExtractor('pedestrians')
    mean, std = (MEAN, STD) if INPUTS[name] == 'imagenet' else (np.zeros(3), np.ones(3))
    pixels = (found['fed']*std.reshape(3, 1, 1) + mean.reshape(3, 1, 1))*255
    same = OnnxExtractor(folder/'uint8.onnx').features(np.concatenate(pixels).round().clip(0, 255).astype(np.uint8))
    ours = [same.reshape(*boxes.shape[:2], -1)]
    for to_crop in (margin if 'pixels' in found['told'][0] else np.asarray, np.asarray):
        cut = [crops(frame, np.stack([to_crop(box) for box in some])) for frame, some in zip(frames, boxes)]
        ours.append(np.stack([extract(some).numpy() for some in cut]))
    theirs = found['features']/np.linalg.norm(found['features'], axis=1, keepdims=True)
    return found, [float((one[found['frame'], found['place']]*theirs).sum(1).min()) for one in ours]


def main(pythons, out):
    folder = Path(tempfile.mkdtemp())
    frames, boxes = scene(folder/'town')
    np.savez(folder/'scene.npz', frames=frames, boxes=boxes)
    for kind in ('uint8', *INPUTS.values()):
        subprocess.run([sys.executable, '-m', 'clip_dfgs.cli', 'export', 'pedestrians', '--to',
                        folder/f'{kind}.onnx', '--input', kind, '--size', '256x128'], check=True)
    alone = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(YOLO_CONFIG_DIR=str(folder))
    lines = ['| tracker | file | crop | resized to 256x128 | colors | numbers | least cosine: same pixels | '
             'same crop | box as it is |', '|---|---|---|---|---|---|---|---|---|']
    wrong = []
    for name, python in pythons.items():
        subprocess.run([python, __file__, '--track', name, folder], env=alone, check=True, stdout=subprocess.DEVNULL)
        found, least = cosines(folder, name, frames, boxes)
        *told, difference = found['told']
        lines.append(f'| {name} {found["version"]}, onnxruntime {found["runtime"]} | `--input {INPUTS[name]}` | '
                     f'{" | ".join([*told, *(f"{cosine:.4f}" for cosine in least)])} |')
        print(f'{name}: {len(found["frame"])} features; what was fed differs by {difference:.0e} at most from the row')
        if difference > 1e-4: wrong.append(f'{name} feeds none of these; the nearest differs by {difference:.3f}')
        if least[0] < .999: wrong.append(f'{name}: a feature has a cosine of {least[0]:.4f} with ours')
    print('\n'.join(lines))
    if out: out.write_text('\n'.join(lines) + '\n')
    if wrong: sys.exit('\n'.join(wrong))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in INPUTS: parser.add_argument(f'--{name}', help=f'the Python of the environment that has {name}')
    parser.add_argument('--out', type=Path)
    parser.add_argument('--track', nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.track: track(a.track[0], Path(a.track[1]))
    else: main({name: getattr(a, name) for name in INPUTS if getattr(a, name)}, a.out)
