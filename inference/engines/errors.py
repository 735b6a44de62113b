"""What engines raise; the message is one sentence for the person who asked."""


class EngineError(Exception):
    """The engine cannot do what was asked; the message is fit for a person to read."""


class RequestRefused(EngineError):
    """The request itself is at fault (a parameter out of range, a prompt that cannot fit)."""


class Interrupted(EngineError):
    """The answer broke off where it is; what came of it stands."""
