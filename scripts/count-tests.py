#!/usr/bin/env python3
"""count-tests.py FILE...: sums the JUnit files of ctest and prints `N passed, N failed, N skipped`.

Names the failed tests on stderr; exit 1 when there are any. A file that is missing counts as one failed test: its
run did not come to an end.
"""
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def main(paths):
    passed = failed = skipped = 0
    for path in map(pathlib.Path, paths):
        try:
            cases = ElementTree.parse(path).getroot().iter("testcase")
        except (OSError, ElementTree.ParseError) as error:
            print(f"{path.stem}: no results ({error})", file=sys.stderr)
            failed += 1
            continue
        for case in cases:
            if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
                skipped += 1
            elif case.find("failure") is not None or case.get("status") == "fail":
                failed += 1
                print(f"{path.stem}: {case.get('name')} failed", file=sys.stderr)
            else:
                passed += 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
