"""The zoo: pretrained models, one folder each, with a card that describes it.

    zoo = Zoo()                      # `pretrained/` of the project, or `$NPD_ZOO_DIR`
    zoo.ids()                        # ["cifar10-badnets_a2a-preact_resnet18-w64", ...]
    card, net, attack = zoo.load("signs-blended-preact_resnet18-w32")

Uploaded models are found by their ids too, in every zoo. Torch is imported by `load` and `save` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from npd_core import paths
from npd_core.errors import CheckpointError, UnknownNameError, unknown_name
from npd_core.zoo.card import CARD, Card, read_card

if TYPE_CHECKING:
    from torch import Tensor

    from npd_core.models import Normalized
    from npd_core.zoo.weights import Backdoored


@dataclass(frozen=True)
class Zoo:
    """The models in one folder."""

    root: Path | None = None
    """None: `$NPD_ZOO_DIR` or `pretrained/`, looked up at each use."""

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root or paths.pretrained()

    def folder(self, model: str) -> Path:
        """Where the files of a model are, or would be."""
        return paths.uploaded(model) or self.path / model

    def ids(self) -> list[str]:
        """Return the sorted ids of models with a card, readable or not. Hidden folders are unfinished."""
        names = (path.parent.name for path in self.path.glob(f"*/{CARD}"))
        return sorted(name for name in names if not name.startswith("."))

    def card(self, model: str) -> Card:
        """Return the card of a model of the zoo or of an uploaded one.

        Raises:
            UnknownNameError: no such model; names the nearest id.
            CheckpointError: the card is damaged.
        """
        if paths.uploaded(model) is None and model not in (ids := self.ids()):
            raise unknown_name("model", model, ids)
        path = self.folder(model) / CARD
        if not path.is_file():
            raise UnknownNameError(
                f"Model {model} is not on this machine: import it again on the page My models."
            )
        return read_card(path)

    def cards(self, *, clean: bool = False) -> list[Card]:
        """Return the cards of the backdoored models by id; with `clean`, those of the clean models too.

        Damaged cards are left out, see `unreadable`.
        """
        cards = (card for card in self._read() if isinstance(card, Card))
        return [card for card in cards if clean or card.asr is not None]

    def unreadable(self) -> list[str]:
        """Return one sentence for each damaged card: what is wrong, and the remedy."""
        return [str(error) for error in self._read() if isinstance(error, CheckpointError)]

    def _read(self) -> list[Card | CheckpointError]:
        found: list[Card | CheckpointError] = []
        for model in self.ids():
            try:
                found.append(read_card(self.path / model / CARD))
            except CheckpointError as error:
                found.append(error)
        return found

    def load(self, model: str) -> Backdoored:
        """Load a model with its attack, checked against its card.

        Raises:
            UnknownNameError: no such model.
            CheckpointError: a file is missing, was changed, or does not fit the architecture on the card.
        """
        from npd_core.zoo.weights import read_model

        return read_model(self.card(model))

    def save(
        self,
        net: Normalized,
        card: Card,
        assets: Mapping[str, Tensor] | None = None,
        stored: Mapping[str, Tensor] | None = None,
    ) -> Card:
        """Write a model's folder as a whole; an older version stays until the new one is complete.

        Args:
            assets: `Attack.assets`, what the trigger is made of; None or empty: no file is written for it.
            stored: the weights as they are to be stored; None: those of `net` in half precision.
        Returns:
            The card as written, with the hashes of the files.
        Raises:
            StorageError: the folder cannot be written.
        """
        from npd_core.zoo.weights import write_model

        return write_model(self.folder(card.id), net, card, assets, stored)

    @property
    def checkpoints(self) -> Path:
        """Where unfinished trainings of its models keep their state."""
        return paths.checkpoints() if self.root is None else self.root / ".checkpoints"
