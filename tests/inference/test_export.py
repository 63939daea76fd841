"ONNX files of several towers give torch's features, and the caller's model stays as it was."
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from clip_dfgs.evaluation.metrics import evaluate
from clip_dfgs.inference.embed import embed_images, FeatureExtractor, load_model
from clip_dfgs.inference.evaluator import evaluate_records, pixels_for
from clip_dfgs.inference.onnx import PRECISIONS, OnnxExtractor, export_onnx
from clip_dfgs.models.reid_model import Embedder, ReIDModel

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

TOWERS = dict(
    vit=dict(clip='pedestrians', pretrained=None, num_ids=3, cameras=2),
    overlapping=dict(clip='pedestrians', pretrained=None, normalization='instance', stride=12),
    resnet=dict(clip='timm:resnet18', pretrained=None, image_size=(64, 32)),
    timm_vit=dict(clip='timm:test_vit2', pretrained=None, image_size=(64, 32)))


def noise(n, model, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, *model.config['image_size']), dtype=np.uint8)


@pytest.mark.parametrize('tower', ['vit', 'overlapping', 'resnet', pytest.param('timm_vit', marks=pytest.mark.slow)])
def test_exported_features_are_torchs_and_the_model_stays_as_it_was(tower, tmp_path):
    model = ReIDModel.create(**TOWERS[tower]).train()
    model.clip.eval() # a mode of its own inside
    next(model.parameters()).requires_grad_(False)
    def facts(): return [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    before, state = facts(), {name: value.clone() for name, value in model.state_dict().items()}
    assert export_onnx(model, tmp_path/'m.onnx') < 1e-3
    assert facts() == before and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    images = noise(7, model)
    found = onnxruntime.InferenceSession(str(tmp_path/'m.onnx')).run(None, dict(images=images))[0]
    with torch.no_grad(): want = Embedder(model)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, want, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


SMALLER = [('vit', 'int8'), ('resnet', 'float16'), *(pytest.param(*more, marks=pytest.mark.slow) for more in (
    ('vit', 'float16'), ('overlapping', 'float16'), ('timm_vit', 'int8')))]


@pytest.mark.parametrize('tower, precision', SMALLER)
def test_smaller_files_agree_within_what_is_stated(tower, precision, tmp_path):
    "On pictures that the export did not check, also one at a time; features are float32 and of unit length."
    model = ReIDModel.create(**TOWERS[tower])
    whole = sum(4*p.numel() for p in model.clip.visual.parameters())
    with pytest.warns(UserWarning, match=f'^{precision} .* CPU'):
        seen = export_onnx(model, tmp_path/'m.onnx', precision=precision)
    images = noise(6, model, seed=2)
    light = OnnxExtractor(tmp_path/'m.onnx')
    assert light.facts['precision'] == precision and precision in repr(light)
    with torch.no_grad(): want = Embedder(model)(torch.from_numpy(images)).numpy()
    alone = np.concatenate([light(x.transpose(1, 2, 0)) for x in images])
    for found in (light(images.transpose(0, 2, 3, 1)), alone):
        assert found.dtype == np.float32
        assert seen <= PRECISIONS[precision] and np.linalg.norm(found - want, axis=1).max() <= PRECISIONS[precision]
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    if precision == 'int8': np.testing.assert_array_equal(light(images.transpose(0, 2, 3, 1)), alone)
    assert (tmp_path/'m.onnx').stat().st_size < .7*whole


def test_a_precision_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match='matrix products, and this tower has none'):
        export_onnx(ReIDModel.create(**TOWERS['resnet']), tmp_path/'m.onnx', precision='int8')
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_are_not_exported(tmp_path):
    model = ReIDModel.create(**TOWERS['vit'])
    with torch.no_grad(): next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match='differs from torch by nan'): export_onnx(model, tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'onnxruntime' else name)
    with pytest.raises(ValueError, match='need the package onnxruntime: pip install'):
        export_onnx(ReIDModel.create('pedestrians', None), tmp_path/'x.onnx')
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A model with the small CLIP's weights, and its ONNX file."
    model, file = ReIDModel.create('pedestrians', 'pedestrians'), tmp_path_factory.mktemp('onnx')/'person.onnx'
    export_onnx(model, file)
    return model, file


def picture(seed=0, height=128, width=64): # uint8 [H,W,3]
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_reader_without_torch_gives_the_same_features(exported, tmp_path):
    model, file = exported
    x = picture()
    Image.fromarray(x).save(tmp_path/'x.png')
    light, full = OnnxExtractor(file, batch=2), FeatureExtractor(model)
    forms = [x, Image.fromarray(x), tmp_path/'x.png', x / 255, torch.from_numpy(x).permute(2, 0, 1), picture(1, 90, 33)]
    np.testing.assert_allclose(light(forms), full(forms).numpy(), atol=1e-4)
    np.testing.assert_allclose(light(x), full(x).numpy(), atol=1e-4)
    np.testing.assert_allclose(light(x[..., ::-1], channels='bgr'), full(x).numpy(), atol=1e-4)
    assert light([]).shape == full([]).shape


def test_the_reader_does_not_load_torch(exported):
    code = f"""import sys
import numpy as np
from clip_dfgs.inference.onnx import OnnxExtractor
print(OnnxExtractor({str(exported[1])!r})(np.zeros((90, 40, 3), np.uint8)).shape, "torch" in sys.modules)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '(1, 320) False'


def test_float_inputs_are_undone_in_the_graph(exported, tmp_path):
    "What Ultralytics (0 to 1) and BoxMOT (ImageNet) feed, also at another size; the width is a number."
    model, mean, std = exported[0], np.reshape([.485, .456, .406], (3, 1, 1)), np.reshape([.229, .224, .225], (3, 1, 1))
    for size, kind in (((128, 64), 'float'), ((200, 96), 'imagenet')):
        pixels = np.stack([picture(seed, *size).transpose(2, 0, 1) for seed in range(3)])
        resized = torch.nn.functional.interpolate(torch.from_numpy(pixels).float(), (128, 64), mode='bilinear')
        with torch.no_grad(): want = Embedder(model)(resized.round().to(torch.uint8)).numpy()
        fed = dict(float=pixels/255, imagenet=(pixels/255 - mean)/std)[kind].astype(np.float32)
        export_onnx(model, tmp_path/'m.onnx', input=kind, size=size)
        session = onnxruntime.InferenceSession(str(tmp_path/'m.onnx'))
        np.testing.assert_allclose(session.run(None, dict(images=fed))[0], want, atol=1e-5)
        np.testing.assert_allclose(OnnxExtractor(tmp_path/'m.onnx').features(pixels), want, atol=1e-5)
        assert session.get_outputs()[0].shape[1] == 320


def foreign(file, kind='FLOAT', shape=('n', 3, 8, 4), inputs=('crops',), **meta):
    "An ONNX file of another program: features are the mean of each channel."
    ends = [onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape) for name in inputs]
    out = onnx.helper.make_tensor_value_info('out', onnx.TensorProto.FLOAT, None)
    nodes = [onnx.helper.make_node('Cast', [inputs[0]], ['numbers'], to=onnx.TensorProto.FLOAT),
             onnx.helper.make_node('GlobalAveragePool', ['numbers'], ['out'])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, 'g', ends, [out]),
                                   opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=9)
    for key, value in meta.items(): model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(file))


@pytest.mark.parametrize('made, given', [
    (dict(), dict(mean=[.4]*3, std=[.2]*3)), (dict(mean='[0.4,0.4,0.4]', std='[0.2,0.2,0.2]'), dict()),
    (dict(shape=(1, 3, 8, 4)), dict(mean=[.4]*3, std=[.2]*3)), (dict(kind='FLOAT16'), dict(mean=[.4]*3, std=[.2]*3)),
    (dict(shape=('n', 3, 'h', 'w')), dict(size=(8, 4), mean=[.4]*3, std=[.2]*3)),
    (dict(shape=(4, 3, 8, 4)), dict(mean=[.4]*3, std=[.2]*3))])
def test_files_of_other_programs(made, given, tmp_path):
    "By definition: resized bilinearly, normalized, averaged; five images whatever the batch of the file."
    foreign(tmp_path/'x.onnx', **made)
    images = [Image.fromarray(picture(seed, 30, 20)) for seed in range(5)]
    pixels = np.stack([np.asarray(x.resize((4, 8), Image.Resampling.BILINEAR)) for x in images])
    want = ((pixels/255 - .4)/.2).mean((1, 2))
    light = OnnxExtractor(tmp_path/'x.onnx', **given)
    np.testing.assert_allclose(light(images), want, atol=5e-3 if made.get('kind') else 1e-5)
    whole = FeatureExtractor(tmp_path/'x.onnx', **given)(images).numpy()
    np.testing.assert_allclose(whole, want/np.linalg.norm(want, axis=1, keepdims=True), atol=1e-2)
    assert light([]).shape == (0, 3)


def test_evaluation_resizes_as_the_file_says(tmp_path):
    "The distances of an evaluation are those of the file's own features, not of bicubic images."
    foreign(tmp_path/'x.onnx')
    rows = []
    for i in range(12):
        Image.fromarray(picture(i//2, 30 + i % 2, 20)).save(tmp_path/f'{i}.png')
        rows.append(dict(path=str(tmp_path/f'{i}.png'), pid=i//2 + 1, camid=i % 2, domain='a',
                         split=('query', 'gallery')[i % 2]))
    records, given = pd.DataFrame(rows), dict(mean=[.4]*3, std=[.2]*3)
    model = load_model(tmp_path/'x.onnx', **given)
    pixels = pixels_for(model, records['path'].tolist())[np.arange(12)]
    images = [Image.open(path).resize((4, 8), Image.Resampling.BILINEAR) for path in records['path']]
    np.testing.assert_array_equal(pixels, np.stack([np.asarray(image) for image in images]))
    features = FeatureExtractor(model, normalize=False)(records['path'].tolist())
    torch.testing.assert_close(embed_images(model, pixels), features)
    found = evaluate_records(model, records)['a']
    want = evaluate(features[::2], features[1::2], records['pid'][::2], records['pid'][1::2])
    assert found.mAP == want.mAP


def test_files_and_models_in_half_precision_in_a_feature_extractor(exported, tmp_path):
    half = ReIDModel.create('pedestrians', 'pedestrians').half()
    export_onnx(half, tmp_path/'half.onnx')
    images = [picture(seed, 90, 40) for seed in range(3)]
    want = FeatureExtractor(exported[0])(images)
    torch.testing.assert_close(FeatureExtractor(exported[1])(images), want, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match='no text encoder'): FeatureExtractor(exported[1]).text('a man')
    for place in (half, tmp_path/'half.onnx'):
        assert torch.nn.functional.cosine_similarity(FeatureExtractor(place)(images), want).min() > .999
    assert next(half.parameters()).dtype == torch.float16


REFUSED = {
    'is missing': lambda file, data: None,
    'is not an ONNX file, or is damaged': lambda file, data: file.write_bytes(data[:len(data)//2]),
    'damaged': lambda file, data: file.write_text('x'),
    'does not say how to prepare images': lambda file, data: foreign(file),
    'give size': lambda file, data: foreign(file, shape=('n', 3, 'h', 'w'), mean='[0,0,0]', std='[1,1,1]'),
    'not images': lambda file, data: foreign(file, shape=('n', 8, 4, 3)),
    r'camera.*not images': lambda file, data: foreign(file, inputs=('images', 'camera')),
}


@pytest.mark.parametrize('message', REFUSED)
def test_files_that_cannot_be_read_are_one_line(message, exported, tmp_path):
    REFUSED[message](tmp_path/'x.onnx', exported[1].read_bytes())
    with pytest.raises(ValueError, match=message) as problem: OnnxExtractor(tmp_path/'x.onnx')
    assert '\n' not in str(problem.value) and 'x.onnx' in str(problem.value)


def test_the_trackers_lines_work_as_they_stand(exported, tmp_path, monkeypatch):
    "The short block of the guide, with OpenCV's order of colors and a box that lies outside."
    guide = json.loads((Path(__file__).parents[2]/'nbs'/'guides'/'tracker.ipynb').read_text())
    text = '\n'.join(''.join(cell['source']) for cell in guide['cells'] if cell['cell_type'] == 'markdown')
    code = re.search(r'^```python\n(.*?)^```', text, re.M | re.S)[1]
    shutil.copy(exported[1], tmp_path/'features.onnx')
    monkeypatch.chdir(tmp_path)
    frame = picture(4, 200, 300)
    around = dict(frame=frame[..., ::-1], boxes=[(10, 20, 70, 150), (400, 0, 450, 90)])
    exec(code, around)
    want = FeatureExtractor(exported[0])(frame[20:150, 10:70]).numpy()[0]
    assert around['features'][1] is None
    np.testing.assert_allclose(around['features'][0], want, atol=1e-4)


# ---- the command

def command(*words):
    "Exit code, stdout and stderr of a command line."
    from clip_dfgs.cli import main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main([str(word) for word in words])
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A run folder that holds a model."
    run = tmp_path_factory.mktemp('saved')/'run'
    ReIDModel.create('pedestrians', 'pedestrians').save(run/'model')
    return run


def test_a_run_is_exported_by_a_command(saved, tmp_path):
    options = ['--precision', 'int8', '--input', 'imagenet', '--size', '256x128']
    code, out, err = command('export', saved, '--to', tmp_path/'f.onnx', *options)
    assert code == 0 and err and out.startswith(f'{tmp_path/"f.onnx"}: ') and 'int8' in out
    light, large = OnnxExtractor(tmp_path/'f.onnx'), picture(5).repeat(2, 0).repeat(2, 1)
    assert (light.facts['precision'], light.facts['input']) == ('int8', 'imagenet')
    want = FeatureExtractor(saved/'model')(picture(5)).numpy()
    assert np.linalg.norm(light(large) - want) <= PRECISIONS['int8']


def test_a_file_of_another_program_is_described_by_the_command(tmp_path):
    "Once, in a copy that needs no more settings, wherever a model is named."
    foreign(tmp_path/'x.onnx', shape=('n', 3, 'h', 'w'))
    code, out, err = command('export', tmp_path/'x.onnx', '--to', tmp_path/'f.onnx', '--size', '8x4',
                             '--mean', '.4', '.5', '.6', '--std', '.2', '.2', '.2')
    assert (code, err) == (0, '') and '8x4' in out
    want = OnnxExtractor(tmp_path/'x.onnx', size=(8, 4), mean=[.4, .5, .6], std=[.2]*3)(picture())
    np.testing.assert_array_equal(OnnxExtractor(tmp_path/'f.onnx')(picture()), want)
    np.testing.assert_allclose(FeatureExtractor(tmp_path/'f.onnx', normalize=False)(picture()).numpy(), want)


def test_a_published_tracker_model_gives_its_published_features(tmp_path):
    "OSNet of MSMT17 on six images: bilinear to 256x128, ImageNet's mean and standard deviation, by hand."
    usual = Path(__file__).resolve().parents[3]/'shared'/'realdata'
    root = Path(os.environ.get('CLIP_DFGS_REALDATA', usual))
    file, images = root/'osnet_x0_25_msmt17.onnx', []
    if not file.exists(): pytest.skip(f'no OSNet in {root}; set CLIP_DFGS_REALDATA')
    with tarfile.open(root/'p1_targets.tar.gz') as archive:
        for member in archive:
            if member.name.endswith(('.jpg', '.png', '.bmp')): images.append(archive.extractfile(member).read())
            if len(images) == 6: break
    images = [Image.open(io.BytesIO(data)).convert('RGB') for data in images]
    pixels = np.stack([np.asarray(image.resize((128, 256), Image.Resampling.BILINEAR)) for image in images])
    fed = ((pixels/255 - [.485, .456, .406])/[.229, .224, .225]).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(str(file))
    want = np.concatenate([session.run(None, {session.get_inputs()[0].name: x[None]})[0].reshape(1, -1) for x in fed])
    code, out, _ = command('export', file, '--to', tmp_path/'f.onnx', '--input', 'imagenet', '--size', '256x128')
    assert code == 0 and '512 columns' in out
    found = FeatureExtractor(tmp_path/'f.onnx')(images).numpy()
    np.testing.assert_allclose(found, want/np.linalg.norm(want, axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize('line, words', [
    ('export RUN --to DIR/f.onnx --size 256', '--size 256'), ('export RUN --to DIR/f.onnx --mean 0 0 0', '--mean'),
    ('export RUN --to DIR/f.pt', 'f.onnx'), ('export RUN', 'required: --to'),
    ('export RUN --to DIR/f.onnx --precision half', "unknown precision 'half'"),
    ('export RUN --to DIR/f.onnx --tolerance 0', 'differs from torch'),
    ('export DIR/damaged --to DIR/f.onnx', 'damaged')])
def test_mistakes_of_the_command_are_one_line(line, words, saved, tmp_path):
    shutil.copytree(saved, tmp_path/'damaged')
    weights = tmp_path/'damaged'/'model'/'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:2000])
    code, out, err = command(*line.replace('RUN', str(saved)).replace('DIR', str(tmp_path)).split())
    assert code == 2 and not out and words in err and err.count('\n') == 1
    assert not list(tmp_path.glob('*f.*'))


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_half_written(saved, tmp_path):
    "Really killed while the file is being written; the name of the target is never there."
    code = f"""import os, signal
from clip_dfgs.inference import load_model, onnx as export
def stop(*_): os.kill(os.getpid(), signal.SIGKILL)
export._difference = stop
export.export_onnx(load_model({str(saved/'model')!r}), {str(tmp_path/'f.onnx')!r})"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True)
    assert done.returncode == -9 and not (tmp_path/'f.onnx').exists()
    assert command('export', saved, '--to', tmp_path/'f.onnx')[0] == 0 and OnnxExtractor(tmp_path/'f.onnx')
