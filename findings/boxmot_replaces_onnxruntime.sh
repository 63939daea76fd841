#!/usr/bin/env bash
# boxmot 25.0.0: opening an ONNX re-ID file runs pip, which uninstalls the onnxruntime that is there (here 1.32.0) and
# installs 1.24.3, the only version that it accepts for ONNX files (a plain `pip install boxmot` does not ask for it, the
# extra `onnx` does). The process goes on with the version that it had imported; the next one, of any program in the same
# environment, runs the other.
# Seen: "before 1.32.0, after 1.24.3".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check boxmot==25.0.0 onnxruntime==1.32.0 onnx==1.23.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import pathlib
import onnx
from onnx import helper, TensorProto

images = helper.make_tensor_value_info('images', TensorProto.FLOAT, ['batch', 3, 256, 128])
features = helper.make_tensor_value_info('features', TensorProto.FLOAT, ['batch', 3, 1, 1])
graph = helper.make_graph([helper.make_node('GlobalAveragePool', ['images'], ['features'])], 'mean', [images], [features])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9), 'mean.onnx')

before = importlib.metadata.version('onnxruntime')
from boxmot.reid.core.runtime import ReID
ReID(pathlib.Path('mean.onnx'), device='cpu')
after = importlib.metadata.version('onnxruntime')
print(f'before {before}, after {after}')
assert (before, after) == ('1.32.0', '1.24.3')
PYTHON
