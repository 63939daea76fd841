#!/usr/bin/env bash
# ultralytics 8.4.190: an ONNX re-ID file whose batch is free is run once for all boxes of a frame if it has no
# metadata, and once for every box if it has any entry that is not Ultralytics's own (here: author). The features are
# equal; the time is that of as many calls as there are boxes. An entry `args` with "{'dynamic': True}" mends it.
# Seen: "no metadata: 1 call(s) for 8 boxes; author: 8 call(s) for 8 boxes; author and args: 1 call(s) for 8 boxes; same
# features True".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check ultralytics==8.4.190 onnxruntime==1.32.0 onnx==1.23.2 \
    lap==0.5.13
cd "$folder"
YOLO_CONFIG_DIR="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import helper, TensorProto
from ultralytics.trackers.utils.reid import ReID

calls, run = [], onnxruntime.InferenceSession.run
def counted(session, names, feed, *more):
    calls.append(len(next(iter(feed.values()))))
    return run(session, names, feed, *more)
onnxruntime.InferenceSession.run = counted

images = helper.make_tensor_value_info('images', TensorProto.FLOAT, ['batch', 3, 256, 128])
features = helper.make_tensor_value_info('features', TensorProto.FLOAT, ['batch', 192])
shape = helper.make_tensor('shape', TensorProto.INT64, [2], [0, 192])
nodes = [helper.make_node('AveragePool', ['images'], ['small'], kernel_shape=[32, 16], strides=[32, 16]),
         helper.make_node('Reshape', ['small', 'shape'], ['features'])]
graph = helper.make_graph(nodes, 'means', [images], [features], [shape])
frame = np.random.default_rng(0).integers(0, 256, (400, 800, 3), dtype=np.uint8)
boxes = np.array([[60 + 90*i, 200, 60, 200] for i in range(8)], np.float32) # center, width, height

said, found = {}, []
for name, entries in (('no metadata', {}), ('author', dict(author='me')),
                      ('author and args', dict(author='me', args="{'dynamic': True}"))):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    helper.set_model_props(model, entries)
    onnx.save(model, 'means.onnx')
    encode = ReID('means.onnx', device='cpu')
    calls.clear()
    found.append(np.stack(encode(frame, boxes)))
    said[name] = len(calls)
same = all(np.allclose(found[0], one) for one in found)
print('; '.join(f'{name}: {n} call(s) for 8 boxes' for name, n in said.items()) + f'; same features {same}')
assert same and said == {'no metadata': 1, 'author': 8, 'author and args': 1}
PYTHON
