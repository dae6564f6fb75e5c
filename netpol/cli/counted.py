"""A number of things in words."""


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 pod", "2 pods", "2 policies"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
