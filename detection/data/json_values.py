"""What a value in an instances JSON can be."""

from typing import Any

FARTHEST = 1e6  # pixels: pycocotools needs memory in proportion to a polygon's coordinates, and a mask to its image


def is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def is_side(value: Any) -> bool:
    """Pixels; 640.0 is 640."""
    return type(value) in (int, float) and 1 <= value <= FARTHEST and value == int(value)


def is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def is_name(value: Any) -> bool:
    """Text that can be kept and looked for, or a number, which some tools write for a name of digits."""
    if type(value) is int:
        return True
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    try:
        return bool(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def is_pairs(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 2 and all(map(is_pair, value))
