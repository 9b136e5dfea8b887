"""The `loam` command.

stdout is data (`--json` for machines), stderr is logs and progress. Errors are one line: what was found, what was
expected, what to do next; their exit codes are those of `pipelines/errors.py`. Commands import what they need when
they are called, so that `loam --help` is quick.
"""

import codecs
import locale
import os
import signal
import sys
import traceback
import warnings
from typing import Any

import typer

from flows.commands import ablating, documents, fetching, mixing, models, runs, sweeping, tracking, tuning
from flows.verb import offer_executors, offer_texts
from pipelines.errors import LoamError
from pipelines.progress import console

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # of click, or of the copy of click that newer typer brings

EPILOG = (
    "Exit codes: 0 done, 2 a recipe or an option is wrong, 3 data is missing or corrupt, 4 a step failed (run again to "
    "go on), 5 an optional package is absent, 130 stopped. Environment variables and details: docs/cli.md."
)
app = typer.Typer(
    name="loam",
    help="Raw text to a verified corpus, a proven data mixture and a trained model.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (runs, ablating, fetching, documents, models, tuning, sweeping, tracking, mixing):
    group.register(app)
offer_texts(app)  # before executors, whose wrapper hides what a verb calls
offer_executors(app)


def main() -> None:
    """Entry point: run a command, turn errors into one line and an exit code."""
    _in_utf8()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads are 5 to 10 times slower on busy cores
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would warn, and it changes nothing
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing leaves the machine unasked
    if not os.environ.get("LOAM_DEBUG"):
        warnings.simplefilter("ignore")
        sys.warnoptions.append("ignore:resource_tracker")  # what frees the locks of workers says so when all is stopped
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to stop
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except LoamError as error:
        _fail(str(error), error.exit_code)
    except USAGE_ERROR as error:
        _fail(f"{error.format_message()} (see loam --help)", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("stopped; run the same command again to resume", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if os.environ.get("LOAM_DEBUG"):
            traceback.print_exc()
        _fail(f"unexpected {type(error).__name__}: {error} (LOAM_DEBUG=1 shows where)", 4)


def _in_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale is of another encoding: files, names and logs are UTF-8."""
    encodings = {codecs.lookup(name).name for name in (sys.getfilesystemencoding(), locale.getpreferredencoding(False))}
    if encodings != {"utf-8"} and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _stop(number: int, frame: object) -> None:
    """End at once, and say how to go on: a run may be killed at any moment, so that nothing needs to be unwound.

    Prefect would try for a minute to tell its server, which may be gone. Workers end with this process.
    """
    if "flows.prefect_runner" in sys.modules:
        sys.modules["flows.prefect_runner"].end_server()
    console.show_cursor(True)
    print("loam: stopped; run the same command again to resume", file=sys.stderr, flush=True)
    os._exit(130)


def _fail(message: str, code: int) -> None:
    one_line = " ".join(message.split())
    print(f"loam: {one_line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
