"""Evasion attacks with the interface of the Adversarial Robustness Toolbox, compiled inside."""
