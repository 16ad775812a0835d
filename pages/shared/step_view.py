"""The parts of one training step on one clean image: formulas, text, and their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import streamlit as st

from npd_core.config.npd import NPDConfig
from npd_core.figures.predictions import png
from npd_core.figures.steps import logit_bars, logit_figure, probability, rest, signed_image, tex, to_uint8
from npd_core.polarizer.trace import Trace
from pages.shared import tiles
from pages.shared.components.chart import chart
from pages.shared.text import plain

PIXELS = 160  # width of an image on the page
NORMS = {"l2": "2", "l1": "1", "linf": r"\infty"}
DIRECTIONS = {"sign": r"\mathrm{sign}(g)", "l2": r"g / \lVert g \rVert_2", "raw": "g"}
TERMS = {name: rf"$\mathcal{{L}}_{{{name}}}$" for name in ("bn", "asr", "bce1", "bce2")}
PARAMETERS = {"conv.weight": "1×1 convolution", "bn.weight": "BatchNorm γ", "bn.bias": "BatchNorm β"}


class Part(NamedTuple):
    """One part of the step."""

    title: str
    """With the equation of the paper that it is about."""
    formulas: list[str]
    text: str
    show: Callable[[], None]


class StepView:
    """A traced step as a sequence of parts."""

    def __init__(self, trace: Trace, cfg: NPDConfig, names: Sequence[str], number: int) -> None:
        self.trace, self.cfg, self.names, self.number = trace, cfg, names, number
        self.y, self.target = plain(names[trace.label]), plain(names[trace.target])
        self.base = cfg.attack_on == "base"
        self.f = r"f_w" if self.base else r"\hat f_\theta"
        network = "backdoored network" if self.base else "network with the polarizer"
        self.attacked = f"the {network} ${self.f}$"
        self.scale = max((float(np.abs(i.delta).max()) for i in trace.inner), default=0.0) or 1.0

    def parts(self) -> list[Part]:
        """Return all parts, in the order of the algorithm."""
        inner = [self.inner(k) for k in range(1, len(self.trace.inner))] or [self.no_inner()]
        losses = [self.asr_loss(), self.bce_loss()] if self.trace.inner else []
        return [
            self.network(),
            self.surrogate(),
            *inner,
            self.clean_loss(),
            *losses,
            self.sum(),
            self.update(),
        ]

    def network(self) -> Part:
        channels = next(part.numbers for part in self.trace.parts if part.name == "bn.weight")

        def show() -> None:
            self.show_clean()
            self.logits({"f̂ on the clean image": self.trace.before.clean})

        return Part(
            "The network with the polarizer · Eq. 1",
            [
                r"f = f^{(L)} \circ \cdots \circ f^{(1)}",
                r"\hat f_\theta = \cdots \circ f^{(l)} \circ g_\theta \circ f^{(l-1)} \circ \cdots",
                r"g_\theta(h) = \mathrm{BN}(\mathrm{Conv}_{1\times1}(h))",
            ],
            f"Clean image {self.number} shows **{self.y}**. The network is frozen. The polarizer is inserted "
            f"at `{self.trace.layer}`, where the features have {channels} channels. Only its {channels}² + "
            f"2 · {channels} = **{channels * channels + 2 * channels:,}** parameters θ are trained.",
            show,
        )

    def surrogate(self) -> Part:
        z = self.trace.attacked
        return Part(
            "The surrogate target y′ · Eq. 5",
            [rf"y' = \underset{{k \neq y}}{{\arg\max}}\; {self.f}(x)_k"],
            "The defender does not know the target class, so the strongest wrong class stands in for it. "
            f"Apart from **{self.y}** ({z[self.trace.label]:.2f}), {self.attacked} gives **{self.target}** "
            f"the largest logit, {z[self.trace.target]:.2f}. So y′ = **{self.target}**.",
            lambda: self.logits({f"{'f_w' if self.base else 'f̂'} on the clean image": z}, top=24),
        )

    def inner(self, k: int) -> Part:
        cfg, before, now = self.cfg, self.trace.inner[k - 1], self.trace.inner[k]
        assert before.gradient is not None
        assert before.unprojected is not None
        gradient, norm = before.gradient, before.unprojected
        if norm > now.norm * (1 + 1e-6):
            length = (
                f"It makes δ {norm:.2f} long; as ρ = {cfg.rho:g}, δ is projected back to **{now.norm:.2f}**."
            )
        else:
            length = f"It makes δ **{now.norm:.2f}** long, within ρ = {cfg.rho:g}."
        end = ""
        if k == len(self.trace.inner) - 1:
            if self.trace.stopped_early(cfg.inner_steps):
                end = f" y′ is reached, so the loop **stops early**, after {k} of {cfg.inner_steps} steps."
            elif self.base and cfg.early_stop is not None and k > 1:
                end = " $f_w$ never changes, so δ* is computed once per image, without the early stop."

        def show() -> None:
            steepest = float(np.abs(gradient).max()) or 1.0
            self.images(
                (f"gradient g, ± {steepest:.1g}", signed_image(gradient, steepest)),
                (f"δ, amplified ×{0.5 / self.scale:.0f}", signed_image(now.delta, self.scale)),
                ("x + δ, clipped", to_uint8(self.trace.at(k))),
            )
            self.logits({"before this step": before.logits, "after it": now.logits}, top=6)

        return Part(
            f"Adversarial perturbation, inner step {k} of {cfg.inner_steps} · Eq. 4",
            [
                rf"\delta^* = \underset{{\lVert\delta\rVert_{{{NORMS[cfg.norm]}}} \leq \rho}}{{\arg\min}}\; "
                rf"\mathcal{{L}}_{{CE}}({self.f}(x+\delta),\, y')",
                rf"g = \nabla_\delta \mathcal{{L}}_{{CE}},\quad "
                rf"\delta \leftarrow \Pi_\rho(\delta - {cfg.inner_lr:g}\, {DIRECTIONS[cfg.inner_step]})",
            ],
            f"A small perturbation δ makes {self.attacked} predict **{self.target}**. This step changes the "
            f"loss toward y′ from {before.loss:.3g} to "
            f"**{now.loss:.3g}**{': the step was too long' if now.loss > before.loss else ''}. {length} The "
            f"prediction is now {self.predicted(now.logits)}.{end}",
            show,
        )

    def no_inner(self) -> Part:
        return Part(
            "No inner level",
            [r"\lambda_2 = \lambda_3 = \lambda_4 = 0"],
            "The terms on perturbed images have no weight, so no perturbation is computed and only the "
            "loss on clean images remains. Raise λ₂ or λ₃ to see the inner steps.",
            self.show_clean,
        )

    def clean_loss(self) -> Part:
        z, y = self.trace.before.clean, self.trace.label

        def show() -> None:
            self.show_clean()
            self.logits({"f̂ on x": z}, top=6)

        return Part(
            "Loss on the clean image · Eq. 5",
            [
                r"\mathcal{L}_{bn} = \mathcal{L}_{CE}(\hat f_\theta(x), y) = -\log s_y(x)",
                rf"= -\log {tex(probability(z, y))} = {tex(self.trace.before.losses['bn'])}",
            ],
            rf"This term preserves clean accuracy: $\hat f_\theta$ should keep predicting **{self.y}**. It "
            f"gives this class {probability(z, y):.1%}, so {self.size('bn')}.",
            show,
        )

    def asr_loss(self) -> Part:
        z, k = self.trace.before.perturbed, self.trace.target
        return Part(
            "Loss for leaving y′ · Eq. 2",
            [r"\mathcal{L}_{asr} = -\log(1 - s_{y'}(x + \delta^*))", self.filled("asr", rest(z, k))],
            r"The perturbation should not change the prediction to y′. On the perturbed image $\hat "
            rf"f_\theta$ gives y′ = **{self.target}** {probability(z, k):.1%}, so {self.size('asr')}.",
            self.show_perturbed,
        )

    def bce_loss(self) -> Part:
        z, y = self.trace.before.perturbed, self.trace.label
        strongest = max((k for k in range(len(z)) if k != y), key=lambda k: float(z[k]))
        same = r", which is y′, so $\mathcal{L}_{bce2}$ equals $\mathcal{L}_{asr}$"
        symbol = "y"
        if self.cfg.bce1_label == "pred":
            y, symbol = int(self.trace.before.clean.argmax()), r"{\hat y}"
        return Part(
            "Loss for returning to y · Eq. 3",
            [
                r"\mathcal{L}_{bce} = \mathcal{L}_{bce1} + \mathcal{L}_{bce2}",
                rf"\mathcal{{L}}_{{bce1}} = -\log s_{symbol}(x + \delta^*)",
                rf"= -\log {tex(probability(z, y))} = {tex(self.trace.before.losses['bce1'])}",
                r"\mathcal{L}_{bce2} = -\log(1 - \max_{k \neq y} s_k(x + \delta^*))",
                self.filled("bce2", rest(z, strongest)),
            ],
            f"Leaving y′ is not enough: the perturbed image should be predicted as **{self.y}** again. The "
            "strongest wrong class is "
            f"**{plain(self.names[strongest])}**{same if strongest == self.trace.target else ''}.",
            self.show_perturbed,
        )

    def sum(self) -> Part:
        losses, weights = self.trace.before.losses, self.trace.weights
        tied = self.cfg.lambda4 is None
        symbols = dict(zip(TERMS, ("_1", "_2", "_3", "_3" if tied else "_4"), strict=True))
        terms = [name for name in TERMS if name in losses]
        products = {name: weights[name] * losses[name] for name in terms}
        return Part(
            "Both levels in one objective · Eq. 5",
            [
                r"\min_\theta\; \lambda_1 \mathcal{L}_{bn} + \lambda_2 \mathcal{L}_{asr} + \lambda_3 "
                + (r"\mathcal{L}_{bce}" if tied else r"\mathcal{L}_{bce1} + \lambda_4 \mathcal{L}_{bce2}"),
                rf"\text{{where }} \delta^* = \underset{{\delta}}{{\arg\min}}\; "
                rf"\mathcal{{L}}_{{CE}}({self.f}(x+\delta), y')",
                rf"y' = \underset{{k \neq y}}{{\arg\max}}\; {self.f}(x)_k",
            ],
            f"The weighted terms add up to **{losses['total']:.4g}**. "
            f"{TERMS[max(terms, key=lambda name: products[name])]} contributes most. Training averages this "
            "sum over a batch; here the batch is one image.",
            lambda: _table(
                {
                    "term": [TERMS[name] for name in terms] + ["**sum**"],
                    "value": [f"{losses[name]:.4g}" for name in terms] + [""],
                    "weight": [f"$\\lambda{symbols[name]}$ = {weights[name]:g}" for name in terms] + [""],
                    "weight × value": [f"{products[name]:.4g}" for name in terms]
                    + [f"**{losses['total']:.4g}**"],
                }
            ),
        )

    def update(self) -> Part:
        trace, cfg = self.trace, self.cfg
        before, after = trace.before, trace.after
        norm = float(np.sqrt(sum(part.gradient**2 for part in trace.parts)))
        terms = [name for name in (*TERMS, "total") if name in before.losses]
        effect = ""
        if trace.inner:
            (old_t, new_t), (old_y, new_y) = (
                (probability(z.perturbed, k) for z in (before, after)) for k in (trace.target, trace.label)
            )
            effect = (
                f" On the same perturbed image the probability of {self.target} goes from {old_t:.1%} to "
                f"**{new_t:.1%}**, that of {self.y} from {old_y:.1%} to **{new_y:.1%}**."
            )

        def show() -> None:
            _table(
                {
                    "part of θ": [PARAMETERS[part.name] for part in trace.parts],
                    "parameters": [f"{part.numbers:,}" for part in trace.parts],
                    "norm of the gradient": [f"{part.gradient:.3g}" for part in trace.parts],
                    "norm": [f"{part.before:.4g}" for part in trace.parts],
                    "norm of the change": [f"{part.change:.3g}" for part in trace.parts],
                }
            )
            _table(
                {
                    "loss": [TERMS.get(name, "**sum**") for name in terms],
                    "before the step": [f"{before.losses[name]:.4g}" for name in terms],
                    "after it": [f"{after.losses[name]:.4g}" for name in terms],
                }
            )
            if trace.inner:
                rows = {"f̂ on x + δ*, before": before.perturbed, "after the step": after.perturbed}
                self.logits(rows, top=6)

        return Part(
            "Update of the polarizer",
            [
                rf"\theta \leftarrow \theta - {trace.lr:g}\, (\nabla_\theta \mathcal{{L}} "
                rf"+ {0 if cfg.decay_to_identity else cfg.weight_decay:g}\, \theta)"
            ],
            f"One step of SGD on θ alone; the norm of the gradient is {norm:.3g}.{effect} Training takes "
            "many such steps on other images, with momentum.",
            show,
        )

    def show_clean(self) -> None:
        self.images(("clean image x", to_uint8(self.trace.image)))

    def show_perturbed(self) -> None:
        self.images(("perturbed image x + δ*", to_uint8(self.trace.perturbed)))
        self.logits({"f̂ on x + δ*": self.trace.before.perturbed}, top=6)

    def filled(self, term: str, remainder: float) -> str:
        """Return the formula -log(1 - s) with its numbers."""
        inside = tex(remainder) if self.cfg.log_form != "mart" else rf"({tex(remainder)} + 10^{{-4}})"
        return rf"= -\log {inside} = {tex(self.trace.before.losses[term])}"

    def size(self, term: str) -> str:
        value = self.trace.before.losses[term]
        return f"this term is {'small' if value < 0.1 else 'moderate' if value < 1 else 'large'}"

    def predicted(self, logits: np.ndarray) -> str:
        k = int(logits.argmax())
        kind = {self.trace.target: "y′", self.trace.label: "the true class"}.get(k, "another class")
        return f"**{plain(self.names[k])}** ({kind}, {probability(logits, k):.1%})"

    def images(self, *found: tuple[str, np.ndarray]) -> None:
        with st.container(horizontal=True, gap="medium"):
            for caption, image in found:
                pixels = png(image, max(1, PIXELS // image.shape[-1]))
                st.image(pixels, caption, width=PIXELS, alt=f"{caption}: {self.y}")

    def logits(self, rows: dict[str, np.ndarray], top: int = 12) -> None:
        bars = logit_bars(rows, self.names, self.trace.label, self.trace.target, top)
        largest = "; ".join(f"{row}: {self.names[int(z.argmax())]}" for row, z in rows.items())
        chart(
            logit_figure(bars, tiles.mode()),
            key=f"logits-{len(rows)}",
            alt=f"Logits, the largest: {largest}.",
        )


def _table(columns: dict[str, list[str]]) -> None:
    st.table(columns, border="horizontal", hide_index=True)
