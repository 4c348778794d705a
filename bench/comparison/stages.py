"""Which stage of the appliance a piece of work belongs to: by source file, by crate, and in the kernel by its callers.

Much of the hot path is inlined, so the function that a sample falls into says little. The innermost of the inlined
callers whose file is of this tree says it: `shards/src/<stage>/`.
"""

import re

# First match counts.
FILES = [
    (r"shards/src/http/reply|shards/src/shard/replies", "reply"),
    (r"shards/src/http/auth|shards/src/shard/caller|shards/src/limiter/", "auth and limiter"),
    (r"shards/src/http/", "HTTP"),
    (r"shards/src/decode/", "decode"),
    (r"shards/src/series/", "series"),
    (r"shards/src/log/|shards/src/shard/commits", "log"),
    (r"shards/src/window/|shards/src/shard/folding", "fold"),
    (r"shards/src/ring/", "receive and send (ring)"),
    (r"shards/src/", "shard, between stages"),
    (r"src/reducer/", "reducer"),
    (r"src/backplane/|glommio", "backplane"),
    # Not inlined into a caller of ours: the crate tells
    (r"simd-json|simd_json|zmij", "decode"),
    (r"httparse", "HTTP"),
    (r"crc32c|rkyv", "log"),
    (r"io-uring|io_uring", "receive and send (ring)"),
    (r"mimalloc|libmimalloc|_mi_|\bmi_", "allocator"),
]

KERNEL = [
    (r"\bio_recv|tcp_recvmsg", "kernel: receive"),
    (r"\bio_send|tcp_sendmsg|inet_sendmsg", "kernel: send, and delivery over loopback"),
    (r"\bio_write|\bio_fsync|ext4|xfs|blk_|submit_bio|iomap", "kernel: disk"),
    (r"io_uring|io_cqring|task_work|\bio_", "kernel: ring"),
    (r"schedule|futex|hrtimer|irq|softirq", "kernel: scheduling and interrupts"),
]

ORDER = ["receive and send (ring)", "HTTP", "auth and limiter", "decode", "series", "log", "fold", "reply", "shard, between stages",
         "reducer", "backplane", "allocator", "copies and compares (libc)", "other", "kernel: receive",
         "kernel: send, and delivery over loopback", "kernel: disk", "kernel: ring", "kernel: scheduling and interrupts", "kernel: other"]

LIBRARY = re.compile(r"/(rustc|\.cargo|registry|library)/")


def of_files(files, function=""):
    """Innermost first. What no file of ours claims goes by its crate, then by the function's name."""
    own = [path for path in files if not LIBRARY.search(path)]
    for path in own:
        for pattern, stage in FILES:
            if re.search(pattern, path):
                return stage
    for text in [*files, function]:
        for pattern, stage in FILES:
            if re.search(pattern, text):
                return stage
    if re.search(r"^(__)?mem(cpy|move|set|cmp|chr)|^__mem|^mem", function):
        return "copies and compares (libc)"
    return "other"


def of_kernel(chain):
    """`chain`: functions, innermost first."""
    text = " ".join(chain)
    for pattern, stage in KERNEL:
        if re.search(pattern, text):
            return stage
    return "kernel: other"
