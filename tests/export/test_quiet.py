"""What libraries say to their developers does not reach a person; errors do."""

import logging
import sys
import warnings

import pytest

from anykd.export.quiet import quiet


def test_warnings_log_lines_and_prints_stay_inside(capsys, caplog):
    with quiet():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.getLogger("some").warning("noise")
        print("hello")
        print("hello", file=sys.stderr)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
    logging.getLogger("some").warning("heard again")
    assert len(caplog.records) == 1


def test_errors_pass():
    with pytest.raises(ValueError, match="mine"), quiet():
        raise ValueError("mine")
