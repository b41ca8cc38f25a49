"""Modules split into code and prose, against sources written by hand and the library itself."""

import ast
import bisect
import io
import queue
import shlex
import tokenize
from pathlib import Path

import pytest

from model.training.data.files import Hashes
from model.training.data.stdlib import _module_paths, split_module, stdlib_parts

MODULE = b'''#!/usr/bin/env python
"""Front page.

    Text.
      Indented.
"""
import os  # the system
\f
# Two lines that
# belong together.

class Thing:
    """A thing."""

    x = "not a docstring"

    def area(self):
        """Words \xc3\xbc." with a quote."""; return "# not a comment"

async def go(): "One line."
'''


def library(root):
    [job] = stdlib_parts({"code": "code", "prose": "prose"}, Hashes(), root).jobs()
    return job


def test_code_and_prose_of_a_module():
    code, prose = split_module(MODULE)

    assert prose == (
        "!/usr/bin/env python\n\nFront page.\n\nText.\n  Indented.\n\nthe system\n\n"
        "Two lines that\nbelong together.\n\nA thing.\n\n"
        'Words ü." with a quote.\n\nOne line.\n\n'
    )
    assert code == (
        'import os\n\x0c\n\nclass Thing:\n\n    x = "not a docstring"\n\n    def area(self):\n'
        '; return "# not a comment"\n\nasync def go():\n'
    )


def test_other_encodings_and_line_ends_become_plain_text():
    code, prose = split_module('# -*- coding: latin-1 -*-\r\nx = "é"\r\n'.encode("latin-1"))

    assert (code, prose) == ('x = "é"\n', "-*- coding: latin-1 -*-\n\n")


def test_nothing_is_lost_and_nothing_is_left_in(tmp_path):
    """On real modules: no comment stays in the code, and every other token does."""
    for module in (bisect, shlex, queue):
        source = Path(module.__file__).read_bytes()
        code, prose = split_module(source)
        before = list(tokenize.generate_tokens(io.StringIO(source.decode()).readline))
        comments = [t.string.lstrip("# ") for t in before if t.type == tokenize.COMMENT]
        assert comments
        assert all(comment.strip() in prose for comment in comments)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for node in ast.walk(ast.parse(source)):
            docstring = ast.get_docstring(node) if isinstance(node, documented) else None
            if docstring:
                assert docstring in prose
                assert docstring.splitlines()[0] not in code
        names = {t.string for t in before if t.type == tokenize.NAME}
        assert all(name in code for name in names)
        assert not any(line.lstrip().startswith("#") for line in code.splitlines())


def test_a_file_that_does_not_parse_is_named_and_the_rest_is_read(tmp_path):
    (tmp_path / "good.py").write_text("x = 1  # one\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "undecodable.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text("y = 2\n")

    report = {}
    documents = list(library(tmp_path).documents(report))

    assert {d.text for d in documents} == {b"x = 1\n", b"one\n\n"}
    assert report["files"] == 3
    unparsed = report["unparsed"]
    assert [line.split(":")[0] for line in unparsed] == ["broken.py", "undecodable.py"]


def test_key_follows_contents_not_names(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "one.py").write_text("x = 1\n")
    (tmp_path / "b" / "other_name.py").write_text("x = 1\n")
    (tmp_path / "c" / "one.py").write_text("x = 2\n")

    key = {name: library(tmp_path / name).key for name in ("a", "b", "c")}

    assert key["a"] == key["b"] != key["c"]


def test_installed_packages_are_never_read():
    root = library(None).root
    parts = {part for path in _module_paths(root) for part in path.relative_to(root).parts}
    assert "os.py" in parts
    assert not parts & {"site-packages", "test", "tests", "__pycache__"}


def test_an_interpreter_without_its_library_is_told(tmp_path):
    from model.errors import ConfigError

    with pytest.raises(ConfigError, match="no standard library source under"):
        library(tmp_path)
