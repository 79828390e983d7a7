"""The networks: classifier F, masker G, and the two of them behind one defended forward pass."""
