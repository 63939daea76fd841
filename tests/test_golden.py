"What must not change when code is moved, against the recorded numbers of tests/golden.json (see tests/golden.py)."
import json

import golden
import pytest

KNOWN = json.loads(golden.FILE.read_text())


@pytest.mark.parametrize('part', golden.PARTS)
def test_numbers_are_as_recorded(part):
    "Whole numbers and texts are equal, others within the rounding of another machine."
    found, known = golden.measured(part), {k: v for k, v in KNOWN[part].items() if not k.startswith('exact')}
    assert known.keys() == {k for k in found if not k.startswith('exact')}
    rough = dict(rel=5e-2, abs=2e-3) if part == 'training' else dict(rel=1e-3, abs=1e-5)
    for name, value in known.items():
        same = value if isinstance(value, str) else pytest.approx(value, **rough)
        assert found[name] == same, name
