"""The wing of classifiers: post-processing, estimators in scikit-learn's grammar, and training over silos."""
