"The command line: `clip_dfgs.cli.main.main`. No name is handed out here, since `main` is a module."
from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
