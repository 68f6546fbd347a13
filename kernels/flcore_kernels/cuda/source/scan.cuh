// Quantizing: the codes and the scale of a block (see cpu/scan.py).

constexpr float LARGEST_SCALE = 0x1.020406p121f;  // the largest one for which 127 * scale is finite
constexpr u32 ALL = 0xFFFFFFFFu;

// A warp quantizes a block of 32 * E elements, E consecutive ones a lane. Returns whether all of them are finite.

template <int E>
__device__ inline bool quantize_block(u64 values, u64 codes, u64 scales, i64 block, i64 size) {
    i64 index = block * (32 * E) + threadIdx.x % 32 * E;
    u32 stored[E], top = 0;
    load(stored, values, index, size);
    for (int i = 0; i < E; i++) top = larger(top, stored[i] & 0x7FFFFFFFu);
    for (int apart = 16; apart > 0; apart /= 2) top = larger(top, __shfl_xor_sync(ALL, top, apart));
    if (top >= 0x7F800000u) return false;
    float scale = from_bits(top) / 127.0f;
    if (scale < 0x1p-126f) scale = 0.0f;
    scale = smaller(scale, LARGEST_SCALE);
    i8 written[E];
    for (int i = 0; i < E; i++) written[i] = scale > 0.0f ? i8(rintf(from_bits(stored[i]) / scale)) : i8(0);
    store(codes, index, size, written);
    if (threadIdx.x % 32 == 0) reinterpret_cast<float *>(scales)[block] = scale;
    return true;
}
