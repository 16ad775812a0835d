"""A network that somebody brings: its checkpoint and a few clean images become a model like those of the zoo."""
