"""Running methods: configs, registry, run folders, the companion of loops, studies, checks."""
