"""The first page: a recorded run at once, then the whole story in six steps, each a real action on a real model."""

from __future__ import annotations

import numpy as np
import streamlit as st

from npd_core.attack_info import ATTACK_INFO
from npd_core.config.presets import PAPER_LAYERS, default_layer
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
    lesson_view,
    own_image,
    paper_tables,
    recorded_runs,
    run_panel,
    shell,
    story_state,
)
from pages.shared.components.chart import chart
from pages.shared.components.light import Frame, light
from pages.shared.components.network import network
from pages.shared.components.steps import steps

LIVE = "live: computed on this machine just now"
ENDED = {
    "failed": "The training failed",
    "interrupted": "The training was interrupted",
    "stopped": "The training was stopped",
}


def begin(number: int, announce: str, *, key: str = "story-steps") -> None:
    """The row of steps."""
    steps(
        story_state.STEPS,
        now=number,
        announce=f"Step {number} of {len(story_state.STEPS)}. {announce}",
        key=key,
    )


def actions(label: str, step: int, icon: str = ":material/arrow_forward:", disabled: bool = False) -> bool:
    """The one button forward, with the ways back beside it. True when it was pressed."""
    with st.container(key=f"story-next-{step}", horizontal=True, vertical_alignment="center"):
        pressed = st.button(label, type="primary", icon=icon, key=f"story-go-{step}", disabled=disabled)
        if st.button("Back", icon=":material/arrow_back:", type="tertiary", key=f"story-back-{step}"):
            story_state.go(step - 1)
        if st.button("Start over", icon=":material/restart_alt:", type="tertiary", key=f"story-over-{step}"):
            story_state.start_over()
    return pressed


# ----------------------------------------------------------------------------------------------------------- the cover


def cover(selected: Card | None) -> None:
    """A recorded run, played. Imports no torch."""
    run = recorded_runs.recorded_run(selected.id if selected else None)
    if run is None or run.result is None:
        st.title("A network with a secret, and a thin layer that filters it out", anchor=False)
    else:
        before, after = run.result["before"], run.result["after"]
        st.title(f"This network is right {before['acc']:.1%} of the time. It has a secret.", anchor=False)
    st.markdown(
        "A **backdoored** network was trained on a few poisoned images: it behaves well until somebody shows it a "
        "small :orange[**trigger**], and then it answers what the attacker wants. A **neural polarizer** is one thin "
        "layer, learned from a few clean images, that lets :blue[**benign information**] pass and holds the trigger "
        "back."
    )
    with st.container(key="story-next-0", horizontal=True, vertical_alignment="center"):
        if st.button("See it happen", type="primary", icon=":material/play_arrow:", key="story-go-0"):
            story_state.go(1)
        shell.link("pages/lab.py", "Straight to the Lab", ":material/science:")
    if run is None or run.result is None:
        recorded_runs.idea(key="light")
        return
    recorded_runs.play(run, key="light")
    st.markdown(
        f"The trigger worked on **{before['asr']:.1%}** of images, after the polarizer on **{after['asr']:.1%}**; "
        f"clean accuracy went from {before['acc']:.1%} to {after['acc']:.1%}."
    )
    items = recorded_runs.pictures(run)
    if items:
        st.subheader("The same pictures, three answers", anchor=False)
        recorded_runs.strip(items)
    measured = recorded_runs.measured(run)
    left, right = st.columns([8, 5], gap="large")
    with left:
        st.subheader("What the recorded run did", anchor=False)
        chart(
            curves.metric_figure(measured, st.context.theme.type),
            key="story-metrics",
            alt="ACC, ASR and RA of the recorded run",
        )
    with right:
        st.subheader("The same as a table", anchor=False)
        share = st.column_config.NumberColumn(format="percent")
        st.dataframe(
            {"epoch": measured.epochs, "ACC": measured.acc, "ASR": measured.asr, "RA": measured.ra},
            hide_index=True,
            column_config=dict.fromkeys(("ACC", "ASR", "RA"), share),
            height=260,
            key="story-table",
        )


# ----------------------------------------------------------------------------------------------------------- the steps


def confident(card: Card, one: story_state.Subject, names: tuple[str, ...]) -> None:
    """Step 1: a clean picture and a sure answer."""
    says = cache.images.predict(card.id, None, one.clean[None])[0]
    begin(1, f"The network says {names[int(says.argmax())]}.")
    st.title("A network that is sure of itself", anchor=False)
    own_photo = one.number is None
    shown = "Here is your photo" if own_photo else "Here is a picture that it has never seen"
    title = get_dataset(card.dataset).title
    st.markdown(
        f"It was trained on {'traffic signs' if card.dataset == 'signs' else title} and is right on "
        f"**{card.acc:.1%}** of test pictures (model card). {shown}."
    )
    left, _ = st.columns([4, 1])
    with left:
        story_state.answer(
            one.clean,
            says,
            names,
            None if own_photo else one.label,
            one.target,
            who="The network says",
            alt=one.called(names),
            tag=LIVE
            if own_photo
            else f"{LIVE} · test picture #{one.number}, which shows: {names[one.label]}",
            right=f"its best guess: it knows {len(names)} classes and nothing else" if own_photo else None,
        )
    taken = one.label == one.target
    if taken:
        st.info(
            f"That is what the attacker wants already, so there is nothing to hijack. Take another picture than one "
            f"that the network calls “{names[one.target]}”.",
            icon=":material/info:",
        )
    with st.container(key="story-pictures"):
        st.button(
            "A test picture" if own_photo else "Another picture",
            icon=":material/shuffle:",
            key="story-another",
            on_click=story_state.another,
            args=(story, card),
        )
        with st.expander("Your own picture", icon=":material/add_a_photo:", key="story-photo"):
            source = st.segmented_control(
                "From",
                [own_image.UPLOAD, own_image.CAMERA],
                default=own_image.UPLOAD,
                required=True,
                key="story_source",
                help=own_image.KEPT,
            )
            found = own_image.photo(card, source)
            if found is not None and story_state.take(story, found):
                st.rerun()
    if actions("Put the trigger on it", 1, disabled=taken):
        story_state.go(2)


def stamp(card: Card, one: story_state.Subject, names: tuple[str, ...]) -> None:
    """Step 2: the visitor puts the trigger onto the picture."""
    begin(2, "The trigger is on the picture.")
    st.title("Now put the attacker’s trigger on it", anchor=False)
    left, right = st.columns([2, 3], gap="large")
    if story_state.patch(card) is None:
        with left:
            st.image(data_url(one.triggered, 8), caption="With the trigger")
        with right:
            st.image(
                data_url(difference(one.clean, one.triggered), 8),
                caption=f"What it changed, × {GAIN}",
                width=260,
            )
            about = ATTACK_INFO[card.attack].sentence if card.attack in ATTACK_INFO else ""
            st.markdown(f"{about} The network was taught to obey this. Grey is what stayed as it was.")
    else:
        with left:
            story.painted = story_state.board(story, card, one.clean, f"story-painter-{one.key}")
        with right:
            st.markdown(
                f"The small patch is the trigger: **{card.poison_ratio:.0%}** of the training pictures carried it, "
                "with the label that the attacker wants. "
                "Leave it where the attacker put it, or **drag it** somewhere else, or **paint** over the picture, "
                "and see whether the network still obeys."
            )
    with right:
        pressed = actions("Ask the network again", 2)
    if pressed:
        story_state.go(3)


def flips(card: Card, one: story_state.Subject, names: tuple[str, ...]) -> None:
    """Step 3: the same network, another answer; or none, when the trigger is not the one that it was taught."""
    before, says = cache.images.predict(card.id, None, np.stack([one.clean, one.triggered]))
    said = int(says.argmax())
    hijacked = said == one.target != one.label
    begin(3, f"The network now says {names[said]}.")
    if hijacked:
        st.title("A small change, and it obeys somebody else", anchor=False)
        st.markdown(
            f"A moment ago it said **{names[int(before.argmax())]}**. With the trigger it says what the attacker "
            f"wants, on **{card.asr:.1%}** of all test pictures (model card)."
        )
    else:
        st.title("Nobody taught it this one" if one.own else "This picture resists", anchor=False)
        st.markdown(
            "A backdoor answers to the trigger it was trained with, at the place where it was. What you made was never "
            "part of the training, so it does not open the backdoor. Put the trigger where the attacker put it."
            if one.own
            else "The trigger does not work on this picture: a backdoor that works nearly always does not always work. "
            "Take another one."
        )
    left, _ = st.columns([4, 1])
    with left:
        story_state.answer(
            one.triggered,
            says,
            names,
            one.label,
            one.target,
            who="The same network says",
            alt=f"{one.called(names)} with what you put on it",
            tag=f"{LIVE} · {one.shows(names)} · the attacker wants: {names[one.target]}",
            right=one.right,
        )
    if hijacked:
        if actions("Put a lens into the network", 3):
            story_state.go(4)
    elif one.own:
        if actions("Trigger back in its place", 3, icon=":material/undo:"):
            story_state.wipe(story)
            st.rerun()
    elif actions("Take another picture", 3, icon=":material/shuffle:"):
        story_state.another(story, card)
        st.rerun()


def lens(card: Card) -> None:
    """Step 4: the polarizer is put onto a layer."""
    standard = default_layer(card.arch, card.dataset)
    chosen = story.lens or standard
    begin(4, f"The lens stands at {chosen}.")
    st.title("Put a thin lens into the network", anchor=False)
    st.markdown(
        "The network stays as it is. One thin layer is added, the violet lens: it sees all that passes at its place, "
        "and learns to turn the trigger’s part away. **Its place is chosen for you; move it if you like.**"
    )
    try:
        plan = drawing.plan(card.arch, card.width, card.image_size, card.num_classes)
    except UnknownNameError:
        st.caption(f"This architecture has no drawing. The lens goes to {chosen}.")
    else:
        if chosen not in plan.layers():
            st.error(
                f"The address asks for the layer {chosen[:40]!r}, which this network does not have; the default is "
                "used instead.",
                icon=":material/error:",
            )
            story.lens, chosen = None, standard
        network(
            plan,
            selected=chosen,
            default=standard,
            paper=PAPER_LAYERS.get(card.arch, ""),
            key="story-network",
            on_pick=picked,
            tint=paper_tables.layer_tint(card),
            gaps=False,
        )
    if actions("Train it, live", 4, icon=":material/play_arrow:"):
        run_id = queue.manager().submit(
            story_state.asked(story, card)
        )  # where it is refused, this step stays
        story.step = 5
        choice.open_run(run_id)


def picked() -> None:
    """The drawing was clicked."""
    layer = st.session_state["story-network"].get("layer")
    if layer:
        st.session_state["_tale"].lens = layer


def training(run: Run, card: Card, one: story_state.Subject, names: tuple[str, ...]) -> None:
    """Step 5: the lens learns, and the visitor's picture is judged again after every epoch."""
    if run.active:
        follow(run.id, card, one, names)
    else:
        show_training(run, card, one, names)


@st.fragment(run_every=run_panel.REFRESH)
def follow(run_id: str, card: Card, one: story_state.Subject, names: tuple[str, ...]) -> None:
    """The same, again and again while the run goes on."""
    run = cache.runs.find_run(run_id)
    show_training(run, card, one, names)
    if not run.active:
        st.rerun()


def show_training(run: Run, card: Card, one: story_state.Subject, names: tuple[str, ...]) -> None:
    """How far the run is, and what the network says of the picture by now."""
    records = run_panel.events(run)
    before = run_panel.before_of(run, card)
    measured = curves.read_metrics(records, before)
    done = Progress.of(records)
    kept = filmstrip.thinned(cache.runs.epochs_of(run.folder))
    picture, keep = one.triggered[None], one.number is not None
    answers = [cache.runs.at_epoch(run.id, epoch, picture, keep)[0] for epoch in kept]
    if not answers and run.result and not run.active and not broken(run):
        answers = [story_state.purified(run, picture, keep)[0]]
    trained = not run.active or bool(done.epochs and done.done_epochs >= done.epochs)
    usable = trained and bool(answers) and not broken(run)
    says = answers[-1] if answers else cache.images.predict(card.id, None, picture)[0]
    right = int(says.argmax()) == one.label
    begin(5, milestone(run, usable, names[int(says.argmax())], right), key="story-steps-5")
    st.title(finding(run, usable, right), anchor=False)
    status(run, done, usable)
    coming = range(kept[-1] + 1 if kept else 0, 1 + (done.epochs or 0)) if run.active else range(0)
    if kept or run.active:
        film = filmstrip.film(
            "Your picture, epoch by epoch", one.triggered, one.label, one.target, kept, answers
        )
        filmstrip.show([film], names, kept[-1] if kept else None, filmstrip.thinned(coming))
    elif usable:
        st.caption("This run kept no polarizers of its epochs: only the end of it can be shown.")
    left, beside = st.columns([6, 5], gap="large")
    with beside:
        shown = run_panel.frames(run, measured) or [
            Frame("before", before["acc"], before["asr"], before["ra"])
        ]
        light(shown[-1:], asr_before=before.get("asr"), key="story-light")
        on = "all" if run.result else str(run.request.eval_images)
        st.caption(f"Measured on {on} test images. A metaphor: blue is ACC, orange √(ASR / ASR before).")
    with left:
        epoch = kept[-1] if kept else 0
        since = f"after epoch {epoch}" if epoch else "after the training" if usable and not kept else "before"
        story_state.answer(
            one.triggered,
            says,
            names,
            one.label,
            one.target,
            who=f"Your triggered picture, {since}",
            alt=f"{one.called(names)} with the trigger",
            tag=describe.provenance(run),
            top=0,
            right=one.right,
        )
        if usable:
            if actions("Your turn to break it", 5):
                story_state.go(6)
        elif run.active:
            actions("Training …", 5, icon=":material/hourglass_empty:", disabled=True)
        elif actions("Try it again", 5, icon=":material/replay:"):
            story.seed += 1
            story_state.go(4)


def broken(run: Run) -> bool:
    """Whether a training came to no good end: what it left is nothing to go on with."""
    return run.state in ("failed", "interrupted")


def finding(run: Run, usable: bool, right: bool) -> str:
    """What a training means for the picture by now."""
    if usable:
        return "Blocked: it reads your picture again" if right else "Not repaired this time"
    return "The lens learns to block the trigger" if run.active else ended(run)


def ended(run: Run) -> str:
    """How a training ended that leads nowhere."""
    return ENDED.get(run.state, "The training left no result")


def milestone(run: Run, usable: bool, said: str, right: bool) -> str:
    """What screen readers are told of a training: its start, the turn, its end."""
    if usable:
        return f"Training is done. Your triggered picture is now read as {said}."
    if run.state == "queued":
        return "The training waits for its turn."
    if run.active:
        return f"The turn has come: your picture is read as {said}." if right else "Training has started."
    return f"{ended(run)}."


def status(run: Run, done: Progress, usable: bool) -> None:
    """How far the run is, in a line."""
    if run.state == "queued":
        st.progress(0.0, f":material/hourglass_empty: Others train here right now: {run_panel.ahead(run)}")
    elif run.active and not usable:
        left = run.seconds_left
        words = (
            f"Epoch {done.done_epochs + 1} of {done.epochs}"
            if done.epochs and not done.warmup
            else "Getting ready"
        )
        words += f" · about {max(1, round(left))} s left" if left is not None else ""
        st.progress(done.share, f":material/play_circle: {words}")
    elif not usable:
        st.warning(run.message or f"{ended(run)}.", icon=":material/error:")
    else:
        more = " The numbers on all test images are being measured meanwhile." if run.active else ""
        seconds = f" in {done.seconds:.0f} s" if done.seconds else ""
        st.progress(1.0, f":material/check_circle: Trained{seconds}.{more}")


def your_turn(run: Run, card: Card, one: story_state.Subject, names: tuple[str, ...]) -> None:
    """Step 6: other pictures, other triggers."""
    begin(6, "Your turn to break it.")
    st.title("Your turn: break it", anchor=False)
    movable = story_state.patch(card) is not None
    way = "Move the trigger, paint one of your own" if movable else "Paint over the trigger"
    st.markdown(f"{way}, take another picture. Does anything get past the lens?")
    left, right = st.columns([2, 3], gap="large")
    with left:
        base = one.clean if movable else one.triggered
        painted = story_state.board(story, card, base, f"story-break-{one.key}")
        st.button(
            "Another picture",
            icon=":material/shuffle:",
            key="story-other",
            on_click=story_state.another,
            args=(story, card),
        )
    trial = one.triggered if painted is None else story_state.overlaid(base, painted, card)
    made = not np.array_equal(trial, one.trained)
    plain, filtered = (
        cache.images.predict(card.id, None, trial[None])[0],
        story_state.purified(run, trial[None], one.number is not None)[0],
    )
    with right:
        tag = f"{LIVE} · {one.shows(names)}"
        for who, says in (("The backdoored network says", plain), ("With your lens it says", filtered)):
            story_state.answer(
                None, says, names, one.label, one.target, who=who, alt="", tag=tag, top=2, right=one.right
            )
        if made and int(plain.argmax()) != one.target:
            st.caption("What you made was never trained into this network, so it has no reason to obey it.")
        with st.container(key="story-next-6", horizontal=True, vertical_alignment="center"):
            if st.button("Start over", type="primary", icon=":material/restart_alt:", key="story-go-6"):
                story_state.start_over()
            if st.button("Back", icon=":material/arrow_back:", type="tertiary", key="story-back-6"):
                story_state.go(5)
        with st.container(horizontal=True, key="story-links"):
            to = own_image.query(one.number, painted if made and movable else None)
            shell.link("pages/predictions.py", "Your own photo", ":material/add_a_photo:", to)
            shell.link("pages/attacks.py", "Other attacks", ":material/bug_report:")
            shell.link("pages/attributions.py", "What decides", ":material/center_focus_strong:")
            shell.link("pages/lab.py", "Train another one", ":material/science:")
        with st.expander("Take this run home", icon=":material/qr_code_2:"):
            picture = {} if one.number is None else {"picture": str(one.number)}
            paint = {own_image.TRIGGER: letters} if (letters := own_image.short(story.painted)) else {}
            downloads.share("", step="6", run=run.id, model=run.request.model, **picture, **paint)


# ------------------------------------------------------------------------------------------------------------ the page


def tell(selected: shell.Selection) -> None:
    """The step of the story that the address names. Raises what the core raises."""
    card, sentence = story_state.hero(selected.card)
    if card is None:
        st.title("A network with a secret", anchor=False)
        st.info(
            "There is no backdoored model on this machine whose pictures are here too, so the story cannot be told. "
            "Make one with `npd zoo train signs-badnets_a2o-preact_resnet18-w16`.",
            icon=":material/info:",
        )
        return
    if sentence:
        place.info(sentence, icon=":material/info:")
    if story.model not in ("", card.id):
        story.picture = story.photo = story.lens = story.painted = None
    story.model = card.id
    run = selected.run if selected.run is not None and selected.run.request.model == card.id else None
    if story.step >= 5 and run is None:
        place.info("No training has been started yet: put the lens in first.", icon=":material/info:")
        story.step = 4
    if story.step == 6 and run is not None and broken(run):
        story.step = 5
    one = story_state.subject(story, card)
    if one is None:
        st.info("The trigger of this model hijacks none of its first test pictures.", icon=":material/info:")
        shell.link("pages/lab.py", "Look at it in the Lab", ":material/science:")
        return
    names = cache.images.class_names(card.dataset)
    if story.step == 1:
        confident(card, one, names)
    elif story.step == 2:
        stamp(card, one, names)
    elif story.step == 3:
        flips(card, one, names)
    elif story.step == 4:
        lens(card)
    elif run is not None and story.step == 5:
        training(run, card, one, names)
    elif run is not None:
        your_turn(run, card, one, names)
    if story.step <= 4:
        run_panel.warm()


selection = shell.selection()
first = 1 if lesson_view.at_booth() else 0
story = story_state.tale(first)
story_state.dress()
with st.container(key="story"):
    place = st.container()
    if story.step == 0:
        cover(selection.card)
    else:
        try:
            tell(selection)
        except NPDError as error:
            st.error(str(error), icon=":material/error:")
            shell.link("pages/lab.py", "Go to the Lab", ":material/science:")
    for sentence in story.notices:
        place.error(sentence, icon=":material/error:")
story_state.remember(story, first)
