"""What each exercise must say, whatever notebook it is of."""


def assert_judges(exercises, name, attempts):
    """The solution is right, an empty body is no attempt, and each wrong attempt is told why.

    Args:
        exercises: a notebook's module with `check_NAME` and `solve_NAME`.
        name: of the exercise.
        attempts: (attempt, part of what is said about it).
    """
    check, solve = (getattr(exercises, f"{kind}_{name}") for kind in ("check", "solve"))
    assert check(solve).startswith("right: ")
    assert check(lambda *given: None) is None
    for attempt, said in attempts:
        assert said in check(attempt)
