from __future__ import annotations

import pytest

from npd_core.data.spec import DATASETS, GTSRB_CLASSES, get_dataset
from npd_core.errors import UnknownNameError


def test_facts_agree_with_each_other():
    assert list(DATASETS) == ["signs", "cifar10", "gtsrb", "tiny_imagenet"]
    for name, spec in DATASETS.items():
        assert spec.id == name
        assert len(spec.classes) in (spec.num_classes, 0)
        assert len(set(spec.classes)) == len(spec.classes)
        assert all(std > 0 for std in spec.std)


def test_published_sizes():  # the table of the data sets: classes, training and test images, side
    sizes = {name: (s.num_classes, s.train_images, s.test_images, s.size) for name, s in DATASETS.items()}
    assert sizes["cifar10"] == (10, 50000, 10000, 32)
    assert sizes["gtsrb"] == (43, 39209, 12630, 32)
    assert sizes["tiny_imagenet"] == (200, 100000, 10000, 64)


def test_attackers_target_is_not_the_stop_sign():
    assert get_dataset("signs").classes[0] == "speed limit 80"
    assert "stop" in get_dataset("signs").classes


def test_only_cifar10_may_be_mirrored():  # a mirrored "turn left" is another sign
    assert [name for name, spec in DATASETS.items() if spec.flip] == ["cifar10"]


def test_gtsrb_names_at_known_labels():
    assert GTSRB_CLASSES[14] == "stop"
    assert GTSRB_CLASSES[13] == "yield"
    assert GTSRB_CLASSES[17] == "no entry"
    assert GTSRB_CLASSES[5] == "speed limit 80"
    assert GTSRB_CLASSES[33:35] == ("turn right ahead", "turn left ahead")


def test_unknown_name_says_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'cifar'.*'cifar10'"):
        get_dataset("cifar")
