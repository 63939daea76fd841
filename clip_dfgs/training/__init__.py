"Settings, losses, stages and the trainer."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    trainer='fit',
    config='TrainConfig Stage RECIPES recipe',
    losses='batch_hard_triplet id_loss image_text_contrastive image_to_text_ce',
    run='Run')
