"""The defence as preprocessors of the Adversarial Robustness Toolbox."""
