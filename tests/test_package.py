"The package as a whole: what an import brings in, what ships, what the repository may not hold."
import json, re, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent

def imported(code):
    "Top-level modules that a fresh Python has after `code`."
    out = subprocess.run([sys.executable, '-c', code + "\nimport sys; print(*{m.split('.')[0] for m in sys.modules})"], capture_output=True, text=True, check=True).stdout
    return set(out.split())

def test_import_is_light(): assert not imported('import clip_dfgs') & {'torch', 'numpy', 'pandas', 'open_clip', 'timm', 'matplotlib'}

@pytest.mark.parametrize('room', ['graph', 'samplers', 'losses', 'evaluation'])
def test_rooms_for_other_projects_need_no_clip(room):
    assert not imported(f'import clip_dfgs.{room}') & {'open_clip', 'timm', 'torchvision', 'accelerate', 'matplotlib', 'PIL', 'tyro'}

def test_installing_does_not_bring_the_notebook_tools():
    from configparser import ConfigParser
    p = ConfigParser(delimiters=['=']); p.read(root/'settings.ini'); words = p['DEFAULT']['requirements']
    assert not {'nbdev', 'execnb', 'fastcore', 'ghapi'} & set(re.findall(r'[a-z_]+', words))

def test_small_clip_is_small(): assert (root/'clip_dfgs'/'weights'/'pedestrians.safetensors').stat().st_size < 16e6

def tracked(): return [root/f for f in subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True, check=True).stdout.split('\n') if f]

def test_notebooks_are_small_and_without_errors():
    for f in (f for f in tracked() if f.suffix == '.ipynb' and f.exists()):
        cells = json.loads(f.read_text())['cells']
        assert f.stat().st_size < 1_000_000, f
        assert not any(o['output_type'] == 'error' for c in cells for o in c.get('outputs', [])), f

def test_no_pickles_and_no_photographs():
    assert not [f for f in tracked() if f.suffix.lower() in {'.pkl', '.pickle', '.pt', '.pth', '.jpg', '.jpeg'} and f.parent != root/'nbs'/'images']  # the README's picture is rendered

def test_rendering_does_not_depend_on_processes(tmp_path):
    from clip_dfgs.pedestrians import make_domain
    files = lambda d: {str(f.relative_to(d)): f.read_bytes() for f in sorted(d.rglob('*')) if f.is_file()}
    for name, workers in (('a', 1), ('b', 2)): make_domain(tmp_path/name, seed=3, identities=9, cameras=2, workers=workers, progress=False)
    assert files(tmp_path/'a') == files(tmp_path/'b')

@pytest.mark.parametrize('wrong', [dict(identities=0), dict(cameras=0), dict(test_share=2.), dict(look_alikes=0)])
def test_impossible_domains(tmp_path, wrong):
    from clip_dfgs.pedestrians import make_domain
    with pytest.raises(ValueError, match=next(iter(wrong))): make_domain(tmp_path/'x', seed=0, progress=False, **wrong)
    assert not (tmp_path/'x').exists()

def test_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    from clip_dfgs import pedestrians
    def broken(*args): raise KeyboardInterrupt
    monkeypatch.setattr(pedestrians, '_each', broken)
    with pytest.raises(KeyboardInterrupt): pedestrians.make_domain(tmp_path/'x', seed=0, identities=4, progress=False)
    assert list(tmp_path.iterdir()) == []
