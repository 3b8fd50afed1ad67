#!/usr/bin/env python3
"""Checks that every Markdown file that code, comments and documentation name is in this repository.

A name counts from the repository's root or from the folder of the file that names it. What the reader cannot look up
is no source: name the paper and its section, or a page of docs/.
"""
import pathlib
import posixpath
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = re.compile(r"[\w./-]*\w\.md\b")
WRITTEN = {"peers.md", "train-peers.md"}  # by make bench-peers and bench-train-peers, where they are called


def project_files():
    """What git tracks; without git, everything but what was built."""
    git = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if git.returncode == 0:
        return {name for name in git.stdout.split("\0") if (ROOT / name).is_file()}
    return {file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*")
            if file.is_file() and file.relative_to(ROOT).parts[0] not in {"build", ".deps", ".git"}}


def main():
    files = project_files()
    cited, wrong = 0, 0
    for file in sorted(files):
        try:
            text = (ROOT / file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a model, an archive
        for number, line in enumerate(text.splitlines(), 1):
            for name in NAME.findall(line):
                if name.startswith("//") or name in WRITTEN:  # //: the rest of an address
                    continue
                cited += 1
                name = name.lstrip("/")  # behind a variable that names the root
                if not {posixpath.normpath(name), posixpath.normpath(f"{posixpath.dirname(file)}/{name}")} & files:
                    print(f"{file}:{number}: {name} is no file of this repository; name the paper and its section, "
                          "or a page of docs/", file=sys.stderr)
                    wrong += 1
    if cited == 0:
        sys.exit("check-citations: found no citations")
    print(f"check-citations: {cited} names of .md files, {wrong} that lead nowhere")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
