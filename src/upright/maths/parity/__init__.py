"""Group fairness as linear constraints on decisions: rates, the convex program, its oracle, dual steps."""
