"""What is asked of a model: data, and how its answer is scored per unit."""
