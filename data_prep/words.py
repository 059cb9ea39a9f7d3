"""Numbers in sentences."""


def counted(count: int, noun: str) -> str:
    """A number with its noun, as in ``1 image`` or ``2,061 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
