__version__ = "0.1.0"

from ._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    data__datasets='load_dataset check_dataset',
    data__records='pool check_records hold_out',
    synthetic__domain='render_domain',
    sampling__graph='nearest_identities identity_features',
    sampling__samplers='PKSampler GraphSampler DepthFirstGraphSampler',
    sampling__diagnostics='epoch_statistics',
    models__reid_model='ReIDModel',
    training__config='Stage TrainConfig RECIPES',
    training__trainer='fit',
    evaluation__metrics='evaluate',
    evaluation__bootstrap='compare',
    inference__evaluator='evaluate_records',
    inference__embed='FeatureExtractor load_model',
    inference__onnx='OnnxExtractor',
    gallery__gallery='Gallery',
    experiments__studies='compare_variants',
    viz__charts='plot_history',
    viz__images='plot_ranked_gallery')
