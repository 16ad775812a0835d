"""What leaves the app: files of a repaired network, a bundle of a run, a report."""
