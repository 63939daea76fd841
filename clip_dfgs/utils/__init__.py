"Checks, files and tensors."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    checks='DatasetError',
    files='atomic_write')
