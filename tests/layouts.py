"Random data sets for the tests of the walk and the samplers."
import numpy as np
import torch
from hypothesis import strategies as st

from clip_dfgs.sampling.graph import nearest_identities
from clip_dfgs.sampling.samplers import DepthFirstGraphSampler, GraphSampler, PKSampler

KINDS = [PKSampler, GraphSampler, DepthFirstGraphSampler]


@st.composite
def layouts(draw):
    "labels, cameras, P, K, graph and seed of a random data set."
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=25))
    seed = draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    cameras = rng.integers(0, draw(st.integers(1, 5)), len(labels))
    p, k = draw(st.integers(1, len(counts))), draw(st.integers(1, 6))
    points = torch.as_tensor(rng.normal(size=(len(counts), 3)))
    graph = nearest_identities(points, max(p - 1, draw(st.integers(0, 6))))
    return labels, cameras, p, k, graph, seed


def make(kind, layout, **options):
    "A sampler of a layout."
    labels, cameras, p, k, graph, seed = layout
    if kind is not PKSampler: options = dict(neighbors=graph) | options
    return kind(labels, cameras, batch=p * k, instances=k, seed=seed, **options)


def grouped(groups, each, images, seed=0):
    "labels in random order, the group of each identity, and identity features in far-apart groups."
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(groups * each), images))
    group = rng.permutation(np.repeat(np.arange(groups), each))
    features = np.eye(groups)[group] * 50 + rng.normal(size=(groups * each, groups))
    return labels, group, torch.as_tensor(features, dtype=torch.float32)


def small(kind, **options):
    "A sampler of 20 people with 7 images each, with a graph if it takes one."
    labels, group, features = grouped(4, 5, 7)
    if kind is not PKSampler: options = dict(neighbors=nearest_identities(features, 3)) | options
    return kind(labels, batch=16, **options)
