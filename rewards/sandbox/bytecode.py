"""The job as the first process inside reads it: byte code, the program, and last what the program must not see."""

from __future__ import annotations

import ast
import functools
import importlib.util
import marshal
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.sandbox.limits import Job, Limits

_MODULES = ("plain", "channel", "bridge", "answering", "harness")
_BRIDGED = ("call", "code")
_NO_TEST = {"test": "", "call": "", "args": b"", "kwargs": b"", "entry_point": ""}

# Given to `python -c`: loads the modules of frame 0 from descriptor 3 and hands over; a script then runs at top level.
# ``exec`` of text, never ``compile``: the first call of that builds all types of the `ast` module, 0.7 ms.
BOOT = """
import marshal,posix,sys
n=int.from_bytes(posix.read(3,8),'big');b=b''
while len(b)<n:b+=posix.read(3,n-len(b))
for k,c in marshal.loads(b).items():
    m=type(sys)(k);sys.modules[k]=m;exec(c,m.__dict__)
h=sys.modules['rewards.sandbox.harness'];s=h.main()
m=sys.modules['__main__']=type(sys)('__main__');m.__file__='program.py'
try:exec(s,m.__dict__)
except BaseException as e:h.end(e)
h.end(None)
""".strip()


@functools.cache
def _modules(bridged: bool) -> bytes:
    codes = {}
    for name in _MODULES:
        if name not in ("plain", "harness") and not bridged:
            continue
        full_name = f"rewards.sandbox.{name}"
        spec = importlib.util.find_spec(full_name)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"{full_name} is not where this file is")
        with open(spec.origin, encoding="utf-8") as file:
            tree = _WithoutAnnotations().visit(ast.parse(file.read()))
        codes[full_name] = compile(ast.fix_missing_locations(tree), f"<{name}>", "exec", dont_inherit=True, optimize=2)
    return marshal.dumps(codes)


class _WithoutAnnotations(ast.NodeTransformer):
    """They cost time, and ``from __future__ import annotations`` would be handed on to the programs that we execute."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return ast.Assign(targets=[node.target], value=self.visit(node.value))


def frames(
    job: Job, limits: Limits, packages: Sequence[str], tests: Sequence[Mapping[str, Any]]
) -> tuple[bytes, list[str]]:
    """The job: two frames with their length in front, then what only judges read, a piece a test. And their nonces."""
    nonces = [secrets.token_hex(16) for _ in tests]
    pieces = [
        marshal.dumps(_NO_TEST | dict(test) | {"nonce": nonce}) for test, nonce in zip(tests, nonces, strict=True)
    ]
    program = {
        "mode": job.mode,
        "judged": is_judged(job),
        "source": job.source,
        "argv": list(job.argv),
        "env": dict(job.environment),
        "files": dict(job.files),
        "outputs": list(job.outputs),
        "limits": limits.as_resource(address_space=job.address_space),
        "packages": list(packages),
        "token": job.wants_token,
        "secrets": [(len(piece), 0) for piece in pieces],  # size and place in the whole
    }
    modules = _modules(job.mode in _BRIDGED)
    at = 16 + len(modules) + len(marshal.dumps(program, 0))  # version 0: the length depends on no value or reference
    places = []
    for piece in pieces:
        places.append((len(piece), at))
        at += len(piece)
    program["secrets"] = places
    parts = (modules, marshal.dumps(program, 0))
    return b"".join([*(len(part).to_bytes(8, "big") + part for part in parts), *pieces]), nonces


def is_judged(job: Job) -> bool:
    """Does a process of ours stay inside, to say how the run ended?"""
    return job.mode in _BRIDGED or bool(job.outputs)
