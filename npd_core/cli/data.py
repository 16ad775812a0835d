"""`npd data`: list the data sets, or download one."""

from __future__ import annotations

import argparse

from npd_core.cli.common import Answer, Commands, progress_bar, text_table


def add(commands: Commands) -> None:
    """Register the command and its actions."""
    parser = commands.add("data", list_datasets, "list the data sets, or download one")
    actions = commands.actions(parser)
    actions.add("list", list_datasets, "show which data sets are on this machine")
    get = actions.add("get", get_dataset_, "download a data set and verify its checksum")
    get.add_argument("name", metavar="NAME")


def list_datasets(args: argparse.Namespace) -> Answer:
    """List the data sets and where they are."""
    from npd_core.data.load import availability
    from npd_core.data.spec import DATASETS

    found = [(spec, availability(name)) for name, spec in DATASETS.items()]
    rows = [
        {
            "name": name.name,
            "title": spec.title,
            "available": name.available,
            "splits": dict(name.splits),
            "reason": name.reason,
            "source": spec.source,
        }
        for spec, name in found
    ]
    lines: list[tuple[str, ...]] = []
    for spec, a in found:
        where = [*a.splits.items()] + ([] if a.available else [("-", a.reason)])
        first = (spec.id, "yes" if a.available else "no")
        lines += [(*(first if row == 0 else ("", "")), *what) for row, what in enumerate(where)]
    return Answer(rows, text_table(("data set", "here", "split", "where"), lines))


def get_dataset_(args: argparse.Namespace) -> Answer:
    """Download one data set."""
    from npd_core.data.download import get_dataset_files
    from npd_core.data.spec import get_dataset

    spec = get_dataset(args.name)
    with progress_bar("{task.percentage:>3.0f} %") as bar:
        task = bar.add_task(spec.title, total=None)
        found = get_dataset_files(
            spec.id, progress=lambda done, total: bar.update(task, completed=done, total=total or None)
        )
    splits = dict(found.splits)
    text = f"{spec.title} is here:\n" + "\n".join(f"  {split}: {where}" for split, where in splits.items())
    return Answer({"name": spec.id, "available": found.available, "splits": splits}, text)
