"""Made `tiny_net.safetensors`: a PreAct-ResNet18 of width 4 with a BadNets backdoor, for tests that need one
at once.

python tests/golden/make_tiny_net.py        two minutes on two cores
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from npd_core.attacks import get_attack
from npd_core.attacks.poison import poison_training_set
from npd_core.data.load import load_dataset
from npd_core.data.spec import get_dataset
from npd_core.models import build_model
from npd_core.zoo.classifier import train_classifier
from npd_core.zoo.recipe import Recipe
from npd_core.zoo.weights import half_precision


def main() -> None:
    """Train and write beside this script."""
    torch.manual_seed(0)
    spec = get_dataset("signs")
    data = poison_training_set(load_dataset("signs", "train"), get_attack("badnets_a2o", "signs"), 0.2, 0)
    net = build_model("preact_resnet18", spec.num_classes, 4, spec.mean, spec.std)
    recipe = Recipe(epochs=14, batch_size=128, peak_lr=0.1, pad=1, flip=False)
    for event in train_classifier(net, data, recipe, torch.device("cpu")):
        if hasattr(event, "seconds"):
            print(event)
    save_file(half_precision(net), Path(__file__).with_name("tiny_net.safetensors"))


if __name__ == "__main__":
    main()
