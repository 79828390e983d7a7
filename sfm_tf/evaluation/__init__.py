"""Attacks run and scored: per-sample results, their summary and the blessing."""
