"""Where the recorded data of an engine lies, and times as people write them: shared by `export` and `query`.

Neither command needs the engine to run; both read the folder that the configuration names.
"""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path


class RecordedError(ValueError):
    """What was asked for is not there or can not be understood; the message says what to do."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that say whose data, and of which time."""
    add = parser.add_argument
    add(
        "--from",
        dest="start",
        metavar="TIME",
        help="venue time, this included: 2026-11-21T14:30 (UTC) or ns since 1970",
    )
    add("--to", dest="end", metavar="TIME", help="venue time, this not included")
    add("--name", help="engine whose data it is (default main)")
    add("--data-dir", metavar="DIR", help="its data folder (default: that of the configuration)")
    add("--config", metavar="FILE", help="configuration that says where the data is")


def folder_of(args: argparse.Namespace) -> Path:
    """The engine's folder, which must have recorded data in it.

    Raises:
        RecordedError, engine.errors.ConfigError.
    """
    from engine.config import load
    from engine.folders import data_folder

    overrides = {"engine.name": args.name, "engine.data_dir": args.data_dir}
    config = load(args.config, os.environ, {key: value for key, value in overrides.items() if value is not None})
    folder = data_folder(config)
    if not (folder / "journal").is_dir():
        raise RecordedError(f"nothing was recorded in {folder}; say which engine with --name, or where with --data-dir")
    return folder


def time_ns(text: str | None) -> int | None:
    """ns since the Unix epoch of a time on the command line; without an offset it is UTC.

    Raises:
        RecordedError: not a time.
    """
    if text is None:
        return None
    if text.lstrip("-").isdigit() and len(text) > 8:
        return int(text)
    main, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        moment = datetime.fromisoformat(main + rest[len(digits) :])
    except ValueError:
        raise RecordedError(
            f"{text!r} is not a time; write 2026-11-21, 2026-11-21T14:30:05.123 or ns since 1970"
        ) from None
    if dot and not digits:
        raise RecordedError(f"{text!r} is not a time: no digits after the dot")
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + int((digits + "0" * 9)[:9])
