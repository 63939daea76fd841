"ONNX files of several towers give torch's features, and the caller's model stays as it was."
import builtins
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from clip_dfgs.export import export_onnx
from clip_dfgs.gallery import Embedder
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


def test_the_module_itself_does_not_load_torch():
    code = 'import sys, clip_dfgs.export; print("torch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'False'
    from clip_dfgs import export
    assert export.Embedder is Embedder
