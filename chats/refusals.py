"""What a chat refuses to do, with a sentence for the person and a code for the program."""


class Refusal(Exception):
    """Nothing was written. `code` is part of the HTTP contract; the message is for people."""

    code = "refused"
    sentence = "That cannot be done."

    def __init__(
        self, sentence: str = "", *, code: str = "", retry_after: int | None = None
    ) -> None:
        self.sentence = sentence or self.sentence
        self.code = code or self.code
        self.retry_after = retry_after
        super().__init__(self.sentence)


class ClientIdReused(Refusal):
    code = "client_id_reused"
    sentence = "This form was already used for another message. Please send it again."


class Busy(Refusal):
    code = "busy"
    sentence = "An answer is still being written here. Wait for it, or stop it first."


class CannotContinue(Refusal):
    code = "busy"
    sentence = "This answer is complete; there is nothing to continue."


class NoModel(Refusal):
    code = "no_model"
    sentence = "There is no model to answer yet. The people who run this site have to set one up."


class TooBusy(Refusal):
    code = "too_busy"

    def __init__(self, seconds: int, wait: str) -> None:
        super().__init__(
            f"Too many people are waiting for this model. Please try again in {wait}.",
            retry_after=seconds,
        )


class TooManyRuns(Refusal):
    code = "too_many_runs"

    def __init__(self, seconds: int) -> None:
        sentence = "As many of your answers are under way as may be. Wait for one, or stop one."
        super().__init__(sentence, retry_after=seconds)


class RateLimited(Refusal):
    code = "rate_limited"

    def __init__(self, seconds: int, wait: str) -> None:
        super().__init__(
            f"That was too often. Please wait {wait} and try again.", retry_after=seconds
        )
