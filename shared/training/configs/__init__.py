"""One file per experiment: PRESETS, VARIANTS if there are several, and `experiment(preset, variant)`."""
