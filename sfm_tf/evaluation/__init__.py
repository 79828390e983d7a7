"""Attacks run and scored: per-sample results, their figures, and what of these may be chance."""
