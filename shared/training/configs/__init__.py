"""One file per experiment: PRESETS, VARIANTS where there are several, and `experiment(preset, variant)`."""
