"""The editing wing: one fact corrected in a model, kept as a small file beside it, and taken back without a trace."""
