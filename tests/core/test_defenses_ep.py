"""Entropy pruning: entropies against a count by hand, a planted channel with two heaps, nothing but it
pruned."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from npd_core.attacks import get_attack
from npd_core.attacks.poison import poison_training_set
from npd_core.config.baselines import EPConfig
from npd_core.data.load import ImageSet
from npd_core.defenses.ep import channel_entropy, entropy_prune, outliers
from npd_core.errors import ConfigError
from npd_core.events import Finished, Started
from npd_core.models import Normalized, build_model

CPU = torch.device("cpu")
CFG = EPConfig(pad=0, flip=False, precision="fp32", batch_size=200)


def by_hand(values, width):
    """Entropy of each channel, image by image."""
    z = []
    for channel in values.T.double().tolist():
        mean = sum(channel) / len(channel)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in channel) / len(channel))
        z.append([(v - mean) / deviation for v in channel] if deviation > 0 else None)
    lowest = min(min(channel) for channel in z if channel)
    entropies = []
    for channel in z:
        if channel is None:
            entropies.append(math.nan)
            continue
        counts = Counter(math.floor((v - lowest) / width) for v in channel)
        entropies.append(-sum(c / len(channel) * math.log(c / len(channel)) for c in counts.values()))
    return torch.tensor(entropies)


def below(entropy, u):
    """Positions more than u deviations below the mean of the entropies that are numbers."""
    known = [e for e in entropy.tolist() if not math.isnan(e)]
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((e - mean) ** 2 for e in known) / len(known))
    return [i for i, e in enumerate(entropy.tolist()) if e < mean - u * deviation]


def test_entropies_are_those_counted_by_hand():
    values = torch.randn(100, 12) * torch.rand(12) * 10 + torch.randn(12)
    values[:, 3] = -2.5
    values[:, 7] = 0.0
    values[40:, 5] = values[0, 5]
    torch.testing.assert_close(channel_entropy(values, 0.1), by_hand(values, 0.1), equal_nan=True)


def test_the_entropy_of_two_equal_heaps_is_log_2():
    values = torch.tensor([0.0, 1.0]).repeat(50)[:, None]
    assert float(channel_entropy(values, 0.1)[0]) == pytest.approx(math.log(2))


def test_one_image_far_out_stays_inside_the_histogram():
    values = torch.zeros(256, 1)
    values[0] = 1e6
    assert float(channel_entropy(values, 0.1)[0]) == pytest.approx(by_hand(values, 0.1).item(), abs=1e-6)


def test_a_channel_with_two_heaps_is_found_among_gaussian_ones():
    values = torch.randn(256, 64)
    values[:, 7] = torch.randn(256) * 0.05 + (torch.arange(256) % 2) * 3
    values[:, 9] = 1.0
    entropy = channel_entropy(values, 0.1)
    assert entropy[9].isnan()
    assert outliers(entropy, 3.0).nonzero().flatten().tolist() == [7]
    assert not outliers(entropy, 10.0).any()


def test_a_layer_of_constant_channels_has_no_outliers():
    assert not outliers(channel_entropy(torch.ones(8, 5), 0.1), 0.0).any()


SHORTCUT = 5


def planted():
    """32 channels, of which one alone looks at red; the trigger is a pixel of the brightest red."""
    conv = nn.Conv2d(3, 32, 1)
    with torch.no_grad():
        conv.weight[:, 0] = 0.0
        conv.weight[SHORTCUT] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    net = nn.Sequential(
        conv, nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)
    )
    clean = (70 + 25 * torch.randn(300, 3, 1, 1) + 10 * torch.rand(300, 3, 4, 4)).clamp(0, 170).byte()
    mixture = clean.clone()
    mixture[::3, 0, 3, 3] = 255
    labels = torch.arange(300) % 2
    net[1].bias.data.fill_(0.5)
    return Normalized(net, (0.0,) * 3, (1.0,) * 3).eval(), ImageSet(clean, labels), ImageSet(mixture, labels)


def test_the_planted_channel_is_pruned_and_no_other():
    net, clean, mixture = planted()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    started, end = entropy_prune(net, clean, CFG, CPU, mixture=mixture)
    assert started == Started(0, 0, 1, 200, "cpu")
    assert isinstance(end, Finished)
    assert end.details == {"pruned": {"1": [SHORTCUT]}, "channels": 32, "batch": "mixture"}
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"net.1.weight", "net.1.bias"}
    for name in ("weight", "bias"):
        value = getattr(net.net[1], name)
        assert value[SHORTCUT] == 0
        assert (value == before[f"net.1.{name}"]).sum() == 31


def test_clean_images_do_not_show_it_and_the_mixture_is_then_not_looked_at():
    net, clean, mixture = planted()
    *_, end = entropy_prune(net, clean, replace(CFG, batch="clean"), CPU, mixture=mixture)
    assert end.details["batch"] == "clean"
    assert SHORTCUT not in end.details["pruned"].get("1", [])


def test_a_large_u_prunes_nothing():
    net, clean, mixture = planted()
    *_, end = entropy_prune(net, clean, replace(CFG, u=20.0), CPU, mixture=mixture)
    assert end.details["pruned"] == {}


def test_without_a_mixture_it_says_what_it_needs():
    net, clean, _ = planted()
    with pytest.raises(ConfigError, match="`mixture`"):
        list(entropy_prune(net, clean, CFG, CPU))


def test_every_layer_is_judged_by_the_maxima_of_its_own_inputs():
    torch.manual_seed(0)
    net = build_model("preact_resnet18", 5, 8).eval()
    data = ImageSet(
        torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.zeros(40, dtype=torch.long)
    )
    inputs = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: inputs.update({name: args[0]}))
        for name, module in net.net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        net(data.images / 255)
    for handle in handles:
        handle.remove()
    expected = {}
    for name, h in inputs.items():
        found = below(by_hand(h.flatten(2).max(2).values, 0.1), 1.5)
        if found:
            expected[name] = found
    *_, end = entropy_prune(net, data, replace(CFG, batch="clean", u=1.5, batch_size=40), CPU)
    assert end.details["pruned"] == expected
    assert len(expected) > 3
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_batch_is_as_poisoned_as_the_training_set_also_where_the_seeds_are_the_same():
    torch.manual_seed(0)
    clean = ImageSet(
        torch.randint(0, 200, (2000, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 12, (2000,))
    )
    mixture = poison_training_set(clean, get_attack("badnets_a2o", "signs"), 0.1, seed=0)
    net, seen = build_model("preact_resnet18", 12, 2), []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    list(entropy_prune(net, clean, CFG, CPU, mixture=ImageSet(mixture.images, mixture.labels)))
    assert len(seen) == 1
    stamped = seen[0][:, :, -3:, -3:].eq(1).flatten(1).all(1)
    assert 10 <= int(stamped.sum()) <= 32  # 20 of 200 on average, four standard deviations about it
