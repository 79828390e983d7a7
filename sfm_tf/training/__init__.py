"""Algorithm 1 of Yu et al. 2022: classifier and masker trained in turn."""
