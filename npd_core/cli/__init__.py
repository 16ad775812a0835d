"""The command line: `npd`, also `python -m npd_core`. One file a command; `main` puts them together."""
