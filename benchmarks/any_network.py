"""A small ViT and a small ConvNeXt of timm, trained with a backdoor on signs and then repaired: one table for
docs/lab-notes.md.

    python benchmarks/any_network.py [vit convnext] [--epochs 20] [--every-layer]

The trigger is that of the zoo's BadNets on signs. Needs timm. One thread; a few minutes for each network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.nn import functional as F

import npd_core as npd
from npd_core.attacks import Attack
from npd_core.attacks.poison import poison_training_set
from npd_core.data.load import load_dataset
from npd_core.errors import TrainingError
from npd_core.metrics import Metrics, der
from npd_core.polarizer.insertion import insertion_layers
from npd_core.training.augment import augment

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=64, depth=5, num_heads=4, num_classes=12
    ),
    "convnext": lambda: timm.create_model(
        "convnext_atto", patch_size=2, depths=(1, 1, 2, 2), dims=(16, 32, 64, 128), num_classes=12
    ),
}
BATCH = 64


def train(net: nn.Module, attack: Attack, epochs: int) -> float:
    """Train `net` with the backdoor on signs. Returns the seconds."""
    start = time.perf_counter()
    data = poison_training_set(load_dataset("signs", "train"), attack, 0.1, 0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    steps = -(-len(data.labels) // BATCH) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.labels), generator=generator).split(BATCH):
            x = augment(data.images[chosen], 2, False, generator).float() / 255
            loss = F.cross_entropy(net(x), data.labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    return time.perf_counter() - start


def main() -> None:
    """Train, repair and print a row for each network and layer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every-layer", action="store_true", help="before every block too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    attack = npd.load_model("signs-badnets_a2o-preact_resnet18-w16").attack
    clean, test = npd.load_clean_images("signs", 0.05), npd.load_test_images("signs", 1000)
    print("| network | layer | ACC / ASR / RA in % | DER | s |\n| --- | --- | --- | --- | --- |")
    for name in args.networks:
        torch.manual_seed(0)
        net = NETWORKS[name]()
        seconds = train(net, attack, args.epochs)
        before = npd.evaluate(net, *test, attack=attack)
        print(f"| {name} | | {shown(before)} | | {seconds:.0f} |", flush=True)
        layers: list[str | None] = [None]
        if args.every_layer:
            layers += [i.name for i in insertion_layers(net) if i.layer.kind == "stream"]
        for layer in layers:
            try:
                repaired = npd.polarize(net, *clean, layer=layer)
            except TrainingError as error:
                print(f"| | `{layer}` | {error} | | |", flush=True)
                continue
            after = npd.evaluate(repaired.net, *test, attack=attack)
            cells = f"`{repaired.layer}` | {shown(after)} | {der(before, after):.3f}"
            print(f"| | {cells} | {repaired.seconds:.0f} |", flush=True)


def shown(found: Metrics) -> str:
    """Return the three metrics in percent."""
    return " / ".join(f"{100 * value:.1f}" for value in (found.acc, found.asr, found.ra))


if __name__ == "__main__":
    main()
