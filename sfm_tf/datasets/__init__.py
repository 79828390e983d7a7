"""Where images come from: the datasets, and their ingestion into records."""
