"""A clock that stands until it is told to go on."""


class Clock:
    """Tells a time in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds
