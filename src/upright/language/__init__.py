"""The language wing: log-probabilities of answers, unlearning losses, and what is built on them."""
