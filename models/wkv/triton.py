"""The GPU form of WKV-4; until its kernels are here, the reference stands in for it."""

from models.wkv.reference import wkv_reference as wkv_triton

__all__ = ["interpreted", "wkv_triton"]


def interpreted() -> bool:
    """Whether kernels run on CPU tensors, in Triton's interpreter."""
    return False
