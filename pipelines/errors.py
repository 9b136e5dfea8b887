"""The errors that a user meets, each with its exit code.

LoamError
├── RecipeError    the YAML is wrong            exit 2   names file:line, field, nearest valid key
├── DataError      missing or corrupt data      exit 3   names the file, what was expected and found
├── StepError      a step failed                exit 4   names step, shard, log file; safe to run again
└── MissingExtra   an optional stack is absent  exit 5   names the extra

A message says what was found, what was expected, and what to do next. Bad *documents* never raise: they are rejected
and counted.
"""


class LoamError(Exception):
    """Base of every error meant for the user; printed as one line without a traceback."""

    exit_code = 1


class RecipeError(LoamError):
    """A recipe or a command-line value cannot be understood."""

    exit_code = 2


class DataError(LoamError):
    """A file is missing, unreadable or not what its manifest says."""

    exit_code = 3


class StepError(LoamError):
    """A step of a run failed; running again resumes it."""

    exit_code = 4


class MissingExtra(LoamError):
    """An optional dependency is needed for what was asked."""

    exit_code = 5
