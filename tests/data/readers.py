"""What tests ask readers."""

from anykd.data import Reader


def labels_of(reader: Reader) -> list[int]:
    """Class indices of images that have some."""
    assert reader.labels is not None
    return list(reader.labels)
