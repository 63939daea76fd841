"""Run the notebooks as tests: `python tests/notebooks.py [PATH]`, as `nbdev_test` does, in less time.

Two processes are forked from one that has imported what the notebooks need. What is imported is never garbage, so it is
frozen: otherwise each collection, one a stage of training, walks through 700,000 objects.
"""
import gc
import importlib
import sys

from nbdev.test import nbdev_test

if __name__ == '__main__':
    for name in ('IPython', 'matplotlib.pyplot', 'open_clip', 'torch._dynamo', 'clip_dfgs.cli.commands',
                 'clip_dfgs.experiments.studies', 'clip_dfgs.inference.onnx'):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    nbdev_test(path=sys.argv[1] if len(sys.argv) > 1 else 'nbs', n_workers=2, timing=True)
