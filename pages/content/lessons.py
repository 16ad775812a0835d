"""Lessons for a class, and views that leave out parts of a page. Plain values; no torch.

A view is named in the address as `?view=NAME`: one of `VIEWS`, a lesson ("layer": its first step), or one step of it
("layer-2").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from npd_core.errors import unknown_name

PARTS = {
    "menu": "the menu of pages",
    "model": "the choice of model and run",
    "settings": "losses and training",
    "advanced": "advanced settings",
}
"""Parts of a page that a view may leave out, with the words for them."""


@dataclass(frozen=True)
class View:
    """Which parts are shown, and why one would want that."""

    shows: frozenset[str]
    about: str


VIEWS = {
    "simple": View(frozenset({"menu", "model", "settings"}), "Everything but the advanced settings."),
    "fixed": View(
        frozenset({"settings", "advanced"}), "One page with one model: no menu, no other model or run."
    ),
    "focus": View(frozenset(), "What the page is about, with its own choices; nothing else to set."),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to do on one page."""

    title: str
    page: str
    """Last part of the page's address; "" is the first page."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of settings of that page, as they stand in its address."""
    shows: frozenset[str] = frozenset()
    do: str
    see: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A few steps with one aim."""

    id: str
    title: str
    about: str
    minutes: int
    steps: tuple[Step, ...]
    model: str = ""
    """The model that it is about, chosen when it begins, where the zoo has it; "": any."""


@dataclass(frozen=True)
class Place:
    """One step of one lesson. `number` counts from 1."""

    lesson: Lesson
    number: int

    @property
    def step(self) -> Step:
        """The step itself."""
        return self.lesson.steps[self.number - 1]

    @property
    def name(self) -> str:
        """As it stands in the address: "layer-2"."""
        return f"{self.lesson.id}-{self.number}"

    @property
    def view(self) -> View:
        """What the step shows of its page."""
        return View(self.step.shows, self.step.title)

    @property
    def next(self) -> Place | None:
        """The step after this one; None at the end."""
        return Place(self.lesson, self.number + 1) if self.number < len(self.lesson.steps) else None

    @property
    def previous(self) -> Place | None:
        """The step before this one; None at the beginning."""
        return Place(self.lesson, self.number - 1) if self.number > 1 else None

    def query(self) -> dict[str, str]:
        """What stands in the address of the step: its view, then its settings."""
        values = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in self.step.settings.items()
        }
        return {"view": self.name, **values}

    def address(self) -> str:
        """Path and query, relative to the app, that open the step: "lab?view=layer-2&layer=layer4.1.conv1"."""
        return f"{self.step.page}?{urlencode(self.query())}"


_LIST = frozenset({"settings"})
_SIGNS = "signs-badnets_a2o-preact_resnet18-w16"
LESSONS: dict[str, Lesson] = {
    lesson.id: lesson
    for lesson in (
        Lesson(
            id="backdoor",
            title="What a backdoor is",
            about="A network that passes every test and still obeys a stranger; and why a small change of the picture "
            "is enough.",
            minutes=15,
            steps=(
                Step(
                    title="A good network",
                    page="predictions",
                    settings={"difference": False},
                    do="Look at the clean pictures only. Press **New sample** a few times and count the mistakes.",
                    see="Next to no mistakes. Whoever tests this network with ordinary pictures will trust it.",
                    question="A buyer measures the accuracy on clean pictures. What does that say about a backdoor?",
                    answer="Nothing. A backdoored network is as good on clean pictures as an honest one: that is what "
                    "the attacker wanted. Only pictures with the trigger show the backdoor, and the buyer does not "
                    "know the trigger.",
                ),
                Step(
                    title="The trigger",
                    page="predictions",
                    settings={"difference": True},
                    do="Compare each clean picture with its triggered copy. **Change × 10** shows what was changed.",
                    see="A small change, and the network says the same thing of nearly every picture: the attacker's "
                    "class, with high confidence.",
                    question="How did the network come to learn that?",
                    answer="A share of its training pictures carried the trigger and the attacker's label (the poison "
                    "ratio on the model card). For these the trigger was the one clue that always fitted, so the "
                    "network learned it as well as it learned the signs.",
                ),
                Step(
                    title="Where the network looks",
                    page="attributions",
                    do="Compare the maps of the triggered picture before the polarizer with those after it.",
                    see="Which pixels speak for the class. All maps have one scale, so strong colours mean the same "
                    "everywhere.",
                    question="Is such a map a proof of a backdoor?",
                    answer="No. Methods of attribution differ, and without the trigger there would be no picture to "
                    "look at. A map is a hint for somebody who already has a suspicion.",
                ),
                Step(
                    title="The filter",
                    page="predictions",
                    settings={"difference": False},
                    do="Now look at the third answer of each picture, **Purified**: the triggered picture, judged with "
                    "the polarizer in place.",
                    see="The pixels are the same as before. What changed is what passes on inside the network.",
                    question="After the repair the trigger hardly ever works (ASR near 0). Is the network repaired?",
                    answer="Not by that alone. A network that answers nonsense to triggered pictures has an ASR of 0 "
                    "as well. RA, the share that gets its true label again, must rise, and ACC must stay.",
                ),
            ),
        ),
        Lesson(
            id="layer",
            title="Which layer",
            about="The same filter at three places of the network: what it can hold back, and what goes around it.",
            minutes=25,
            model=_SIGNS,
            steps=(
                Step(
                    title="On the stream",
                    page="lab",
                    settings={"layer": "stream:layer3.1"},
                    do="Press **Train the polarizer** and wait for the result. Write down ACC, ASR and RA.",
                    see="The drawing shows the lens on the residual stream, before a block: the main path and the "
                    "shortcut both run through it.",
                    question="How many numbers does the filter learn, compared with the whole network?",
                    answer="C² + 2C for C channels at its layer: the 1×1 convolution and its BatchNorm. All other "
                    "weights stay as the attacker left them.",
                ),
                Step(
                    title="In the paper's place",
                    page="lab",
                    settings={"layer": "layer4.1.conv1"},
                    do="The lens now stands before `layer4.1.conv1`, where the paper puts it. Train again and write "
                    "down the three numbers.",
                    see="Look for the shortcut of this block in the drawing. Does the lens stand on it?",
                    question="What can pass by the filter here?",
                    answer="The features on the shortcut. They are added to the filtered branch after it, so what they "
                    "know of the trigger reaches the end of the network unfiltered.",
                ),
                Step(
                    title="Right behind the pixels",
                    page="lab",
                    settings={"layer": "layer1.0.conv1"},
                    do="Before you train, guess: will this early place be better or worse? Then train and compare.",
                    see="ACC as well as ASR. A filter has to be able to tell the trigger from the picture.",
                    question="Why is it hard to filter so early?",
                    answer="The features here are edges and colours of small spots. A patch of a few white pixels is "
                    "hardly different from a bright spot of the picture. A 1×1 convolution sees one place at a time, "
                    "and this block has its shortcut too.",
                ),
                Step(
                    title="Compare",
                    page="runs",
                    do="Choose your three runs under **Compare**: their curves are drawn on one scale.",
                    see="Which place kept ACC, which one brought ASR down, which one brought RA up.",
                    question="One run at each place, one seed. What may you conclude?",
                    answer="What you saw for this network, this trigger and this seed. For a rule, repeat it with "
                    "other seeds and other attacks, and say how much the numbers spread.",
                ),
            ),
        ),
        Lesson(
            id="clean-data",
            title="How much clean data",
            about="The defender owns only a few clean pictures. How few are enough?",
            minutes=25,
            model=_SIGNS,
            steps=(
                Step(
                    title="Everything the defender has",
                    page="lab",
                    settings={"clean": 360},
                    shows=_LIST,
                    do="Train with 360 clean images and write down ACC, ASR, RA and the seconds.",
                    see="The loss terms fall, the trigger dies. The test pictures are only measured, never trained on.",
                    question="Why may the defender not train on triggered pictures?",
                    answer="There are none: the defender does not know the trigger. The inner perturbation stands in "
                    "for it, made anew for each clean image.",
                ),
                Step(
                    title="A sixth of it",
                    page="lab",
                    settings={"clean": 60},
                    shows=_LIST,
                    do="Now 60 images. Guess first which of the three numbers will suffer most, then train.",
                    see="It takes as many steps as before: an epoch passes over the 60 images more often.",
                    question="Why does that make the comparison a fair one?",
                    answer="With one pass an epoch, fewer images would mean less training too, and nobody could say "
                    "which of the two was to blame. With **Least steps of an epoch**, among the advanced settings, "
                    "only the data differs.",
                ),
                Step(
                    title="One or two of each class",
                    page="lab",
                    settings={"clean": 24},
                    shows=_LIST,
                    do="24 images: two of each of the twelve signs. Train.",
                    see="Whether the polarizer learns the signs, or these 24 pictures by heart.",
                    question="What would tell the defender, who has no triggered pictures, that it went wrong?",
                    answer="Clean images held out of the training: their accuracy falls when the polarizer fits the "
                    "few it was shown. Of the trigger they say nothing.",
                ),
                Step(
                    title="Compare",
                    page="runs",
                    do="Choose your three runs under **Compare**.",
                    see="In the table of settings only the number of clean images differs, if you changed nothing "
                    "else.",
                    question="The paper uses 5 % of the training set, and shows smaller sets in Table 6. How would you "
                    "choose the number for a network of your own?",
                    answer="As many as can be had and trusted: each must be surely clean, with its true label. Then "
                    "measure, on clean images held out, where more no longer helps.",
                ),
            ),
        ),
    )
}


def get_view(name: str) -> View | Place:
    """What `?view=NAME` asks for. Raises UnknownNameError."""
    if name in VIEWS:
        return VIEWS[name]
    lesson, _, number = name.rpartition("-")
    if name in LESSONS:
        return Place(LESSONS[name], 1)
    if (
        lesson in LESSONS
        and number.isascii()
        and number.isdigit()
        and 1 <= int(number) <= len(LESSONS[lesson].steps)
    ):
        return Place(LESSONS[lesson], int(number))
    steps = [Place(known, k).name for known in LESSONS.values() for k in range(1, len(known.steps) + 1)]
    raise unknown_name("view", name[:40], [*VIEWS, *LESSONS, *steps])
