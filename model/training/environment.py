"""The environment of a process that will train: set by whoever starts it, so torch-free."""

from __future__ import annotations


def worker_environment(threads: int) -> dict[str, str]:
    """Variables a worker process needs before it starts; they cannot be set later."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "VECLIB_MAXIMUM_THREADS": str(threads),  # of Apple's, which the framework takes on a Mac
        # Waiting threads sleep: a spinning one takes the core from the worker beside it.
        "OMP_WAIT_POLICY": "passive",
        # Keep freed memory instead of handing it back to the kernel: every activation would be
        # mapped and zeroed anew in every step.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
        "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
        # Large pages for it: gathering rows touches many pages (8 to 25 % of an expert layer's
        # time, LOG.md, 2026-11-26). A C library that does not know this takes no notice.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        # Wanted by deterministic cuBLAS.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
