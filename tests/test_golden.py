"What must not change when code is moved, against the recorded numbers of tests/golden.json (see tests/golden.py)."
import json

import golden
import pytest

KNOWN = json.loads(golden.FILE.read_text())
SLOW = dict(models=pytest.mark.slow) # towers of real size


def compare(part, found, known):
    "Whole numbers and texts are equal, others within the rounding of another machine."
    rough = dict(rel=5e-2, abs=2e-3) if part == 'training' else dict(rel=1e-3, abs=1e-5)
    for name, value in known.items():
        same = value if isinstance(value, str) else pytest.approx(value, **rough)
        assert found[name] == same, name


@pytest.mark.parametrize('part', [pytest.param(part, marks=SLOW.get(part, ())) for part in golden.PARTS])
def test_numbers_are_as_recorded(part):
    found, known = golden.measured(part), {k: v for k, v in KNOWN[part].items() if not k.startswith('exact')}
    assert known.keys() == {k for k in found if not k.startswith('exact')}
    compare(part, found, known)


def test_numbers_of_small_models_are_as_recorded():
    found = golden.measured('models', full_size=False)
    assert {name.split(':')[0] for name in found} == {'small', 'small cameras', 'resnet18'}
    compare('models', found, {name: KNOWN['models'][name] for name in found})
