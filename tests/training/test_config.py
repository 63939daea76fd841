"What a run is told: kept as JSON, named as it is, and refused where it cannot work."
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import config, rows_of

from clip_dfgs.training.config import RECIPES, Stage, TrainConfig, check_config, config_dict, config_from
from clip_dfgs.sampling.graph import nearest_across_domains
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.training.trainer import fit


@pytest.mark.parametrize('name', RECIPES)
def test_a_config_is_read_as_it_was_written(name):
    assert config_from(config_dict(RECIPES[name])) == RECIPES[name]


def test_a_callable_sampler_is_written_as_its_place():
    from fractions import Fraction
    told = replace(TrainConfig(), sampler=Fraction)
    assert config_dict(told)['sampler'] == 'fractions:Fraction' and check_config(told, 100) is None
    assert config_from(config_dict(told)).sampler == 'fractions:Fraction'


def test_recipes_are_what_their_papers_say():
    clip_reid, clip_dfgs, follow_up = (RECIPES[n] for n in ('clip_reid', 'clip_dfgs', 'follow_up'))
    assert clip_reid.adapt is None and clip_reid.sampler == 'pk' and clip_reid.image_size == (256, 128)
    assert clip_reid.prompts.epochs == 120 and clip_reid.prompts.lr == 3.5e-4
    assert clip_reid.finetune.lr == 5e-6 and clip_reid.finetune.id_weight == .25
    assert clip_dfgs.adapt is not None and clip_dfgs.order == 'paper'
    assert (clip_dfgs.sampler, clip_dfgs.graph, clip_dfgs.k, clip_dfgs.skip_nearest) == ('dfgs', 'text', 10, 2)
    assert replace(clip_dfgs, adapt=None, sampler='pk', order='complete', graph='image', skip_nearest=0) == clip_reid
    assert (follow_up.graph, follow_up.k, follow_up.skip_nearest, follow_up.finetune.margin) == ('image', 15, 0, None)
    assert follow_up.augment.augmix == .6 and follow_up.finetune.batch == 128


STEP = dict(steps=1, batch=16)

@pytest.mark.parametrize('change, words', [
    (dict(sampler='dfg'), "did you mean 'dfgs'"),
    (dict(graph='txt'), "did you mean 'text'"),
    (dict(order='papre'), "did you mean 'paper'"),
    (dict(metric='cosin'), "did you mean 'cosine'"),
    (dict(neighbors_from='withn'), "did you mean 'within'"),
    (dict(neighbors_from='across'), 'an identity has 0 to choose from'),
    (dict(sampler='nowhere:Sampler'), 'nowhere:Sampler.* is not there'),
    (dict(track='wand'), "did you mean 'wandb'"),
    (dict(precision='half'), 'bf16'),
    (dict(log_steps=0), 'log_steps is 0'),
    (dict(k=0), 'k is 0'),
    (dict(pk_ratio=2.), 'pk_ratio is 2.0'),
    (dict(pk_ratio='adapt'), "or 'adaptive'"),
    (dict(pk_ratio='adaptive', sampler='gs'), 'not for gs'),
    (dict(pk_ratio='adaptive', order='released'), 'the released order'),
    (dict(adapt=Stage(steps=1, batch=16, norm='froze')), "did you mean 'frozen'"),
    (dict(temperature=0.), 'temperature is 0.0'),
    (dict(adapt=Stage()), 'neither steps nor epochs'),
    (dict(adapt=Stage(steps=1, batch=10, instances=4)), 'multiple'),
    (dict(adapt=Stage(steps=1, batch=64)), '12'),
    (dict(adapt=Stage(steps=1, batch=4)), 'at least two'),
    (dict(adapt=Stage(steps=-1, epochs=3)), 'adapt: steps is -1; it is to be int, at least 0'),
    (dict(finetune=Stage(epochs=-3, batch=16)), 'finetune: epochs is -3'),
    (dict(adapt=Stage(**STEP, lr=float('nan'))), 'lr is nan'),
    (dict(adapt=Stage(**STEP, head_lr=-1.)), 'head_lr is -1'),
    (dict(adapt=Stage(**STEP, mining_temperature=float('nan'))), 'mining_temperature is nan'),
    (dict(adapt=Stage(**STEP, floor=-2.)), 'floor is -2'),
    (dict(adapt=Stage(**STEP, margin=float('nan'))), 'margin is nan'),
    (dict(adapt=Stage(**STEP, triplet_on=('pool',))), "did you mean 'pooled'"),
    (dict(adapt=Stage(**STEP, triplet_on=(), id_weight=0.)), 'adapt: every loss has weight 0'),
    (dict(adapt=Stage(**STEP, id_weight=0., triplet_weight=0.)), 'adapt: every loss has weight 0'),
    (dict(prompts=None, finetune=Stage(**STEP, id_weight=0., triplet_weight=0.)), 'finetune: every loss has weight 0'),
    (dict(sampler='gs', skip_nearest=9), 'needs 12 neighbors and an identity has 11'),
    (dict(skip_nearest=11), 'needs 12 neighbors and an identity has 11'),
    (dict(prompts=None, graph='text'), 'needs the prompts stage'),
    (dict(one_domain=True), "one_domain is for the sampler 'pk'"),
    (dict(sampler='pk', one_domain=True, finetune=None), "one_domain is for the sampler 'pk'"),
    (dict(sampler='pk', one_domain=True), 'it needs two domains or more'),
])
def test_impossible_settings(change, words):
    with pytest.raises(ValueError, match=words): check_config(replace(config(), **change), 12, domains=[12])


def test_nothing_is_made_for_impossible_settings(world, tmp_path):
    for change, words in ((dict(sampler='dfg'), "did you mean 'dfgs'"), (dict(clip='ViT-B-61'), 'ViT-B-16')):
        with pytest.raises(ValueError, match=words): fit(rows_of(world), replace(config(), **change), tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_a_source_domain_that_cannot_fill_a_batch_is_refused_at_once():
    told = replace(config(), sampler='pk', one_domain=True)
    fill = told.finetune.batch//told.finetune.instances
    check_config(told, 20, domains=[fill, 20 - fill])
    with pytest.raises(ValueError, match=f'none below {fill}'): check_config(told, 20, domains=[fill - 1, 21 - fill])


@pytest.mark.parametrize('rule, k, skip_nearest, domains, words', [
    ('within', 5, 0, [6, 9], None), ('within', 5, 1, [6, 9], 'needs 6 neighbors and an identity has 5'),
    ('across', 6, 0, [6, 9], None), ('across', 7, 0, [6, 9], 'needs 7 neighbors and an identity has 6'),
    ('balanced', 9, 0, [6, 9], None), ('balanced', 11, 0, [6, 9], 'needs 6 neighbors and an identity has 5')])
def test_a_rule_that_the_domains_cannot_keep_is_refused_at_once(rule, k, skip_nearest, domains, words):
    told = replace(config(), neighbors_from=rule, k=k, skip_nearest=skip_nearest)
    features, domain = torch.randn(15, 2), np.repeat([0, 1], domains)
    if words is None:
        check_config(told, 15, domains=domains)
        nearest_across_domains(features, domain, k, rule, skip_nearest)                     # and it can be kept
        return
    with pytest.raises(ValueError, match=words): check_config(told, 15, domains=domains)
    with pytest.raises(ValueError): nearest_across_domains(features, domain, k, rule, skip_nearest)


@pytest.mark.parametrize('change, words', [
    (dict(finetune=Stage(**STEP, id_weight=0., triplet_weight=0.)), 'every loss has weight 0'),
    (dict(graph='text'), 'no text encoder'),
    (dict(graph='dual', sampler='gs'), 'no text encoder'),
    (dict(prompts=Stage(steps=1)), 'no text encoder'),
])
def test_a_model_without_words(tmp_path, change, words):
    model = ReIDModel.create('timm:resnet10t', None, num_ids=12, image_size=(64, 32))
    told = replace(config(init=str(tmp_path)), adapt=None, prompts=None)
    check_config(told, 12, model)
    with pytest.raises(ValueError, match=words): check_config(replace(told, **change), 12, model)


@pytest.mark.parametrize('change', [
    dict(shuffle_neighbors='no'), dict(gather='false'), dict(compile=1), dict(k='5'), dict(k=5.),
    dict(graph_text_weight='1'), dict(log_steps=None), dict(stage=dict(steps='5')), dict(stage=dict(lr='1e-4')),
    dict(stage=dict(normalize='no')), dict(stage=dict(batch=16.))])
def test_words_in_place_of_numbers_and_of_yes_and_no_are_named(change):
    base = config()
    stage = change.get('stage')
    changed = replace(base, finetune=replace(base.finetune, **stage)) if stage else replace(base, **change)
    name = next(iter(stage or change))
    with pytest.raises(ValueError, match=f'{name} is .*; it is'): check_config(changed, 20)
