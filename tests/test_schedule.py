"Study C by hand: where a lead crosses zero, and what is compared."
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
import claims
import study_schedule as schedule

STEPS = np.array([60, 120, 180, 240])


@pytest.mark.parametrize('lead, step', [
    ([-1, -1, 1, 2], 150),          # half way between two ranks
    ([-3, 1, 1, 1], 105),           # three quarters of the way
    ([-1, 2, -2, 2], 210),          # the last crossing counts
    ([-1, 1, 1, 0], 240),           # back at zero in the end: never for good
    ([-2, -2, -2, -1], 240),
    ([1, 2, 3, 4], 0)])             # ahead from the first rank on
def test_crossing_by_hand(lead, step): assert schedule.crossing(np.array(lead, float), STEPS) == step


def ranks(leads):
    "A table in which PK has .5 in every world and DFGS leads by so many points."
    rows = [(variant, world, step, target, .5 + (at/100 if variant.startswith('DFGS') else 0))
            for kind, worlds in leads.items() for world, lead in enumerate(worlds) for step, at in zip(STEPS, lead)
            for variant in ('PK' + kind, 'DFGS' + kind) for target in ('t0', 't1')]
    rows += [('PK', 0, 240, 'held-out', 0.), ('start', 0, 0, 't0', 0.)]
    return pd.DataFrame(rows, columns='variant world step target mAP'.split())


def test_crossings_of_worlds_by_hand(tmp_path):
    ranks({'': [[-1, -1, 1, 2]]*3, ' constant': [[-2, -2, -2, 2]]*3}).to_csv(tmp_path/'rows.csv', index=False)
    found = schedule.crossings(schedule.unseen(tmp_path), draws=50)
    expected = {name: pytest.approx(value) for name, value in
                dict(cosine=150, constant=210, difference=60, low=60, high=60, before=1).items()}
    assert found == expected | dict(worlds=3)


def test_interval_is_over_worlds(tmp_path):
    ranks({'': [[-1, -1, 1, 1]]*4, ' constant': [[-1, -1, 1, 1], [-1, -1, 1, 1], [-1, -1, -1, 1], [-1, -1, -1, 1]]}
          ).to_csv(tmp_path/'rows.csv', index=False)
    found = schedule.crossings(schedule.unseen(tmp_path))
    assert found['low'] == pytest.approx(0) and found['high'] == pytest.approx(60) and found['worlds'] == 4
    assert found['difference'] == pytest.approx(30)                            # the mean lead is zero at 180
    assert found['before'] == 1                                                # the latest is 210, the fall at 216


def test_a_lead_that_comes_with_the_fall_is_not_before_it(tmp_path):
    leads = {'': [[-1, -1, 1, 1]]*2, ' constant': [[-1, -1, 1, 1], [-9, -9, -9, 1]]}
    ranks(leads).to_csv(tmp_path/'rows.csv', index=False)
    found = schedule.crossings(schedule.unseen(tmp_path))       # together 228, alone 150 and 234; the fall is at 216
    assert found['constant'] == pytest.approx(228) and found['before'] == pytest.approx(.25, abs=.02)


def test_a_world_without_all_four_runs_is_left_out(tmp_path):
    table = ranks({'': [[-1, -1, 1, 1]]*3, ' constant': [[-1, -1, 1, 1]]*3})
    table[~((table['world'] == 2) & (table['variant'] == 'DFGS constant'))].to_csv(tmp_path/'rows.csv', index=False)
    assert schedule.crossings(schedule.unseen(tmp_path), draws=5)['worlds'] == 2


@pytest.mark.parametrize('seed', range(5))
def test_the_other_code_of_the_claims_agrees(tmp_path, seed):
    rng = np.random.default_rng(seed)
    ranks({kind: rng.normal(0, 1, (4, 4)) for kind in ('', ' constant')}).to_csv(tmp_path/'rows.csv', index=False)
    steps, leads = claims.leads_of(tmp_path/'rows.csv')
    mAP = schedule.unseen(tmp_path)
    for lead, ours in zip(leads, schedule.leads(mAP).values()): np.testing.assert_allclose(lead, ours)
    ours = schedule.crossings(mAP, draws=5)
    for lead, name in zip(leads, schedule.RATES):
        assert claims.crossing(lead.mean(0), steps) == pytest.approx(ours[name])


def test_the_turn_is_half_way():
    tuplets = dict(labels=np.repeat(np.arange(40), 4), cameras=np.tile([0, 1], 80), batch=16, instances=4, seed=0)
    first, then = schedule.RandomFirst(**tuplets), schedule.WalkFirst(**tuplets)
    for epoch in range(2*schedule.TURN):
        for sampler in (first, then): sampler.set_epoch(epoch)
        assert (first.pk_ratio, then.pk_ratio) == ((1., 0.) if epoch < schedule.TURN else (0., 1.))
