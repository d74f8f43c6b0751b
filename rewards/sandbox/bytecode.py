"""The job as the first process inside reads it: byte code, the program, and last what the program must not see."""

from __future__ import annotations

import ast
import functools
import importlib.util
import marshal
import secrets
from collections.abc import Sequence

from rewards.sandbox.limits import Job, Limits

_MODULES = ("plain", "channel", "bridge", "answering", "harness")
_BRIDGED = ("call", "code")

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


def frames(job: Job, limits: Limits, packages: Sequence[str]) -> tuple[bytes, str]:
    """The frames, each with its length in front, and the nonce that the answer must carry."""
    nonce = secrets.token_hex(16)
    judged = is_judged(job)
    program = {
        "mode": job.mode,
        "judged": judged,
        "source": job.source,
        "argv": list(job.argv),
        "env": dict(job.environment),
        "files": dict(job.files),
        "outputs": list(job.outputs),
        "limits": limits.as_resource(address_space=job.address_space),
        "packages": list(packages),
        "token": job.wants_token,
    }
    parts = [_modules(job.mode in _BRIDGED), marshal.dumps(program)]
    if judged:
        secret = {"nonce": nonce, "test": "", "call": "", "args": [], "kwargs": {}, "entry_point": "", **job.secret}
        parts.append(marshal.dumps(secret))
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts), nonce


def is_judged(job: Job) -> bool:
    """Does a process of ours stay inside, to say how the run ended?"""
    return job.mode in _BRIDGED or bool(job.outputs)
