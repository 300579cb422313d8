"""Data: interaction logs, how they are split, and the catalogue of named data sets with licence and sha256."""
