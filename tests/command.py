"The command line inside the tests' own process."
import contextlib
import io
import re

from clip_dfgs.cli import main


def said(*args):
    "A command line's (exit code, stdout, stderr)."
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(args)
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()


def done(*args):
    "What a command that has to work prints, and its notes; progress bars are no lines of their own."
    code, out, err = said(*args)
    assert code == 0, err
    mark = 'clip-dfgs: note: '
    return out, [line.removeprefix(mark) for line in re.split('[\r\n]', err) if line.startswith(mark)]
