"""The state of a training that is under way, on disk."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from npd_core.attacks.base import DynamicTrigger
from npd_core.attacks.poison import PoisonedSet
from npd_core.errors import CheckpointError, first_line
from npd_core.fileio import staged
from npd_core.models.normalized import Normalized
from npd_core.zoo.recipe import Recipe


class Checkpoint(NamedTuple):
    """Save a training after every epoch, and resume it on the same training set."""

    path: Path
    net: Normalized
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    poisoning: dict[str, Any]
    trigger: DynamicTrigger | None

    def save(self, epochs: int, seconds: float) -> None:
        """Write the state after `epochs` epochs. Raises StorageError; the earlier state then stays."""
        state = {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(),
            "epochs": epochs, "seconds": seconds,
            "recipe": json.dumps(self.recipe.to_dict()), "poisoning": json.dumps(self.poisoning),
        }  # fmt: skip
        if self.trigger is not None:
            state["trigger"] = self.trigger.state_dict()
        with staged(self.path) as (fresh,):
            try:
                torch.save(state, fresh)
            except RuntimeError as error:  # where the disk is full
                raise OSError(str(error)) from error

    def resume(self) -> tuple[int, float] | None:
        """Load the saved state. Return its epochs and seconds, or None where there is none. Raises
        CheckpointError."""
        path = self.path
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            recipe = Recipe.from_dict(json.loads(state["recipe"]))
            poisoning = json.loads(state.get("poisoning", "{}"))
        except (OSError, EOFError, pickle.UnpicklingError, *_UNFIT) as error:
            raise damaged(path, error) from error
        if recipe != self.recipe:
            reason = f"{path} belongs to another recipe: delete it, or train with the recipe that it holds."
            raise CheckpointError(reason)
        if poisoning != self.poisoning:
            raise CheckpointError(
                f"{path} belongs to a training with other poisoned images: delete it to start again, "
                "or set NPD_CHECKPOINTS_DIR to another folder."
            )
        try:
            if self.trigger is not None:
                self.trigger.load_state_dict(state["trigger"])
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            return int(state["epochs"]), float(state["seconds"])
        except _UNFIT as error:
            raise damaged(path, error) from error


def describe_poisoning(data: PoisonedSet, ratio: float | None) -> dict[str, Any]:
    """Identify the attacker's training set: its sha256, and the poison ratio where batches are poisoned in
    the loop."""
    digest = hashlib.sha256()
    for part in (data.images, data.labels):
        digest.update(part.cpu().contiguous().numpy().data)
    return {"set": digest.hexdigest(), "ratio": ratio}


_UNFIT = (RuntimeError, LookupError, ValueError, TypeError, AttributeError)
"""Errors of reading or loading a state that is damaged or does not fit."""


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file of an interrupted training that cannot be resumed."""
    return CheckpointError(f"{path} cannot be read ({first_line(error)}): delete it to start again.")
