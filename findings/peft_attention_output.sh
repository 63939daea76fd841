#!/usr/bin/env bash
# peft 0.21.2 with torch 2.14.1 and open_clip_torch 3.3.0: LoRA on `out_proj`, a usual target, makes adapters in CLIP's
# attention that never learn. nn.MultiheadAttention hands the weight of `out_proj` to a function and doesn't call the
# layer, so the adapter isn't in the graph: no gradient, no warning while other targets (here `c_fc`) do learn, and the
# adapters count as trainable parameters. Named as `attn`, the attention layer gets adapters that do learn, those of its
# `out_proj` among them.
# Seen: "targets out_proj, c_fc: 8 adapters, without a gradient: 4, all of out_proj" and "targets attn, c_fc: 12
# adapters, without a gradient: 0".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 \
    peft==0.21.2 open_clip_torch==3.3.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from open_clip.transformer import VisionTransformer
from peft import LoraConfig, get_peft_model

def adapters(targets):
    torch.manual_seed(0)
    tower = VisionTransformer(image_size=64, patch_size=16, width=64, layers=2, heads=4, mlp_ratio=2, output_dim=32)
    model = get_peft_model(tower, LoraConfig(r=4, target_modules=targets))
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    return {name: p.grad is not None for name, p in model.named_parameters() if p.requires_grad}

found, whole = adapters(['out_proj', 'c_fc']), adapters(['attn', 'c_fc'])
idle = [name for name, learns in found.items() if not learns]
print(f'targets out_proj, c_fc: {len(found)} adapters, without a gradient: {len(idle)}, all of out_proj')
print(f'targets attn, c_fc: {len(whole)} adapters, without a gradient: {len(whole) - sum(whole.values())}')
assert len(found) == 8 and len(idle) == 4 and all('out_proj' in name for name in idle)
assert len(whole) == 12 and all(whole.values())
PYTHON
