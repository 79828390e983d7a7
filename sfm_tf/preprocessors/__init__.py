"""The pre-processing T that masked images go through before the classifier (section 5.3)."""
