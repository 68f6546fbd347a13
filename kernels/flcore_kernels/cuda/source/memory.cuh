// How the kernels reach memory: numbers by their widths, bits of floats, vectors of 16 bytes, lanes that work together.
//
// A kernel gets its buffers as addresses, because one launch serves any number of operands. Positions are 64 bits wide
// everywhere. Plain C++ but for a few names of CUDA, so that a host's compiler takes it too.

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

constexpr double GREATEST = 0x1.fffffffffffffp1023;
constexpr u64 INFINITE = 0x7FF0000000000000ull;  // the bits of the smallest magnitude that is not finite

__device__ inline i64 bits_of(double value) { return __double_as_longlong(value); }
__device__ inline double from_bits(i64 bits) { return __longlong_as_double(bits); }
__device__ inline u32 bits_of(float value) { return __float_as_uint(value); }
__device__ inline float from_bits(u32 bits) { return __uint_as_float(bits); }

__device__ inline bool is_finite(double value) { return fabs(value) <= GREATEST; }
__device__ inline double power_of_two(i64 exponent) { return from_bits((exponent + 1023) << 52); }

template <typename A, typename B>
__device__ inline auto smaller(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
template <typename A, typename B>
__device__ inline auto larger(A a, B b) -> decltype(a + b) { return a > b ? a : b; }

// One access of BYTES bytes: streamed, for an operand is read once.
template <int BYTES> struct Word;
template <> struct Word<1> { typedef unsigned char type; };
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef unsigned int type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

// Bytes of the accesses to N elements.
template <typename T, int N>
constexpr int width_of = sizeof(T) * N < 16 ? sizeof(T) * N : 16;

// Elements `index` to `index + N` at an address, all of which are there and may be read as vectors: without a branch,
// so that a thread can ask for those of several operands before the first has come.
template <typename T, int N>
__device__ inline void load_whole(T (&into)[N], u64 address, i64 index) {
    constexpr int EACH = width_of<T, N> / sizeof(T);
    typedef typename Word<width_of<T, N>>::type word;
    const T *from = reinterpret_cast<const T *>(address) + index;
#pragma unroll
    for (int i = 0; i < N; i += EACH) {
        union { word whole; T each[EACH]; } read;
        read.whole = __ldcs(reinterpret_cast<const word *>(from + i));
#pragma unroll
        for (int j = 0; j < EACH; j++) into[i + j] = read.each[j];
    }
}

// The same of `count` elements, 0 beyond the last, at any address; vectors where that allows it.
template <typename T, int N>
__device__ inline void load(T (&into)[N], u64 address, i64 index, i64 count) {
    const T *from = reinterpret_cast<const T *>(address) + index;
    if (index + N <= count && reinterpret_cast<u64>(from) % width_of<T, N> == 0) {
        load_whole(into, address, index);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) into[i] = index + i < count ? __ldcs(from + i) : T(0);
    }
}

template <typename T, int N>
__device__ inline void store(u64 address, i64 index, i64 count, const T (&values)[N]) {
    constexpr int EACH = width_of<T, N> / sizeof(T);
    typedef typename Word<width_of<T, N>>::type word;
    T *to = reinterpret_cast<T *>(address) + index;
    if (index + N <= count && reinterpret_cast<u64>(to) % width_of<T, N> == 0) {
#pragma unroll
        for (int i = 0; i < N; i += EACH) {
            union { word whole; T each[EACH]; } written;
#pragma unroll
            for (int j = 0; j < EACH; j++) written.each[j] = values[i + j];
            *reinterpret_cast<word *>(to + i) = written.whole;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (index + i < count) to[i] = values[i];
    }
}

// SIXTEEN lanes of a warp work on one block of 64 elements, four each; the two halves of a warp go their own ways.
constexpr int SIXTEEN = 16, EACH_LANE = 4;

__device__ inline u32 sixteen() { return 0xFFFFu << (threadIdx.x % 32 / SIXTEEN * SIXTEEN); }

__device__ inline u64 all_of_sixteen(u64 value) {
    for (int apart = SIXTEEN / 2; apart > 0; apart /= 2) value |= __shfl_xor_sync(sixteen(), value, apart);
    return value;
}

__device__ inline u64 largest_of_sixteen(u64 value) {
    for (int apart = SIXTEEN / 2; apart > 0; apart /= 2)
        value = larger(value, __shfl_xor_sync(sixteen(), value, apart));
    return value;
}

__device__ inline i64 thread_number() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline i64 thread_count() { return i64(gridDim.x) * blockDim.x; }
