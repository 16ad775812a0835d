"""The first step on one clean image, told scene by scene: formula, words, and what the formula gives here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import streamlit as st

from npd_core.config.npd import NPDConfig
from npd_core.figures.predictions import png
from npd_core.figures.steps import logit_bars, logit_figure, picture, probability, rest, signed_picture, tex
from npd_core.polarizer.trace import Inner, Trace
from pages.shared import tiles
from pages.shared.components.chart import chart

PIXELS = 160
"""Width of a picture on the page."""
NORMS = {"l2": "2", "l1": "1", "linf": r"\infty"}
TERMS = {
    "bn": r"$\mathcal{L}_{bn}$",
    "asr": r"$\mathcal{L}_{asr}$",
    "bce1": r"$\mathcal{L}_{bce1}$",
    "bce2": r"$\mathcal{L}_{bce2}$",
}


class Scene(NamedTuple):
    """One stop on the way through the step."""

    title: str
    """With the equation of the paper that it is about."""
    formulas: list[str]
    words: str
    show: Callable[[], None]


class Told:
    """The trace with the words around it, as scenes."""

    def __init__(self, trace: Trace, cfg: NPDConfig, names: Sequence[str], place: int) -> None:
        self.trace, self.cfg, self.names, self.place = trace, cfg, names, place
        self.y, self.target = names[trace.label], names[trace.target]
        self.base = cfg.attack_on == "base"
        self.f = r"f_w" if self.base else r"\hat f_\theta"
        self.who = (
            r"the backdoored network $f_w$"
            if self.base
            else r"the network with the polarizer $\hat f_\theta$"
        )
        self.scale = max((float(np.abs(i.delta).max()) for i in trace.inner), default=0.0) or 1.0

    def scenes(self) -> list[Scene]:
        """All of them, in the order of the algorithm."""
        inner = [self.inner(k) for k in range(1, len(self.trace.inner))] or [self.no_inner()]
        losses = [self.clean_loss()]
        if self.trace.inner:
            losses += [self.asr_loss(), self.bce_loss()]
        return [self.network(), self.surrogate(), *inner, *losses, self.sum(), self.update()]

    # --- scenes

    def network(self) -> Scene:
        channels = next(part.numbers for part in self.trace.parts if part.name == "bn.weight")

        def show() -> None:
            self.pictures(("clean image", picture(self.trace.image)))
            self.logits({"f̂ on the clean image": self.trace.before.clean})

        return Scene(
            "The network and the polarizer in it · Eq. 1",
            [
                r"f = f^{(L)} \circ \cdots \circ f^{(1)}",
                r"\hat f_\theta = \cdots \circ f^{(l)} \circ g_\theta \circ f^{(l-1)} \circ \cdots",
                r"g_\theta(h) = \mathrm{BN}(\mathrm{Conv}_{1\times1}(h))",
            ],
            f"Clean image number {self.place} is a **{self.y}**. The network is frozen; the polarizer stands at "
            f"`{self.trace.layer}`, where the features have {channels} channels. Its "
            f"{channels}² + 2 · {channels} = **{channels * channels + 2 * channels:,}** numbers are θ, all that is "
            "trained.",
            show,
        )

    def surrogate(self) -> Scene:
        z = self.trace.attacked

        def show() -> None:
            self.logits({f"{'f_w' if self.base else 'f̂'} on the clean image": z}, top=24)

        return Scene(
            "The surrogate target y′ · Eq. 5",
            [rf"y' = \underset{{k \neq y}}{{\arg\max}}\; {self.f}(x)_k"],
            "The defender does not know which class the attacker wants. The strongest wrong class stands in for it: "
            f"beside **{self.y}** ({z[self.trace.label]:.2f}), {self.who} gives **{self.target}** the largest logit, "
            f"{z[self.trace.target]:.2f}. So y′ = **{self.target}**.",
            show,
        )

    def inner(self, k: int) -> Scene:
        cfg, before, now = self.cfg, self.trace.inner[k - 1], self.trace.inner[k]
        assert before.gradient is not None
        assert before.unprojected is not None
        gradient = before.gradient
        p = NORMS[cfg.norm]
        way = {
            "sign": r"\mathrm{sign}(g)",
            "l2": r"g / \lVert g \rVert_2",
            "raw": "g",
        }[cfg.inner_step]
        norm = before.unprojected
        over = " It is too long a step: the loss rises again." if now.loss > before.loss else ""
        cut = (
            f"The step makes δ {norm:.2f} long, more than ρ = {cfg.rho:g} allows, so it is brought back to "
            f"**{now.norm:.2f}**."
            if norm > now.norm * (1 + 1e-6)
            else f"After the step δ is **{now.norm:.2f}** long, which ρ = {cfg.rho:g} allows."
        )
        end = ""
        if k == len(self.trace.inner) - 1:
            if self.trace.stopped_early(cfg.inner_steps):
                end = f" y′ is reached, so the loop **ends early**, after {k} of {cfg.inner_steps} steps."
            elif self.base and cfg.early_stop is not None and k > 1:
                end = " $f_w$ never changes, so δ* is found once per image and the early stop does not apply."

        def show() -> None:
            steepest = float(np.abs(gradient).max()) or 1.0
            self.pictures(
                (f"gradient g, ± {steepest:.1g}", signed_picture(gradient, steepest)),
                (f"δ, amplified ×{0.5 / self.scale:.0f}", signed_picture(now.delta, self.scale)),
                ("x + δ, clipped", picture(self.trace.at(k))),
            )
            self.logits({"before this step": before.logits, "after it": now.logits}, top=6)

        return Scene(
            f"Inner step {k} of {cfg.inner_steps}: imagine a trigger · Eq. 4",
            [
                rf"\delta^* = \underset{{\lVert\delta\rVert_{{{p}}} \leq \rho}}{{\arg\min}}\; "
                rf"\mathcal{{L}}_{{CE}}({self.f}(x+\delta),\, y')",
                rf"g = \nabla_\delta \mathcal{{L}}_{{CE}},\quad "
                rf"\delta \leftarrow \Pi_\rho(\delta - {cfg.inner_lr:g}\, {way})",
            ],
            f"A small change that makes {self.who} say **{self.target}**. The loss toward y′ goes from "
            f"{before.loss:.3g} to **{now.loss:.3g}**.{over} {cut} Now it says {self.says(now)}.{end}",
            show,
        )

    def no_inner(self) -> Scene:
        return Scene(
            "No inner level",
            [r"\lambda_2 = \lambda_3 = \lambda_4 = 0"],
            "No term looks at perturbed images, so the trainer imagines no trigger. Only the loss on clean images is "
            "left. Give λ₂ or λ₃ a weight to see the inner steps.",
            lambda: self.pictures(("clean image", picture(self.trace.image))),
        )

    def clean_loss(self) -> Scene:
        z, y = self.trace.before.clean, self.trace.label

        def show() -> None:
            self.pictures(("clean image x", picture(self.trace.image)))
            self.logits({"f̂ on x": z}, top=6)

        return Scene(
            "Loss on the clean image · Eq. 5",
            [
                r"\mathcal{L}_{bn} = \mathcal{L}_{CE}(\hat f_\theta(x), y) = -\log s_y(x)",
                rf"= -\log {tex(probability(z, y))} = {tex(self.trace.before.losses['bn'])}",
            ],
            r"What keeps clean accuracy: $\hat f_\theta$ should "
            f"go on saying **{self.y}**. It does so with "
            f"{probability(z, y):.1%}, so this term {self.pull('bn')}.",
            show,
        )

    def asr_loss(self) -> Scene:
        z, k = self.trace.before.perturbed, self.trace.target
        return Scene(
            "Loss of leaving y′ · Eq. 2",
            [
                r"\mathcal{L}_{asr} = -\log(1 - s_{y'}(x + \delta^*))",
                *self.filled("asr", rest(z, k)),
            ],
            r"On the perturbed image $\hat f_\theta$ "
            f"gives y′ = **{self.target}** {probability(z, k):.1%}. It should not fall for "
            f"the imagined trigger; this term {self.pull('asr')}.",
            self.show_perturbed,
        )

    def bce_loss(self) -> Scene:
        z, y = self.trace.before.perturbed, self.trace.label
        strongest = max((k for k in range(len(z)) if k != y), key=lambda k: float(z[k]))
        one = "y"
        if self.cfg.bce1_label == "pred":
            y, one = int(self.trace.before.clean.argmax()), r"{\hat y}"
        return Scene(
            "Loss of returning to y · Eq. 3",
            [
                r"\mathcal{L}_{bce} = \mathcal{L}_{bce1} + \mathcal{L}_{bce2}",
                rf"\mathcal{{L}}_{{bce1}} = -\log s_{one}(x + \delta^*)",
                rf"= -\log {tex(probability(z, y))} = {tex(self.trace.before.losses['bce1'])}",
                r"\mathcal{L}_{bce2} = -\log(1 - \max_{k \neq y} s_k(x + \delta^*))",
                *self.filled("bce2", rest(z, strongest)),
            ],
            f"Not y′ is not enough: a perturbed **{self.y}** should be called **{self.y}** again. The strongest wrong "
            f"class is **{self.names[strongest]}**"
            + (
                r", y′ itself, so $\mathcal{L}_{bce2}$ equals $\mathcal{L}_{asr}$."
                if strongest == self.trace.target
                else "."
            ),
            self.show_perturbed,
        )

    def sum(self) -> Scene:
        losses, weights = self.trace.before.losses, self.trace.weights
        tied = self.cfg.lambda4 is None
        symbols = dict(zip(TERMS, ("_1", "_2", "_3", "_3" if tied else "_4"), strict=True))

        def show() -> None:
            st.table(
                {
                    "term": [TERMS[n] for n in TERMS if n in losses] + ["**sum**"],
                    "value": [f"{losses[n]:.4g}" for n in TERMS if n in losses] + [""],
                    "weight": [f"$\\lambda{symbols[n]}$ = {weights[n]:g}" for n in TERMS if n in losses]
                    + [""],
                    "weight × value": [f"{weights[n] * losses[n]:.4g}" for n in TERMS if n in losses]
                    + [f"**{losses['total']:.4g}**"],
                },
                border="horizontal",
                hide_index=True,
            )

        biggest = max((n for n in TERMS if n in losses), key=lambda n: weights[n] * losses[n])
        return Scene(
            "Both levels in one objective · Eq. 5",
            [
                r"\min_\theta\; \lambda_1 \mathcal{L}_{bn} + \lambda_2 \mathcal{L}_{asr} + \lambda_3 "
                + (r"\mathcal{L}_{bce}" if tied else r"\mathcal{L}_{bce1} + \lambda_4 \mathcal{L}_{bce2}"),
                rf"\text{{where }} \delta^* = \underset{{\delta}}{{\arg\min}}\; "
                rf"\mathcal{{L}}_{{CE}}({self.f}(x+\delta), y')",
                rf"y' = \underset{{k \neq y}}{{\arg\max}}\; {self.f}(x)_k",
            ],
            f"The weighted terms add up to **{losses['total']:.4g}**. {TERMS[biggest]} has the largest share here. "
            "The trainer takes the mean of this over a batch; here the batch is one image.",
            show,
        )

    def update(self) -> Scene:
        trace, cfg = self.trace, self.cfg
        before, after = trace.before, trace.after
        total = float(np.sqrt(sum(part.gradient**2 for part in trace.parts)))
        words = {"conv.weight": "1×1 convolution", "bn.weight": "BatchNorm γ", "bn.bias": "BatchNorm β"}
        k, y = trace.target, trace.label

        def show() -> None:
            st.table(
                {
                    "part of θ": [words[p.name] for p in trace.parts],
                    "numbers": [f"{p.numbers:,}" for p in trace.parts],
                    "norm of its gradient": [f"{p.gradient:.3g}" for p in trace.parts],
                    "norm": [f"{p.before:.4g}" for p in trace.parts],
                    "changed by": [f"{p.change:.3g}" for p in trace.parts],
                },
                border="horizontal",
                hide_index=True,
            )
            terms = [n for n in (*TERMS, "total") if n in before.losses]
            st.table(
                {
                    "loss": [TERMS.get(n, "**sum**") for n in terms],
                    "before the step": [f"{before.losses[n]:.4g}" for n in terms],
                    "after it": [f"{after.losses[n]:.4g}" for n in terms],
                },
                border="horizontal",
                hide_index=True,
            )
            if trace.inner:
                self.logits(
                    {"f̂ on x + δ*, before": before.perturbed, "after the step": after.perturbed}, top=6
                )

        effect = (
            f"On the same perturbed image {self.target} goes from {probability(before.perturbed, k):.1%} to "
            f"**{probability(after.perturbed, k):.1%}**, {self.y} from {probability(before.perturbed, y):.1%} to "
            f"**{probability(after.perturbed, y):.1%}**. "
            if trace.inner
            else ""
        )
        return Scene(
            "The polarizer learns",
            [
                rf"\theta \leftarrow \theta - {trace.lr:g}\, (\nabla_\theta \mathcal{{L}} "
                rf"+ {0 if cfg.decay_to_identity else cfg.weight_decay:g}\, \theta)"
            ],
            f"One step of SGD on θ alone; the gradient is {total:.3g} long. {effect}A training takes many such steps, "
            "each with other images, and momentum carries each into the next.",
            show,
        )

    # --- pieces

    def show_perturbed(self) -> None:
        self.pictures(("perturbed image x + δ*", picture(self.trace.perturbed)))
        self.logits({"f̂ on x + δ*": self.trace.before.perturbed}, top=6)

    def filled(self, term: str, rest_: float) -> list[str]:
        """The formula -log(1 - s) with its numbers."""
        value = tex(self.trace.before.losses[term])
        if self.cfg.log_form == "mart":
            return [rf"= -\log({tex(rest_)} + 10^{{-4}}) = {value}"]
        return [rf"= -\log {tex(rest_)} = {value}"]

    def pull(self, term: str) -> str:
        value = self.trace.before.losses[term]
        return "asks for little" if value < 0.1 else "asks for something" if value < 1 else "asks for much"

    def says(self, inner: Inner) -> str:
        k = int(inner.logits.argmax())
        mark = (
            "y′" if k == self.trace.target else "the true class" if k == self.trace.label else "another class"
        )
        return f"**{self.names[k]}** ({mark}, {probability(inner.logits, k):.1%})"

    def pictures(self, *found: tuple[str, np.ndarray]) -> None:
        with st.container(horizontal=True, gap="medium"):
            for caption, image in found:
                st.image(
                    png(image, max(1, PIXELS // image.shape[-1])),
                    caption,
                    width=PIXELS,
                    alt=f"{caption}: {self.y}",
                )

    def logits(self, rows: dict[str, np.ndarray], top: int = 12) -> None:
        bars = logit_bars(rows, self.names, self.trace.label, self.trace.target, top)
        said = "; ".join(f"{who}: {self.names[int(z.argmax())]} is the largest" for who, z in rows.items())
        chart(logit_figure(bars, tiles.mode()), key=f"logits-{len(rows)}", alt=f"Logits. {said}.")
