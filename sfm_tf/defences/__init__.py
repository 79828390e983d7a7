"""The defences that the masker is compared with, and its own as preprocessors of ART."""
