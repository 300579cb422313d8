"""Metrics: NumPy in, one value per unit out."""
