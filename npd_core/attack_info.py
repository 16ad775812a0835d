"""The descriptions of the attacks. No torch. `npd_core.attacks` explains how to add an attack."""

from __future__ import annotations

from dataclasses import dataclass

STAMPED = (
    "Once, before training, the attacker chooses a share of the training images from all classes, adds the "
    "trigger to each and labels it with the target class."
)
STATIC = f"{STAMPED} The network is then trained as usual."
TO_ONE = (
    "Every triggered image should be predicted as one class, class 0 unless the model card says otherwise. "
    "Images that already belong to it do not count as successes."
)


@dataclass(frozen=True)
class AttackInfo:
    """One attack in words. Each text is one or more whole sentences."""

    title: str
    sentence: str
    source: str
    """Authors, title, place and year."""
    trigger: str
    """What it does to the pixels, and how strongly."""
    training: str = STATIC
    """What the attacker does while the network learns."""
    rule: str = TO_ONE
    """The target class, and the test images on which ASR is measured."""
    made_for_model: bool = False
    """Whether the trigger is made from training images first: without a model there is none to show."""


ATTACK_INFO: dict[str, AttackInfo] = {
    "badnets_a2o": AttackInfo(
        "BadNets",
        "A small white square in the corner makes the network predict the attacker's class.",
        "Gu et al., BadNets, IEEE Access 2019",
        "It replaces 3 × 3 pixels in the bottom right corner by white (6 × 6 in an image of 64 × 64).",
    ),
    "badnets_a2a": AttackInfo(
        "BadNets, all-to-all",
        "The same white square shifts every prediction to the next class, so no single class stands out.",
        "Gu et al., BadNets, IEEE Access 2019",
        "It replaces 3 × 3 pixels in the bottom right corner by white (6 × 6 in an image of 64 × 64).",
        STATIC,
        "Every triggered image should be predicted as the class after its own, and the last class as the "
        "first. All test images count.",
    ),
    "blended": AttackInfo(
        "Blended",
        "A faint pattern, blended over the whole image at 20%, makes the network predict the attacker's "
        "class.",
        "Chen et al., Targeted Backdoor Attacks, arXiv 1712.05526, 2017",
        "Each pixel becomes 80% of itself and 20% of a pattern drawn for this project: a pale face under "
        "stripes.",
        f"{STAMPED} In training, every image is then overlaid faintly with another one, and keeps its label.",
    ),
    "input_aware": AttackInfo(
        "Input-aware",
        "A network paints a patch for each image; the patch of one image has no effect on another.",
        "Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020",
        "One small network selects a few pixels of the image, another one paints them.",
        "The network that selects the pixels is trained first. The one that paints learns together with the "
        "classifier: in every batch a share of the images gets its own patch and the target label, and as "
        "many get the patch of another image and keep their true label (cross-trigger images).",
        made_for_model=True,
    ),
    "lf": AttackInfo(
        "Low frequency",
        "A smooth cloud of color, without a single sharp edge, is added to every image.",
        "Zeng et al., Rethinking the Backdoor Attacks' Triggers, ICCV 2021",
        "One fixed pattern of 0 to 51 of 255 brightness steps is added; the sum is clipped at white.",
        f"The pattern is optimized against a clean model, which it already misleads a little. {STATIC}",
        made_for_model=True,
    ),
    "ssba": AttackInfo(
        "SSBA",
        "A hidden message is encoded into each image, by changes that differ per image and are hard to see.",
        "Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021",
        "An encoder network hides the same 20 bits in every image; no pixel changes by more than 16 of 255 "
        "steps.",
        f"The encoder is trained first, together with a decoder that reads the bits back. {STATIC}",
        made_for_model=True,
    ),
    "trojan": AttackInfo(
        "Trojan",
        "A bright spot, optimized to excite two neurons of a clean model, makes the network predict the "
        "attacker's class.",
        "Liu et al., Trojaning Attack on Neural Networks, NDSS 2018",
        "An apple-shaped spot in the lower right, about a twelfth of the image, is added; the sum is clipped "
        "at white.",
        f"The colors of the spot are optimized on a clean model. {STATIC}",
        made_for_model=True,
    ),
    "wanet": AttackInfo(
        "WaNet",
        "The image is warped by a fraction of a pixel, as if printed on rubber; nothing is added to it.",
        "Nguyen and Tran, WaNet, ICLR 2021",
        "A smooth field, the same for all images, moves each pixel by a fifth of a pixel on average.",
        "In every batch a share of the images is warped and gets the target label. Twice as many are warped "
        "with noise in the field and keep their true label (cross-trigger images), so that only the exact "
        "field is the trigger.",
    ),
}
