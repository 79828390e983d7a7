"""Extra measurements on the model under test, which tell whether its evaluation can be believed."""
