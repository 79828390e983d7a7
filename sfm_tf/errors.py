"""The one exception that a user of the software is meant to read."""


class SfmError(ValueError):
    """A mistake in the input, the configuration or the surroundings that the user can mend.

    Its message is one line that says what was found, what was expected and what to do. The
    stages in `pipelines` print it without a traceback; every other exception is a defect.
    """
