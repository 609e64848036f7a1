# Sourced by scripts that train on a CPU. Each step allocates and frees gigabytes; with memory kept by malloc in
# huge pages, steps run 1.36 times as fast (SmolLM2-135M; LOG.md, 2026-11-22).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=268435456}"
