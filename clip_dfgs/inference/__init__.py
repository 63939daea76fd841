"Features from images, attention maps and ONNX."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    embed='embed_images FeatureExtractor load_model tracklet_features',
    evaluator='by_target evaluate_records join_splits results_table',
    attention='attention_maps',
    onnx='OnnxExtractor export_onnx')
