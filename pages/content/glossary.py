"""The words of the field that the app uses, each in a sentence or two. Plain text in Markdown; no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from npd_core.attack_info import ATTACK_INFO
from npd_core.errors import unknown_name


@dataclass(frozen=True)
class Term:
    """One word. `id` is its place in an address, as /glossary?term=asr and #asr."""

    id: str
    title: str
    text: str
    also: tuple[str, ...] = ()
    """Other words that people look it up under."""
    see: tuple[str, ...] = ()
    """Ids of terms that explain more."""


SECTIONS: dict[str, tuple[Term, ...]] = {
    "What goes wrong": (
        Term(
            "backdoor",
            "Backdoor",
            "A hidden rule inside a network: on ordinary images it works as it should, on an image with the trigger it "
            "answers what the attacker wants.",
            ("trojan", "backdoored network"),
            ("trigger", "poisoned-sample", "asr"),
        ),
        Term(
            "backdoored-network",
            "Backdoored network, f_w",
            "The network that the attacker trained, before any repair. Its weights w stay frozen here: the defense "
            "adds a layer and changes nothing else.",
            ("f_w", "base", "frozen"),
            ("polarizer",),
        ),
        Term(
            "trigger",
            "Trigger",
            "The change of an image that wakes the backdoor: a patch in a corner, a faint pattern, a slight warp. The "
            "defender does not know it.",
            see=("attack", "backdoor"),
        ),
        Term(
            "target-label",
            "Target label",
            "The class that the attacker wants for an image with the trigger.",
            ("target", "target class"),
            ("all-to-one", "all-to-all"),
        ),
        Term(
            "poisoned-sample",
            "Poisoned sample",
            "A training image that carries the trigger and the attacker's label. A test image with the trigger, its "
            "true label kept aside, is called triggered.",
            ("poisoned image", "triggered image"),
            ("poison-ratio", "ra"),
        ),
        Term(
            "poison-ratio",
            "Poison ratio",
            "The share of the training set that the attacker changed; the paper uses 10 % and tries others in Table 5.",
            see=("poisoned-sample",),
        ),
        Term(
            "all-to-one",
            "All-to-one (A2O)",
            "One target label for every image. Test images that already have this label are left out when the attack "
            "is measured.",
            ("A2O",),
            ("all-to-all", "target-label"),
        ),
        Term(
            "all-to-all",
            "All-to-all (A2A)",
            "Every class has a target of its own, here the next class: (y + 1) mod K for K classes.",
            ("A2A",),
            ("all-to-one",),
        ),
        Term(
            "cross-trigger",
            "Cross or noise sample",
            "A training image with a trigger of another image, or a noisy one, that keeps its true label. Some attacks "
            "add them so that only the exact trigger wakes the backdoor.",
            ("noise sample", "cross-trigger accuracy"),
            ("input_aware", "wanet"),
        ),
    ),
    "How it is measured": (
        Term(
            "acc",
            "ACC, clean accuracy",
            "The share of clean test images that get their true label. A good repair keeps it.",
            ("accuracy",),
            ("asr", "ra"),
        ),
        Term(
            "asr",
            "ASR, attack success rate",
            "The share of triggered test images that get the attacker's label. A good repair brings it near 0.",
            ("attack success",),
            ("ra", "target-label"),
        ),
        Term(
            "ra",
            "RA, recovery accuracy",
            "The share of triggered test images that get their true label again. ASR can fall because images get other "
            "wrong labels; RA tells the difference.",
            ("robust accuracy", "recovery"),
            ("asr",),
        ),
        Term(
            "der",
            "DER, defense effectiveness rating",
            "(max(0, fall of ASR) − max(0, fall of ACC) + 1) / 2, as fractions: 1 is a full repair at no cost, 0.5 is "
            "nothing done.",
            ("defense effectiveness",),
            ("acc", "asr"),
        ),
        Term(
            "test-split",
            "Test split",
            "Images that no training has seen. ACC, ASR and RA are measured on them for the viewer; a defense never "
            "chooses anything by them.",
            ("test set",),
            ("clean-set",),
        ),
        Term(
            "recorded",
            "Live, recorded, published",
            "Where a number comes from: measured now on this machine, measured earlier and shipped with the project, "
            "or printed in the paper.",
            ("live", "published", "provenance"),
            ("seed",),
        ),
        Term(
            "seed",
            "Seed",
            "The number from which all random choices of a run follow. The same seed on the same device gives the same "
            "run.",
            ("random",),
        ),
        Term(
            "attribution",
            "Attribution map",
            "A colour for each pixel that says how much it speaks for or against a class. Methods differ, so a map is "
            "a hint and no proof.",
            ("captum", "saliency"),
        ),
    ),
    "How it is repaired": (
        Term(
            "polarizer",
            "Neural polarizer, g_θ",
            "One thin layer, a 1×1 convolution with BatchNorm, put into the frozen network. It learns to let benign "
            "information pass and to hold the trigger back, as a polarising filter does with light.",
            ("NPD", "g_theta", "theta", "filter"),
            ("insertion-layer", "bi-level"),
        ),
        Term(
            "polarized-network",
            "Polarized network, f̂_θ",
            "The backdoored network with the polarizer in its place. Its answers are called purified.",
            ("purified", "f_hat"),
            ("polarizer",),
        ),
        Term(
            "insertion-layer",
            "Insertion layer",
            "The place of the polarizer: before a convolution, after it, or on the residual stream before a block. The "
            "paper takes the place before layer4.1.conv1.",
            ("layer", "insertion point"),
            ("residual-stream",),
        ),
        Term(
            "residual-stream",
            "Residual stream and shortcut",
            "A residual block adds its result to its input, which goes around it by the shortcut. A filter inside the "
            "block leaves the shortcut unfiltered; one on the stream before the block filters both.",
            ("stream", "shortcut", "skip connection"),
            ("insertion-layer",),
        ),
        Term(
            "clean-set",
            "Clean set, D_bn",
            "The few images with true labels that the defender owns; 5 % of the training set in the paper, drawn "
            "evenly from all classes.",
            ("D_bn", "benign data", "clean images"),
            ("holdout",),
        ),
        Term(
            "holdout",
            "Held-out clean images",
            "A part of the clean set that is not trained on. Where a best epoch is chosen, these images decide.",
            ("hold-out",),
            ("clean-set",),
        ),
        Term(
            "bi-level",
            "Bi-level training",
            "Two problems, one inside the other. The inner one looks for the worst small change of each image; the "
            "outer one trains the polarizer so that even those images keep their class. Algorithm 1 of the paper.",
            ("inner level", "outer level", "minimax"),
            ("inner-perturbation", "losses"),
        ),
        Term(
            "inner-perturbation",
            "Inner perturbation, δ",
            "A change of the image, found by gradient steps, that pulls the network towards another class. It stands "
            "in for the trigger that nobody knows. Eq. 4 of the paper.",
            ("delta", "adversarial perturbation", "imagined trigger"),
            ("pgd", "rho", "surrogate-target"),
        ),
        Term(
            "pgd",
            "PGD, projected gradient descent",
            "Steps along the gradient; after each, the change is shrunk until it fits its budget again.",
            ("inner steps",),
            ("rho",),
        ),
        Term(
            "rho",
            "ρ, the budget",
            "How large the inner perturbation may be, measured by its norm in [0, 1] pixel units. The paper uses 3 in "
            "the l2 norm for 32×32 images and 6 for 64×64.",
            ("budget", "norm", "l2", "linf"),
            ("inner-perturbation",),
        ),
        Term(
            "surrogate-target",
            "Surrogate target, y′",
            "The class that the network finds second most likely. It is the guess for the target label, image by "
            "image.",
            ("runner-up", "y'"),
            ("target-label",),
        ),
        Term(
            "losses",
            "Loss terms",
            "L_bn: clean images keep their label. L_asr: perturbed images leave the class they were pulled to. L_bce: "
            "they return to their true class, by a boosted cross entropy. Eq. 2 and 3 of the paper.",
            ("L_bn", "L_asr", "L_bce", "L_bce1", "L_bce2", "cross entropy"),
            ("lambdas",),
        ),
        Term(
            "lambdas",
            "λ₁, λ₂, λ₃, the weights",
            "How much L_bn, L_asr and L_bce count in the sum that is trained on, Eq. 5 of the paper. The paper uses 1, "
            "0.4 and 0.4.",
            ("lambda", "lambda1", "lambda2", "lambda3"),
            ("losses",),
        ),
        Term(
            "warm-up",
            "Warm-up, T₀",
            "First epochs on clean images alone, without perturbations, so that BatchNorm knows the features it sees.",
            ("warmup",),
            ("epoch", "batchnorm"),
        ),
        Term(
            "batchnorm",
            "BatchNorm",
            "Brings every channel to a common mean and spread. Its statistics in the frozen network must not move, or "
            "the network would change unseen.",
            ("BN",),
            ("warm-up",),
        ),
        Term(
            "epoch",
            "Epoch, step, batch",
            "A batch is a handful of images; a step is one update of the polarizer from one batch; an epoch is one "
            "pass over the clean set.",
            ("step", "batch"),
        ),
        Term(
            "variants",
            "NPD-TU, -TP, -UU, -UP",
            "NPD with another inner perturbation: targeted (T) or not (U), one for all images (U, universal) or one "
            "for each (P). NPD-TU and NPD-TP are told the target label. Table 4 of the paper.",
            ("npd_tu", "npd_tp", "npd_uu", "npd_up", "universal perturbation"),
            ("inner-perturbation",),
        ),
        Term(
            "folding",
            "Folding",
            "Writing the trained polarizer into the weights of the next convolution, so that the repaired network "
            "needs no layer of its own when it is exported.",
            ("export",),
            ("polarizer",),
        ),
    ),
    "Attacks": (
        Term(
            "attack",
            "Attack",
            "A trigger together with a rule for the label, put into a part of the training set.",
            see=("trigger", "target-label"),
        ),
        *(
            Term(name, info.title, f"{info.sentence} {info.source}.", (name,), ("attack",))
            for name, info in ATTACK_INFO.items()
        ),
    ),
    "Other defenses": (
        Term(
            "fp",
            "FP, fine-pruning",
            "Removes channels that stay silent on clean images, then trains on with the clean set. Liu et al. 2018.",
            ("fine-pruning",),
        ),
        Term(
            "nad",
            "NAD, neural attention distillation",
            "A fine-tuned copy teaches the network where to look. Li et al. 2021.",
            ("distillation",),
        ),
        Term(
            "nc",
            "NC, Neural Cleanse",
            "Reconstructs the smallest trigger of each class; a class with a suspiciously small one is unlearned. Wang "
            "et al. 2019.",
            ("neural cleanse",),
        ),
        Term(
            "anp",
            "ANP, adversarial neuron pruning",
            "Perturbs the weights of channels and prunes those that react most. Wu and Wang 2021.",
            ("pruning",),
        ),
        Term(
            "i-bau",
            "i-BAU",
            "Unlearns a universal perturbation, with the gradient that passes through the inner problem. Zeng et al. "
            "2022.",
            ("i_bau", "implicit hypergradient"),
        ),
        Term(
            "ep",
            "EP, entropy pruning",
            "Prunes channels whose activations on a mixture of clean and poisoned images stand out. Zheng et al. 2022.",
            ("entropy",),
        ),
    ),
}
TERMS: dict[str, Term] = {term.id: term for terms in SECTIONS.values() for term in terms}


def get_term(name: str) -> Term:
    """The term of this id. Raises UnknownNameError."""
    if name not in TERMS:
        raise unknown_name("term", name, TERMS)
    return TERMS[name]


def search(words: str) -> dict[str, list[Term]]:
    """Terms in which every word of `words` occurs, by section, best matches first; everything for an empty text.

    A word counts in titles, ids, other names and texts, whatever its case. Titles and names come before texts.
    """
    wanted = [word for word in re.split(r"\s+", words.casefold().strip()) if word]
    found = {}
    for section, terms in SECTIONS.items():
        scored = [(rank, term) for term in terms if (rank := _rank(term, wanted)) is not None]
        scored.sort(key=lambda pair: pair[0])
        if scored:
            found[section] = [term for _, term in scored]
    return found


def _rank(term: Term, wanted: list[str]) -> int | None:
    """How many of the words stand in the text alone (0 is best); None when one occurs nowhere."""
    names = " ".join((term.title, term.id, *term.also)).casefold()
    text = term.text.casefold()
    rank = 0
    for word in wanted:
        if word not in names:
            if word not in text:
                return None
            rank += 1
    return rank
