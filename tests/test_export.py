"ONNX files of several towers agree with torch, and the gallery's answers are those of a plain product."
import pytest
import torch

from clip_dfgs.models import ReIDModel

onnx = pytest.importorskip('onnx'); onnxruntime = pytest.importorskip('onnxruntime')


@pytest.mark.parametrize('call', [dict(clip='pedestrians', pretrained=None, num_ids=3, cameras=2), dict(clip='pedestrians', pretrained=None, normalisation='instance', stride=12),
                                  dict(clip='timm:resnet18', pretrained=None, image_size=(64, 32)), dict(clip='timm:test_vit2', pretrained=None, image_size=(64, 32))])
def test_exported_features_are_torchs(call, tmp_path):
    from clip_dfgs.export import Embedder, export_onnx
    model = ReIDModel.create(**call); folder = tmp_path/'model'; model.save(folder)
    assert export_onnx(folder, tmp_path/'m.onnx') < 1e-3
    h, w = model.config['image_size']; x = torch.randint(0, 256, (7, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = torch.from_numpy(onnxruntime.InferenceSession(str(tmp_path/'m.onnx')).run(None, dict(images=x.numpy()))[0])
    with torch.no_grad(): torch.testing.assert_close(found, Embedder(model)(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))


def test_missing_packages_are_named(monkeypatch, tmp_path):
    import builtins
    from clip_dfgs.export import export_onnx
    real = builtins.__import__
    def without(name, *args, **kw):
        if name == 'onnxruntime': raise ModuleNotFoundError("No module named 'onnxruntime'", name='onnxruntime')
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ValueError, match='needs the package onnxruntime: pip install'): export_onnx(ReIDModel.create('pedestrians', None), tmp_path/'x.onnx')
    assert not list(tmp_path.iterdir())
