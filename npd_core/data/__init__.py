"""Data sets: what they are, where their files are, how they are read and downloaded."""
