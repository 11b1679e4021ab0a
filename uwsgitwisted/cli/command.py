"""The main function of the command ``uwsgitwisted``, which maps errors to exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from uwsgitwisted.cli.parser import make_parser
from uwsgitwisted.cli.words import printable
from uwsgitwisted.errors import MisuseError, UwsgiError

#: The exit statuses besides 0: a failure, or an invalid command line.
FAILED, USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: the arguments after the command's name; None for this process's.
    :return: the exit status.
    """
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except MisuseError as error:
        return _fail(error, USAGE)
    except UwsgiError as error:
        return _fail(error, FAILED)
    except BrokenPipeError:  # the reader of the output, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(f"{error.filename or 'the output'}: {error.strerror}", FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", FAILED)
    return status


def _fail(error: object, status: int) -> int:
    text = " ".join(printable(str(error)).split())
    print(f"uwsgitwisted: {text}", file=sys.stderr)
    return status
