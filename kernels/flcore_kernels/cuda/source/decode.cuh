// How operands are read: for each dtype, the value of an element and its magnitude (see cpu/decode.py).
//
// A thread reads `lanes` elements at once: 16 bytes, but at most 8 elements, because each takes registers as a float.
// The value of a quantized code is fl32(scale * code). `is_beyond` is true for an element that no sum takes: an integer
// beyond 2^53, or a boolean other than 0 and 1.

template <typename T, int LANES>
struct Plain {
    typedef T storage;
    static constexpr int lanes = LANES, block = 0;
    static constexpr bool is_wide = false, is_limited = false;
    __device__ static T value(T stored, float) { return stored; }
    __device__ static bool is_beyond(T) { return false; }
    __device__ static double magnitude(T stored, float) { return fabs(double(stored)); }
};

struct float64 : Plain<u64, 2> {
    static constexpr bool is_wide = true;  // terms may lie beyond bins -18 to 18
    __device__ static double value(u64 stored, float) { return from_bits(i64(stored)); }
    __device__ static double magnitude(u64 stored, float) { return fabs(value(stored, 1.0f)); }
};

struct float32 : Plain<u32, 4> {
    __device__ static float value(u32 stored, float) { return from_bits(stored); }
    __device__ static double magnitude(u32 stored, float) { return fabs(double(value(stored, 1.0f))); }
};

struct bfloat16 : Plain<u16, 8> {
    __device__ static float value(u16 stored, float) { return from_bits(u32(stored) << 16); }
    __device__ static double magnitude(u16 stored, float) { return fabs(double(value(stored, 1.0f))); }
};

// A product of 2^112 changes the exponent's bias from 15 to 127, exactly, for denormals too. A NaN is made quiet, as
// the CPU's instruction does.
struct float16 : Plain<u16, 8> {
    __device__ static float value(u16 stored, float) {
        u32 sign = (u32(stored) & 0x8000u) << 16, body = (u32(stored) & 0x7FFFu) << 13;
        u32 finite = bits_of(from_bits(body) * 0x1p112f);
        u32 special = body | 0x7F800000u | (body > 0x0F800000u ? 0x00400000u : 0u);
        return from_bits(sign | (body >= 0x0F800000u ? special : finite));
    }
    __device__ static double magnitude(u16 stored, float) { return fabs(double(value(stored, 1.0f))); }
};

struct int8 : Plain<i8, 8> {};
struct int16 : Plain<i16, 8> {};
struct int32 : Plain<i32, 4> {};
struct uint8 : Plain<u8, 8> {};
struct uint16 : Plain<u16, 8> {};
struct uint32 : Plain<u32, 4> {};

constexpr u64 EXACT_INTEGER_LIMIT = 1ull << 53;

// Compared as integers: as a float64, 2^53 + 1 becomes 2^53, and would pass.
__device__ inline double magnitude_of(u64 size) {
    return size <= EXACT_INTEGER_LIMIT || double(size) > 0x1p53 ? double(size) : 0x1p53 + 2.0;
}

struct int64 : Plain<i64, 2> {
    static constexpr bool is_limited = true;
    __device__ static u64 size(i64 stored) { return stored < 0 ? 0 - u64(stored) : u64(stored); }
    __device__ static bool is_beyond(i64 stored) { return size(stored) > EXACT_INTEGER_LIMIT; }
    __device__ static double magnitude(i64 stored, float) { return magnitude_of(size(stored)); }
};

struct uint64 : Plain<u64, 2> {
    static constexpr bool is_limited = true;
    __device__ static bool is_beyond(u64 stored) { return stored > EXACT_INTEGER_LIMIT; }
    __device__ static double magnitude(u64 stored, float) { return magnitude_of(stored); }
};

struct boolean : Plain<u8, 8> {
    static constexpr bool is_limited = true;
    __device__ static bool is_beyond(u8 stored) { return stored > 1; }
};

template <int BLOCK_OF_SCALE>
struct quantized : Plain<i8, 8> {
    static constexpr int block = BLOCK_OF_SCALE;
    __device__ static float value(i8 stored, float factor) { return factor * float(stored); }
    __device__ static double magnitude(i8 stored, float factor) { return fabs(double(value(stored, factor))); }
};

// The scale of the elements from `index` on; 1 for a dtype that has none.
template <typename D>
__device__ inline float factor_at(u64 scales, i64 index) {
    if (D::block == 0) return 1.0f;
    return __ldcs(reinterpret_cast<const float *>(scales) + index / larger(D::block, 1));
}
