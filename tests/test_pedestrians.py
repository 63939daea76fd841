"Rendered people: the same bytes whatever the number of processes, nothing half-made, mistakes named."
import numpy as np
import pytest

from clip_dfgs.synthetic import domain as pedestrians
from clip_dfgs.synthetic.domain import domain_cast, render, render_domain, street_camera
from clip_dfgs.synthetic.people import caption, random_person


def files(folder):
    "Names and bytes of everything in a folder."
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file()}


def test_rendering_does_not_depend_on_processes(tmp_path):
    for name, workers in (('a', 1), ('b', 2)):
        render_domain(tmp_path/name, seed=3, identities=9, cameras=2, workers=workers, progress=False)
    assert files(tmp_path/'a') == files(tmp_path/'b')


@pytest.mark.parametrize('wrong', [dict(identities=0), dict(cameras=0), dict(test_share=2.), dict(look_alikes=0)])
def test_impossible_domains(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        render_domain(tmp_path/'x', seed=0, progress=False, **wrong)
    assert not (tmp_path/'x').exists()


def test_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def broken(*args): raise KeyboardInterrupt
    monkeypatch.setattr(pedestrians, '_each', broken)
    with pytest.raises(KeyboardInterrupt): render_domain(tmp_path/'x', seed=0, identities=4, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_look_alikes_share_their_words_and_nothing_else():
    people, _ = domain_cast(seed=5, identities=12, cameras=1, look_alikes=4)
    captions = [caption(p) for p in people]
    assert [captions[i:i + 4].count(captions[i]) for i in (0, 4, 8)] == [4, 4, 4]
    colors = [tuple(p.detail['upper_color']) for p in people]
    assert len(set(colors)) == 12


def test_a_image_is_decided_by_person_camera_and_seed():
    draw = np.random.default_rng(1)
    people, _ = domain_cast(seed=6, identities=1, cameras=1)
    camera = street_camera(draw)
    one, same, other = (render(people[0], camera, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one.shape == (128, 64, 3) and one.dtype == np.uint8
    assert (one == same).all() and (one != other).any()
    assert random_person(np.random.default_rng(2), pedestrians.wardrobe(np.random.default_rng(2))).look['hair']
