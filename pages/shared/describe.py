"""Models and runs in one line of text, with where their numbers come from."""

from __future__ import annotations

from datetime import datetime

from npd_core.config.baselines import CONFIGS
from npd_core.names import architecture_name, attack_name, dataset_name, defense_name
from npd_core.runs.store import Run
from npd_core.zoo.card import Card
from pages.shared.text import plain

STATES = {
    "queued": (":material/hourglass_empty:", "gray"),
    "running": (":material/play_circle:", "violet"),
    "finished": (":material/check_circle:", "blue"),
    "stopped": (":material/stop_circle:", "blue"),
    "failed": (":material/error:", "red"),
    "interrupted": (":material/power_off:", "orange"),
}
"""Icon and color of each state of a run."""


def model(card: Card) -> str:
    """Return data set, attack, architecture and width of a model."""
    return " · ".join((dataset_name(card.dataset), attack_name(card.attack), network(card)))


def network(card: Card) -> str:
    """Return architecture and width of a model."""
    return f"{architecture_name(card.arch)}, width {card.width}"


def run(found: Run | None) -> str:
    """Return kind, defense, result and time of a run."""
    if found is None:
        return "no run"
    asr = (found.result or {}).get("after", {}).get("asr")
    outcome = found.state if asr is None else f"ASR {asr:.1%}"
    return f"{_kind(found)} · {defense(found)} · {outcome} · {local_time(found.created)}"


def defense(found: Run) -> str:
    """Return the defense of a run, of NPD with the layer: "NPD · layer4.1.conv1", "FP"."""
    name = defense_name(found.request.defense)
    if found.request.defense in CONFIGS:
        return name
    return f"{name} · {found.request.layer or (found.result or {}).get('layer') or 'default layer'}"


def short_id(found: Run) -> str:
    """Return the parts of a run's id that differ between runs; of a recorded run, the whole id."""
    return found.id if found.recorded else f"{found.id[:6]}{found.id[16:]}"


def provenance(found: Run) -> str:
    """Return where the numbers of a run come from: live or recorded, seed, device, date."""
    device = (found.result or {}).get("environment", {}).get("device") or found.request.device
    when = local_time(found.ended or found.created)
    return f"{_kind(found)} · seed {found.request.config.seed} · {plain(device, 80)} · {when}"


def local_time(moment: object) -> str:
    """Return a time, in seconds since 1970 or as ISO text, as "2026-01-31 14:05"; "" for None."""
    if moment is None:
        return ""
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")
    return str(moment).replace("T", " ")[:16]


def _kind(found: Run) -> str:
    return "recorded" if found.recorded else "live"
