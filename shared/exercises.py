"""The check functions of the exercises, a module per chapter."""


def require_answer(result: object, name: str) -> None:
    """Raise AssertionError if the exercise has not been answered yet."""
    assert result is not None and result is not ..., (
        f"{name} returned {'nothing' if result is None else '...'}: the exercise is "
        "still unanswered; replace the `...` by your code and `return` the result"
    )
