"OpenAI's files, spelled out: names, shapes and precisions of their tensors, and the forward pass in plain operations."
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

# a small architecture, as `openai_state` and as open_clip describe it
SMALL = dict(width=64, layers=2, patch=8, side=4, embed=32, text_width=64, text_layers=2, vocab=49408)
CONFIG = dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=64, patch_size=8),
              text_cfg=dict(width=64, heads=1, layers=2))


def openai_state(seed=0, width=768, layers=12, patch=16, side=14, embed=512, text_width=512, text_layers=12,
                 vocab=49408, context=77, half=True):
    "Random weights with the names, shapes and precisions of OpenAI's ViT files, of a trained model's size."
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, std): return torch.randn(*shape, generator=generator)*std

    def blocks(prefix, w, n):
        out = {}
        for i in range(n):
            b = f'{prefix}.resblocks.{i}.'
            out[b + 'ln_1.weight'], out[b + 'ln_1.bias'] = 1 + draw(w, std=.1), draw(w, std=.1)
            out[b + 'ln_2.weight'], out[b + 'ln_2.bias'] = 1 + draw(w, std=.1), draw(w, std=.1)
            out[b + 'attn.in_proj_weight'] = draw(3*w, w, std=1.5*w**-.5)
            out[b + 'attn.in_proj_bias'] = draw(3*w, std=.1)
            out[b + 'attn.out_proj.weight'] = draw(w, w, std=.5*w**-.5)
            out[b + 'attn.out_proj.bias'] = draw(w, std=.1)
            out[b + 'mlp.c_fc.weight'] = draw(4*w, w, std=3*w**-.5)
            out[b + 'mlp.c_fc.bias'] = draw(4*w, std=.2)
            out[b + 'mlp.c_proj.weight'] = draw(w, 4*w, std=.4*w**-.5)
            out[b + 'mlp.c_proj.bias'] = draw(w, std=.1)
        return out

    state = {
        'visual.class_embedding': draw(width, std=.3),
        'visual.positional_embedding': draw(side*side + 1, width, std=.3),
        'visual.proj': draw(width, embed, std=width**-.5), 'visual.conv1.weight': draw(width, 3, patch, patch, std=.05),
        'visual.ln_pre.weight': 1 + draw(width, std=.1), 'visual.ln_pre.bias': draw(width, std=.1),
        'visual.ln_post.weight': 1 + draw(width, std=.1), 'visual.ln_post.bias': draw(width, std=.1),
        'positional_embedding': draw(context, text_width, std=.05),
        'text_projection': draw(text_width, embed, std=text_width**-.5),
        'logit_scale': torch.tensor(4.6), 'token_embedding.weight': draw(vocab, text_width, std=.05),
        'ln_final.weight': 1 + draw(text_width, std=.1), 'ln_final.bias': draw(text_width, std=.1)}
    state |= blocks('visual.transformer', width, layers) | blocks('transformer', text_width, text_layers)
    if not half: return state
    linear = 'attn.', 'mlp.', 'conv1', 'proj'  # in half precision; norms, embeddings and scale in full
    return {k: v.half() if any(part in k for part in linear) else v for k, v in state.items()}


def marked(state):
    "With the three numbers that OpenAI's files carry."
    numbers = dict(input_resolution=32, context_length=77, vocab_size=49408)
    return state | {k: torch.tensor(v) for k, v in numbers.items()}


class Node(nn.Module):
    def forward(self, x): return x


def archive(state, path):
    "Write a TorchScript archive whose state dict is `state`."
    root = Node()
    for key, value in state.items():
        *parts, leaf = key.split('.')
        node = root
        for part in parts:
            if part not in node._modules: node.add_module(part, Node())
            node = node._modules[part]
        if value.is_floating_point(): node.register_parameter(leaf, nn.Parameter(value))
        else: node.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(root, torch.zeros(1)), str(path))


# ---------------------------------------------------------------- the definition
def layer_norm(x, state, name):
    x = x - x.mean(-1, keepdim=True)
    return x/(x.square().mean(-1, keepdim=True) + 1e-5).sqrt()*state[name + '.weight'] + state[name + '.bias']


def linear(x, state, name): return x @ state[name + '.weight'].T + state[name + '.bias']


def block(x, state, b, heads, causal=False, quick=True):
    n, length, width = x.shape
    products = layer_norm(x, state, b + 'ln_1') @ state[b + 'attn.in_proj_weight'].T + state[b + 'attn.in_proj_bias']
    q, k, v = products.split(width, 2)
    out = []
    for h in range(heads):
        cut = slice(h*width//heads, (h + 1)*width//heads)
        logits = q[..., cut] @ k[..., cut].transpose(1, 2)/math.sqrt(width//heads)
        if causal: logits = logits + torch.full((length, length), -torch.inf).triu(1)
        out.append(logits.softmax(-1) @ v[..., cut])
    x = x + linear(torch.cat(out, 2), state, b + 'attn.out_proj')
    hidden = linear(layer_norm(x, state, b + 'ln_2'), state, b + 'mlp.c_fc')
    hidden = hidden*torch.sigmoid(1.702*hidden) if quick else F.gelu(hidden)
    return x + linear(hidden, state, b + 'mlp.c_proj')


def slow_resize(grid, height, width):
    "Bilinear, half-pixel centers, edges clamped; grid [h,w,D], one output at a time."
    h, w, _ = grid.shape
    out = torch.empty(height, width, grid.shape[2])
    for i in range(height):
        for j in range(width):
            y, x = max((i + .5)*h/height - .5, 0), max((j + .5)*w/width - .5, 0)
            y0, x0 = min(int(y), h - 1), min(int(x), w - 1)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            a, b = y - y0, x - x0
            above = (1 - b)*grid[y0, x0] + b*grid[y0, x1]
            below = (1 - b)*grid[y1, x0] + b*grid[y1, x1]
            out[i, j] = (1 - a)*above + a*below
    return out


def image_features(images, state, heads, layers, patch=16, stride=16, side=14, quick=True):
    "Class token before the last block, after it, and projected."
    s = {k.removeprefix('visual.'): v.float() for k, v in state.items() if k.startswith('visual.')}
    n, _, height, width = images.shape
    rows, columns = (height - patch)//stride + 1, (width - patch)//stride + 1
    tokens = []
    for i in range(rows):
        for j in range(columns):
            pixels = images[:, :, i*stride:i*stride + patch, j*stride:j*stride + patch]
            tokens.append(pixels.reshape(n, -1) @ s['conv1.weight'].flatten(1).T)
    table = s['positional_embedding']
    grid = slow_resize(table[1:].view(side, side, -1), rows, columns).flatten(0, 1)
    x = torch.cat([s['class_embedding'].expand(n, 1, -1), torch.stack(tokens, 1)], 1) + torch.cat([table[:1], grid])
    x = layer_norm(x, s, 'ln_pre')
    for i in range(layers):
        last = x[:, 0]
        x = block(x, s, f'transformer.resblocks.{i}.', heads, quick=quick)
    pooled = layer_norm(x[:, 0], s, 'ln_post')
    return last, pooled, pooled @ s['proj']


def text_feature(ids, state, heads, layers, table=None):
    "All 77 positions, read at the largest id; `table` embeds ids in place of the state's own table."
    s = {k: v.float() for k, v in state.items() if not k.startswith('visual.')}
    x = (s['token_embedding.weight'] if table is None else table)[ids] + s['positional_embedding']
    for i in range(layers): x = block(x, s, f'transformer.resblocks.{i}.', heads, causal=True)
    ends = (ids == 49407).int().argmax(1)
    return layer_norm(x, s, 'ln_final')[torch.arange(len(ids)), ends] @ s['text_projection']
