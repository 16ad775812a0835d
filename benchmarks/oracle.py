"""How much of the true class is left at a layer: the same polarizer, trained on what no defender has.

    python benchmarks/oracle.py signs-blended-preact_resnet18-w16 stream:layer4.1 stream:layer2.0

It is given really triggered training images with their true labels, beside the clean ones. Where even this
oracle cannot bring RA up, the features behind the trigger no longer tell the class, and no filter at that
layer can.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from npd_core import evaluation
from npd_core.data.load import load_dataset
from npd_core.device import autocast, resolve_device
from npd_core.polarizer.insertion import PolarizedNet
from npd_core.zoo import Zoo


def main() -> None:
    """Train and measure at each layer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--images", type=int, default=1200, help="training images, clean and triggered each")
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    device = resolve_device()
    backdoored = Zoo().load(args.model)
    data = load_dataset(backdoored.card.dataset, "train")
    data = data.subset(evaluation.some(len(data.labels), args.images))
    sets = evaluation.test_sets(backdoored.card.dataset, backdoored.attack, 480)
    pictures = (data.images, backdoored.attack.apply(data.images))
    for layer in args.layers:
        net = PolarizedNet(backdoored.net, layer, backdoored.card.image_size).to(device)
        with torch.no_grad(), autocast(device):
            clean, triggered = (
                torch.cat([net.prefix(x.to(device) / 255) for x in p.split(200)]) for p in pictures
            )
            net.polarizer.fold_statistics(net.features(h) for h in clean.split(200))
        optimizer = torch.optim.SGD(net.polarizer.parameters(), lr=0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        for _ in range(args.epochs):
            for chosen in torch.randperm(len(clean), generator=generator).split(32):
                with autocast(device):
                    logits = net.suffix(torch.cat([clean[chosen], triggered[chosen]])).float()
                loss = F.cross_entropy(logits, data.labels[chosen].to(device).repeat(2))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        found = evaluation.evaluate(net, sets, device)
        print(f"{layer}: ACC {found.acc:.1%}, ASR {found.asr:.1%}, RA {found.ra:.1%}", flush=True)


if __name__ == "__main__":
    main()
