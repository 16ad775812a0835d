"""Runs on disk (`store`, `event_log`) and their training in worker processes (`queue`, `worker`, `work`)."""
