"Figures and reports."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    charts='plot_history plot_cmc plot_distances plot_results plot_differences',
    images='plot_batches plot_epoch plot_ranked_gallery',
    runs='plot_space plot_attention plot_prompts',
    report='write_report')
