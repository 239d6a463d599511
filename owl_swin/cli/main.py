"""The command `owl-swin`: collects the subcommands and turns errors into one sentence."""

import io
import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from owl_swin.cli.printing import OneLine, drop_stdout, emit_line, open_streams, say
from owl_swin.errors import OwlSwinError
from owl_swin.files import near_name
from owl_swin.signals import raised_signals

# What Typer raises where the command line is wrong: of its tree of errors it exports leaves alone.
USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="owl-swin",
    help="Find anything that you can name: open-vocabulary object detection.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if asked:
        emit_line(f"owl-swin {version('owl_swin')}")
        raise typer.Exit


@app.callback()
def _for_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Entry point of the console script."""
    open_streams()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("owl-swin: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # what it warns of is read all the same, or refused
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        try:
            with raised_signals():  # Typer itself would say in four lines what is wrong with the command line
                code = app(standalone_mode=False)
        finally:
            sys.stdout.flush()  # what cannot be written is found out here, not while Python ends
        raise SystemExit(code or 0)
    except USAGE_ERROR as error:
        if error.ctx is not None and error.message == error.ctx.get_help():  # nothing but the program's name was said
            error.show()
        else:
            say(_usage_sentence(error))
        raise SystemExit(2) from None
    except OwlSwinError as error:
        say(_with_near_name(str(error)))
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our stdout has gone, as with `| head`
        drop_stdout()
        raise SystemExit(0) from None
    except OSError as error:
        drop_stdout()
        what = f"{error.filename}: cannot be read or written" if error.filename else "the output cannot be written"
        say(f"{what} ({error.strerror or error})")
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        say("there is not enough memory for this; ask for less at once, as by a smaller --image-size or --tile")
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out, of the machine or of an accelerator; PyTorch tells the first by its words alone."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or "allocate memory" in str(error) or "out of memory" in str(error)


def _usage_sentence(error: Any) -> str:
    """What is wrong with the command line, and where the right form stands."""
    option = getattr(error, "option_name", None)
    for argument in sys.argv[1:]:
        if option and argument.startswith(option) and os.path.lexists(argument):
            return f"{argument}: a name that begins with - is read as options; write ./{argument}"
    # Words of Typer and of its checks of values, put together to one sentence.
    said = error.format_message().rstrip(".?").replace(". Did", "; did").replace(": Value error, ", ": ")
    said = said[:1].lower() + said[1:]
    return said if error.ctx is None else f"{said}; see `{error.ctx.command_path} --help`"


def _with_near_name(sentence: str) -> str:
    """What went wrong, and the file that is probably meant where the sentence is about one that is not there."""
    if "did you mean" in sentence or "cannot write" in sentence:
        return sentence
    for argument in sys.argv[1:]:
        path = argument.partition("=")[2] if argument.startswith("--") else argument
        if path and sentence.startswith(f"{path}: ") and (near := near_name(path)):
            return f"{sentence}; did you mean {near}?"
    return sentence


def _register() -> None:
    from owl_swin.cli import (
        bench,
        classify,
        detect,
        distil,
        evaluate,
        export,
        index,
        info,
        label,
        push,
        search,
        segment,
        serve,
        training,
    )

    app.command("detect")(detect.detect)
    app.command("segment")(segment.segment)
    app.command("classify")(classify.classify)
    app.command("index")(index.index)
    app.command("search")(search.search)
    app.command("label")(label.label)
    app.command("info")(info.info)
    app.command("serve")(serve.serve)
    app.command("train")(training.train)
    app.command("cutouts")(training.cutouts)
    app.command("paste")(training.paste)
    app.command("signs")(training.signs)
    app.command("distil")(distil.distil)
    app.command("distil-text")(training.distil_text)
    app.add_typer(evaluate.app, name="eval")
    app.command("export")(export.export)
    app.command("push")(push.push)
    app.add_typer(bench.app, name="bench")


_register()
