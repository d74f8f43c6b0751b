"""How a program of each language is built, run, and joined with test code.

Test code of other languages than Python runs in the program's own process, so its verdict is as good as that language
lets it be: the last line after the tests writes a token to descriptor 3, which exit codes, printing, replaced
assertions and exit handlers do not do. A program written against this file, which reads its own source or memory for
the token, can forge it. {stdin, stdout} tests are safe in any language: their answers never enter the sandbox.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from rewards.sandbox.view import PATH

Files = dict[str, str]


@dataclass(frozen=True)
class Language:
    """Arguments that begin with ``@`` are tools, replaced by their paths; ``{main}`` is the main class (Java)."""

    name: str
    aliases: tuple[str, ...]
    tools: tuple[str, ...]
    source: Callable[[str], Files]  # program -> files
    joined: Callable[[str, str, str], Files]  # program, test code, token -> files
    run: tuple[str, ...]
    run_joined: tuple[str, ...] = ()  # where it differs
    build: tuple[str, ...] = ()
    build_joined: tuple[str, ...] = ()  # where it differs
    built: tuple[str, ...] = ()  # files that the build leaves for the run; without a build the sources are
    address_space: bool = False  # limit it? Runtimes with a garbage collector reserve far more than they use
    min_memory_mib: int = 0  # they do not start with less

    def missing(self) -> list[str]:
        """The tools that this machine lacks, where programs could see them."""
        return [tool for tool in self.tools if tool_path(tool) is None]

    def argv(self, template: tuple[str, ...], main: str = "") -> tuple[str, ...]:
        return tuple(
            str(tool_path(part[1:])) if part.startswith("@") else part.replace("{main}", main) for part in template
        )


def tool_path(tool: str) -> str | None:
    return shutil.which(tool, path=PATH)


# --- C++ ------------------------------------------------------------------------------------------------------------

# Exit handlers run when main returns. A call of exit() would run them too, so it is another function here.
_CPP_END = """
#include <cstdlib>
#include <unistd.h>
extern "C" void __wrap_exit(int) {{ _exit(113); }}
static void tests_ended() {{ if (write(3, "{token}", {size}) < 0) _exit(114); }}
static int tests_end = std::atexit(tests_ended);
"""
_CPP_ASSERT = "\n#undef assert\n#undef NDEBUG\n#include <cassert>\n"


def _cpp_joined(program: str, test: str, token: str) -> Files:
    return {"program.cpp": program + _CPP_ASSERT + test + _CPP_END.format(token=token, size=len(token))}


# --- Java -----------------------------------------------------------------------------------------------------------

_JAVA_TYPE = re.compile(r"^(\s*)((?:\w+\s+)*)(?:class|interface|enum|record)\s+(\w+)", re.MULTILINE)
_JAVA_MAIN = re.compile(r"\bstatic\s+(?:final\s+)?void\s+main\s*\(")
_JAVA_END = """
public class TestsEnd {{
    public static void main(String[] arguments) throws Exception {{
        {main}.main(arguments);
        try (var out = new java.io.FileOutputStream("/proc/self/fd/3")) {{ out.write("{token}".getBytes()); }}
    }}
}}
"""
_JAVA_FLAGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx256m", "-Xss64m")
_JAVAC = " ".join(f"-J{flag}" for flag in _JAVA_FLAGS)


def main_class(program: str) -> str:
    """The last class before the last ``static void main(``; "Main" where there is none."""
    mains = [match.start() for match in _JAVA_MAIN.finditer(program)]
    end = mains[-1] if mains else len(program)
    names = [match[3] for match in _JAVA_TYPE.finditer(program, 0, end)]
    return names[-1] if names else "Main"


def _java(program: str) -> Files:
    public = next((match[3] for match in _JAVA_TYPE.finditer(program) if "public" in match[2].split()), "Main")
    return {f"{public}.java": program}


def _java_joined(program: str, test: str, token: str) -> Files:
    joined = f"{program}\n{test}"
    return _java(joined) | {"TestsEnd.java": _JAVA_END.format(main=main_class(joined), token=token)}


# --- JavaScript, TypeScript -------------------------------------------------------------------------------------------

# Program and test share the global scope, as two scripts of a page do; in between, assertions are what they were.
_JS_END = """
const fs = require('fs'), vm = require('vm'), assert = require('assert');
const write = fs.writeSync, read = fs.readFileSync, run = vm.runInThisContext, saved = [];
for (const target of [assert, assert.strict, assert.AssertionError, assert.AssertionError.prototype])
  saved.push([target, Object.getOwnPropertyDescriptors(target)]);
const define = Object.defineProperties;
const test = {test}, token = {token};
globalThis.require = require; globalThis.module = module; globalThis.exports = exports;
run(read('program.js', 'utf8'), {{filename: 'program.js'}});
for (const [target, descriptors] of saved) define(target, descriptors);
globalThis.require = require;
run(test, {{filename: 'test.js'}});
write(3, token);
"""
_NODE = ("@node", "--max-old-space-size=256", "--stack-size=4000")


def _js(program: str) -> Files:
    return (
        {"program.js": program}
        if not _is_module(program)
        else {"program.js": "import('./main.mjs')", "main.mjs": program}
    )


def _is_module(program: str) -> bool:
    return re.search(r"^\s*(?:import\s+[\w{*'\"]|export\s)", program, re.MULTILINE) is not None


def _js_joined(program: str, test: str, token: str) -> Files:
    import json

    return {"program.js": program, "run.js": _JS_END.format(test=json.dumps(test), token=json.dumps(token))}


def _ts_joined(program: str, test: str, token: str) -> Files:
    end = f"(globalThis as any).process.mainModule.require('fs').writeSync(3, '{token}');"
    return {"program.ts": f"{program}\n{test}\n;{end}\n"}


# --- PHP, Bash, C# --------------------------------------------------------------------------------------------------


def _php(program: str) -> Files:
    return {"program.php": program if "<?" in program else f"<?php\n{program}"}


def _php_joined(program: str, test: str, token: str) -> Files:
    test = test.removeprefix("<?php")
    return _php(f"{program.removesuffix('?>')}\n{test}\nfile_put_contents('php://fd/3', '{token}');\n")


_CS_END = """
class TestsEnd {{
    static void Main(string[] arguments) {{
        var main = typeof({main}).GetMethod("Main", System.Reflection.BindingFlags.Static
            | System.Reflection.BindingFlags.Public | System.Reflection.BindingFlags.NonPublic);
        main.Invoke(null, main.GetParameters().Length == 0 ? null : new object[] {{ arguments }});
        System.IO.File.WriteAllText("/proc/self/fd/3", "{token}");
    }}
}}
"""
_CS_FAIL = """
class ThrowingListener : System.Diagnostics.TraceListener {{
    public override void Write(string text) {{}}
    public override void WriteLine(string text) {{}}
    public override void Fail(string text) {{ System.Environment.Exit(1); }}
    public override void Fail(string text, string more) {{ System.Environment.Exit(1); }}
}}
""".format()
_CS_TYPE = re.compile(r"\b(?:class|struct)\s+(\w+)")


def _cs_joined(program: str, test: str, token: str) -> Files:
    joined = f"{program}\n{test}"
    before_main = re.split(r"\bstatic\s+(?:async\s+)?\w+\s+Main\s*\(", joined)
    names = _CS_TYPE.findall("".join(before_main[:-1]) or joined)
    end = _CS_END.format(main=names[-1] if names else "Program", token=token)
    end = end.replace("        var main", _CS_LISTEN + "        var main", 1)
    return {"program.cs": joined + _CS_FAIL + end}


_CS_LISTEN = """        System.Diagnostics.Trace.Listeners.Clear();
        System.Diagnostics.Trace.Listeners.Add(new ThrowingListener());
"""


_CPP_BUILD = ("@g++", "-std=c++17", "-O1", "-w", "-o", "program", "program.cpp")
# Types are not what is graded, and the declarations of Node are not at hand.
_TSC = "tsc --target es2020 --module commonjs --lib es2020,dom program.ts > errors"
_TSC += "; test -f program.js || { cat errors; exit 1; }"
_MCS = ("@mcs", "-d:DEBUG", "-d:TRACE", "-r:System.Numerics", "-out:program.exe", "program.cs")

LANGUAGES = (
    Language(
        "python",
        ("py", "python3", "py3"),
        (),
        lambda program: {"program.py": program},
        lambda program, test, token: {},  # tests run in a process of their own: bridge.py
        (),
        address_space=True,
    ),
    Language(
        "cpp",
        ("c++", "cc", "cxx"),
        ("g++",),
        lambda program: {"program.cpp": program},
        _cpp_joined,
        ("./program",),
        build=_CPP_BUILD,
        build_joined=(*_CPP_BUILD, "-Wl,--wrap=exit"),
        built=("program",),
        address_space=True,
    ),
    Language(
        "java",
        (),
        ("javac", "java", "tar"),
        _java,
        _java_joined,
        ("/bin/sh", "-c", f"tar xf classes.tar && exec java -ea {' '.join(_JAVA_FLAGS)} -cp . {{main}}"),
        build=("/bin/sh", "-c", f"javac {_JAVAC} -d classes *.java && tar cf classes.tar -C classes ."),
        built=("classes.tar",),
        min_memory_mib=1024,
    ),
    Language(
        "javascript", ("js", "node", "nodejs"), ("node",), _js, _js_joined, (*_NODE, "program.js"), (*_NODE, "run.js")
    ),
    Language(
        "typescript",
        ("ts",),
        ("tsc", "node"),
        lambda program: {"program.ts": program},
        _ts_joined,
        (*_NODE, "program.js"),
        build=("/bin/sh", "-c", _TSC),
        built=("program.js",),
    ),
    Language("php", (), ("php",), _php, _php_joined, ("@php", "-d", "memory_limit=256M", "program.php")),
    Language(
        "bash",
        ("sh", "shell"),
        ("bash",),
        lambda program: {"program.sh": program},
        lambda program, test, token: {"program.sh": f"{program}\n{test}\nprintf %s {token} >&3\n"},
        ("@bash", "program.sh"),
        address_space=True,
    ),
    Language(
        "csharp",
        ("c#", "cs"),
        ("mcs", "mono"),
        lambda program: {"program.cs": program},
        _cs_joined,
        ("@mono", "program.exe"),
        build=_MCS,
        build_joined=(*_MCS, "-main:TestsEnd"),
        built=("program.exe",),
    ),
)
BY_NAME = {name: language for language in LANGUAGES for name in (language.name, *language.aliases)}
