"ONNX files of several towers give torch's features, and the caller's model stays as it was."
import builtins
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from clip_dfgs.export import OnnxExtractor, export_onnx
from clip_dfgs.gallery import Embedder, FeatureExtractor
from clip_dfgs.inputs import crops
from clip_dfgs.models import ReIDModel

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

TOWERS = dict(
    vit=dict(clip='pedestrians', pretrained=None, num_ids=3, cameras=2),
    overlapping=dict(clip='pedestrians', pretrained=None, normalisation='instance', stride=12),
    resnet=dict(clip='timm:resnet18', pretrained=None, image_size=(64, 32)),
    timm_vit=dict(clip='timm:test_vit2', pretrained=None, image_size=(64, 32)))


def bytes_like(model, n, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, *model.config['image_size']), dtype=np.uint8)


@pytest.mark.parametrize('tower', TOWERS)
def test_exported_features_are_torchs(tower, tmp_path):
    model = ReIDModel.create(**TOWERS[tower])
    model.save(tmp_path/'model')
    assert export_onnx(tmp_path/'model', tmp_path/'m.onnx') < 1e-3
    images = bytes_like(model, 7)
    session = onnxruntime.InferenceSession(str(tmp_path/'m.onnx'))
    found = session.run(None, dict(images=images))[0]
    with torch.no_grad(): want = Embedder(model)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, want, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    facts = json.loads(session.get_modelmeta().custom_metadata_map['clip_dfgs'])
    assert facts['width'] == found.shape[1] and facts['image_size'] == list(model.config['image_size'])


def test_the_callers_model_stays_as_it_was(tmp_path):
    model = ReIDModel.create(**TOWERS['resnet']).train()
    model.clip.eval() # a mode of its own inside
    next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [p.requires_grad for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path/'m.onnx')
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == gradients
    for name, value in model.state_dict().items(): torch.testing.assert_close(value, state[name], rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_model_stays_on_its_device(tmp_path):
    model = ReIDModel.create(**TOWERS['vit']).cuda()
    export_onnx(model, tmp_path/'m.onnx')
    assert {p.device.type for p in model.parameters()} == {'cuda'}


def test_a_file_that_differs_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match='differs from torch by .* not kept'):
        export_onnx(ReIDModel.create(**TOWERS['vit']), tmp_path/'m.onnx', tolerance=-1)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_are_not_exported(tmp_path):
    model = ReIDModel.create(**TOWERS['vit'])
    with torch.no_grad(): next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match='differs from torch by nan'): export_onnx(model, tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch, tmp_path):
    real = builtins.__import__
    def without(name, *args, **kw):
        if name == 'onnxruntime': raise ModuleNotFoundError("No module named 'onnxruntime'", name='onnxruntime')
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ValueError, match='needs the package onnxruntime: pip install'):
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


def test_boxes_of_a_frame(exported):
    model, file = exported
    frame = picture(3, 200, 300)
    boxes = [(10, 20, 70, 150), (-20, 100, 40, 260), (310, 0, 350, 90), (30, 30, 30, 90)]
    found = OnnxExtractor(file)(crops(frame, boxes), bad='none')
    assert [feature is not None for feature in found] == [True, True, False, False]
    np.testing.assert_allclose(found[1][None], FeatureExtractor(model)(frame[100:, :40]).numpy(), atol=1e-4)
    with pytest.raises(ValueError, match='picture 2 of 4.*is empty'): OnnxExtractor(file)(crops(frame, boxes))


def test_the_reader_does_not_load_torch(exported):
    code = f"""import sys
import numpy as np
from clip_dfgs.export import OnnxExtractor
print(OnnxExtractor({str(exported[1])!r})(np.zeros((90, 40, 3), np.uint8)).shape, "torch" in sys.modules)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '(1, 320) False'
    from clip_dfgs import export
    assert export.Embedder is Embedder # where it was before


def other_program(file):
    "An ONNX file that computes something, and says nothing."
    node = onnx.helper.make_node('Identity', ['images'], ['features'])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ('images', 'features')]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], 'g', ends[:1], ends[1:]),
                                   opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=9)
    onnx.save(model, str(file))


FILES = {
    'is missing': lambda file, data: None,
    'is not an ONNX file, or is damaged': lambda file, data: file.write_bytes(data[:len(data)//2]),
    'damaged': lambda file, data: file.write_bytes(b''),
    'or is damaged': lambda file, data: file.write_text('x'),
    'was not written by export_onnx': lambda file, data: other_program(file),
}


@pytest.mark.parametrize('message', FILES)
def test_files_that_cannot_be_read_are_one_line(message, exported, tmp_path):
    FILES[message](tmp_path/'x.onnx', exported[1].read_bytes())
    with pytest.raises(ValueError, match=message) as problem: OnnxExtractor(tmp_path/'x.onnx')
    assert '\n' not in str(problem.value) and 'x.onnx' in str(problem.value)
