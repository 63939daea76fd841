"Record tables, parsers, images and loaders."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    datasets='load_dataset check_dataset identity_splits published_splits',
    records='check_records pool hold_out',
    transforms='Augment',
    loader='cached_images ImageDataset make_loader',
    image_io='load_image')
