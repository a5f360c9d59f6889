import logging
import sys
import warnings

from vitslim.targets.quiet import captured


def test_what_is_printed_warned_or_logged_is_kept_and_not_shown(capfd):
    logger = logging.getLogger("onnxscript")
    handlers = list(logger.handlers)
    with captured() as lines:
        sys.stdout.write("printed\n")
        sys.stderr.write("complained\n")
        warnings.warn("warned", DeprecationWarning, stacklevel=1)
        logger.warning("logged")
    assert set(lines) == {"printed", "complained", "logged", "DeprecationWarning: warned"}
    assert capfd.readouterr() == ("", "")
    assert list(logger.handlers) == handlers
    assert logger.propagate


def test_the_lines_are_there_when_the_block_fails():
    lines: list[str] = []
    try:
        with captured() as lines:
            sys.stdout.write("before the error\n")
            raise ValueError
    except ValueError:
        pass
    assert lines == ["before the error"]
