"The identity graph and the batch samplers that walk it."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    graph='identity_features nearest_identities nearest_across_domains save_graph load_graph',
    depth_first='camera_tuplets depth_first_batches',
    samplers='PKSampler GraphSampler DepthFirstGraphSampler StatefulBatchSampler AdaptivePKRatio update_graph',
    diagnostics='epoch_statistics')
