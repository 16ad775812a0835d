"""Runs outside the page script: `store` keeps them on disk (no torch), `queue` works through them device by device."""
