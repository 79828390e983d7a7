"""The results of stages: folders that are complete or absent, each with its manifest."""
