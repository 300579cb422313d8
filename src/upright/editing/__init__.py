"""The wing of editing: one fact of a model corrected, as a file that can be undone."""
