"Distances, CMC, mAP, mINP, re-ranking and intervals."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    metrics='evaluate nearest_gallery RetrievalResult verification',
    matching='matches_and_junk',
    bootstrap='compare t_interval',
    reranking='k_reciprocal_distances',
    distances='distance_blocks')
