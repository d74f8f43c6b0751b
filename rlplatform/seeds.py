"""Where the seed of every sample comes from: (run seed, step, prompt, sample), and no two samples share one."""

from __future__ import annotations

import hashlib

_BITS = 62  # of the base and of the counter; their sum stays below 2**63, the range of a signed seed


def request_seed(run_seed: int, step: int, prompt_index: int, group_size: int, *, stream: str = "train") -> int:
    """The seed of the first sample of a group; sample ``k`` of it uses ``request_seed(...) + k``.

    Groups of a run are numbered by Cantor's pairing of (step, prompt_index) and spaced ``group_size`` apart, so seeds
    are distinct by construction and not by luck. torch's CPU generator keeps the low 32 bits of a seed and drops the
    rest: those are distinct too as long as ``(step + prompt_index)**2 / 2 * group_size`` is below 2**32 (step 20,000
    of 512 prompts x 16 samples). The run seed and the stream (training, evaluation, ...) choose where the numbering
    starts.

    Raises:
        ValueError: an argument out of range.
    """
    if step < 0 or prompt_index < 0 or group_size < 1:
        raise ValueError(
            f"request_seed: expected step >= 0, prompt_index >= 0 and group_size >= 1, "
            f"got {step}, {prompt_index}, {group_size}"
        )
    diagonal = step + prompt_index
    group = diagonal * (diagonal + 1) // 2 + prompt_index
    if (group + 1) * group_size > 1 << _BITS:
        raise ValueError(f"request_seed: step {step}, prompt {prompt_index} lie beyond 2**{_BITS} samples")
    digest = hashlib.blake2b(f"{run_seed}/{stream}".encode(), digest_size=8).digest()
    base = int.from_bytes(digest, "little") >> (64 - _BITS)
    return base + group * group_size
