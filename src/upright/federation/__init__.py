"""The federation wing: one description of an algorithm, driven in one process or by Flower."""
