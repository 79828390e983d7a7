"""The defended model as a SavedModel: its signature, its check in a fresh process, its versions."""
