"""Neural Polarizer Lab: the core. Data, attacks, models, the polarizer, measurement; no user interface."""

__version__ = "0.1.0"
