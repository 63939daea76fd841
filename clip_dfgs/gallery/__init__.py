"Galleries in memory and on disk, search and a page."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    gallery='Gallery find_images',
    store='embed_gallery EmbedSummary',
    search='search_sheet',
    app='serve_gallery')
