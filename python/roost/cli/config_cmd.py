"""`roost config show`: every setting, its value and where that came from."""

from __future__ import annotations

import typer

from roost.cli.output import BAD_CONFIG, Failure, Format, Output, print_json, print_table
from roost.cli.serve import ConfigFile, More, flags

app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)

EPILOG = """
Examples:
$ roost config show
$ roost config show --config roost.toml -o json
$ ROOST_MAX_DEPTH=3 roost config show --set listen=unix:/run/roost.sock
"""


@app.command("show", epilog=EPILOG)
def show(output: Output = Format.TABLE, config: ConfigFile = None, more: More = None) -> None:
    """Print what `roost serve` would use here, and the source of each value: default, file, environment or flag."""
    from roost.server.config import ConfigError, Settings, load

    try:
        configuration = load(flags(more), config)
    except ConfigError as error:
        raise Failure(str(error), BAD_CONFIG) from error
    values = configuration.settings.model_dump()
    if output is Format.JSON:
        print_json({key: {"value": value, "source": configuration.sources[key]} for key, value in values.items()})
        return
    rows = [
        (key, value, configuration.sources[key], Settings.model_fields[key].description or "")
        for key, value in values.items()
    ]
    print_table(("setting", "value", "source", "what it is"), rows, "there are no settings")
