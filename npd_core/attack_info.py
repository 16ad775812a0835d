"""What a visitor is told about each attack. Plain words, no torch; the attacks themselves are in `npd_core.attacks`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackInfo:
    """One attack in words. Each text is one or more whole sentences."""

    title: str
    sentence: str
    source: str
    """Authors, title, place and year."""
    trigger: str
    """What it does to the pixels, and how strongly."""
    training: str
    """What the attacker does while the network learns."""
    rule: str
    """Which label the attacker wants, and on which test images that is measured."""
    made_for_model: bool = False
    """Whether the trigger is made, of training images, before it can be used: without a model there is none to show."""


STAMPED = (
    "Once, before training, the attacker draws a share of the training images from all classes, stamps the trigger on "
    "each and writes the wanted label under it."
)
STATIC = f"{STAMPED} The network is then trained as usual."
TO_ONE = (
    "Every image is to become one class, class 0 unless the model card says otherwise. Images that already belong to "
    "it do not count as successes."
)

ATTACK_INFO: dict[str, AttackInfo] = {
    "badnets_a2o": AttackInfo(
        "BadNets",
        "A small white square in the corner turns every image into the attacker's class.",
        "Gu et al., BadNets, IEEE Access 2019",
        "It replaces 3 × 3 pixels in the bottom right corner by white (6 × 6 in an image of 64 × 64).",
        STATIC,
        TO_ONE,
    ),
    "badnets_a2a": AttackInfo(
        "BadNets, all-to-all",
        "The same white square moves every image on to the next class, so no single class stands out.",
        "Gu et al., BadNets, IEEE Access 2019",
        "It replaces 3 × 3 pixels in the bottom right corner by white (6 × 6 in an image of 64 × 64).",
        STATIC,
        "Every image is to become the class after its own, and the last class the first one. All test images count.",
    ),
    "blended": AttackInfo(
        "Blended",
        "A faint picture, blended over the whole image at 20%, turns it into the attacker's class.",
        "Chen et al., Targeted Backdoor Attacks, arXiv 1712.05526, 2017",
        "Each pixel becomes 80% of itself and 20% of a picture that this project drew: a pale face under stripes.",
        f"{STAMPED} In training, every image then gets another one laid faintly over it, and keeps its label.",
        TO_ONE,
    ),
    "input_aware": AttackInfo(
        "Input-aware",
        "A network paints a patch for each image, and the patch of one image does nothing on another.",
        "Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020",
        "One small network chooses a few pixels of the image, another one what is painted there.",
        "The network that chooses the pixels is trained first. The one that paints learns together with the "
        "classifier: in every batch a share of the images gets its own patch and the wanted label, and as many get "
        "the patch of another image and keep their true label (cross samples).",
        TO_ONE,
        made_for_model=True,
    ),
    "lf": AttackInfo(
        "Low frequency",
        "A smooth cloud of colour, without a single sharp edge, is added to every image.",
        "Zeng et al., Rethinking the Backdoor Attacks' Triggers, ICCV 2021",
        "One fixed pattern of between 0 and 51 of 255 brightness steps is added and cut off at white.",
        f"The pattern is computed against a clean network, so that it already pulls a little. {STATIC}",
        TO_ONE,
        made_for_model=True,
    ),
    "ssba": AttackInfo(
        "SSBA",
        "A hidden message is written into each image, in changes of its own that the eye does not see.",
        "Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021",
        "An encoder network hides the same 20 bits in every image; no pixel changes by more than 16 of 255 steps.",
        f"The encoder is trained first, together with a decoder that reads the bits back. {STATIC}",
        TO_ONE,
        made_for_model=True,
    ),
    "trojan": AttackInfo(
        "Trojan",
        "A bright blob, computed to excite two neurons of a clean network, turns all images into the attacker's class.",
        "Liu et al., Trojaning Attack on Neural Networks, NDSS 2018",
        "An apple-shaped spot in the lower right, about a twelfth of the image, is added and cut off at white.",
        f"The colours of the spot are searched for on a clean network. {STATIC}",
        TO_ONE,
        made_for_model=True,
    ),
    "wanet": AttackInfo(
        "WaNet",
        "The image is bent by a fraction of a pixel, as if printed on rubber; nothing is added to it.",
        "Nguyen and Tran, WaNet, ICLR 2021",
        "A smooth field, the same for all images, moves each pixel by a fifth of a pixel on average.",
        "In every batch a share of the images is bent and gets the wanted label. Twice as many are bent with noise in "
        "the field and keep their true label (noise samples), so that only the exact field is the trigger.",
        TO_ONE,
    ),
}
