"""argv -> Config -> one library call -> printed report -> exit code; nothing else."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from opfuse import terminal
from opfuse.arguments import config_of, options_of, read
from opfuse.errors import InputError, OpfuseError, TimeLimit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opfuse.progress import Progress

OUR_BUG, INTERRUPTED = 70, 130
_LONGEST_S = 1e8  # three years; the timer of the system takes no more than its time_t holds


def main(argv: Sequence[str] | None = None, *, interruptible: bool = False) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: The arguments; None takes those of the process.
        interruptible: Make Ctrl-C an exception again: the caller has let it end the process.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in arguments
    terminal.open_streams()
    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with _terminable():
            return _command(arguments)
    except OpfuseError as error:
        if debug:
            traceback.print_exc()
        terminal.print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        terminal.print_error("interrupted")
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        terminal.print_error(
            "this is a bug in opfuse\n  fix: report it with the traceback above and "
            "the output of opfuse --version"
        )
        return OUR_BUG


def _command(arguments: list[str]) -> int:
    args = read(arguments)
    args.argv = arguments
    if args.version:
        from opfuse.versions import versions

        with terminal.printing():
            print(versions())
        return 0
    if args.command is None:
        raise InputError("no command given", "see opfuse --help")
    if args.command == "completion":
        return _completion(args)
    _check_working_directory()
    _tell_file(args)
    progress = terminal.progress(
        quiet=args.quiet, verbose=args.verbose, color=terminal.wants_color(args.no_color)
    )
    with _time_limit(getattr(args, "time_limit", None)):
        return _COMMANDS[args.command](args, progress)


def _completion(args: Namespace) -> int:
    from opfuse.arguments.completion import script

    with terminal.printing():
        print(script(args.shell))
    return 0


def _tell_file(args: Namespace) -> None:
    """Options that nobody typed are no secret."""
    from opfuse.arguments.config_file import spelt

    file, options = args.given_by_file
    if options and not args.quiet:
        names = ", ".join(map(spelt, options))
        terminal.tell(f"opfuse: {file} gives {names}\n")


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the working directory is gone", "change to one that is there") from None


def _run(args: Namespace, progress: Progress) -> int:
    config = config_of(args)
    from opfuse import pipeline
    from opfuse.stages.report_text import render

    report = pipeline.run(config, args.command, progress)
    _show(args, report.as_json, lambda: render(report, every_candidate=args.command == "explain"))
    return 0


def _verify(args: Namespace, progress: Progress) -> int:
    from opfuse import pipeline
    from opfuse.stages.report import comparison_as_dict
    from opfuse.stages.report_text import render_comparison

    if _is_together(args):
        return _together(args, progress)
    args.model, args.onnx = args.a, None
    comparison = pipeline.verify(args.a, args.b, config_of(args), progress)
    _show(
        args,
        lambda: _json(comparison_as_dict(comparison)),
        lambda: render_comparison(comparison),
        passed=comparison.passed,
    )
    return 0 if comparison.passed else 1


def _check(args: Namespace, progress: Progress) -> int:
    from opfuse import checking
    from opfuse.stages.check_text import render_check

    result = checking.check(*options_of(args), progress)
    _show(
        args,
        lambda: _json(result.as_dict()),
        lambda: render_check(result),
        passed=result.passed,
    )
    if args.annotate:
        from opfuse.stages.check_report import annotated

        terminal.tell(annotated(result))
    return 0 if result.passed else 1


def _bench(args: Namespace, progress: Progress) -> int:
    from opfuse import pipeline
    from opfuse.stages.bench_text import render_bench

    if _is_together(args):
        return _together(args, progress)
    args.model, args.onnx = args.engine, None
    result = pipeline.bench(args.engine, args.vs, config_of(args), progress)
    _show(args, lambda: _json(result), lambda: render_bench(result))
    return 0


def _is_together(args: Namespace) -> bool:
    if args.dry_run and args.tp is None:
        raise InputError("--dry-run looks at the ranks of a folder", "give --tp N too")
    return args.tp is not None


def _together(args: Namespace, progress: Progress) -> int:
    from opfuse import together
    from opfuse.stages.report import comparison_as_dict
    from opfuse.stages.report_text import render_comparison
    from opfuse.stages.together_text import render_ranks

    args.model, args.onnx = (args.engine if args.command == "bench" else args.a), None
    config = config_of(args)
    found: Any
    if args.command == "bench":
        found = together.bench(args.engine, args.vs, config, progress, args.argv)
    else:
        found = together.verify(args.a, args.b, config, progress, args.argv)
    if found is None or isinstance(found, together.Started):
        return 0 if found is None else found.code
    if isinstance(found, (together.Prospect, together.TogetherBench)):
        _show(args, lambda: _json(found.as_dict()), lambda: render_ranks(found))
        return 0
    _show(
        args,
        lambda: _json(comparison_as_dict(found)),
        lambda: render_comparison(found),
        passed=found.passed,
    )
    return 0 if found.passed else 1


def _package(args: Namespace, progress: Progress) -> int:
    from opfuse import pipeline
    from opfuse.stages.report_text import render_package

    if args.triton is None:
        raise InputError("package has no model repository", "name one with --triton DIR")
    if args.max_batch is not None and args.max_batch < 0:
        raise InputError(f"--max-batch {args.max_batch} is negative", "give 0 or more")
    packaged = pipeline.package(
        args.engine,
        args.triton,
        name=args.name,
        report=args.build_report,
        max_batch=args.max_batch,
        plugin_library=args.plugin_library,
    )
    _show(args, lambda: _json(packaged), lambda: render_package(packaged))
    return 0


def _shard(args: Namespace, progress: Progress) -> int:
    from opfuse import splitting
    from opfuse.stages.shard_text import render_shards

    if args.tp is None:
        raise InputError("shard has no number of ranks", "give one with --tp N")
    shards = splitting.shard(config_of(args), progress)
    text = partial(render_shards, str(shards.folder), shards.plan, shards.proof)
    _show(args, lambda: _json(shards.as_dict()), text)
    return 0


def _plugins(args: Namespace, progress: Progress) -> int:
    from opfuse import pipeline
    from opfuse.stages.report_text import render_library

    library = pipeline.plugins(args.plugin_library)
    _show(args, lambda: _json(library), lambda: render_library(library))
    return 0


_COMMANDS: dict[str, Callable[[Namespace, Progress], int]] = {
    "build": _run,
    "fuse": _run,
    "explain": _run,
    "verify": _verify,
    "check": _check,
    "bench": _bench,
    "package": _package,
    "shard": _shard,
    "plugins": _plugins,
}


def _json(value: object) -> str:
    from opfuse.stages.report import plain

    return json.dumps(plain(value), indent=1) + "\n"


def _show(
    args: Namespace,
    as_json: Callable[[], str],
    text: Callable[[], RenderableType],
    passed: bool = True,
) -> None:
    """Prints a report. --quiet keeps it back unless it says why the command fails."""
    with terminal.printing():
        if args.json:
            sys.stdout.write(as_json())
        elif not (args.quiet and passed):
            terminal.console(args.no_color).print(text(), crop=False)


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP unwind the stack, so that temporary files and child processes go."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    heeded = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}  # nohup ignores SIGHUP
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    if seconds is None or not 0 < seconds < _LONGEST_S:  # Config refuses what is no limit
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeLimit(f"the time limit of {seconds:g} s has passed", "raise --time-limit")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
