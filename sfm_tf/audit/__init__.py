"""An evaluation's audit of itself: a rule for each check that a credible one has to pass."""
