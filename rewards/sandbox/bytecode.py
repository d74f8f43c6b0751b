"""The job as the first process of the sandbox reads it: byte code, the program, and last what the program must not see."""

from __future__ import annotations

import __future__
import functools
import importlib.util
import marshal
import secrets
from collections.abc import Sequence

from rewards.sandbox.limits import Job, Limits

_MODULES = ("plain", "bridge", "harness")
_BRIDGED = ("call", "code")

# Given to `python -c`: loads the modules of frame 0 from descriptor 3 and hands over; a script then runs at top level.
BOOT = """
import marshal,posix,sys
n=int.from_bytes(posix.read(3,8),'big');b=b''
while len(b)<n:b+=posix.read(3,n-len(b))
for k,c in marshal.loads(b).items():
    m=type(sys)(k);sys.modules[k]=m;exec(c,m.__dict__)
h=sys.modules['rewards.sandbox.harness'];s=h.main()
m=sys.modules['__main__']=type(sys)('__main__');m.__file__='program.py'
try:exec(compile(s,'program.py','exec'),m.__dict__)
except BaseException as e:h.end(e)
h.end(None)
""".strip()


@functools.cache
def _modules(bridged: bool) -> bytes:
    codes = {}
    for name in _MODULES:
        if name == "bridge" and not bridged:
            continue
        full_name = f"rewards.sandbox.{name}"
        spec = importlib.util.find_spec(full_name)
        assert spec is not None and spec.origin is not None  # it lies beside this file
        with open(spec.origin, encoding="utf-8") as file:
            # The statement would import a module at run time; the flag is what it does for the compiler.
            source = file.read().replace("from __future__ import annotations\n", "\n", 1)
        flags = __future__.annotations.compiler_flag
        codes[full_name] = compile(source, f"<{name}>", "exec", flags=flags, dont_inherit=True, optimize=2)
    return marshal.dumps(codes)


def frames(job: Job, limits: Limits, packages: Sequence[str]) -> tuple[bytes, str]:
    """The three frames, each with its length in front, and the nonce that the answer must carry."""
    nonce = secrets.token_hex(16)
    token = str(job.secret.get("token", ""))
    program = {
        "mode": job.mode,
        "source": job.source,
        "argv": list(job.argv),
        "env": dict(job.environment),
        "files": dict(job.files),
        "outputs": list(job.outputs),
        "limits": limits.as_resource(address_space=job.address_space),
        "packages": list(packages),
        "token": bool(token),
    }
    secret = {"nonce": nonce, "test": "", "call": "", "args": [], "kwargs": {}, "entry_point": "", **job.secret}
    parts = (_modules(job.mode in _BRIDGED), marshal.dumps(program), marshal.dumps(secret))
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts), nonce
