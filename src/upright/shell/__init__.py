"""The shell: config, registry, runs, units, evidence, checks."""
