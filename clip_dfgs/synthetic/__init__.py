"Rendered pedestrians."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    domain='render_domain Camera',
    people='Person caption')
