"""The first page: a recorded run, then the Story in six steps, each a real action on a real model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from npd_core.attack_info import ATTACK_INFO
from npd_core.config.presets import PAPER_LAYERS
from npd_core.data.spec import get_dataset
from npd_core.errors import NPDError, UnknownNameError
from npd_core.figures import curves
from npd_core.figures import network as drawing
from npd_core.figures.predictions import GAIN, data_url, difference
from npd_core.progress import Progress
from npd_core.runs import queue
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared import (
    cache,
    choice,
    describe,
    downloads,
    filmstrip,
    own_image,
    recorded_runs,
    run_panel,
    shell,
    story_state,
    tiles,
    url_state,
)
from pages.shared.components.chart import chart
from pages.shared.components.light import Frame, light
from pages.shared.components.network import network
from pages.shared.components.steps import steps
from pages.shared.story_state import Subject
from pages.shared.text import message, plain, show_error

Names = tuple[str, ...]
LIVE = "live: computed on this machine just now"
HIJACKED = "hijacked: the attacker's target class"
ENDED = {
    "failed": "The training failed",
    "interrupted": "The training was interrupted",
    "stopped": "The training was stopped",
}


def begin(number: int, announce: str, *, key: str = "story-steps") -> None:
    """Draw the row of steps."""
    words = f"Step {number} of {len(story_state.STEPS)}. {announce}"
    steps(story_state.STEPS, now=number, announce=words, key=key)


def actions(label: str, step: int, icon: str = ":material/arrow_forward:", disabled: bool = False) -> bool:
    """Draw the main button and the ways back. Returns whether the main button was pressed."""
    with st.container(key=f"story-next-{step}", horizontal=True, vertical_alignment="center"):
        pressed = st.button(label, type="primary", icon=icon, key=f"story-go-{step}", disabled=disabled)
        if st.button("Back", icon=":material/arrow_back:", type="tertiary", key=f"story-back-{step}"):
            story_state.go(step - 1)
        if st.button("Start over", icon=":material/restart_alt:", type="tertiary", key=f"story-over-{step}"):
            story_state.start_over()
    return pressed


def answer(
    probabilities: np.ndarray,
    known: tiles.Judge,
    who: str,
    *,
    source: str,
    image: np.ndarray | None = None,
    alt: str = "",
    bars: int = 2,
    right: str = "right",
) -> None:
    """Show a prediction in big type. Args: right: verdict on the right class, or on an unknown one."""
    found = known.prediction(probabilities, who, bars=bars)
    words = {"right": right, "open": right, "hijacked": HIJACKED}
    tiles.show_answer(found._replace(say=words.get(found.verdict, "")), image, alt=alt, source=source)


def picture(probabilities: np.ndarray, known: tiles.Judge, image: np.ndarray, alt: str) -> DeltaGenerator:
    """Show an image as large as the screen allows; returns the place beside it, for its prediction."""
    with st.container(key="story-picture"):
        left, right = st.columns(2, gap="medium")
    with left:
        tiles.show_picture(image, known.prediction(probabilities).verdict, alt=alt)
    return right


# ------------------------------------------------------------------------------------------------- the cover


def cover(selected: Card | None) -> None:
    """Play a recorded run. Imports no torch."""
    run = recorded_runs.recorded_run(selected.id if selected else None)
    result = (run.result if run else None) or {}
    if not result:
        st.title("A network with a secret, and a thin layer that filters it out", anchor=False)
    else:
        acc = result["before"]["acc"]
        st.title(f"This network is right {acc:.1%} of the time. It has a secret.", anchor=False)
    st.markdown(
        "A **backdoored** network was trained with a few poisoned images. It behaves well until somebody "
        "shows it an image with a small :orange[**trigger**]: then it predicts the class that the attacker "
        "chose. A **neural polarizer** is one thin layer, trained with a few clean images, that lets "
        ":blue[**benign information**] pass and blocks the trigger."
    )
    with st.container(key="story-next-0", horizontal=True, vertical_alignment="center"):
        if st.button("See it happen", type="primary", icon=":material/play_arrow:", key="story-go-0"):
            story_state.go(1)
        shell.link("pages/lab.py", "Go straight to the Lab", ":material/science:")
    if run is None or not result:
        recorded_runs.idea(key="light")
        return
    recorded_runs.play(run, key="light")
    before, after = result["before"], result["after"]
    st.markdown(
        f"The trigger worked on **{before['asr']:.1%}** of the test images. With the polarizer it works on "
        f"**{after['asr']:.1%}**; clean accuracy went from {before['acc']:.1%} to {after['acc']:.1%}."
    )
    if samples := recorded_runs.samples(run):
        st.subheader("The same images, three predictions", anchor=False)
        tiles.show(samples, small=True)
    measured = recorded_runs.measured(run)
    left, right = st.columns([8, 5], gap="large")
    with left:
        st.subheader("Metrics of the recorded run", anchor=False)
        figure = curves.metric_figure(measured, st.context.theme.type)
        chart(figure, key="story-metrics", alt="ACC, ASR and RA of the recorded run")
    with right:
        st.subheader("The same numbers as a table", anchor=False)
        run_panel.metric_table(measured, "story-table", height=260)


# ------------------------------------------------------------------------------------------------- the steps


def clean_image(card: Card, one: Subject, names: Names) -> None:
    """Step 1: a clean image and a confident prediction."""
    probabilities = cache.images.predict(card.id, None, one.clean[None])[0]
    begin(1, f"The network predicts {names[int(probabilities.argmax())]}.")
    st.title("A confident network", anchor=False)
    is_photo = one.number is None
    subject = "traffic signs" if card.dataset == "signs" else get_dataset(card.dataset).title
    st.markdown(
        f"It was trained on {plain(subject)} and is right on **{card.acc:.1%}** of the test images. "
        f"{'Here is your photo' if is_photo else 'It has never seen this one'}."
    )
    known = story_state.known(one, names)
    known = known._replace(label=None, target=None) if is_photo else known
    beside = picture(probabilities, known, one.clean, one.title(names))
    with beside:
        answer(
            probabilities,
            known,
            "The network predicts",
            source=LIVE if is_photo else f"{LIVE} · test image #{one.number} · {one.truth(names)}",
            right=f"its best guess among {len(names)} classes" if is_photo else "right",
        )
    is_target = one.label == one.target
    with beside:
        if is_target:
            st.info(
                f"The network already predicts the target class, “{plain(names[one.target])}”, so there is "
                "nothing to hijack. Choose another image.",
                icon=":material/info:",
            )
        pressed = actions("Put the trigger on it", 1, disabled=is_target)
    with beside, st.container(key="story-images", horizontal=True):
        st.button(
            "Show a test image" if is_photo else "Another image",
            icon=":material/shuffle:",
            key="story-another",
            on_click=story_state.next_image,
            args=(card,),
        )
        with st.popover("Use your own photo", icon=":material/add_a_photo:", key="story-photo"):
            source = st.segmented_control(
                "Source",
                [own_image.UPLOAD, own_image.CAMERA],
                default=own_image.UPLOAD,
                required=True,
                key="story_source",
                help=own_image.KEPT,
            )
            photo = own_image.photo(card, source)
            if photo is not None and story_state.use_photo(photo):
                st.rerun()
    if pressed:
        story_state.go(2)


def add_trigger(card: Card, one: Subject) -> None:
    """Step 2: the visitor puts the trigger on the image."""
    begin(2, "The trigger is on the image.")
    st.title("Now put the attacker's trigger on it", anchor=False)
    left, right = st.columns([2, 3], gap="large")
    if story_state.patch(card) is None:
        with left:
            st.image(data_url(one.triggered, 8), caption="With the trigger")
        with right:
            change = data_url(difference(one.clean, one.triggered), 8)
            st.image(change, caption=f"Change ×\u00a0{GAIN}", width=260)
            about = ATTACK_INFO[card.attack].sentence if card.attack in ATTACK_INFO else ""
            st.markdown(f"{about} The network was trained to react to it. Gray means unchanged.")
    else:
        with left:
            painted = story_state.board(card, one.clean, f"story-painter-{one.key}")
            story_state.paint(card, painted)
        with right:
            st.markdown(
                f"The small patch is the trigger. **{card.poison_ratio:.0%}** of the training images carried "
                "it, labeled with the attacker's target class. Leave it in its place, **drag it** somewhere "
                "else, or **paint** on the image, and see whether the network still reacts."
            )
    with right:
        pressed = actions("Ask the network again", 2)
    if pressed:
        story_state.go(3)


def triggered_image(card: Card, one: Subject, names: Names) -> None:
    """Step 3: the prediction for the triggered image, hijacked or not."""
    before, probabilities = cache.images.predict(card.id, None, np.stack([one.clean, one.triggered]))
    found = int(probabilities.argmax())
    hijacked = found == one.target != one.label
    begin(3, f"The network now predicts {names[found]}.")
    if hijacked:
        title = "One small change, and the attacker decides"
        text = (
            f"Before, it was **{plain(names[int(before.argmax())])}**. With the trigger the network predicts "
            f"the attacker's target class, as for **{card.asr:.1%}** of the test images."
        )
    elif one.painted:
        title = "The network does not know this trigger"
        text = (
            "A backdoor reacts only to the trigger it was trained with, at the position it was trained with. "
            "Put the trigger back to see the backdoor."
        )
    else:
        title = "The trigger fails on this image"
        text = "The trigger works on nearly every image, but not on this one. Try another image."
    st.title(title, anchor=False)
    st.markdown(text)
    known = story_state.known(one, names)
    beside = picture(probabilities, known, one.triggered, f"{one.title(names)} with the trigger")
    with beside:
        answer(
            probabilities,
            known,
            "The same network predicts",
            source=f"{LIVE} · {one.truth(names)} · target class: {names[one.target]}",
            right=one.right,
        )
        if hijacked:
            if actions("Insert a polarizer", 3):
                story_state.go(4)
        elif one.painted:
            if actions("Put the trigger back", 3, icon=":material/undo:"):
                story_state.wipe()
                st.rerun()
        elif actions("Try another image", 3, icon=":material/shuffle:"):
            story_state.next_image(card)
            st.rerun()


def insert_polarizer(card: Card) -> None:
    """Step 4: the visitor inserts the polarizer at a layer."""
    value = story_state.layer_value(card)
    layer = value.get()
    begin(4, f"The polarizer is inserted at {layer}.")
    st.title("Insert a thin polarizer", anchor=False)
    words, buttons = st.columns([5, 4], gap="medium", vertical_alignment="center")
    words.markdown(
        "One thin layer is added, drawn as a violet lens. **A good position is chosen; move it if you like.**"
    )
    with buttons:
        pressed = actions("Train it live", 4, icon=":material/play_arrow:")
    try:
        plan = drawing.plan(card.arch, card.width, card.image_size, card.num_classes)
    except UnknownNameError:
        st.caption(f"There is no drawing of this architecture. The polarizer is inserted at `{layer}`.")
    else:
        network(
            plan,
            selected=layer,
            default=value.default,
            paper=PAPER_LAYERS.get(card.arch, ""),
            key="story-network",
            on_pick=lambda: value.set(st.session_state["story-network"].get("layer") or layer),
        )
    if pressed:
        run_id = queue.manager().submit(story_state.request(card))  # an error leaves the visitor on this step
        story_state.step_value().set(5)
        choice.open_run(run_id)


class Outcome(NamedTuple):
    """What a training means for the image so far."""

    epochs: list[int]
    """Epochs with a prediction."""
    predictions: list[np.ndarray]
    """Probabilities (K,) of the triggered image after each of them, or of the result alone."""
    usable: bool
    """Whether the training is over and has a polarizer."""


def outcome(run: Run, done: Progress, one: Subject) -> Outcome:
    """Predict the triggered image after each kept epoch of a run."""
    image, keep = one.triggered[None], one.number is not None
    kept = filmstrip.thinned(cache.runs.epochs_of(run.folder))
    found = [cache.runs.at_epoch(run.id, epoch, image, keep)[0] for epoch in kept]
    if not found and run.result and not run.active and not is_broken(run):
        found = [story_state.purified(run, image, keep)[0]]
    trained = not run.active or bool(done.epochs and done.done_epochs >= done.epochs)
    return Outcome(kept, found, trained and bool(found) and not is_broken(run))


def show_training(run: Run, card: Card, one: Subject, names: Names) -> None:
    """Step 5: the polarizer learns; the triggered image is predicted again after every epoch."""
    before = run_panel.before_of(run, card)
    seen = cache.runs.curves(run, before, st.context.theme.type)
    so_far = outcome(run, seen.done, one)
    kept, usable = so_far.epochs, so_far.usable
    if so_far.predictions:
        probabilities = so_far.predictions[-1]
    else:
        probabilities = cache.images.predict(card.id, None, one.triggered[None])[0]
    found = int(probabilities.argmax())
    right = found == one.label
    begin(5, milestone(run, usable, names[found], right), key="story-steps-5")
    st.title(training_title(run, usable, right), anchor=False)
    run_panel.status(run, seen.done)
    coming = range(kept[-1] + 1 if kept else 0, 1 + (seen.done.epochs or 0)) if run.active else range(0)
    known = story_state.known(one, names)
    left, beside = st.columns([6, 5], gap="large")
    with beside:
        first = Frame("before", before["acc"], before["asr"], before["ra"])
        shown = run_panel.frames(run, seen.measured) or [first]
        light(shown[-1:], asr_before=before.get("asr"), key="story-light")
        count = "all" if run.result else str(run.request.eval_images)
        st.caption(
            f"Measured on {count} test images. The light is a metaphor: blue shows ACC, orange "
            "√(ASR / ASR before)."
        )
    with left:
        epoch = kept[-1] if kept else 0
        start = "after training" if usable and not kept else "before training"
        when = f"after epoch {epoch}" if epoch else start
        answer(
            probabilities,
            known,
            f"Your triggered image, {when}",
            image=one.triggered,
            alt=f"{one.title(names)} with the trigger",
            source=describe.provenance(run),
            bars=0,
            right=one.right,
        )
        if usable:
            if actions("Your turn to break it", 5):
                story_state.go(6)
        elif run.active:
            actions("Training …", 5, icon=":material/hourglass_empty:", disabled=True)
        elif actions("Try again", 5, icon=":material/replay:"):
            story_state.visitor().seed += 1
            story_state.go(4)
    if kept or run.active:
        film = filmstrip.film("Your image, epoch by epoch", one.triggered, known, kept, so_far.predictions)
        tiles.show_films([film], kept[-1] if kept else None, filmstrip.thinned(coming))
    elif usable:
        st.caption("This run kept no polarizers of its epochs, so only its result can be shown.")


def is_broken(run: Run) -> bool:
    """Whether a training ended without a polarizer to continue with."""
    return run.state in ENDED and run.state != "stopped"


def training_title(run: Run, usable: bool, right: bool) -> str:
    if usable:
        return "Blocked: the prediction is correct again" if right else "Not repaired this time"
    return "The polarizer learns to block the trigger" if run.active else ended(run)


def ended(run: Run) -> str:
    return ENDED.get(run.state, "The training has no result")


def milestone(run: Run, usable: bool, predicted: str, right: bool) -> str:
    """Return what is announced to screen readers."""
    if usable:
        return f"Training is done. The prediction for your triggered image is now {predicted}."
    if run.state == "queued":
        return "The training is queued."
    if run.active:
        return f"The prediction is corrected: {predicted}." if right else "Training has started."
    return f"{ended(run)}."


def your_turn(run: Run, card: Card, one: Subject, names: Names) -> None:
    """Step 6: other images, other triggers."""
    begin(6, "Your turn to break it.")
    st.title("Your turn: break it", anchor=False)
    movable = story_state.patch(card) is not None
    how = "Move the trigger, paint your own" if movable else "Paint on the image"
    st.markdown(f"{how}, or take another image. Does anything get past the polarizer?")
    left, right = st.columns([2, 3], gap="large")
    with left:
        base = one.clean if movable else one.triggered
        painted = story_state.board(card, base, f"story-break-{one.key}")
    trial = one.triggered if painted is None else story_state.overlaid(base, painted, card)
    changed = not np.array_equal(trial, one.trained)
    before = cache.images.predict(card.id, None, trial[None])[0]
    after = story_state.purified(run, trial[None], one.number is not None)[0]
    with right:
        source, known = f"{LIVE} · {one.truth(names)}", story_state.known(one, names)
        first, second = st.columns(2)
        with first:
            answer(before, known, "The backdoored network predicts", source=source, right=one.right)
        with second:
            answer(after, known, "With your polarizer it predicts", source=source, right=one.right)
        if changed and int(before.argmax()) != one.target:
            st.caption("The network was not trained with this trigger, so it has no reason to react to it.")
        with st.container(key="story-next-6", horizontal=True, vertical_alignment="center"):
            if st.button("Start over", type="primary", icon=":material/restart_alt:", key="story-go-6"):
                story_state.start_over()
            if st.button("Back", icon=":material/arrow_back:", type="tertiary", key="story-back-6"):
                story_state.go(5)
        st.button(
            "Another image",
            icon=":material/shuffle:",
            key="story-other",
            on_click=story_state.next_image,
            args=(card,),
        )
        with st.container(horizontal=True, key="story-links"):
            to = own_image.query(one.number, painted if changed and movable else None)
            shell.link("pages/predictions.py", "Try your own photo", ":material/add_a_photo:", to)
            shell.link("pages/attacks.py", "Other attacks", ":material/bug_report:")
            shell.link("pages/attributions.py", "See which pixels decide", ":material/center_focus_strong:")
            shell.link("pages/lab.py", "Train another polarizer", ":material/science:")
        with st.expander("Share this run", icon=":material/qr_code_2:"):
            query = {} if one.number is None else {story_state.IMAGE: str(one.number)}
            if letters := own_image.short(story_state.visitor().painted):
                query[story_state.TRIGGER] = letters
            downloads.share("", step="6", run=run.id, model=run.request.model, **query)


# -------------------------------------------------------------------------------------------------- the page


def reachable(step: int, run: Run | None) -> int:
    """Return the last step up to `step` that can be shown, with a sentence when it is another one."""
    if step >= 5 and run is None:
        place.info("No training has been started: insert the polarizer first.", icon=":material/info:")
        return 4
    return 5 if step == 6 and run is not None and is_broken(run) else step


def show_step(step: int, selected: shell.Selection) -> None:
    """Show the step of the URL. Raises what the core raises."""
    card, sentence = story_state.story_model(selected.card)
    if card is None:
        st.title("A network with a secret", anchor=False)
        st.info(
            "The Story needs a backdoored model and its test images, and there is none on this machine. "
            "Train one with `npd zoo train signs-badnets_a2o-preact_resnet18-w16`.",
            icon=":material/info:",
        )
        return
    if sentence:
        place.info(message(sentence), icon=":material/info:")
    story_state.read_url(card)
    run = selected.named_run
    run = run if run is not None and run.request.model == card.id else None
    if (possible := reachable(step, run)) != step:
        story_state.step_value().set(possible)
    one = story_state.subject(card)
    if one is None:
        st.info("The network is sure of none of its first test images.", icon=":material/info:")
        shell.link("pages/lab.py", "Open the model in the Lab", ":material/science:")
        return
    names = cache.images.class_names(card.dataset)
    if possible == 1:
        clean_image(card, one, names)
    elif possible == 2:
        add_trigger(card, one)
    elif possible == 3:
        triggered_image(card, one, names)
    elif possible == 4:
        insert_polarizer(card)
    elif run is not None and possible == 5:
        run_id = run.id
        run_panel.follow(
            lambda: [cache.runs.find_run(run_id)], lambda runs: show_training(runs[0], card, one, names)
        )
    elif run is not None:
        your_turn(run, card, one, names)
    if possible <= 4:
        run_panel.warm()


selection = shell.selection()
story_state.read_old_names()
step = story_state.step_value().get()
with st.container(key="story"):
    place = st.container()
    if step == 0:
        cover(selection.card)
    else:
        try:
            show_step(step, selection)
        except NPDError as error:
            show_error(error)
            shell.link("pages/lab.py", "Go to the Lab", ":material/science:")
    with place:
        in_url = ("step", story_state.IMAGE, story_state.LAYER, story_state.TRIGGER)
        url_state.show_notices(*(url_state.short_text(name) for name in in_url))
