"""Settings as frozen values: NPD, the baselines, presets, and the request that names a run. No torch."""
