"""The short programs that go home with a model: each uses its file without this project. Plain text, no torch here.

They stand beside `about.json` (classes, image size, what was measured) and print the class of every picture that they
are given: `python use.py PICTURE ...`. Each has `logits(x)`, (N, 3, H, W) in [0, 1] -> (N, K).
"""

from __future__ import annotations

_HEAD = '''"""{title} Needs: {needs}. Use it as: python use.py PICTURE ..."""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "about.json").read_text(encoding="utf-8"))
'''

_TAIL = """

if __name__ == "__main__":
    for path in sys.argv[1:]:
        size = (ABOUT["image_size"],) * 2
        pixels = np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        scores = np.asarray(logits({batch})[0])
        print(path, ABOUT["classes"][int(scores.argmax())], sep=": ")
"""
_NUMPY = "pixels.transpose(2, 0, 1)[None]"
_TORCH = f"torch.from_numpy({_NUMPY})"

_FUNCTIONAL = """W = load_file(HERE / "model.safetensors")


def conv(name, x, stride=1):
    if f"{name}.bias_map" in W:  # this convolution has swallowed the polarizer before it
        weight = W[f"{name}.conv.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2) + W[f"{name}.bias_map"]
    weight = W[f"{name}.weight"]
    return F.conv2d(x, weight, W.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def bn_relu(name, x):
    mean, var, gamma, beta = (W[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, mean, var, gamma, beta))


@torch.no_grad()
def logits(x):
"""

_PREACT = """    x = conv("net.conv1", (x - W["mean"]) / W["std"])
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"net.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if f"{name}.0.bias" in W:  # the polarizer, on the residual stream
                x, name = conv(f"{name}.0", x), f"{name}.1"
            h = bn_relu(f"{name}.bn1", x)
            if any(key.startswith(f"{name}.shortcut.") for key in W):
                x = conv(f"{name}.shortcut", h[:, :, ::stride, ::stride])
            x = x + conv(f"{name}.conv2", bn_relu(f"{name}.bn2", conv(f"{name}.conv1", h, stride)))
    return F.linear(x.mean((2, 3)), W["net.linear.weight"], W["net.linear.bias"])
"""

_VGG = """    x, i = (x - W["mean"]) / W["std"], 0
    for convolutions in (2, 2, 4, 4, 4):
        for _ in range(convolutions):
            x, i = bn_relu(f"net.features.{i + 1}", conv(f"net.features.{i}", x)), i + 3
        x, i = F.max_pool2d(x, 2), i + 1
    return F.linear(x.mean((2, 3)), W["net.linear.weight"], W["net.linear.bias"])
"""

_TORCHVISION = """W = load_file(HERE / "model.safetensors")
NET = torchvision.models.get_model(ABOUT["arch"].removeprefix("torchvision:"), num_classes=len(ABOUT["classes"]))


class WithMap(torch.nn.Module):
    def __init__(self, conv, bias_map):
        super().__init__()
        self.conv, conv.bias = conv, None
        self.register_buffer("bias_map", bias_map)

    def forward(self, x):
        return self.conv(x) + self.bias_map


if ABOUT["layer"] is not None:  # where the polarizer was
    kind, _, path = ABOUT["layer"].rpartition(":")
    conv = NET.get_submodule(path)
    if f"net.{path}.bias_map" in W:
        NET.set_submodule(path, WithMap(conv, W[f"net.{path}.bias_map"]))
    elif f"net.{path}.0.weight" in W:
        channels = conv.out_channels if kind == "after" else conv.in_channels
        pair = [torch.nn.Conv2d(channels, channels, 1), conv]
        NET.set_submodule(path, torch.nn.Sequential(*(pair[::-1] if kind == "after" else pair)))
    elif conv.bias is None:
        conv.bias = torch.nn.Parameter(torch.zeros(conv.out_channels))
STATE = NET.state_dict()
STATE.update({name[4:]: value for name, value in W.items() if name.startswith("net.")})
NET.load_state_dict(STATE)
NET.eval()


@torch.no_grad()
def logits(x):
    return NET((x - W["mean"]) / W["std"])
"""

_PT2 = """NET = torch.export.load(HERE / "model.pt2").module()


@torch.no_grad()
def logits(x):
    return NET(x)
"""

_ONNX = """SESSION = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])


def logits(x):
    return SESSION.run(None, {"images": np.ascontiguousarray(x, np.float32)})[0]
"""

POLARIZER = '''"""Put the polarizer of this folder into the network it was trained for. Needs: torch, safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent


def insert(net):
    """Filter the features of `net` from now on; returns the handle, whose remove() takes the polarizer out again.

    `net` is a torch module whose convolution (or block) has the name that polarizer.json calls its layer.
    """
    about, weights = json.loads((HERE / "polarizer.json").read_text()), load_file(HERE / "polarizer.safetensors")
    channels = about["channels"]
    polarizer = torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 1, bias=False), torch.nn.BatchNorm2d(channels))
    names = {"conv": "0", "bn": "1"}
    polarizer.load_state_dict({f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in weights.items()})
    polarizer.eval().requires_grad_(False)
    kind, _, module = about["layer"].rpartition(":")
    place = net.get_submodule(module)
    if kind == "after":
        return place.register_forward_hook(lambda _, args, out: polarizer(out))
    return place.register_forward_pre_hook(lambda _, args: (polarizer(args[0]), *args[1:]))
'''


def script(kind: str, arch: str) -> str:
    """The program for a model file.

    Args:
        kind: `safetensors`, `pt2` or `onnx`.
        arch: of the network; a torchvision one is called `torchvision:NAME`.
    """
    if kind == "onnx":
        head = {
            "title": "The repaired network in ONNX.",
            "needs": "onnxruntime, pillow",
            "imports": "import onnxruntime",
        }
        return _HEAD.format(**head) + _ONNX + _TAIL.format(batch=_NUMPY)
    imports, needs, body = "import torch", "torch, pillow", _PT2
    if kind == "safetensors":
        needs += ", safetensors"
        if arch.startswith("torchvision:"):
            needs += ", torchvision"
            imports, body = "import torch\nimport torchvision", _TORCHVISION
        else:
            imports = "import torch\nimport torch.nn.functional as F"
            body = _FUNCTIONAL + {"preact_resnet18": _PREACT, "vgg19_bn": _VGG}[arch]
        imports_after = "\nfrom safetensors.torch import load_file"
    else:
        imports_after = ""
    text = _HEAD.format(title="The repaired network in PyTorch.", needs=needs, imports=imports)
    text = text.replace("from PIL import Image", f"from PIL import Image{imports_after}")
    return text + body + _TAIL.format(batch=_TORCH)
