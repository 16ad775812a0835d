"""Uploaded models: a checkpoint and a few clean images become a model that is used like those of the zoo."""
