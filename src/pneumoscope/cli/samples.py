"""`pneumoscope samples`: write the sample images into a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.parameters import AsJson

__all__ = ["samples"]


def samples(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; created if absent.")],
    as_json: AsJson = False,
) -> None:
    """Write eight real X-rays into a folder, with samples.csv: source, licence and true label of each.

    Children with and without pneumonia, one of them hard to see, one with inverted grey levels, one as a
    DICOM file; a shoulder and a hand, which are to be rejected. `pneumoscope demo` predicts them.
    """
    from pneumoscope.data.samples import SAMPLES_TABLE, write_samples

    written = write_samples(out)
    if as_json:
        from pneumoscope.cli.common import print_json

        print_json({"folder": str(out), "images": [asdict(one) for one in written]})
        return
    widths = [max(len(getattr(one, name)) for one in written) for name in ("path", "label")]
    for one in written:
        typer.echo(f"{one.path:{widths[0]}}  {one.label:{widths[1]}}  {one.content}")
    typer.echo(f"{len(written)} images in {out}; source and licence of each in {out / SAMPLES_TABLE}")
