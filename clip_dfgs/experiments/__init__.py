"Protocols, studies and the demo."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    protocols='PROTOCOLS PUBLISHED run_protocol train_matrix',
    studies='compare_variants Study')
