"CLIP towers, prompts and the re-ID model."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    reid_model='ReIDModel',
    weights='load_clip read_weights',
    prompts='PromptLearner',
    small_clip='load_small_clip')
