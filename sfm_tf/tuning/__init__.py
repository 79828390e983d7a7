"""Trainings beside the one that counts: the search for the loss's weights, and ablations."""
