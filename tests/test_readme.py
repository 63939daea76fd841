"What README and guides tell people to type is what is run here."
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clip_dfgs.cli import main
from clip_dfgs.models.reid_model import ReIDModel
from clip_dfgs.synthetic.domain import render_domain
from clip_dfgs.training.config import TrainConfig

root = Path(__file__).resolve().parent.parent
README = (root/'README.md').read_text()


def snippets(text):
    "The Python blocks of a Markdown text."
    return re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder as the README's reader has it: two sources, a target, some crops."
    folder = tmp_path_factory.mktemp('reader')
    for seed, name in enumerate(('market', 'campus', 'elsewhere')):
        render_domain(folder/'data'/name, 900 + seed, identities=24, cameras=2, images_per_camera=2, progress=False)
    (folder/'crops').mkdir()
    images = sorted((folder/'data'/'market'/'query').iterdir())[:6]
    for name, image in zip('abcdef', images): shutil.copy(image, folder/'crops'/f'{name}.jpg')
    ReIDModel.create('pedestrians', 'pedestrians').save(folder/'runs'/'trained'/'model')
    return folder


def test_training_snippet(place, monkeypatch, capsys):
    "The first block, with stages of two steps."
    monkeypatch.chdir(place)
    code = snippets(README)[0]
    assert "TrainConfig(sampler='dfgs')" in code
    usual = TrainConfig(sampler='dfgs')
    short = replace(usual, adapt=replace(usual.adapt, steps=2, batch=16), precision='no', cache=str(place/'cache'),
                    prompts=replace(usual.prompts, steps=2), finetune=replace(usual.finetune, steps=2, batch=16))
    exec(code.replace("TrainConfig(sampler='dfgs')", 'short'), dict(short=short))
    assert 'mAP' in capsys.readouterr().out and (place/'runs'/'first'/'model').is_dir()


def test_sampler_snippet():
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 5)
    seen = []
    dataset = torch.utils.data.TensorDataset(torch.arange(100))
    around = dict(labels=labels, cameras=None, dataset=dataset, epochs=2, train=seen.append,
                  features=torch.from_numpy(draw.normal(size=(100, 8))).float())
    exec(snippets(README)[1], around)
    assert len(seen) == 2*len(around['sampler']) and set(torch.cat([b[0] for b in seen]).tolist()) == set(range(100))


def test_search_snippet(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(snippets(README)[2].replace('runs/first', 'runs/trained'), {})
    assert 'crops' in capsys.readouterr().out


def test_command_in_the_readme(place, monkeypatch, capsys):
    "The training command, with two steps a stage."
    monkeypatch.chdir(place)
    command = next(line for line in README.splitlines() if line.startswith('clip-dfgs train'))
    words = command.replace('runs/first', 'runs/second').split()[1:]
    main([*words, '--steps', '2', '--adapt-steps', '2', '--prompt-steps', '2', '--batch', '16'])
    assert 'mAP' in capsys.readouterr().out


def test_search_commands_in_the_readme(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    starts = tuple(f'clip-dfgs {name} ' for name in ('render', 'embed', 'search'))
    lines = README.replace('runs/first', 'runs/trained').splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith(starts)]
    assert [words[0] for words in commands].count('search') >= 1
    for words in commands: main(words + ['--identities', '12']*(words[0] == 'render'))
    assert 'crops' in capsys.readouterr().out and (place/'found.png').is_file()


@pytest.mark.slow
def test_the_search_of_the_readme_finds_what_it_says(tmp_path, monkeypatch):
    "The commands as they are, with all identities."
    monkeypatch.chdir(tmp_path)
    for line in re.findall('^clip-dfgs (.*town.*)', README, re.M):
        if line.startswith('serve'): continue
        main(shlex.split(line) + ['--csv', 'answers.csv']*line.startswith('search'))
    captions = pd.read_csv('town/captions.csv').set_index('pid')['caption']
    first = captions[pd.read_csv('answers.csv')['identity']]
    shown = first.str.contains(r'a man with .* a yellow[^,]* jacket,.* backpack')
    assert len(first) == 10 and shown.sum() >= 8  # README: nine


def test_links_are_absolute():
    "A relative link works on GitHub and not on PyPI; images are the exception, which PyPI leaves out."
    links = re.findall(r'(?<!!)\[[^]]*\]\(([^)]*)\)', README)
    assert links and all(link.startswith('https://') for link in links)
