"""Copies of images, or links to them, in a folder for each label."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from sk_cnncodes.cli.serving.predictor import UNKNOWN, Prediction

# Characters that file names may not have on some system, and names that Windows keeps
# for devices.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_LONGEST = 100
_COPY_BYTES = 2**20


class LabelFolders:
    """Puts images into folders by their labels; never moves or replaces a file.

    Parameters
    ----------
    folder : Path
        Created if missing.
    labels : sequence of object
        All labels of the model, whose folders have different names.
    links : bool
        Make symbolic links instead of copies.

    Attributes
    ----------
    added, kept : int
        Files that were put there, and those that were there already.
    """

    def __init__(self, folder: Path, labels: Sequence[Any], links: bool) -> None:
        self._folder = folder
        self._links = links
        self._names = folder_names([UNKNOWN, *map(str, labels)])
        self.added = self.kept = 0

    def put(self, path: str, prediction: Prediction) -> None:
        """Put an image into the folders of its labels; without any, of `UNKNOWN`.

        Raises
        ------
        OSError
            If it cannot be written; no part of it is left.
        """
        label = prediction.label
        labels = label if isinstance(label, list) else [label]
        for each in labels or [UNKNOWN]:
            folder = self._folder / self._names[str(each)]
            folder.mkdir(parents=True, exist_ok=True)
            if self._put_into(folder, Path(path)):
                self.added += 1
            else:
                self.kept += 1

    def _put_into(self, folder: Path, image: Path) -> bool:
        """Put an image into a folder, unless it is there."""
        number = 1
        while True:
            suffix = "" if number == 1 else f"-{number}"
            target = folder / f"{image.stem}{suffix}{image.suffix}"
            if _is_same(target, image):
                return False
            try:
                self._create(target, image)
            except FileExistsError:
                number += 1
            else:
                return True

    def _create(self, target: Path, image: Path) -> None:
        if self._links:
            target.symlink_to(image.absolute())
            return
        with open(image, "rb") as source, open(target, "xb") as copy:
            try:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
                copy.flush()
                shutil.copystat(image, target)
            except BaseException as error:
                target.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = str(target)  # a full disk
                raise

    def summary(self) -> str:
        """What was done, for a person."""
        what = "link" if self._links else "copy"
        noun = what if self.added == 1 else {"link": "links", "copy": "copies"}[what]
        text = f"{self.added} {noun} in {str(self._folder)!r}, in a folder per label"
        there = f"; {self.kept} were there already" if self.kept else ""
        return f"{text}{there}."


def _is_same(target: Path, image: Path) -> bool:
    """Whether a file is there with the content of an image, or is a link to it."""
    try:
        return target.samefile(image) or filecmp.cmp(target, image, shallow=False)
    except OSError:
        return False  # there is none, or a link to a file that has gone


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """Names of folders for labels: valid on all systems, and different there.

    Examples
    --------
    >>> from sk_cnncodes.cli.serving.sorting import folder_names
    >>> folder_names(["../x", "a/b", "a_b", "Nul", "cat"])
    {'../x': '_._x', 'a/b': 'a_b', 'a_b': 'a_b-2', 'Nul': 'Nul_', 'cat': 'cat'}
    """
    names: dict[str, str] = {}
    taken = set[str]()
    for label in dict.fromkeys(labels):
        name = base = _folder_name(label)
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        names[label] = name
    return names


def _folder_name(label: str) -> str:
    name = _FORBIDDEN.sub("_", label)[:_LONGEST].strip(" ").rstrip(".")
    if not name or name.startswith("."):
        name = f"_{name[1:]}"  # neither hidden nor a parent folder
    return f"{name}_" if _DEVICES.fullmatch(name) else name


def check_sorted_folder(folder: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse a folder inside of one whose images are predicted.

    Raises
    ------
    typer.BadParameter
        If it is; its copies would be images to predict too.
    """
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"--sort-into {str(folder)!r}: is no folder.")
    inside = Path(os.path.realpath(folder))
    for each in inputs:
        source = Path(os.path.realpath(each))
        if source.is_dir() and inside.is_relative_to(source):
            raise typer.BadParameter(
                f"--sort-into {str(folder)!r}: is inside of {str(each)!r}, whose "
                "images are sorted. Expected a folder outside of it."
            )
