__version__ = "0.1.0"

# The names that a user needs, each fetched from its module when it is first asked for: `import clip_dfgs` is light.
_HOME = dict(
    load_dataset='datasets', check_dataset='datasets', pool='records', check_records='records', hold_out='records',
    make_domain='pedestrians',
    nearest_identities='graph', identity_features='graph',
    PKSampler='samplers', GraphSampler='samplers', DepthFirstGraphSampler='samplers', epoch_report='epochs',
    ReIDModel='models', Stage='config', TrainConfig='config', RECIPES='config', fit='trainer',
    evaluate='evaluation', compare='evaluation', evaluate_records='features',
    FeatureExtractor='gallery', Gallery='gallery', OnnxExtractor='export', compare_variants='studies')
__all__ = ['__version__', *_HOME]


def __getattr__(name):
    "A public name, from the module that it lives in."
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__(): return sorted({*globals(), *_HOME})
