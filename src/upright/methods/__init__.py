"""The ten methods, one file each."""
